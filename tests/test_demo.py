import json

import numpy as np
import pytest

from keras_hsakd import cli, demo

SMALL = demo.Settings(
    teacher="resnet8",
    student="wrn_10_1",
    examples_per_class=2,
    image_size=8,
    batch_size=20,
    teacher_epochs=2,
    student_epochs=2,
    evaluate_every=1,
)


def test_the_demo_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "Settings", lambda: SMALL)
    output = tmp_path / "demo"
    assert cli.main(["demo", "--output", str(output), "--seeds", "2"]) == 0
    printed = capsys.readouterr().out
    for title in demo.METHODS.values():
        assert f"| {title} (" in printed
    assert "The SavedModel, on 798 raw uint8 images" in printed
    results = json.loads((output / "results.json").read_text())
    assert set(results["methods"]) == set(demo.METHODS)
    for row in results["methods"].values():
        accuracies = np.array(row["accuracy_by_seed_and_epoch"])
        assert accuracies.shape == (2, 2)
        assert row["accuracy_mean"] == pytest.approx(accuracies[:, -1].mean())
        assert row["best_mean"] == pytest.approx(accuracies.max(axis=1).mean())
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (output / "serving" / "student" / "1" / "saved_model.pb").exists()

    assert cli.main(["demo", "--output", str(output)]) == 1
    assert "Expected `output`" in capsys.readouterr().err


def test_bad_arguments(tmp_path, capsys):
    assert cli.main(["demo", "--output", str(tmp_path / "x"), "--seeds", "0"]) == 1
    assert "Expected `seeds` to be at least 1" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_help_shows_defaults(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["demo", "--help"])
    assert end.value.code == 0
    assert "number of repetitions (default: 3)" in capsys.readouterr().out


def test_an_interrupt_is_no_traceback(monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupt)
    assert cli.main(["demo"]) == 130
    assert "interrupted" in capsys.readouterr().err
