"""Pictures of what a network says of its test images, drawn with Pillow."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import keras
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from keras_hsakd import views as named_views
from keras_hsakd.export.metrics import softmax
from keras_hsakd.heads import head_names, is_plain, named_outputs
from keras_hsakd.ops import transformed_views

_SHOWN = 8  # images, of as many classes
# In pixels: an image, a cell of the table below it, the names of its rows, a line of
# text, a confusion matrix, and the largest one that is drawn. TensorBoard shows a
# picture about 320 wide.
_EDGE, _WIDTH, _FIRST, _LINE, _SIDE, _LARGEST = 80, 120, 52, 16, 320, 1200
_RIGHT, _WRONG, _GREY, _FULL = "#15803d", "#b91c1c", "#666666", (30, 64, 175)
_NAMED_CLASSES = 25  # more names than these beside a matrix cannot be read


class Pictures(NamedTuple):
    """Pictures as arrays of uint8, `(H, W, 3)`.

    Attributes:
        views: One an image: each of its views, with what class logits and heads say.
        classes: The confusion matrix of the classes.
        joint: That of the joint labels of the last head; `None` without heads, or where
            it would be too large.
    """

    views: list[np.ndarray]
    classes: np.ndarray | None
    joint: np.ndarray | None


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
                shown[label] = _views(pixels, said, label, class_names, captions)
    return Pictures(
        list(shown.values()),
        confusion(classes, class_names) if count <= _LARGEST else None,
        None if joint is None else confusion(joint, class_names),
    )


def _views(pixels, said, label, class_names, captions):
    """Returns a table of a column a view, and below it a row an output."""
    lines = 1 + len(said)
    size = (_FIRST + _WIDTH * len(captions), _EDGE + _LINE * lines + 12)
    picture = Image.new("RGB", size, "white")
    pen = _Pen(picture)
    pen.write((4, _EDGE + 6), class_names[label], "black", _FIRST)
    for row, name in enumerate(said, start=1):
        pen.write((4, _EDGE + 6 + _LINE * row), name, _GREY, _FIRST)
    for column, caption in enumerate(captions):
        left = _FIRST + _WIDTH * column
        image = Image.fromarray(np.rint(pixels[column]).clip(0, 255).astype("uint8"))
        image = ImageOps.contain(image, (_EDGE, _EDGE), Image.Resampling.NEAREST)
        picture.paste(image, (left, 4))
        pen.write((left, _EDGE + 6), caption, _GREY, _WIDTH)
        for row, (name, probabilities) in enumerate(said.items(), start=1):
            found = int(probabilities[column].argmax())
            percent = f"{100 * probabilities[column, found]:.0f} %"
            if name == "logits":
                right, text = found == label, class_names[found]
            else:
                right = found == label * len(captions) + column
                of_class, view = divmod(found, len(captions))
                text = f"{captions[view]} {class_names[of_class]}"
            top = _EDGE + 6 + _LINE * row
            color = _RIGHT if right else _WRONG
            pen.write((left, top), text, color, _WIDTH - 46)
            pen.write((left + _WIDTH - 42, top), percent, color, 40)
    return np.asarray(picture)


def confusion(matrix: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Draws a confusion matrix: the darker, the larger a part of its row.

    Args:
        matrix: Integers of shape `(K, K)`, a row for each label; `K` is the number of
            classes or, of joint labels, a multiple of it, and lines part the classes.
        class_names: Names of the classes, which stand beside few of them.

    Returns:
        uint8 of shape `(H, W, 3)`.

    Example:
    >>> confusion(np.eye(40, dtype=int), [f"class {n}" for n in range(40)]).shape
    (336, 336, 3)
    """
    parts = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    colors = 255 - parts[..., np.newaxis] * (255 - np.array(_FULL))
    cell = max(1, _SIDE // len(matrix))
    side = cell * len(matrix)
    cells = Image.fromarray(np.rint(colors).astype("uint8"))
    cells = cells.resize((side, side), Image.Resampling.NEAREST)
    is_named = len(class_names) <= _NAMED_CLASSES
    margin = 8 + (max(_Pen.width(name) for name in class_names) if is_named else 0)
    margin = min(margin, _SIDE // 3)
    picture = Image.new("RGB", (margin + side + 8, margin + side + 8), "white")
    picture.paste(cells, (margin, margin))
    if not is_named:
        return np.asarray(picture)
    pen, step = _Pen(picture), side / len(class_names)
    for number in range(len(class_names) + 1):
        place = round(margin + step * number)
        pen.line((margin, place, margin + side, place))
        pen.line((place, margin, place, margin + side))
    middle = margin + (step - _LINE) / 2
    for number, name in enumerate(class_names):
        pen.write((4, middle + step * number), name, "black", margin - 8)
    # The names of the columns run upwards.
    turned = picture.transpose(Image.Transpose.ROTATE_270)
    pen = _Pen(turned)
    for number, name in enumerate(class_names):
        left = turned.width - margin + 4
        pen.write((left, middle + step * number), name, "black", margin - 8)
    return np.asarray(turned.transpose(Image.Transpose.ROTATE_90))


class _Pen:
    """Writes on a picture, no wider than there is room."""

    _font = ImageFont.load_default(size=13)

    def __init__(self, picture):
        self._draw = ImageDraw.Draw(picture)

    @classmethod
    def width(cls, text):
        """Returns the pixels that a text takes."""
        return math.ceil(cls._font.getlength(str(text)))

    def write(self, place, text, color, width):
        text = str(text)
        if self.width(text) > width:
            while text and self.width(text + "…") > width:
                text = text[:-1]
            text += "…"
        self._draw.text(place, text, fill=color, font=self._font)

    def line(self, ends):
        self._draw.line(ends, fill="#d4d4d4")
