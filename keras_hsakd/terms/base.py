"""A term of a loss: what it is on, how much it weighs, and its values by row."""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Any, ClassVar

import keras

# What a term can be on beside a head, a stage or a layer that is named.
LOGITS, IMAGES, HEADS = "logits", "images", "heads"
STAGES, LAST_STAGE, FEATURES = "stages", "last_stage", "features"
PLACES = (LOGITS, IMAGES, HEADS, STAGES, LAST_STAGE, FEATURES)


@keras.saving.register_keras_serializable("keras_hsakd")
@dataclasses.dataclass(kw_only=True)
class Term:
    """Base class of the terms that a trainer's loss is the sum of.

    ```
    loss = sum(term.weight * mean(term.values(teacher, student, labels)))
    ```

    A subclass has `values`. If it has settings of its own, it is a dataclass, too, and
    they are its fields; if it has variables of its own, it has `make_layer`. Register
    it with `keras.saving.register_keras_serializable` to save a trainer that has it.

    The settings of a term stay as they are, for a compiled step would not see a change.

    Args:
        weight: Weight of the term in the loss, 0 or more. A term of weight 0 is left
            out, and what it alone needs is not computed. Defaults to 1.
        warmup: Number of epochs over which the term comes in: in epoch `e`, counted
            from 1, it has `min(e / warmup, 1)` of its weight. Defaults to 0, all of it
            from the start.
        on: What the term compares, a name or a list of names:

            - `"logits"`, the class logits, of all views that a step sees;
            - `"images"`, the class logits of the images themselves;
            - `"heads"`, each auxiliary head of the student, or one of them by its name,
              `"aux_2"`, of all views that a step sees;
            - `"stages"`, the feature maps at the ends of stages, of the images
              themselves; where one network has more, the last ones. `"stage_2"` is
              one of them, `"last_stage"` the last of each network. See
              `keras_hsakd.classifier.Classifier.stages`;
            - `"features"`, what the layer with the class weights takes;
            - the name of a layer of the student, whose output on the images themselves
              is compared with that of the teacher's layer of the same name.

            These names come first: a layer that is called `"features"` itself cannot be
            named. The term has one metric for each name; a term on features has a
            single one, their sum. Defaults to `"logits"`.
        teacher: Name of the teacher's head, stage or layer, where `on` is one of them
            and the teacher's has another name. Defaults to `None`, the head that is
            paired with the student's, or the stage or layer of the same name.
        name: Name of its metric, or the beginning of the names of several. Defaults to
            `None`, a name of the kind of term and of what it is on: `"kl_main"` for
            `"logits"`, `"kl_loss"` for `"images"`, `"kl_aux_1"` for a head.

    Raises:
        ValueError: If a setting is out of range.

    Example:
    >>> @keras.saving.register_keras_serializable("mine")
    ... class SquaredError(keras_hsakd.terms.Term):
    ...     def values(self, teacher, student, labels):
    ...         return keras.ops.mean((teacher - student) ** 2, axis=-1)
    >>> SquaredError(weight=0.5, on="heads")
    SquaredError(weight=0.5, on='heads')
    """

    weight: float = 1.0
    warmup: float = 0.0
    on: str | Sequence[str] = LOGITS
    teacher: str | None = None
    name: str | None = None

    needs_teacher: ClassVar[bool] = True
    """Whether it compares with a teacher's output."""
    needs_labels: ClassVar[bool] = False
    """Whether a row without a label, -1, counts nothing."""
    is_scalar: ClassVar[bool] = False
    """Whether `values` is one number for the whole batch."""
    is_summed: ClassVar[bool] = False
    """Whether all features that it is on are one metric, their sum."""
    compares_rows: ClassVar[bool] = False
    """Whether `values` takes `counts`, too: 1 for each row that others are compared
    with, 0 for a row of weight 0."""

    def __post_init__(self):
        """Checks the settings."""
        for setting in ("weight", "warmup"):
            check_number(self, setting, lambda value: value >= 0, "0 or more")
        names = self.on_names
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(
                f"Expected `on` of {type(self).__name__} to be one of {PLACES}, or the "
                f"name of a head or a layer, or a list of names. Received: {self.on!r}"
            )
        if self.teacher is not None and (
            len(names) > 1 or names[0] in (LOGITS, IMAGES, HEADS, STAGES)
        ):
            raise ValueError(
                f"Expected `on` of {type(self).__name__} to be one head, one stage or "
                "one layer, with `teacher`. "
                f"Received: on={self.on!r}, teacher={self.teacher!r}"
            )

    def __setattr__(self, name, value):
        """Sets a setting once."""
        fields = {field.name for field in dataclasses.fields(self)}
        if name in fields and name in vars(self):
            raise AttributeError(
                f"Expected the settings of a term to stay as they are: a compiled step "
                f"would not see the change. Make another {type(self).__name__}, and a "
                f"distiller of it; `warmup` changes a weight while training. "
                f"Received: {name}={value!r}"
            )
        object.__setattr__(self, name, value)

    def __repr__(self):
        """Returns how the term is spelled, without settings that are the default."""
        shown = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in _own_first(self)
            if getattr(self, field.name) != field.default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def on_names(self) -> list[str]:
        """The names in `on`."""
        return [self.on] if isinstance(self.on, str) else list(self.on)

    @property
    def label(self) -> str:
        """The beginning of the names of its metrics, where it has no `name`."""
        return type(self).__name__.lower()

    def values(self, teacher, student, labels):
        """Returns the values of the term, written in `keras.ops`.

        Args:
            teacher: The teacher's output, without a gradient: of logits and heads
                `(rows, K)`, of a layer whatever it gives. `None` where the term needs
                no teacher.
            student: The student's output, of as many rows.
            labels: Labels of the rows, integers `(rows,)`, -1 where there is none, or
                probabilities `(rows, K)`; of heads the joint labels.

        Returns:
            Tensor of shape `(rows,)`.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method `values`")

    def make_layer(self, teacher_shape, student_shape) -> keras.Layer | None:
        """Returns a layer that the student's output goes through, if there is one.

        It is trained and saved with the trainer, and is in no file of the student.

        Args:
            teacher_shape: Shape of the teacher's output, of rows `None`.
            student_shape: The same of the student's.

        Raises:
            ValueError: If outputs of these shapes cannot be compared.
        """
        return None

    def get_config(self) -> dict[str, Any]:
        """Returns the settings, for `keras.saving`."""
        serialize = keras.saving.serialize_keras_object
        fields = dataclasses.fields(self)
        return {field.name: serialize(getattr(self, field.name)) for field in fields}

    @classmethod
    def from_config(cls, config, custom_objects=None) -> "Term":
        """Returns a term of the settings that `get_config` returned."""
        deserialize = keras.saving.deserialize_keras_object
        return cls(
            **{
                name: deserialize(value, custom_objects=custom_objects)
                for name, value in config.items()
            }
        )


def _own_first(term):
    """Returns the fields of a term, those that it alone has before the common ones."""
    common = {field.name for field in dataclasses.fields(Term)}
    return sorted(dataclasses.fields(term), key=lambda field: field.name in common)


def check_number(term: Term, setting: str, suits, expected: str) -> None:
    """Raises a ValueError unless a setting of a term is a finite number that suits."""
    value = getattr(term, setting)
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not suits(value):
        raise ValueError(
            f"Expected `{setting}` of {type(term).__name__} to be a number, {expected}."
            f" Received: {setting}={value!r}"
        )
