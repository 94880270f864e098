"""What finished trainings say together, by records made by hand."""

import base64
import csv
import json
import math
import re
import statistics

import matplotlib.figure
import numpy as np
import pytest
from records import OWN_IMAGES, write_run

from keras_hsakd import cli, drawings, lock
from keras_hsakd.runs import compare, recipes
from keras_hsakd.runs.intervals import paired_difference, spread

# By seed, of labels alone and of a student.
LABELS = {0: 0.61, 1: 0.63, 2: 0.60}
STUDENT = {0: 0.70, 1: 0.69, 2: 0.72, 3: 0.99}


@pytest.fixture
def runs(tmp_path):
    """Returns a folder with two methods, and the teacher of one."""
    folder = tmp_path / "runs"
    teacher = write_run(folder / "teacher", 0.75, kind="teacher", model="resnet20")
    for seed, accuracy in LABELS.items():
        write_run(folder / "a" / f"seed_{seed}", accuracy, accuracy + 0.01, seed)
    for seed, accuracy in STUDENT.items():
        place = folder / "b" / f"seed_{seed}" / "student"
        write_run(place, accuracy, seed=seed, kind="distill", teacher=teacher)
    return folder


def methods(*folders, **options):
    """Returns the methods of the only comparison, by name."""
    (comparison,) = compare(folders, **options).comparisons
    return {method.settings: method for method in comparison.methods}


# Statistics.


def test_means_and_deviations():
    values = list(LABELS.values())
    assert spread(values) == (statistics.mean(values), np.std(values, ddof=1))
    assert spread([0.5]) == (0.5, None)


def test_differences_are_paired_by_seed():
    found = paired_difference(STUDENT, LABELS)
    paired = [STUDENT[seed] - LABELS[seed] for seed in LABELS]
    half = 4.30265273 * np.std(paired, ddof=1) / math.sqrt(3)
    expected = np.mean(paired) + [0, -half, half]
    np.testing.assert_allclose(found[:3], expected)
    assert found.seeds == 3
    one = paired_difference({1: 2.0, 2: 4.0}, {1: 1.5})
    assert one == (0.5, None, None, 1)
    assert paired_difference({1: 2.0}, {2: 1.0}) is None


# Methods.


def test_runs_are_one_method_whatever_their_seeds(runs):
    found = methods(runs)
    names = ["baseline resnet8", "distill resnet8 from resnet20", "teacher resnet20"]
    assert list(found) == names
    student = found[names[1]]
    assert list(student.runs) == [0, 1, 2, 3]
    assert student.accuracy("last").mean == pytest.approx(77.5)
    assert found[names[0]].accuracy("best").mean == pytest.approx(62.3333333)
    assert student.differences["last"].seeds == 3
    assert student.differences["last"].mean == pytest.approx(9.0)
    assert found[names[0]].differences == {}
    assert found[names[2]].seconds == 10


def test_teachers_of_other_seeds_are_the_same_method(tmp_path):
    for seed in (0, 1):
        made = tmp_path / f"seed_{seed}"
        teacher = write_run(made / "teacher", seed=seed, kind="teacher")
        write_run(made / "student", seed=seed, kind="distill", teacher=teacher)
    found = methods(tmp_path)
    assert [list(method.runs) for method in found.values()] == [[0, 1], [0, 1]]


def test_what_differs_is_in_the_name(tmp_path):
    teacher = write_run(tmp_path / "teacher", kind="teacher")
    other = write_run(tmp_path / "other", kind="teacher", epochs=5)
    write_run(tmp_path / "long", epochs=7)
    write_run(tmp_path / "few", label_fraction=0.5)
    for number, options in enumerate(
        (
            {"teacher": teacher},
            {"teacher": teacher, "heads": False, "method": "kd"},
            {"teacher": other, "head": "light", "milestones": (0.5,)},
        )
    ):
        write_run(tmp_path / f"student_{number}", kind="distill", **options)
    found = list(methods(tmp_path))
    assert "baseline resnet8, epochs 7, label fraction" not in found
    *_, first, second, third, _ = found
    assert "heads" in first and "no heads" not in first
    assert "no heads" in second and "method kd" in second
    assert "milestones 0.5" in third and "head light" in third
    told_of_heads = [name for name in found if ", head " in name]
    assert told_of_heads == [name for name in found if name in (first, third)]
    assert "teacher epochs 5" in third and "teacher epochs 2" in first
    assert "temperature" not in "".join(found)


def test_an_option_that_is_the_default_goes_without_saying(tmp_path):
    teacher = write_run(tmp_path / "teacher", kind="teacher")
    for name, options in {
        "a": {},
        "b": {"method": "dkd", "method_settings": {"beta": 6.0}},
        "c": {"temperature": 2.0},
    }.items():
        write_run(tmp_path / name, kind="distill", teacher=teacher, **options)
    first, second, third, _ = methods(tmp_path)
    assert first == "distill resnet8 from resnet8"
    assert second == f"{first}, method dkd, beta 6"
    assert third == f"{first}, temperature 2"


def test_a_setting_that_an_older_record_lacks_is_as_by_default(tmp_path):
    for seed in (0, 1):
        record = write_run(tmp_path / str(seed), seed=seed)
    del record["training"]["head"]
    del record["data"], record["machine"], record["versions"]
    record["data"] = {"data": "/elsewhere/photographs", "limit": None}
    (tmp_path / "1" / "run.json").write_text(json.dumps(record))
    assert [list(method.runs) for method in methods(tmp_path).values()] == [[0, 1]]


def test_a_student_of_a_converted_checkpoint(tmp_path):
    record = write_run(tmp_path / "teacher", kind="teacher", epochs=240)
    record |= {"kind": "converted", "options": {"source": "/somewhere/net.pth"}}
    del record["image_multiply_adds"]
    (tmp_path / "teacher" / "run.json").write_text(json.dumps(record))
    write_run(tmp_path / "a", kind="distill", teacher=record)
    trained = write_run(tmp_path / "trained", kind="teacher")
    write_run(tmp_path / "b", kind="distill", teacher=trained)
    text = compare([tmp_path]).markdown()
    assert "teacher kind converted, " in text and "teacher source net.pth" in text
    assert "/somewhere" not in text
    row = next(line for line in text.splitlines() if line.startswith("| converted"))
    assert " | – | 10 |" in row and "epochs" not in row
    assert "teacher epochs 240" not in text and "teacher kind converted" in text


def test_a_file_that_was_learned_from_has_no_folders(tmp_path):
    for name in ("a", "b"):
        record = write_run(tmp_path / f"teacher_{name}", kind="teacher")
        record["training"]["model"] = f"/somewhere/{name}.keras"
        write_run(tmp_path / name, kind="distill", teacher=record)
    text = compare([tmp_path / "a", tmp_path / "b"]).markdown()
    assert " from a.keras" in text and "/somewhere" not in text


def test_a_record_that_was_touched_is_named(tmp_path, capsys):
    teacher = write_run(tmp_path / "teacher", kind="teacher")
    record = write_run(tmp_path / "student", kind="distill", teacher=teacher)
    record["origin"]["settings"]["training"] = 3
    (tmp_path / "student" / "run.json").write_text(json.dumps(record))
    assert cli.main(["report", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "Expected `origin.settings.training` in '" in error
    assert error.count("\n") == 1


def test_one_seed_twice_is_told_apart_by_folders(tmp_path):
    for name in ("own", "shared"):
        for seed in (0, 1):
            write_run(tmp_path / name / f"seed_{seed}" / "student", seed=seed)
    found = methods(tmp_path)
    assert list(found) == ["baseline resnet8, in own", "baseline resnet8, in shared"]
    assert [list(method.runs) for method in found.values()] == [[0, 1], [0, 1]]
    write_run(tmp_path / "own" / "seed_1" / "again", seed=1)
    with pytest.raises(ValueError, match="one run of each method and seed. Received"):
        compare([tmp_path])


def test_other_images_are_another_comparison(runs, tmp_path):
    write_run(tmp_path / "more" / "a", measured=200)
    write_run(tmp_path / "more" / "b", data="tfds:photographs")
    record = write_run(tmp_path / "more" / "c", measured=200)
    record["images"]["class_names"] = ["eel", "fox"]
    (tmp_path / "more" / "c" / "run.json").write_text(json.dumps(record))
    report = compare([runs, tmp_path / "more"], against=runs / "b")
    assert [comparison.title for comparison in report.comparisons] == [
        "photographs: 100 test images of 2 classes",
        "photographs: 200 test images of 2 classes",
        "tfds:photographs: 100 test images of 2 classes",
        "photographs: 200 test images of 2 classes",
    ]
    assert str(tmp_path) not in report.markdown()


def test_what_is_not_finished_is_in_no_mean(runs, tmp_path):
    write_run(runs / "a" / "seed_9", 0.1, seed=9, status="interrupted")
    report = compare([runs])
    assert list(report.comparisons[0].methods[0].runs) == [0, 1, 2]
    line = "runs/a/seed_9: baseline run of resnet8, interrupted after 2 of 2 epochs"
    assert f"\n\n{line} (val_accuracy 0.1000)\n" in report.markdown()
    report = compare([runs / "a" / "seed_9"])
    assert report.comparisons == [] and len(report.unfinished) == 1


def test_against_what(runs):
    by_name = methods(runs, against="teacher resnet20")
    by_folder = methods(runs, against=runs / "teacher")
    for found in (by_name, by_folder):
        assert found["teacher resnet20"].differences == {}
        assert found["baseline resnet8"].differences["last"].low is None
        assert found["baseline resnet8"].differences["last"].mean == pytest.approx(-14)
    with pytest.raises(ValueError, match="to be one method. Received: .*, with \\['l"):
        compare([runs], against=runs)
    with pytest.raises(ValueError, match="or one of \\['labels', .*'nothing'"):
        compare([runs], against="nothing")


def test_no_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="with some below it. Received: '"):
        compare([tmp_path])


# Pictures.


def drawn_axes(draw, *arguments):
    figure = matplotlib.figure.Figure()
    draw(figure, *arguments)
    (axes,) = figure.axes
    return axes, [text.get_text() for text in figure.legends[0].get_texts()]


def test_curves_are_those_of_the_seeds_and_their_mean():
    found = {"a": [[1.0, 3.0, 9.0], [2.0, 4.0]], "$_{<b>": [[5.0]]}
    axes, names = drawn_axes(drawings.curves, found, "accuracy, %")
    lines = [line.get_xydata().tolist() for line in axes.lines]
    assert lines == [
        [[1, 1], [2, 3], [3, 9]],
        [[1, 2], [2, 4]],
        [[1, 1.5], [2, 3.5]],  # as far as both go
        [[1, 5]],
    ]
    colors = [line.get_color() for line in axes.lines]
    assert colors[0] == colors[1] == colors[2] != colors[3]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "accuracy, %")
    assert names == [*found]
    file = drawings.with_legend(drawings.curves, found, "accuracy, %")
    assert b"$_{&lt;b&gt;" in file
    assert file == drawings.with_legend(drawings.curves, found, "accuracy, %")


def test_prices_are_on_a_scale_of_round_numbers():
    found = {"a": (2e12, [71.0, 73.0])}
    found |= {str(number): (9e12, [74.0 + number]) for number in range(12)}
    axes, names = drawn_axes(drawings.prices, found, "%", "cost")
    rings, mean, *others = axes.lines
    assert rings.get_xydata().tolist() == [[2e12, 71], [2e12, 73]]
    assert mean.get_xydata().tolist() == [[2e12, 72]]
    looks = {(line.get_color(), line.get_marker()) for line in (mean, *others)}
    assert len(looks) == len(names) == 13
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert {"2 T", "5 T"} <= set(labels)


# What is written.


def test_the_report_on_paper(runs, tmp_path, capsys):
    record = json.loads((runs / "a" / "seed_0" / "run.json").read_text())
    quality = {"checkpoint": "last", "top_5_accuracy": 0.875, "nll": 1.25, "seed": 3}
    quality["images"] = dict(OWN_IMAGES)
    (runs / "a" / "seed_0" / "quality.json").write_text(json.dumps(quality))
    quality |= {"top_5_accuracy": 0.925, "by_class": {"cat": 0.5}, "bad": math.nan}
    (runs / "a" / "seed_1" / "quality.json").write_text(json.dumps(quality))
    output = tmp_path / "report"
    assert cli.main(["report", str(runs), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    with lock.held(output), pytest.raises(BlockingIOError, match="no other process"):
        compare([runs]).write(output)
    text = (output / "report.md").read_text()
    assert printed.startswith(text)
    row = next(line for line in text.splitlines() if line.startswith("| HSAKD"))
    assert row == (
        "| HSAKD | 0, 1, 2, 3 | 77.50 ± 14.39 "
        "| 77.50 ± 14.39 | +9.00 [+1.55, +16.45] | 20 G | 12 |"
    )
    assert "| +14.00 (one seed) |" in text
    assert "chosen on the test images themselves" in text
    assert "| top 5 accuracy | 90.00% |" in text and "| nll | 1.2500 |" in text
    assert "seed |" not in text and "nan" not in text
    assert record["machine"]["processor"] in text

    with open(output / "report.csv", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    student = rows["HSAKD"]
    assert float(student["last_difference_low"]) == pytest.approx(1.547587)
    assert student["seeds_in_common"] == "3"
    assert student["against"] == "labels"
    assert float(rows["labels"]["top_5_accuracy"]) == pytest.approx(0.9)
    assert rows["teacher resnet20"]["last_deviation"] == ""
    page = (output / "report.html").read_text()
    curves, prices = (
        base64.b64decode(picture).decode()
        for picture in re.findall('src="data:image/svg.xml;base64,([^"]*)"', page)
    )
    for picture in (curves, prices):
        assert all(f">{name}</text>" in picture for name in rows)
    assert ">epoch</text>" in curves and ">multiply-adds of" in prices
    assert "<script" not in page and "http" not in page


def test_published_figures_stand_beside(tmp_path):
    recipe = recipes.get("cifar100/resnet20/baseline")
    settings = vars(recipe.steps[-1].training)
    for name, changes in (("as_there", {}), ("shorter", {"epochs": 3})):
        record = write_run(tmp_path / name, **{**settings, **changes}, data="cifar100")
        record["recipe"] = recipe.name
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    published = [method.published for method in methods(tmp_path).values()]
    assert published == ["69.62 ± 0.26", "69.62 ± 0.26 (other settings)"]
    text = compare([tmp_path]).markdown()
    assert "| 69.62 ± 0.26 |" in text and "Published: the authors' figures" in text


def test_published_figures_are_of_a_teacher_and_of_images(tmp_path):
    recipe = recipes.get("cifar100/wrn_40_2-wrn_16_2/frozen")
    backbone, teacher, student = (vars(step.training) for step in recipe.steps)
    number = iter(range(9))

    def published(of_teacher=(), kind="teacher", with_backbone=True, size=32):
        folder = tmp_path / str(next(number))
        cifar = {"data": "cifar100"}
        origin = write_run(folder / "backbone", **{**backbone, **cifar, "seed": 3})
        origin = origin if with_backbone else None
        told = {**teacher, **cifar, "seed": 4, **dict(of_teacher)}
        origin = write_run(folder / "teacher", kind="teacher", teacher=origin, **told)
        if with_backbone:
            origin["origin"] = origin["origin"]["settings"]
        origin["kind"] = kind
        told = {**student, **cifar}
        record = write_run(folder / "student", kind="distill", teacher=origin, **told)
        record["recipe"], record["images"]["image_size"] = recipe.name, size
        (folder / "student" / "run.json").write_text(json.dumps(record))
        (method,) = methods(folder / "student").values()
        return method.published

    other = f"{recipe.published} (other settings)"
    assert published() == recipe.published
    assert published(size=16) == other
    assert published({"epochs": 99}) == published({"model": "wrn_28_10"}) == other
    assert published({"sampled_views": 2}) == other
    assert published(with_backbone=False) == other
    # How a checkpoint was trained is not known.
    assert published(kind="converted", with_backbone=False) == recipe.published
    converted = {"kind": "converted", "with_backbone": False}
    assert published({"model": "wrn_28_10"}, **converted) == other


def test_quality_is_that_of_the_same_images(tmp_path):
    for seed in range(3):
        write_run(tmp_path / str(seed), seed=seed)
    write_run(tmp_path / "harder", epochs=3)
    by_view = {"90_degrees": {}}
    figures = {"nll": 1.0, "accuracy_under_90_degrees": 0.25}
    for place, changes, severity in (
        ("0", {}, 3),
        ("1", {"measured_on": "validation images", "count": 50}, 3),
        ("2", {"data": "others"}, 3),
        ("harder", {}, 5),
    ):
        figures |= {"accuracy_under_contrast": 1 / (2 + severity)}
        images = {**OWN_IMAGES, **changes}
        content = {**figures, "images": images, "by_view": by_view}
        content["corruptions"] = {"severity": severity, "seed": 0}
        (tmp_path / place / "quality.json").write_text(json.dumps(content))
        figures["nll"] += 1
    report = compare([tmp_path])
    text = report.markdown()
    assert "| nll | 1.0000 | 4.0000 |" in text
    assert "| accuracy under 90 degrees | 25.00% | 25.00% |" in text
    assert "| accuracy under contrast of severity 3 | 20.00% | – |" in text
    assert "| accuracy under contrast of severity 5 | – | 14.29% |" in text
    left_out = "Left out: what 'labels, epochs 2', seed"
    assert f"{left_out} 1, is worth on 50 validation images of photographs.\n" in text
    assert f"{left_out} 2, is worth on 100 test images of others.\n" in text
    assert text.count("Left out: ") == 2


def test_what_a_cache_took_stands_apart(tmp_path):
    teacher = write_run(tmp_path / "teacher", kind="teacher")
    write_run(tmp_path / "exact", kind="distill", teacher=teacher)
    record = write_run(tmp_path / "student", kind="distill", teacher=teacher)
    record["origin"]["cache"] = {"path": "/x", "digest": "a", "variants": 4}
    record["origin"]["cache"]["multiply_adds"] = 4_520_000_000
    (tmp_path / "student" / "run.json").write_text(json.dumps(record))
    # 2 epochs, and 4 passes, of 10 images in 4 views.
    text = compare([tmp_path]).markdown()
    assert "| 20 G + 4.52 G, cache | " in text
    assert "| HSAKD, cached variants 4 | " in text
    assert "| HSAKD | " in text
    assert "students share it" in text


def test_the_cost_of_a_method_is_a_mean_over_its_runs(tmp_path):
    for seed, epochs in ((0, 2), (1, 5)):
        record = write_run(tmp_path / str(seed), seed=seed, epochs=9, patience=1)
        record["image_multiply_adds"] = 300
        record["epochs_done"] = epochs
        record["last"]["epoch"] = epochs
        (tmp_path / str(seed) / "run.json").write_text(json.dumps(record))
    (method,) = methods(tmp_path).values()
    assert method.spent.training == 10 * 300 * (2 + 5) / 2


def test_a_cost_that_is_not_known_is_left_out(tmp_path):
    write_run(tmp_path / "baseline")
    record = write_run(tmp_path / "mutual", kind="mutual")
    del record["image_multiply_adds"]
    (tmp_path / "mutual" / "run.json").write_text(json.dumps(record))
    known = {method.settings: method.spent for method in methods(tmp_path).values()}
    assert known["baseline resnet8"] is not None
    assert known["mutual resnet8"] is None
    assert "| mutual | 0 | 50.00 | 50.00 | +0.00 (one seed) | – |" in (
        compare([tmp_path]).markdown()
    )
