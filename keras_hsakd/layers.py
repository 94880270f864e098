"""Keras layers that the networks need and `keras.layers` lacks."""

import keras
from keras import ops

from keras_hsakd.compat import layers_of
from keras_hsakd.distribution import global_sum


@keras.saving.register_keras_serializable("keras_hsakd")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization with PyTorch's running variance, fused on TensorFlow.

    Two things differ from `keras.layers.BatchNormalization`:

    - the running variance is updated with the unbiased variance of the batch,
      `n / (n - 1)` times the biased one that normalizes it, as in PyTorch;
    - on the TensorFlow backend, 4-D inputs of single or half precision go through one
      fused kernel instead of several passes over the activations.

    With `synchronized`, the batch is that of all replicas, and the kernel serves
    inference alone. With a mask or `renorm`, it is Keras' layer with other defaults.

    Args:
        momentum: Momentum of the running statistics. Defaults to 0.9, which is
            PyTorch's 0.1.
        epsilon: Added to the variance. Defaults to 1e-5.
        **kwargs: Further arguments of `keras.layers.BatchNormalization`.

    Example:
    >>> tuple(BatchNormalization()(np.ones((2, 4, 4, 3), "float32")).shape)
    (2, 4, 4, 3)

    Reference: [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167);
    `torch.nn.BatchNorm2d`.
    """

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5, **kwargs):
        super().__init__(momentum=momentum, epsilon=epsilon, **kwargs)

    def call(self, inputs, training=None, mask=None):
        if mask is not None or self.renorm:
            return super().call(inputs, training=training, mask=mask)
        updates_statistics = training and self.trainable
        if self._can_fuse(inputs) and not (self.synchronized and updates_statistics):
            return self._fused_call(inputs, updates_statistics)
        if not updates_statistics:
            return super().call(inputs, training=training)
        old = self.momentum * self.moving_variance
        outputs = super().call(inputs, training=training)
        # Keras has just added (1 - momentum) times the biased variance.
        added = self.moving_variance - old
        count = ops.size(inputs) // inputs.shape[self.axis]
        count = ops.cast(count, self.moving_variance.dtype)
        if self.synchronized:
            count = global_sum(count)
        self.moving_variance.assign(old + added * count / ops.maximum(count - 1, 1))
        return outputs

    def _can_fuse(self, inputs):
        return (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and self.scale
            and self.center
            and self.variable_dtype == "float32"
            and keras.backend.standardize_dtype(inputs.dtype) != "float64"
        )

    def _fused_call(self, inputs, updates_statistics):
        import tensorflow as tf

        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma,
            offset=self.beta,
            mean=self.moving_mean,
            variance=self.moving_variance,
            epsilon=self.epsilon,
            exponential_avg_factor=1 - self.momentum,
            is_training=bool(updates_statistics),
        )
        if updates_statistics:
            # The kernel takes the unbiased variance of the batch into the running one.
            self.moving_mean.assign(mean)
            self.moving_variance.assign(variance)
        return ops.cast(outputs, self.compute_dtype)


@keras.saving.register_keras_serializable("keras_hsakd")
class Conv2D(keras.layers.Conv2D):
    """A convolution whose groups are matrix products where they can be.

    It has the weights of `keras.layers.Conv2D`, also by their names in a file, and
    computes the same. In groups, with a 1x1 kernel at stride 1, each group is a product
    of two matrices: on TensorFlow Keras has the CPU run grouped convolutions by XLA,
    which takes several times as long, and which no converter takes.

    Args:
        *args: Arguments of `keras.layers.Conv2D`.
        **kwargs: The same, `groups` among them.

    Example:
    >>> layer = Conv2D(6, 1, groups=3)
    >>> tuple(layer(np.ones((2, 4, 4, 12), "float32")).shape)
    (2, 4, 4, 6)
    >>> tuple(layer.kernel.shape)
    (1, 1, 4, 6)

    Reference: [Zhang et al., 2018](https://arxiv.org/abs/1707.01083), section 3.1.
    """

    def convolution_op(self, inputs, kernel):
        is_pointwise = self.kernel_size == self.strides == (1, 1)
        is_last = self.data_format == "channels_last"
        if self.groups == 1 or not is_pointwise or not is_last:
            return super().convolution_op(inputs, kernel)
        *sizes, channels = ops.shape(inputs)
        of_groups = zip(
            ops.split(ops.reshape(inputs, (-1, channels)), self.groups, axis=1),
            ops.split(kernel[0, 0], self.groups, axis=1),
            strict=True,
        )
        products = [ops.matmul(x, matrix) for x, matrix in of_groups]
        return ops.reshape(
            ops.concatenate(products, axis=1), (*sizes, kernel.shape[-1])
        )


@keras.saving.register_keras_serializable("keras_hsakd")
class Logits(keras.layers.Wrapper):
    """What a classifier outputs before its activation, from its own weights.

    Args:
        layer: A built `keras.layers.Dense` or `keras.layers.Conv2D`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Example:
    >>> classifier = keras.layers.Dense(10, activation="softmax")
    >>> features = np.ones((2, 4), "float32")
    >>> probabilities = classifier(features)
    >>> logits = Logits(classifier)(features)
    >>> bool(np.allclose(keras.ops.softmax(logits), probabilities))
    True
    """

    def __init__(self, layer, **kwargs):
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, **kwargs)

    def call(self, inputs):
        if isinstance(self.layer, keras.layers.Conv2D):
            logits = self.layer.convolution_op(inputs, self.layer.kernel)
        else:
            logits = ops.matmul(inputs, self.layer.kernel)
        return logits if self.layer.bias is None else logits + self.layer.bias

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)


@keras.saving.register_keras_serializable("keras_hsakd")
class ChannelShuffle(keras.layers.Layer):
    """Mixes the channels of groups: the first of each group, the second of each, ...

    ```
    y[..., i * groups + g] = x[..., g * (channels / groups) + i]
    ```

    Args:
        groups: Number of groups, which divides the channels.
        **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If the groups do not divide the channels.

    Example:
    >>> np.asarray(ChannelShuffle(2)(np.array([[1.0, 2.0, 3.0, 4.0]])))
    array([[1., 3., 2., 4.]], dtype=float32)

    Reference: [Zhang et al., 2018](https://arxiv.org/abs/1707.01083), section 3.1.
    """

    def __init__(self, groups: int, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups

    def build(self, input_shape):
        if input_shape[-1] % self.groups:
            raise ValueError(
                "Expected `groups` to divide the channels. "
                f"Received: groups={self.groups}, {input_shape[-1]} channels"
            )

    def call(self, inputs):
        *sizes, channels = ops.shape(inputs)
        x = ops.reshape(inputs, (*sizes, self.groups, channels // self.groups))
        return ops.reshape(ops.swapaxes(x, -1, -2), (*sizes, channels))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "groups": self.groups}


@keras.saving.register_keras_serializable("keras_hsakd")
class ChannelSplit(keras.layers.Layer):
    """Splits the channels into two halves.

    Args:
        **kwargs: Arguments of `keras.layers.Layer`.

    Example:
    >>> first, second = ChannelSplit()(np.array([[1.0, 2.0, 3.0, 4.0]]))
    >>> np.asarray(second)
    array([[3., 4.]], dtype=float32)

    Reference: [Ma et al., 2018](https://arxiv.org/abs/1807.11164), section 3.2.
    """

    def call(self, inputs):
        return ops.split(inputs, 2, axis=-1)


def finalize_states(model: keras.Model) -> None:
    """Makes layers follow their variables, after these were given values.

    An adapted `keras.layers.Normalization` computes with constants that it makes of its
    variables, which it does by itself where it is adapted or loaded.

    Args:
        model: A model or another layer, with all layers in it.

    Example:
    >>> layer, copy = keras.layers.Normalization(), keras.layers.Normalization()
    >>> layer.adapt(np.array([[1.0], [3.0]]))
    >>> copy.build((None, 1))
    >>> copy.set_weights(layer.get_weights())
    >>> finalize_states(copy)
    >>> np.asarray(copy(np.array([[5.0]])))
    array([[3.]], dtype=float32)
    """
    for layer in layers_of(model):
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()
