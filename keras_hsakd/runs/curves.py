"""Curves as SVG, which every browser draws, without a package for pictures."""

import html
import math
from collections.abc import Mapping, Sequence

from keras_hsakd.figures import rounded

# Told apart also by those who do not see all colors (Okabe and Ito).
_COLORS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"),
    "#8c8c00",
)
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _LINE = 640, 380, 56, 24, 36, 20


def svg(
    curves: Mapping[str, Sequence[Sequence[float]]], ylabel: str, xlabel: str = "epoch"
) -> str:
    """Returns an SVG element with the mean of each bundle of curves, and all of them.

    Args:
        curves: Dict from a name to curves, each a value an epoch.
        ylabel: What the values are.
        xlabel: What they are by. Defaults to `"epoch"`.

    Example:
    >>> drawn = svg({"a < b": [[0.1, 0.5], [0.3, 0.4]]}, "accuracy, %")
    >>> drawn.count("<polyline"), "a &lt; b" in drawn
    (3, True)
    """
    values = [v for bundle in curves.values() for curve in bundle for v in curve]
    epochs = max(len(curve) for bundle in curves.values() for curve in bundle)
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 1.0
    low, high = low - margin, high + margin

    def place(epoch, value):
        right = (epoch - 1) / max(1, epochs - 1)
        up = (value - low) / (high - low)
        x = _LEFT + right * (_WIDTH - _LEFT - 10)
        return f"{x:.1f},{_TOP + (1 - up) * (_HEIGHT - _TOP - _BOTTOM):.1f}"

    def line(curve, color, more):
        points = " ".join(place(epoch, v) for epoch, v in enumerate(curve, start=1))
        return f'<polyline points="{points}" fill="none" stroke="{color}" {more}/>'

    def text(x, y, words, more=""):
        return f'<text x="{x}" y="{y}" {more}>{html.escape(words)}</text>'

    height = _HEIGHT + _LINE * len(curves)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" font-family="sans-serif" font-size="12" role="img">',
    ]
    for value in _round_values(low, high):
        y = place(1, value).partition(",")[2]
        parts += [
            f'<line x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{y}" y2="{y}" stroke="#ddd"/>',
            text(_LEFT - 6, y, rounded(value), 'text-anchor="end"'),
        ]
    for epoch in sorted({1, (1 + epochs) // 2, epochs}):
        x = place(epoch, low).partition(",")[0]
        middle = 'text-anchor="middle"'
        parts.append(text(x, _HEIGHT - _BOTTOM + 15, str(epoch), middle))
    parts += [
        text(_LEFT, 12, ylabel),
        text(_WIDTH - 10, _HEIGHT - 6, xlabel, 'text-anchor="end"'),
    ]
    for number, (name, bundle) in enumerate(curves.items()):
        color = _COLORS[number % len(_COLORS)]
        if len(bundle) > 1:
            parts += [line(c, color, 'stroke-opacity="0.25"') for c in bundle]
        parts.append(line(_mean(bundle), color, 'stroke-width="2"'))
        y = _HEIGHT + _LINE * number + 10
        swatch = f'x="{_LEFT}" y="{y - 9}" width="18" height="4" fill="{color}"'
        parts += [f"<rect {swatch}/>", text(_LEFT + 26, y - 3, name)]
    return "\n".join([*parts, "</svg>"])


def _round_values(low, high):
    """Returns three to six round numbers within a range."""
    unit = 10 ** math.floor(math.log10((high - low) / 3))
    step = max(unit * factor for factor in (1, 2, 5) if unit * factor * 3 <= high - low)
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _mean(bundle):
    """Returns the mean of curves, as far as all of them go."""
    together = zip(*bundle, strict=False)
    return [sum(values) / len(values) for values in together]
