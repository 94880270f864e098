"""Experiments with several seeds and studies: what is trained where, and once."""

import dataclasses
import os
import re
import types

import pytest

from keras_hsakd import cli, runs
from keras_hsakd.runs import Line, Run, recipes, run_seeds, run_study, study, training

PAIR = "cifar100/wrn_40_2-wrn_16_2"
FEW = "cifar100/resnet56-resnet20/labels-25"


@pytest.fixture
def trained(monkeypatch):
    """Returns what would be trained, by folders in their order."""
    calls = {}

    def train(kind, folder, settings, data, execution, overwrite, verbose, recipe):
        assert folder not in calls
        calls[folder] = types.SimpleNamespace(
            kind=kind,
            seed=settings.seed,
            epochs=settings.epochs,
            data=data,
            resume=execution.resume,
            recipe=recipe,
        )
        return Run(folder, {})

    monkeypatch.setattr(study, "train", train)
    return calls


def test_seeds_have_folders_of_their_own(trained):
    runs = run_seeds(recipes.get(PAIR), "out", [3, 5])
    assert list(trained) == [
        f"out/seed_{seed}/{step}" for seed in (3, 5) for step in ("teacher", "student")
    ]
    assert {seed: run.path for seed, run in runs.items()} == {
        3: "out/seed_3/student",
        5: "out/seed_5/student",
    }
    student = trained["out/seed_5/student"]
    assert (student.kind.teacher, student.seed) == (("out/seed_5/teacher",), 5)
    # A published figure is that of the last step.
    assert (student.recipe, student.resume) == (PAIR, False)
    assert trained["out/seed_5/teacher"].recipe is None


def test_one_teacher_for_all_seeds(trained, tmp_path):
    run_seeds(recipes.get(f"{PAIR}/frozen"), "out", [3, 5], one_teacher=True)
    assert list(trained) == [
        *("out/seed_3/backbone", "out/seed_3/teacher", "out/seed_3/student"),
        "out/seed_5/student",
    ]
    assert trained["out/seed_5/student"].kind.teacher == ("out/seed_3/teacher",)


def lines(*names, **options):
    return [Line(recipes.get(name), name.split("/")[-1], **options) for name in names]


def test_a_study_trains_a_teacher_once(trained):
    few, half = (f"cifar100/resnet56-resnet20/labels-{part}" for part in (25, 50))
    run_study(lines(few, half, seeds=(0, 1)), "out")
    shared = [folder for folder in trained if folder.startswith("out/shared/")]
    assert len(trained) == len(shared) + 4 == 6
    assert [trained[folder].seed for folder in shared] == [0, 1]
    for part in (25, 50):
        student = trained[f"out/labels-{part}/seed_1/student"]
        assert student.kind.teacher == (shared[1],)
        assert student.resume


def test_other_teachers_are_not_shared(trained, tmp_path):
    names = (PAIR, f"{PAIR}/frozen")
    short = recipes.get(PAIR).scaled(epochs=3)
    given = Line(recipes.get(names[1]), "given", given={"backbone": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match="has no run.json"):
        run_study([*lines(*names), Line(short, "short"), given], "out")
    assert not trained  # all is looked at before

    run_study([*lines(*names), Line(short, "short")], "out")
    folders = [os.path.basename(f).rsplit("-", 1)[0] for f in trained if "shared" in f]
    teacher = "teacher-wrn_40_2-seed_0"
    assert folders == [teacher, "backbone-wrn_40_2-seed_0", teacher, teacher]
    placed = study._place_line(given, lambda step: study._name_of(step, given))
    names = {os.path.basename(folder) for folder in trained}
    assert placed[0].folder not in names


def test_the_name_of_a_teacher_stays():
    """A study that is gone on with finds what it trained before."""
    (line,) = lines(FEW)
    name = study._name_of(line.recipe.steps[0], line)
    assert name == "teacher-resnet56-seed_0-9c1bbf82"


def test_a_study_writes_a_cache_once(trained, monkeypatch):
    def cache_teacher(folder, settings, data, verbose):
        assert folder not in caches
        assert tuple(trained) == settings.teacher  # which is there, and no student
        caches[folder] = settings

    caches = {}
    monkeypatch.setattr(study, "cache_teacher", cache_teacher)
    first = recipes.get("photographs/resnet20-resnet8/cached-4").scaled(data="digits")
    *steps, last = first.steps
    steps.append(dataclasses.replace(last, options={"sampled_views": 2}))
    both = first, dataclasses.replace(first, name="sampled", steps=tuple(steps))
    runs = run_study([Line(r, r.name, (0, 1), one_teacher=True) for r in both], "out")
    ((folder, settings),) = caches.items()
    assert os.path.basename(folder).startswith("cache-resnet20-seed_0-")
    assert (settings.variants, settings.seed) == (4, 0)
    students = [trained[run.path] for seeds in runs.values() for run in seeds.values()]
    assert {(s.kind.cache, s.kind.teacher) for s in students} == {(folder, None)}
    assert [s.kind.sampled_views for s in students] == [None, None, 2, 2]


@pytest.mark.parametrize("name", ["cached-4", "lean"])
def test_a_cache_has_the_images_of_all_seeds(trained, monkeypatch, name):
    monkeypatch.setattr(study, "cache_teacher", lambda *args, **options: None)
    recipe = recipes.get(f"photographs/resnet20-resnet8/{name}")
    few = recipe.scaled(data="digits", limit=40)
    line = Line(few, "few", (0, 1), one_teacher=True)
    with pytest.raises(ValueError, match="0, by which limit=40 .* Received: seed=1"):
        run_study([*lines(PAIR), line], "out")
    assert not trained
    run_seeds(few, "out", (0, 1))  # a cache each


def test_two_for_a_folder(trained):
    same = [Line(recipes.get(f"cifar100/{n}/baseline"), "a") for n in ("wrn_16_2",) * 2]
    run_study(same, "out")
    trained.clear()
    other = [Line(same[0].recipe.scaled(epochs=3), "a")]
    with pytest.raises(ValueError, match="in a folder each. Received: .*seed_0/base"):
        run_study(same + other, "out")
    assert not trained
    more = [*same, dataclasses.replace(same[0], seeds=(1,))]
    assert list(run_study(more, "out")["a"]) == [0, 1]


# The command line.


@pytest.fixture
def studied(monkeypatch):
    """Returns what a study was called with."""
    received = {}

    def run_study(lines, output, verbose, execution):
        received.update(lines={line.name: line for line in lines}, output=output)
        return {}

    monkeypatch.setattr(runs, "run_study", run_study, raising=False)
    return received


def run_lines(tmp_path, text, flags=""):
    file = tmp_path / "study.txt"
    file.write_text(text)
    return cli.main(["study", str(file), "--output", "out", *flags.split()])


def test_lines_and_flags_for_all(studied, tmp_path, capsys):
    text = f"""
        # What it is about.
        {PAIR} --one-teacher   # and why
        {PAIR} --epochs 60 --seed 7
        {FEW} --data 'my photos/cats' --limit 9 --seeds 4
    """
    flags = "--data photos --epochs 30 --seeds 0 1 --limit 100"
    assert run_lines(tmp_path, text, flags) == 0, capsys.readouterr().err
    first, second, third = studied["lines"].values()
    assert list(studied["lines"]) == [
        "cifar100--wrn_40_2-wrn_16_2--one-teacher",
        "cifar100--wrn_40_2-wrn_16_2--epochs-60",
        "cifar100--resnet56-resnet20--labels-25--data-my photos--cats--limit-9",
    ]
    assert (list(first.seeds), first.one_teacher) == ([0, 1], True)
    assert (list(second.seeds), second.one_teacher) == ([7], False)
    assert list(third.seeds) == [4]
    for line, data, limit, epochs in (
        (first, "photos", 100, 30),
        (second, "photos", 100, 60),
        (third, "my photos/cats", 9, 30),
    ):
        images = line.recipe.steps[0].data
        assert (images.data, images.limit) == (data, limit)
        assert line.recipe.steps[-1].training.epochs == epochs
    assert "keras-hsakd report out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cifar100/wrn_16_2/basline", "did you mean 'cifar100/wrn_16_2/baseline'"),
        (f"{PAIR} --epoch 3", "`keras-hsakd run`. Received: unrecognized.*'--epochs'"),
        (f"{PAIR} --seeds 1 1", "`--seeds` to be different numbers from 0 on"),
        (f"{PAIR} --seeds 1 --seed 2", "`--seed` or `--seeds`. Received: both"),
        (f"{PAIR} --one-teacher", "`--seeds` with `--one-teacher`. Received: none"),
        (f"{PAIR} --backbone x", r"one of the earlier steps of .*\['teacher'\]"),
        (f"{PAIR} --data 'x", "No closing quotation"),
    ],
)
def test_a_line_that_is_wrong(studied, tmp_path, capsys, line, message):
    assert run_lines(tmp_path, f"{FEW}\n{line}\n") == 1
    error = capsys.readouterr().err
    assert "study.txt, line 2: " in error
    assert re.search(message, error)
    assert not studied


def test_what_is_told_of_a_line_wins(studied, tmp_path, capsys):
    text = f"{PAIR} --seed 0\n{PAIR} --limit 1\nstl10/linear\n"
    flags = "--seed 5 --limit 9 --target-data mine"
    assert run_lines(tmp_path, text, flags) == 0, capsys.readouterr().err
    first, second, third = studied["lines"].values()
    assert list(studied["lines"])[1].endswith("--limit-1")
    assert (list(first.seeds), list(second.seeds)) == ([0], [5])
    assert second.recipe.steps[0].data.limit == 1
    assert third.recipe.steps[-1].data.data == "mine"


def test_target_data_of_no_line(studied, tmp_path, capsys):
    assert run_lines(tmp_path, f"{PAIR}\n", "--target-data mine") == 1
    assert "Expected a line with a linear classifier" in capsys.readouterr().err
    assert not studied


# From end to end.


@pytest.mark.slow
def test_a_study_goes_on_where_it_was_stopped(
    stand_ins, eager_trainers, tmp_path, monkeypatch, capfd
):
    names = (PAIR, f"{PAIR}/terms-ce-main")
    small = "--data digits --image-size 8 --limit 40 --epochs 2 --batch-size 20"
    words = f"{small} --seeds 0 1 --one-teacher --verbose 0 --snapshot-steps 1"
    text = "\n".join(names)
    monkeypatch.chdir(tmp_path)
    assert run_lines(tmp_path, text, words) == 0, capfd.readouterr().err
    whole = {
        path.relative_to(tmp_path / "out"): Run.open(path.parent).record
        for path in sorted((tmp_path / "out").rglob("run.json"))
    }
    assert len(whole) == 1 + 4
    os.rename("out", "whole")

    def stop(recorder, epoch, logs=None):
        recorder.write()
        if recorder.run.path.endswith("seed_1/student"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.Recorder, "on_epoch_end", stop)
        assert run_lines(tmp_path, text, words) == 130
    stopped = tmp_path / "out" / PAIR.replace("/", "--") / "seed_1" / "student"
    assert Run.open(stopped).record["epochs_done"] == 1
    done = sorted((tmp_path / "out").rglob("run.json"))
    began = {path: Run.open(path.parent).record["began"] for path in done}
    assert len(done) == 3
    assert run_lines(tmp_path, text, words) == 0, capfd.readouterr().err
    for path, time in began.items():
        assert Run.open(path.parent).record["began"] == time
    for path, record in whole.items():
        again = Run.open((tmp_path / "out" / path).parent).record
        assert again["last"]["loss"] == pytest.approx(record["last"]["loss"])
    assert cli.main(["report", "out"]) == 0
    printed = capfd.readouterr().out
    assert printed.count("| 0, 1 |") == 2
    baseline = f"cifar100/wrn_16_2/baseline {small} --verbose 0"
    words = f"run {baseline} --seeds 3 --output seeds"
    assert cli.main(words.split()) == 0
    assert os.path.isdir("seeds/seed_3/baseline")
