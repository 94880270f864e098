"""Answers as HTML: pictures are in it, so that nothing is written to a disk."""

import base64
import html
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_hsakd.export.serving import as_pixels
from keras_hsakd.tryout.answers import Answer, JointPrediction, View

# In pixels, as small images are shown.
_EDGE = 192
_HEAT = np.array([255, 64, 0])

STYLE = """
.answers { display: grid; gap: 20px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.answer, .refused { padding: 16px 20px; border-radius: 12px;
  color: var(--body-text-color); background: var(--background-fill-primary);
  border: 1px solid var(--border-color-primary); }
.refused { border-color: #dc2626; }
.answer header { display: flex; justify-content: space-between; gap: 12px;
  font-size: 17px; font-weight: 600; margin-bottom: 12px; }
.answer header span, .answer li span:first-child, .answer td {
  overflow-wrap: anywhere; }
.answer time { white-space: nowrap; font-weight: 400; }
.answer figcaption, .answer th, .answer time, .answer h4 { font-size: 13px;
  font-weight: 400; text-align: left;
  color: color-mix(in srgb, var(--body-text-color) 70%, transparent); }
.answer .top { display: flex; gap: 16px; flex-wrap: wrap; }
.answer figure { margin: 0; width: 128px; }
.answer img { display: block; width: 100%; margin-bottom: 4px; border-radius: 6px;
  image-rendering: pixelated; }
.answer ol { flex: 1 1 160px; min-width: 0; margin: 0; padding: 0; list-style: none; }
.answer li { display: flex; justify-content: space-between; gap: 8px;
  margin-bottom: 4px; padding: 2px 8px; border-radius: 6px; background:
  linear-gradient(to right, rgb(249 115 22 / 0.35) calc(100% * var(--p)),
  rgb(128 128 128 / 0.12) 0); }
.answer h4 { margin: 16px 0 4px; }
.answer table { width: 100%; table-layout: fixed; border-collapse: separate;
  border-spacing: 3px; font-size: 14px; }
.answer th:first-child { width: 88px; }
.answer tbody th img { width: 36px; margin: 0 8px 0 0; display: inline;
  vertical-align: middle; }
.answer td { padding: 3px 8px; border-radius: 6px; line-height: 1.35;
  background: rgb(249 115 22 / calc(0.06 + 0.45 * var(--p))); }
.answer td .wrong { text-decoration: line-through; color: #dc2626; }
.dark .answer td .wrong { color: #fca5a5; }
.answer td small { float: right; }
"""


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
    return f'<div class="answers">{"".join(map(_answer, answers))}</div>'


def refused(reason: str) -> str:
    """Returns as HTML why there is no answer.

    Example:
    >>> refused("no image & no name")
    '<div class="refused" role="alert">no image &amp; no name</div>'
    """
    return f'<div class="refused" role="alert">{html.escape(reason)}</div>'


def _answer(answer):
    figures = _figure(answer.image, "the image")
    if answer.heat_map is not None:
        heated = heated_image(answer.image, answer.heat_map)
        figures += _figure(heated, "where it looks")
    classes = "".join(
        f'<li style="--p: {probability:.4f}"><span>{html.escape(label)}</span>'
        f"<span>{_percent(probability, 1)}</span></li>"
        for label, probability in answer.predictions
    )
    return (
        f'<section class="answer"><header><span>{html.escape(answer.title)}</span>'
        f"<time>{answer.milliseconds:.1f} ms</time></header>"
        f'<div class="top">{figures}<ol>{classes}</ol></div>'
        f"{_heads(answer.views)}</section>"
    )


def _heads(views):
    """Returns a table of a row a view and a column a head; nothing without heads."""
    if not views:
        return ""
    columns = "".join(
        f"<th>head {number}</th>" for number in range(1, len(views[0].heads) + 1)
    )
    rows = "".join(
        f"<tr><th>{_picture(view.image, view.name)}{html.escape(view.name)}</th>"
        f"{''.join(_cell(joint, view) for joint in view.heads)}</tr>"
        for view in views
    )
    return (
        "<h4>What the heads take each view for: class and view; a wrong view is struck "
        "out</h4>"
        f"<table><thead><tr><th></th>{columns}</tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _cell(joint: JointPrediction, view: View):
    kind = "" if joint.view == view.name else ' class="wrong"'
    return (
        f'<td style="--p: {joint.probability:.3f}">{html.escape(joint.label)}<br>'
        f"<span{kind}>{html.escape(joint.view)}</span>"
        f"<small>{_percent(joint.probability)}</small></td>"
    )


def _percent(probability, digits=0):
    return f"{100 * probability:.{digits}f} %"


def _figure(image, caption):
    return (
        f"<figure>{_picture(image, caption)}<figcaption>{caption}</figcaption></figure>"
    )


def _picture(image, description):
    """Returns an image as an element that has it inside."""
    content = base64.b64encode(tf.io.encode_png(image).numpy()).decode()
    return (
        f'<img src="data:image/png;base64,{content}" alt="{html.escape(description)}">'
    )


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
