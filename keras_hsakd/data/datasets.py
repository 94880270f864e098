"""The named data sets: one row each in a table, and `load`."""

import dataclasses
import difflib
import importlib
import os
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_hsakd.data.checks import check_integer
from keras_hsakd.data.pipelines import rescaling, train_and_test
from keras_hsakd.data.sources import ArraySource

Examples = tuple[np.ndarray, np.ndarray]

# The digits are stored writer after writer: of each class the last 4 / 9 are tested,
# so that train and test hardly share a hand.
_DIGITS_TEST_FRACTION = 4 / 9
_VALIDATION_FRACTION = 0.2


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known of a named data set before it is read.

    Attributes:
        name: String, as given to `load`.
        num_classes: Int.
        image_size: Int, the default height and width of its images.
        mean: Tuple of three floats, mean of the training images per channel, on the
            scale from 0 to 1.
        std: Tuple of three floats, their standard deviation on the same scale.
        flip: Bool, whether a mirrored image still belongs to its class.
    """

    name: str
    num_classes: int
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool

    def preprocessing(self) -> keras.layers.Rescaling:
        """Returns the layer from raw images to what the pipelines feed.

        Put it in front of a trained model to serve images with values from 0 to 255.

        Returns:
            A `keras.layers.Rescaling`.

        Example:
        >>> layer = info("cifar100").preprocessing()
        >>> layer(np.zeros((1, 32, 32, 3), "uint8")).shape
        TensorShape([1, 32, 32, 3])
        """
        return rescaling(self.mean, self.std)


def _optional_module(module: str, requirement: str, name: str):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"Expected `{module}` to be installed for name={name!r}. "
            f"Received: {error}. Run: pip install {requirement}"
        ) from error


def _read_digits(name: str, data_dir: str | None) -> tuple[Examples, Examples]:
    datasets = _optional_module("sklearn.datasets", "'keras_hsakd[demo]'", name)
    digits = datasets.load_digits()
    images = np.round(digits.images * (255 / 16)).astype("uint8")
    images = np.repeat(images[..., np.newaxis], 3, axis=-1)
    return _split(images, digits.target, _DIGITS_TEST_FRACTION)


def _read_tfds(name: str, data_dir: str | None) -> tuple[Examples, Examples]:
    tfds = _optional_module("tensorflow_datasets", "tensorflow-datasets", name)
    try:
        splits = tfds.load(
            name,
            split=["train", "test"],
            batch_size=-1,
            as_supervised=True,
            data_dir=data_dir,
        )
    # A failed preparation shows as anything from `OSError` to `AssertionError`.
    except Exception as error:
        folder = os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)
        archive = f"{name.replace('cifar', 'cifar-')}-binary.tar.gz"
        manual = os.path.join(folder, "downloads", "manual", archive)
        raise FileNotFoundError(
            f"Expected the data set {name!r}, prepared by tensorflow-datasets, in "
            f"{os.path.join(folder, name)!r} (argument `data_dir`), or a network to "
            f"download it. Received: {type(error).__name__}: {error}\nRun `tfds build "
            f"{name} --data_dir {folder}` on a machine with a network and copy "
            f"that folder here, or put the original archive at {manual!r}."
        ) from error
    return tuple(tuple(np.asarray(array) for array in split) for split in splits)


_DATASETS: dict[str, tuple[DatasetInfo, Callable]] = {
    row.name: (row, read)
    for row, read in [
        (
            DatasetInfo(
                name="cifar10",
                num_classes=10,
                image_size=32,
                mean=(0.4914, 0.4822, 0.4465),
                std=(0.2470, 0.2435, 0.2616),
                flip=True,
            ),
            _read_tfds,
        ),
        (
            DatasetInfo(
                name="cifar100",
                num_classes=100,
                image_size=32,
                mean=(0.5071, 0.4867, 0.4408),
                std=(0.2675, 0.2565, 0.2761),
                flip=True,
            ),
            _read_tfds,
        ),
        (
            DatasetInfo(
                name="digits",
                num_classes=10,
                image_size=32,
                mean=(0.3071, 0.3071, 0.3071),
                std=(0.3241, 0.3241, 0.3241),
                flip=False,
            ),
            _read_digits,
        ),
    ]
}


def names() -> list[str]:
    """Returns the names that `load` knows.

    Returns:
        A sorted list of strings.

    Example:
    >>> names()
    ['cifar10', 'cifar100', 'digits']
    """
    return sorted(_DATASETS)


def info(name: str) -> DatasetInfo:
    """Returns what is known of a data set, without reading it.

    Args:
        name: String, one of `names()`.

    Returns:
        A `DatasetInfo`.

    Raises:
        ValueError: If `name` is not one of `names()`.

    Example:
    >>> info("cifar100").num_classes
    100
    """
    return _row(name)[0]


def load(
    name: str,
    batch_size: int = 64,
    image_size: int | None = None,
    seed: int = 0,
    examples_per_class: int | None = None,
    validation: bool = False,
    data_dir: str | None = None,
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Loads a named data set as a training and a test pipeline.

    Both yield normalised images with their labels. The training images are shuffled
    anew in each pass, padded by an eighth of their size and cropped at random, and
    flipped at random where `info(name).flip` says so. All of this is a function of
    `(seed, epoch, step)`; the epoch is `train.epoch_counter.value`, an `EpochCounter`.

    CIFAR is read with `tensorflow-datasets`, which downloads it when it has to. The
    digits are 8 x 8 images that come with scikit-learn: no download.

    Args:
        name: String, one of `names()`.
        batch_size: Int; the last batch of a pass may be smaller. Defaults to 64.
        image_size: Int, at least 8, height and width of the images. Defaults to
            `info(name).image_size`.
        seed: Int, not negative. Defaults to 0.
        examples_per_class: Int, the number of training images kept of each class,
            chosen by `seed`. Defaults to `None`, which keeps all.
        validation: Bool, whether the second pipeline has, in place of the test images,
            20 % of the training images, so that settings can be chosen without the
            test set. They are the same ones for every `seed`, and the same share of
            each class. The first pipeline then has the other 80 %, of which
            `examples_per_class` are kept. Defaults to `False`.
        data_dir: String, the folder of `tensorflow-datasets`. Defaults to its own
            default, `~/tensorflow_datasets`. Not used for the digits.

    Returns:
        Two `tf.data.Dataset`s, train and test, of `(images, labels)`: float32 of shape
        `(batch, image_size, image_size, 3)` and int32 of shape `(batch,)`.

    Raises:
        ValueError: If an argument is outside its range.
        ImportError: If the package that the data set is read with is not installed.
        FileNotFoundError: If the data set is not there and cannot be downloaded.

    Example:
    >>> train, test = load("digits", batch_size=32, examples_per_class=20)
    >>> images, labels = next(iter(train))
    >>> images.shape, labels.shape
    (TensorShape([32, 32, 32, 3]), TensorShape([32]))
    """
    row, read = _row(name)
    image_size = row.image_size if image_size is None else image_size
    check_integer("batch_size", batch_size, 1)
    check_integer("image_size", image_size, 8)
    check_integer("seed", seed, 0)
    if examples_per_class is not None:
        check_integer("examples_per_class", examples_per_class, 1)

    train, test = read(name, data_dir)
    if validation:
        train, test = _split(*train, _VALIDATION_FRACTION)
    if examples_per_class is not None:
        train = _few(*train, examples_per_class, seed)
    pair = train_and_test(
        ArraySource(*train, image_size),
        ArraySource(*test, image_size),
        batch_size,
        seed,
        row.flip,
        row.preprocessing(),
    )
    for d in pair:
        d.class_names = [str(i) for i in range(row.num_classes)]
    return pair


def _row(name: str) -> tuple[DatasetInfo, Callable]:
    if name not in _DATASETS:
        near = difflib.get_close_matches(str(name).lower(), names(), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"Expected `name` to be one of {names()}. Received: {name!r}{hint}"
        )
    return _DATASETS[name]


def _ranks(labels: np.ndarray) -> np.ndarray:
    """Returns the place of each example among those of its class."""
    counts = np.bincount(labels)
    ranks = np.empty_like(labels)
    ranks[np.argsort(labels, kind="stable")] = np.concatenate(
        [np.arange(count) for count in counts]
    )
    return ranks


def _split(
    images: np.ndarray, labels: np.ndarray, fraction: float
) -> tuple[Examples, Examples]:
    """Holds out the last `fraction` of each class, in the order of storage."""
    kept = np.round(np.bincount(labels) * (1 - fraction))
    held_out = _ranks(labels) >= kept[labels]
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])


def _few(
    images: np.ndarray, labels: np.ndarray, examples_per_class: int, seed: int
) -> Examples:
    """Keeps `examples_per_class` random examples of each class."""
    fewest = np.bincount(labels).min()
    if examples_per_class > fewest:
        raise ValueError(
            f"Expected `examples_per_class` to be at most {fewest}, the size of the "
            f"smallest class. Received: examples_per_class={examples_per_class}"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = np.sort(order[_ranks(labels[order]) < examples_per_class])
    return images[chosen], labels[chosen]
