"""Run folders: what a training leaves behind, for people and for the next command."""

import contextlib
import dataclasses
import glob
import hashlib
import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from keras_hsakd import lock, pretrained
from keras_hsakd.files import (
    as_json,
    best_effort,
    is_unused,
    read_json,
    remove,
    write_json,
)
from keras_hsakd.network_files import CHECKPOINTS, checkpoint_path, read_results
from keras_hsakd.runs.record import are_results, check
from keras_hsakd.runs.settings import DataSettings, TrainingSettings
from keras_hsakd.sizes import edges, in_words
from keras_hsakd.suggestions import did_you_mean

# What a folder says is read without Keras, which takes seconds to import.
if TYPE_CHECKING:
    import keras

_RECORD = "run.json"
_SNAPSHOTS = "snapshots"
_LOG = "log.csv"
_QUALITY = "quality.json"
_TENSORBOARD = "tensorboard"
# In this order they are removed: after a kill in between, no snapshots are there
# whose networks are gone, and a record without a network is no finished one.
_FILES = (
    _SNAPSHOTS,
    *(f"{checkpoint}.keras" for checkpoint in CHECKPOINTS),
    _LOG,
    _QUALITY,
    "curves.png",
    _TENSORBOARD,
    _RECORD,
)
# Where a run lies that is replaced, until the new one has its first epoch.
_REPLACED = ".replaced"
# Keeps room, so that `run.json` can say that a training failed on a full disk.
_ROOM = ".partial-room"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder, with the content of its `run.json`.

    | file | |
    | --- | --- |
    | `run.json` | settings, data, versions, machine, seconds, last and best results |
    | `last.keras`, `best.keras` | the network, with heads where it has them |
    | `log.csv` | all that was measured, a row an epoch |
    | `curves.png` | the same as a picture |
    | `tensorboard/` | the same for TensorBoard |
    | `quality.json` | what `evaluate --quality` measured |
    | `snapshots/` | while it trains: what `--resume` goes on from |

    Attributes:
        path: The folder.
        record: The content of `run.json`.

    Example:
    >>> run = Run.open("runs/teacher")  # doctest: +SKIP
    >>> run.describe()  # doctest: +SKIP
    'teacher run of resnet20, finished after 10 of 10 epochs (val_accuracy 0.6311)'
    """

    path: str
    record: dict

    @classmethod
    def open(cls, path: str | os.PathLike) -> "Run":
        """Reads a run folder.

        Args:
            path: The folder, or the name of a network that comes with the package.

        Returns:
            A `Run`.

        Raises:
            FileNotFoundError: If there is no such folder, or no run in it.
            ValueError: If its `run.json` is not one.
        """
        if path in pretrained.names() and not os.path.isdir(path):
            return Pretrained(path, pretrained.card(path)["record"])
        record = os.path.join(path, _RECORD)
        if not os.path.isfile(record):
            raise FileNotFoundError(
                "Expected a run folder, which `keras-hsakd teacher`, `baseline` or "
                f"`distill` wrote. Received: '{os.fspath(path)}', which "
                + ("has no run.json" if os.path.isdir(path) else "is not a folder")
                + did_you_mean(os.fspath(path), pretrained.names())
            )
        content = read_json(record)
        check(content, record)
        return cls(os.path.abspath(path), _with_results(content, path))

    def begin(self) -> None:
        """Makes the folder, and writes that the run begins, or goes on."""
        os.makedirs(self.path, exist_ok=True)
        self.write()
        with open(os.path.join(self.path, _ROOM), "wb") as file:
            file.write(os.urandom(2**16))

    def finish(self) -> None:
        """Writes that the run has finished, and removes its snapshots."""
        self.record["status"] = "finished"
        self.write()
        self._remove(_SNAPSHOTS)
        self._remove(_ROOM)

    @contextlib.contextmanager
    def begun(self, goes_on: bool = False) -> Iterator[None]:
        """Begins, and writes how what is done in the block ends.

        Where it ends with an error before its first epoch, the run that it replaces is
        back. The error is never hidden.

        Args:
            goes_on: Whether it goes on with what is in the folder, and replaces
                nothing. Defaults to `False`.
        """
        if not goes_on:
            put_aside(self.path)
        try:
            self.begin()
            yield
            self.finish()
        except BaseException as error:
            # For reading, Keras is not needed.
            from keras_hsakd.resume import OutOfTime, Preempted

            status = {
                KeyboardInterrupt: "interrupted",
                Preempted: "preempted",
                OutOfTime: "out of time",
            }
            self.record["status"] = status.get(type(error), "failed")
            if type(error) not in status:
                self.record["error"] = f"{type(error).__name__}: {error}"
            with best_effort("run.json"):
                self._remove(_ROOM)
                goes_on = goes_on or isinstance(error, Preempted)
                if goes_on or not bring_back(self.path):
                    self.write()
            raise

    def tidy(self) -> None:
        """Removes what a process left that was killed when the run had finished.

        Where another process writes, or nobody can, it stays.
        """
        with contextlib.suppress(OSError), lock.held(self.path):
            bring_back(self.path)
            self._remove(_ROOM)
            self._remove(_SNAPSHOTS)

    def _remove(self, name):
        remove(os.path.join(self.path, name))

    def write(self) -> None:
        """Writes `run.json`, whole; with an epoch, what the run replaces is gone."""
        write_json(os.path.join(self.path, _RECORD), self.record)
        if _has_network(self.path):
            bring_back(self.path)

    def describe(self) -> str:
        """Returns in one line what the run is and how far it came."""
        record = self.record
        text = (
            f"{record['kind']} run of {record['training']['model']}, "
            f"{record['status']} after {record['epochs_done']} of "
            f"{record['training']['epochs']} epochs"
        )
        if record["last"]:
            monitor = record["monitor"]
            text += f" ({monitor} {record['last'][monitor]:.4f})"
        return text

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end, and has its network."""
        return self.record["status"] == "finished" and os.path.isfile(
            checkpoint_path(self.path, "last")
        )

    @property
    def snapshots(self) -> str:
        """Folder of what the run goes on from, while it trains."""
        return os.path.join(self.path, _SNAPSHOTS)

    @property
    def log(self) -> str:
        """File of all that was measured, a row an epoch."""
        return os.path.join(self.path, _LOG)

    def tensorboard(self, part: str) -> str:
        """Returns the folder of TensorBoard's files of `"train"` or `"validation"`."""
        return os.path.join(self.path, _TENSORBOARD, part)

    @property
    def quality(self) -> str:
        """File of what was measured beyond the accuracy."""
        return os.path.join(self.path, _QUALITY)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the logits."""
        return self.record["images"]["class_names"]

    @property
    def views(self) -> str:
        """Name of the views that the network's heads were trained on."""
        return self.record["views"]

    def data_settings(self) -> DataSettings:
        """Returns what the run was told of its data."""
        return DataSettings(**self.record["data"])

    def training_settings(self) -> TrainingSettings:
        """Returns what the run was told of its training."""
        return TrainingSettings(**self.record["training"])

    def settings(self) -> dict:
        """Returns what the run was told, and what those before it were."""
        settings = {name: self.record.get(name, {}) for name in _SETTINGS}
        origin = settings["origin"]
        settings["origin"] = origin and origin.get("settings")
        return settings

    def network(self, checkpoint: str = "last") -> "keras.Model":
        """Loads the network that the run trained.

        Args:
            checkpoint: `"last"`, the network after the last epoch, or `"best"`, that
                after the best one. Defaults to `"last"`.

        Returns:
            A functional `keras.Model` from images of 0 to 255, with heads where it was
            trained with them.

        Raises:
            FileNotFoundError: If no epoch of the run was finished.
            ValueError: If the checkpoint is unknown, or its file is damaged.
        """
        path = self._checkpoint(checkpoint)
        network = load_network(path)
        _check_of(network, self.record["images"], path)
        return network

    def weights_digest(self, checkpoint: str = "last") -> str:
        """Returns a checksum of a network's weights, without loading it.

        Of the weights and not of the file, which has the date it was saved.

        Args:
            checkpoint: As in `network`.

        Returns:
            The beginning of a SHA-256, in hexadecimal digits.

        Raises:
            FileNotFoundError: As in `network`.
            ValueError: As in `network`.
        """
        import h5py

        path = self._checkpoint(checkpoint)
        digest = hashlib.sha256()

        def add(name, item):
            if isinstance(item, h5py.Dataset):
                values = item[()]
                digest.update(f"{name} {values.dtype} {values.shape}".encode())
                digest.update(values.tobytes())

        try:
            with zipfile.ZipFile(path) as archive:
                content = io.BytesIO(archive.read("model.weights.h5"))
            with h5py.File(content, "r") as weights:
                weights.visititems(add)
        except Exception as error:
            raise _damaged(path, error) from error
        return digest.hexdigest()[:16]

    def _checkpoint(self, checkpoint):
        """Returns the path of a network's file, which must be there."""
        if checkpoint not in CHECKPOINTS:
            raise ValueError(
                f"Expected `checkpoint` to be one of {CHECKPOINTS}. "
                f"Received: checkpoint={checkpoint!r}"
            )
        path = checkpoint_path(self.path, checkpoint)
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"Expected a run with a finished epoch. Received: '{self.path}', a "
                f"{self.describe()}, without {checkpoint}.keras"
            )
        return path


class Pretrained(Run):
    """The training of a network that comes with the package, whose name is its path."""

    def network(self, checkpoint: str = "last") -> "keras.Model":
        from keras_hsakd import models

        self._checkpoint(checkpoint)
        heads = pretrained.card(self.path)["heads"]
        return models.pretrained(self.path, heads)

    def weights_digest(self, checkpoint: str = "last") -> str:
        self._checkpoint(checkpoint)
        return pretrained.card(self.path)["digest"]

    def _checkpoint(self, checkpoint):
        if checkpoint != "last":
            raise ValueError(
                f"Expected the checkpoint 'last' of '{self.path}', which comes with "
                f"the package. Received: checkpoint={checkpoint!r}"
            )


def _check_of(network, images, path):
    """Raises a ValueError unless a network is of the images in its record."""
    size, classes = images["image_size"], len(images["class_names"])
    outputs = network.output
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs
    _, *shape, _ = network.input_shape
    if shape != [*edges(size)] or logits.shape[-1] != classes:
        raise ValueError(
            f"Expected '{path}' to be of the images in run.json, {in_words(size)} and "
            f"{classes} classes. Received: {' x '.join(map(str, shape))} and "
            f"{logits.shape[-1]} classes"
        )


def load_network(path: str | os.PathLike) -> "keras.Model":
    """Loads a network from a `.keras` file, without running code that is in it.

    Raises:
        ValueError: If the file is damaged, or of layers that Keras does not know.
    """
    import keras

    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # a damaged file shows as whatever its parsers raise
        raise _damaged(path, error) from error


def _damaged(path, error):
    # Keras tells what class it does not find, but not what to do about it.
    unknown = "Could not locate" in str(error)
    hint = "; `--import` names the module of layers of your own" if unknown else ""
    return ValueError(
        f"Expected '{path}' to be a whole Keras file. "
        f"Received: {type(error).__name__}: {error}{hint}"
    )


def _with_results(record, path):
    """Returns a record with the results that are in the files of the networks.

    After a kill between the two writes they are newer than `run.json`.
    """
    record = dict(record)
    for checkpoint in CHECKPOINTS:
        results = read_results(checkpoint_path(path, checkpoint))
        if results is not None and are_results(results, record["monitor"]):
            record[checkpoint] = results
    if record["last"]:
        record["epochs_done"] = record["last"]["epoch"]
    return record


@contextlib.contextmanager
def writing(
    output: str | os.PathLike, overwrite: bool, resumable: bool = False
) -> Iterator[None]:
    """Keeps a folder for the run that the process writes there, within the context.

    Args:
        output: As in `check_output`.
        overwrite: As in `check_output`.
        resumable: As in `check_output`.

    Raises:
        BlockingIOError: If another process writes there; says which.
        FileExistsError: As `check_output`.
    """
    if not os.path.isdir(output):
        check_output(output, overwrite, resumable)
    with lock.held(output):
        if not (_is_aside(output) and _has_snapshots(output)):
            bring_back(output)  # a process was killed before its first snapshot
        check_output(output, overwrite, resumable)
        yield


def put_aside(folder: str | os.PathLike) -> None:
    """Puts the run in a folder aside, until another one has its first epoch there.

    One that has neither a network nor a snapshot is removed, and if one is aside
    already, so is what was to replace it.

    Args:
        folder: The folder; it may be missing.
    """
    aside = os.path.join(folder, _REPLACED)
    is_worth_it = _has_network(folder) or _has_snapshots(folder)
    if _is_aside(folder) or not is_worth_it:
        for name in _FILES:
            remove(os.path.join(folder, name))
        return
    os.mkdir(aside)
    try:
        _move(folder, aside, _FILES)
    except BaseException:
        bring_back(folder)
        raise


def bring_back(folder: str | os.PathLike) -> bool:
    """Brings a run back that was put aside; or it is gone, if the other has an epoch.

    It can be done again after a kill at any moment.

    Args:
        folder: The folder.

    Returns:
        Whether there was one, and it is back.
    """
    aside = os.path.join(folder, _REPLACED)
    if not os.path.isdir(aside):
        return False
    if _is_aside(folder):
        if _has_network(folder):
            gone = os.path.join(folder, f".partial-{os.getpid()}-replaced")
            os.replace(aside, gone)
            remove(gone)
            return False
        for name in _FILES[:-1]:
            remove(os.path.join(folder, name))
    _move(aside, folder, reversed(_FILES))
    os.rmdir(aside)
    return True


def _move(folder, to, names):
    for name in names:
        if os.path.lexists(path := os.path.join(folder, name)):
            os.replace(path, os.path.join(to, name))


def _is_aside(folder):
    """Returns whether there is a whole run aside, and another one in its place."""
    return os.path.exists(os.path.join(folder, _REPLACED, _RECORD))


def _has_network(folder):
    return os.path.isfile(checkpoint_path(folder, "last"))


def _has_snapshots(folder):
    """Returns whether there are snapshots to go on from, without Keras."""
    return bool(glob.glob(os.path.join(glob.escape(folder), _SNAPSHOTS, "epoch-*")))


def check_output(
    output: str | os.PathLike, overwrite: bool, resumable: bool = False
) -> None:
    """Raises a FileExistsError unless a run may be written to a folder.

    Args:
        output: The folder; it may be missing or empty.
        overwrite: Whether it may hold a run, to be replaced.
        resumable: Whether it is a training, which can go on with a run.

    Raises:
        FileExistsError: If something is there; says what.
    """
    if is_unused(output, lock.NAME):
        return
    try:
        there = f"holds a {Run.open(output).describe()}"
    except FileNotFoundError:
        there = "is not a run folder"
    except ValueError as error:
        there = f"has a damaged run.json ({error})"
    else:
        if overwrite:
            return
        goes_on = "`--resume` goes on with it, " if resumable else ""
        there += f"; {goes_on}`--overwrite` replaces it"
    raise FileExistsError(
        f"Expected `output` to be a new or empty folder. Received: '{output}', "
        f"which {there}"
    )


# What makes two runs the same; the devices that they ran on do not.
_IDENTITY = ("kind", "options", "data", "training", "files", "origin")
_SETTINGS = (*_IDENTITY, "fingerprint")


def differences(
    wanted: Mapping, found: Mapping, options: Mapping = MappingProxyType({})
) -> dict[str, tuple]:
    """Returns what differs in the settings of two runs, by their records.

    The network that a run started from is known by its weights, and a cache of its
    outputs by its header, wherever their folders are now.

    Args:
        wanted: Record of a run as it would begin.
        found: Record of a run that is there.
        options: Options of the kind as they are by default, by name, which hold where
            a record is older than an option. Defaults to none.

    Returns:
        A dict from a name, as `"training"`, to the differing parts of both.
    """
    differing = {}
    first, second = (_settings_of(record, options) for record in (wanted, found))
    for name in _IDENTITY:
        one, other = first[name], second[name]
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            keys = sorted(k for k in one | other if one.get(k) != other.get(k))
            one, other = ({k: part.get(k) for k in keys} for part in (one, other))
        differing[name] = one, other
    return differing


def _settings_of(record, options):
    settings = {name: record.get(name, {}) for name in _IDENTITY}
    # A setting that is not given is as one that there was not yet.
    settings["options"] = {**options, **settings["options"]}
    settings["training"] = vars(TrainingSettings(**settings["training"]))
    for name in settings["files"]:  # known by what is in it, wherever it is
        del settings["training"][name]
    for name in ("options", "data"):
        given = {k: v for k, v in settings[name].items() if v is not None}
        settings[name] = given
    if origin := settings["origin"]:
        settings["origin"] = {"weights": origin.get("weights")}
        if "cache" in origin:
            settings["origin"]["cache"] = origin["cache"]["digest"]
        if others := origin.get("others"):
            settings["origin"]["others"] = [each["weights"] for each in others]
    return as_json(settings)
