"""What a training costs, by arithmetic: multiply-adds and hours."""

import dataclasses
from collections.abc import Mapping, Sequence

# A network that is trained computes its outputs, the gradients of what its layers take,
# and those of their weights: as many multiply-adds each time.
_TRAINED = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """A way to train, as far as it decides what a step computes.

    Attributes:
        kind: Name of the kind of training: `"teacher"`, `"baseline"` or `"distill"`.
        views: Number of views of an image that a step sees.
        heads: Names of the heads that are trained.
        teaching: Names of the teacher's heads that teach them.
        cached: Whether a cache has the teacher's outputs.
        precision: Name of the dtype policy of the network that is trained.
    """

    kind: str
    views: int
    heads: tuple[str, ...] = ()
    teaching: tuple[str, ...] = ()
    cached: bool = False
    precision: str = "float32"


def ways(
    teacher_heads: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    num_views: int,
    sampled_views: int,
    precision: str,
    half_precision: str | None = None,
) -> dict[str, Way]:
    """Returns the ways to train a student, those that cost less among them.

    Args:
        teacher_heads: Names of all heads of the teacher.
        pairs: The heads that teach, each with the student's head that learns from it.
        num_views: Number of views of an image.
        sampled_views: How many of them are seen where they are sampled.
        precision: Name of the dtype policy.
        half_precision: Name of the one that the device is faster with. Defaults to
            `None`, none.

    Returns:
        Dict of ways by what they are called.

    Example:
    >>> list(ways(["aux_1"], [("aux_1", "aux_1")], 4, 4, "float32"))
    ['teacher', 'plain student', 'the method', 'cached teacher']
    """
    teaching, learning = (tuple(names) for names in zip(*pairs, strict=True))
    method = Way(
        kind="distill",
        views=num_views,
        heads=learning,
        teaching=teaching,
        precision=precision,
    )
    found = {
        "teacher": Way(
            kind="teacher",
            views=num_views,
            heads=tuple(teacher_heads),
            precision=precision,
        ),
        "plain student": Way(kind="baseline", views=1, precision=precision),
        "the method": method,
        "cached teacher": dataclasses.replace(method, cached=True),
    }
    if sampled_views < num_views:
        few, name = (
            dataclasses.replace(method, views=sampled_views),
            f"{sampled_views} of {num_views} views",
        )
        found[name] = few
        found[f"{name}, cached teacher"] = dataclasses.replace(few, cached=True)
    if len(pairs) > 1:
        found["last head alone"] = dataclasses.replace(
            method, heads=learning[-1:], teaching=teaching[-1:]
        )
    if half_precision not in (None, precision):
        found[half_precision] = dataclasses.replace(method, precision=half_precision)
    return found


def image_multiply_adds(
    way: Way, teacher: Mapping[str, int], student: Mapping[str, int]
) -> int:
    """Returns the multiply-adds of an image in a step of training.

    A forward pass counts once, a network that is trained three times, and all of it for
    each view. What else a step does is little beside its convolutions.

    Args:
        way: The way to train.
        teacher: Multiply-adds of a view through the teacher by its parts, as
            `keras_hsakd.heads.multiply_adds_by_part` returns them.
        student: The same of the student.

    Example:
    >>> teacher = {"backbone": 300, "aux_1": 100}
    >>> student = {"backbone": 20, "aux_1": 10}
    >>> method = Way(kind="distill", views=4, heads=("aux_1",), teaching=("aux_1",))
    >>> image_multiply_adds(method, teacher, student)  # 4 * (400 + 3 * 30)
    1960
    """
    trained = teacher if way.kind == "teacher" else student
    an_image = _TRAINED * _through(trained, way.heads)
    if way.kind == "distill" and not way.cached:
        an_image += _through(teacher, way.teaching)
    return way.views * an_image


def _through(parts, heads):
    return parts["backbone"] + sum(parts[head] for head in heads)


def hours(
    epochs: int,
    steps: int,
    seconds_a_step: float,
    test_batches: int,
    seconds_a_test_batch: float,
) -> float:
    """Returns the hours of a training that is measured after each epoch.

    Args:
        epochs: Number of epochs.
        steps: Steps of an epoch.
        seconds_a_step: How long one takes.
        test_batches: Batches of images that it is measured on.
        seconds_a_test_batch: How long one takes.

    Example:
    >>> hours(3, 1800, 2.0, 90, 20.0)
    4.5
    """
    an_epoch = steps * seconds_a_step + test_batches * seconds_a_test_batch
    return epochs * an_epoch / 3600
