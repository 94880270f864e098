"""Answers as HTML: pictures are in it, so that nothing is written to a disk."""

import html
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_hsakd.documents import Picture, rendered
from keras_hsakd.export.serving import as_pixels
from keras_hsakd.tryout.answers import Answer

# In pixels, as small images are shown.
_EDGE = 192
_HEAT = np.array([255, 64, 0])

STYLE = pathlib.Path(__file__).with_name("answers.css").read_text()


def drawn(answers: Sequence[Answer]) -> str:
    """Returns answers as HTML, beside each other.

    Args:
        answers: One a network.

    Example:
    >>> from keras_hsakd.tryout.answers import Prediction
    >>> image = np.zeros((8, 8, 3), "uint8")
    >>> text = drawn([Answer("Student", [Prediction("<b>", 0.75)], 1.5, image)])
    >>> "Student" in text, "1.5 ms" in text, "75.0 %" in text, "<b>" in text
    (True, True, True, False)
    """
    return rendered(
        "tryout/answers.html", answers=answers, png=_png, heated=heated_image
    )


def refused(reason: str) -> str:
    """Returns as HTML why there is no answer.

    Example:
    >>> refused("no image & no name")
    '<div class="refused" role="alert">no image &amp; no name</div>'
    """
    return f'<div class="refused" role="alert">{html.escape(reason)}</div>'


def _png(image):
    """Returns an image as a URL that has it inside."""
    return Picture(tf.io.encode_png(image).numpy()).source


def heated_image(image: np.ndarray, heat_map: np.ndarray) -> np.ndarray:
    """Returns an image with the places that a network looks at in orange.

    Args:
        image: uint8 of shape `(H, W, 3)`.
        heat_map: Of shape `(h, w)`, without negative values, see `grad_cam`.

    Returns:
        A larger uint8 image, if `image` is a small one.

    Example:
    >>> heated_image(np.zeros((64, 64, 3), "uint8"), np.ones((8, 8))).shape
    (192, 192, 3)
    """
    factor = -(-_EDGE // max(image.shape))
    image = image.repeat(factor, axis=0).repeat(factor, axis=1)
    heat = heat_map[..., np.newaxis] / max(heat_map.max(), 1e-12)
    heat = tf.image.resize(heat, image.shape[:2], "bicubic").numpy().clip(0, 1)
    grey = image.mean(axis=-1, keepdims=True)
    return as_pixels(0.75 * (1 - heat) * grey + heat * (0.5 * image + 0.5 * _HEAT))
