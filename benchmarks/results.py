"""The tables of results in the documentation, made from committed records of runs.

    python benchmarks/results.py
    python benchmarks/results.py --check
    python benchmarks/results.py --keep runs/study study

In `README.md`, `docs/results.md` and `docs/cheaper.md`, what stands between

    <!-- results: NAME of FOLDER OTHER against FOLDER -->
    <!-- end -->

are the accuracies that `keras-hsakd report` prints of `benchmarks/records/NAME`, or of
folders in it, `--against` one of them; `of ...` and `against FOLDER` may be left out.
With `quality` for `results` it is what the networks are worth beyond that. Between
`<!-- demo -->` and `<!-- end -->` in `docs/demo.md` is what `keras-hsakd demo` printed
when it wrote `benchmarks/demo.json`. `docs/results-NAME.svg` has the accuracies of NAME
by what they cost. `--check` changes nothing, and fails with what would change.
`--keep RUNS NAME` makes records of run folders: `run.json`, `log.csv` and
`quality.json`, without networks, and without the folders above what paths name.
"""

import argparse
import difflib
import os
import pathlib
import re
import shutil
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from keras_hsakd import demo
from keras_hsakd.documents import Text, markdown
from keras_hsakd.files import read_json, without_folders, write_json
from keras_hsakd.runs import compare

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "docs" / "results.md",
    ROOT / "docs" / "demo.md",
    ROOT / "docs" / "cheaper.md",
)
RECORDS = ROOT / "benchmarks" / "records"
PICTURES = ROOT / "docs"
DEMO = ROOT / "benchmarks" / "demo.json"
OF_DEMO = re.compile(r"(<!-- demo -->\n)(.*?)(<!-- end -->)", re.S)
TABLE = re.compile(
    r"(<!-- (results|quality): (\S+)(?: of (.*?))?(?: against (\S+))? -->\n)(.*?)"
    r"(<!-- end -->)",
    re.S,
)


def filled(text: str, records: pathlib.Path) -> str:
    """Returns a document with the tables of the records between its marks."""

    def table(match):
        begin, kind, name, folders, against, _, end = match.groups()
        runs = [records / name / folder for folder in (folders or ".").split()]
        blocks = []
        for found in compare(runs, against and records / name / against).comparisons:
            is_quality = kind == "quality"
            of_kind = found.quality_blocks() if is_quality else found.accuracy_blocks()
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

    return OF_DEMO.sub(of_demo, TABLE.sub(table, text))


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
                write_json(to / name, _for_others(read_json(record.with_name(name))))
        shutil.copy(record.with_name("log.csv"), to)


def _for_others(content):
    """Returns JSON values without the folders above what paths name."""
    if isinstance(content, dict):
        return {name: _for_others(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_for_others(value) for value in content]
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
