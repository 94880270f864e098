"""Losses as `keras.losses.Loss` classes; the mathematics is in `ops`."""

import keras

from keras_hsakd import ops


@keras.saving.register_keras_serializable("keras_hsakd")
class TemperatureKLDivergence(keras.losses.Loss):
    """Divergence of a student's softened predictions from a teacher's.

    `loss = tau^2 * KL(softmax(y_true / tau) || softmax(y_pred / tau))`

    Both arguments are logits: `y_true` the teacher's, `y_pred` the student's. No
    gradient is stopped here; detach the teacher's logits where that is wanted.

    Args:
        temperature: Float, `tau > 0`. Defaults to 3.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Optional name of the loss.
        dtype: Dtype of the computation. Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: If `temperature` is not a positive number.

    Example:
    >>> loss = TemperatureKLDivergence(temperature=3.0)
    >>> round(float(loss(np.array([[2.0, 0.0]]), np.array([[0.0, 0.0]]))), 4)
    0.4735

    Reference: [Hinton et al., 2015](https://arxiv.org/abs/1503.02531).
    """

    def __init__(
        self,
        temperature: float = 3.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "temperature_kl_divergence",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if not temperature > 0:
            raise ValueError(
                "Expected `temperature` to be a number > 0. "
                f"Received: temperature={temperature}"
            )
        self.temperature = temperature

    def call(self, y_true, y_pred):
        return ops.temperature_kl_divergence(y_true, y_pred, self.temperature)

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}
