"""From data settings to pipelines, and whether those suit a run."""

import dataclasses
import os
from collections.abc import Mapping
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_hsakd import data
from keras_hsakd.data.folders import undecodable
from keras_hsakd.runs.folder import Run
from keras_hsakd.runs.settings import DataSettings

# By kind of data, the settings that only the other kind has.
_ONLY_FOLDER = ("flip", "mean", "std", "corrupt")
_ONLY_NAMED = ("data_dir",)
# What a trained network has fixed.
OF_THE_NETWORK = ("image_size", "mean", "std")
# What matters to training images alone.
OF_TRAINING = ("examples_per_class", "label_fraction", "augment", "crop", "flip")


class Images(NamedTuple):
    """The two pipelines, what they were told, and what they have in common.

    The pipelines feed images of 0 to 255; networks normalise them, each its own way.

    Attributes:
        settings: What was asked for.
        train: Training images.
        test: Images to measure on.
        image_size: Height and width.
        mean: Mean of each channel, from 0 to 1, that a network made for them subtracts.
        std: Standard deviation of each channel that it divides by.
    """

    settings: DataSettings
    train: tf.data.Dataset
    test: tf.data.Dataset
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the labels."""
        return self.train.class_names

    def preprocessing(self) -> keras.layers.Rescaling:
        """Returns the layer that normalises the images, to go in front of a network."""
        return data.rescaling(self.mean, self.std)

    def record(self) -> dict:
        """Returns what `run.json` says of the images."""
        part = "validation" if self.settings.validation else "test"
        return {
            "class_names": self.class_names,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "train": self.train.num_examples,
            "test": self.test.num_examples,
            "skipped": getattr(self.train, "skipped", []),
            "measured_on": f"{part} images",
        }


def load(
    settings: DataSettings, batch_size: int, seed: int, checked: Mapping | None = None
) -> Images:
    """Returns the pipelines of data settings.

    Args:
        settings: Which images.
        batch_size: Images in a batch.
        seed: Seed of their choice, order and augmentation.
        checked: What the record of a run says of these images: they were all decoded
            when it began, and are not again. Defaults to `None`.

    Raises:
        FileNotFoundError: If `settings.data` is no named data set and no folder.
        ValueError: If a setting does not suit; says which.
    """
    arguments = _arguments(settings)
    arguments |= {"batch_size": batch_size, "seed": seed, "normalize": False}
    named = _is_named(settings)
    if checked is not None and not named:
        arguments |= {"corrupt": "unchecked", "skip": checked.get("skipped", ())}
    read = data.load if named else data.image_folder
    train, test = read(settings.data, **arguments)
    source = data.info(settings.data) if named else settings
    return Images(
        settings,
        train,
        test,
        train.element_spec[0].shape[1],
        tuple(source.mean or data.IMAGENET_MEAN),
        tuple(source.std or data.IMAGENET_STD),
    )


def load_to_measure(
    settings: DataSettings, batch_size: int, seed: int, checked: Mapping | None = None
) -> Images:
    """Returns the pipelines of data settings, of which only `test` is to be read.

    As `load`, but training images are not decoded to see whether they can be.
    """
    corrupt = settings.corrupt or "refuse"
    # What is held out depends on which of the training images can be decoded.
    all_matter = settings.validation and corrupt == "skip"
    if checked is not None or _is_named(settings) or all_matter:
        return load(settings, batch_size, seed, checked)
    images = load(settings, batch_size, seed, checked={})
    if corrupt == "unchecked":
        return images
    bad = undecodable(images.test.files, corrupt)
    if not bad:
        return images
    skipped = [os.path.relpath(file, settings.data) for file in bad]
    return load(settings, batch_size, seed, checked={"skipped": skipped})


def _is_named(settings):
    return settings.data in data.names()


def _arguments(settings):
    """Returns the settings that are given, as arguments of `data`'s functions."""
    given = {k: v for k, v in vars(settings).items() if v is not None and k != "data"}
    named = _is_named(settings)
    kind = "a named data set" if named else "a folder"
    for name in _ONLY_FOLDER if named else _ONLY_NAMED:
        if name in given:
            raise ValueError(
                f"Expected no `{name}` for {kind}. "
                f"Received: {name}={given[name]!r} for data={settings.data!r}"
            )
    if not named and not os.path.isdir(settings.data):
        raise FileNotFoundError(
            f"Expected `data` to be one of {data.names()}, or a folder of images. "
            f"Received: '{settings.data}'"
        )
    return given


def absolute(settings: DataSettings) -> DataSettings:
    """Returns data settings that mean the same wherever a command is started."""
    if _is_named(settings) or not os.path.isdir(settings.data):
        return settings  # a name, right or wrong
    return dataclasses.replace(settings, data=os.path.abspath(settings.data))


def changed(run: Run, changes: Mapping) -> DataSettings:
    """Returns a run's data settings with some of them changed.

    Images keep the size that the run's network was trained on and, where they are a
    folder's and nothing else is said, a network made for them normalises them as it.

    Args:
        run: The run.
        changes: New values by the names of the settings.
    """
    settings = run.data_settings()
    images = run.record["images"]
    source = changes.get("data", settings.data)
    kept = {}
    if source != settings.data:
        # How files are found and read belongs to the old place.
        kept |= dict.fromkeys((*_ONLY_FOLDER, *_ONLY_NAMED))
    if source not in data.names():
        kept |= {"mean": images["mean"], "std": images["std"]}
    fixed = {"image_size": images["image_size"]}
    return absolute(dataclasses.replace(settings, **(kept | changes | fixed)))


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
