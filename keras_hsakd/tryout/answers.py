"""What a network says of an image file, and how long it takes for it."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_hsakd import views
from keras_hsakd.data import center_crop
from keras_hsakd.data.decoding import decode_file
from keras_hsakd.data.sources import resize_one
from keras_hsakd.export.metrics import softmax
from keras_hsakd.export.serving import as_pixels
from keras_hsakd.grad_cam import grad_cam
from keras_hsakd.graph import flatten
from keras_hsakd.heads import head_names, is_plain, strip_heads
from keras_hsakd.ops import transformed_views
from keras_hsakd.runs import Run

# Classes that are told of an image.
_TOP = 5


class Prediction(NamedTuple):
    """What a class is called, and how likely it is."""

    label: str
    probability: float


class JointPrediction(NamedTuple):
    """The class and the view that a head finds likeliest together."""

    label: str
    view: str
    probability: float


class View(NamedTuple):
    """What the heads say of an image under one view.

    Attributes:
        name: Name of the view.
        image: The image under it, uint8.
        heads: What each head predicts, the shallowest first.
    """

    name: str
    image: np.ndarray
    heads: list[JointPrediction]


class Answer(NamedTuple):
    """What a network says of an image.

    Attributes:
        title: What the network is.
        predictions: Its likeliest classes, the likeliest first.
        milliseconds: How long it took for them.
        image: The image as the network takes it, uint8; the whole image, where an
            artefact reads the file itself.
        heat_map: Where it looks, see `grad_cam`. Defaults to `None`: that is not known.
        views: What its heads say of each view. Defaults to none: it has no heads.
    """

    title: str
    predictions: list[Prediction]
    milliseconds: float
    image: np.ndarray
    heat_map: np.ndarray | None = None
    views: Sequence[View] = ()


# From the content of an image file; of another, `tf.errors.InvalidArgumentError`.
Answering = Callable[[bytes], Answer]


class NetworkOfRun:
    """The network of a run, as an `Answering`.

    It reads an image as the evaluation of the run does.

    Args:
        title: What to call it.
        run: The `Run`.
        checkpoint: `"last"` or `"best"`. Defaults to `"last"`.
    """

    def __init__(self, title: str, run: Run, checkpoint: str = "last"):
        self._title = title
        self._network = run.network(checkpoint)
        self._class_names = run.class_names
        self._image_size = run.record["images"]["image_size"]
        self._center_crop = run.data_settings().center_crop
        self._views = run.views
        # What is deployed.
        self._plain = flatten(strip_heads(self._network))

    def __call__(self, content: bytes) -> Answer:
        images = self._read(content)[np.newaxis]
        logits, milliseconds = timed(self._plain.predict_on_batch, images)
        return Answer(
            self._title,
            likeliest(softmax(logits[0]), self._class_names),
            milliseconds,
            as_pixels(images[0]),
            self._heat_map(images),
            [] if is_plain(self._network) else self._of_views(images),
        )

    def _read(self, content):
        image = decode_file(content, "")
        if self._center_crop is not None:
            return center_crop(image, self._image_size, self._center_crop).numpy()
        return resize_one(image, self._image_size).numpy()

    def _heat_map(self, images):
        try:
            return grad_cam(self._plain, images)[0]
        except ValueError:  # it has no feature map
            return None

    def _of_views(self, images):
        rows = transformed_views(images, views.get(self._views))
        outputs = self._network.predict_on_batch(rows)
        joint = [softmax(outputs[name]) for name in head_names(self._network)]
        names = views.captions(self._views)

        def prediction(probabilities):
            label, view = divmod(int(probabilities.argmax()), len(names))
            return JointPrediction(
                self._class_names[label], names[view], float(probabilities.max())
            )

        return [
            View(
                name, as_pixels(np.asarray(rows[i])), [prediction(p[i]) for p in joint]
            )
            for i, name in enumerate(names)
        ]


def likeliest(
    probabilities: np.ndarray, class_names: Sequence[str] | None
) -> list[Prediction]:
    """Returns the likeliest classes, the likeliest first.

    Args:
        probabilities: Of shape `(N,)`.
        class_names: Names of the classes, or `None` if they are not known.

    Example:
    >>> likeliest(np.array([0.25, 0.75]), None)[0]
    Prediction(label='class 1', probability=0.75)
    """
    order = np.argsort(-probabilities, kind="stable")[:_TOP]
    names = class_names or [f"class {n}" for n in range(len(probabilities))]
    return [Prediction(str(names[n]), float(probabilities[n])) for n in order]


def timed(function: Callable, *arguments) -> tuple:
    """Returns what a function returns, and how many milliseconds it took.

    Example:
    >>> timed(max, 1, 2)[0]
    2
    """
    start = time.perf_counter()
    result = function(*arguments)
    return result, 1000 * (time.perf_counter() - start)


def warmed_up(answering: Answering) -> Answering:
    """Returns an `Answering` after its first answer, which takes longest.

    Args:
        answering: It is asked about a black image.
    """
    answering(tf.io.encode_png(tf.zeros((32, 32, 3), tf.uint8)).numpy())
    return answering
