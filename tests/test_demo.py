import dataclasses
import json
import os

import numpy as np
import pytest

from keras_hsakd import cli, demo, lock

SMALL = (
    "--teacher resnet8 --student wrn_10_1 --examples-per-class 2 --image-size 8 "
    "--batch-size 400 --teacher-epochs 1 --student-steps 2 --evaluate-every 1"
)
TINY = demo.DemoSettings(
    teacher="wrn_10_1",
    student="wrn_10_1",
    examples_per_class=2,
    image_size=8,
    teacher_epochs=1,
    student_steps=4,
    evaluate_every=2,
)


def test_the_demo_from_the_command_line(
    stand_ins_once, eager_trainers, tmp_path, capsys
):
    output = tmp_path / "demo"
    assert (
        cli.main(["demo", "--output", str(output), "--seeds", "2", *SMALL.split()]) == 0
    )
    printed = capsys.readouterr().out
    for title in demo.METHODS.values():
        assert f"| {title} (" in printed
    assert "The SavedModel, on 798 raw uint8 images" in printed
    assert "HSAKD: the gain is " in printed
    results = json.loads((output / "results.json").read_text())
    assert set(results["methods"]) == set(demo.METHODS)
    for row in results["methods"].values():
        accuracies = np.array(row["accuracy_by_seed"])
        last = accuracies[:, -1]
        assert row["accuracy_mean"] == pytest.approx(last.mean())
        if row["gain"]:
            plain = np.array(results["methods"]["plain"]["accuracy_by_seed"])[:, -1]
            assert accuracies.shape == (2, 2)
            assert row["accuracy_deviation"] == pytest.approx(last.std(ddof=1))
            assert row["gain"]["mean"] == pytest.approx((last - plain).mean())
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (output / "serving" / "student" / "1" / "saved_model.pb").exists()

    assert cli.main(["demo", "--output", str(output)]) == 1
    assert "Expected `output`" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("method", ["logits", "unlabeled"])
def test_a_seed_is_the_same_after_others(method):
    teacher, _ = demo._train_teacher(TINY, validation=True)
    (student, last), (alone, only) = (
        demo._train_students(method, teacher, TINY, seeds, validation=True)
        for seeds in ((0, 1), (1,))
    )
    assert last[1] == only[1]
    for weight, expected in zip(student.weights, alone.weights, strict=True):
        np.testing.assert_array_equal(weight, expected)


@pytest.mark.parametrize(
    ("low", "told"), [(0.001, "more than the spread"), (-0.001, "NOT more than")]
)
def test_what_is_said_of_a_gain(low, told):
    row = {"accuracy_mean": 0.9, "accuracy_deviation": 0.01}
    gain = {"mean": 0.01, "low": low, "high": 0.03}
    methods = {name: {**row, "gain": gain} for name in demo.METHODS}
    for name in ("teacher", "plain"):
        methods[name]["gain"] = None
    table = demo.table(
        {
            "measured_on": "test images",
            "data": "digits",
            "seeds": [0, 1],
            "settings": dataclasses.asdict(TINY),
            "parameters": {"teacher": 2000, "student": 1000},
            "methods": methods,
            "seconds": 1.0,
            "machine": "x",
        }
    )
    assert f"student, HSAKD: the gain is {told}" in table
    assert f"| 1,000 | 90.0 ± 1.0 | +1.0 ({100 * low:+.1f} to +3.0) |" in table
    assert "| 2,000 | 90.0 ± 1.0 |  |" in table


@pytest.mark.slow
def test_an_earlier_demo_is_overwritten(stand_ins_once, eager_trainers, tmp_path):
    output = tmp_path / "demo"
    for seeds, more in (("1", []), ("2", ["--overwrite"])):
        arguments = ["demo", "--output", f"{output}/", "--seeds", seeds]
        assert cli.main([*arguments, *more, *SMALL.split()]) == 0
        methods = json.loads((output / "results.json").read_text())["methods"]
        helped = [name for name, row in methods.items() if row["gain"] is not None]
        assert helped == ["logits", "hsakd", "unlabeled"]
    assert len(json.loads((output / "results.json").read_text())["seeds"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--seeds 0", "Expected `seeds` to be at least 1. Received: seeds=0"),
        ("--evaluate-every 0", "Expected `--evaluate-every` to be at least 1"),
        ("--student resnet9", "did you mean 'resnet8'"),
        ("--student-steps 50", "Expected `student_steps` to be a multiple of evalua"),
        ("--batch-size 0", "Expected `--batch-size` to be at least 1"),
        ("--examples-per-class 1000", "Expected `examples_per_class` to be at most"),
    ],
)
def test_bad_arguments_are_reported_before_any_training(
    arguments, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(demo, "_train_teacher", None)
    output = tmp_path / "x"
    assert cli.main(["demo", "--output", str(output), *arguments.split()]) == 1
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_only_a_demo_is_overwritten(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert cli.main(["demo", "--output", str(tmp_path), "--overwrite"]) == 1
    assert "that an earlier demo wrote" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").exists()


def test_one_demo_at_a_time_writes_to_a_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "_run", None)
    with lock.held_beside(tmp_path / "demo"):
        assert cli.main(["demo", "--output", str(tmp_path / "demo")]) == 1
    assert f"demo', where process {os.getpid()} on" in capsys.readouterr().err
