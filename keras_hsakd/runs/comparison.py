"""What finished trainings say together: means over seeds, differences, costs."""

import csv
import dataclasses
import io
import itertools
import os
from collections.abc import Iterable

from keras_hsakd import drawings, lock
from keras_hsakd.documents import Block, Heading, Picture, Table, Text, markdown, page
from keras_hsakd.figures import amount
from keras_hsakd.files import atomic_write, without_folders
from keras_hsakd.runs.folder import Run
from keras_hsakd.runs.intervals import paired_difference
from keras_hsakd.runs.methods import FINGERPRINT_DIGITS, Method, grouped, means

_FILES = ("report.md", "report.csv", "report.html")


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
                "settings": method.settings,
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
        settings = [[m.name, m.settings] for m in self.methods]
        return [
            Table(self._table()),
            Text(self._explained()),
            Table([["method", "what it is"], *settings]),
        ]

    def summary_blocks(self) -> list[Block]:
        """Returns a short table: accuracies, differences, and prices by the first."""
        price = self.against.spent
        columns = {
            "method": lambda m: m.name,
            "accuracy, %": lambda m: _shown(m.accuracy("last")),
            f"over {self.against.name}": self._difference,
            "cost": lambda m: (
                f"{sum(m.spent) / sum(price):.2g} x" if m.spent and price else "–"
            ),
        }
        rows = [[show(m) for show in columns.values()] for m in self.methods]
        explained = (
            f"Top-1 accuracy on {self.measured_on} after the last epoch: mean ± "
            "standard deviation over seeds. Difference: in points, paired by seed, "
            "with the 95 % interval of Student's t. Cost: multiply-adds of the "
            f"training, its cache included, over those of '{self.against.name}'."
        )
        return [Table([list(columns), *rows]), Text(explained)]

    def quality_blocks(self) -> list[Block]:
        """Returns what is known of the networks beyond their accuracy, if anything."""
        known = {m.name: found for m in self.methods if (found := m.qualities())}
        found = [means(by_seed) for by_seed in known.values()]
        names = dict.fromkeys(itertools.chain.from_iterable(found))
        rows = [
            ["", *known],
            ["seeds", *(", ".join(map(str, by_seed)) for by_seed in known.values())],
            *(
                [name.replace("_", " "), *(_figure(name, of.get(name)) for of in found)]
                for name in names
            ),
        ]
        lines = [line for m in self.methods for line in m.quality_left_out()]
        return [*([Table(rows)] if known else []), *map(Text, lines)]

    def pictures(self) -> dict[str, Picture]:
        """Returns curves of all methods, and accuracies by prices.

        Returns:
            A dict with `"curves"`, where a run has a log, and `"prices"`, where there
            are at least two.
        """
        label, found = f"accuracy on {self.measured_on}, %", {}
        logs = {m.name: of_runs for m in self.methods if (of_runs := m.curves())}
        if logs:
            drawn = drawings.with_legend(drawings.curves, logs, label)
            caption = f"{self.title}: mean over seeds, and each seed"
            found["curves"] = Picture(drawn, caption, "svg")
        costs = {
            method.name: (sum(method.spent), list(method.accuracies("last").values()))
            for method in self.methods
            if method.spent and method.spent.training
        }
        if len(costs) > 1:
            xlabel = "multiply-adds of a training, its cache included"
            drawn = drawings.with_legend(drawings.prices, costs, label, xlabel)
            caption = f"{self.title}: after the last epoch, by the price"
            found["prices"] = Picture(drawn, caption, "svg")
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
                "Settings that are not named are the same for all methods, or the "
                "default of an option of their kind."
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
            blocks += comparison.pictures().values() if pictures else ()
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
            title = f"{title} ({known[:FINGERPRINT_DIGITS]})"
        methods = grouped(of_images)
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


def _cost(cost):
    if cost is None:
        return "–"
    written = f" + {amount(cost.cache)}, cache" if cost.cache else ""
    return amount(cost.training) + written


def _figure(name, value):
    if value is None:
        return "–"
    if "accuracy" in name or "agreement" in name:
        return f"{value:.2%}"
    return f"{value:.4f}"


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
