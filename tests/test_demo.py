import json

import numpy as np
import pytest

from keras_hsakd import cli, demo

SMALL = (
    "--teacher resnet8 --student wrn_10_1 --examples-per-class 2 --image-size 8 "
    "--batch-size 400 --teacher-epochs 2 --student-epochs 2 --evaluate-every 1"
)


def test_the_demo_from_the_command_line(stand_ins_once, tmp_path, capsys):
    output = tmp_path / "demo"
    assert (
        cli.main(["demo", "--output", str(output), "--seeds", "2", *SMALL.split()]) == 0
    )
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


@pytest.mark.slow
def test_an_earlier_demo_is_overwritten(tmp_path):
    output = tmp_path / "demo"
    for seeds, more in (("2", []), ("1", ["--overwrite"])):
        arguments = ["demo", "--output", f"{output}/", "--seeds", seeds]
        assert cli.main([*arguments, *more, *SMALL.split()]) == 0
    assert len(json.loads((output / "results.json").read_text())["seeds"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--seeds 0", "Expected `seeds` to be at least 1. Received: seeds=0"),
        ("--evaluate-every 0", "Expected `evaluate_every` to be at least 1"),
        ("--student resnet9", "did you mean 'resnet8'"),
        ("--student-epochs 7", "Expected `student_epochs` to be a positive multiple"),
        ("--examples-per-class 1000", "Expected `examples_per_class` to be at most"),
    ],
)
def test_bad_arguments_are_reported_before_any_training(
    arguments, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(demo, "_train_all", None)
    output = tmp_path / "x"
    assert cli.main(["demo", "--output", str(output), *arguments.split()]) == 1
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_only_a_demo_is_overwritten(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert cli.main(["demo", "--output", str(tmp_path), "--overwrite"]) == 1
    assert "that an earlier demo wrote" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").exists()
