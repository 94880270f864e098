"""Folders of image files as pipelines."""

import collections
import os
import pathlib
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_hsakd.data import decoding, keeping
from keras_hsakd.data.arguments import check_class_names
from keras_hsakd.data.decoded_files import Checked
from keras_hsakd.data.pipelines import Augmentation, Feed, identified, known_by
from keras_hsakd.data.sources import FileSource, Source, joined
from keras_hsakd.data.subsets import REST, Selection
from keras_hsakd.sizes import ImageSize

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_CORRUPT = ("refuse", "skip", "unchecked")
_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif")
_SUFFIXES += (".tiff",)
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
    stream: bool | str = False,
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Reads a folder of images as a training and a test pipeline.

    The layout is `path/train/<class>/<image>` and `path/test/<class>/<image>`; the
    latter may also be called `val` or `validation`. The classes are the folders of
    `path/train`, numbered in sorted order; folders below them, and links to folders,
    are read too.

    Where the images fit into a quarter of the memory that is free, they are decoded
    once, at the beginning, and kept as they are or resized; where they do not, in each
    pass. The batches are the same, bit for bit. Images are what a viewer shows:

    - JPEG (`.jpg`, `.jpeg`, `.jpe`, `.jfif`), turned as its EXIF orientation says;
    - PNG, BMP, GIF and WebP, of an animation the first frame;
    - TIFF (`.tif`, `.tiff`), of several pages the first.

    Grey ones get three equal channels, and transparency is dropped. The content of a
    file decides on its format, not its name. An image of more than
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
        corrupt: `"refuse"` decodes every file that is chosen and raises an error that
            names those that cannot be; `"skip"` leaves them out with a warning that
            names them; `"unchecked"` does not look. A file that has not changed since
            it was decoded is not decoded for that again. Defaults to `"refuse"`.
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
        stream: Bool, whether images are read in each pass also where they fit into
            memory; or `"train"`, training images are, and are not looked at before: for
            who measures alone. Defaults to `False`.

    Returns:
        Two `tf.data.Dataset`s, train and test, of `(images, labels)`: float32 of shape
        `(batch, height, width, 3)` and int32 of shape `(batch,)`. Both have the
        attributes `class_names`, a list of strings, `num_examples`, the number
        of images in a pass, `num_unlabeled`, how many of them have the label -1,
        `labels`, an array of them, `files`, the paths of those with labels, and
        `skipped`, the files left out, by their path below `path`, or their whole path
        in `unlabeled`; and `fingerprint`, a function to a checksum of
        the data that are there, whichever of them were chosen, see `docs/data.md`; and
        `kept_bytes`, the memory that the images take, or `None` where they are read in
        each pass.

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
    found = _found(pathlib.Path(path), validation)
    reader = Reader(path, image_size, corrupt, stream)
    train, test, skip = _read(reader, found, selection, feed, skip)
    others, left_out = unlabeled_source(unlabeled, feed, corrupt, skip, stream)
    files = [source.files for source in (train, test)]
    datasets = feed.datasets(joined(train, others), test, found.class_names)
    for dataset, of_source in zip(datasets, files, strict=True):
        dataset.files = of_source

    def all_of(part):
        return _files(*found.examples(part), image_size)

    whole = (
        lambda: joined(all_of(found.train), others),
        lambda: all_of(found.train if validation else found.test),
    )
    return identified(datasets, [*skip, *left_out], whole, found.class_names)


def test_folder(
    path: str | os.PathLike,
    class_names: Sequence[str],
    batch_size: int = 64,
    image_size: ImageSize = 32,
    corrupt: str = "refuse",
    center_crop: float | None = None,
    limit: int | None = None,
    seed: int = 0,
    stream: bool = False,
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
        stream: As in `image_folder`.

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
    files = _files_by_class(folder, passed)
    _check_test_classes(files, class_names, folder)
    found = _Found(path, list(class_names), files, files)
    _say_passed(passed, sum(map(len, files.values())), path)
    selection = Selection(seed, False, None, None, limit, rest=False)
    usual = IMAGENET_MEAN, IMAGENET_STD
    feed = Feed(
        batch_size,
        image_size,
        seed,
        Augmentation(),
        center_crop,
        *usual,
        normalize=False,
        with_indices=False,
        drop_remainder=False,
    )
    reader = Reader(path, image_size, corrupt, stream)
    source, skip = reader.read(*found.chosen(selection, ())[1], feed.kept_test), []
    if reader.bad:
        _say_bad(reader.bad, len(source.files), corrupt)
        skip = [os.path.relpath(file, path) for file in reader.bad]
        reader.begin()
        source = reader.read(*found.chosen(selection, skip)[1], feed.kept_test)
    files_read = source.files
    _, test = feed.datasets(source, source, list(class_names))
    test.files, test.skipped = files_read, skip
    test.fingerprint = known_by(
        lambda: _files(*found.examples(files), image_size), class_names
    )
    return test


class _Found(NamedTuple):
    """The files of a folder, by class."""

    path: pathlib.Path
    class_names: list[str]
    train: dict[str, list[str]]
    test: dict[str, list[str]]

    def examples(self, part):
        """Returns files and labels as arrays."""
        pairs = [
            (file, label)
            for label, name in enumerate(self.class_names)
            for file in part.get(name, ())
        ]
        files, labels = zip(*pairs, strict=True)
        return np.array(files, object), np.array(labels)  # text would be copied

    def chosen(self, selection, skip):
        """Returns the examples to train on and to measure on, without some files."""
        train, test = (
            self.examples(_without(part, self.path, skip)) if part else None
            for part in (self.train, self.test)
        )
        return selection.of(train, test)

    def all_files(self):
        """Returns all files."""
        groups = [*self.train.values(), *self.test.values()]
        return [file for group in groups for file in group]


def _found(path, validation):
    """Returns what there is in a folder; says what is passed over."""
    if not path.is_dir():
        raise FileNotFoundError(
            f"Expected `path` to be an existing folder. Received: path={str(path)!r}"
        )
    passed = collections.Counter()
    train = _files_by_class(_subfolder(path, ("train",)), passed)
    class_names = list(train)
    check_class_names(class_names, str(path))
    if len(class_names) < 2:
        raise ValueError(
            f"Expected at least two class folders in {str(path / 'train')!r}. "
            f"Received: {class_names}"
        )
    test = {}
    if not validation:
        test_folder = _subfolder(path, _TEST_FOLDERS)
        test = _files_by_class(test_folder, passed)
        _check_test_classes(test, class_names, test_folder)
    found = _Found(path, class_names, train, test)
    _say_passed(passed, len(found.all_files()), path)
    return found


def _read(reader, found, selection, feed, skip):
    """Returns sources of the chosen images, and the files that are left out."""

    def read(skip):
        # Chosen before files are decoded, for its errors.
        train, test = found.chosen(selection, skip)
        reader.begin()
        return (
            reader.read(*train, feed.kept_train, is_train=True),
            reader.read(*test, feed.kept_test),
        )

    sources = read(skip)
    files, bad = [file for source in sources for file in source.files], reader.bad
    if bad and not selection.is_of_all and reader.corrupt == "skip":
        # Another choice comes of it, of files that have not been read.
        files = found.all_files()
        bad = reader.undecodable(files)
    if bad:
        _say_bad(bad, len(files), reader.corrupt)
        skip = sorted({*skip, *(os.path.relpath(file, found.path) for file in bad)})
        del sources  # before there is room for others
        sources = read(skip)
    return *sources, list(skip)


class Reader:
    """Reads the files of a folder: checks them, and keeps them where they fit.

    Args:
        folder: Path of the folder.
        image_size: Of the sources.
        corrupt: As in `image_folder`.
        stream: As in `image_folder`.

    Attributes:
        bad: Files that could not be decoded, of those read since `begin`.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        image_size: ImageSize,
        corrupt: str,
        stream: bool | str,
    ):
        self.corrupt = corrupt
        self._image_size, self._stream = image_size, stream
        self._checked = Checked(folder)
        self.begin()

    def begin(self) -> None:
        """Begins to read, with as much room as there is now."""
        self._room, self.bad = keeping.room(), []

    def read(
        self,
        files: Sequence[str],
        labels: Sequence[int],
        keep: Callable[[Source, int], tuple[Source | None, np.ndarray]],
        is_train: bool = False,
    ) -> Source:
        """Returns the source of files, kept where it can be.

        Args:
            files: Paths.
            labels: Their labels.
            keep: `Feed.kept_train` or `Feed.kept_test`.
            is_train: Whether they are training images. Defaults to `False`.
        """
        source = _files(files, labels, self._image_size)
        if self._stream == "train" and is_train:
            return source
        keys, decoded = self._checked.keys(files), np.zeros(len(files), bool)
        if self._stream is not True and keys.all():  # what is no file might be a pipe
            kept, decoded = keep(source, self._room)
            self._checked.add(keys[decoded])
            if kept is not None:
                self._room -= kept.num_bytes
                kept.files = source.files
                return kept
        if self.corrupt != "unchecked":
            self.bad += self._undecodable(source, keys, decoded)
        return source

    def undecodable(self, files: Sequence[str]) -> list[str]:
        """Returns the files that cannot be decoded."""
        source = _files(files, np.zeros(len(files)), self._image_size)
        keys = self._checked.keys(files)
        return self._undecodable(source, keys, np.zeros(len(files), bool))

    def _undecodable(self, source, keys, decoded):
        decoded = decoded | self._checked.has(keys)
        unknown = np.flatnonzero(~decoded & (keys > 0))
        decoded[keeping.decodable(source, unknown)] = True
        self._checked.add(keys[decoded])
        return [source.files[index] for index in np.flatnonzero(~decoded)]


def check_reading(corrupt: str, stream: bool | str) -> None:
    """Raises a ValueError unless these are what `image_folder` takes."""
    if stream not in (False, True, "train"):
        raise ValueError(
            f"Expected `stream` to be a bool or 'train'. Received: stream={stream!r}"
        )
    if corrupt not in _CORRUPT:
        raise ValueError(
            f"Expected `corrupt` to be one of {_CORRUPT}. Received: corrupt={corrupt!r}"
        )


def unlabeled_source(
    folder: str | os.PathLike | None,
    feed: Feed,
    corrupt: str = "refuse",
    skip: Sequence[str] = (),
    stream: bool | str = False,
) -> tuple[Source | None, list[str]]:
    """Returns the images of a folder as a source, labelled -1.

    Args:
        folder: String or path-like, the folder; its images may lie at any depth.
            `None` and `"rest"` have none.
        feed: What becomes of the images.
        corrupt: As in `image_folder`. Defaults to `"refuse"`.
        skip: Paths of files to leave out. Defaults to none.
        stream: As in `image_folder`. Defaults to `False`.

    Returns:
        The `Source`, or `None`, and the paths of the files that were left out as they
        could not be decoded.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no images, or one that cannot be decoded.
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
    reader = Reader(folder, feed.image_size, corrupt, stream)

    def read(files):
        if not files:
            raise ValueError(
                f"Expected `unlabeled` to have images {_SUFFIXES}, at any depth. "
                f"Received: none in '{_shown(folder)}'"
            )
        reader.begin()
        return reader.read(files, [-1] * len(files), feed.kept_train, is_train=True)

    source, left_out = read(files), reader.bad
    if left_out:
        _say_bad(left_out, len(files), corrupt)
        bad = set(left_out)
        source = read([file for file in files if file not in bad])
    return source, left_out


def _files(files, labels, image_size):
    # As bytes, since names need not be UTF-8.
    source = FileSource([os.fsencode(file) for file in files], labels, image_size)
    source.files = list(files)
    return source


def _say_passed(passed, count, folder):
    """Warns of the files that were passed over, beside `count` images."""
    if passed:
        warnings.warn(
            f"Passed over {passed.total()} of {count + passed.total()} files below "
            f"'{_shown(str(folder))}': "
            + ", ".join(f"{number} {what}" for what, number in passed.most_common()),
            stacklevel=4,
        )


def check_files(files: Sequence[str]) -> None:
    """Raises a ValueError that names the files that cannot be decoded, if any."""
    source = _files(files, np.zeros(len(files)), 1)
    good = keeping.decodable(source, np.arange(len(files)))
    bad = np.delete(np.array(files, object), good)
    if len(bad):
        _say_bad(list(bad), len(files), "refuse")


def _say_bad(bad, count, corrupt):
    """Says which of `count` files cannot be decoded, by a warning or an error."""
    shown = ", ".join(f"'{_shown(f)}' ({_why_corrupt(f)})" for f in bad[:5])
    shown += ", ..." if len(bad) > 5 else ""
    if corrupt == "refuse":
        raise ValueError(
            "Expected each file to be a whole image; corrupt='skip' leaves others out. "
            f"Received: {len(bad)} of {count} that cannot be decoded: {shown}"
        )
    warnings.warn(
        f"Skipped {len(bad)} of {count} files that cannot be decoded: {shown}",
        stacklevel=4,
    )


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


def _why_corrupt(file):
    """Returns why a file cannot be decoded."""
    if os.path.exists(file) and not os.path.isfile(file):
        return "Expected a file. Received: a folder or a device"
    try:
        content = pathlib.Path(file).read_bytes()
        with tf.device("CPU"):
            decoding.decode_file(content, os.fsencode(file))
    except OSError as error:
        return error.strerror
    except tf.errors.OpError as error:
        return decoding.why(error).removesuffix(f" in '{_shown(file)}'")
    return "Expected a file that does not change. Received: one that has"


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
