"""The tables of results in the documentation, made from committed records of runs.

    python benchmarks/results.py
    python benchmarks/results.py --check
    python benchmarks/results.py --keep runs/study study

In `README.md`, `docs/results.md`, `docs/cheaper.md` and `docs/mlperf-tiny.md`, what
stands between

    <!-- results: NAME of FOLDER OTHER against FOLDER -->
    <!-- end -->

are the accuracies that `keras-hsakd report` prints of `benchmarks/records/NAME`, or of
folders in it, `--against` one of them; `of ...` and `against FOLDER` may be left out.
With `quality` for `results` it is what the networks are worth beyond that. Between
`<!-- demo -->` and `<!-- end -->` in `docs/demo.md` is what `keras-hsakd demo` printed
when it wrote `benchmarks/demo.json`, between `<!-- mlperf tiny -->` and `<!-- end -->`
in `docs/mlperf-tiny.md` what `benchmarks/mlperf_tiny.json` has.
`docs/results-NAME.svg` has the accuracies of NAME by what they cost. `--check` changes
nothing, and fails with what would change.
`--keep RUNS NAME` makes records of run folders: `run.json`, `log.csv` and
`quality.json`, without networks, and without the folders above what paths name.
"""

import argparse
import difflib
import itertools
import os
import pathlib
import re
import shutil
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from keras_hsakd import demo
from keras_hsakd.documents import Table, Text, markdown
from keras_hsakd.files import read_json, without_folders, write_json
from keras_hsakd.runs import compare

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "docs" / "results.md",
    ROOT / "docs" / "demo.md",
    ROOT / "docs" / "cheaper.md",
    ROOT / "docs" / "mlperf-tiny.md",
)
RECORDS = ROOT / "benchmarks" / "records"
PICTURES = ROOT / "docs"
DEMO = ROOT / "benchmarks" / "demo.json"
OF_DEMO = re.compile(r"(<!-- demo -->\n)(.*?)(<!-- end -->)", re.S)
MLPERF_TINY = ROOT / "benchmarks" / "mlperf_tiny.json"
OF_MLPERF_TINY = re.compile(r"(<!-- mlperf tiny -->\n)(.*?)(<!-- end -->)", re.S)
TABLE = re.compile(
    r"(<!-- (results|summary|quality): (\S+)(?: of (.*?))?(?: against (\S+))? -->\n)"
    r"(.*?)(<!-- end -->)",
    re.S,
)


def filled(text: str, records: pathlib.Path) -> str:
    """Returns a document with the tables of the records between its marks."""

    def table(match):
        begin, kind, name, folders, against, _, end = match.groups()
        runs = [records / name / folder for folder in (folders or ".").split()]
        blocks = []
        for found in compare(runs, against and records / name / against).comparisons:
            of_kind = {
                "results": found.accuracy_blocks,
                "summary": found.summary_blocks,
                "quality": found.quality_blocks,
            }[kind]()
            if not of_kind:
                raise ValueError(
                    f"Expected a `quality.json` with some record of {folders or name}, "
                    "as `keras-hsakd evaluate --quality` writes it. Received: none"
                )
            blocks += [Text(f"{found.title}:"), *of_kind]
        return f"{begin}\n{markdown(blocks)}\n{end}"

    def of_demo(match):
        begin, _, end = match.groups()
        return f"{begin}\n{demo.table(read_json(DEMO))}\n\n{end}"

    def of_mlperf_tiny(match):
        begin, _, end = match.groups()
        return f"{begin}\n{markdown(mlperf_tiny(read_json(MLPERF_TINY)))}\n{end}"

    for pattern, made in (
        (TABLE, table),
        (OF_DEMO, of_demo),
        (OF_MLPERF_TINY, of_mlperf_tiny),
    ):
        text = pattern.sub(made, text)
    return text


def mlperf_tiny(results: dict) -> list[Table | Text]:
    """Returns the tables of what `benchmarks/mlperf_tiny.py` measured."""
    files, sets = results["files"], results["images"]
    images = [f"{count:,} {of_set}" for of_set, count in sets.items()]

    def shown(name):
        return name if files[name]["of"] == "published" else files[name]["of"]

    def more(name, other):
        found = results["differences"][name].get(other, {})
        return [_more(found[of_set]) if found else "–" for of_set in sets]

    with_times = all("latency_ms" in file for file in files.values())
    head = ["file", "precision", *(f"{text}, %" for text in images)]
    head += [f"more than published, {text}" for text in images] + ["bytes"]
    rows = [head + ["latency", "memory"] * with_times]
    for name, file in files.items():
        row = [shown(name), file["precision"]]
        row += [_percent(file[f"accuracy_{of_set}"]) for of_set in sets]
        row += [*more(name, file["reference"]), f"{file['bytes']:,}"]
        if with_times:
            row += [f"{file[f'{x}_ratio']:.2f}" for x in ("latency_ms", "memory")]
        rows.append(row)
    blocks = [Table(rows)]
    ours = [name for name in files if files[name]["of"] != "published"]
    floats = [name for name in ours if files[name]["precision"] == "float32"]
    pairs = list(itertools.combinations(floats, 2))
    if pairs:
        rows = [["run", "more than", *images]]
        rows += [[shown(b), shown(a), *more(b, a)] for a, b in pairs]
        blocks += [Text("Ours in float32, one with another:"), Table(rows)]
    return blocks


def _percent(found):
    low, high = 100 * found["low"], 100 * found["high"]
    return f"{100 * found['mean']:.2f} [{low:.2f}, {high:.2f}]"


def _more(found):
    values = (100 * found[name] for name in ("mean", "low", "high"))
    return "{:+.2f} [{:+.2f}, {:+.2f}], p {:.2g}".format(*values, found["p"])


def picture(records: pathlib.Path) -> str:
    """Returns the picture of the prices that records tell, as SVG."""
    (comparison,) = compare([records]).comparisons
    return comparison.pictures()["prices"].data.decode()


def keep(runs: pathlib.Path, folder: pathlib.Path) -> None:
    """Makes records of the finished runs in a folder."""
    for record in sorted(runs.rglob("run.json")):
        if read_json(record)["status"] != "finished":
            continue
        to = folder / record.parent.relative_to(runs)
        to.mkdir(parents=True, exist_ok=True)
        for name in ("run.json", "quality.json"):
            if record.with_name(name).exists():
                write_json(to / name, for_others(read_json(record.with_name(name))))
        shutil.copy(record.with_name("log.csv"), to)


def for_others(content):
    """Returns JSON values without the folders above what paths name."""
    if isinstance(content, dict):
        return {name: for_others(value) for name, value in content.items()}
    if isinstance(content, list):
        return [for_others(value) for value in content]
    return without_folders(content) if isinstance(content, str) else content


def main(arguments=None, documents=DOCUMENTS, records=RECORDS, pictures=PICTURES):
    """Returns the exit status: 1 where `--check` finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument(
        "--keep", nargs=2, metavar=("RUNS", "NAME"), help="make records of run folders"
    )
    options = parser.parse_args(arguments)
    if options.keep:
        runs, name = options.keep
        keep(pathlib.Path(runs), records / name)
    made = {
        document: filled(document.read_text(encoding="utf-8"), records)
        for document in documents
    }
    for folder in records.iterdir():
        made[pictures / f"results-{folder.name}.svg"] = picture(folder)
    differ = False
    for document, new in made.items():
        text = document.read_text(encoding="utf-8") if document.exists() else ""
        differ |= new != text
        if not options.check:
            document.write_text(new, encoding="utf-8")
            continue
        lines = difflib.unified_diff(
            text.splitlines(),
            new.splitlines(),
            f"{document.name}, as it is",
            f"{document.name}, by the records",
            lineterm="",
        )
        print("\n".join(lines), end="")
    if options.check and differ:
        print("\nExpected the tables of the records: python benchmarks/results.py")
    return int(options.check and differ)


if __name__ == "__main__":
    sys.exit(main())
