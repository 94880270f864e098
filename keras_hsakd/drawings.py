"""Pictures of results, by matplotlib, which is imported where one is drawn."""

import csv
import io
import itertools
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from keras_hsakd.files import atomic_write

_STYLE = {
    "axes.grid": True,
    "grid.alpha": 0.3,
    "text.parse_math": False,  # names may have any characters
    # The same bytes for the same picture, and text that stays text.
    "svg.hashsalt": "keras_hsakd",
    "svg.fonttype": "none",
}
_LEGEND_WIDTH = 105  # characters
_NAMED_CLASSES = 30  # more names than these beside a matrix cannot be read


def drawn(
    draw: Callable,
    *arguments,
    size: tuple[float, float],
    kind: str = "png",
    dpi: int = 110,
    layout: str = "constrained",
) -> bytes:
    """Returns the file of a picture.

    Args:
        draw: Function of an empty `matplotlib.figure.Figure` and `arguments`.
        *arguments: What it draws.
        size: Width and height in inches.
        kind: `"png"` or `"svg"`. Defaults to `"png"`.
        dpi: Pixels an inch of PNG. Defaults to 110.
        layout: How matplotlib places what is in the figure. Defaults to
            `"constrained"`, within it.

    Example:
    >>> drawn(curves, {"a": [[1.0, 2.0]]}, "%", size=(4, 3))[1:4]
    b'PNG'
    """
    import matplotlib
    from matplotlib.figure import Figure

    file = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout=layout)
        draw(figure, *arguments)
        undated = {"Date": None, "Creator": None} if kind == "svg" else None
        figure.savefig(file, format=kind, dpi=dpi, metadata=undated)
    return file.getvalue()


def with_legend(draw: Callable, found: Mapping[str, object], *labels: str) -> bytes:
    """Returns an SVG file of `curves` or `prices`, as high as its legend needs.

    Args:
        draw: One of the two.
        found: What it draws.
        *labels: Of its axes.

    Example:
    >>> b"<svg" in with_legend(curves, {"a": [[1.0, 2.0]]}, "accuracy, %")
    True
    """
    lines = sum(_wrapped(name).count("\n") + 1 for name in found)
    return drawn(draw, found, *labels, size=(8, 4.4 + 0.19 * lines), kind="svg")


def curves(figure, found: Mapping[str, Sequence[Sequence[float]]], ylabel: str) -> None:
    """Draws the mean of each bundle of curves, and all of them.

    Args:
        figure: The figure to draw on.
        found: Dict from a name to curves, each a value an epoch.
        ylabel: What the values are.
    """
    from matplotlib.ticker import MaxNLocator

    axes, handles = figure.add_subplot(), []
    looks = _looks(len(found), "linestyle", ("-", "--", ":"))
    for bundle, look in zip(found.values(), looks, strict=True):
        # The mean goes as far as all of them do.
        mean = np.mean(list(zip(*bundle, strict=False)), axis=1)
        for curve in bundle if len(bundle) > 1 else ():
            axes.plot(range(1, len(curve) + 1), curve, **look, alpha=0.25, linewidth=1)
        handles += axes.plot(range(1, len(mean) + 1), mean, **look)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel=ylabel)
    _legend(figure, handles, found)


def prices(
    figure,
    found: Mapping[str, tuple[float, Sequence[float]]],
    ylabel: str,
    xlabel: str,
) -> None:
    """Draws what things are worth, by what they cost.

    A disc is the mean of the values, a ring each of several.

    Args:
        figure: The figure to draw on.
        found: Dict from a name to a price above zero and the values to be had for it.
        ylabel: What the values are.
        xlabel: What the prices are; their axis is logarithmic.
    """
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    axes, handles = figure.add_subplot(xscale="log"), []
    looks = _looks(len(found), "marker", "osD^v")
    for (price, values), look in zip(found.values(), looks, strict=True):
        if len(values) > 1:
            rings = {"markerfacecolor": "none", "markersize": 5, "alpha": 0.6}
            axes.plot([price] * len(values), values, linestyle="", **look, **rings)
        mean = np.mean(values)
        handles += axes.plot(price, mean, linestyle="", markersize=8, **look)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _legend(figure, handles, found)


def _looks(count, other, values):
    """Returns colors that those tell apart, too, who do not see all; then again."""
    from matplotlib import color_sequences

    looks = itertools.product(values, color_sequences["petroff10"])
    looks = itertools.islice(itertools.cycle(looks), count)
    return [{"color": color, other: value} for value, color in looks]


def _wrapped(name):
    return textwrap.fill(name, _LEGEND_WIDTH, subsequent_indent="    ")


def _legend(figure, handles, names):
    labels = [_wrapped(name) for name in names]
    figure.legend(handles, labels, loc="outside lower left", frameon=False)


def training_curves(
    log: str | os.PathLike, path: str | os.PathLike, title: str
) -> None:
    """Draws what `keras.callbacks.CSVLogger` wrote: losses and accuracies by epoch.

    Args:
        log: Path of the CSV file.
        path: Path of the PNG file to write.
        title: Title of the picture.
    """
    with open(log, newline="") as file:
        rows = list(csv.DictReader(file))
    picture = drawn(_draw_training, rows, title, size=(13, 4.5), dpi=120)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(picture)


def _draw_training(figure, rows, title):
    losses, accuracies = figure.subplots(1, 2)
    epochs = [int(row["epoch"]) + 1 for row in rows]
    colors = {}
    for name in rows[0] if rows else ():
        if name in ("epoch", "learning_rate", "images_per_second"):
            continue
        # A row may have fewer columns than another.
        axes, values = losses, [float(row[name] or "nan") for row in rows]
        if name.endswith("accuracy"):
            axes, values = accuracies, [100 * value for value in values]
        # What is measured in validation is dashed, in the color of training.
        measured = name.removeprefix("val_")
        color = colors.setdefault(measured, f"C{len(colors)}")
        style = "-" if measured == name else "--"
        # A single epoch is a point, which no line shows.
        axes.plot(epochs, values, style, marker=".", color=color, label=name)
    losses.set(ylabel="loss", yscale="log")
    accuracies.set(ylabel="accuracy, %")
    for axes in (losses, accuracies):
        axes.set(xlabel="epoch")
        if axes.lines:
            axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title)


def confusion(figure, matrix: np.ndarray, class_names: Sequence[str]) -> None:
    """Draws a confusion matrix: the darker, the larger a part of its row.

    Args:
        figure: The figure to draw on.
        matrix: Integers of shape `(K, K)`, a row for each label; `K` is the number of
            classes or, of joint labels, a multiple of it, and lines part the classes.
        class_names: Names of the classes, which stand beside few of them.
    """
    parts = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes, count = figure.add_subplot(), len(class_names)
    extent = (0, count, count, 0)
    shown = axes.imshow(parts, cmap="Blues", vmin=0, vmax=1, extent=extent)
    axes.set(xlabel="answer", ylabel="label")
    axes.grid(False)
    if count <= _NAMED_CLASSES:
        names = [shortened(name, 14) for name in class_names]
        middles = np.arange(count) + 0.5
        axes.set_xticks(middles, names, rotation=90)
        axes.set_yticks(middles, names)
        axes.set_xticks(range(count + 1), minor=True)
        axes.set_yticks(range(count + 1), minor=True)
        axes.grid(which="minor")
        axes.tick_params(which="both", length=0)
    figure.colorbar(shown, label="part of the label's images")


def shortened(text: str, length: int) -> str:
    """Returns the beginning of a text that is too long.

    Args:
        text: The text.
        length: Number of characters that there is place for.

    Example:
    >>> shortened("grey wolf", 6)
    'grey …'
    """
    return text if len(text) <= length else text[: length - 1] + "…"
