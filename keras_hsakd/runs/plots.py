"""Pictures of a training."""

import csv
import os
import types

from keras_hsakd.files import atomic_write


def pyplot() -> types.ModuleType:
    """Returns `matplotlib.pyplot`, drawing to files only.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "Pictures need matplotlib: pip install 'keras_hsakd[demo]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def training_curves(
    log: str | os.PathLike, path: str | os.PathLike, title: str
) -> None:
    """Draws what `keras.callbacks.CSVLogger` wrote: losses and accuracies by epoch.

    Args:
        log: Path of the CSV file.
        path: Path of the PNG file to write.
        title: Title of the picture.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    with open(log, newline="") as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row["epoch"]) + 1 for row in rows]
    plotting = pyplot()
    figure, (losses, accuracies) = plotting.subplots(
        1, 2, figsize=(13, 4.5), layout="constrained"
    )
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
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plotting.close(figure)
