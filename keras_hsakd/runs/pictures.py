"""Pictures of what a network says of its test images."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import keras
import numpy as np

from keras_hsakd import views as named_views
from keras_hsakd.drawings import confusion, drawn, shortened
from keras_hsakd.export.metrics import softmax
from keras_hsakd.heads import head_names, is_plain, named_outputs
from keras_hsakd.ops import transformed_views

_SHOWN = 8  # images, of as many classes
_LARGEST = 1200  # confusion matrix that is drawn
# In pixels: an image, a cell of the table below it, the names of its rows, a line of
# text. TensorBoard shows a picture about 320 wide.
_EDGE, _WIDTH, _FIRST, _LINE = 80, 120, 56, 16
_DPI = 100
_RIGHT, _WRONG, _GREY = "#15803d", "#b91c1c", "#666666"


class Pictures(NamedTuple):
    """Pictures as PNG files.

    Attributes:
        views: One an image: each of its views, with what class logits and heads say.
        classes: The confusion matrix of the classes.
        joint: That of the joint labels of the last head; `None` without heads, or where
            it would be too large.
    """

    views: list[bytes]
    classes: bytes | None
    joint: bytes | None


def draw(
    network: keras.Model, test: Iterable, views: str, class_names: Sequence[str]
) -> Pictures:
    """Asks a network about all test images under all views, and draws what it says.

    Args:
        network: A functional model from images of 0 to 255, with heads or without.
        test: Batches of (image, label).
        views: Name of the views that its heads were trained on.
        class_names: Names of the classes.

    Returns:
        `Pictures`; those of `views` are the first images of the first classes that
        there are.
    """
    heads = [] if is_plain(network) else head_names(network)
    functions = named_views.get(views if heads else None)
    captions = named_views.captions(views) if heads else ("image",)
    count, num_views = len(class_names), len(functions)
    classes = np.zeros((count, count), int)
    width = count * num_views
    joint = np.zeros((width, width), int) if heads and width <= _LARGEST else None
    shown = {}
    for images, labels in test:
        labels = keras.ops.convert_to_numpy(labels)
        rows = transformed_views(images, functions)
        outputs = {
            name: keras.ops.convert_to_numpy(of)
            for name, of in named_outputs(network, rows).items()
        }
        found = outputs["logits"][::num_views].argmax(axis=1)
        np.add.at(classes, (labels, found), 1)
        if joint is not None:
            expected = num_views * labels[:, np.newaxis] + np.arange(num_views)
            told = outputs[heads[-1]].argmax(axis=1)
            np.add.at(joint, (expected.ravel(), told), 1)
        for place, label in enumerate(labels):
            if len(shown) < _SHOWN and label not in shown:
                of_image = slice(num_views * place, num_views * (place + 1))
                pixels = keras.ops.convert_to_numpy(rows[of_image])
                said = {
                    name: softmax(outputs[name][of_image])
                    for name in ("logits", *heads)
                }
                shown[label] = pixels, said, label, class_names, captions
    lines = 1 + len(heads) + 1
    size = _FIRST + _WIDTH * num_views, _EDGE + _LINE * lines + 12
    return Pictures(
        [_drawn(_draw_views, *of, pixels=size, layout="none") for of in shown.values()],
        _matrix(classes, class_names),
        None if joint is None else _matrix(joint, class_names),
    )


def _matrix(matrix, class_names):
    side = len(matrix)
    if side > _LARGEST:
        return None
    return _drawn(
        confusion,
        matrix,
        class_names,
        pixels=(max(450, side + 180), max(400, side + 130)),
    )


def _drawn(draw, *arguments, pixels, layout="constrained"):
    size = tuple(side / _DPI for side in pixels)
    return drawn(draw, *arguments, size=size, dpi=_DPI, layout=layout)


def _draw_views(figure, pixels, said, label, class_names, captions):
    """Draws a table of a column a view, and below it a row an output."""
    width, height = figure.get_size_inches() * figure.dpi
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")

    def write(x, row, text, color):
        y = _EDGE + 10 + _LINE * row
        axes.text(x, y, text, color=color, fontsize=8.5, verticalalignment="center")

    write(4, 0, shortened(class_names[label], 8), "black")
    for row, name in enumerate(said, start=1):
        write(4, row, name, _GREY)
    for column, caption in enumerate(captions):
        left = _FIRST + _WIDTH * column
        image = np.rint(pixels[column]).clip(0, 255).astype("uint8")
        high, wide = (_EDGE * side / max(image.shape[:2]) for side in image.shape[:2])
        axes.imshow(
            image,
            extent=(left, left + wide, high, 0),
            aspect="auto",
            interpolation="nearest",
        )
        write(left, 0, caption, _GREY)
        for row, (name, probabilities) in enumerate(said.items(), start=1):
            found = int(probabilities[column].argmax())
            if name == "logits":
                right, text = found == label, class_names[found]
            else:
                right = found == label * len(captions) + column
                of_class, view = divmod(found, len(captions))
                text = f"{captions[view]} {class_names[of_class]}"
            color = _RIGHT if right else _WRONG
            write(left, row, shortened(text, 11), color)
            percent = f"{100 * probabilities[column, found]:.0f} %"
            write(left + _WIDTH - 42, row, percent, color)
    axes.set(xlim=(0, width), ylim=(height, 0))  # which images have changed
