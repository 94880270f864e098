import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_ten_lines_run_as_they_stand(tmp_path, monkeypatch):
    code = re.search(r"## Ten lines\n\n```python\n(.*?)```", README, re.S)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    exec(code.replace("epochs=10", "epochs=1"), {})
    assert (tmp_path / "serving" / "student" / "1" / "saved_model.pb").exists()


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(link):
    assert link.startswith("https://") or (ROOT / link).exists()
