"""From data settings to pipelines, and whether those suit a run."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_hsakd import data
from keras_hsakd.data import decoding
from keras_hsakd.data.folders import check_files, test_folder
from keras_hsakd.data.shared import shared
from keras_hsakd.data.subsets import REST
from keras_hsakd.data.tfds import is_tfds
from keras_hsakd.figures import amount
from keras_hsakd.runs.folder import Run
from keras_hsakd.runs.settings import DataSettings
from keras_hsakd.sizes import ImageSize, as_json, simplest, written

# By kind of data, the settings that only others have.
_NAMED, _TFDS, _FOLDER = "a named data set", "a data set of `tfds:`", "a folder"
_SPLITS = ("train_split", "test_split")
_ONLY_OTHERS = {
    _NAMED: ("flip", "mean", "std", "corrupt", *_SPLITS),
    _TFDS: ("corrupt",),
    _FOLDER: ("data_dir", *_SPLITS),
}
# What TensorFlow raises where a file is no image, is gone, or may not be read.
_OF_A_FILE = (
    tf.errors.FailedPreconditionError,
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
)
# How images are found and read, which belongs to the place where they are.
_OF_A_PLACE = sorted({name for names in _ONLY_OTHERS.values() for name in names})


class Images(NamedTuple):
    """The two pipelines, what they were told, and what they have in common.

    The pipelines feed images of 0 to 255; networks normalise them, each its own way.

    Attributes:
        settings: What was asked for.
        train: Training images.
        test: Images to measure on.
        image_size: Height and width, one number where they are the same.
        mean: Mean of each channel, from 0 to 1, that a network made for them subtracts.
        std: Standard deviation of each channel that it divides by.
    """

    settings: DataSettings
    train: tf.data.Dataset
    test: tf.data.Dataset
    image_size: ImageSize
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the labels."""
        return self.train.class_names

    def preprocessing(self) -> keras.layers.Rescaling:
        """Returns the layer that normalises the images, to go in front of a network."""
        return data.rescaling(self.mean, self.std)

    @contextlib.contextmanager
    def errors_named(self) -> Iterator[None]:
        """Raises an error that names the file, where one in the block is no image.

        TensorFlow's has the whole graph in it, and often no name: then all files are
        looked at.

        Raises:
            ValueError: In place of TensorFlow's error.
        """
        try:
            yield
        except _OF_A_FILE as error:
            reason = decoding.why(error)
            if " in '" in reason:  # of a file, see `decoding.decode_file`
                raise ValueError(reason) from error
            for dataset in (self.train, self.test):
                check_files(getattr(dataset, "files", ()))
            raise

    def say_shared(self) -> None:
        """Prints which images to measure on are training images, too."""
        measured_on = self.record()["measured_on"]
        found = shared(self.train, self.test)
        in_time = ""
        if found.seconds is not None:
            in_time = f" (after {found.seconds:g} s, not all were compared)"
        if found.example is not None:
            one, other = found.example
            print(
                f"Warning: {found.count:,} of {self.test.num_examples:,} {measured_on} "
                f"are training images, too{in_time}: '{one}' is '{other}'",
                flush=True,
            )
        elif in_time:
            print(f"None of the {measured_on} is a training image{in_time}", flush=True)

    def fingerprint(self) -> dict[str, str]:
        """Returns checksums of the images that are there, wherever that is."""
        return {"train": self.train.fingerprint(), "test": self.test.fingerprint()}

    def record(self) -> dict:
        """Returns what `run.json` says of the images."""
        part = "validation" if self.settings.validation else "test"
        return {
            "class_names": self.class_names,
            "image_size": as_json(self.image_size),
            "mean": list(self.mean),
            "std": list(self.std),
            "train": self.train.num_examples,
            "unlabeled": self.train.num_unlabeled,
            "test": self.test.num_examples,
            "skipped": getattr(self.train, "skipped", []),
            "measured_on": f"{part} images",
        }


def load(
    settings: DataSettings,
    batch_size: int,
    seed: int,
    checked: Mapping | None = None,
    drop_remainder: bool = False,
    stream: bool | str = False,
) -> Images:
    """Returns the pipelines of data settings, and says whether images are kept.

    Args:
        settings: Which images.
        batch_size: Images in a batch.
        seed: Seed of their choice, order and augmentation.
        checked: What the record of a run says of these images: they were all decoded
            when it began, and are not again. Defaults to `None`.
        drop_remainder: See `keras_hsakd.data.load`. Defaults to `False`.
        stream: See `keras_hsakd.data.load`. Defaults to `False`.

    Raises:
        FileNotFoundError: If `settings.data` is no data set and no folder, or what it
            names is not there.
        ValueError: If a setting does not suit; says which.
    """
    arguments = _arguments(settings)
    arguments |= {"batch_size": batch_size, "seed": seed, "normalize": False}
    arguments |= {"drop_remainder": drop_remainder, "stream": stream}
    kind = _kind(settings)
    if checked is not None and (kind == _FOLDER or settings.unlabeled):
        arguments |= {"corrupt": "unchecked", "skip": checked.get("skipped", ())}
    read = data.image_folder if kind == _FOLDER else data.load
    train, test = read(settings.data, **arguments)
    if kind != _NAMED:
        _say_kept([test] if stream == "train" else [train, test])
    source = data.info(settings.data) if kind == _NAMED else settings
    return _images(settings, train, test, source)


def is_test_alone(settings: DataSettings) -> bool:
    """Returns whether data settings name a folder without training images."""
    folder = settings.data
    return _kind(settings) == _FOLDER and not os.path.isdir(f"{folder}/train")


def _images(settings, train, test, source):
    return Images(
        settings,
        train,
        test,
        simplest(train.element_spec[0].shape[1:3]),
        tuple(source.mean or data.IMAGENET_MEAN),
        tuple(source.std or data.IMAGENET_STD),
    )


def _say_kept(datasets):
    """Says whether images are kept in memory or read in each pass."""
    parts = {
        "kept": [each for each in datasets if each.kept_bytes is not None],
        "streamed": [each for each in datasets if each.kept_bytes is None],
    }
    said = [
        f"{verb} {sum(each.num_examples for each in part):,} images"
        for verb, part in parts.items()
        if part
    ]
    if parts["kept"]:
        said[0] += f", {amount(sum(each.kept_bytes for each in parts['kept']), 'B')}"
    print("; ".join(said), file=sys.stderr, flush=True)


def load_to_measure(
    settings: DataSettings,
    batch_size: int,
    seed: int,
    checked: Mapping | None = None,
    class_names: Sequence[str] | None = None,
) -> Images:
    """Returns the pipelines of data settings, of which only `test` is to be read.

    As `load`, but training images are not decoded to see whether they can be; where the
    names of the classes are given, a folder need not have any.
    """
    is_enough = class_names is not None and not settings.validation
    if is_enough and is_test_alone(settings):
        arguments = _arguments(settings)
        names = ("image_size", "center_crop", "limit", "corrupt")
        given = {name: arguments[name] for name in names if name in arguments}
        test = test_folder(settings.data, class_names, batch_size, seed=seed, **given)
        _say_kept([test])
        return _images(settings, test, test, settings)
    # What is held out depends on which of the training images can be decoded.
    all_matter = settings.validation and settings.corrupt == "skip"
    stream = True if all_matter and checked is None else "train"
    return load(settings, batch_size, seed, checked, stream=stream)


def _kind(settings):
    if settings.data in data.names():
        return _NAMED
    return _TFDS if is_tfds(settings.data) else _FOLDER


def _foreign(settings):
    """Returns the names of given settings that only other kinds of data have."""
    return [
        name
        for name in _ONLY_OTHERS[_kind(settings)]
        if getattr(settings, name) is not None
        # Unlabelled images are files, whatever the others are.
        and not (name == "corrupt" and settings.unlabeled)
    ]


def without_foreign(settings: DataSettings) -> DataSettings:
    """Returns data settings without those that only other kinds of data have."""
    return dataclasses.replace(settings, **dict.fromkeys(_foreign(settings)))


def check_settings(settings: DataSettings) -> None:
    """Raises an error unless data settings suit each other, and a folder is there.

    Raises:
        FileNotFoundError: As in `load`.
        ValueError: As in `load`.
    """
    _arguments(settings)


def _arguments(settings):
    """Returns the settings that are given, as arguments of `data`'s functions."""
    given = {k: v for k, v in vars(settings).items() if v is not None and k != "data"}
    kind = _kind(settings)
    for name in _foreign(settings):
        raise ValueError(
            f"Expected no `{name}` for {kind}. "
            f"Received: {name}={given[name]!r} for data={settings.data!r}"
        )
    if kind == _FOLDER and not os.path.isdir(settings.data):
        raise FileNotFoundError(
            f"Expected `data` to be one of {data.names()}, `tfds:` and the name of a "
            f"data set, or a folder of images. Received: '{settings.data}'"
        )
    return given


def absolute(settings: DataSettings) -> DataSettings:
    """Returns data settings that mean the same wherever a command is started."""
    folders = {"unlabeled": settings.unlabeled}
    if _kind(settings) == _FOLDER:
        folders["data"] = settings.data
    paths = {
        name: os.path.abspath(folder)
        for name, folder in folders.items()
        if folder not in (None, REST) and os.path.isdir(folder)  # else a name, or wrong
    }
    return dataclasses.replace(settings, **paths)


def changed(run: Run, changes: Mapping) -> DataSettings:
    """Returns a run's data settings with some of them changed.

    Images keep the size that the run's network was trained on and, where they are no
    named data set's and nothing else is said, a network made for them normalises them
    as it.

    Args:
        run: The run.
        changes: New values by the names of the settings.

    Raises:
        ValueError: If another size is among them.
    """
    settings = absolute(run.data_settings())
    images = run.record["images"]
    source = absolute(DataSettings(data=changes.get("data", settings.data))).data
    check_size(run, changes.get("image_size"))
    kept = {}
    if source != settings.data:
        kept |= dict.fromkeys(_OF_A_PLACE)
    if source not in data.names():
        kept |= {"mean": images["mean"], "std": images["std"]}
    fixed = {"image_size": images["image_size"]}
    return absolute(dataclasses.replace(settings, **(kept | changes | fixed)))


def check_size(run: Run, image_size: ImageSize | None) -> None:
    """Raises a ValueError unless a size is that of a run's images, or none.

    Args:
        run: The run.
        image_size: Int, or (height, width).
    """
    wanted = simplest(run.record["images"]["image_size"])
    if image_size is not None and simplest(image_size) != wanted:
        raise ValueError(
            f"Expected no `image_size` but {written(wanted)}, that of the network"
            f" of '{run.path}'. Received: image_size={image_size}"
        )


def is_moved(one: Mapping, other: Mapping) -> bool:
    """Returns whether what differs in data settings is where images are, and no more.

    Args:
        one: What differs, by name.
        other: The same of the other settings.
    """
    places = {"data", "data_dir"}
    if {one.get("unlabeled"), other.get("unlabeled")}.isdisjoint({None, REST}):
        places.add("unlabeled")
    return set(one) <= places


def fingerprint(settings: DataSettings) -> dict[str, str] | None:
    """Returns checksums of the images of data settings; None if they are not there."""
    try:
        # As of images that were checked: none is decoded.
        return load(settings, batch_size=1, seed=0, checked={}).fingerprint()
    except (OSError, ValueError):
        return None


def check_same(run: Run, images: Images, argument: str) -> None:
    """Raises a ValueError unless images have the classes that a run was trained on.

    Args:
        run: The run.
        images: The images.
        argument: What the user called the run.
    """
    names, wanted = images.class_names, run.class_names
    if names != wanted:
        differing = sorted(set(names) ^ set(wanted))
        raise ValueError(
            f"Expected data of the {len(wanted)} classes of `{argument}`, "
            f"'{run.path}'. Received: {len(names)} classes; "
            + (f"not in both: {differing[:5]}" if differing else "in another order")
        )


def check_same_normalisation(run: Run, images: Images, argument: str) -> None:
    """Raises a ValueError unless images are to be normalised as a run's network does.

    Args:
        run: The run.
        images: The images.
        argument: What the user called the run.
    """
    expected = run.record["images"]
    for name in ("mean", "std"):
        if list(getattr(images, name)) != list(expected[name]):
            raise ValueError(
                f"Expected images normalised with {name}={tuple(expected[name])}, as "
                f"those of `{argument}`, '{run.path}'. "
                f"Received: {name}={getattr(images, name)}"
            )
