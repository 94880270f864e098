"""Terms that compare a student's logits with a teacher's."""

import dataclasses

import keras

from keras_hsakd import ops
from keras_hsakd.terms.base import Term, check_number


@dataclasses.dataclass(repr=False)
class _AtTemperature(Term):
    """Base class of the terms that soften logits by a temperature."""

    temperature: float = 1.0

    def __post_init__(self):
        """Checks the settings."""
        super().__post_init__()
        check_number(self, "temperature", lambda value: value > 0, "> 0")


@keras.saving.register_keras_serializable("keras_hsakd")
@dataclasses.dataclass(repr=False)
class KL(_AtTemperature):
    """Divergence of the student's softened predictions from the teacher's.

    `tau^2 * KL(softmax(teacher / tau) || softmax(student / tau))`, reported as
    `kl_main` and `kl_aux_1` to `kl_aux_L`.

    Args:
        temperature: The temperature `tau > 0`. Defaults to 3, that of HSAKD.
        **kwargs: `weight`, `warmup`, `on`, `teacher` and `name`, see `Term`.

    Raises:
        ValueError: If a setting is out of range.

    Example:
    >>> term = KL(3.0, on="heads")
    >>> teacher, student = np.array([[2.0, 0.0]]), np.array([[0.0, 0.0]])
    >>> round(float(term.values(teacher, student, None)[0]), 4)
    0.4735

    References: [Hinton et al., 2015](https://arxiv.org/abs/1503.02531);
    [Yang et al., 2021](https://arxiv.org/abs/2107.13715), section 3.3.
    """

    temperature: float = 3.0

    def values(self, teacher, student, labels):
        return ops.temperature_kl_divergence(teacher, student, self.temperature)


@keras.saving.register_keras_serializable("keras_hsakd")
@dataclasses.dataclass(repr=False)
class DKD(_AtTemperature):
    """Divergences about the right class and among the others, apart.

    `tau^2 * (alpha * KL(right or not) + beta * KL(among the others))`, see
    `keras_hsakd.ops.decoupled_divergence`. It was published with a warm-up over the
    first 20 of 240 epochs.

    Args:
        temperature: The temperature `tau > 0`. Defaults to 4.
        alpha: Weight of the divergence about the right class. Defaults to 1.
        beta: Weight of the divergence among the others. Defaults to 8.
        **kwargs: `weight`, `warmup`, `on`, `teacher` and `name`, see `Term`.

    Raises:
        ValueError: If a setting is out of range.

    Example:
    >>> DKD(4.0, beta=6.0, warmup=20)
    DKD(beta=6.0, warmup=20)

    References: [Zhao et al., 2022](https://arxiv.org/abs/2203.08679), and the
    [authors' implementation](https://github.com/megvii-research/mdistiller).
    """

    temperature: float = 4.0
    alpha: float = 1.0
    beta: float = 8.0

    def __post_init__(self):
        """Checks the settings."""
        super().__post_init__()
        for setting in ("alpha", "beta"):
            check_number(self, setting, lambda value: value >= 0, "0 or more")

    def values(self, teacher, student, labels):
        return ops.decoupled_divergence(
            teacher, student, labels, self.temperature, self.alpha, self.beta
        )


@keras.saving.register_keras_serializable("keras_hsakd")
@dataclasses.dataclass(repr=False)
class Standardized(_AtTemperature):
    """`KL` of logits that are standardized by row, so that their scale does not matter.

    See `keras_hsakd.ops.standardized_divergence`. It was published with the weight 9,
    and 0.1 for the cross-entropy.

    Args:
        temperature: The temperature `tau > 0`. Defaults to 2.
        **kwargs: `weight`, `warmup`, `on`, `teacher` and `name`, see `Term`.

    Raises:
        ValueError: If a setting is out of range.

    Example:
    >>> teacher = np.array([[2.0, 1.0, 0.0]])
    >>> float(Standardized().values(teacher, 3 * teacher + 1, None)[0]) < 1e-9
    True

    Reference: [Sun et al., 2024](https://arxiv.org/abs/2403.01427).
    """

    temperature: float = 2.0

    def values(self, teacher, student, labels):
        return ops.standardized_divergence(teacher, student, self.temperature)
