import importlib.util
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

import keras_hsakd
from keras_hsakd import commands as of_command_line

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = sorted(
    page
    for folder in (".", "docs", "examples")
    for page in (ROOT / folder).glob("*.md")
)


def test_the_ten_lines_run_on_few_images(eager_trainers, tmp_path, monkeypatch):
    code = re.search(r"## Ten lines\n\n```python\n(.*?)```", README, re.S)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    few = {"epochs=10": "epochs=1", '"digits", ': '"digits", limit=32, '}
    for old, new in few.items():
        assert old in code
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert (tmp_path / "serving" / "student" / "1" / "saved_model.pb").exists()


@pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: path.parent.name + "-" + path.stem
)
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if link.startswith("https://"):
            continue
        path, _, heading = link.partition("#")
        page = document.parent / path if path else document
        assert page.exists(), link
        assert not heading or heading in headings(page), link


def headings(page):
    """Returns what GitHub calls the headings of a page in links."""
    found = re.findall(r"^#+ (.*)", page.read_text(), re.M)
    return [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in found]


@pytest.mark.skipif(not importlib.util.find_spec("myst_nb"), reason="needs docs")
@pytest.mark.slow
def test_the_site_is_made_without_a_warning(tmp_path):
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(r"\$\(BIN\)/sphinx-build (.*) build/site", makefile)[1]
    command = [sys.executable, "-m", "sphinx", *recipe.split(), tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for page in DOCUMENTS:
        assert (tmp_path / page.relative_to(ROOT)).with_suffix(".html").exists()
    pages = sorted((tmp_path / "docs" / "api").glob("*.html"))
    api = "".join(page.read_text() for page in pages)
    for name in keras_hsakd.__all__:
        assert re.search(rf'id="(module-)?keras_hsakd\.{name}"', api), name


def test_workflows_run_targets_of_make():
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M)
    workflows = (ROOT / ".github" / "workflows").glob("*.yml")
    for step in re.findall(
        r"- run: (.*)", "".join(map(pathlib.Path.read_text, workflows))
    ):
        command, target = step.split()
        assert command == "make" and target in targets, step


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
