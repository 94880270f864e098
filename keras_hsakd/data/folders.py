"""Folders of image files as pipelines."""

import os
import pathlib
from collections.abc import Sequence

import tensorflow as tf

from keras_hsakd.data.checks import check_integer
from keras_hsakd.data.pipelines import rescaling, train_and_test
from keras_hsakd.data.sources import FileSource

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
_TEST_FOLDERS = ("test", "val", "validation")


def image_folder(
    path: str | os.PathLike,
    batch_size: int = 64,
    image_size: int = 32,
    seed: int = 0,
    flip: bool = True,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Reads a folder of images as a training and a test pipeline.

    The layout is `path/train/<class>/<image>` and `path/test/<class>/<image>`; the
    latter may also be called `val` or `validation`. Images are JPEG, PNG, BMP or GIF
    files (of an animation, the first frame), decoded as they are needed. The classes
    are the folders of `path/train`, numbered in sorted order; `train.class_names` is
    the list of them. Names that begin with a dot are passed over.

    The pipelines are as those of `load`, with the same shuffling and augmentation.

    Args:
        path: String or path-like, the folder.
        batch_size: Int; the last batch of a pass may be smaller. Defaults to 64.
        image_size: Int, at least 8, height and width that each whole image is resized
            to. Defaults to 32.
        seed: Int, not negative. Defaults to 0.
        flip: Bool, whether training images are flipped at random. Defaults to `True`.
        mean: Three floats, subtracted per channel, on the scale from 0 to 1. Defaults
            to the mean of ImageNet.
        std: Three floats, divided by, on the same scale. Defaults to the standard
            deviation of ImageNet.

    Returns:
        Two `tf.data.Dataset`s, train and test, of `(images, labels)`: float32 of shape
        `(batch, image_size, image_size, 3)` and int32 of shape `(batch,)`.

    Raises:
        ValueError: If an argument is outside its range, there are fewer than two
            classes, a class has no images, or the test classes are not all among the
            training ones.
        FileNotFoundError: If `path`, its training or its test folder is missing.

    Example:
    >>> import tempfile
    >>> path = tempfile.mkdtemp()
    >>> image = tf.io.encode_png(tf.zeros((40, 50, 3), tf.uint8))
    >>> for file in ("train/cat/1", "train/dog/1", "test/dog/1"):
    ...     tf.io.write_file(f"{path}/{file}.png", image)
    >>> train, test = image_folder(path, image_size=32)
    >>> train.class_names
    ['cat', 'dog']
    """
    check_integer("batch_size", batch_size, 1)
    check_integer("image_size", image_size, 8)
    check_integer("seed", seed, 0)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise ValueError(
                f"Expected `{name}` to have 3 values, one per channel. "
                f"Received: {name}={values!r}"
            )
    if min(std) <= 0:
        raise ValueError(f"Expected `std` to be > 0. Received: std={std!r}")

    path = pathlib.Path(path)
    if not path.is_dir():
        raise FileNotFoundError(
            f"Expected `path` to be an existing folder. Received: path={str(path)!r}"
        )
    train_files = _files_by_class(_subfolder(path, ("train",)))
    test_files = _files_by_class(_subfolder(path, _TEST_FOLDERS))
    class_names = list(train_files)
    if len(class_names) < 2:
        raise ValueError(
            f"Expected at least two class folders in {str(path / 'train')!r}. "
            f"Received: {class_names}"
        )
    unknown = [name for name in test_files if name not in train_files]
    if unknown:
        raise ValueError(
            f"Expected the test classes of `path` to be among the training classes "
            f"{class_names}. Received: {unknown}"
        )

    def source(files_by_class):
        examples = [
            (file, class_names.index(name))
            for name, files in files_by_class.items()
            for file in files
        ]
        return FileSource(*zip(*examples, strict=True), image_size)

    train, test = train_and_test(
        source(train_files),
        source(test_files),
        batch_size,
        seed,
        flip,
        rescaling(mean, std),
    )
    train.class_names = test.class_names = class_names
    return train, test


def _subfolder(path: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
    """Returns the first of the folders `names` of `path` that exists."""
    for name in names:
        if (path / name).is_dir():
            return path / name
    raise FileNotFoundError(
        f"Expected `path` to have a folder {' or '.join(map(repr, names))}. "
        f"Received: path={str(path)!r}, which has {_visible_names(path)}"
    )


def _files_by_class(folder: pathlib.Path) -> dict[str, list[str]]:
    """Returns the image files of each class folder, both in sorted order."""
    files_by_class = {}
    for name in _visible_names(folder):
        if not (folder / name).is_dir():
            continue
        files = [
            str(folder / name / file)
            for file in _visible_names(folder / name)
            if file.lower().endswith(_SUFFIXES)
        ]
        if not files:
            raise ValueError(
                f"Expected each class folder to have images {_SUFFIXES}. "
                f"Received: none in {str(folder / name)!r}"
            )
        files_by_class[name] = files
    return files_by_class


def _visible_names(folder: pathlib.Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))
