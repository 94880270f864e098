import pathlib
import re
import shlex

import pytest

from keras_hsakd import commands as of_command_line

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def run_ten_lines(tmp_path, monkeypatch, changes):
    code = re.search(r"## Ten lines\n\n```python\n(.*?)```", README, re.S)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert (tmp_path / "serving" / "student" / "1" / "saved_model.pb").exists()


def test_the_ten_lines_run_on_few_images(eager_trainers, tmp_path, monkeypatch):
    few = {"epochs=10": "epochs=1", '"digits", ': '"digits", limit=32, '}
    run_ten_lines(tmp_path, monkeypatch, few)


@pytest.mark.slow  # `make release-check` runs them, too
def test_the_ten_lines_run_as_they_stand(tmp_path, monkeypatch):
    run_ten_lines(tmp_path, monkeypatch, {"epochs=10": "epochs=1"})


@pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: path.parent.name + "-" + path.stem
)
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        assert link.startswith("https://") or (document.parent / link).exists(), link


def test_figures_are_those_of_records():
    """Those in the prose stand in tables too, which are made from records."""
    made = "".join(
        (ROOT / "docs" / f"{name}.md").read_text() for name in ("results", "demo")
    )
    tables = re.findall(r"^\|.*\|$", made, re.M)
    prose = re.sub(r"^\|.*\|$", "", README, flags=re.M)
    figures = re.findall(r"\d+\.\d+ ± \d+\.\d+", prose)
    assert figures
    for figure in figures:
        assert any(figure in line for line in tables), figure


def commands(text):
    """Returns the words of each `keras-hsakd ...` in the blocks of code of a text."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.S | re.M)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    called = re.compile(r"\s*(?:\$ |TF_CONFIG=.* )?keras-hsakd (?!.*(?:\.\.\.|\$))(.*)")
    found = filter(None, map(called.fullmatch, lines))
    return [shlex.split(each[1], comments=True) for each in found]


@pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: path.parent.name + "-" + path.stem
)
def test_commands_are_those_of_the_command_line(document):
    parser = of_command_line.parser()
    for words in commands(document.read_text()):
        try:
            parser.parse_args(words)
        except SystemExit as ended:
            assert ended.code == 0, words  # as of --help


def test_the_quickstart_has_every_step():
    words = commands((ROOT / "docs" / "quickstart.md").read_text())
    steps = dict.fromkeys(command for command, *_ in words)
    assert list(steps) == [
        "--help",
        "convert",
        "baseline",
        "distill",
        "teacher",
        "plan",
        "evaluate",
        "report",
        "export",
        "try",
    ]
