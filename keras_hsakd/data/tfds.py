"""Any image classification data set of TensorFlow Datasets, read by index."""

import glob
import os
import re
import sys
import time
import warnings
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_hsakd import digests
from keras_hsakd.data.arguments import check_answer
from keras_hsakd.data.decoding import decode_file
from keras_hsakd.data.sources import Source, on_host, sample
from keras_hsakd.data.subsets import Examples, hold_out
from keras_hsakd.optional import optional_module
from keras_hsakd.sizes import ImageSize
from keras_hsakd.suggestions import did_you_mean

PREFIX = "tfds:"
_FORMAT = "array_record"
# In TFDS 4.9.10 the command imports what the package does not install.
_NEEDS = "(`tfds` may need: pip install apache-beam)"
_TEST_SPLITS = ("test", "validation")
# Held out of the training images where a data set has no split to test on.
_TEST_FRACTION = 0.2
_SECONDS_WITHOUT_A_WORD = 5
_LABELS_AT_ONCE = 256


def is_tfds(name: str) -> bool:
    """Returns whether a name is that of a data set of TensorFlow Datasets.

    Args:
        name: String, as given to `load`.

    Returns:
        A bool.

    Example:
    >>> is_tfds("tfds:oxford_flowers102"), is_tfds("cifar100")
    (True, False)
    """
    return str(name).startswith(PREFIX)


class TfdsRecords:
    """The examples of a data set, each an encoded image and its label, by position.

    Positions count through the training split and then the split to test on. Nothing
    is read but what is asked for.

    Args:
        name: String, `"tfds:"` and a name as `tfds.builder` takes it.
        data_dir: String, folder of `tensorflow-datasets`. Defaults to its own.
        train_split: String, split to train on, as `tensorflow-datasets` writes it.
            Defaults to `"train"`.
        test_split: String, split to test on. Defaults to the first of `"test"` and
            `"validation"` that there is and has labels; where there is none, the last
            20 % of each class of the training split are tested, with a warning.

    Raises:
        FileNotFoundError: If the data set is neither there nor to be downloaded.
        ImportError: If a package that reads it is not installed.
        ValueError: If there is no such data set or split, it is none of images with a
            class each, or it was prepared in a format that is read in order only.
    """

    def __init__(
        self,
        name: str,
        data_dir: str | None = None,
        train_split: str | None = None,
        test_split: str | None = None,
    ):
        tfds = optional_module(
            "tensorflow_datasets", f"name={name!r}", "tensorflow-datasets"
        )
        optional_module(_FORMAT, f"name={name!r}", _FORMAT)
        self.name = name
        folder = os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)
        builder = _builder(tfds, name, folder)
        self.full_name = builder.info.full_name
        self._image, self._label = _keys(tfds, name, builder.info)
        _prepare(name, builder, folder)

        decoders = {self._image: tfds.decode.SkipDecoding()}

        def read(argument, split):
            try:
                return builder.as_data_source(
                    split, decoders=decoders, file_format=_FORMAT
                )
            except ValueError as error:
                raise ValueError(
                    f"Expected `{argument}` to be a split of '{name}', of "
                    f"{sorted(builder.info.splits)}. Received: '{split}' ({error})"
                ) from error

        self.split = train_split or "train"
        self._records = train = read("train_split", self.split)
        self._num_train = len(train)
        self.class_names = list(builder.info.features[self._label].names)
        self._check_labelled("train_split", self.split, train)
        if test_split is not None:
            test = read("test_split", test_split)
            self._check_labelled("test_split", test_split, test)
        else:
            test_split = self._found_test_split(builder.info.splits, read)
        # Numbers of the records within the whole data set, however splits are written.
        self.numbers = of_train = _numbers(tfds, builder.info.splits, self.split)
        if test_split is not None:
            of_test = _numbers(tfds, builder.info.splits, test_split)
            if set(of_test) == set(of_train):
                raise ValueError(
                    f"Expected `test_split` of '{name}' to be another split than "
                    f"`train_split`, '{self.split}'. Received: '{test_split}'"
                )
            self.numbers = np.concatenate([of_train, of_test])
            self.split = f"{self.split}+{test_split}"
            self._records = read("test_split", self.split)

    def read(self, positions: Sequence[int]) -> tuple[list[bytes], list[int]]:
        """Returns the encoded images at positions, and their labels.

        Raises:
            ValueError: If one can't be read, or has no label; says which it is.
        """
        try:
            # Many at once: each call takes time in proportion to the data set.
            examples = self._records.__getitems__(positions)
        except Exception:
            examples = [self._record(position) for position in positions]
        labels = [int(example[self._label]) for example in examples]
        for position, label in zip(positions, labels, strict=True):
            if not 0 <= label < len(self.class_names):
                raise ValueError(
                    f"Expected a label from 0 to {len(self.class_names) - 1} of "
                    f"{self.described(position)}. Received: {label}"
                )
        return [example[self._image] for example in examples], labels

    def _record(self, position):
        try:
            return self._records[position]
        except Exception as error:  # a damaged file shows as whatever its reader raises
            raise ValueError(
                f"Expected {self.described(position)} to be readable. "
                f"Received: {type(error).__name__}: {error}"
            ) from error

    def described(self, position: int) -> str:
        """Returns what an error message calls an example."""
        # Without quotes, which TensorFlow's messages escape.
        return f"image {position} of {self.name}, split {self.split}"

    def examples(self, labelled: bool) -> tuple[Examples, Examples]:
        """Returns the training examples and those to test on.

        Args:
            labelled: Bool, whether labels of the training examples are needed, which
                all records are read for. Others are 0.

        Returns:
            Two pairs `(positions, labels)`.
        """
        positions = np.arange(len(self._records))
        labels = np.zeros_like(positions)
        first_test = self._num_train
        without_test = first_test == len(positions)
        if labelled or without_test:
            labels[:first_test] = self._read_labels(first_test)
        if without_test:
            return hold_out(positions, labels, _TEST_FRACTION)
        return (
            (positions[:first_test], labels[:first_test]),
            (positions[first_test:], labels[first_test:]),
        )

    def _read_labels(self, count):
        said, began = False, time.monotonic()
        labels = []
        while len(labels) < count:
            last = min(len(labels) + _LABELS_AT_ONCE, count)
            labels += self.read(range(len(labels), last))[1]
            if not said and time.monotonic() - began > _SECONDS_WITHOUT_A_WORD:
                said = True
                print(
                    f"Reading the labels of {count:,} images of '{self.name}'",
                    file=sys.stderr,
                    flush=True,
                )
        return labels

    def _found_test_split(self, splits, read):
        """Returns the split to test on; says so where it is not the obvious one."""
        unlabelled = ""
        for split in _TEST_SPLITS:
            if split not in splits:
                continue
            if self._is_labelled(split, read("test_split", split)):
                if unlabelled:
                    warnings.warn(
                        f"'{self.name}' {unlabelled}: measured on its split '{split}'",
                        stacklevel=4,
                    )
                return split
            unlabelled = f"has no labels in its split '{split}'"
        reason = unlabelled or f"has no split {' or '.join(map(repr, _TEST_SPLITS))}"
        warnings.warn(
            f"'{self.name}' {reason}: measured on the last {_TEST_FRACTION:.0%} of "
            f"each class of '{self.split}', which are not trained on",
            stacklevel=4,
        )
        return None

    def _is_labelled(self, split, records):
        # All the labels of a split are there, or none: -1 stands for one kept secret.
        try:
            return len(records) > 0 and records[0][self._label] >= 0
        except Exception as error:  # as that of a file that is cut off
            raise ValueError(
                f"Expected the files of '{self.name}', split {split}, to be readable. "
                f"Received: {type(error).__name__}: {error}"
            ) from error

    def _check_labelled(self, argument, split, records):
        if not self._is_labelled(split, records):
            received = f"label {records[0][self._label]}" if len(records) else "none"
            raise ValueError(
                f"Expected `{argument}` to have images with labels. "
                f"Received: {received} in '{split}' of '{self.name}'"
            )


class TfdsSource(Source):
    """Images of a data set of TensorFlow Datasets, each decoded when its turn comes.

    Args:
        records: `TfdsRecords` to read.
        positions: Integer array, their positions.
        image_size: Int, height and width that each whole image is resized to, or
            (height, width).
    """

    def __init__(
        self, records: TfdsRecords, positions: np.ndarray, image_size: ImageSize
    ):
        super().__init__(image_size)
        self._records = records
        self._positions = on_host(positions, tf.int64)

    def __len__(self) -> int:
        return len(self._positions)

    def fingerprint(self) -> str:
        """Implements `Source.fingerprint`.

        It sees name and version, which records they are, and some of these.
        """
        positions = self._positions.numpy()
        contents, labels = self._records.read(positions[sample(len(self))].tolist())
        name, numbers = self._records.full_name, self._records.numbers[positions]
        return digests.of_values([name.encode(), numbers, *contents, np.array(labels)])

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Implements `Source.fetch`: encoded images, labels, and their names."""

        def fetch(positions):
            positions = positions.tolist()
            contents, labels = self._records.read(positions)
            names = [self._records.described(position) for position in positions]
            # Arrays of bytes would lose the zeros at their ends.
            return (
                np.array(contents, object),
                np.array(labels, "int32"),
                np.array(names, object),
            )

        # As stateful, it would keep a pipeline from reading in parallel where
        # operations are deterministic.
        fetched = tf.numpy_function(
            fetch,
            [tf.gather(self._positions, tf.maximum(indices, 0))],
            (tf.string, tf.int32, tf.string),
            stateful=False,
        )
        return tuple(tf.ensure_shape(part, indices.shape) for part in fetched)

    def read(
        self, index: tf.Tensor, *fetched: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Implements `Source.read`."""
        if not fetched:
            fetched = [part[0] for part in self.fetch(index[tf.newaxis])]
        content, label, name = fetched
        return decode_file(content, name), label


def _builder(tfds, name, folder):
    """Returns the builder of a data set, prepared or not."""
    own_name = name.removeprefix(PREFIX)
    try:
        return tfds.builder(own_name, data_dir=folder)
    # An unknown name, version or configuration shows as one of several errors.
    except Exception as error:
        plain = re.split("[/:]", own_name)[0]
        there = os.path.join(folder, plain)
        if os.path.isdir(there):
            hint = f"; '{there}' has {sorted(os.listdir(there))}"
        else:
            known = set(tfds.list_builders(with_community_datasets=False)) - {plain}
            hint = did_you_mean(plain, known, most=1)
        reason, *_ = str(error).splitlines() or [type(error).__name__]
        raise ValueError(
            "Expected `tfds:` and the name of a data set that tensorflow-datasets has, "
            f"or that is prepared in '{folder}' (argument `data_dir`). "
            f"Received: '{name}' ({reason}){hint}"
        ) from error


def _numbers(tfds, splits, split):
    """Returns the numbers of the records of a split, within the whole data set."""
    of_splits, count = {}, 0
    for name in sorted(splits):
        of_splits[name] = np.arange(count, count + splits[name].num_examples)
        count += splits[name].num_examples
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
    return np.concatenate(
        [of_splits[part.splitname][part.from_ : part.to] for part in parts]
    )


def _keys(tfds, name, info):
    """Returns the names of the features that are an example's image and class."""
    features = info.features
    if not isinstance(features, tfds.features.FeaturesDict):
        features = {"example": features}
    images = [
        key
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Image)
        and not isinstance(feature, tfds.features.LabeledImage)
        and feature.np_dtype == np.uint8
    ]
    labels = [
        key
        for key, feature in features.items()
        if isinstance(feature, tfds.features.ClassLabel) and feature.num_classes
    ]
    supervised = info.supervised_keys or ()
    # Of several, those that the data set itself names for supervised learning.
    images, labels = (
        [key for key in keys if key in supervised] or keys for keys in (images, labels)
    )
    if len(images) == len(labels) == 1:
        return images[0], labels[0]
    has = ", ".join(
        f"{k} ({type(feature).__name__})" for k, feature in features.items()
    )
    raise ValueError(
        "Expected a data set for image classification: with one feature that is an "
        "Image (uint8) and one that is a ClassLabel, or with two such among its "
        f"supervised keys. Received: '{name}', which has {has}"
    )


def _prepare(name, builder, folder):
    """Sees to it that a data set is there, in a format that is read by index."""
    command = (
        f"tfds build {name.removeprefix(PREFIX)} --file_format={_FORMAT} "
        f"--data_dir {folder}"
    )
    if not builder.is_prepared():
        try:
            _check_obtainable(builder, folder)
            builder.download_and_prepare(file_format=_FORMAT)
        # A failed preparation shows as anything from `OSError` to `AssertionError`.
        except Exception as error:
            raise FileNotFoundError(
                f"Expected '{name}', prepared by tensorflow-datasets, in '{folder}' "
                "(argument `data_dir`), or a network to download it. "
                f"Received: {type(error).__name__}: {error}\nRun `{command}` on a "
                f"machine with a network and copy that folder here {_NEEDS}."
            ) from error
    formats = {
        file_format.value for file_format in builder.info.available_file_formats()
    }
    if _FORMAT not in formats:
        raise ValueError(
            f"Expected '{name}' in a format that is read by index, {_FORMAT}. "
            f"Received: {', '.join(sorted(formats))}, in '{builder.data_path}'. "
            f"Run `{command} --overwrite` to prepare it anew there, or the same "
            f"without `--overwrite` for another folder {_NEEDS}."
        )


def _check_obtainable(builder, folder):
    """Raises an OSError where tensorflow-datasets would retry for minutes in vain."""
    urls = [url for url in builder.url_infos or () if url.startswith("http")]
    if not urls or builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return
    archive = os.path.basename(urls[0]).partition(".")[0]
    downloads = os.path.join(glob.escape(folder), "downloads", "**", f"*{archive}*")
    if not glob.glob(downloads, recursive=True):
        check_answer(urls[0])
