"""Writing a teacher cache: whole, or so that it can go on."""

import os
import shutil
import time

import keras

from keras_hsakd import digests
from keras_hsakd import views as all_views
from keras_hsakd.figures import amount
from keras_hsakd.files import (
    as_json,
    errors_explained,
    read_json,
    remove_partial,
    sync_folder,
    write_json,
)
from keras_hsakd.machine import versions
from keras_hsakd.names import DTYPES
from keras_hsakd.ops import transformed_views
from keras_hsakd.teachers import cache_format as format

# The time is told after so many batches; in the first one, functions are compiled.
_TIMED = 4


def header_of(teacher, dataset, variants, views, dtype, batch_size, origin):
    """Returns the header of a cache to be written, but for the checksums."""
    for name, value in (("variants", variants), ("batch_size", batch_size)):
        if not value >= 1:
            raise ValueError(
                f"Expected `{name}` to be at least 1. Received: {name}={value}"
            )
    if dtype not in DTYPES:
        raise ValueError(
            f"Expected `dtype` to be one of {DTYPES}. Received: dtype={dtype!r}"
        )
    pipeline = pipeline_of(dataset)
    spec = dataset.element_spec[0]
    spec = spec["images"] if isinstance(spec, dict) else spec
    shape = tuple(spec.shape[1:])
    described = teacher.signature
    if any(
        edge not in (None, other)
        for edge, other in zip(described.image_shape, shape, strict=True)
    ):
        raise ValueError(
            f"Expected images of shape {described.image_shape}, as `teacher` takes "
            f"them. Received: {shape}"
        )
    functions = all_views.get(views)
    for network in teacher.networks:
        all_views.check_suit(functions, network, shape)
    header = {
        "format": format.FORMAT,
        "teacher": known_by(teacher),
        "origin": dict(origin),
        "data": pipeline.fingerprint,
        "seed": pipeline.seed,
        "variants": variants,
        "views": all_views.described(views, shape),
        "num_views": len(functions),
        "num_images": dataset.num_examples,
        "image_shape": list(shape),
        "outputs": described.outputs,
        "dtype": dtype,
        "batch_size": batch_size,
        "versions": versions("keras_hsakd", "keras", "tensorflow", "jax", "numpy"),
    }
    return as_json(header)


def check_new(path: str | os.PathLike) -> None:
    """Raises a FileExistsError if something is where a cache is to be written."""
    if os.path.lexists(path):
        raise FileExistsError(
            "Expected a new folder for the teacher cache. "
            f"Received: '{os.fspath(path)}', which exists"
        )


def known_by(teacher):
    """Returns what a header says of a teacher."""
    weights = digests.of_values(teacher.weights)
    return {"name": teacher.signature.name, "weights": weights}


def pipeline_of(dataset):
    """Returns what a data set's images go through, which ours know."""
    pipeline = getattr(dataset, "pipeline", None)
    if pipeline is None:
        raise ValueError(
            "Expected the training images of `keras_hsakd.data.load` or "
            "`image_folder`, as they are: a teacher cache knows each image by its "
            "index, and replays its augmentation. "
            f"Received: a {type(dataset).__name__}"
        )
    return pipeline


class Outputs(keras.Model):
    """A teacher's outputs for all views of images, compiled on each backend.

    Args:
        teacher: The `Teacher`.
        functions: The views.
        batch_size: Images at once; fewer are filled up, for which nothing is compiled.
    """

    def __init__(self, teacher, functions, batch_size):
        super().__init__(autocast=False)
        self.teacher = teacher
        self.networks = list(teacher.networks)
        self.functions = functions
        self.batch_size = batch_size
        self.built = True

    def call(self, images):
        batch = {"images": transformed_views(images, self.functions)}
        return self.teacher.targets(batch, in_step=lambda network: network)

    def of(self, images):
        """Returns arrays of shape `(images, views, width)` by output."""
        count, missing = len(images), self.batch_size - len(images)
        images = keras.ops.pad(images, [[0, missing], [0, 0], [0, 0], [0, 0]])
        rows = self.predict_on_batch(images)
        shape = (self.batch_size, len(self.functions), -1)
        return {name: values.reshape(shape)[:count] for name, values in rows.items()}


class Writing:
    """A cache that is being written.

    Args:
        path: The folder that it is to become.
        header: Its header, but for the checksums.
        verbose: As in `TeacherCache.write`.
    """

    def __init__(self, path, header, verbose):
        self._path, self._partial = path, f"{path}.partial"
        self._header, self._verbose = header, verbose
        self._row = format.row_dtype(
            header["outputs"], header["num_views"], header["dtype"]
        )
        self._batches = -(-header["num_images"] // header["batch_size"])
        self._progress = _Progress(self._batches * header["variants"], verbose)

    def run(self, outputs, pipeline):
        """Writes it, or what is missing of it."""
        os.makedirs(os.path.dirname(os.path.abspath(self._path)), exist_ok=True)
        self._begin()
        with self._explained():
            for variant in range(self._header["variants"]):
                self._write_variant(variant, outputs, pipeline)
            self._finish()

    def _explained(self):
        return errors_explained(
            self._partial,
            f"to write the teacher cache, {self._size()} in all",
            "; what is written is kept, and the same call goes on with it",
        )

    def _size(self):
        return amount(self._row.itemsize * self._num_rows(), "B")

    def _num_rows(self):
        return self._header["variants"] * self._header["num_images"]

    def _begin(self):
        header = os.path.join(self._partial, format.HEADER)
        if os.path.exists(header):  # it is written before all else
            begun = read_json(header)
            if differing := format.differences(begun, self._header, format.CHECKSUMS):
                raise ValueError(
                    f"Expected the cache that was begun in '{self._partial}', with "
                    f"{format.listed(differing, 0)}; remove that folder to begin "
                    f"another. Received: {format.listed(differing, 1)}"
                )
        self._check_room()
        os.makedirs(self._partial, exist_ok=True)
        remove_partial(self._partial)
        write_json(header, self._header)

    def _check_room(self):
        folder = os.path.dirname(os.path.abspath(self._path))
        free = shutil.disk_usage(folder).free
        written = sum(
            os.path.getsize(file)
            for variant in range(self._header["variants"])
            if os.path.exists(file := self._file(variant))
        )
        if self._verbose:
            there = f", of which {amount(written, 'B')} are there" if written else ""
            print(
                f"The outputs of `{self._header['teacher']['name']}` for "
                f"{self._header['num_images']:,} images in "
                f"{self._header['variants']} variants take {self._size()}{there}; "
                f"{amount(free, 'B')} are free."
            )
        missing = self._row.itemsize * self._num_rows() - written
        if missing > free:
            raise OSError(
                f"Expected {amount(missing, 'B')} of free space in '{folder}' for the "
                f"teacher cache. Received: {amount(free, 'B')}"
            )

    def _file(self, variant):
        return os.path.join(self._partial, format.file_name(variant))

    def _write_variant(self, variant, outputs, pipeline):
        """Appends to a file what is missing in it, by whole batches."""
        num_images, size = self._header["num_images"], self._header["batch_size"]
        path = self._file(variant)
        with open(path, "r+b" if os.path.exists(path) else "w+b") as file:
            begin = format.write_file_header(file, self._row, num_images)
            length = max(os.path.getsize(path) - begin, 0) // self._row.itemsize
            done = length if length == num_images else length // size * size
            file.truncate(begin + done * self._row.itemsize)
            file.seek(0, os.SEEK_END)
            self._progress.pass_over(-(-done // size))
            if done == num_images:
                return
            indices = range(done, num_images)
            for images in pipeline.variant(variant, indices, size, pipeline.seed):
                rows = format.rows_of(outputs.of(images), self._row)
                file.write(rows.tobytes())
                file.flush()
                self._progress.step()
            os.fsync(file.fileno())

    def _finish(self):
        checksums = {
            format.file_name(variant): format.checksum(self._file(variant))
            for variant in range(self._header["variants"])
        }
        header = {**self._header, "files": checksums}
        header["digest"] = digests.of_json(header)
        write_json(os.path.join(self._partial, format.HEADER), header)
        os.rename(self._partial, self._path)
        sync_folder(os.path.dirname(os.path.abspath(self._path)))


class _Progress:
    """Tells the time that is left after some batches, and then shows a bar."""

    def __init__(self, num_batches, verbose):
        self._num_batches, self._verbose = num_batches, verbose
        self._passed, self._done = 0, 0
        self._bar = None

    def pass_over(self, batches):
        """Counts batches that were written before."""
        self._passed += batches

    def step(self):
        """Counts a batch that was written now."""
        self._done += 1
        if not self._verbose:
            return
        if self._done == 1:
            self._began = time.perf_counter()
        elif self._done == 1 + _TIMED:
            each = (time.perf_counter() - self._began) / _TIMED
            missing = self._num_batches - self._passed
            seconds = each * (missing - self._done)
            print(f"It takes about {_human_time(seconds)}.")
            self._bar = keras.utils.Progbar(missing, unit_name="batch")
        if self._bar is not None:
            self._bar.update(self._done)


def _human_time(seconds):
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
