"""What a training will cost, before it is paid: a plan, and what became of it."""

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence

import keras

import keras_hsakd
from keras_hsakd import pretrained
from keras_hsakd.documents import Table, Text, markdown
from keras_hsakd.figures import amount, rounded
from keras_hsakd.files import as_json, read_json, without_folders, write_json
from keras_hsakd.heads import multiply_adds_by_part, output_names
from keras_hsakd.machine import machine
from keras_hsakd.runs import networks, sources
from keras_hsakd.runs.costs import Way, image_multiply_adds, ways
from keras_hsakd.runs.folder import Run
from keras_hsakd.runs.kinds import Distill, Origin, Teacher
from keras_hsakd.runs.settings import DataSettings, TrainingSettings
from keras_hsakd.sizes import in_words
from keras_hsakd.teachers import TeacherCache, num_bytes

_FORMAT = 2


def plan(
    teacher: str | os.PathLike,
    training: TrainingSettings,
    data: DataSettings | Mapping | None = None,
    teacher_epochs: int | None = None,
    views: str = "rotations",
    variants: int = 8,
    sampled_views: int = 2,
    seconds: float = 10.0,
    timeout: float = 600.0,
    modules: Sequence[str] = (),
    verbose: int = 1,
) -> dict:
    """Returns what a training of a teacher and its student will cost on this machine.

    Multiply-adds, hours, memory and the size of a cache, for the method and for each
    way to pay less. Seconds a step are measured: the trainings begin, on the images
    that they will have, and are ended after 20 steps. Each does so in a process of
    its own; one that fails is a row that says why.

    Args:
        teacher: Run folder of the teacher, whose cost was paid, or one of
            `keras_hsakd.models.names()`, which is to be trained.
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
        timeout: Seconds after which one is given up. Defaults to 600.
        modules: Names of modules that those processes import first, which register
            layers of your own. Defaults to none.
        verbose: Whether to print how far it is. Defaults to 1, it does.

    Returns:
        A dict of JSON values, for `table` and `planned_row`.

    Raises:
        FileNotFoundError: If the data are not there, or no epoch of the teacher.
        ValueError: If a setting does not suit; says which.

    Example:
    >>> images = DataSettings(data="cifar100")
    >>> training = TrainingSettings(model="wrn_16_2")
    >>> plan("wrn_40_2", training, images)["rows"][0]["hours"]  # doctest: +SKIP
    35.2
    """
    _check_least(0, seconds=seconds)
    _check_least(1, teacher_epochs=teacher_epochs, variants=variants, timeout=timeout)
    _check_least(2, sampled_views=sampled_views)
    run = _run_of(teacher)
    training = sources.absolute(training)
    of_teacher = run.training_settings() if run else _of_teacher(training, teacher)
    pair = {
        "teacher": run.path if run else of_teacher.model,
        "is_run": run is not None,
        "views": views if run is None else run.views,
        "training": dataclasses.asdict(training),
        "data": dataclasses.asdict(_data_settings(data, run, views)),
    }
    pair = as_json(pair)
    task = {"pair": pair, "modules": list(modules), "way": None}
    facts = _looked_up(task, timeout)
    found = {
        "format": _FORMAT,
        "teacher": {
            "model": of_teacher.model,
            "run": run and run.path,
            # A checkpoint that was converted tells no time.
            "hours": run and (run.record["seconds"] / 3600 or None),
            "epochs": training.epochs if teacher_epochs is None else teacher_epochs,
        },
        **{key: pair[key] for key in ("views", "training", "data")},
        "variants": variants,
        **facts,
        "rows": [],
    }
    possible = ways(
        [name for name in facts["parts"]["teacher"] if name != "backbone"],
        facts["pairs"],
        facts["num_views"],
        sampled_views,
        training.precision,
        facts["half_precision"],
        training.freeze_backbone,
        of_teacher.freeze_backbone,
    )
    if run is not None:
        del possible["teacher"]

    def measured(way, model):
        way = {"way": dataclasses.asdict(way), "model": model, "seconds": seconds}
        found = _in_a_process(task | way, timeout)
        return {"error": found["error"]} if "error" in found else found

    for name, way in possible.items():
        if verbose:
            print(f"Measuring: {name}", flush=True)
        found["rows"].append(_row(found, name, way, measured))
    return found


def _check_least(least, **numbers):
    """Raises a ValueError unless numbers are at least something, or none."""
    for name, value in numbers.items():
        if value is not None and not value >= least:
            raise ValueError(
                f"Expected `{name}` to be at least {least}. Received: {name}={value}"
            )


def _looked_up(task, timeout):
    """Returns what a plan has to know of networks, images and device."""
    facts = _in_a_process(task, timeout)
    if "error" in facts:
        kinds = (FileNotFoundError, ImportError, ValueError)
        raise {kind.__name__: kind for kind in kinds}.get(facts["kind"], RuntimeError)(
            facts["error"]
        )
    return facts


def _run_of(teacher):
    """Returns the run that a teacher is, or None of a network that is not trained."""
    if os.path.isdir(teacher) or teacher in pretrained.names():
        return Run.open(teacher)
    try:
        sources.check_name(os.fspath(teacher))
    except ValueError as error:
        raise ValueError(
            f"Expected `teacher` to be a run folder or a network; {error}"
        ) from error
    return None


def _of_teacher(training, teacher):
    """Returns the settings of a teacher that is to be trained."""
    named = sources.absolute(TrainingSettings(model=os.fspath(teacher)))
    return networks.of_another(training, named.model)


def _data_settings(data, run, views):
    """Returns which images the networks of a plan take."""
    given = data if isinstance(data, Mapping) else vars(data) if data else {}
    if run is None:
        if given.get("data") is None:
            raise ValueError(
                "Expected `data` for a teacher that is to be trained. Received: none"
            )
        return Teacher(views=views).data_settings(data, None)
    for name, reason in (
        ("image_size", "it is that of the teacher"),
        ("unlabeled", "the plain student has none"),
    ):
        if given.get(name) is not None:
            raise ValueError(
                f"Expected no `{name}`: {reason}. Received: {name}={given[name]!r}"
            )
    kind = Distill(teacher=run.path)
    settings = kind.data_settings(data, kind.origin())
    return dataclasses.replace(settings, unlabeled=None)


# In a process of its own.


def _in_a_process(task, timeout):
    """Returns what `measuring` makes of a task; `"error"` says why it made nothing."""
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, f"{name}.json") for name in ("task", "result")]
        write_json(files[0], task)
        package = os.path.dirname(os.path.dirname(keras_hsakd.__file__))
        paths = [package, os.environ.get("PYTHONPATH", "")]
        try:
            process = subprocess.run(
                [sys.executable, "-m", "keras_hsakd.runs.measuring", *files],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                    "KERAS_BACKEND": keras.backend.backend(),
                },
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"took more than {timeout:g} seconds", "kind": "timeout"}
        if os.path.exists(files[1]):
            return read_json(files[1])
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        reason = f"was killed ({name}), as where memory runs out"
    else:
        lines = process.stderr.strip().splitlines() or ["no message"]
        reason = f"ended with exit code {process.returncode}: {lines[-1]}"
    return {"error": reason, "kind": "process"}


# Rows.


def _row(plan, name, way, measure):
    """Returns what is known of a way, and what is measured of it."""
    parts = plan["parts"]["teacher"], plan["parts"]["student"]
    of_teacher, distills = way.kind == "teacher", way.kind == "distill"
    training, teacher, images = plan["training"], plan["teacher"], plan["images"]
    trained = teacher if of_teacher else training
    epochs, batch_size = trained["epochs"], training["batch_size"]
    row = {
        "name": name,
        "of": _identity(
            way,
            model=trained["model"],
            multiply_adds=parts[0 if of_teacher else 1],
            origin=teacher["model"] if distills else None,
            origin_multiply_adds=parts[0] if distills else None,
            epochs=epochs,
            batch_size=batch_size,
            images=images,
        ),
        "multiply_adds_a_step": min(batch_size, images["train"])
        * image_multiply_adds(way, *parts),
        "cache_bytes": None,
    }
    if way.cached:
        shape = plan["variants"], plan["num_views"], plan["widths"]
        row["cache_bytes"] = num_bytes(images["train"], *shape)
    row |= measure(way, trained["model"])
    if "error" not in row:
        an_epoch = plan["steps"] * row["seconds_a_step"]
        an_epoch += plan["test_batches"] * row["seconds_a_test_batch"]
        row["hours"] = epochs * an_epoch / 3600
        if way.cached:  # a pass of the teacher for each variant
            passes = plan["variants"] * plan["steps"]
            row["cache_hours"] = passes * row["seconds_a_cached_batch"] / 3600
    if of_teacher:
        teacher["hours"] = row.get("hours")
    spent = [row.get("hours"), row.get("cache_hours", 0)]
    spent += [teacher["hours"]] if distills else []
    row["hours_in_all"] = None if None in spent else sum(spent)
    return row


def _identity(way, multiply_adds, **others):
    """Returns what a training is known by among the rows of a plan."""
    known = {**dataclasses.asdict(way), **others}
    del known["teaching"]  # which follows from the rest
    # Of what is trained: a plain student has no heads.
    parts = ("backbone", *way.heads)
    known["multiply_adds"] = {part: multiply_adds[part] for part in parts}
    return as_json(known)


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
            f"{size} pixels and {images['classes']} classes in batches of "
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
    cache = _told(row["cache_bytes"], amount, "B"), _duration(row.get("cache_hours"))
    return [
        row["name"],
        amount(row["multiply_adds_a_step"]),
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


def planned(
    path: str | os.PathLike,
    kind: str,
    trainer: keras.Model,
    training: TrainingSettings,
    images: Mapping,
    origin: Origin | None,
) -> dict:
    """Returns what a plan foretold of a training.

    A plan that was made on another machine is warned of: a training may go on on
    another one.

    Args:
        path: JSON file of a plan.
        kind: Name of the kind of training.
        trainer: Its trainer, compiled.
        training: Its settings.
        images: Their record, as of `Images.record`.
        origin: The network of another run that it starts from or learns from, if any.

    Returns:
        The row of the training, with the path and the machine of the plan.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no plan, or one of another training; says what differs.
    """
    plan = read_json(path)
    if plan.get("format") != _FORMAT or not plan.get("rows"):
        raise ValueError(
            "Expected `plan` to be a file that `keras-hsakd plan --output` wrote. "
            f"Received: '{path}'"
        )
    before = origin.run.record if origin else {"training": {"model": None}}
    of = _identity(
        _way_of(kind, trainer, training, origin),
        multiply_adds_by_part(trainer.network),
        model=sources.absolute(training).model,
        origin=before["training"]["model"],
        origin_multiply_adds=before.get("parts"),
        epochs=training.epochs,
        batch_size=training.batch_size,
        images={
            "train": images["train"],
            "test": images["test"],
            "image_size": images["image_size"],
            "classes": len(images["class_names"]),
        },
    )

    if origin and of["origin_multiply_adds"] is None:  # of an older record
        del of["origin_multiply_adds"]

    def differing(row):
        return [name for name in of if row["of"][name] != of[name]]

    row = min(plan["rows"], key=lambda row: len(differing(row)))
    names = differing(row)
    if names:
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
    known = {key: value for key, value in row.items() if key != "of"}
    return {"plan": os.path.abspath(path), "machine": plan["machine"], **known}


def _way_of(kind, trainer, training, origin):
    """Returns the way in which a trainer trains."""
    return Way(
        kind=kind,
        views=getattr(trainer, "num_seen", 1),
        heads=tuple(
            name
            for name in output_names(trainer.network)[1:]
            if name in trainer.trained_outputs
        ),
        cached=isinstance(getattr(trainer, "teacher", None), TeacherCache),
        frozen=training.freeze_backbone or (kind == "teacher" and origin is not None),
        precision=training.precision,
    )
