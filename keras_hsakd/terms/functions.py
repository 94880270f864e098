"""Terms from somebody's function, and from the losses of `keras.distillation`."""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable
from typing import ClassVar

import keras

from keras_hsakd.terms.base import Term


def is_function_of_three(function) -> bool:
    """Returns whether it can be called as `values` of a term is."""
    # The third argument of a Keras loss is a weight.
    if not callable(function) or isinstance(function, (keras.losses.Loss, type)):
        return False
    with contextlib.suppress(TypeError, ValueError):  # a function without a signature
        parameters = inspect.signature(function)
        try:
            parameters.bind(None, None, None)
        except TypeError:
            return False
    return True


@keras.saving.register_keras_serializable("keras_hsakd")
@dataclasses.dataclass(repr=False)
class Function(Term):
    """A function as a term.

    Args:
        function: Function of the teacher's output, the student's output and the labels,
            as `Term.values`, that returns one value a row. Register it with
            `keras.saving.register_keras_serializable` to save a trainer that has it.
        **kwargs: `weight`, `warmup`, `on`, `teacher` and `name`, see `Term`.

    Raises:
        ValueError: If a setting is out of range, or there is no such function.

    Example:
    >>> def squared_error(teacher, student, labels):
    ...     return keras.ops.mean((teacher - student) ** 2, axis=-1)
    >>> term = Function(squared_error, on="heads")
    """

    function: Callable = None

    def __post_init__(self):
        """Checks the settings."""
        super().__post_init__()
        if not is_function_of_three(self.function):
            raise ValueError(
                "Expected `function` to be a function of (teacher's output, student's "
                "output, labels) that returns one value a row. "
                f"Received: {self.function!r}"
            )

    @property
    def label(self):
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return name if name.isidentifier() else "function"

    def values(self, teacher, student, labels):
        return self.function(teacher, student, labels)


@keras.saving.register_keras_serializable("keras_hsakd")
@dataclasses.dataclass(repr=False)
class KerasDistillation(Term):
    """A loss of `keras.distillation` as a term.

    Its value is one number for a batch and not one a row. So there is no way to leave
    rows out of it or to weigh them: it is refused with sample weights, images without a
    label, sampled views, and replicas that have different numbers of images.

    Args:
        loss: A `keras.distillation.DistillationLoss` that compares two tensors, such as
            `keras.distillation.LogitsDistillation(4.0, keras.losses.KLDivergence())`.
        **kwargs: `weight`, `warmup`, `on`, `teacher` and `name`, see `Term`.

    Raises:
        ValueError: If a setting is out of range, or the loss names layers of its own.

    Example:
    >>> loss = keras.distillation.LogitsDistillation(4.0, keras.losses.KLDivergence())
    >>> terms = [keras_hsakd.terms.CrossEntropy(), KerasDistillation(loss, weight=0.9)]
    """

    loss: "keras.distillation.DistillationLoss" = None

    is_scalar: ClassVar[bool] = True

    def __post_init__(self):
        """Checks the settings."""
        super().__post_init__()
        if not isinstance(self.loss, keras.distillation.DistillationLoss):
            raise ValueError(
                "Expected `loss` to be a keras.distillation.DistillationLoss. "
                f"Received: {self.loss!r}"
            )
        for role in ("teacher", "student"):
            if layer := getattr(self.loss, f"{role}_layer_name", None):
                raise ValueError(
                    f"Expected a {type(self.loss).__name__} without layers of its own, "
                    "for which Keras runs the networks a second time: name the "
                    "student's layer by `on`, and the teacher's by `teacher`, as in "
                    f"KerasDistillation(loss, on='...', teacher='...'). "
                    f"Received: {role}_layer_name={layer!r}"
                )

    @property
    def label(self):
        name = type(self.loss).__name__
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")

    def values(self, teacher, student, labels):
        self.loss.validate_outputs(teacher, student)
        return self.loss.compute_loss(teacher, student)
