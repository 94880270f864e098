"""The report of an artefact: JSON, Markdown, and an HTML page with pictures."""

import os
import tempfile
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from keras_hsakd.documents import Block, Heading, Picture, Table, Text, markdown, page
from keras_hsakd.drawings import confusion, drawn
from keras_hsakd.export.formats import UNFINISHED
from keras_hsakd.export.measuring import ARTEFACT
from keras_hsakd.files import write_json

# What is added to the name of an artefact.
REPORT = ".report"
# Confusions that the table shows.
_CONFUSIONS = 10
_PICTURE = 7, 5  # inches


def write_report(report: Mapping, images: Mapping[int, np.ndarray], path: str) -> str:
    """Writes a folder of `report.json`, `report.md` and `report.html`, whole.

    Args:
        report: What `keras_hsakd.export.measuring.Exam.report` returned.
        images: The images of `report["mistakes"]`, by their indices.
        path: Folder to make.

    Returns:
        The path.
    """
    blocks = contents(report, images)
    parent = os.path.dirname(os.path.abspath(path))
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=parent) as temporary:
        folder = os.path.join(temporary, "report")
        os.mkdir(folder)
        write_json(os.path.join(folder, "report.json"), dict(report))
        for name, text in (
            ("report.md", markdown(blocks)),
            ("report.html", page(blocks)),
        ):
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                file.write(text)
        os.rename(folder, path)
    return path


def contents(report: Mapping, images: Mapping[int, np.ndarray]) -> list[Block]:
    """Returns what a report says, for people.

    Args:
        report: As in `write_report`.
        images: As in `write_report`.
    """
    names = report["class_names"]
    # The artefact by the name of its format.
    measured = {
        report["format"] if name == ARTEFACT else name: values
        for name, values in report["measured"].items()
    }
    title = f"{report['student']} as {report['format']}"
    blocks = [Heading(title, level=1), Text(_verdict(report)), _figures(measured)]
    speed = drawn(_draw_speed, measured, size=_PICTURE)
    blocks.append(Picture(speed, "Accuracy and latency"))
    blocks += [Text(_conditions(report, measured)), Heading("Classes that lost most")]
    for other, losses in report["lost_most"].items():
        if losses:
            head = ["class", "images", "accuracy", f"accuracy of {other}"]
            rows = [
                [
                    names[loss["index"]],
                    str(loss["images"]),
                    _percent(loss["accuracy"]),
                    _percent(loss["expected"]),
                ]
                for loss in losses
            ]
            blocks.append(Table([head, *rows]))
        else:
            blocks.append(Text(f"No class lost accuracy against {other}."))
    blocks.append(Heading("Confusions"))
    matrix = np.array(report["confusion_matrix"])
    confused = drawn(confusion, matrix, names, size=_PICTURE)
    blocks.append(Picture(confused, "Images by label and answer"))
    blocks += _confusions(matrix, names)
    blocks.append(Heading("Mistakes"))
    if report["mistakes"]:
        blocks.append(Text("Wrong answers, the surest first."))
    else:
        blocks.append(Text("No image was classified wrongly."))
    head = ["image", "label", "answer", "probability"]
    rows = [
        [
            str(mistake["index"]),
            names[mistake["label"]],
            names[mistake["found"]],
            _percent(mistake["probability"]),
        ]
        for mistake in report["mistakes"]
    ]
    blocks += [Table([head, *rows])] if rows else []
    blocks += [
        Picture(
            tf.io.encode_png(images[int(index)]).numpy(),
            f"{label}, taken for {found} ({probability})",
        )
        for index, label, found, probability in rows
        if images[int(index)].shape[-1] <= 4
    ]
    return blocks + _card(report)


def _verdict(report):
    accuracy = _percent(report["measured"][ARTEFACT]["top1"])
    text = (
        f"Accuracy {accuracy} on {report['images']:,} test images, "
        f"{_percent(report['drop'])} less than the student."
    )
    if report["drop"] <= 0:
        gain = _percent(-report["drop"])
        text = (
            f"Accuracy {accuracy} on {report['images']:,} test images, "
            + (f"{gain} more than" if report["drop"] else "as")
            + " the student."
        )
    most = report["max_drop"]
    if most is None:
        return text
    if report["drop"] > most:
        return f"{text} REJECTED: it may lose at most {_percent(most)}."
    return f"{text} Accepted: it may lose at most {_percent(most)}."


def _figures(measured):
    def row(name, show):
        return [name, *(show(values) for values in measured.values())]

    def milliseconds(size):
        def show(values):
            latency = values["latency"][size]
            return " / ".join(
                _three_digits(latency[n]) for n in ("median_ms", "p99_ms")
            )

        return show

    sizes = next(iter(measured.values()))["latency"]
    return Table(
        [
            ["", *measured],
            row("top-1 accuracy", lambda v: _percent(v["top1"])),
            row("top-5 accuracy", lambda v: _percent(v["top5"])),
            row("same answer as the student", lambda v: _percent(v["agreement"])),
            row(
                "expected calibration error", lambda v: _percent(v["calibration_error"])
            ),
            row("bytes on disk", lambda v: _count(v["bytes"])),
            row("parameters", lambda v: _count(v["parameters"])),
            row("multiply-adds", lambda v: _count(v["multiply_adds"])),
            *(
                row(f"latency, batch {size}: median / p99, ms", milliseconds(size))
                for size in sizes
            ),
        ]
    )


def _conditions(report, measured):
    machine = report["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in report["versions"].items())
    cores = "; ".join(
        f"{name} "
        + ", ".join(
            f"{latency['busy_cores']:.1f} (batch {size}, {latency['calls']} calls)"
            for size, latency in values["latency"].items()
        )
        for name, values in measured.items()
    )
    return (
        f"Measured on {machine['system']}, {machine['processor']}, "
        f"{machine['cores']} cores, devices {', '.join(machine['devices'])}; "
        f"{versions}. Each runtime chose its number of threads; mean number of cores "
        f"that were busy: {cores}. Networks other than the artefact ran in Keras, as "
        "one function of TensorFlow. The latencies hold for this machine and what else "
        "ran on it."
    )


def _confusions(matrix, names):
    """Returns a table of the most frequent confusions."""
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    most = np.argsort(-off, axis=None, kind="stable")[:_CONFUSIONS]
    rows = [
        [names[label], names[found], str(off[label, found])]
        for label, found in zip(*np.unravel_index(most, off.shape), strict=True)
        if off[label, found]
    ]
    return [Table([["label", "answer", "images"], *rows])] if rows else []


def _card(report):
    card, count = report["card"], len(report["class_names"])
    parts = {
        "Intended use": [card["intended_use"]],
        "Data": [card["data"], f"Measured on {report['images']:,} test images."],
        "Training": [card["training"]],
        "Limits": [
            f"Every image gets one of {count} classes, also one of none of them. The "
            "figures hold for images like those that were measured on.",
            card["limits"],
        ],
        "Licence": [card["licence"]],
    }
    blocks = [Heading("Model card")]
    for title, texts in parts.items():
        blocks.append(Heading(title, level=3))
        blocks += [Text("Not stated." if text is None else text) for text in texts]
    return blocks


def _percent(part):
    return "–" if part is None else f"{part:.2%}"


def _three_digits(number):
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _count(number):
    return "–" if number is None else f"{number:,}"


def _draw_speed(figure, measured):
    axes = figure.add_subplot()
    for name, values in measured.items():
        ((size, latency), *_) = values["latency"].items()
        accuracy = 100 * values["top1"]
        axes.plot(latency["median_ms"], accuracy, "o", label=name)
    axes.set(
        xlabel=f"median latency of batch {size}, ms",
        ylabel="top-1 accuracy, %",
        xscale="log",
    )
    axes.legend()
