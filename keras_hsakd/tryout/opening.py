"""From a path to the networks that are tried."""

import os
import warnings

from keras_hsakd.runs import Run
from keras_hsakd.tryout.answers import Answering, NetworkOfRun, warmed_up
from keras_hsakd.tryout.artefacts import open_artefact


def open_networks(path: str | os.PathLike, checkpoint: str = "last") -> list[Answering]:
    """Loads the network of a run and, if it is there, its teacher; or an artefact.

    Args:
        path: Run folder, or what `keras-hsakd export` wrote.
        checkpoint: `"last"` or `"best"`, of a run. Defaults to `"last"`.

    Returns:
        A list of functions from the content of an image file to an `Answer`, each warm.

    Raises:
        FileNotFoundError: If `path` is neither, or a run without a finished epoch.
        ImportError: If the runtime of the artefact is not installed.
        ValueError: If what is there is damaged.

    Example:
    >>> student, teacher = open_networks("runs/student")  # doctest: +SKIP
    """
    if not os.path.isfile(os.path.join(path, "run.json")):
        return [open_artefact(path)]
    run = Run.open(path)
    title = "Student" if run.record["kind"] == "distill" else run.record["kind"].title()
    networks = [_of_run(title, run, checkpoint)]
    if run.record["kind"] == "distill":
        try:
            origin = run.record["origin"]
            networks += map(_teacher, [origin, *origin.get("others", ())])
        except (OSError, ValueError) as error:
            warnings.warn(f"Tried without the teacher: {error}", stacklevel=2)
    return networks


def _teacher(origin):
    run = Run.open(origin["run"])
    known = origin.get("weights")  # older runs did not record it
    found = run.weights_digest(origin["checkpoint"])
    if known not in (None, found):
        raise ValueError(
            f"Expected '{run.path}' to hold the teacher of this run. "
            "Received: one of other weights"
        )
    return _of_run("Teacher", run, origin["checkpoint"])


def _of_run(title, run, checkpoint):
    title = f"{title} · {run.record['training']['model']}"
    return warmed_up(NetworkOfRun(title, run, checkpoint))
