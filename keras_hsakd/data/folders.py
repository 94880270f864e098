"""Folders of image files as pipelines."""

import collections
import concurrent.futures
import contextlib
import functools
import os
import pathlib
import threading
import time
import unicodedata
import warnings
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_hsakd.data import decoding
from keras_hsakd.data.checks import (
    check_arguments,
    check_class_names,
    check_normalisation,
)
from keras_hsakd.data.pipelines import (
    Augmentation,
    known_by,
    rescaling,
    train_and_test,
)
from keras_hsakd.data.sources import FileSource, Source, joined
from keras_hsakd.data.subsets import REST, choose
from keras_hsakd.sizes import ImageSize

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_CORRUPT = ("refuse", "skip", "unchecked")
_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp")
_SUFFIXES += decoding.TIFF_ENDINGS
# What systems leave in folders, besides names that begin with a dot.
_SYSTEM = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir")
_SYSTEM += ("$recycle.bin", "#recycle", "system volume information", "lost+found")
_TEST_FOLDERS = ("test", "val", "validation")


def image_folder(
    path: str | os.PathLike,
    batch_size: int = 64,
    image_size: ImageSize = 32,
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
    unlabeled: str | os.PathLike | None = None,
    drop_remainder: bool = False,
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Reads a folder of images as a training and a test pipeline.

    The layout is `path/train/<class>/<image>` and `path/test/<class>/<image>`; the
    latter may also be called `val` or `validation`. The classes are the folders of
    `path/train`, numbered in sorted order; folders below them, and links to folders,
    are read too.

    Images are decoded as they are needed, to what a viewer shows:

    - JPEG (`.jpg`, `.jpeg`, `.jpe`, `.jfif`), turned as its EXIF orientation says;
    - PNG, BMP, GIF and WebP, of an animation the first frame;
    - TIFF (`.tif`, `.tiff`), of several pages the first.

    Grey ones get three equal channels, and transparency is dropped. The content of a
    file decides on its format, not its name, but for TIFF. An image of more than
    100,000,000 pixels is an error, before it is decoded.

    Files of other endings are passed over, with one warning that counts them; names
    that begin with a dot and those of systems, as `__MACOSX` and `Thumbs.db`, in
    silence. Names of classes are compared in Unicode's form NFC.

    The pipelines are as those of `load`, with the same shuffling and augmentation.

    Args:
        path: String or path-like, the folder.
        batch_size: Int; the last batch of a pass may be smaller. Defaults to 64.
        image_size: Int, at least 8, height and width that each whole image is resized
            to, or (height, width). Defaults to 32.
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
        skip: Strings, files to leave out, as the attribute `skipped` of an earlier
            pipeline has them. Defaults to none.
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
        normalize: Bool, whether `mean` and `std`
            are subtracted and divided by; otherwise images have values from 0 to 255,
            uint8 where they keep the size that they have in the data, else float32.
            Defaults to `True`.
        with_indices: Bool, whether the first part of a batch is a dict of `images` and
            their `indices`, int64 of shape `(batch,)`: the places of the images in the
            pipeline's data, the same in every pass. Trainers take images alone; map
            such a pipeline to what they take. Defaults to `False`.
        unlabeled: String or path-like, a folder with more images, at any depth, that
            are trained on with the label -1: a `Distiller` takes them. None of them is
            left out by `examples_per_class`, `label_fraction` or `limit`. Or `"rest"`:
            the training images that `examples_per_class` or `label_fraction` would
            leave out. Defaults to `None`.
        drop_remainder: Bool, whether the training images of a pass that fill no batch
            are left out of it; others in each pass. Defaults to `False`.

    Returns:
        Two `tf.data.Dataset`s, train and test, of `(images, labels)`: float32 of shape
        `(batch, height, width, 3)` and int32 of shape `(batch,)`. Both have the
        attributes `class_names`, a list of strings, `num_examples`, the number
        of images in a pass, `num_unlabeled`, how many of them have the label -1,
        `labels`, an array of them, `files`, the paths of those with labels, and
        `skipped`, the files left out, by their path below `path`, or their whole path
        in `unlabeled`; and `fingerprint`, a function to a checksum of
        the data that are there, whichever of them were chosen, see `docs/data.md`.

    Raises:
        ValueError: If an argument is outside its range, there are fewer than two
            classes, a class has no images, the test classes are not all among the
            training ones, there are too few images to hold any out for `validation`, or
            a file cannot be decoded.
        FileNotFoundError: If `path`, its training or its test folder, or `unlabeled`
            is missing.

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
    check_normalisation(mean, std)
    check_corrupt(corrupt)

    path = pathlib.Path(path)
    if not path.is_dir():
        raise FileNotFoundError(
            f"Expected `path` to be an existing folder. Received: path={str(path)!r}"
        )
    passed = collections.Counter()
    train_files = _files_by_class(_subfolder(path, ("train",)), passed)
    class_names = list(train_files)
    check_class_names(class_names, str(path))
    if len(class_names) < 2:
        raise ValueError(
            f"Expected at least two class folders in {str(path / 'train')!r}. "
            f"Received: {class_names}"
        )
    test_files = {}
    if not validation:
        test_folder = _subfolder(path, _TEST_FOLDERS)
        test_files = _files_by_class(test_folder, passed)
        _check_test_classes(test_files, class_names, test_folder)
    parts = {"train": train_files, "test": test_files}
    count = sum(len(group) for files in parts.values() for group in files.values())
    _say_passed(passed, count, path)

    examples = functools.partial(_examples, class_names=class_names)

    def chosen(skip):
        kept = {part: _without(files, path, skip) for part, files in parts.items()}
        return kept, choose(
            examples(kept["train"]),
            None if validation else examples(kept["test"]),
            validation,
            examples_per_class,
            seed,
            label_fraction,
            limit,
            rest=unlabeled == REST,
        )

    # Chosen before the files are decoded, for its errors, and again without bad ones.
    kept, (train, test) = chosen(skip)
    if corrupt != "unchecked":
        every = [
            f for files in kept.values() for group in files.values() for f in group
        ]
        bad = undecodable(every, corrupt)
        if bad:
            skip = sorted({*skip, *(os.path.relpath(file, path) for file in bad)})
            _, (train, test) = chosen(skip)

    others, left_out = unlabeled_source(unlabeled, image_size, corrupt, skip)
    skip = [*skip, *left_out]
    datasets = train_and_test(
        joined(_files(*train, image_size), others),
        _files(*test, image_size),
        batch_size,
        seed,
        Augmentation(crop, flip, augment),
        rescaling(mean, std) if normalize else None,
        class_names,
        center_crop,
        with_indices,
        drop_remainder,
    )
    for dataset, (files, _) in zip(datasets, (train, test), strict=True):
        dataset.files, dataset.skipped = files.tolist(), list(skip)
    # Known by all that was found, whichever of it was chosen.
    train, test = datasets
    train.fingerprint = known_by(
        lambda: joined(_files(*examples(parts["train"]), image_size), others),
        class_names,
    )
    part = parts["train" if validation else "test"]
    test.fingerprint = known_by(
        lambda: _files(*examples(part), image_size), class_names
    )
    return datasets


def test_folder(
    path: str | os.PathLike,
    class_names: Sequence[str],
    batch_size: int = 64,
    image_size: ImageSize = 32,
    corrupt: str = "refuse",
    center_crop: float | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> tf.data.Dataset:
    """Reads a folder of images to measure on, without any to train on.

    Args:
        path: The folder: `path/test/<class>/<image>`, or `path/<class>/<image>`.
        class_names: Names of the classes, in the order of the labels.
        batch_size: As in `image_folder`.
        image_size: As in `image_folder`.
        corrupt: As in `image_folder`.
        center_crop: As in `image_folder`.
        limit: As in `image_folder`.
        seed: As in `image_folder`.

    Returns:
        The test pipeline of `image_folder`, of images of 0 to 255.

    Raises:
        ValueError: If there are other classes, or a file cannot be decoded.

    Example:
    >>> import tempfile
    >>> path = tempfile.mkdtemp()
    >>> image = tf.io.encode_png(tf.zeros((40, 50, 3), tf.uint8))
    >>> tf.io.write_file(f"{path}/dog/1.png", image)
    >>> test_folder(path, ["cat", "dog"]).labels
    array([1], dtype=int32)
    """
    path = pathlib.Path(path)
    folders = [path / name for name in _TEST_FOLDERS if (path / name).is_dir()]
    folder, passed = [*folders, path][0], collections.Counter()
    found = _files_by_class(folder, passed)
    _check_test_classes(found, class_names, folder)
    _say_passed(passed, sum(map(len, found.values())), path)
    skip = ()
    if corrupt != "unchecked":
        skip = undecodable([f for files in found.values() for f in files], corrupt)
    kept = _examples(_without(found, path, skip), class_names)
    _, (files, labels) = choose(kept, kept, False, None, seed, limit=limit)
    source = _files(files, labels, image_size)
    _, test = train_and_test(
        source, source, batch_size, seed, Augmentation(), None, class_names, center_crop
    )
    test.files, test.skipped = files.tolist(), list(skip)
    test.fingerprint = known_by(
        lambda: _files(*_examples(found, class_names), image_size), class_names
    )
    return test


def _examples(files_by_class, class_names):
    """Returns files of classes, and their labels."""
    pairs = [
        (file, label)
        for label, name in enumerate(class_names)
        for file in files_by_class.get(name, ())
    ]
    files, labels = zip(*pairs, strict=True)
    return np.array(files, object), np.array(labels)  # text would be copied


def check_corrupt(corrupt: str) -> None:
    """Raises a ValueError unless this is what `image_folder` takes as `corrupt`."""
    if corrupt not in _CORRUPT:
        raise ValueError(
            f"Expected `corrupt` to be one of {_CORRUPT}. Received: corrupt={corrupt!r}"
        )


def unlabeled_source(
    folder: str | os.PathLike | None,
    image_size: ImageSize,
    corrupt: str = "refuse",
    skip: Sequence[str] = (),
) -> tuple[Source | None, list[str]]:
    """Returns the images of a folder as a source, labelled -1.

    Args:
        folder: String or path-like, the folder; its images may lie at any depth.
            `None` and `"rest"` have none.
        image_size: Int, height and width of the images, or (height, width).
        corrupt: What to do about files that cannot be decoded, see `image_folder`.
            Defaults to `"refuse"`.
        skip: Paths of files to leave out. Defaults to none.

    Returns:
        The `Source`, or `None`, and the paths of the files that were left out as they
        could not be decoded.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no images, or one that cannot be decoded.

    Example:
    >>> import tempfile
    >>> path = tempfile.mkdtemp()
    >>> image = tf.io.encode_png(tf.zeros((40, 50, 3), tf.uint8))
    >>> tf.io.write_file(f"{path}/holidays/1.png", image)
    >>> source, _ = unlabeled_source(path, image_size=32)
    >>> source.num_unlabeled
    1
    """
    if folder in (None, REST):
        return None, []
    folder = os.path.abspath(folder)
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            "Expected `unlabeled` to be an existing folder. "
            f"Received: unlabeled='{_shown(folder)}'"
        )
    passed = collections.Counter()
    found = list(_images_below(folder, passed, _real_parents(folder)))
    _say_passed(passed, len(found), folder)
    skipped = set(map(_nfc, skip))
    files = [file for file in found if _nfc(file) not in skipped]
    left_out = [] if corrupt == "unchecked" else undecodable(files, corrupt)
    bad = set(left_out)
    files = [file for file in files if file not in bad]
    if not files:
        raise ValueError(
            f"Expected `unlabeled` to have images {_SUFFIXES}, at any depth. "
            f"Received: none in '{_shown(folder)}'"
        )
    return _files(files, np.full(len(files), -1), image_size), left_out


def _files(files, labels, image_size):
    # As bytes, since names need not be UTF-8.
    return FileSource([os.fsencode(file) for file in files], labels, image_size)


def _say_passed(passed, count, folder):
    """Warns of the files that were passed over, beside `count` images."""
    if passed:
        warnings.warn(
            f"Passed over {passed.total()} of {count + passed.total()} files below "
            f"'{_shown(str(folder))}': "
            + ", ".join(f"{number} {what}" for what, number in passed.most_common()),
            stacklevel=3,
        )


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
    why_corrupt = functools.partial(_why_corrupt, turns=_Turns(decoding.MAX_PIXELS))
    with tf.device("CPU"):  # traced once, and not by each thread
        decoding.image_size.get_concrete_function()
        decoding.decode_file.get_concrete_function()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        checked = _with_progress(pool.map(why_corrupt, files), len(files))
        reasons = dict(zip(files, checked, strict=True))
    bad = {file: reason for file, reason in reasons.items() if reason}
    if not bad:
        return []
    shown = ", ".join(f"'{_shown(f)}' ({reason})" for f, reason in [*bad.items()][:5])
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


_SECONDS_UNSAID = 3.0  # that a check may take before it says how far it is


def _with_progress(results, count):
    """Yields results, and shows how many there are, where they take long."""
    began, bar = time.monotonic(), None
    for number, result in enumerate(results, start=1):
        if bar is None and time.monotonic() - began >= _SECONDS_UNSAID:
            print(f"Decoding {count} files to see that each is whole")
            bar = keras.utils.Progbar(count, unit_name="file")
        if bar is not None:
            bar.update(number)
        yield result


def _without(files_by_class, path, skip):
    """Returns the files of each class but those to skip, at least one of each."""
    if not skip:
        return files_by_class
    skipped = {_nfc(os.path.join(path, file)) for file in skip}
    kept = {
        name: [file for file in files if _nfc(file) not in skipped]
        for name, files in files_by_class.items()
    }
    for name, files in kept.items():
        if not files:
            raise ValueError(
                "Expected each class folder to have an image that can be decoded. "
                f"Received: none in class '{name}'"
            )
    return kept


class _Turns:
    """Lets work go on while its weights sum to at most a limit, or it is alone."""

    def __init__(self, limit):
        self._free = self._limit = limit
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, weight):
        weight = min(weight, self._limit)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= weight)
            self._free -= weight
        try:
            yield
        finally:
            with self._changed:
                self._free += weight
                self._changed.notify_all()


def _why_corrupt(file, turns):
    """Returns why a file cannot be decoded, or an empty string."""
    if os.path.exists(file) and not os.path.isfile(file):
        return "Expected a file. Received: a folder or a device"
    try:
        content = pathlib.Path(file).read_bytes()
        with tf.device("CPU"):
            pixels = int(np.prod(decoding.image_size(content))) or decoding.MAX_PIXELS
            with turns.take(pixels):
                decoding.decode_file(content, os.fsencode(file))
    except OSError as error:
        return error.strerror
    except tf.errors.OpError as error:
        return decoding.why(error).removesuffix(f" in '{_shown(file)}'")
    return ""


def _check_test_classes(test_files, class_names, folder):
    """Raises a ValueError unless there are test classes, all of them in training."""
    if not test_files:
        raise ValueError(
            f"Expected a class folder in '{_shown(str(folder))}'. Received: none"
        )
    unknown = [name for name in test_files if name not in class_names]
    if unknown:
        same = {name.casefold(): name for name in class_names}
        alike = [(name, same.get(name.casefold())) for name in unknown]
        raise ValueError(
            f"Expected the test classes of `path` to be among the training classes "
            f"{class_names}. Received: {unknown}"
            + "".join(
                f"; '{name}' and '{other}' differ in upper and lower case"
                for name, other in alike
                if other
            )
        )


def _subfolder(path: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
    """Returns the first of the folders `names` of `path` that exists."""
    for name in names:
        if (path / name).is_dir():
            return path / name
    there = [entry.name for entry in _visible(path)]
    raise FileNotFoundError(
        f"Expected `path` to have a folder {' or '.join(map(repr, names))}, with a "
        "folder of images for each class: path/train/<class>/ and path/test/<class>/. "
        f"Received: path={str(path)!r}, which has {there[:10]}"
    )


def _files_by_class(
    folder: pathlib.Path, passed: collections.Counter
) -> dict[str, list[str]]:
    """Returns the image files of each class folder; counts what is passed over."""
    files_by_class = {}
    for entry in _visible(folder):
        if not os.path.isdir(entry):
            passed[f"{_ending(entry.name)} beside the class folders"] += 1
            continue
        name = _nfc(_shown(entry.name))
        if name in files_by_class:
            raise ValueError(
                "Expected class folders to have different names in Unicode's form NFC. "
                f"Received: two that are '{name}' in '{_shown(str(folder))}'"
            )
        seen = {*_real_parents(entry.path), os.path.realpath(folder)}
        files = list(_images_below(entry.path, passed, seen))
        if not files:
            raise ValueError(
                f"Expected each class folder to have images {_SUFFIXES}. "
                f"Received: none in '{_shown(entry.path)}'"
            )
        files_by_class[name] = files
    return dict(sorted(files_by_class.items()))


def _real_parents(folder: str) -> set[str]:
    """Returns a folder and those it is in: no link in it may lead back to them."""
    real = pathlib.Path(folder).resolve()
    return set(map(str, (real, *real.parents)))


def _images_below(
    folder: str, passed: collections.Counter, seen: set[str]
) -> Iterator[str]:
    """Yields the image files in a folder and in those below it, each folder once."""
    for entry in _visible(folder):
        if entry.name.lower().endswith(_SUFFIXES):
            yield entry.path  # a folder, too: it is one of those that cannot be decoded
        elif os.path.isdir(entry):
            real = os.path.realpath(entry.path)
            if real not in seen:
                seen.add(real)
                yield from _images_below(entry.path, passed, seen)
        else:
            passed[_ending(entry.name)] += 1


def _visible(folder: str | os.PathLike) -> list[os.DirEntry]:
    """Returns what is in a folder in sorted order, but for what systems leave there."""
    with os.scandir(folder) as entries:
        visible = [
            entry
            for entry in entries
            if not entry.name.startswith(".") and entry.name.lower() not in _SYSTEM
        ]
    return sorted(visible, key=lambda entry: entry.name)


def _ending(name: str) -> str:
    return _shown(os.path.splitext(name)[1].lower()) or "without an ending"


def _nfc(name: str) -> str:
    """Returns one of the ways in which Unicode writes the same characters."""
    return unicodedata.normalize("NFC", name)


def _shown(name: str) -> str:
    """Returns a name to print, in which bytes that are no text are escaped."""
    return os.fsencode(name).decode(errors="backslashreplace")
