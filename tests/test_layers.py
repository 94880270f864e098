import keras
import numpy as np
import numpy_reference as reference
import pytest

from keras_hsakd.layers import BatchNormalization, Conv2D

pytestmark = pytest.mark.core
rng = np.random.default_rng(0)


def make(channels=3, **kwargs):
    layer = BatchNormalization(
        beta_initializer=keras.initializers.RandomNormal(seed=1),
        gamma_initializer=keras.initializers.RandomNormal(1.0, seed=2),
        **kwargs,
    )
    layer.build((None, None, None, channels))
    return layer


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def check_training(layer, x, rtol):
    outputs = numpy(layer(x, training=True))
    expected, mean, variance = reference.batch_normalization(
        x.astype("float64"), numpy(layer.gamma), numpy(layer.beta), 1e-5
    )
    np.testing.assert_allclose(outputs, expected, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(numpy(layer.moving_mean), 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(
        numpy(layer.moving_variance), 0.9 + 0.1 * variance, rtol=rtol
    )


# A batch of 2x2x2 values a channel: the unbiased variance is 8/7 of the biased one.
X = rng.normal(1.0, 2.0, size=(2, 2, 2, 3)).astype("float32")


def test_training_normalises_with_the_biased_and_tracks_the_unbiased_variance():
    check_training(make(), X, rtol=1e-5)


def test_training_in_float64(float64):
    check_training(make(), X.astype("float64"), rtol=1e-12)


@pytest.mark.parametrize("options", [{"axis": 1}, {"scale": False}])
def test_training_where_the_kernel_does_not_apply(options):
    layer = BatchNormalization(**options)
    axis = options.get("axis", 3)
    x = np.moveaxis(X, 3, axis)
    layer(x, training=True)
    _, _, variance = reference.batch_normalization(X, 1.0, 0.0, 1e-5)
    np.testing.assert_allclose(
        numpy(layer.moving_variance), 0.9 + 0.1 * variance, rtol=1e-5
    )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_keeps_statistics_in_float32(policy):
    layer = make(dtype=policy)
    x = keras.ops.cast(X, layer.compute_dtype)
    outputs = layer(x, training=True)
    assert keras.backend.standardize_dtype(outputs.dtype) == layer.compute_dtype
    rounded = numpy(keras.ops.cast(x, "float32"))
    expected, _, variance = reference.batch_normalization(
        rounded, numpy(layer.gamma), numpy(layer.beta), 1e-5
    )
    np.testing.assert_allclose(
        numpy(keras.ops.cast(outputs, "float32")), expected, atol=3e-2
    )
    np.testing.assert_allclose(
        numpy(layer.moving_variance), 0.9 + 0.1 * variance, rtol=1e-4
    )


def test_inference_uses_and_keeps_the_running_statistics():
    layer = make()
    layer(X, training=True)
    before = [numpy(w).copy() for w in layer.weights]
    outputs = numpy(layer(X, training=False))
    mean, variance = numpy(layer.moving_mean), numpy(layer.moving_variance)
    expected = (X - mean) / np.sqrt(variance + 1e-5)
    expected = expected * numpy(layer.gamma) + numpy(layer.beta)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    for old, new in zip(before, layer.weights, strict=True):
        np.testing.assert_array_equal(old, numpy(new))


def test_a_frozen_layer_infers():
    layer = make()
    layer.trainable = False
    np.testing.assert_array_equal(
        numpy(layer(X, training=True)), numpy(layer(X, training=False))
    )
    np.testing.assert_array_equal(numpy(layer.moving_mean), 0)


def test_same_gradients_as_keras():
    """The fused kernel's gradients against those of Keras' own layer."""
    gradients = []
    for layer_class in (BatchNormalization, keras.layers.BatchNormalization):
        layer = layer_class(epsilon=1e-5, momentum=0.9)
        images = keras.Input((2, 2, 3))
        outputs = keras.layers.Dense(1, kernel_initializer="ones")(
            keras.layers.Flatten()(keras.ops.sin(layer(images)))
        )
        model = keras.Model(images, outputs)
        model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=False)
        model.train_on_batch(X, np.arange(2.0))
        gradients.append([numpy(v) for v in layer.trainable_variables])
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"renorm": True}, {}])
def test_masks_and_renorm_are_keras_own(options):
    mask = None if options else np.array([[[1, 0], [1, 1]]] * 2, bool)
    statistics = []
    for layer_class in (BatchNormalization, keras.layers.BatchNormalization):
        layer = layer_class(momentum=0.9, epsilon=1e-5, **options)
        layer(X, training=True, mask=mask)
        statistics.append([numpy(v) for v in layer.non_trainable_variables])
    for ours, theirs in zip(*statistics, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_serialisation():
    layer = make(momentum=0.8, epsilon=1e-4)
    copy = BatchNormalization.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    assert (copy.momentum, copy.epsilon) == (0.8, 1e-4)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="XLA of TensorFlow")
def test_compiled_by_xla():
    import tensorflow as tf

    layer = make()
    tf.function(lambda x: layer(x, training=True), jit_compile=True)(X)
    _, _, variance = reference.batch_normalization(X, 1.0, 0.0, 1e-5)
    np.testing.assert_allclose(
        numpy(layer.moving_variance), 0.9 + 0.1 * variance, rtol=1e-5
    )


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 1, "padding": "same", "use_bias": False, "activation": "relu"},
        {"kernel_size": 1, "strides": 2},
        {"kernel_size": 3},
        {"kernel_size": 1, "dtype": "mixed_bfloat16"},
    ],
    ids=str,
)
def test_a_grouped_convolution_is_that_of_keras(options):
    x = rng.normal(size=(2, 4, 5, 12)).astype("float32")
    ours = Conv2D(6, groups=3, **options)
    theirs = keras.layers.Conv2D.from_config(ours.get_config())
    theirs.build(x.shape)
    outputs = numpy(keras.ops.cast(ours(x), "float32"))
    theirs.set_weights(ours.get_weights())
    expected = numpy(keras.ops.cast(theirs(x), "float32"))
    assert outputs.shape == ours.compute_output_shape(x.shape) == expected.shape
    tolerance = 2e-2 if "dtype" in options else 1e-5
    np.testing.assert_allclose(outputs, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="XLA of TensorFlow")
def test_a_grouped_pointwise_convolution_is_matrix_products():
    import tensorflow as tf

    layer = Conv2D(6, 1, groups=3)
    spec = tf.TensorSpec([None, None, None, 12])
    graph = tf.function(layer, autograph=False).get_concrete_function(spec).graph
    kinds = [operation.type for operation in graph.get_operations()]
    assert kinds.count("MatMul") == 3
    assert not {"Conv2D", "PartitionedCall", "StatefulPartitionedCall"} & set(kinds)
