"""What a training tells TensorBoard."""

import contextlib
import os
from collections.abc import Iterable, Mapping

import keras
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from keras_hsakd.files import atomic_write, without_folders
from keras_hsakd.runs import pictures
from keras_hsakd.runs.folder import Run

_PARTS = ("train", "validation")


class TensorBoard(keras.callbacks.Callback):
    """Writes scalars, hyperparameters and pictures of a run for TensorBoard.

    - `train/` and `validation/` have a point an epoch of all that is logged: `accuracy`
      and `loss`, terms of the loss (`terms/kl_aux_1`), heads
      (`heads/aux_1_joint_accuracy`), and of training `training/learning_rate` and
      `training/images_per_second`;
    - the settings of the run are hyperparameters of `validation/`, so that runs below
      one folder are rows of the tab HPARAMS;
    - pictures, where asked for: see `keras_hsakd.runs.pictures`.

    A training that goes on from a snapshot goes on in the same log: what was written
    after the snapshot is removed, for it comes again.

    Args:
        run: The run that is trained.
        network: Its network.
        test: Batches of (image, label) that pictures are drawn of.
        every: Epochs between two pictures. Defaults to `None`, no pictures.
    """

    def __init__(
        self,
        run: Run,
        network: keras.Model,
        test: Iterable,
        every: int | None = None,
    ):
        super().__init__()
        self.run = run
        self.network = network
        self.test = test
        self.every = every
        self._epochs = 0  # that are written
        self._writers = {}

    def get_state(self) -> dict:
        """Returns what a snapshot keeps: how many epochs were written."""
        return {"epochs": self._epochs}

    def set_state(self, state: dict) -> None:
        """Goes on with what a snapshot kept."""
        self._epochs = state["epochs"]
        for part in _PARTS:
            forget(self.run.tensorboard(part), self._epochs)

    def on_epoch_end(self, epoch, logs=None):
        # A baseline's only term is the loss itself.
        terms = set(getattr(self.model, "term_names", ())) - {"loss"}
        for part in _PARTS:
            with self._writer(part).as_default(step=epoch):
                for name, value in logs.items():
                    if name.startswith("val_") == (part == "validation"):
                        tf.summary.scalar(_tag(name.removeprefix("val_"), terms), value)
        with self._writer("validation").as_default(step=epoch):
            if epoch == 0:
                hparams.hparams(hyperparameters(self.run.record), _name(self.run.path))
            if self.every is not None and (epoch + 1) % self.every == 0:
                self._write_pictures()
        for writer in self._writers.values():
            writer.flush()
        self._epochs = epoch + 1

    def on_train_end(self, logs=None):
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _writer(self, part):
        """Returns the writer of a part, whose file is made with the first epoch."""
        if part not in self._writers:
            folder = self.run.tensorboard(part)
            self._writers[part] = tf.summary.create_file_writer(folder)
        return self._writers[part]

    def _write_pictures(self):
        drawn = pictures.draw(
            self.network, self.test, self.run.views, self.run.class_names
        )
        tf.summary.image(
            "views",
            tf.stack([tf.io.decode_png(view, 3) for view in drawn.views]),
            max_outputs=len(drawn.views),
            description="An image under each view, and what the network says of it.",
        )
        matrices = {"classes": drawn.classes, "joint labels, last head": drawn.joint}
        for name, matrix in matrices.items():
            if matrix is not None:
                tf.summary.image(
                    f"confusion/{name}",
                    tf.io.decode_png(matrix, 3)[tf.newaxis],
                    description="Rows are labels, columns predictions.",
                )


def _name(path):
    """Returns what to call a run: TensorBoard shows the beginning of it."""
    *above, name = os.path.abspath(path).split(os.sep)
    return f"{name} in {'/'.join(above[-2:])}"


def _tag(name, terms):
    """Returns what a logged value is called, by the group of charts that it is in."""
    if name in terms:
        return f"terms/{name}"
    if name.endswith(("_joint_accuracy", "_class_accuracy")):
        return f"heads/{name}"
    if name in ("learning_rate", "images_per_second"):
        return f"training/{name}"
    return name


def hyperparameters(record: Mapping) -> dict[str, bool | int | float | str]:
    """Returns the settings of a run, as TensorBoard takes hyperparameters.

    Args:
        record: Content of its `run.json`.

    Returns:
        Dict of the kind, the model of the network that it started from, and all
        settings that are given; of a folder of images its name alone.

    Example:
    >>> record = {"kind": "teacher", "options": {}, "data": {"data": "/photos"}}
    >>> hyperparameters({**record, "training": {"milestones": (0.5,)}, "origin": None})
    {'kind': 'teacher', 'data': 'photos', 'milestones': '(0.5,)'}
    """
    found = {"kind": record["kind"]}
    if record["origin"]:
        found["origin"] = record["origin"]["model"]
    for part in ("options", "data", "training"):
        for name, value in record[part].items():
            if isinstance(value, str):
                value = without_folders(value)
            if isinstance(value, (list, tuple, dict)):
                value = str(value) if value else None
            if value is not None:
                found[name] = value
    return found


def forget(folder: str | os.PathLike, step: int) -> None:
    """Removes from the event files in a folder what is of a step or later ones.

    Args:
        folder: The folder, in which no process writes; it may be missing.
        step: The first step that is removed.

    Example:
    >>> with tf.summary.create_file_writer("logs").as_default():
    ...     _ = [tf.summary.scalar("loss", 0.5, step=step) for step in range(3)]
    >>> forget("logs", step=2)
    """
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        path = os.path.join(folder, name)
        kept, count = [], 0
        # A process that was killed may have left a record half written.
        with contextlib.suppress(tf.errors.DataLossError):
            for record in tf.data.TFRecordDataset(path):
                count += 1
                event = tf.compat.v1.Event.FromString(record.numpy())
                if event.step < step or not event.HasField("summary"):
                    kept.append(record.numpy())
        if len(kept) < count:
            with (
                atomic_write(path) as temporary,
                tf.io.TFRecordWriter(temporary) as file,
            ):
                for record in kept:
                    file.write(record)
