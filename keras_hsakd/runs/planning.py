"""What a training will cost, before it is paid: a plan, and what became of it."""

import dataclasses
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence

import keras

from keras_hsakd import pretrained
from keras_hsakd.documents import Table, Text, markdown
from keras_hsakd.figures import amount, rounded
from keras_hsakd.files import as_json, read_json, without_folders, write_json
from keras_hsakd.machine import machine
from keras_hsakd.runs import sources
from keras_hsakd.runs.folder import Run
from keras_hsakd.runs.kinds import Distill, Teacher, check_same_views
from keras_hsakd.runs.settings import DataSettings, TrainingSettings, one_or_more
from keras_hsakd.sizes import in_words
from keras_hsakd.teachers import num_bytes

_FORMAT = 3


def plan(
    teacher: str | os.PathLike | Sequence[str],
    training: TrainingSettings,
    data: DataSettings | Mapping | None = None,
    teacher_epochs: int | None = None,
    views: str = "rotations",
    variants: int = 8,
    sampled_views: int = 2,
    seconds: float = 10.0,
    modules: Sequence[str] = (),
    verbose: int = 1,
) -> dict:
    """Returns what a training of a teacher and its student will cost on this machine.

    Multiply-adds, hours, memory and the size of a cache, for the method and for each
    way to pay less. Seconds a step are measured: the trainings begin, on the images
    that they will have, and are ended after 20 steps. Each does so in a process of
    its own; one that fails is a row that says why.

    Args:
        teacher: Run folder of the teacher, whose cost was paid, or of several; or one
            of `keras_hsakd.models.names()`, which is to be trained.
        training: Which student, and how both are trained.
        data: Which images. With a run folder, a dict of the settings that differ from
            its own. Defaults to `None`, none differs.
        teacher_epochs: Epochs of a teacher that is to be trained. Defaults to `None`,
            those of the student.
        views: Name of the views of a teacher that is to be trained. Defaults to
            `"rotations"`.
        variants: Number of augmentations of each image that a cache holds. Defaults to
            8.
        sampled_views: Number of views that a step sees where they are sampled.
            Defaults to 2.
        seconds: After how many fewer than 20 steps of a way are enough, three at least.
            Defaults to 10.
        modules: Names of modules that those processes import first, which register
            layers of your own. Defaults to none.
        verbose: Whether to print how far it is. Defaults to 1, it does.

    Returns:
        A dict of JSON values, for `table` and `planned_row`.

    Raises:
        ValueError: If there are no such data, or a setting does not suit; says which.

    Example:
    >>> images = DataSettings(data="cifar100")
    >>> training = TrainingSettings(model="wrn_16_2")
    >>> plan("wrn_40_2", training, images)["rows"][0]["hours"]  # doctest: +SKIP
    35.2
    """
    _check_least(0, seconds=seconds)
    _check_least(1, teacher_epochs=teacher_epochs, variants=variants)
    _check_least(2, sampled_views=sampled_views)
    given, training = one_or_more(teacher), sources.absolute(training)
    runs = _runs_of(given)
    named = sources.absolute(TrainingSettings(model=given[0]))
    task = {
        "teacher": [run.path for run in runs] or named.model,
        "is_run": bool(runs),
        "views": runs[0].views if runs else views,
        "training": dataclasses.asdict(training),
        "data": dataclasses.asdict(_data_settings(data, runs, views)),
        "modules": modules,
        "seconds": seconds,
    }
    facts = _in_a_process({**task, "way": None})
    if "error" in facts:
        raise ValueError(facts["error"])
    found = as_json(
        {
            "format": _FORMAT,
            "teacher": {
                "model": " + ".join(r.record["training"]["model"] for r in runs)
                or named.model,
                "run": ", ".join(run.path for run in runs) or None,
                "hours": _hours(runs),
                "epochs": teacher_epochs or training.epochs,
            },
            **{name: task[name] for name in ("views", "training", "data")},
            "variants": variants,
            **facts,
            "rows": [],
        }
    )
    for name, way in _ways(found, sampled_views).items():
        if verbose:
            print(f"Measuring: {name}", flush=True)
        measured = _in_a_process({**task, "way": way})
        row = {"name": name, "way": way, **measured, "hours_in_all": None}
        found["rows"].append(row)
        _estimate(found, row)
    return found


def _check_least(least, **numbers):
    """Raises a ValueError unless numbers are at least something, or none."""
    for name, value in numbers.items():
        if value is not None and not value >= least:
            raise ValueError(
                f"Expected `{name}` to be at least {least}. Received: {name}={value}"
            )


def _runs_of(given):
    """Returns the runs of teachers; none of a network that is not trained."""
    first = given[0]
    if len(given) > 1 or os.path.isdir(first) or first in pretrained.names():
        return [Run.open(each) for each in given]
    try:
        sources.check_name(first)
    except ValueError as error:
        raise ValueError(
            f"Expected `teacher` to be a run folder or a network; {error}"
        ) from error
    return []


def _hours(runs):
    """Returns how long trainings took; None where one, a checkpoint, does not tell."""
    seconds = [run.record["seconds"] for run in runs]
    return sum(seconds) / 3600 if seconds and all(seconds) else None


def _data_settings(data, runs, views):
    """Returns which images the networks of a plan take."""
    given = data if isinstance(data, Mapping) else vars(data) if data else {}
    if not runs:
        if given.get("data") is None:
            raise ValueError(
                "Expected `data` for a teacher that is to be trained. Received: none"
            )
        return Teacher(views=views).data_settings(data, None)
    kind = Distill(teacher=[run.path for run in runs])
    origin = kind.origin()
    check_same_views(origin)
    settings = kind.data_settings(data, origin)
    return dataclasses.replace(settings, unlabeled=None)


def _ways(plan, sampled_views):
    """Returns the ways to train, those that cost less among them, by name."""
    *_, last_head = heads = list(plan["parts"]["student"])[1:]
    num_views, precision = plan["num_views"], plan["training"]["precision"]

    def way(kind, cached=False, precision=precision, **options):
        known = {"kind": kind, "options": options}
        return {**known, "cached": cached, "precision": precision}

    ways = {}
    if plan["teacher"]["run"] is None:
        ways["teacher"] = way("teacher", views=plan["views"])
    ways |= {
        "plain student": way("baseline"),
        "plain distillation": way("distill", heads=False),
        "the method": way("distill"),
        "cached teacher": way("distill", cached=True),
    }
    if sampled_views < num_views:
        name, few = f"{sampled_views} of {num_views} views", sampled_views
        ways[name] = way("distill", sampled_views=few)
        ways[f"{name}, cached teacher"] = way("distill", True, sampled_views=few)
    if len(heads) > 1:
        terms = ["CrossEntropy()", "KL(3.0)", f"KL(3.0, on='{last_head}')"]
        ways["last head alone"] = way("distill", terms=terms)
    if plan["half_precision"] not in (None, precision):
        half = plan["half_precision"]
        ways[half] = way("distill", precision=half)
    return ways


# In a process of its own.


def _in_a_process(task):
    """Returns what `timing` makes of a task; `"error"` says why it made nothing."""
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, f"{name}.json") for name in ("task", "result")]
        write_json(files[0], as_json(task))
        process = subprocess.run(
            [sys.executable, "-m", "keras_hsakd.runs.timing", *files],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "KERAS_BACKEND": keras.backend.backend(),
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        if os.path.exists(files[1]):
            return read_json(files[1])
    if process.returncode < 0:
        return {"error": "was killed, as where memory runs out"}
    lines = process.stderr.strip().splitlines() or ["no message"]
    return {"error": f"ended with exit code {process.returncode}: {lines[-1]}"}


# Rows.


def _estimate(plan, row):
    """Adds to a row of a plan what follows from what was measured."""
    way, teacher, images = row["way"], plan["teacher"], plan["images"]
    if way["cached"]:
        shape = plan["variants"], plan["num_views"], plan["widths"]
        row["cache_bytes"] = num_bytes(images["train"], *shape)
    if "error" in row:
        return
    of = row["of"]
    batch = min(of["batch_size"], images["train"])
    row["multiply_adds_a_step"] = batch * of["image_multiply_adds"]
    if way["kind"] == "teacher":
        of["epochs"] = teacher["epochs"]
    an_epoch = plan["steps"] * row["seconds_a_step"]
    an_epoch += plan["test_batches"] * row["seconds_a_test_batch"]
    row["hours"] = of["epochs"] * an_epoch / 3600
    if way["kind"] == "teacher":
        teacher["hours"] = row["hours"]
    spent = [row["hours"]]
    if way["kind"] == "distill":
        spent.append(teacher["hours"])
    if way["cached"]:
        row["cache_hours"] = _cache_hours(plan)
        spent.append(row["cache_hours"])
    if None not in spent:
        row["hours_in_all"] = sum(spent)


def _cache_hours(plan):
    """Returns how long a cache is written; None where that is not known.

    A pass of the teacher for each variant: what a step takes longer with a teacher.
    """
    seconds = {row["name"]: row.get("seconds_a_step") for row in plan["rows"]}
    exact, cached = (seconds.get(name) for name in ("the method", "cached teacher"))
    if None in (exact, cached):
        return None
    return plan["variants"] * plan["steps"] * max(0, exact - cached) / 3600


def identity(
    kind: str, training: Mapping, images: Mapping, image_multiply_adds: int
) -> dict:
    """Returns what a training is known by among the rows of a plan.

    Args:
        kind: Name of its kind.
        training: Its settings.
        images: Their record, as of `Images.record`.
        image_multiply_adds: Of an image in a step.
    """
    settings = ("model", "epochs", "batch_size", "precision")
    return {
        "kind": kind,
        **{name: training[name] for name in settings},
        **{name: images[name] for name in ("train", "test", "image_size")},
        "classes": len(images["class_names"]),
        "image_multiply_adds": image_multiply_adds,
    }


# A plan as text.


def table(plan: Mapping) -> str:
    """Returns a plan as text, in Markdown.

    Args:
        plan: What `plan` returned.

    Returns:
        A string: what the networks cost by their parts, and a line for each way.
    """
    teacher, training, images = (plan[key] for key in ("teacher", "training", "images"))
    teaching, learning = (without_folders(of["model"]) for of in (teacher, training))
    machine, size = plan["machine"], in_words(images["image_size"])
    device = ", ".join(machine["devices"])
    of_teacher, of_student = plan["parts"]["teacher"], plan["parts"]["student"]
    parts = [
        [part, f"{count:,}", f"{of_student[part]:,}" if part in of_student else ""]
        for part, count in of_teacher.items()
    ]
    head = ["way", "multiply-adds a step", "seconds a step", "training", "in all"]
    blocks = [
        Text(
            f"{teaching} teaches {learning}: {images['train']:,} images of "
            f"{size} pixels and {len(images['class_names'])} classes in batches of "
            f"{training['batch_size']}, {training['epochs']} epochs, "
            f"{training['precision']}. "
            f"{machine['processor']}, {machine['cores']} cores, {device}."
        ),
        Text("Multiply-adds of a view:"),
        Table([["part", f"teacher, {teaching}", f"student, {learning}"], *parts]),
        Table([[*head, "memory", "cache"], *map(_cells, plan["rows"])]),
        *(
            Text(f"{row['name']}: not measured, {row['error']}")
            for row in plan["rows"]
            if "error" in row
        ),
    ]
    if teacher["run"]:
        known = teacher["hours"]
        took = "unknown" if known is None else f"{_duration(known)}, paid already"
        line = f"The training of the teacher in '{teacher['run']}': {took}."
        blocks.append(Text(line))
    explained = (
        "Training: with a validation after each epoch. In all: with the teacher and "
        f"the cache, {plan['variants']} variants in float16. Memory: the most that a "
        "training takes beyond its networks."
    )
    return markdown([*blocks, Text(explained)]).rstrip()


def _cells(row):
    cache = (
        _told(row.get("cache_bytes"), amount, "B"),
        _duration(row.get("cache_hours")),
    )
    return [
        row["name"],
        _told(row.get("multiply_adds_a_step"), amount),
        _told(row.get("seconds_a_step"), rounded),
        _duration(row.get("hours")),
        _duration(row["hours_in_all"]),
        _told(row.get("memory_bytes"), amount, "B"),
        ", ".join(filter(None, cache)),
    ]


def _duration(hours):
    """Returns a number of hours in a unit of its size."""
    if hours is None or hours >= 1:
        return "" if hours is None else f"{rounded(hours)} h"
    minutes = 60 * hours
    return f"{rounded(minutes)} min" if minutes >= 1 else f"{rounded(60 * minutes)} s"


def _told(value, shown, *arguments):
    """Returns a value as a function shows it, nothing of what is not known."""
    return "" if value is None else shown(value, *arguments)


# What became of it.


def planned(path: str | os.PathLike, record: Mapping) -> dict:
    """Returns what a plan foretold of a training.

    A plan that was made on another machine is warned of: a training may go on on
    another one.

    Args:
        path: JSON file of a plan.
        record: What `run.json` says of the training.

    Returns:
        The row of the training, with the path and the machine of the plan.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no plan, or one of another training; says what differs.
    """
    plan = read_json(path)
    rows = [row for row in plan.get("rows", ()) if "of" in row]
    if plan.get("format") != _FORMAT or not rows:
        raise ValueError(
            "Expected `plan` to be a file that `keras-hsakd plan --output` wrote. "
            f"Received: '{path}'"
        )
    names = ("kind", "training", "images", "image_multiply_adds")
    of = identity(*(record[name] for name in names))

    def differing(row):
        return [name for name in of if row["of"][name] != of[name]]

    row = min(rows, key=lambda row: len(differing(row)))
    if names := differing(row):
        expected, received = (
            ", ".join(f"{name}={known[name]!r}" for name in names)
            for known in (of, row["of"])
        )
        raise ValueError(
            f"Expected `plan` to be of this training, with {expected}. Received: "
            f"'{path}', whose nearest row, {row['name']!r}, has {received}"
        )
    here = machine()
    for name in ("processor", "cores", "backend", "devices"):
        if plan["machine"][name] != here[name]:
            warnings.warn(
                f"The plan '{path}' was made on another machine, with {name} "
                f"{plan['machine'][name]}; this one has {here[name]}",
                stacklevel=2,
            )
    known = {key: value for key, value in row.items() if key not in ("of", "way")}
    return {"plan": os.path.abspath(path), "machine": plan["machine"], **known}
