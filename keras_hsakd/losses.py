"""What a student learns from a teacher by: divergences, by name and as Keras losses.

A divergence is a pure function of (teacher logits, student logits, labels) with one
value a row. The mathematics is in `ops`.
"""

import functools
import inspect
import numbers
from collections.abc import Callable, Mapping

import keras

from keras_hsakd import ops
from keras_hsakd.suggestions import did_you_mean

Divergence = Callable[
    [keras.KerasTensor, keras.KerasTensor, keras.KerasTensor], keras.KerasTensor
]

# name: function of teacher logits, student logits, labels, temperature and its options
_DIVERGENCES = {
    "kl": lambda teacher, student, labels, temperature: ops.temperature_kl_divergence(
        teacher, student, temperature
    ),
    "dkd": ops.decoupled_divergence,
    "standardized": lambda teacher, student, labels, temperature: (
        ops.standardized_divergence(teacher, student, temperature)
    ),
}


def names() -> list[str]:
    """Returns the names of the divergences that come with the package.

    - `"kl"`: `tau^2 * KL(softmax(teacher / tau) || softmax(student / tau))`, the
      paper's, see `keras_hsakd.ops.temperature_kl_divergence`;
    - `"dkd"`: about the right class, and among the others, apart, with the options
      `alpha` and `beta`, see `keras_hsakd.ops.decoupled_divergence`; published with
      temperature 4, and a weight that grows over the first 20 of 240 epochs;
    - `"standardized"`: `"kl"` of logits that are standardized by row, see
      `keras_hsakd.ops.standardized_divergence`; published with temperature 2, weight 9,
      and 0.1 for the cross-entropy.

    Example:
    >>> keras_hsakd.losses.names()
    ['kl', 'dkd', 'standardized']
    """
    return list(_DIVERGENCES)


def get(
    divergence: str | Divergence,
    temperature: float = 3.0,
    options: Mapping[str, float] | None = None,
) -> Divergence:
    """Returns a named divergence at a temperature, or a function as it is.

    Args:
        divergence: One of `names()`, or a function of teacher logits and student logits
            `(rows, K)` and labels, integers `(rows,)`, -1 where there is none, or
            probabilities `(rows, K)`, that returns one value a row, `(rows,)`, written
            in `keras.ops`.
        temperature: The temperature `tau > 0` of a named one. Defaults to 3.
        options: Further settings of a named one, by name, see `names`. Defaults to
            `None`, its own.

    Returns:
        A function of (teacher logits, student logits, labels).

    Raises:
        ValueError: If the name is unknown, what is given cannot be called or is a Keras
            loss, the temperature is not positive, or the divergence has no such option.

    Example:
    >>> divergence = keras_hsakd.losses.get("kl", temperature=3.0)
    >>> teacher, student = np.array([[2.0, 0.0]]), np.array([[0.0, 0.0]])
    >>> round(float(divergence(teacher, student, np.array([0]))[0]), 4)
    0.4735
    """
    _check_temperature(temperature)
    # The third argument of a Keras loss is a weight.
    if callable(divergence) and not isinstance(divergence, keras.losses.Loss):
        _check_options(options, divergence, ())
        return divergence
    if not isinstance(divergence, str) or divergence not in _DIVERGENCES:
        raise ValueError(
            f"Expected `divergence` to be one of {names()} or a function of (teacher "
            "logits, student logits, labels). "
            f"Received: divergence={divergence!r}{did_you_mean(divergence, names())}"
        )
    function = _DIVERGENCES[divergence]
    _, _, _, _, *known = inspect.signature(function).parameters
    _check_options(options, divergence, known)
    return functools.partial(function, temperature=temperature, **(options or {}))


@keras.saving.register_keras_serializable("keras_hsakd")
class TemperatureKLDivergence(keras.losses.Loss):
    """Divergence of a student's softened predictions from a teacher's.

    `loss = tau^2 * KL(softmax(y_true / tau) || softmax(y_pred / tau))`

    Both arguments are logits: `y_true` the teacher's, `y_pred` the student's. No
    gradient is stopped here; detach the teacher's logits where that is wanted.

    Args:
        temperature: Float, `tau > 0`. Defaults to 3.
        reduction: See `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
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
        _check_temperature(temperature)
        self.temperature = temperature

    def call(self, y_true, y_pred):
        return ops.temperature_kl_divergence(y_true, y_pred, self.temperature)

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}


def _check_options(options, divergence, known):
    for name, value in (options or {}).items():
        if name not in known:
            expected = f"options among {known}" if known else "no options"
            raise ValueError(
                f"Expected {expected} for divergence={divergence!r}. "
                f"Received: {name}={value}"
            )


def _check_temperature(temperature):
    if not isinstance(temperature, numbers.Real) or not temperature > 0:
        raise ValueError(
            "Expected `temperature` to be a number > 0. "
            f"Received: temperature={temperature!r}"
        )
