"""The tables of the documentation are those of the committed records."""

import importlib.util
import json
import pathlib

from records import OWN_IMAGES, write_run

PROGRAM = pathlib.Path(__file__).parent.parent / "benchmarks" / "results.py"
spec = importlib.util.spec_from_file_location("results", PROGRAM)
results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results)


def test_the_documents_agree_with_the_records(capsys):
    assert results.main(["--check"]) == 0, capsys.readouterr().out


def test_tables_are_made_and_checked(tmp_path, capsys):
    for seed, (one, other) in enumerate([(0.6, 0.7), (0.62, 0.71)]):
        runs = tmp_path / "runs"
        write_run(runs / "labels" / f"seed_{seed}", accuracy=one, seed=seed)
        write_run(runs / "long" / f"seed_{seed}", accuracy=other, seed=seed, epochs=4)
    quality = {"checkpoint": "last", "top_5_accuracy": 0.875}
    quality["images"] = dict(OWN_IMAGES)
    (runs / "long" / "seed_0" / "quality.json").write_text(json.dumps(quality))
    document, records = tmp_path / "results.md", tmp_path / "records"
    before = "<!-- results: study against long -->\n<!-- end -->\n\nAfter it.\n"
    few = "<!-- results: study of long -->\n<!-- end -->\n"
    beyond = "<!-- quality: study of long -->\n<!-- end -->\n"
    document.write_text(f"# Results\n\n{before}{few}{beyond}")
    where = {"documents": [document], "records": records, "pictures": tmp_path}
    assert results.main(["--keep", str(runs), "study"], **where) == 0
    text = document.read_text()
    assert text.startswith("# Results\n\n<!-- results: study against long -->\n")
    text, middle, after = text.partition("\n\nAfter it.\n")
    assert after.startswith("<!-- results: study of long -->\n") and "70.50" in after
    assert "61.00" in text and "61.00" not in after
    after_it, beyond, quality = after.partition("<!-- quality: study of long -->\n")
    assert "| top 5 accuracy | 87.50% |" in quality and "top 5" not in after_it
    assert "70.50" not in quality
    text = f"{text}{middle}{after}"
    assert "| 70.50 ± 0.71 |" in text
    assert "| -9.50 [-15.85, -3.15] |" in text
    assert str(tmp_path) not in text
    picture = tmp_path / "results-study.svg"
    assert "labels, epochs 4" in picture.read_text()
    assert results.main(["--check"], **where) == 0
    drawn = picture.read_text()
    picture.write_text(drawn.replace("epochs 4<", "epochs 5<"))
    assert results.main(["--check"], **where) == 1
    assert ">labels, epochs 5</text>" in capsys.readouterr().out
    picture.write_text(drawn)
    document.write_text(text.replace("70.50", "75.50"))
    assert results.main(["--check"], **where) == 1
    assert "75.50" in document.read_text()
    assert "+| labels, epochs 4 | 0, 1 | 70.50" in capsys.readouterr().out

    kept = sorted(path.name for path in records.rglob("*") if path.is_file())
    assert kept == ["log.csv"] * 4 + ["quality.json"] + ["run.json"] * 4
    record = json.loads((records / "study/long/seed_0/run.json").read_text())
    assert record["data"]["data"] == "photographs"
