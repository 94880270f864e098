"""What the trainers in which a network learns from another have in common."""

from collections.abc import Sequence

import keras

from keras_hsakd.heads import check_counts, signature
from keras_hsakd.teachers import Teacher
from keras_hsakd.terms import of_method
from keras_hsakd.trainers.base import Trainer, read_only


class Distillation(Trainer):
    """Base class of the trainers whose networks learn from others' outputs."""

    @read_only
    def temperature(self) -> float | None:
        """The temperature of all terms that have one; `None` where they differ."""
        found = {t.temperature for t in self.terms if hasattr(t, "temperature")}
        return found.pop() if len(found) == 1 else None


def terms_at(temperature: float | None, terms: Sequence | None, heads: bool) -> list:
    """Returns terms that were given, or else those of HSAKD at a temperature.

    Raises:
        ValueError: If both were given.
    """
    if terms is None:
        settings = {} if temperature is None else {"temperature": temperature}
        return of_method("hsakd", heads, settings=settings)
    if temperature is not None:
        raise ValueError(
            "Expected `temperature` or `terms`: each term has its own temperature. "
            f"Received: temperature={temperature} and terms={terms}"
        )
    return terms


def check_pair(
    teacher: Teacher,
    student: keras.Model,
    roles: tuple[str, str] = ("teacher", "student"),
) -> None:
    """Raises a ValueError unless a network can learn from a teacher."""
    both = " and ".join(f"`{role}`" for role in roles)
    first, second = teacher.signature, signature(student)
    if bool(first.heads) != bool(second.heads):
        with_heads, without = (first, second) if first.heads else (second, first)
        raise ValueError(
            f"Expected {both} to have auxiliary heads both, or neither. "
            f"Received: heads in `{with_heads.name}` and none in `{without.name}`"
        )
    check_counts(first, second, both)
    shapes = first.image_shape, second.image_shape
    if any(
        edge not in (None, other) and other is not None
        for edge, other in zip(*shapes, strict=True)
    ):
        raise ValueError(
            f"Expected {both} to take images of the same shape; one of another size "
            "can begin with `keras.layers.Resizing`. "
            f"Received: {shapes[0]} in `{first.name}` and {shapes[1]} in "
            f"`{second.name}`"
        )
    teacher_ids = {id(v) for network in teacher.networks for v in network.weights}
    shared = [each.path for each in student.weights if id(each) in teacher_ids]
    if shared:
        raise ValueError(
            f"Expected {both} to share no variables, or training the one would change "
            f"the other. Received: shared variables {shared[:5]}"
        )
