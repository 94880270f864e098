"""From a teacher's run to a cache of its outputs, and to students of it."""

import os
import shutil

import keras
import pytest

from keras_hsakd import TeacherCache, cli, data
from keras_hsakd.runs import (
    CacheSettings,
    DataSettings,
    Distill,
    Run,
    Teacher,
    TrainingSettings,
    cache_teacher,
    check_cache,
    recipes,
    run_recipe,
    train,
    training,
)

TRAINING = TrainingSettings(model="resnet8", epochs=1, batch_size=6)
STUDENT = "--model resnet8 --epochs 1 --batch-size 5 --verbose 0 --output"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, stand_ins, eager_trainers):
    digits = DataSettings(data="digits", image_size=8, limit=8)
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    return train(Teacher(), folder, TRAINING, digits, verbose=0)


@pytest.fixture
def teacher(trained, tmp_path, monkeypatch):
    """Returns a teacher's run, in the folder that commands are run in."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.path, "teacher")
    return Run.open("teacher")


def run(line):
    """Runs a command, and returns its exit status."""
    return cli.main(line.split())


def test_students_learn_from_a_cache_alone(teacher, capsys):
    assert run("cache --teacher teacher --output cache --variants 2 --limit 6") == 0
    said = capsys.readouterr().out
    assert "6 images in 2 variants take " in said
    assert "Wrote cache." in said
    assert run("cache --output cache --check") == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[1:]] == ["logits", *_heads(3)]
    weights = teacher.weights_digest()
    shutil.rmtree("teacher")  # what a student needs of it is in the cache

    assert run(f"distill --cache cache {STUDENT} student") == 0, capsys.readouterr().err
    record = Run.open("student").record
    assert record["data"]["limit"] == 6  # as the cache, whatever the teacher had
    assert record["origin"]["weights"] == weights
    assert record["origin"]["model"] == "resnet8"
    cache = TeacherCache("cache")
    assert record["origin"]["cache"]["digest"] == cache.digest
    assert record["origin"]["cache"]["variants"] == 2
    assert "cache" not in record["options"]

    again = f"distill --cache moved {STUDENT} student --resume"
    shutil.move("cache", "moved")
    assert run(again) == 0, capsys.readouterr().err
    assert Run.open("student").record == record


def test_a_cache_is_written_first(teacher, capsys):
    distill = f"distill --teacher teacher {STUDENT} runs/lean --preset lean"
    os.mkdir("runs")
    for wrong in ("--no-heads", "--method-settings beta=6"):
        assert run(f"{distill} {wrong}") == 1
        assert not os.listdir("runs")  # before anything is written
    assert run(distill) == 0, capsys.readouterr().err
    assert sorted(os.listdir("runs")) == ["lean", "lean-cache"]
    record = Run.open("runs/lean").record
    cache = TeacherCache("runs/lean-cache")
    assert record["origin"]["cache"]["digest"] == cache.digest
    assert cache.variants == 1  # no more than epochs
    assert record["options"]["sampled_views"] == 2
    written = os.stat("runs/lean-cache/header.json").st_mtime_ns
    assert run(f"{distill} --resume") == 0  # it is that run
    assert run(f"{distill} --overwrite") == 0
    assert os.stat("runs/lean-cache/header.json").st_mtime_ns == written
    assert run(f"distill --cache runs/lean-cache {STUDENT} other --preset lean") == 0
    assert run(f"{distill} --overwrite --seed 1") == 1  # another order of the images
    assert "lean-cache" in capsys.readouterr().err


def _heads(count):
    return [f"aux_{number}" for number in range(1, count + 1)]


def test_a_run_is_of_one_cache(teacher, capsys):
    settings = CacheSettings(teacher="teacher", variants=1)
    for name, changes in (("first", {}), ("second", {"crop": "resized"})):
        cache_teacher(name, settings, changes, verbose=0)
    assert run(f"distill --cache first {STUDENT} student") == 0
    capsys.readouterr()
    for other in ("--cache second", "--teacher teacher"):
        assert run(f"distill {other} {STUDENT} student --resume") == 1
        assert "Expected the settings of the run" in capsys.readouterr().err
    assert run(f"distill --cache first --crop resized {STUDENT} other") == 1
    assert "the images of the teacher cache 'first'" in capsys.readouterr().err
    assert run(f"distill {STUDENT} other") == 1
    assert "Received: neither" in capsys.readouterr().err
    assert run("cache --output other") == 1
    assert "Expected `teacher`, the run folder whose" in capsys.readouterr().err
    assert run("cache --teacher teacher --output first") == 1
    assert "Received: 'first', which exists" in capsys.readouterr().err


def test_what_a_cache_fixes_is_said_before_images_are_read(
    teacher, monkeypatch, capsys
):
    assert run("cache --teacher teacher --output cache --variants 1 --verbose 0") == 0
    monkeypatch.setattr(training, "load", None)
    distill = "distill --cache cache --model resnet8 --output out"
    seeds = "run photographs/resnet20-resnet8/lean --output out --one-teacher --seeds"
    for line, message in (
        (f"{distill} --no-heads", "Expected no `cache` without heads: a cache"),
        (f"{distill} --checkpoint best", "Expected checkpoint='last', whose outputs"),
        (f"{distill} --limit 5", "'cache', with limit=8. Received: limit=5"),
        (f"{distill} --validation", "validation=False. Received: validation=True"),
        (f"{distill} --seed 1", "'cache', 0, by which limit=8 chooses images. Rec"),
        (f"{seeds} 0 1 --teacher teacher", "by which limit=8 chooses images"),
        (f"{seeds} 0 1 --cache cache", "by which limit=8 chooses images"),
        (f"{seeds} 0 --cache cache --limit 5", "with limit=8. Received: limit=5"),
        (f"{seeds} 0 --teacher teacher --image-size 16", "Expected no `image_size` bu"),
    ):
        assert run(line) == 1
        assert message in capsys.readouterr().err
    assert [name for _, _, names in os.walk("out") for name in names] == []


def test_a_student_has_the_checkpoint_of_the_cache(teacher):
    settings = CacheSettings(teacher="teacher", checkpoint="best", variants=1)
    cache_teacher("cache", settings, verbose=0)
    assert Distill(cache="cache").origin().checkpoint == "best"
    assert Distill(cache="cache", checkpoint="best").origin().checkpoint == "best"
    with pytest.raises(ValueError, match="Received: checkpoint='last'"):
        Distill(cache="cache", checkpoint="last").origin()
    assert Distill(teacher="teacher").origin().checkpoint == "last"


def test_a_step_of_a_given_teacher_has_the_images_that_are_told(teacher):
    recipe = recipes.get("photographs/resnet20-resnet8/cached-4")
    scale = {"epochs": 1, "batch_size": 6, "limit": 6, "given": ["teacher"]}
    for seed in (0, 0):  # it is finished
        scaled = recipe.scaled(seed=seed, **scale, data="digits")
        runs = run_recipe(scaled, "out", {"teacher": "teacher"}, verbose=0)
    assert runs["student"].record["images"]["train"] == 6
    assert TeacherCache("out/cache").header["num_images"] == 6


def test_a_cache_is_of_one_teacher(teacher):
    settings = CacheSettings(teacher="teacher", variants=1)
    cache_teacher("cache", settings, verbose=0)
    shutil.copytree("teacher", "other")
    network = keras.saving.load_model("other/last.keras", compile=False)
    network.set_weights([2 * values for values in network.get_weights()])
    network.save("other/last.keras")
    with pytest.raises(
        ValueError, match="Expected `cache` to be of `teacher`, .*other'"
    ):
        Distill(teacher="other", cache="cache").origin()
    with pytest.raises(ValueError, match="Expected the teacher of the cache 'cache'"):
        check_cache("cache", "other")
    assert Distill(teacher="teacher", cache="cache").origin().cache.variants == 1
    assert Distill(cache="cache").origin().weights == teacher.weights_digest()


def test_a_cache_without_a_run(teacher):
    digits, _ = data.load("digits", image_size=8, limit=4)
    layers = keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(10)
    TeacherCache.write("cache", keras.Sequential(layers), digits, 1, verbose=0)
    with pytest.raises(ValueError, match="Expected `cache` to be of a run"):
        Distill(cache="cache").origin()
