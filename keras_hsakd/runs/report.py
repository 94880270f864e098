"""What finished trainings say together: means over seeds, differences, costs."""

import csv
import dataclasses
import io
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from keras_hsakd import lock
from keras_hsakd.documents import Block, Drawing, Heading, Table, Text, markdown, page
from keras_hsakd.figures import amount
from keras_hsakd.files import atomic_write, read_json, without_folders
from keras_hsakd.runs import drawings, recipes
from keras_hsakd.runs.costs import Spent, spent
from keras_hsakd.runs.folder import Run
from keras_hsakd.runs.intervals import Difference, Spread, paired_difference, spread
from keras_hsakd.runs.kinds import KINDS
from keras_hsakd.runs.settings import DataSettings, TrainingSettings
from keras_hsakd.sizes import simplest, written

_OF_IMAGES = ("image_size", "mean", "std")
_SHOWN = 6  # digits of a fingerprint
_FILES = ("report.md", "report.csv", "report.html")


@dataclasses.dataclass
class Method:
    """Runs that differ in nothing but their seeds.

    Attributes:
        name: What it is, and what other methods of its table have otherwise.
        runs: Its runs by their seeds.
        differences: What it gave more than the method that all are compared with, in
            the last and in the best epoch; empty of that one itself.
    """

    name: str
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
        costs = [_spent(run.record) for run in self.runs.values()]
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
        return _means(self.qualities())

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


@dataclasses.dataclass
class Comparison:
    """Methods that were measured on the same images.

    Attributes:
        title: Which images.
        measured_on: Which of them: `"test images"` or `"validation images"`.
        methods: The methods; all are compared with `against`.
        against: One of them.
    """

    title: str
    measured_on: str
    methods: list[Method]
    against: Method

    def rows(self) -> list[dict]:
        """Returns a dict of numbers for each method, as they are in `report.csv`."""
        rows = []
        for method in self.methods:
            cost = method.spent
            row = {
                "images": self.title,
                "method": method.name,
                "recipe": next(iter(method.runs.values())).record.get("recipe"),
                "seeds": " ".join(map(str, method.runs)),
            }
            for epoch in ("last", "best"):
                row[f"{epoch}_mean"], row[f"{epoch}_deviation"] = method.accuracy(epoch)
            row["against"] = self.against.name
            for epoch, found in method.differences.items():
                if found is not None:
                    row[f"{epoch}_difference"] = found.mean
                    row[f"{epoch}_difference_low"] = found.low
                    row[f"{epoch}_difference_high"] = found.high
                    row["seeds_in_common"] = found.seeds
            row |= {
                "multiply_adds": cost and cost.training,
                "cache_multiply_adds": cost and cost.cache,
                "seconds": method.seconds,
                "published": method.published,
                **method.quality(),
            }
            rows.append(row)
        return rows

    def blocks(self) -> list[Block]:
        """Returns the comparison for people, without its curves."""
        return [*self.accuracy_blocks(), *self.quality_blocks()]

    def accuracy_blocks(self) -> list[Block]:
        """Returns the accuracies, what they cost, and how they came about."""
        return [Table(self._table()), Text(self._explained())]

    def quality_blocks(self) -> list[Block]:
        """Returns what is known of the networks beyond their accuracy, if anything."""
        known = {m.name: found for m in self.methods if (found := m.qualities())}
        means = [_means(by_seed) for by_seed in known.values()]
        names = dict.fromkeys(itertools.chain.from_iterable(means))
        rows = [
            ["", *known],
            ["seeds", *(", ".join(map(str, by_seed)) for by_seed in known.values())],
            *(
                [name.replace("_", " "), *(_figure(name, of.get(name)) for of in means)]
                for name in names
            ),
        ]
        lines = [line for m in self.methods for line in m.quality_left_out()]
        return [*([Table(rows)] if known else []), *map(Text, lines)]

    def drawings(self) -> dict[str, Drawing]:
        """Returns curves of all methods, and accuracies by prices.

        Returns:
            A dict with `"curves"`, where a run has a log, and `"prices"`, where there
            are at least two.
        """
        label, found = f"accuracy on {self.measured_on}, %", {}
        logs = {m.name: of_runs for m in self.methods if (of_runs := m.curves())}
        if logs:
            drawn = drawings.curves(logs, label)
            caption = f"{self.title}: mean over seeds, and each seed"
            found["curves"] = Drawing(drawn, caption)
        costs = {
            method.name: (sum(method.spent), list(method.accuracies("last").values()))
            for method in self.methods
            if method.spent and method.spent.training
        }
        if len(costs) > 1:
            xlabel = "multiply-adds of a training, its cache included"
            drawn = drawings.prices(costs, label, xlabel)
            caption = f"{self.title}: after the last epoch, by the price"
            found["prices"] = Drawing(drawn, caption)
        return found

    def _table(self):
        columns = {
            "method": lambda m: m.name,
            "seeds": lambda m: ", ".join(map(str, m.runs)),
            "last epoch, %": lambda m: _shown(m.accuracy("last")),
            "best epoch*, %": lambda m: _shown(m.accuracy("best")),
            "difference": self._difference,
            "multiply-adds": lambda m: _cost(m.spent),
            "seconds": lambda m: f"{m.seconds:,.0f}",
            "published": lambda m: m.published,
        }
        if len(self.methods) == 1:
            del columns["difference"]
        if not any(method.published for method in self.methods):
            del columns["published"]
        shown = ([show(m) for show in columns.values()] for m in self.methods)
        return [list(columns), *shown]

    def _difference(self, method):
        if method is self.against:
            return "–"
        found = method.differences["last"]
        if found is None:
            return "no seed in common"
        if found.low is None:
            return f"{found.mean:+.2f} (one seed)"
        return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"

    def _explained(self):
        texts = []
        if any(len(method.runs) > 1 for method in self.methods):
            texts.append("Mean ± standard deviation over seeds.")
        if len(self.methods) > 1:
            texts.append(
                "What is not named is the same for all methods, or the default of an "
                "option of their kind."
            )
            texts.append(
                f"Difference: of the last epoch to '{self.against.name}', in "
                "percentage points, paired by seed, over the seeds that both have (so "
                "not always that of the means), with the 95 % interval of Student's t."
            )
        texts.append(
            f"* The best epoch is chosen on the {self.measured_on} themselves."
        )
        texts.append(
            "Multiply-adds: of the steps of one training, by arithmetic, the teacher's "
            "passes in them included, its training and validations not."
        )
        if any(m.spent and m.spent.cache for m in self.methods):
            texts.append("What writing a cache took stands apart; students share it.")
        texts.append("Seconds count on an otherwise idle machine only.")
        if any(method.published for method in self.methods):
            texts.append("Published: the authors' figures, of their best epoch.")
        runs = [run for method in self.methods for run in method.runs.values()]
        texts.append(
            f"Trained with {'; '.join(dict.fromkeys(map(_conditions, runs)))}."
        )
        return " ".join(texts)


@dataclasses.dataclass
class Report:
    """What finished trainings say together.

    Attributes:
        comparisons: A comparison for all that was measured on the same images.
        unfinished: A line for each run that has not finished, and is in no mean.
    """

    comparisons: list[Comparison]
    unfinished: list[str]

    def blocks(self, pictures: bool = True) -> list[Block]:
        """Returns the report as a document.

        Args:
            pictures: Whether it has curves. Defaults to `True`.
        """
        blocks = [Heading("Trainings compared", level=1)]
        for comparison in self.comparisons:
            blocks += [Heading(comparison.title), *comparison.blocks()]
            blocks += comparison.drawings().values() if pictures else ()
        if self.unfinished:
            blocks.append(Heading("Not finished, and in no mean"))
            blocks += [Text(line) for line in self.unfinished]
        return blocks

    def markdown(self) -> str:
        """Returns the report as Markdown."""
        return markdown(self.blocks(pictures=False))

    def write(self, folder: str | os.PathLike) -> None:
        """Writes `report.md`, `report.csv` and `report.html`, each whole.

        Args:
            folder: Where; it is made if it is not there.

        Raises:
            BlockingIOError: If another process writes there; says which.
        """
        texts = self.markdown(), self._csv(), page(self.blocks())
        with lock.held(folder):
            for name, text in zip(_FILES, texts, strict=True):
                with (
                    atomic_write(os.path.join(folder, name)) as temporary,
                    open(temporary, "w", encoding="utf-8", newline="") as file,
                ):
                    file.write(text)

    def _csv(self):
        rows = [row for comparison in self.comparisons for row in comparison.rows()]
        names = dict.fromkeys(name for row in rows for name in row)
        file = io.StringIO()
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
        return file.getvalue()


def compare(
    runs: Iterable[str | os.PathLike], against: str | os.PathLike | None = None
) -> Report:
    """Returns what finished trainings say together.

    Runs that differ in their seeds alone, or in those of their teachers, are one
    method. Runs that were measured on different images are not compared.

    Args:
        runs: Run folders, or folders with some below them. `run.json`, and `log.csv`
            for the curves, are enough.
        against: The method that the others are compared with: its name in the report,
            or a folder with its runs. Defaults to the first.

    Returns:
        A `Report`.

    Raises:
        FileNotFoundError: If there is no run in one of the folders.
        ValueError: If `against` is no method, or a method has two runs of a seed.

    Example:
    >>> report = compare(["study"], against="study/labels")  # doctest: +SKIP
    >>> report.write("report")  # doctest: +SKIP
    """
    found = {}
    for folder in runs:
        found |= _found(folder)
    unfinished, by_images = [], {}
    for shown, run in found.values():
        # By the record alone: its networks need not be there.
        if run.record["status"] != "finished":
            unfinished.append(f"{shown}: {run.describe()}")
        else:
            by_images.setdefault(_images(run.record), []).append(run)
    comparisons = []
    titles = [_title(of_images[0].record) for of_images in by_images.values()]
    for title, (key, of_images) in zip(titles, by_images.items(), strict=True):
        known, _, measured_on, *_ = key
        if titles.count(title) > 1 and "fingerprint" in of_images[0].record:
            title = f"{title} ({known[:_SHOWN]})"
        methods = _methods(of_images)
        comparisons.append(Comparison(title, measured_on, methods, methods[0]))
    if against is not None:
        _compare_with(comparisons, os.fspath(against))
    for comparison in comparisons:
        for method in comparison.methods:
            if method is not comparison.against:
                method.differences = {
                    epoch: paired_difference(
                        method.accuracies(epoch), comparison.against.accuracies(epoch)
                    )
                    for epoch in ("last", "best")
                }
    return Report(comparisons, unfinished)


def _found(folder):
    """Returns the runs in a folder by their real paths, and what to call each.

    That is its path, beginning with the folder's own name.
    """
    root = os.path.abspath(folder)
    found = {}
    for path, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if "run.json" in files:
            shown = os.path.relpath(path, os.path.dirname(root))
            found[os.path.realpath(path)] = shown, Run.open(path)
    if not found:
        raise FileNotFoundError(
            "Expected a run folder, or a folder with some below it. "
            f"Received: '{os.fspath(folder)}', with no run.json"
        )
    return found


def _images(record):
    """Returns what tells the images that runs were measured on from others."""
    images, data = record["images"], record["data"]
    # Of older records nothing else is known.
    known = record.get("fingerprint", {}).get("test") or without_folders(data["data"])
    of_part = images["test"], images["measured_on"], data.get("test_split")
    return known, *of_part, tuple(images["class_names"])


def _title(record):
    images = record["images"]
    return (
        f"{without_folders(record['data']['data'])}: {images['test']:,} "
        f"{images['measured_on']} of {len(images['class_names'])} classes"
    )


def _methods(runs):
    """Returns runs of the same images as methods, in the order that they came in."""
    groups = {}
    for run in runs:
        groups.setdefault(json.dumps(_told(run.record), sort_keys=True), []).append(run)
    groups = list(itertools.chain.from_iterable(map(_apart, groups.values())))
    told = [_told(group[0].record) for _, group in groups]
    return [
        Method(_named(known, told) + where, _by_seed(group))
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
        told["from"] = without_folders(origin["model"])
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
        for name, value in _as_json(told).items()
    }


def _before(record):
    """Returns what the runs were told that stand before one, the nearest first."""
    found = []
    settings = (record["origin"] or {}).get("settings")  # older records have none
    while settings is not None:
        found.append(settings)
        settings = settings["origin"]
    return found


def _as_json(content):
    """Returns content as it is read from a file, which has no tuples."""
    return json.loads(json.dumps(content))


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
        known["training data"] = fingerprint["train"][:_SHOWN]
    return {
        name.replace("_", " "): without_folders(value)
        if isinstance(value, str)
        else value
        for name, value in known.items()
    }


def _named(told, all_told):
    """Returns what a method is, and what it has otherwise than others.

    An option of its kind that is the default, such as `divergence="kl"`, goes without
    saying; one that is a yes or no does not.
    """
    name = f"{told['kind']} {told['model']}"
    if "from" in told:
        name += f" from {told['from']}"
    of_kind = [other for other in all_told if other["kind"] == told["kind"]]
    # What was trained elsewhere has no settings to compare with.
    here = told["kind"] in KINDS
    alike = [other for other in all_told if (other["kind"] in KINDS) == here]
    options = {name for other in of_kind for name in other}
    usual = _as_json(KINDS[told["kind"]].default_options()) if here else {}
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
            name += _difference_shown(each, value)
    return name


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


def _compare_with(comparisons, against):
    """Puts the method that is meant in its place, in each comparison that has it."""
    folder = os.path.join(os.path.realpath(against), "")
    anywhere = False
    for comparison in comparisons:
        meant = [method for method in comparison.methods if method.name == against]
        meant = meant or [
            method
            for method in comparison.methods
            if any(
                os.path.join(os.path.realpath(run.path), "").startswith(folder)
                for run in method.runs.values()
            )
        ]
        if len(meant) > 1:
            raise ValueError(
                "Expected `against` to be one method. "
                f"Received: '{against}', with {[method.name for method in meant]}"
            )
        for comparison.against in meant:
            anywhere = True
    if not anywhere:
        names = [method.name for each in comparisons for method in each.methods]
        raise ValueError(
            "Expected `against` to be a folder with finished runs of the report, or "
            f"one of {names}. Received: '{against}'"
        )


def _spent(record):
    """Returns the multiply-adds of a run; `None` where a network's are not known."""
    # Keras takes seconds to import.
    from keras_hsakd import models, views
    from keras_hsakd.runs import networks

    if record["kind"] not in KINDS:
        return None
    images, origin = record["images"], record["origin"] or {}
    model = record["training"]["model"]
    needed = {model, *(record["options"].get("peers") or ())}
    if "parts" in record:
        needed.remove(model)
    if record["kind"] == "distill" and "parts" not in origin:
        needed.add(origin["model"])
    if not needed <= set(models.names()):
        return None
    num_views = len(views.get(record["views"]))
    size = simplest(images["image_size"])

    def parts(name, head):
        return networks.multiply_adds_by_part(
            name, head, len(images["class_names"]), size, num_views
        )

    return spent(record, num_views, parts)


def _cost(cost):
    if cost is None:
        return "–"
    written = f" + {amount(cost.cache)}, cache" if cost.cache else ""
    return amount(cost.training) + written


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
        if _as_json(settings) != _as_json(expected):
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


def _means(qualities):
    """Returns the mean of each figure over the seeds that have it."""
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


def _figure(name, value):
    if value is None:
        return "–"
    if "accuracy" in name or "agreement" in name:
        return f"{value:.2%}"
    return f"{value:.4f}"


def _curve(run):
    if not os.path.isfile(run.log):
        return []
    with open(run.log, newline="") as file:
        values = [row.get(run.record["monitor"]) for row in csv.DictReader(file)]
    return [100 * float(value) for value in values if value]


def _conditions(run):
    """Returns versions and machine of a training, as far as its record has them."""
    machine, versions = (run.record.get(name, {}) for name in ("machine", "versions"))
    known = [f"{n} {versions[n]}" for n in ("keras_hsakd", "keras") if n in versions]
    if machine:
        cores = f"{machine['cores']} cores"
        known += [machine["processor"], cores, *machine["devices"]]
    return ", ".join(known)


def _shown(found):
    if found.deviation is None:
        return f"{found.mean:.2f}"
    return f"{found.mean:.2f} ± {found.deviation:.2f}"
