import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


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


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(link):
    assert link.startswith("https://") or (ROOT / link).exists()
