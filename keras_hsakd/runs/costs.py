"""What a training costs, by arithmetic: multiply-adds and hours."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from keras_hsakd.spelling import parse_call

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
        frozen: Whether the backbone of the network that is trained keeps its weights.
        precision: Name of the dtype policy of the network that is trained.
    """

    kind: str
    views: int
    heads: tuple[str, ...] = ()
    teaching: tuple[str, ...] = ()
    cached: bool = False
    frozen: bool = False
    precision: str = "float32"


def ways(
    teacher_heads: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    num_views: int,
    sampled_views: int,
    precision: str,
    half_precision: str | None = None,
    frozen: bool = False,
    frozen_teacher: bool = False,
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
        frozen: Whether the student's backbone keeps its weights. Defaults to `False`.
        frozen_teacher: Whether the teacher's does. Defaults to `False`.

    Returns:
        Dict of ways by what they are called.

    Example:
    >>> list(ways(["aux_1"], [("aux_1", "aux_1")], 4, 4, "float32"))
    ['teacher', 'plain student', 'plain distillation', 'the method', 'cached teacher']
    """
    teaching, learning = (tuple(names) for names in zip(*pairs, strict=True))
    method = Way(
        kind="distill",
        views=num_views,
        heads=learning,
        teaching=teaching,
        frozen=frozen,
        precision=precision,
    )
    plain = Way(kind="baseline", views=1, frozen=frozen, precision=precision)
    found = {
        "teacher": Way(
            kind="teacher",
            views=num_views,
            heads=tuple(teacher_heads),
            frozen=frozen_teacher,
            precision=precision,
        ),
        "plain student": plain,
        "plain distillation": dataclasses.replace(plain, kind="distill"),
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
    each view. Of a frozen backbone there is the forward pass alone; the classifier that
    is trained on it is next to nothing. What else a step does is little beside its
    convolutions.

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
    an_image = (1 if way.frozen else _TRAINED) * trained["backbone"]
    an_image += _TRAINED * sum(trained[head] for head in way.heads)
    if way.kind == "distill" and not way.cached:
        taught_by = sum(teacher[head] for head in way.teaching)
        an_image += teacher["backbone"] + taught_by
    return way.views * an_image


class Spent(NamedTuple):
    """Multiply-adds of a training, by arithmetic.

    Attributes:
        training: Of all its steps, with a teacher's forward passes where it has one.
        cache: Of writing the cache that it learned from; 0 without one.
    """

    training: int
    cache: int = 0


def spent(
    record: Mapping, num_views: int, parts: Callable[[str, str], Mapping[str, int]]
) -> Spent:
    """Returns the multiply-adds that a run took, without its validations.

    What stands before it, the training of its teacher, is not among them.

    Args:
        record: The content of its `run.json`.
        num_views: Number of views that the heads tell apart.
        parts: Function from the name of a network and its auxiliary heads, `"copy"` or
            `"light"`, to the multiply-adds of a view through its parts, as
            `keras_hsakd.heads.multiply_adds_by_part` returns them. It is asked of
            networks whose parts are not in the record.

    Example:
    >>> record = {
    ...     "kind": "baseline",
    ...     "options": {},
    ...     "training": {"model": "resnet8"},
    ...     "origin": None,
    ...     "epochs_done": 2,
    ...     "images": {"train": 10},
    ... }
    >>> spent(record, 4, lambda model, head: {"backbone": 100}).training
    6000
    """
    kind, options, origin = (record[name] for name in ("kind", "options", "origin"))
    training = record["training"]
    model, head = training["model"], training.get("head", "copy")
    network = record.get("parts") or parts(model, head)
    frozen = training.get("freeze_backbone", False)
    if kind == "distill":
        return _spent_in_distillation(record, network, frozen, num_views, parts)
    way = Way(
        kind=kind,
        views=1,
        # That of a linear classifier, and that which a teacher's heads are put on.
        frozen=frozen or origin is not None,
    )
    if kind in ("teacher", "mutual"):
        views = options.get("sampled_views") or num_views
        way = dataclasses.replace(way, views=views, heads=_heads_of(network))
    an_image = image_multiply_adds(way, network, network)
    if kind == "mutual":
        for peer in options.get("peers") or [model]:
            other, of_peer = network, way
            if peer != model:  # and nothing of it is frozen
                other = parts(peer, head)
                heads = _heads_of(other)
                of_peer = dataclasses.replace(way, heads=heads, frozen=False)
            an_image += image_multiply_adds(of_peer, other, other)
    return Spent(_images(record) * an_image)


def _spent_in_distillation(record, network, frozen, num_views, parts):
    options, origin = record["options"], record["origin"]
    with_heads = options.get("heads", True)
    names = _heads_of(network) if with_heads else ()
    learns, heads = _taught(options.get("terms"), names)
    teachers = [_parts_of(each, parts) for each in (origin, *origin.get("others", ()))]
    teacher = _together(teachers)
    # The last heads of a teacher with more of them teach.
    of_teacher = _heads_of(teacher) if names else ()
    taught_by = dict(zip(reversed(names), reversed(of_teacher), strict=False))
    views = options.get("sampled_views") or num_views
    way = Way(
        kind="distill" if learns else "baseline",
        views=views if with_heads or options.get("views") else 1,
        heads=heads,
        teaching=tuple(taught_by[name] for name in heads),
        cached="cache" in origin,
        frozen=frozen,
    )
    written = 0
    if way.cached:  # a pass of the teacher, all heads and views, for each variant
        passes = origin["cache"]["variants"] * record["images"]["train"]
        written = passes * num_views * sum(teacher.values())
    return Spent(_images(record) * image_multiply_adds(way, teacher, network), written)


def _parts_of(origin, parts):
    """Returns the multiply-adds of a teacher by its parts."""
    training = (origin.get("settings") or {}).get("training", {})
    return origin.get("parts") or parts(origin["model"], training.get("head", "copy"))


def _together(teachers):
    """Returns those of several: of heads, where one has more, of its last ones."""
    count = min(len(_heads_of(each)) for each in teachers)
    total = {"backbone": sum(each["backbone"] for each in teachers)}
    for number in range(count, 0, -1):  # from the end
        heads = (_heads_of(each)[-number] for each in teachers)
        total[f"aux_{count - number + 1}"] = sum(
            each[head] for each, head in zip(teachers, heads, strict=True)
        )
    return total


def _taught(terms, heads):
    """Returns whether a student learns from a teacher, and which heads do.

    Args:
        terms: The terms of its loss as Python spells them; `None` for a method, whose
            terms are on all heads.
        heads: Names of the student's heads.
    """
    if terms is None:
        return True, heads
    places = set()
    for call in map(parse_call, terms):
        if call.name != "CrossEntropy" and call.settings.get("weight", 1) > 0:
            on = call.settings.get("on", "logits")
            places |= {on} if isinstance(on, str) else set(on)
    taught = tuple(name for name in heads if places & {name, "heads"})
    return bool(places), taught


def _heads_of(parts):
    return tuple(name for name in parts if name != "backbone")


def _images(record):
    """Returns the number of images that a run has seen, of all its epochs."""
    training, images = record["training"], record["images"]["train"]
    if training.get("drop_remainder", False):
        images -= images % training["batch_size"]
    return record["epochs_done"] * images
