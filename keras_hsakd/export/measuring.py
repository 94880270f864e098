"""What an artefact is worth: its answers on test images, its size and its speed."""

import dataclasses
import os
import time
from collections.abc import Iterable, Iterator, Mapping

import keras
import numpy as np

from keras_hsakd import graph
from keras_hsakd.export import metrics
from keras_hsakd.export.formats import (
    Format,
    Predict,
    RejectedError,
    check_backend,
    in_graph,
)
from keras_hsakd.export.serving import Served, as_pixels
from keras_hsakd.machine import machine, versions
from keras_hsakd.names import CARD
from keras_hsakd.ops import class_of_labels
from keras_hsakd.suggestions import did_you_mean

# Its name among what was measured.
ARTEFACT = "artefact"
BATCH_SIZES = (1, 32)
# Of a latency: calls before the clock runs, and the most calls and seconds on it.
_WARM_UP, _CALLS, _SECONDS = 10, 500, 5.0
# Wrongly classified images that a report shows.
_MISTAKES = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """What artefacts are measured on, and how much they may lose.

    Attributes:
        test: Images as they will be served, which were not trained on, and their
            labels: two arrays, uint8 `(count, height, width, channels)` and integers
            `(count,)`; or batches of both in an order that does not change, such as a
            `tf.data.Dataset`. Floats from 0 to 255 are rounded.
        max_drop: Float, the most top-1 accuracy that an artefact may lose against the
            student. Defaults to `None`, any.
        beside: Dict from a name, as `"teacher"`, to a model that
            `keras_hsakd.export.serving_model` returned, which is measured beside the
            student. Defaults to none.
        card: Dict of texts for the model card by the names in `CARD`: intended use,
            data, training, limits and licence. What is not given is said to be
            unknown.

    Raises:
        ValueError: If `max_drop` is not from 0 to 1, or `card` has something else.

    Example:
    >>> student = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten()])
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), "uint8")
    >>> trial = Trial(test=(images, np.arange(8)), max_drop=0.01)
    >>> results = keras_hsakd.export.ship(student, "net", ["keras"], trial=trial)
    >>> results["keras"].path, results["keras"].report
    ('net/1.keras', 'net/1.keras.report')
    """

    test: tuple[np.ndarray, np.ndarray] | Iterable
    max_drop: float | None = None
    beside: Mapping[str, keras.Model] = dataclasses.field(default_factory=dict)
    card: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise ValueError(
                "Expected `max_drop` to be a part of all images, from 0 to 1. "
                f"Received: max_drop={self.max_drop!r}"
            )
        for name, text in self.card.items():
            if not isinstance(text, str):
                raise ValueError(
                    f"Expected `card` to have texts. Received: {name}={text!r}"
                )
            if name not in CARD:
                raise ValueError(
                    f"Expected `card` to have texts for {CARD}. Received: {name!r}"
                    + did_you_mean(name, CARD)
                )
        if isinstance(self.test, (list, Iterator)):
            raise ValueError(
                "Expected `test` to be a pair of arrays, `(images, labels)`, or batches"
                " that can be read several times, as a `tf.data.Dataset`. "
                f"Received: a {type(self.test).__name__}"
            )

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields batches of uint8 images and their labels.

        Raises:
            ValueError: If the values of the images are not from 0 to 255.
        """
        batches, size, highest = self.test, BATCH_SIZES[-1], None
        if isinstance(batches, tuple):
            starts = range(0, len(self.test[0]), size)
            batches = ([part[i : i + size] for part in self.test] for i in starts)
        for images, labels, *_ in batches:
            images, labels = np.asarray(images), np.asarray(labels)
            if images.dtype != "uint8":
                low, high = images.min(), images.max()
                if low < -0.5 or high >= 256:
                    raise _not_pixels(low, high)
                highest = high if highest is None else max(high, highest)
                images = as_pixels(images)
            if labels.ndim == 2:
                labels = np.asarray(class_of_labels(labels))
            yield images, labels
        if highest is not None and highest <= 1:
            raise _not_pixels(0, highest)


def _not_pixels(low, high):
    """Returns the error of images that are normalised."""
    return ValueError(
        "Expected `test` to have images as they will be served, values 0 to 255. "
        f"Received: values from {low} to {high}"
    )


class Exam:
    """A trial of the artefacts of one student, which is itself measured once.

    Args:
        trial: The `Trial`.
        served: The `Served` that the artefacts are made of.

    Raises:
        RuntimeError: If the Keras backend is not TensorFlow.
        ValueError: If the test images do not suit the student.
    """

    def __init__(self, trial: Trial, served: Served):
        check_backend()
        self.trial, self.served = trial, served
        self._check_beside()
        networks = {"student": served.model, **trial.beside}
        predicts = {name: in_graph(model).serve for name, model in networks.items()}
        self._answers, self.labels = self._answers_of(predicts)
        self._check_labels()
        self._few, _ = next(self.trial.batches())
        self._rows = {
            name: self._measured(name, networks[name], predicts[name])
            for name in networks
        }
        self._confusions = {
            name: metrics.confusion_matrix(answers, self.labels)
            for name, answers in self._answers.items()
        }

    def _check_beside(self):
        count = self.served.num_classes
        for name, model in self.trial.beside.items():
            if name in (ARTEFACT, "student"):
                raise ValueError(
                    "Expected `beside` to have other names than the report's own. "
                    f"Received: {name!r}"
                )
            # One that was never called has no `output`, unless it is functional.
            outputs = None if isinstance(model, keras.Sequential) else model.output
            if not isinstance(outputs, dict) or "probabilities" not in outputs:
                raise ValueError(
                    "Expected `beside` to have models that `serving_model` returned. "
                    f"Received: {name!r}, a model named '{model.name}'"
                )
            classes = outputs["probabilities"].shape[-1]
            if classes != count:
                raise ValueError(
                    f"Expected {name!r} of `beside` to have the {count} classes of the "
                    f"student. Received: {classes} classes"
                )

    def _check_labels(self):
        labels, highest = self.labels, self.served.num_classes - 1
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > highest:
            raise ValueError(
                f"Expected `test` to have labels that are integers from 0 to {highest}"
                f". Received: {labels.dtype} from {labels.min()} to {labels.max()}"
            )

    def _answers_of(self, predicts):
        """Returns the probabilities by name of several, in one pass; the labels."""
        answers, labels = {name: [] for name in predicts}, []
        for images, of_images in self.trial.batches():
            labels.append(of_images)
            for name, predict in predicts.items():
                probabilities = np.asarray(predict(images)["probabilities"])
                if not np.isfinite(probabilities).all():
                    raise RuntimeError(
                        f"Expected '{name}' to give finite probabilities of the test "
                        "images. Received: some that are not"
                    )
                answers[name].append(probabilities)
        if not labels:
            raise ValueError("Expected `test` to have images. Received: none")
        joined = {name: np.concatenate(rows) for name, rows in answers.items()}
        return joined, np.concatenate(labels)

    def _measured(self, name, model, predict, path=None):
        answers, labels = self._answers[name], self.labels
        _, *shape = self._few.shape
        return {
            "top1": metrics.accuracy(answers, labels),
            # Of five classes all are among the first five.
            "top5": metrics.accuracy(answers, labels, 5)
            if self.served.num_classes > 5
            else None,
            "agreement": metrics.agreement(answers, self._answers["student"]),
            "calibration_error": metrics.expected_calibration_error(answers, labels),
            "bytes": None if path is None else size_on_disk(path),
            "parameters": model.count_params(),
            "multiply_adds": multiply_adds(model),
            "latency": {
                str(size): latency(predict, np.resize(self._few, (size, *shape)))
                for size in BATCH_SIZES
            },
        }

    def report(self, name: str, format: Format, path: str) -> dict:
        """Measures an artefact, loaded by its own runtime.

        Args:
            name: Name of its format.
            format: The format.
            path: Where it lies.

        Returns:
            What `report.json` has.

        Raises:
            ValueError: If the test images come in another order than before.
        """
        predict = format.load(path)
        answers, labels = self._answers_of({name: predict})
        if not np.array_equal(labels, self.labels):
            raise ValueError(
                "Expected `test` to have its images in an order that does not change. "
                "Received: other labels than when the student was measured"
            )
        self._answers |= answers
        confusion = metrics.confusion_matrix(answers[name], labels)
        found = answers[name].argmax(axis=1)
        highest = answers[name].max(axis=1)
        wrong = np.flatnonzero(found != labels)
        surest = wrong[np.argsort(-highest[wrong], kind="stable")][:_MISTAKES]
        class_names = self.served.class_names
        if class_names is None:
            class_names = range(self.served.num_classes)
        return {
            "student": self.served.student.name,
            "format": name,
            "images": len(labels),
            "class_names": [str(name) for name in class_names],
            "max_drop": self.trial.max_drop,
            "drop": self._lost(answers[name]) / len(labels),
            "measured": {
                ARTEFACT: self._measured(name, self.served.model, predict, path),
                **self._rows,
            },
            "lost_most": {
                other: [lost._asdict() for lost in metrics.lost_most(confusion, matrix)]
                for other, matrix in self._confusions.items()
            },
            "confusion_matrix": confusion.tolist(),
            "mistakes": [
                {
                    "index": int(index),
                    "label": int(labels[index]),
                    "found": int(found[index]),
                    "probability": float(highest[index]),
                }
                for index in surest
            ],
            "machine": machine(),
            "versions": versions(
                "keras_hsakd", "keras", "tensorflow", "numpy", format.runtime
            ),
            "card": {part: self.trial.card.get(part) for part in CARD},
        }

    def _lost(self, answers):
        """Returns how many right answers fewer than the student's there are."""
        own, student = (
            np.sum(rows.argmax(axis=1) == self.labels)
            for rows in (answers, self._answers["student"])
        )
        return int(student - own)

    def check(self, report: Mapping) -> None:
        """Raises a `RejectedError` if an artefact lost more than it may.

        Args:
            report: What `report` returned.
        """
        most = self.trial.max_drop
        if most is not None and report["drop"] > most:
            measured = report["measured"]
            accuracy = measured[ARTEFACT]["top1"]
            raise RejectedError(
                f"Expected the artefact to lose at most {most} of the student's "
                f"accuracy, {measured['student']['top1']:.4f} (`max_drop`). "
                f"Received: an accuracy of {accuracy:.4f}"
            )

    def images(self, indices: Iterable[int]) -> dict[int, np.ndarray]:
        """Returns some of the test images by their indices."""
        wanted, found, start = set(indices), {}, 0
        for images, _ in self.trial.batches():
            here = range(start, start + len(images))
            found |= {index: images[index - start] for index in wanted & set(here)}
            start = here.stop
            if len(found) == len(wanted):
                break
        return found


def latency(
    predict: Predict, images: np.ndarray, calls: int = _CALLS, seconds: float = _SECONDS
) -> dict[str, float]:
    """Measures how long an artefact takes for a batch, after some calls to warm up.

    Args:
        predict: Function from images to a dict with `"logits"`.
        images: The batch.
        calls: Int, the most calls. Defaults to 500.
        seconds: Float, the time after which no further call begins. Defaults to 5.

    Returns:
        A dict of `median_ms` and `p99_ms`, the milliseconds that half and 99 % of the
        calls took at most; `calls`; and `busy_cores`, the mean number of cores that
        this process kept busy.

    Example:
    >>> images = np.zeros((1, 32, 32, 3), "uint8")
    >>> sorted(latency(lambda images: {"logits": images.mean((1, 2))}, images))
    ['busy_cores', 'calls', 'median_ms', 'p99_ms']
    """
    times = []
    for _ in range(min(_WARM_UP, calls)):
        np.asarray(predict(images)["logits"])
    began, processor = time.perf_counter(), time.process_time()
    while not times or (len(times) < calls and sum(times) < seconds):
        start = time.perf_counter()
        np.asarray(predict(images)["logits"])  # here at last, also from a GPU
        times.append(time.perf_counter() - start)
    wall = time.perf_counter() - began
    return {
        "median_ms": float(1000 * np.median(times)),
        "p99_ms": float(1000 * np.percentile(times, 99)),
        "calls": len(times),
        "busy_cores": (time.process_time() - processor) / wall,
    }


def size_on_disk(path: str | os.PathLike) -> int:
    """Returns the bytes of a file, or of all files in a folder.

    Args:
        path: The file or folder.

    Example:
    >>> with open("labels.txt", "w") as file:
    ...     _ = file.write("cat")
    >>> size_on_disk("labels.txt"), size_on_disk(".")
    (3, 3)
    """
    if not os.path.isdir(path):
        return os.path.getsize(path)
    return sum(
        os.path.getsize(os.path.join(folder, file))
        for folder, _, files in os.walk(path)
        for file in files
    )


def multiply_adds(model: keras.Model) -> int | None:
    """Returns the multiply-adds of one image through a model, if they can be counted.

    Args:
        model: A functional model, which may have models in it.

    Returns:
        The number; or `None` if the size of the images is not known, or a model in it
        has a `call` of its own.

    Example:
    >>> student = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    >>> multiply_adds(student)  # 36 positions, 3 x 3 x 3 values, 4 channels
    3888
    """
    if None in model.inputs[0].shape[1:]:
        return None
    try:
        return graph.multiply_adds(graph.flatten(model).outputs)
    except ValueError:
        return None
