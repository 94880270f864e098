"""A teacher's outputs on fixed augmentations of images, in place of the teacher."""

import concurrent.futures
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_hsakd import lock
from keras_hsakd import views as all_views
from keras_hsakd.heads import Signature
from keras_hsakd.teachers import cache_format as format
from keras_hsakd.teachers import cache_writing as writing
from keras_hsakd.teachers.base import Teacher
from keras_hsakd.teachers.ensemble import get
from keras_hsakd.views import View

_TEMPERATURE = 3.0  # the method's


class Deviation(NamedTuple):
    """How far stored outputs are from recomputed ones.

    Attributes:
        largest: Float, the largest KL divergence of a row at temperature 3.
        mean: Float, its mean over the rows.
        difference: Float, the largest difference of two logits.
    """

    largest: float
    mean: float
    difference: float


@keras.saving.register_keras_serializable("keras_hsakd")
class TeacherCache(Teacher):
    """A teacher's outputs on `K` fixed augmentations of each training image.

    `Distiller(cache, student)` learns from them as from the teacher, which then costs
    nothing: epoch `e` is trained on variant `e mod K`, with exactly the augmentation
    and the views that the teacher saw. Where a training has no more epochs than there
    are variants, and the seed of the cache, its batches are those without a cache.

    Args:
        path: The folder, which `TeacherCache.write` or `keras-hsakd cache` wrote.
        verify: Whether to compare all files with their checksums. Defaults to `True`.
        header: What `get_config` keeps of a cache whose files are looked for when a
            training begins. Defaults to `None`, which reads it.

    Attributes:
        path: String, the folder.
        header: Dict, the content of `header.json`.

    Raises:
        FileNotFoundError: If there is no cache, or a file of it is missing.
        ValueError: If a file is not as it was written; names it.

    Example:
    >>> train, _ = keras_hsakd.data.load("digits", image_size=8, limit=16)
    >>> teacher = keras_hsakd.models.create("resnet8", 10, input_shape=(8, 8, 3))
    >>> student = keras_hsakd.models.create("wrn_10_1", 10, input_shape=(8, 8, 3))
    >>> cache = TeacherCache.write("cache", teacher, train, variants=2, verbose=0)
    >>> distiller = keras_hsakd.Distiller(cache, student).compile("adam")
    >>> history = distiller.fit(train, verbose=0)
    """

    def __init__(
        self,
        path: str | os.PathLike,
        verify: bool = True,
        header: dict[str, Any] | None = None,
    ):
        self.path = os.fspath(path)
        self._is_open, self._mapped = header is None, {}
        self.header = format.read_header(self.path) if header is None else header
        if self._is_open and verify:
            self._check_files()

    @classmethod
    def write(
        cls,
        path: str | os.PathLike,
        teacher: keras.Model | Teacher | Sequence[keras.Model],
        dataset,
        variants: int = 8,
        views: str | Sequence[View] | None = None,
        dtype: str = "float16",
        batch_size: int = 64,
        origin: Mapping[str, Any] | None = None,
        verbose: int = 1,
    ) -> "TeacherCache":
        """Writes a teacher's outputs.

        What is written lies in a folder of the same name and `.partial` until it is
        whole; after a kill, the same call goes on with it, and ends with the same
        bytes.

        Args:
            path: The folder to write, which must not exist.
            teacher: A trained functional model with auxiliary heads, or a plain
                classifier; several of them, or an `Ensemble`.
            dataset: The training images: a data set of `keras_hsakd.data`, whose seed,
                augmentation and normalisation are the cache's.
            variants: The number of augmentations of each image. Defaults to 8.
            views: As in `Distiller`. Defaults to `"rotations"`, and without heads to
                the image alone.
            dtype: `"float16"`, `"float32"`, or `"uint8"`: 8 bits with a scale for each
                output of each view. Defaults to `"float16"`.
            batch_size: Images that the teacher sees at once. Defaults to 64.
            origin: What else is to be kept of the teacher, values of JSON. Defaults to
                nothing.
            verbose: 0 for silence, 1 for size, time and a progress bar. Defaults to 1.

        Returns:
            The `TeacherCache`.

        Raises:
            BlockingIOError: If another process writes there; says which.
            FileExistsError: If something is at `path`.
            OSError: If the disk has too little room; what is written is kept.
            ValueError: If an argument does not suit, what was begun is another cache,
                or an output is not finite or too large for the dtype.

        Example:
        >>> train, _ = keras_hsakd.data.load("digits", image_size=8, limit=16)
        >>> layers = keras.Input((8, 8, 3)), keras.layers.Flatten()
        >>> teacher = keras.Sequential([*layers, keras.layers.Dense(10)])
        >>> cache = TeacherCache.write("cache", teacher, train, verbose=0)
        >>> cache.variants, cache.read(variant=3, indices=[0, 5])["logits"].shape
        (8, (2, 1, 10))
        """
        path, teacher = os.fspath(path), get(teacher)
        with lock.held_beside(path):
            writing.check_new(path)
            if views is None and teacher.signature.heads:
                views = "rotations"
            header = writing.header_of(
                teacher, dataset, variants, views, dtype, batch_size, origin or {}
            )
            outputs = writing.Outputs(teacher, all_views.get(views), batch_size)
            writing.Writing(path, header, verbose).run(outputs, dataset.pipeline)
        return cls(path, verify=False)

    # What it holds.

    @property
    def variants(self) -> int:
        """The number of augmentations of each image."""
        return self.header["variants"]

    @property
    def seed(self) -> int:
        """The seed that they are drawn by."""
        return self.header["seed"]

    @property
    def views(self) -> str | list[float] | None:
        """The views of each, see `keras_hsakd.views.described`."""
        return self.header["views"]

    @property
    def num_views(self) -> int:
        """The number of views of each."""
        return self.header["num_views"]

    @property
    def outputs(self) -> dict[str, int]:
        """The widths of the teacher's outputs, by their names."""
        return self.header["outputs"]

    @property
    def signature(self) -> Signature:
        """What the teacher took, and gave."""
        name, shape = self.header["teacher"]["name"], self.header["image_shape"]
        return Signature(name, tuple(shape), self.outputs)

    @property
    def digest(self) -> str:
        """A checksum of the header, in which the checksums of all files are."""
        return self.header["digest"]

    @property
    def read_dtype(self) -> str:
        """The dtype of what `read` returns."""
        dtype = self.header["dtype"]
        return "float32" if dtype == "uint8" else dtype

    def read(self, variant: int, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Returns the teacher's outputs for images.

        Args:
            variant: Number of the augmentation.
            indices: Numbers of the images in the data set.

        Returns:
            Dict from the names of the outputs to arrays of shape
            `(images, views, width)`.
        """
        rows = self._rows(variant)
        indices = np.asarray(indices, "int64")
        # Each field by itself: the whole rows would be copied twice.
        read = {name: np.asarray(rows[name])[indices] for name in rows.dtype.names}
        return {name: format.restored(read, name) for name in self.outputs}

    def _rows(self, variant):
        """Returns the rows of a variant, mapped into memory."""
        if variant not in self._mapped:
            self._mapped[variant] = self._map(variant)
        return self._mapped[variant]

    def _map(self, variant):
        path = os.path.join(self.path, format.file_name(variant))
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise format.changed(path, f"a damaged file ({error})") from error
        expected = format.row_dtype(self.outputs, self.num_views, self.header["dtype"])
        if rows.dtype != expected or rows.shape != (self.header["num_images"],):
            raise format.changed(path, f"{len(rows)} rows of {rows.dtype}")
        return rows

    # As a teacher.

    @property
    def cache(self) -> "TeacherCache":
        """Itself: its outputs are read with the images."""
        return self

    @property
    def classifier(self):
        raise ValueError(
            "Expected terms on logits and heads with a teacher's cached outputs, which "
            f"have no features. Received: the cache '{self.path}'"
        )

    def targets(self, batch, in_step):
        return batch["targets"]

    def rows(self, data):
        targets = {
            name: keras.ops.reshape(values, (-1, values.shape[-1]))
            for name, values in data["targets"].items()
        }
        return {"targets": targets}

    # Whether it suits.

    def check_data(self, dataset) -> None:
        """Raises a ValueError unless a data set has the images of the cache.

        Args:
            dataset: A data set of `keras_hsakd.data`.
        """
        found = writing.pipeline_of(dataset).fingerprint
        if differing := format.differences(self.header["data"], found):
            expected, received = (format.listed(differing, side) for side in (0, 1))
            raise ValueError(
                f"Expected the images of the teacher cache '{self.path}', with "
                f"{expected}. Received: {received}"
            )

    def checked_views(
        self, views: str | Sequence[View] | None
    ) -> str | Sequence[View] | None:
        """Returns views, by default those of the cache, which they must be.

        Args:
            views: See `keras_hsakd.views.get`; functions cannot be left out.

        Raises:
            ValueError: If they are others.
        """
        if views is None and isinstance(self.views, str):
            return self.views
        described = all_views.described(views, self.header["image_shape"])
        if not all_views.are_same(self.views, described):
            raise ValueError(
                f"Expected the views of the teacher cache '{self.path}', "
                f"views={self.views!r}. Received: views={described!r}"
            )
        return views

    def check_teacher(self, teacher) -> None:
        """Raises a ValueError unless the outputs are those of a teacher.

        Args:
            teacher: As in `write`, known by its weights.
        """
        teacher = get(teacher)
        expected = self.header["teacher"]
        received = writing.known_by(teacher)
        if expected["weights"] != received["weights"]:
            raise ValueError(
                f"Expected the teacher of the cache '{self.path}', "
                f"`{expected['name']}` with weights {expected['weights']}. Received: "
                f"`{received['name']}` with weights {received['weights']}"
            )

    def open(self) -> None:
        """Compares the files with the header, where that was not read from them.

        It is so in a trainer that was loaded from a file. Where the folder was moved
        since, set `path` before.

        Raises:
            FileNotFoundError: As in the class.
            ValueError: As in the class, or if another cache is at `path`.
        """
        if self._is_open:
            return
        found = format.read_header(self.path)
        if found["digest"] != self.digest:
            differing = format.differences(self.header, found, format.CHECKSUMS)
            raise ValueError(
                f"Expected '{self.path}' to be the teacher cache that the trainer was "
                f"made with, with {format.listed(differing, 0) or 'other outputs'}. "
                f"Received: {format.listed(differing, 1) or 'others'}"
            )
        self._check_files()
        self._is_open = True

    def _check_files(self):
        files = self.header["files"]
        paths = [os.path.join(self.path, name) for name in files]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            found = pool.map(format.checksum, paths)
            for path, expected, received in zip(
                paths, files.values(), found, strict=True
            ):
                if received != expected:
                    raise format.changed(
                        path, f"checksum {received}, and not {expected}"
                    )

    def check(
        self,
        teacher,
        dataset,
        images: int = 256,
        views=None,
        seed: int = 0,
    ) -> dict[str, Deviation]:
        """Recomputes the outputs of some images, and compares.

        Args:
            teacher: As in `write`.
            dataset: The data set that the cache was written of.
            images: How many images, each in one variant. Defaults to 256.
            views: The functions, where the views have no name. Defaults to `None`.
            seed: Seed of their choice. Defaults to 0.

        Returns:
            A dict from the names of the outputs to their `Deviation`.

        Raises:
            ValueError: If teacher, data or views are others.

        Example:
        >>> train, _ = keras_hsakd.data.load("digits", image_size=8, limit=16)
        >>> layers = keras.Input((8, 8, 3)), keras.layers.Flatten()
        >>> teacher = keras.Sequential([*layers, keras.layers.Dense(10)])
        >>> cache = TeacherCache.write("cache", teacher, train, verbose=0)
        >>> cache.check(teacher, train)["logits"].mean < 1e-5
        True
        """
        teacher = get(teacher)
        self.check_teacher(teacher)
        self.check_data(dataset)
        functions = all_views.get(self.checked_views(views))
        num_images, size = self.header["num_images"], self.header["batch_size"]
        outputs = writing.Outputs(teacher, functions, size)
        total = self.variants * num_images
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(total, min(images, total), replace=False))
        found = {name: [] for name in self.outputs}
        for variant in range(self.variants):
            indices = chosen[chosen // num_images == variant] % num_images
            if not len(indices):
                continue
            batches = dataset.pipeline.variant(variant, indices, size, self.seed)
            for number, batch in enumerate(batches):
                some = indices[number * size : (number + 1) * size]
                stored = self.read(variant, some)
                for name, computed in outputs.of(batch).items():
                    found[name].append((computed, stored[name]))
        return {name: _deviation(pairs) for name, pairs in found.items()}

    # Saving: a trainer has the header, and needs the files to train alone.

    def get_config(self):
        return {"path": os.path.abspath(self.path), "header": self.header}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def _deviation(pairs):
    computed, stored = (
        np.concatenate(side).astype("float64") for side in zip(*pairs, strict=True)
    )
    first, second = map(_log_softmax, (computed, stored))
    values = np.sum(np.exp(first) * (first - second), axis=-1)
    difference = np.abs(computed - stored).max()
    return Deviation(float(values.max()), float(values.mean()), float(difference))


def _log_softmax(logits):
    logits = logits / _TEMPERATURE
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
