"""What the network of a run is worth beyond its accuracy."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import keras
import numpy as np

from keras_hsakd import lock
from keras_hsakd import views as named_views
from keras_hsakd.data import corruptions
from keras_hsakd.export import metrics
from keras_hsakd.files import check_parent, without_folders, write_json
from keras_hsakd.heads import head_names, is_plain, strip_heads
from keras_hsakd.machine import versions
from keras_hsakd.ops import head_accuracies, joint_labels, transformed_views
from keras_hsakd.runs.evaluation import images_measured_on, network_beside
from keras_hsakd.runs.folder import Run

_SHOWN = 5  # classes that a table names


class Answers(NamedTuple):
    """What networks say of images.

    Attributes:
        labels: Integers of shape `(B,)`.
        logits: Class logits of the images, of shape `(B, N)`.
        seen: Dict from what is told, `"accuracy"` for the class by the class logits,
            `"aux_1_joint_accuracy"` and so on for heads, to whether it is right:
            booleans of shape `(B, M)`, a column for each view.
        corrupted: Dict from the name of a corruption to whether the class logits are
            right under it: booleans of shape `(B,)`.
        others: Dict from the name of another network to its class logits.
    """

    labels: np.ndarray
    logits: np.ndarray
    seen: dict[str, np.ndarray]
    corrupted: dict[str, np.ndarray] = {}
    others: dict[str, np.ndarray] = {}


def measure_quality(
    run: str | os.PathLike,
    checkpoint: str = "last",
    teacher: str | os.PathLike | None = None,
    beside: str | os.PathLike | None = None,
    output: str | os.PathLike | None = None,
    severity: int = 3,
    seed: int = 0,
    verbose: int = 1,
    **data_changes,
) -> dict:
    """Measures the network of a run beyond its accuracy, and writes what comes out.

    In one pass over the test images: accuracy of the five likeliest classes,
    calibration, agreement with the teacher, accuracies of the heads by view and by
    class, and of the class logits under each view and under corruptions of
    `keras_hsakd.data.corruptions`.

    Args:
        run: Run folder.
        checkpoint: `"last"` or `"best"`. Defaults to `"last"`.
        teacher: Run folder of the teacher. Defaults to the one that the run learned
            from, if it is still there.
        beside: Run folder of a network to compare the accuracy of each class with.
        output: JSON file to write. Defaults to `quality.json` in the run folder.
        severity: Int from 1 to 5, of the corruptions. Defaults to 3.
        seed: Int, of the noise among them. Defaults to 0.
        verbose: As in `keras.Model.evaluate`. Defaults to 1, a progress bar.
        **data_changes: As in `keras_hsakd.runs.evaluate`.

    Returns:
        The content of the file. All floats in it are figures, see `figures`; beside
        them are `"by_view"`, `"by_class"`, and what was measured on what.

    Raises:
        BlockingIOError: If another process writes there; says which.
        FileNotFoundError: If `run`, `teacher` or `beside` is not a run folder with a
            finished epoch, or `output` lies in no folder.
        ValueError: As `keras_hsakd.runs.evaluate`, or if `teacher` or `beside` takes
            other images or has other classes.

    Example:
    >>> found = measure_quality("student", beside="baseline")  # doctest: +SKIP
    >>> found["accuracy_under_contrast"], found["teacher_agreement"]  # doctest: +SKIP
    (0.41, 0.87)
    """
    opened = Run.open(run)
    if output is None:
        output, kept = opened.quality, lock.held(opened.path)
    else:
        check_parent(output, "output")
        kept = lock.held_beside(output)
    with kept:
        network = opened.network(checkpoint)
        learned_from = _teacher(opened, teacher, checkpoint)
        others = {}
        if "run" in learned_from:
            others["teacher"] = [learned_from, *learned_from.get("others", ())]
        if beside is not None:
            others["beside"] = [_known(Run.open(beside), checkpoint)]
        networks = {
            name: [
                network_beside(opened, name, each["run"], each["checkpoint"])
                for each in known
            ]
            for name, known in others.items()
        }
        images = images_measured_on(opened, data_changes)
        answers = answers_of(
            network, images.test, opened.views, severity, seed, networks, verbose
        )
        captions, names = named_views.captions(opened.views), opened.class_names
        found = {
            **_known(opened, checkpoint),
            "images": {
                "data": without_folders(images.settings.data),
                "measured_on": images.record()["measured_on"],
                "count": len(answers.labels),
                "fingerprint": images.test.fingerprint(),
            },
            "views": opened.views,
            "corruptions": {"severity": severity, "seed": seed},
            "versions": versions("keras_hsakd", "keras", "tensorflow", "numpy"),
            **figures(answers, captions),
            "teacher": learned_from or None,
            "beside": None,
            "by_view": by_view(answers, captions),
            "by_class": by_class(answers, names),
        }
        if beside is not None:
            (known,) = others["beside"]
            found["beside"] = {**known, **changed_most(answers, names)}
        write_json(output, found)
        return found


def _known(run, checkpoint):
    """Returns what tells the network of a run from others."""
    return {
        "run": run.path,
        "checkpoint": checkpoint,
        "weights": run.weights_digest(checkpoint),
    }


def _teacher(run, folder, checkpoint):
    """Returns what is known of a run's teacher, if it has one, or why it is missing.

    Where there are several, the others are `"others"` of the first.
    """
    if folder is not None:
        return _known(Run.open(folder), checkpoint)
    origin = run.record["origin"]
    if run.record["kind"] != "distill" or not origin:
        return {}
    found = []
    for each in (origin, *origin.get("others", ())):
        try:
            known = _known(Run.open(each["run"]), each["checkpoint"])
        except (FileNotFoundError, ValueError) as error:
            return {"missing": str(error)}
        if each.get("weights") not in (None, known["weights"]):
            return {"missing": f"'{known['run']}' has been trained again since"}
        found.append(known)
    first, *others = found
    return {**first, "others": others} if others else first


def answers_of(
    network: keras.Model,
    test: Iterable,
    views: str = "rotations",
    severity: int = 3,
    seed: int = 0,
    others: Mapping[str, Sequence[keras.Model]] | None = None,
    verbose: int = 0,
) -> Answers:
    """Returns what a network says of images, under views and corruptions too.

    Args:
        network: A functional model from images of 0 to 255, with heads or without.
        test: Batches of (image, label), which have a length.
        views: Name of the views that its heads were trained on, and that the class
            logits are asked about. Defaults to `"rotations"`.
        severity: As in `measure_quality`.
        seed: As in `measure_quality`.
        others: Lists of networks by name, which are asked about the images as they are;
            the logits of several are averaged.
        verbose: As in `measure_quality`. Defaults to 0.
    """
    functions = named_views.get(views)
    plain = strip_heads(network)
    heads = [] if is_plain(network) else head_names(network)
    others = {
        name: list(map(strip_heads, each)) for name, each in (others or {}).items()
    }
    collected = []
    progress = keras.utils.Progbar(len(test), verbose=verbose)
    start = 0
    for images, labels in test:
        labels = keras.ops.convert_to_numpy(labels)
        outputs = network.predict_on_batch(transformed_views(images, functions))
        logits = outputs["logits"] if heads else outputs
        logits = logits.reshape(len(labels), len(functions), -1)
        seen = {"accuracy": logits.argmax(axis=-1) == labels[:, np.newaxis]}
        joint = joint_labels(labels, len(functions))
        for name in heads:
            hits = head_accuracies(joint, outputs[name], len(functions))
            for kind, of_rows in hits.items():
                of_rows = keras.ops.convert_to_numpy(of_rows)
                of_rows = of_rows.reshape(-1, len(functions))
                seen[f"{name}_{kind}_accuracy"] = of_rows
        pixels = keras.ops.convert_to_numpy(images)
        indices = range(start, start + len(labels))
        corrupted = {}
        for name in corruptions.names():
            changed = corruptions.corrupted(pixels, name, severity, seed, indices)
            found = plain.predict_on_batch(changed).argmax(axis=-1)
            corrupted[name] = found == labels
        told = {
            name: np.mean([other.predict_on_batch(images) for other in each], axis=0)
            for name, each in others.items()
        }
        collected.append(Answers(labels, logits[:, 0], seen, corrupted, told))
        start = indices.stop
        progress.update(len(collected))
    return Answers(*map(_joined, zip(*collected, strict=True)))


def _joined(parts):
    """Returns arrays of batches, or dicts of them, as one."""
    if isinstance(parts[0], dict):
        return {name: _joined([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(parts)


def _key(caption):
    """Returns what a view is called in JSON."""
    return caption.replace("°", "_degrees").lower()


def figures(answers: Answers, captions: Sequence[str]) -> dict[str, float]:
    """Returns figures of a network, by flat names.

    Args:
        answers: What it says; `others` may have a `"teacher"`.
        captions: Of the views, see `keras_hsakd.views.captions`.

    Returns:
        Dict of `accuracy`, `top_5_accuracy` where there are more than five classes,
        `negative_log_likelihood`, `expected_calibration_error`, `brier_score`; with a
        teacher `teacher_agreement`, how often both find the same class likeliest, and
        `teacher_divergence`, the mean of `KL(teacher || student)`; the heads'
        `aux_1_joint_accuracy`, `aux_1_class_accuracy` and so on over all views;
        `accuracy_under_90_degrees` and so on of the class logits;
        `accuracy_under_contrast` and so on, and their mean
        `accuracy_under_corruptions`.

    Example:
    >>> logits, labels = 9 * np.eye(2), np.arange(2)
    >>> seen = {"accuracy": np.array([[True, False], [True, True]])}
    >>> found = figures(Answers(labels, logits, seen), ["0°", "180°"])
    >>> found["accuracy"], found["accuracy_under_180_degrees"]
    (1.0, 0.5)
    """
    labels = answers.labels
    probabilities = metrics.softmax(answers.logits)
    found = {"accuracy": metrics.accuracy(probabilities, labels)}
    if probabilities.shape[1] > 5:
        found["top_5_accuracy"] = metrics.accuracy(probabilities, labels, 5)
    for figure in (
        metrics.negative_log_likelihood,
        metrics.expected_calibration_error,
        metrics.brier_score,
    ):
        found[figure.__name__] = figure(probabilities, labels)
    if "teacher" in answers.others:
        expected = metrics.softmax(answers.others["teacher"])
        found["teacher_agreement"] = metrics.agreement(probabilities, expected)
        found["teacher_divergence"] = metrics.divergence(expected, probabilities)
    for name, right in answers.seen.items():
        if name != "accuracy":
            found[name] = float(right.mean())
    of_views = answers.seen["accuracy"].mean(axis=0)
    for caption, accuracy in list(zip(captions, of_views, strict=True))[1:]:
        found[f"accuracy_under_{_key(caption)}"] = float(accuracy)
    for name, right in answers.corrupted.items():
        found[f"accuracy_under_{name}"] = float(right.mean())
    if answers.corrupted:
        mean = np.mean(list(answers.corrupted.values()))
        found["accuracy_under_corruptions"] = float(mean)
    return found


def by_view(answers: Answers, captions: Sequence[str]) -> dict[str, dict[str, float]]:
    """Returns for each view how often the class logits and each head are right.

    Args:
        answers: What the network says.
        captions: Of the views.
    """
    return {
        _key(caption): {
            name: float(right[:, number].mean()) for name, right in answers.seen.items()
        }
        for number, caption in enumerate(captions)
    }


def by_class(answers: Answers, class_names: Sequence[str]) -> dict[str, dict]:
    """Returns for each class its number of images, and how often it is told.

    By the class logits on the images as they are, by the heads under all views. Classes
    without an image are not in it.

    Args:
        answers: What the network says.
        class_names: Names of the classes.
    """
    found = {}
    for number, class_name in enumerate(class_names):
        rows = answers.labels == number
        if rows.any():
            found[class_name] = {
                "images": int(rows.sum()),
                "accuracy": float(answers.seen["accuracy"][rows, 0].mean()),
                **{
                    name: float(right[rows].mean())
                    for name, right in answers.seen.items()
                    if name.endswith("_class_accuracy")
                },
            }
    return found


def changed_most(answers: Answers, class_names: Sequence[str]) -> dict:
    """Returns the accuracy of the network beside, and the classes that differ most.

    Args:
        answers: What the networks say; `others` has one `"beside"`.
        class_names: Names of the classes.

    Returns:
        Dict of `"accuracy"`, and `"gained_most"` and `"lost_most"`, lists of at most
        five classes each with the accuracies of both networks.
    """
    own, other = (
        metrics.confusion_matrix(logits, answers.labels)
        for logits in (answers.logits, answers.others["beside"])
    )

    def named(loss, accuracy, beside):
        name = class_names[loss.index]
        named = {"class": name, "images": loss.images}
        return {**named, "accuracy": accuracy, "beside": beside}

    return {
        "accuracy": metrics.accuracy(answers.others["beside"], answers.labels),
        "gained_most": [
            named(loss, loss.expected, loss.accuracy)
            for loss in metrics.lost_most(other, own, _SHOWN)
        ],
        "lost_most": [
            named(loss, loss.accuracy, loss.expected)
            for loss in metrics.lost_most(own, other, _SHOWN)
        ],
    }


def table(found: Mapping) -> str:
    """Returns what `measure_quality` found, for people.

    Args:
        found: What it returned.
    """
    images = found["images"]
    lines = [
        f"{found['run']}, {found['checkpoint']} epoch, on {images['count']:,} "
        f"{images['measured_on']} of {images['data']}",
        "",
    ]
    values = {k: v for k, v in found.items() if isinstance(v, float)}
    for name in [f"accuracy_under_{view}" for view in found["by_view"]]:
        values.pop(name, None)  # in the table of views
    lines += [f"{name.replace('_', ' '):30} {v:8.4f}" for name, v in values.items()]
    if teacher := found["teacher"]:
        missing = teacher.get("missing")
        if missing:
            lines.append(f"no agreement with the teacher: {missing}")
    lines += ["", *_rows("view", found["by_view"])]
    hardest = sorted(found["by_class"].items(), key=lambda pair: pair[1]["accuracy"])
    lines += ["", *_rows("hardest classes", dict(hardest[:_SHOWN]))]
    if beside := found["beside"]:
        lines += ["", f"beside {beside['run']}, accuracy {beside['accuracy']:.4f}"]
        for which in ("gained_most", "lost_most"):
            classes = {
                entry["class"]: {k: v for k, v in entry.items() if k != "class"}
                for entry in beside[which]
            }
            if classes:
                lines += ["", *_rows(which.replace("_", " "), classes)]
    return "\n".join(lines)


def _rows(title, rows):
    """Returns lines of a table from names to figures by name."""
    columns = list(next(iter(rows.values())))
    heads = [name.removesuffix("_accuracy").replace("_", " ") for name in columns]
    width = max(map(len, (title, *rows)))
    lines = ["  ".join([f"{title:{width}}", *(f"{head:>11}" for head in heads)])]
    for name, values in rows.items():
        cells = (
            f"{values[column]:11.4f}"
            if isinstance(values[column], float)
            else f"{values[column]:11,}"
            for column in columns
        )
        lines.append("  ".join([f"{name:{width}}", *cells]))
    return lines
