"""Records of trainings that never were, for what is made of records."""

import copy
import csv
import json
import pathlib

from keras_hsakd.runs import KINDS, TrainingSettings
from keras_hsakd.runs.record import FORMAT

# Those that these are measured on, as in `quality.json`.
OWN_IMAGES = {"data": "photographs", "measured_on": "test images", "count": 100}


def write_run(
    path: pathlib.Path,
    accuracy: float = 0.5,
    best: float | None = None,
    seed: int = 0,
    epochs: int = 2,
    model: str = "resnet8",
    kind: str = "baseline",
    teacher: dict | None = None,
    status: str = "finished",
    data: str = "/somewhere/photographs",
    measured: int = 100,
    **more,
):
    """Writes the `run.json` and `log.csv` of a run, and returns the former's content.

    Args:
        path: The folder to make.
        accuracy: Of the last epoch.
        best: Of the best one; that of the last, if it is not given.
        seed: Seed of the training.
        epochs: Its epochs.
        model: Its network.
        kind: Its kind.
        teacher: Record of the run that it started from.
        status: How it ended.
        data: Its images.
        measured: Number of images that it was measured on.
        **more: Options of the kind, data settings, and settings of the training.
    """
    options = KINDS[kind].default_options()
    options |= {name: more.pop(name) for name in list(more) if name in options}
    settings = {"data": data}
    if "label_fraction" in more:
        settings["label_fraction"] = more.pop("label_fraction")
    training = TrainingSettings(model=model, epochs=epochs, seed=seed, **more)
    best = accuracy if best is None else best
    record = {
        "format": FORMAT,
        "kind": kind,
        "options": options,
        "data": settings,
        "training": vars(training),
        "origin": None,
        "execution": {},
        "views": "rotations",
        "status": status,
        "epochs_done": epochs,
        "image_multiply_adds": 1_000_000_000,
        "monitor": "val_accuracy",
        "last": {"epoch": epochs, "val_accuracy": accuracy},
        "best": {"epoch": 1, "val_accuracy": best},
        "images": {
            "class_names": ["cat", "dog"],
            "image_size": 32,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "train": 10,
            "unlabeled": 0,
            "test": measured,
            "measured_on": "test images",
        },
        "versions": {"keras_hsakd": "0.1.0", "keras": "3.15.1"},
        "machine": {"processor": "abacus", "cores": 2, "devices": ["cpu:0"]},
        "seconds": 10.0 + seed,
    }
    if teacher is not None:
        names = ("kind", "options", "data", "training", "origin")
        record["origin"] = {
            "run": "/somewhere/runs/teacher",
            "model": teacher["training"]["model"],
            "checkpoint": "last",
            "weights": f"{teacher['training']['seed']}",
            "settings": {name: copy.deepcopy(teacher[name]) for name in names},
        }
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps(record))
    with open(path / "log.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "val_accuracy"])
        writer.writerows([[0, best], [1, accuracy]])
    return record
