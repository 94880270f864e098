"""The named data sets: one row each in a table, and `load`."""

import contextlib
import dataclasses
import glob
import importlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_hsakd.data.checks import check_arguments
from keras_hsakd.data.pipelines import Augmentation, rescaling, train_and_test
from keras_hsakd.data.sources import ArraySource
from keras_hsakd.data.subsets import Examples, choose, hold_out
from keras_hsakd.suggestions import did_you_mean

# Where tensorflow-datasets downloads them from.
_ARCHIVES = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    "stl10": "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
}

# The digits are stored writer after writer: of each class the last 4 / 9 are tested,
# so that train and test hardly share a hand.
_DIGITS_TEST_FRACTION = 4 / 9


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


def _read_digits(
    name: str, data_dir: str | None
) -> tuple[Examples, Examples, list[str]]:
    datasets = _optional_module("sklearn.datasets", "'keras_hsakd[demo]'", name)
    digits = datasets.load_digits()
    images = np.round(digits.images * (255 / 16)).astype("uint8")
    images = np.repeat(images[..., np.newaxis], 3, axis=-1)
    train, test = hold_out(images, digits.target, _DIGITS_TEST_FRACTION)
    return train, test, [str(digit) for digit in range(10)]


def _read_tfds(name: str, data_dir: str | None) -> tuple[Examples, Examples, list[str]]:
    tfds = _optional_module("tensorflow_datasets", "tensorflow-datasets", name)
    folder = os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)
    try:
        _check_obtainable(folder, name)
        splits, dataset_info = tfds.load(
            name,
            split=["train", "test"],
            batch_size=-1,
            as_supervised=True,
            data_dir=data_dir,
            with_info=True,
        )
    # A failed preparation shows as anything from `OSError` to `AssertionError`.
    except Exception as error:
        archive = os.path.basename(_ARCHIVES[name])
        manual = os.path.join(folder, "downloads", "manual", archive)
        raise FileNotFoundError(
            f"Expected the data set {name!r}, prepared by tensorflow-datasets, in "
            f"{os.path.join(folder, name)!r} (argument `data_dir`), or a network to "
            f"download it. Received: {type(error).__name__}: {error}\nRun `tfds build "
            f"{name} --data_dir {folder}` on a machine with a network and copy "
            f"that folder here, or put the original archive at {manual!r}."
        ) from error
    train, test = (tuple(np.asarray(array) for array in split) for split in splits)
    return train, test, list(dataset_info.features["label"].names)


def _check_obtainable(folder: str, name: str) -> None:
    """Raises an OSError where tensorflow-datasets would retry for minutes in vain."""
    archive = os.path.basename(_ARCHIVES[name]).partition(".")[0]
    downloads = os.path.join(glob.escape(folder), "downloads", "**", f"*{archive}*")
    there = os.path.isdir(os.path.join(folder, name))
    if not there and not glob.glob(downloads, recursive=True):
        # It respects the proxies of the environment, as tensorflow-datasets does.
        request = urllib.request.Request(_ARCHIVES[name], method="HEAD")
        with contextlib.suppress(urllib.error.HTTPError):  # there is an answer
            urllib.request.urlopen(request, timeout=10).close()


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
        (
            # Normalised as the authors' linear evaluation does it.
            DatasetInfo(
                name="stl10",
                num_classes=10,
                image_size=96,
                mean=(0.5, 0.5, 0.5),
                std=(0.5, 0.5, 0.5),
                flip=True,
            ),
            _read_tfds,
        ),
    ]
}


def names() -> list[str]:
    """Returns the names that `load` knows.

    Returns:
        A sorted list of strings.

    Example:
    >>> names()
    ['cifar10', 'cifar100', 'digits', 'stl10']
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
    augment: str | None = None,
    crop: str = "padded",
    center_crop: float | None = None,
    label_fraction: float | None = None,
    limit: int | None = None,
    normalize: bool = True,
    with_indices: bool = False,
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Loads a named data set as a training and a test pipeline.

    Both yield normalised images with their labels. The training images are shuffled
    anew in each pass, padded by an eighth of their size and cropped at random, and
    flipped at random where `info(name).flip` says so. All of this is a function of
    `(seed, epoch, image)`; the epoch is `train.epoch_counter.value`, an `EpochCounter`.

    CIFAR and STL-10 are read with `tensorflow-datasets`, which downloads them when it
    has to. The digits are 8 x 8 images that come with scikit-learn: no download.

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
        augment: `"rand_augment"` for stronger augmentation of the training images, see
            `rand_augment`. Defaults to `None`.
        crop: `"padded"`, training images are padded by an eighth of their size and
            cropped at random; or `"resized"`, a random part of the image as it is in
            the data is resized, as for ImageNet. Defaults to `"padded"`.
        center_crop: Float, the part of a test image's shorter side that is kept, in a
            square at its centre (224 / 256 for ImageNet). Defaults to `None`, which
            resizes the whole image.
        label_fraction: Float, the part of each class of the training images that is
            kept, chosen by `seed`. Defaults to `None`, which keeps all.
        limit: Int, the most training images, and test images, that are kept, chosen
            by `seed`; for trying things out. Defaults to `None`.
        normalize: Bool, whether `info(name).mean` and `info(name).std`
            are subtracted and divided by; otherwise images have values from 0 to 255,
            uint8 where they keep the size that they have in the data, else float32.
            Defaults to `True`.
        with_indices: Bool, whether the first part of a batch is a dict of `images` and
            their `indices`, int64 of shape `(batch,)`: the places of the images in the
            pipeline's data, the same in every pass. Trainers take images alone; map
            such a pipeline to what they take. Defaults to `False`.

    Returns:
        Two `tf.data.Dataset`s, train and test, of `(images, labels)`: float32 of shape
        `(batch, image_size, image_size, 3)` and int32 of shape `(batch,)`. Both have
        the attributes `class_names`, a list of strings, and `num_examples`, the number
        of images in a pass.

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
    check_arguments(
        batch_size,
        image_size,
        seed,
        examples_per_class,
        label_fraction,
        limit,
        augment,
        crop,
        center_crop,
    )

    train, test, class_names = read(name, data_dir)
    train, test = choose(
        train, test, validation, examples_per_class, seed, label_fraction, limit
    )
    return train_and_test(
        ArraySource(*train, image_size),
        ArraySource(*test, image_size),
        batch_size,
        seed,
        Augmentation(crop, row.flip, augment),
        row.preprocessing() if normalize else None,
        class_names,
        center_crop,
        with_indices,
    )


def _row(name: str) -> tuple[DatasetInfo, Callable]:
    if name not in _DATASETS:
        hint = did_you_mean(str(name).lower(), names(), most=1)
        raise ValueError(
            f"Expected `name` to be one of {names()}. Received: {name!r}{hint}"
        )
    return _DATASETS[name]
