"""Views: label-preserving transformations of images, which heads learn to tell apart.

Views are a list of functions from a batch of images to a batch of the same shape; the
first leaves the images as they are. `M` is their number.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence

import keras
import numpy as np

from keras_hsakd import heads
from keras_hsakd.graph import check_channels_last
from keras_hsakd.ops import (
    NUM_ROTATIONS,
    class_of_labels,
    head_accuracies,
    joint_labels,
    permuted_channels,
    quarter_turned,
    quarter_turned_within,
    transformed_views,
)
from keras_hsakd.suggestions import did_you_mean

View = Callable[[keras.KerasTensor], keras.KerasTensor]

# name: its functions
_NAMED = {
    "rotations": tuple(
        functools.partial(quarter_turned, turns=turns) for turns in range(NUM_ROTATIONS)
    ),
    "padded_rotations": tuple(
        functools.partial(quarter_turned_within, turns=turns)
        for turns in range(NUM_ROTATIONS)
    ),
    "half_turns": tuple(
        functools.partial(quarter_turned, turns=turns) for turns in (0, 2)
    ),
    "color_permutations": tuple(
        functools.partial(permuted_channels, order=order)
        for order in itertools.permutations(range(3))
    ),
}

_QUARTER_TURNS = ("0°", "90°", "180°", "270°")
# name: what people call each
_CAPTIONS = {
    "rotations": _QUARTER_TURNS,
    "padded_rotations": _QUARTER_TURNS,
    "half_turns": ("0°", "180°"),
    "color_permutations": ("RGB", "RBG", "GRB", "GBR", "BRG", "BGR"),
}


def names() -> list[str]:
    """Returns the names of the views that come with the package.

    - `"rotations"`: 0, 90, 180 and 270 degrees, the paper's; for square images;
    - `"padded_rotations"`: the same for images of any shape: one that is turned on its
      side is shrunk to fit its frame, and padded with zeros;
    - `"half_turns"`: 0 and 180 degrees;
    - `"color_permutations"`: the six orders of three color channels.

    Example:
    >>> keras_hsakd.views.names()
    ['rotations', 'padded_rotations', 'half_turns', 'color_permutations']
    """
    return list(_NAMED)


def captions(views: str) -> tuple[str, ...]:
    """Returns what to call each view for people, in their order.

    Args:
        views: One of `names()`.

    Example:
    >>> captions("half_turns")
    ('0°', '180°')
    """
    return _CAPTIONS[views]


def get(views: str | Sequence[View] | None) -> tuple[View, ...]:
    """Returns the functions of named views, or a list of functions as it is.

    Args:
        views: One of `names()`, or functions from a batch of images `(B, H, W, C)` to
            one of the same shape and dtype, written in `keras.ops`; `None` is the
            image alone, all that a network without heads learns from.

    Returns:
        A tuple of at least two functions, of one for `None`.

    Raises:
        ValueError: If the name is unknown, there are fewer than two functions, or
            Keras is set to channels first.

    Example:
    >>> len(get("half_turns")), len(get([lambda x: x, lambda x: x[:, :, ::-1]]))
    (2, 2)
    """
    if views is None:
        return (_unchanged,)
    if isinstance(views, str):
        if views not in _NAMED:
            raise ValueError(
                f"Expected `views` to be one of {names()} or a list of functions. "
                f"Received: views={views!r}{did_you_mean(views, _NAMED)}"
            )
        check_channels_last()
        return _NAMED[views]
    functions = tuple(views) if isinstance(views, Iterable) else ()
    if len(functions) < 2 or not all(map(callable, functions)):
        raise ValueError(
            f"Expected `views` to be one of {names()} or a list of two or more "
            f"functions on batches of images. Received: views={views!r}"
        )
    return functions


def _unchanged(images):
    return images


def described(
    views: str | Sequence[View] | None, shape: Sequence[int]
) -> str | list[float] | None:
    """Returns what tells views from others, as a value of JSON.

    Args:
        views: See `get`.
        shape: Shape `(height, width, channels)` of an image.

    Returns:
        The name; of functions, a number of each that says what it makes of one random
        image; `None` for the image alone.

    Example:
    >>> described("half_turns", (8, 8, 3))
    'half_turns'
    >>> [round(number) for number in described(get("half_turns"), (8, 8, 3))]
    [-16, -18]
    """
    if views is None or isinstance(views, str):
        return views
    rng = np.random.default_rng(0)
    images = rng.random((1, *shape), "float32")
    weights = rng.standard_normal((1, *shape))
    seen = (keras.ops.convert_to_numpy(view(images)) for view in get(views))
    return [round(float(np.vdot(weights, image)), 6) for image in seen]


def are_same(described: str | list[float] | None, other) -> bool:
    """Returns whether what `described` returned is of the same views.

    Args:
        described: What it returned.
        other: The same, perhaps from another device.

    Example:
    >>> are_same("half_turns", "rotations"), are_same([1.0, 2.0], [1.0, 2.0001])
    (False, True)
    """
    if isinstance(described, list) and isinstance(other, list):
        return len(described) == len(other) and np.allclose(described, other, atol=1e-2)
    return described == other


def check_suit(
    views: Sequence[View], network: keras.Model, shape: Sequence[int | None]
) -> None:
    """Raises a ValueError unless views suit a network's heads and images.

    Args:
        views: Functions, as of `get`.
        network: A functional model with auxiliary heads, or a plain classifier.
        shape: Shape `(height, width, channels)` of an image; edges that are `None`
            are not checked.

    Raises:
        ValueError: If the heads are made for another number of views, the network has
            channels first, a view changes the shape or dtype of images, or the first
            one changes images.
    """
    if len(views) > 1:
        check_channels_last(network)
    if not heads.is_plain(network) and heads.num_views(network) != len(views):
        raise ValueError(
            f"Expected the heads of `{network.name}` to be made for the {len(views)} "
            f"`views`; give `num_views={len(views)}` to `create` or `attach_heads`. "
            f"Received: heads for {heads.num_views(network)} views"
        )
    if None in shape:
        return
    images = np.random.default_rng(0).random((1, *shape), "float32")
    for number, view in enumerate(views):
        try:
            received = keras.ops.convert_to_numpy(view(images))
        except Exception as error:  # a view is anybody's function
            raise ValueError(
                f"Expected view {number} of `views` to take images of shape "
                f"{images.shape}. Received: {type(error).__name__}: {error}"
            ) from error
        if received.dtype != images.dtype:
            raise ValueError(
                "Expected `views` to keep the dtype of images. "
                f"Received: view {number} turns {images.dtype} into {received.dtype}"
            )
        if received.shape != images.shape:
            raise ValueError(
                "Expected `views` to keep the shape of images. Quarter turns need "
                "square ones: take views='padded_rotations' or 'half_turns'. "
                f"Received: view {number} turns {images.shape} into {received.shape}"
            )
        if number == 0 and not np.array_equal(received, images):
            raise ValueError(
                "Expected the first of `views` to leave images as they are: the class "
                "is predicted from it. Received: a first view that changes them"
            )


@dataclasses.dataclass(frozen=True)
class Confusion:
    """A view of one class that a head takes for another view of another class.

    Attributes:
        class_name: The class.
        view: Number of its view, counted from 0.
        taken_for: The other class.
        taken_for_view: Number of that one's view.
        fraction: Part of the images of the class for which it happens.
    """

    class_name: str
    view: int
    taken_for: str
    taken_for_view: int
    fraction: float


@dataclasses.dataclass(frozen=True)
class ViewsReport:
    """How well the heads of a network tell the views of images apart.

    Attributes:
        view_accuracy: By head, the part of the views that it tells.
        class_accuracy: By head, the part of the views whose class it tells, see
            `keras_hsakd.ops.head_accuracies`.
        hardest_classes: The classes whose views the last head tells worst, with the
            part that it tells, worst first.
        confusions: What the last head takes for another view of another class, the
            most frequent first.
        advice: Whether the views suit the data, or when to choose others.
    """

    view_accuracy: dict[str, float]
    class_accuracy: dict[str, float]
    hardest_classes: list[tuple[str, float]]
    confusions: list[Confusion]
    advice: str

    def __str__(self) -> str:
        """Returns the report as a few lines of text."""
        lines = ["head    view told  class told"]
        for head, accuracy in self.view_accuracy.items():
            lines.append(f"{head:7} {accuracy:9.1%}  {self.class_accuracy[head]:10.1%}")
        hardest = (
            f"'{name}' {accuracy:.1%}" for name, accuracy in self.hardest_classes
        )
        lines.append("views told worst: " + ", ".join(hardest))
        lines += [
            f"'{c.class_name}' in view {c.view} is taken for '{c.taken_for}' in view "
            f"{c.taken_for_view}: {c.fraction:.1%}"
            for c in self.confusions
        ]
        return "\n".join([*lines, self.advice])


def check_views(
    model: keras.Model,
    dataset: Iterable,
    views: str | Sequence[View] = "rotations",
) -> ViewsReport:
    """Reports how well a network's heads tell views apart, and what they confuse.

    Views that look alike for different classes, as a 6 upside down and a 9, teach the
    heads nothing, or wrong things. Train the heads for some epochs, and measure on
    images that they were not trained on.

    Args:
        model: A functional model with auxiliary heads.
        dataset: Batches of (image, label), for example a `tf.data.Dataset`. Labels are
            integers or class probabilities. Its attribute `class_names`, where it has
            one, names the classes.
        views: What the heads were trained on, see `get`. Defaults to `"rotations"`,
            where view `r` is `r` quarter turns.

    Returns:
        A `ViewsReport`; print it.

    Raises:
        ValueError: If the views do not suit the model, or there are no images.

    Example:
    >>> _, test = keras_hsakd.data.load("digits", image_size=8, limit=100)
    >>> network = keras_hsakd.models.create("resnet8", 10, input_shape=(8, 8, 3))
    >>> print(check_views(network, test).advice)
    The heads hardly know the classes yet: train them for longer, then check again.
    """
    names = heads.head_names(model)
    functions = get(views)
    check_suit(functions, model, model.input_shape[1:])
    num_classes = model.output["logits"].shape[-1]
    # By head: how often a joint label (row) is taken for another (column).
    counts = {
        name: np.zeros((num_classes * len(functions),) * 2, int) for name in names
    }
    classes_told = dict.fromkeys(names, 0)
    for batch in dataset:
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(batch)
        images, labels = _labelled(images, labels, num_classes)
        joint = keras.ops.convert_to_numpy(joint_labels(labels, len(functions)))
        outputs = model.predict_on_batch(transformed_views(images, functions))
        for name in names:
            np.add.at(counts[name], (joint, outputs[name].argmax(axis=1)), 1)
            told = head_accuracies(joint, outputs[name], len(functions))["class"]
            classes_told[name] += np.sum(keras.ops.convert_to_numpy(told))
    if not counts[names[0]].any():
        raise ValueError(
            "Expected `dataset` to have images with labels. Received: none"
        )
    class_names = getattr(dataset, "class_names", None)
    if class_names is None:
        class_names = range(num_classes)
    class_accuracy = {
        name: float(told / counts[name].sum()) for name, told in classes_told.items()
    }
    class_names = [str(name) for name in class_names]
    return _report(counts, class_accuracy, class_names, len(functions))


def _labelled(images, labels, num_classes):
    """Returns the images of a batch that have a label, and their classes."""
    labels = keras.ops.convert_to_numpy(class_of_labels(labels))
    if labels.max() >= num_classes or labels.min() < -1:
        raise ValueError(
            f"Expected labels from 0 to {num_classes - 1}, and -1 of images without "
            f"one. Received: labels from {labels.min()} to {labels.max()}"
        )
    has_label = labels >= 0
    return keras.ops.convert_to_numpy(images)[has_label], labels[has_label]


def _report(counts, class_accuracy, class_names, num_views):
    """Returns the report on how often joint labels are taken for each other."""
    head, matrix = list(counts.items())[-1]  # the last head sees most
    classes, views = np.divmod(np.arange(len(matrix)), num_views)
    same_view = np.equal.outer(views, views)
    view_accuracy = {
        name: float(of_head[same_view].sum() / of_head.sum())
        for name, of_head in counts.items()
    }
    seen = matrix.sum(axis=1)
    told = np.where(same_view, matrix, 0).sum(axis=1)
    by_class = {
        name: told[classes == number].sum() / seen[classes == number].sum()
        for number, name in enumerate(class_names)
        if seen[classes == number].any()
    }
    fractions = matrix / np.maximum(seen, 1)[:, None]
    fractions[same_view | np.equal.outer(classes, classes)] = 0
    order = np.argsort(fractions, axis=None)[::-1][:_SHOWN]
    confusions = [
        Confusion(
            class_names[classes[row]],
            int(views[row]),
            class_names[classes[column]],
            int(views[column]),
            float(fractions[row, column]),
        )
        for row, column in zip(*np.unravel_index(order, matrix.shape), strict=True)
        if fractions[row, column] >= _WORTH_TELLING
    ]
    return ViewsReport(
        view_accuracy,
        class_accuracy,
        [(k, float(v)) for k, v in sorted(by_class.items(), key=lambda x: x[1])][
            :_SHOWN
        ],
        confusions,
        _advice(
            class_accuracy[head] * len(class_names),
            view_accuracy[head],
            num_views,
            [c for c in confusions if c.fraction >= _ALIKE],
        ),
    )


_SHOWN = 5  # rows of a report
_WORTH_TELLING = 0.05  # part of the images of a class
_ALIKE = 0.1


def _advice(class_gain, view_accuracy, num_views, alike):
    if class_gain < 2:  # less than twice as good as chance
        return (
            "The heads hardly know the classes yet: train them for longer, then check "
            "again."
        )
    if alike:
        pairs = sorted({tuple(sorted((c.class_name, c.taken_for))) for c in alike})
        text = " and ".join(f"'{a}' and '{b}'" for a, b in pairs)
        return (
            f"Classes {text} look alike in these views: choose others, for example "
            "'color_permutations' for images in color."
        )
    if view_accuracy < (1 + 1 / num_views) / 2:  # nearer to chance than to certainty
        return (
            "The heads can hardly tell these views apart, so that they teach little: "
            "choose others, see `keras_hsakd.views.names()`."
        )
    return "These views suit the data."
