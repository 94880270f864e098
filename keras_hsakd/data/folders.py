"""Folders of image files as pipelines."""

import concurrent.futures
import os
import pathlib
import warnings
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_hsakd.data.checks import check_arguments
from keras_hsakd.data.pipelines import Augmentation, rescaling, train_and_test
from keras_hsakd.data.sources import FileSource, decode
from keras_hsakd.data.subsets import choose

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_CORRUPT = ("refuse", "skip", "unchecked")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
_TEST_FOLDERS = ("test", "val", "validation")


def image_folder(
    path: str | os.PathLike,
    batch_size: int = 64,
    image_size: int = 32,
    seed: int = 0,
    flip: bool = True,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    examples_per_class: int | None = None,
    validation: bool = False,
    corrupt: str = "refuse",
    skip: Sequence[str] = (),
    augment: str | None = None,
    crop: str = "padded",
    center_crop: float | None = None,
    label_fraction: float | None = None,
    limit: int | None = None,
    normalize: bool = True,
    with_indices: bool = False,
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Reads a folder of images as a training and a test pipeline.

    The layout is `path/train/<class>/<image>` and `path/test/<class>/<image>`; the
    latter may also be called `val` or `validation`. Images are JPEG, PNG, BMP, GIF or
    WebP files (of an animation, the first frame), decoded as they are needed; grey ones
    get three equal channels, and transparency is dropped. The classes are the folders
    of `path/train`, numbered in sorted order. Names that begin with a dot are passed
    over.

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
        examples_per_class: Int, the number of training images kept of each class,
            chosen by `seed`. Defaults to `None`, which keeps all.
        validation: Bool, whether the second pipeline has, in place of the test images,
            the last 20 % of the training images of each class by file name, whatever
            the `seed`; no test folder is needed. The first pipeline then has the other
            80 %, of which `examples_per_class` are kept. Defaults to `False`.
        corrupt: `"refuse"` decodes every file once and raises an error that names those
            that cannot be; `"skip"` leaves them out with a warning that names them;
            `"unchecked"` does not look, for data too large to decode twice. Defaults to
            `"refuse"`.
        skip: Strings, files to leave out by their path below `path`, as the attribute
            `skipped` of an earlier pipeline has them. Defaults to none.
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
        normalize: Bool, whether `mean` and `std`
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
        the attributes `class_names`, a list of strings, `num_examples`, the number
        of images in a pass, `files`, their paths, and `skipped`, the files left out,
        by their path below `path`.

    Raises:
        ValueError: If an argument is outside its range, there are fewer than two
            classes, a class has no images, the test classes are not all among the
            training ones, or a file cannot be decoded.
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
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise ValueError(
                f"Expected `{name}` to have 3 values, one per channel. "
                f"Received: {name}={values!r}"
            )
    if min(std) <= 0:
        raise ValueError(f"Expected `std` to be > 0. Received: std={std!r}")
    if corrupt not in _CORRUPT:
        raise ValueError(
            f"Expected `corrupt` to be one of {_CORRUPT}. Received: corrupt={corrupt!r}"
        )

    path = pathlib.Path(path)
    if not path.is_dir():
        raise FileNotFoundError(
            f"Expected `path` to be an existing folder. Received: path={str(path)!r}"
        )
    train_files = _files_by_class(_subfolder(path, ("train",)))
    class_names = list(train_files)
    if len(class_names) < 2:
        raise ValueError(
            f"Expected at least two class folders in {str(path / 'train')!r}. "
            f"Received: {class_names}"
        )
    test_files = {}
    if not validation:
        test_files = _files_by_class(_subfolder(path, _TEST_FOLDERS))
    unknown = [name for name in test_files if name not in train_files]
    if unknown:
        raise ValueError(
            f"Expected the test classes of `path` to be among the training classes "
            f"{class_names}. Received: {unknown}"
        )
    parts = {
        part: _without(files, path, skip)
        for part, files in (("train", train_files), ("test", test_files))
    }
    if corrupt != "unchecked":
        every = [
            f for files in parts.values() for group in files.values() for f in group
        ]
        bad = undecodable(every, corrupt)
        skip = sorted({*skip, *(os.path.relpath(file, path) for file in bad)})
        parts = {part: _without(files, path, skip) for part, files in parts.items()}

    def examples(files_by_class):
        pairs = [
            (file, class_names.index(name))
            for name, files in files_by_class.items()
            for file in files
        ]
        files, labels = zip(*pairs, strict=True)
        return np.array(files), np.array(labels)

    train, test = choose(
        examples(parts["train"]),
        None if validation else examples(parts["test"]),
        validation,
        examples_per_class,
        seed,
        label_fraction,
        limit,
    )
    datasets = train_and_test(
        FileSource(*train, image_size),
        FileSource(*test, image_size),
        batch_size,
        seed,
        Augmentation(crop, flip, augment),
        rescaling(mean, std) if normalize else None,
        class_names,
        center_crop,
        with_indices,
    )
    for dataset, (files, _) in zip(datasets, (train, test), strict=True):
        dataset.files, dataset.skipped = files.tolist(), list(skip)
    return datasets


def undecodable(files: Sequence[str], corrupt: str) -> list[str]:
    """Returns the files that cannot be decoded, with a warning that names them.

    Args:
        files: Paths of image files.
        corrupt: `"skip"`, or `"refuse"` for an error in place of the warning.

    Returns:
        A list of paths.

    Raises:
        ValueError: With `"refuse"`, if there are any; names them.
    """
    with concurrent.futures.ThreadPoolExecutor() as pool:
        reasons = dict(zip(files, pool.map(_why_corrupt, files), strict=True))
    bad = {file: reason for file, reason in reasons.items() if reason}
    if not bad:
        return []
    shown = ", ".join(f"'{file}' ({reason})" for file, reason in [*bad.items()][:5])
    shown += ", ..." if len(bad) > 5 else ""
    if corrupt == "refuse":
        raise ValueError(
            "Expected each file to be a whole image; corrupt='skip' leaves others out. "
            f"Received: {len(bad)} of {len(files)} that cannot be decoded: {shown}"
        )
    warnings.warn(
        f"Skipped {len(bad)} of {len(files)} files that cannot be decoded: {shown}",
        stacklevel=3,
    )
    return list(bad)


def _without(files_by_class, path, skip):
    """Returns the files of each class but those to skip, at least one of each."""
    if not skip:
        return files_by_class
    skipped = {os.path.join(path, file) for file in skip}
    kept = {
        name: [file for file in files if file not in skipped]
        for name, files in files_by_class.items()
    }
    for name, files in kept.items():
        if not files:
            raise ValueError(
                "Expected each class folder to have an image that can be decoded. "
                f"Received: none in class '{name}'"
            )
    return kept


def _why_corrupt(file):
    """Returns why a file cannot be decoded, or an empty string."""
    try:
        decode(tf.io.read_file(file))
    except (tf.errors.OpError, ValueError) as error:
        message = str(getattr(error, "message", error))
        return message.partition("}} ")[2].partition(" [Op:")[0] or message
    return ""


def _subfolder(path: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
    """Returns the first of the folders `names` of `path` that exists."""
    for name in names:
        if (path / name).is_dir():
            return path / name
    raise FileNotFoundError(
        f"Expected `path` to have a folder {' or '.join(map(repr, names))}, with a "
        "folder of images for each class: path/train/<class>/ and path/test/<class>/. "
        f"Received: path={str(path)!r}, which has {_visible_names(path)[:10]}"
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
