"""Input pipelines: named data sets and folders of images, as `tf.data.Dataset`s."""

from keras_hsakd.data.augment import random_crop, random_flip
from keras_hsakd.data.datasets import DatasetInfo, info, load, names
from keras_hsakd.data.folders import image_folder
from keras_hsakd.data.pipelines import EpochCounter, epoch_batches, rescaling
from keras_hsakd.data.sources import ArraySource, FileSource, Source

__all__ = [
    "ArraySource",
    "DatasetInfo",
    "EpochCounter",
    "FileSource",
    "Source",
    "epoch_batches",
    "image_folder",
    "info",
    "load",
    "names",
    "random_crop",
    "random_flip",
    "rescaling",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
