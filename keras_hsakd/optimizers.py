"""The authors' optimizer, and learning-rate schedules."""

from collections.abc import Sequence

import keras
from keras import ops

from keras_hsakd.distribution import num_replicas


@keras.saving.register_keras_serializable("keras_hsakd")
class SGD(keras.optimizers.SGD):
    """Stochastic gradient descent as PyTorch does it.

    ```
    g = gradient + weight_decay * w
    buffer = momentum * buffer + g
    w = w - learning_rate * (g + momentum * buffer)     # nesterov
    w = w - learning_rate * buffer                      # otherwise
    ```

    It differs from `keras.optimizers.SGD` in two ways that change results:

    - the weight decay is coupled: an L2 penalty whose gradient goes through the
      momentum, about `1 / (1 - momentum)` times stronger than Keras' decoupled one;
    - the buffer does not contain the learning rate, so a drop of the learning rate
      acts on all of the next step, not only on its newest gradient.

    Args:
        learning_rate: A float or a `keras.optimizers.schedules.LearningRateSchedule`.
            Defaults to 0.01.
        momentum: Float >= 0. Defaults to 0.
        nesterov: Whether to apply Nesterov momentum. Defaults to `False`.
        weight_decay: Float >= 0, applied to every trainable variable (batch norm and
            biases too) but those given to `exclude_from_weight_decay`. Defaults to
            `None`, no decay.
        **kwargs: Further arguments of `keras.optimizers.Optimizer`.

    Example:
    >>> optimizer = SGD(0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)

    Reference: [torch.optim.SGD](
    https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html).
    """

    def update_step(self, gradient, variable, learning_rate):
        learning_rate = ops.cast(learning_rate, variable.dtype)
        gradient = ops.cast(gradient, variable.dtype)
        if self.weight_decay and self._use_weight_decay(variable):
            gradient = gradient + variable * self.weight_decay
        if not self.momentum:
            self.assign_sub(variable, learning_rate * gradient)
            return
        # A Python float takes the variable's dtype; `ops.cast` would round a float64
        # one to float32 on its way.
        momentum = self.momentum
        buffer = self.momentums[self._get_variable_index(variable)]
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            # One operation, where many would take memory for each variable.
            tf.raw_ops.ResourceApplyMomentum(
                var=variable.handle,
                accum=buffer.value.handle,
                lr=learning_rate,
                grad=gradient,
                momentum=momentum,
                use_nesterov=self.nesterov,
            )
            return
        new_buffer = momentum * buffer + gradient
        self.assign(buffer, new_buffer)
        gradient = gradient + momentum * new_buffer if self.nesterov else new_buffer
        self.assign_sub(variable, learning_rate * gradient)

    def _apply_weight_decay(self, variables):
        """Does nothing: `update_step` adds the decay to the gradient."""

    def _all_reduce_sum_gradients(self, grads_and_vars):
        """Sums gradients over replicas, where there are several.

        Of a sum over one, TensorFlow keeps the graph of the step until the process
        ends.
        """
        if num_replicas() == 1:
            return grads_and_vars
        return super()._all_reduce_sum_gradients(grads_and_vars)


def step_decay(
    learning_rate: float,
    epochs: int,
    steps_per_epoch: int,
    milestones: Sequence[float] = (0.625, 0.75, 0.875),
    factor: float = 0.1,
) -> keras.optimizers.schedules.PiecewiseConstantDecay:
    """Returns a learning rate that drops at fractions of the training.

    Args:
        learning_rate: Float, before the first drop.
        epochs: Number of epochs of the training.
        steps_per_epoch: Number of updates in each epoch.
        milestones: Increasing fractions of the epochs, in (0, 1); each drop comes with
            the first step of the epoch that they round to. Defaults to the authors' on
            CIFAR: epochs 150, 180 and 210 of 240.
        factor: What the rate is multiplied with at each. Defaults to 0.1.

    Returns:
        A `keras.optimizers.schedules.PiecewiseConstantDecay`.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
    >>> schedule = step_decay(0.05, epochs=240, steps_per_epoch=782)
    >>> [round(float(schedule(782 * epoch)), 4) for epoch in (149, 150)]
    [0.05, 0.005]

    Reference: [Yang et al., 2021](https://arxiv.org/abs/2107.13715), section 4.1.
    """
    if epochs < 1 or steps_per_epoch < 1:
        raise ValueError(
            "Expected `epochs` and `steps_per_epoch` to be at least 1. "
            f"Received: epochs={epochs}, steps_per_epoch={steps_per_epoch}"
        )
    if list(milestones) != sorted(milestones) or not all(0 < m < 1 for m in milestones):
        raise ValueError(
            "Expected `milestones` to be increasing fractions between 0 and 1. "
            f"Received: milestones={milestones}"
        )
    # Keras still uses the old value at the boundary itself.
    boundaries = [round(m * epochs) * steps_per_epoch - 1 for m in milestones]
    values = [learning_rate * factor**i for i in range(len(boundaries) + 1)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)


@keras.saving.register_keras_serializable("keras_hsakd")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule whose learning rate comes in over the first steps.

    ```
    rate(step) = schedule(step) * min(step / steps, 1)
    ```

    `keras.optimizers.schedules.CosineDecay` has a warm-up of its own.

    Args:
        schedule: The `keras.optimizers.schedules.LearningRateSchedule`.
        steps: Number of steps over which it comes in, from zero.

    Example:
    >>> schedule = WarmUp(step_decay(0.05, epochs=10, steps_per_epoch=4), steps=4)
    >>> [round(float(schedule(step)), 4) for step in (0, 1, 4, 5)]
    [0.0, 0.0125, 0.05, 0.05]
    """

    def __init__(
        self, schedule: keras.optimizers.schedules.LearningRateSchedule, steps: int
    ):
        super().__init__()
        self.schedule = schedule
        self.steps = steps

    def __call__(self, step):
        rate = self.schedule(step)
        part = ops.cast(step, "float32") / self.steps
        return rate * ops.cast(ops.minimum(part, 1.0), rate.dtype)

    def get_config(self):
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "steps": self.steps,
        }

    @classmethod
    def from_config(cls, config):
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(schedule, config["steps"])
