"""Input pipelines as `tf.data.Dataset`s: named data sets, those of TFDS, folders."""

from keras_hsakd.data.augment import (
    Draws,
    center_crop,
    draw,
    rand_augment,
    random_crop,
    random_resized_crop,
)
from keras_hsakd.data.datasets import DatasetInfo, info, load, names
from keras_hsakd.data.folders import IMAGENET_MEAN, IMAGENET_STD, image_folder
from keras_hsakd.data.pipelines import (
    Augmentation,
    EpochCounter,
    Share,
    epoch_batches,
    rescaling,
)
from keras_hsakd.data.sources import ArraySource, FileSource, JoinedSource, Source
from keras_hsakd.data.tfds import TfdsRecords, TfdsSource

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "ArraySource",
    "Augmentation",
    "DatasetInfo",
    "Draws",
    "EpochCounter",
    "FileSource",
    "JoinedSource",
    "Share",
    "Source",
    "TfdsRecords",
    "TfdsSource",
    "center_crop",
    "draw",
    "epoch_batches",
    "image_folder",
    "info",
    "load",
    "names",
    "rand_augment",
    "random_crop",
    "random_resized_crop",
    "rescaling",
]
