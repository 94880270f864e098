"""Runs as methods: which differ in their seeds alone, and what to call them."""

import csv
import dataclasses
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from keras_hsakd.files import as_json, read_json, without_folders
from keras_hsakd.runs import recipes
from keras_hsakd.runs.costs import Spent, spent
from keras_hsakd.runs.folder import Run
from keras_hsakd.runs.intervals import Difference, Spread, spread
from keras_hsakd.runs.kinds import KINDS
from keras_hsakd.runs.settings import DataSettings, TrainingSettings
from keras_hsakd.sizes import simplest, written

_OF_IMAGES = ("image_size", "mean", "std")
FINGERPRINT_DIGITS = 6  # digits of a fingerprint


@dataclasses.dataclass
class Method:
    """Runs that differ in nothing but their seeds.

    Attributes:
        name: What it is called, such as `"HSAKD"` or `"labels"`; with the settings by
            which it differs from others of the same name.
        settings: Kind, networks, and all settings that others of its table have
            otherwise.
        runs: Its runs by their seeds.
        differences: What it gave more than the method that all are compared with, in
            the last and in the best epoch; empty of that one itself.
    """

    name: str
    settings: str
    runs: dict[int, Run]
    differences: dict[str, Difference | None] = dataclasses.field(default_factory=dict)

    def accuracies(self, epoch: str) -> dict[int, float]:
        """Returns the accuracies by seed, in percent.

        Args:
            epoch: `"last"` or `"best"`.
        """
        return {
            seed: 100 * run.record[epoch][run.record["monitor"]]
            for seed, run in self.runs.items()
        }

    def accuracy(self, epoch: str) -> Spread:
        """Returns mean and deviation of the accuracies, in percent."""
        return spread(list(self.accuracies(epoch).values()))

    @property
    def seconds(self) -> float:
        """Mean of the seconds of a training."""
        return spread([run.record["seconds"] for run in self.runs.values()]).mean

    @property
    def spent(self) -> Spent | None:
        """Mean of the multiply-adds of a training; `None` if those of one are unknown.

        Runs have other numbers of epochs where `patience` ends them.
        """
        costs = [spent(run.record) for run in self.runs.values()]
        if None in costs:
            return None
        return Spent(*(sum(each) // len(each) for each in zip(*costs, strict=True)))

    @property
    def published(self) -> str:
        """The published figure of the experiment that the runs are of, or nothing."""
        first, *_ = self.runs.values()
        return _published(first.record)

    def quality(self) -> dict[str, float]:
        """Returns means of what is known of the networks beyond their accuracy."""
        return means(self.qualities())

    def qualities(self) -> dict[int, dict[str, float]]:
        """Returns that by the seeds of the runs of which it is known."""
        known = {
            seed: _quality(run)
            for seed, run in self.runs.items()
            if not _foreign_images(run)
        }
        return {seed: quality for seed, quality in known.items() if quality}

    def quality_left_out(self) -> list[str]:
        """Returns a line for each run of which that was measured on other images."""
        return [
            f"Left out: what '{self.name}', seed {seed}, is worth on {images}."
            for seed, run in self.runs.items()
            if (images := _foreign_images(run))
        ]

    def curves(self) -> list[list[float]]:
        """Returns the accuracies by epoch of each run that has a log, in percent."""
        return [curve for run in self.runs.values() if (curve := _curve(run))]


# Which runs are one method.


def grouped(runs: Iterable[Run]) -> list[Method]:
    """Returns runs of the same images as methods, in the order that they came in.

    Args:
        runs: Finished runs.

    Raises:
        ValueError: If two runs differ in nothing, their seeds included.
    """
    groups = {}
    for run in runs:
        groups.setdefault(json.dumps(_told(run.record), sort_keys=True), []).append(run)
    groups = list(itertools.chain.from_iterable(map(_apart, groups.values())))
    told = [_told(group[0].record) for _, group in groups]
    return [
        Method(_named(known, told) + where, _set(known, told) + where, _by_seed(group))
        for known, (where, group) in zip(told, groups, strict=True)
    ]


def _apart(runs):
    """Returns runs, by where they are if a seed is there twice.

    As where the students of one teacher stand beside those of a teacher for each.
    """
    seeds = [run.record["training"]["seed"] for run in runs]
    if len(set(seeds)) == len(seeds):
        return [("", runs)]
    by_place = {}
    for run in runs:
        place = re.sub(r"([/\\])seed_\d+(?=[/\\]|$).*", "", run.path)
        by_place.setdefault(place, []).append(run)
    above = os.path.commonpath(by_place)
    return [(f", in {os.path.relpath(p, above)}", of) for p, of in by_place.items()]


def _by_seed(runs):
    by_seed = {}
    for run in sorted(runs, key=lambda run: run.record["training"]["seed"]):
        other = by_seed.setdefault(run.record["training"]["seed"], run)
        if other is not run:
            raise ValueError(
                "Expected one run of each method and seed. "
                f"Received: '{other.path}' and '{run.path}', with the same settings"
            )
    return by_seed


def _told(record):
    """Returns what a run was told, its seeds left out, by what to call it."""
    told = _flat(record["kind"], record)
    origin = record["origin"]
    if origin:
        word = KINDS[record["kind"]].starts_from if record["kind"] in KINDS else "of"
        others = origin.get("others", ())
        models = [without_folders(each["model"]) for each in (origin, *others)]
        told["from"] = " + ".join(models)
        for number, other in enumerate(others, start=2):
            more = _flat(other["settings"]["kind"], other["settings"])
            told |= {f"{word} {number} {name}": value for name, value in more.items()}
        told[f"{word} epoch"] = origin["checkpoint"]
        if "cache" in origin:
            told["cached variants"] = origin["cache"]["variants"]
        for settings in _before(record):
            more = _flat(settings["kind"], settings)
            told |= {f"{word} {name}": value for name, value in more.items()}
            word = f"{word}'s origin"
    # As they are, whether that was told or not.
    images = record["images"]
    told |= {name: images[name] for name in _OF_IMAGES}
    told["image_size"] = written(told["image_size"])
    told["training images"] = images["train"]
    return {
        name: float(value) if type(value) is int else value
        for name, value in as_json(told).items()
    }


def _before(record):
    """Returns what the runs were told that stand before one, the nearest first."""
    found = []
    settings = (record["origin"] or {}).get("settings")  # older records have none
    while settings is not None:
        found.append(settings)
        settings = settings["origin"]
    return found


def _flat(kind, settings):
    options = dict(settings["options"])
    training = vars(TrainingSettings(**settings["training"])).copy()
    del training["seed"]
    if kind in KINDS:
        options = {**KINDS[kind].default_options(), **options}
    else:  # trained elsewhere
        training = {"model": training["model"]}
    if kind in ("baseline", "linear") or not options.get("heads", True):
        training = {k: v for k, v in training.items() if k not in ("head", "taps")}
    for name, value in list(options.items()):
        if isinstance(value, Mapping):
            options |= options.pop(name)
    data = vars(DataSettings(**settings["data"])).copy()
    for name in ("data_dir", *_OF_IMAGES):  # where they are, and what is looked up
        del data[name]
    known = {"kind": kind, **training, **options, **data}
    if fingerprint := settings.get("fingerprint"):  # wherever their folder is
        del known["data"]
        known["training data"] = fingerprint["train"][:FINGERPRINT_DIGITS]
    return {
        name.replace("_", " "): without_folders(value)
        if isinstance(value, str)
        else value
        for name, value in known.items()
    }


_NAMES = {
    "baseline": "labels",
    "hsakd": "HSAKD",
    "dkd": "DKD",
    "standardized": "standardized KD",
    "fitnet": "FitNets",
    "attention": "AT",
    "similarity": "SP",
    "relational": "RKD",
}


def _short(told):
    """Returns what a method is called, whatever its settings."""
    if told["kind"] != "distill":
        return _NAMES.get(told["kind"], told["kind"])
    if told.get("terms"):
        return "own terms"
    heads, method = told["heads"], told["method"]
    if method == "kd" or (method == "hsakd" and not heads):  # the terms that are left
        from keras_hsakd.terms import METHODS  # Keras takes seconds to import

        temperature = told["temperature"] or METHODS[method][-1].temperature
        return f"KD, T={temperature:g}" + (" with heads" if heads else "")
    return _NAMES[method] + (" with heads" if heads and method != "hsakd" else "")


def _named(told, all_told):
    """Returns the name of a method, with what tells it from others of that name."""
    name = _short(told)
    alike = [other for other in all_told if _short(other) == name]
    # Whose model is the same in all rows but the teacher's goes without saying.
    students = [other for other in all_told if other["kind"] != "teacher"]
    models = {other["model"] for other in students}
    if told["kind"] == "teacher" or len(models) > 1:
        name += f" {told['model']}"
    if len({other.get("from") for other in students if "from" in other}) > 1:
        name += f" from {told['from']}" if "from" in told else ""
    return name + _differences(told, alike)


def _set(told, all_told):
    """Returns kind and networks of a method, and what others of its table have not."""
    name = f"{told['kind']} {told['model']}"
    if "from" in told:
        name += f" from {told['from']}"
    return name + _differences(told, all_told)


def _differences(told, all_told):
    """Returns what a method has otherwise than others, in words.

    An option of its kind that is the default goes without saying; one that is a yes or
    no does not.
    """
    shown = ""
    of_kind = [other for other in all_told if other["kind"] == told["kind"]]
    # What was trained elsewhere has no settings to compare with.
    here = told["kind"] in KINDS
    alike = [other for other in all_told if (other["kind"] in KINDS) == here]
    options = {name for other in of_kind for name in other}
    usual = as_json(KINDS[told["kind"]].default_options()) if here else {}
    usual = {name.replace("_", " "): value for name, value in usual.items()}
    for each in dict.fromkeys(itertools.chain.from_iterable(all_told)):
        if each in ("kind", "model", "from"):
            continue
        # An option of one kind is not missing in another one.
        others = of_kind if each in options - _common(alike) else alike
        value = told.get(each)
        if each in usual and value == usual[each] and not isinstance(value, bool):
            continue
        if any(other.get(each) != value for other in others):
            shown += _difference_shown(each, value)
    return shown


def _common(all_told):
    """Returns the names that everything that was told has."""
    return set.intersection(*map(set, all_told))


def _difference_shown(name, value):
    if value is None:
        return ""
    if isinstance(value, bool):
        return f", {name}" if value else f", no {name}"
    if isinstance(value, float):
        value = f"{value:g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = " ".join(map(str, value))
    return f", {name} {value}"


# What is known of a run.


def _curve(run):
    if not os.path.isfile(run.log):
        return []
    with open(run.log, newline="") as file:
        values = [row.get(run.record["monitor"]) for row in csv.DictReader(file)]
    return [100 * float(value) for value in values if value]


def _published(record):
    """Returns the published figure of the experiment that a run is of, or nothing."""
    name = record.get("recipe")
    if name not in recipes.names():
        return ""
    recipe = recipes.get(name)
    if not recipe.published:
        return ""
    if _is_as_there(record, recipe):
        return recipe.published
    return f"{recipe.published} (other settings)"


def _is_as_there(record, recipe):
    """Returns whether a run, and those before it, are as an experiment has them."""
    from keras_hsakd.data import info

    # A cache stands for its teacher.
    steps = [step for step in recipe.steps if step.kind != recipes.CACHE]
    first = steps[0].data
    size = first.image_size or info(first.data).image_size
    if simplest(record["images"]["image_size"]) != size:
        return False
    told = [_flat(each["kind"], each) for each in (record, *_before(record))]
    for settings, expected in itertools.zip_longest(told, _told_by(steps)):
        if settings is None or expected is None:
            return False
        if settings["kind"] not in KINDS:  # trained elsewhere, nobody knows how
            return settings["model"] == expected["model"]
        if as_json(settings) != as_json(expected):
            return False
    return True


def _told_by(steps):
    """Returns what steps tell their runs, the last one's first, as `_flat` has it."""
    told, data = [], {}
    for step in steps:
        changes = step.data
        data = vars(changes) if isinstance(changes, DataSettings) else data | changes
        training = vars(step.training)
        settings = {"options": step.options, "training": training, "data": data}
        told.append(_flat(step.kind, settings))
    return told[::-1]


def _quality(run):
    """Returns what `keras-hsakd evaluate --quality` left of a run, if it did."""
    if not os.path.isfile(run.quality):
        return {}
    found = read_json(run.quality)
    of = " of the best epoch" if found.get("checkpoint") == "best" else ""
    severity = found.get("corruptions", {}).get("severity")
    views = [f"accuracy_under_{view}" for view in found.get("by_view", ())]

    def name_of(figure):
        corrupted = figure.startswith("accuracy_under_") and figure not in views
        return f"{figure}{f' of severity {severity}' if corrupted else ''}{of}"

    return {
        name_of(figure): value
        for figure, value in found.items()
        if isinstance(value, float) and math.isfinite(value)
    }


def means(qualities: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Returns the mean of each figure over the seeds that have it.

    Args:
        qualities: Figures by their names, by seed.

    Example:
    >>> means({0: {"nll": 1.0}, 1: {"nll": 2.0, "ece": 0.1}})
    {'nll': 1.5, 'ece': 0.1}
    """
    values = {}
    for known in qualities.values():
        for name, value in known.items():
            values.setdefault(name, []).append(value)
    return {name: spread(of_seeds).mean for name, of_seeds in values.items()}


def _foreign_images(run):
    """Returns on which images `evaluate --quality` was run, if not on the run's own."""
    if not os.path.isfile(run.quality):
        return None
    images, data = run.record["images"], run.record["data"]["data"]
    own = {
        "data": without_folders(data),
        "measured_on": images["measured_on"],
        "count": images["test"],
    }
    found = read_json(run.quality).get("images")
    if known := found.get("fingerprint"):  # wherever they are
        of_run = run.record.get("fingerprint", {}).get("test")
        own |= {"data": found["data"], "fingerprint": of_run or known}
    if found == own:
        return None
    return f"{found['count']:,} {found['measured_on']} of {found['data']}"
