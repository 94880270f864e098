"""Drawings as SVG, which every browser shows, without a package for pictures."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence

from keras_hsakd.figures import amount, rounded

# Told apart also by those who do not see all colors (Okabe and Ito).
_COLORS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"),
    "#8c8c00",
)
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM, _LINE = 640, 380, 56, 24, 24, 36, 20


def curves(
    found: Mapping[str, Sequence[Sequence[float]]], ylabel: str, xlabel: str = "epoch"
) -> str:
    """Returns an SVG element with the mean of each bundle of curves, and all of them.

    Args:
        found: Dict from a name to curves, each a value an epoch.
        ylabel: What the values are.
        xlabel: What they are by. Defaults to `"epoch"`.

    Example:
    >>> drawn = curves({"a < b": [[0.1, 0.5], [0.3, 0.4]]}, "accuracy, %")
    >>> drawn.count("<polyline"), "a &lt; b" in drawn
    (3, True)
    """
    epochs = max(len(curve) for bundle in found.values() for curve in bundle)
    values = [v for bundle in found.values() for curve in bundle for v in curve]
    frame = _Frame((1, max(2, epochs)), values)

    def line(curve, color, more):
        points = (frame.place(*point) for point in enumerate(curve, start=1))
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        return f'<polyline points="{places}" fill="none" stroke="{color}" {more}/>'

    shapes = []
    for bundle, color in zip(found.values(), _colors(found), strict=True):
        if len(bundle) > 1:
            shapes += [line(c, color, 'stroke-opacity="0.25"') for c in bundle]
        shapes.append(line(_mean(bundle), color, 'stroke-width="2"'))
    ticks = {epoch: str(epoch) for epoch in (1, (1 + epochs) // 2, epochs)}
    return frame.svg(shapes, ticks, xlabel, ylabel, found)


def prices(
    found: Mapping[str, tuple[float, Sequence[float]]], ylabel: str, xlabel: str
) -> str:
    """Returns an SVG element with what things are worth, by what they cost.

    A disc is the mean of the values, a ring each of several.

    Args:
        found: Dict from a name to a price above zero and the values to be had for it.
        ylabel: What the values are.
        xlabel: What the prices are; their axis is logarithmic.

    Example:
    >>> drawn = prices({"a": (2e12, [71.0, 73.0]), "b": (9e12, [74.0])}, "%", "cost")
    >>> drawn.count("<circle"), ">2 T<" in drawn, ">5 T<" in drawn
    (4, True, True)
    """
    costs = [math.log10(price) for price, _ in found.values()]
    margin = 0.05 * (max(costs) - min(costs)) or 0.1
    x_range = min(costs) - margin, max(costs) + margin
    frame = _Frame(x_range, [v for _, values in found.values() for v in values])

    def circle(price, value, more):
        x, y = frame.place(math.log10(price), value)
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" {more}/>'

    shapes = []
    for (price, values), color in zip(found.values(), _colors(found), strict=True):
        if len(values) > 1:
            ring = f'r="3" fill="none" stroke="{color}" stroke-opacity="0.6"'
            shapes += [circle(price, value, ring) for value in values]
        mean = sum(values) / len(values)
        shapes.append(circle(price, mean, f'r="5" fill="{color}"'))
    decades = range(math.floor(x_range[0]), math.ceil(x_range[1]))
    round_prices = (factor * 10.0**decade for decade in decades for factor in (1, 2, 5))
    ticks = {
        position: amount(price)
        for price in round_prices
        if x_range[0] <= (position := math.log10(price)) <= x_range[1]
    }
    return frame.svg(shapes, ticks, xlabel, ylabel, found)


class _Frame:
    """Where values are in a drawing, and what surrounds them."""

    def __init__(self, x_range, values):
        low, high = min(values), max(values)
        margin = 0.05 * (high - low) or 1.0
        self._x_range, self._y_range = x_range, (low - margin, high + margin)

    def place(self, x, y):
        """Returns the coordinates of a point."""
        (left, right), (low, high) = self._x_range, self._y_range
        across, up = (x - left) / (right - left), (y - low) / (high - low)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _TOP + (1 - up) * (_HEIGHT - _TOP - _BOTTOM),
        )

    def svg(
        self,
        shapes: Iterable[str],
        x_ticks: Mapping[float, str],
        xlabel: str,
        ylabel: str,
        names: Iterable[str],
    ) -> str:
        """Returns the drawing of shapes, whose colors are those of names in order."""
        names = list(names)
        height, end = _HEIGHT + _LINE * (len(names) + 0.5), _WIDTH - _RIGHT
        parts = [
            '<svg xmlns="http://www.w3.org/2000/svg" '
            f'viewBox="0 0 {_WIDTH} {height:g}" width="{_WIDTH}" '
            'font-family="sans-serif" font-size="12" role="img">',
            '<rect width="100%" height="100%" fill="white"/>',
        ]
        for value in _round_values(*self._y_range):
            _, y = self.place(self._x_range[0], value)
            parts += [
                f'<path d="M{_LEFT} {y:.1f}H{end}" stroke="#ddd"/>',
                _text(_LEFT - 6, y, rounded(value), "end"),
            ]
        for value, words in x_ticks.items():
            x, _ = self.place(value, self._y_range[0])
            parts.append(_text(x, _HEIGHT - _BOTTOM + 15, words, "middle"))
        parts += [_text(_LEFT, 12, ylabel), _text(end, _HEIGHT - 6, xlabel, "end")]
        parts += shapes
        for number, (name, color) in enumerate(zip(names, _colors(names), strict=True)):
            y = _HEIGHT + _LINE * (number + 1)
            swatch = f'x="{_LEFT}" y="{y - 9}" width="18" height="4" fill="{color}"'
            parts += [f"<rect {swatch}/>", _text(_LEFT + 26, y - 3, name)]
        return "\n".join([*parts, "</svg>"])


def _text(x, y, words, anchor="start"):
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text {where}>{html.escape(words)}</text>"


def _colors(names):
    return [_COLORS[number % len(_COLORS)] for number, _ in enumerate(names)]


def _round_values(low, high):
    """Returns three to six round numbers within a range."""
    unit = 10 ** math.floor(math.log10((high - low) / 3))
    step = max(unit * factor for factor in (1, 2, 5) if unit * factor * 3 <= high - low)
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _mean(bundle):
    """Returns the mean of curves, as far as all of them go."""
    together = zip(*bundle, strict=False)
    return [sum(values) / len(values) for values in together]
