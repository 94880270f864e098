"""The named data sets: one row each in a table, and `load`."""

import dataclasses
import functools
import glob
import os
import types
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_hsakd.data import keeping
from keras_hsakd.data.arguments import check_answer
from keras_hsakd.data.folders import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    check_reading,
    unlabeled_source,
)
from keras_hsakd.data.pipelines import Augmentation, Feed, identified, rescaling
from keras_hsakd.data.sources import ArraySource, joined
from keras_hsakd.data.subsets import REST, Examples, Selection, hold_out
from keras_hsakd.data.tfds import TfdsRecords, TfdsSource, is_tfds
from keras_hsakd.optional import optional_module
from keras_hsakd.sizes import ImageSize
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


def _read_digits(
    name: str, data_dir: str | None
) -> tuple[Examples, Examples, list[str]]:
    datasets = optional_module(
        "sklearn.datasets", f"name={name!r}", "'keras_hsakd[demo]'"
    )
    digits = datasets.load_digits()
    images = np.round(digits.images * (255 / 16)).astype("uint8")
    images = np.repeat(images[..., np.newaxis], 3, axis=-1)
    train, test = hold_out(images, digits.target, _DIGITS_TEST_FRACTION)
    return train, test, [str(digit) for digit in range(10)]


def _read_tfds(name: str, data_dir: str | None) -> tuple[Examples, Examples, list[str]]:
    tfds = optional_module(
        "tensorflow_datasets", f"name={name!r}", "tensorflow-datasets"
    )
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
        check_answer(_ARCHIVES[name])


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


# What holds for those of TensorFlow Datasets where nothing is said: as for a folder.
_OF_TFDS = types.SimpleNamespace(
    image_size=32, mean=IMAGENET_MEAN, std=IMAGENET_STD, flip=True
)


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
    if name not in _DATASETS:
        hint = did_you_mean(str(name).lower(), names(), most=1)
        raise ValueError(
            f"Expected `name` to be one of {names()}, or `tfds:` and the name of a "
            f"data set of tensorflow-datasets. Received: {name!r}{hint}"
        )
    return _DATASETS[name][0]


def load(
    name: str,
    batch_size: int = 64,
    image_size: ImageSize | None = None,
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
    train_split: str | None = None,
    test_split: str | None = None,
    flip: bool | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    unlabeled: str | os.PathLike | None = None,
    corrupt: str = "refuse",
    skip: Sequence[str] = (),
    drop_remainder: bool = False,
    stream: bool | str = False,
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Loads a named data set as a training and a test pipeline.

    Both yield normalised images with their labels. The training images are shuffled
    anew in each pass, padded by an eighth of their size and cropped at random, and
    flipped at random where a mirrored image still belongs to its class. All of this is
    a function of `(seed, epoch, image)`; the epoch is `train.epoch_counter.value`, an
    `EpochCounter`.

    CIFAR and STL-10 are read with `tensorflow-datasets`, which downloads them when it
    has to. The digits are 8 x 8 images that come with scikit-learn: no download.

    `"tfds:oxford_flowers102"` is any image classification data set of
    `tensorflow-datasets`, by its name, also with configuration and version as in
    `"tfds:eurosat/rgb:2.0.0"`. Its images, of any sizes, are read one by one when their
    turn comes, so it must be prepared in the format `array_record`, as it is where it
    is downloaded here. Its own features tell image, label and the names of the classes.

    Args:
        name: String, one of `names()`, or `"tfds:"` and the name of a data set.
        batch_size: Int; the last batch of a pass may be smaller. Defaults to 64.
        image_size: Int, at least 8, height and width of the images, or
            (height, width). Defaults to `info(name).image_size`, or 32 for `tfds:`.
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
            square at its centre (224 / 256 for ImageNet); of images that are not to be
            square, the part of each side of the largest part of their shape. Defaults
            to `None`, which resizes the whole image.
        label_fraction: Float, the part of each class of the training images that is
            kept, chosen by `seed`. Defaults to `None`, which keeps all.
        limit: Int, the most training images, and test images, that are kept, chosen
            by `seed`; for trying things out. Defaults to `None`.
        normalize: Bool, whether `mean` and `std` are subtracted and divided by;
            otherwise images have values from 0 to 255, uint8 where they keep the size
            that they have in the data, else float32. Defaults to `True`.
        with_indices: Bool, whether the first part of a batch is a dict of `images` and
            their `indices`, int64 of shape `(batch,)`: the places of the images in the
            pipeline's data, the same in every pass. Trainers take images alone; map
            such a pipeline to what they take. Defaults to `False`.
        train_split: String, for `tfds:`, the split to train on, as
            `tensorflow-datasets` writes it: `"train[:80%]"`. Defaults to `None`,
            `"train"`.
        test_split: String, for `tfds:`, the split of the test images. Defaults to
            `None`: `"test"`, or else `"validation"`, whichever is there and has labels;
            where neither is, the last 20 % of each class of the training split, with a
            warning.
        flip: Bool, whether training images are flipped at random. Defaults to
            `info(name).flip`, or `True` for `tfds:`.
        mean: Three floats, subtracted per channel, on the scale from 0 to 1. Defaults
            to `info(name).mean`, or the mean of ImageNet for `tfds:`.
        std: Three floats, divided by, on the same scale. Defaults to `info(name).std`,
            or the standard deviation of ImageNet for `tfds:`.
        unlabeled: String or path-like, a folder with more images, see `image_folder`,
            that are trained on with the label -1: a `Distiller` takes them. None of
            them is left out by `examples_per_class`, `label_fraction` or `limit`. Or
            `"rest"`: the training images that `examples_per_class` or `label_fraction`
            would leave out; not for `tfds:`. Defaults to `None`.
        corrupt: What to do about files in `unlabeled` that cannot be decoded, see
            `image_folder`. Defaults to `"refuse"`.
        skip: Strings, files in `unlabeled` to leave out, as the attribute `skipped` of
            an earlier pipeline has them. Defaults to none.
        drop_remainder: Bool, whether the training images of a pass that fill no batch
            are left out of it; others in each pass. Defaults to `False`.
        stream: Whether images of `tfds:` and `unlabeled` are read in each pass also
            where they fit into memory, see `image_folder`. Defaults to `False`.

    Returns:
        Two `tf.data.Dataset`s, train and test, of `(images, labels)`: float32 of shape
        `(batch, height, width, 3)` and int32 of shape `(batch,)`. Both have the
        attributes `class_names`, a list of strings, `num_examples`, the number
        of images in a pass, `num_unlabeled`, how many of them have the label -1,
        `labels`, an array of them or `None` where they are read with the images, and
        `skipped`, the files of `unlabeled` that were left out; and `fingerprint`, a
        function to a checksum of the data that are there, whichever of them were
        chosen, see `docs/data.md`; and `kept_bytes`, see `image_folder`.

    Raises:
        ValueError: If an argument is outside its range, or `name` is a data set of
            something else than images with a class each.
        ImportError: If the package that the data set is read with is not installed.
        FileNotFoundError: If the data set is not there and cannot be downloaded, or
            `unlabeled` is not there.

    Example:
    >>> train, test = load("digits", batch_size=32, examples_per_class=20)
    >>> images, labels = next(iter(train))
    >>> images.shape, labels.shape
    (TensorShape([32, 32, 32, 3]), TensorShape([32]))
    """
    usual = _OF_TFDS if is_tfds(name) else info(name)
    image_size = usual.image_size if image_size is None else image_size
    flip = usual.flip if flip is None else flip
    mean = usual.mean if mean is None else mean
    std = usual.std if std is None else std
    selection = Selection(
        seed, validation, examples_per_class, label_fraction, limit, unlabeled == REST
    )
    augmentation = Augmentation(crop, flip, augment)
    feed = Feed(
        batch_size,
        image_size,
        seed,
        augmentation,
        center_crop,
        mean,
        std,
        normalize,
        with_indices,
        drop_remainder,
    )
    check_reading(corrupt, stream)
    found = _read(name, selection, data_dir, train_split, test_split)
    chosen = selection.of(*found.examples)
    train, test = (found.source(*examples, image_size) for examples in chosen)
    others, left_out = unlabeled_source(unlabeled, feed, corrupt, skip, stream)
    if found.records is not None:
        train, test = _kept(train, test, feed, stream)
    datasets = feed.datasets(joined(train, others), test, found.class_names)
    if found.records is not None:
        for dataset, (inputs, _) in zip(datasets, chosen, strict=True):
            dataset.records = found.records.numbers[inputs]
    of_train, of_test = (
        functools.partial(found.source, *examples, image_size)
        for examples in found.examples
    )
    of_test = of_train if validation else of_test
    whole = lambda: joined(of_train(), others), of_test
    return identified(datasets, [*skip, *left_out], whole, found.class_names)


class _Found(NamedTuple):
    """A data set that is there: examples to train on, and to test on."""

    class_names: list[str]
    examples: tuple[Examples, Examples]
    records: TfdsRecords | None = None

    def source(self, inputs, labels, image_size):
        """Returns the source of some examples."""
        if self.records is None:
            return ArraySource(inputs, labels, image_size)
        return TfdsSource(self.records, inputs, image_size)


def _read(name, selection, data_dir, train_split, test_split):
    """Returns the data set of a name."""
    if not is_tfds(name):
        _check_no_splits(name, train_split=train_split, test_split=test_split)
        *examples, class_names = _DATASETS[name][1](name, data_dir)
        return _Found(class_names, tuple(examples))
    if selection.rest:
        raise ValueError(
            "Expected `unlabeled` to be a folder for `tfds:`, which has the labels "
            f"beside the images. Received: unlabeled={REST!r} for name={name!r}"
        )
    records = TfdsRecords(name, data_dir, train_split, test_split)
    labelled = selection.validation or selection.is_of_classes
    return _Found(records.class_names, records.examples(labelled), records)


def _kept(train, test, feed, stream):
    """Returns sources as kept ones, where they fit into memory."""
    room = 0 if stream is True else keeping.room()
    if not stream:
        train = feed.kept_train(train, room)[0] or train
        room -= train.num_bytes or 0
    if stream is not True:
        test = feed.kept_test(test, room)[0] or test
    return train, test


def _check_no_splits(name, **splits):
    for argument, split in splits.items():
        if split is not None:
            raise ValueError(
                f"Expected no `{argument}` for a data set without `tfds:`. "
                f"Received: {argument}={split!r} for name={name!r}"
            )
