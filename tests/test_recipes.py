"""Experiments: their settings, and that each runs from end to end."""

import dataclasses
import functools
import shutil

import numpy as np
import pytest
import tensorflow as tf

from keras_hsakd import Distiller, drawings, models, strip_heads
from keras_hsakd.compat import shapes_only
from keras_hsakd.data import names as data_names
from keras_hsakd.heads import multiply_adds_by_part, signature
from keras_hsakd.runs import DataSettings, Run, kinds, recipes, run_recipe
from keras_hsakd.runs.costs import image_multiply_adds
from keras_hsakd.runs.timing import ConstantTeacher
from keras_hsakd.terms import parse
from keras_hsakd.trainers import BaselineTrainer

PAIR = "cifar100/wrn_40_2-wrn_16_2"
CLASSES = ("cat", "dog", "eel")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder of small images: eight a class to train on, two to test."""
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 2)):
        for name in CLASSES:
            for number in range(count):
                image = rng.integers(0, 256, (12, 10, 3), "uint8")
                file = str(path / part / name / f"{number}.png")
                tf.io.write_file(file, tf.io.encode_png(image))
    return str(path)


def accuracy(name):
    return float(recipes.get(name).published.partition(" ")[0])


# Settings.


def test_what_the_issue_lists_is_there():
    names = recipes.names()
    assert sum(name.endswith("/frozen") for name in names) == 8 + 1
    assert sum(name.endswith("/online") for name in names) == 8 + 1
    assert sum("labels-" in name for name in names) == 3
    assert {"stl10/linear", "tiny_imagenet/linear"} < set(names)
    assert "imagenet/resnet34_imagenet-resnet18_imagenet" in names


def test_the_gain_of_the_paper():
    """The published gains over the best method before, of the paper's abstract."""
    pairs = [name for name in recipes.names() if f"{name}/frozen" in recipes.names()]
    pairs = [name for name in pairs if name.startswith("cifar100")]
    assert len(pairs) == 8
    joint, frozen = (
        np.mean([accuracy(name + suffix) for name in pairs])
        for suffix in ("", "/frozen")
    )
    # +2.56 with jointly trained teachers, +1.42 with others: the same best before.
    np.testing.assert_allclose(joint - frozen, 2.56 - 1.42, atol=0.01)


@functools.cache
def outputs_of(model):
    with shapes_only():
        return models.create(model, 10, (32, 32, 3)).output


@pytest.mark.parametrize("name", recipes.names())
def test_networks_and_data_exist_and_fit(name):
    recipe = recipes.get(name)
    counts = set()
    for step in recipe.steps:
        outputs = outputs_of(step.training.model)
        with_heads = step.options.get("heads", step.kind != "baseline")
        if with_heads and step.kind != "linear" and step.training.head == "copy":
            counts.add(len(outputs))
        if isinstance(step.data, DataSettings):
            folders = ("imagenet", "tiny-imagenet-200", "photographs", "cifar10_jpeg")
            assert step.data.data in (*data_names(), *folders)
        for term in map(parse, step.options.get("terms", ())):
            assert set(term.on_names) <= {"images", "heads", *outputs}
    assert len(counts) <= 1


def test_schedules():
    by_model = {
        step.training.model: step.training
        for name in recipes.names()
        if name.startswith("cifar100") and "/frozen" not in name
        for step in recipes.get(name).steps
    }
    for model, training in by_model.items():
        small = model.startswith(("mobilenet", "shufflenet"))
        assert training.learning_rate == (0.01 if small else 0.05)
        drops = [m * training.epochs for m in training.milestones]
        assert (training.epochs, drops) == (240, [150, 180, 210])
        assert (training.momentum, training.nesterov) == (0.9, True)
        assert (training.weight_decay, training.batch_size) == (5e-4, 64)
    frozen = recipes.get("cifar100/wrn_40_2-wrn_16_2/frozen").steps[1].training
    assert [m * frozen.epochs for m in frozen.milestones] == [30, 60, 90]
    imagenet = recipes.get("imagenet/resnet18_imagenet/baseline").steps[0].training
    assert (imagenet.epochs, imagenet.batch_size) == (100, 256)
    assert (imagenet.learning_rate, imagenet.weight_decay) == (0.1, 1e-4)
    assert not imagenet.nesterov
    linear = recipes.get("stl10/linear").steps[-1].training
    assert (linear.learning_rate, linear.weight_decay) == (0.1, 0.0)


def test_scaled():
    recipe = recipes.get("stl10/linear").scaled(
        epochs=10, seed=3, batch_size=8, data="mine", target_data="other", limit=5
    )
    assert [step.training.epochs for step in recipe.steps] == [24, 24, 10]
    assert {step.training.seed for step in recipe.steps} == {3}
    data, student, target = (step.data for step in recipe.steps)
    assert (data.data, student, target.data) == ("mine", {}, "other")
    assert recipe.steps[-1].data.limit == 5
    assert recipe.steps[-1].data.crop == "resized"


def test_what_comes_after_a_given_step_has_the_images_that_are_told():
    cached = recipes.get("photographs/resnet20-resnet8/cached-4")
    told = {"data": "mine", "data_dir": "there", "limit": 5, "image_size": 16}
    for given, steps in (("teacher", ("cache",)), ("cache", ("student",))):
        recipe = cached.scaled(**told, given=[given])
        found = {s.name: s.data for s in recipe.steps if s.data and s.name != "teacher"}
        assert found == dict.fromkeys(steps, told)
    few = recipes.get("cifar100/resnet56-resnet20/labels-25")
    student = few.scaled(limit=5, given=["teacher"]).steps[-1]
    assert student.data == {"label_fraction": 0.25, "limit": 5}
    with pytest.raises(ValueError, match="Expected `target_data` for an experiment"):
        few.scaled(target_data="mine")


def test_images_that_are_not_square_are_padded_when_they_are_turned():
    recipe = recipes.get(f"{PAIR}/frozen")
    plain = {"heads": False, "views": "rotations"}
    steps = [*recipe.steps, dataclasses.replace(recipe.steps[-1], options=plain)]
    recipe = dataclasses.replace(recipe, steps=tuple(steps))

    def views(**changes):
        return [s.options.get("views") for s in recipe.scaled(**changes).steps]

    assert views(image_size=(24, 24)) == [None, None, None, "rotations"]
    padded = "padded_rotations"
    assert views(image_size=(16, 24)) == [None, padded, None, padded]


def test_long_trainings_have_the_multiply_adds_of_the_method():
    pair = [models.create(name, 10) for name in ("resnet20", "resnet8")]
    teacher, student = map(strip_heads, pair)
    method, labels, logits = map(
        image_multiply_adds,
        (Distiller(*pair), BaselineTrainer(student), Distiller(teacher, student)),
    )
    for name, cost in (
        ("photographs/resnet8/baseline-long", labels),
        ("photographs/resnet20-resnet8/kd-long", logits),
    ):
        epochs = recipes.get(name).steps[-1].training.epochs
        assert epochs == round(30 * method / cost)


def test_long_trainings_have_the_multiply_adds_of_the_lean_student():
    names = ("resnet20", "mlperf_resnet8")
    first, second = pair = [models.create(name, 10, head="light") for name in names]
    teacher, student = map(strip_heads, pair)
    parts = dict(zip(names, map(multiply_adds_by_part, pair), strict=True))
    lean, labels, logits = map(
        image_multiply_adds,
        (
            Distiller(ConstantTeacher(signature(first)), second, sampled_views=2),
            BaselineTrainer(student),
            Distiller(teacher, student),
        ),
    )
    pair = "mlperf_tiny/resnet20-mlperf_resnet8"
    _, _, cache, student = recipes.get(f"{pair}/lean").steps
    written = cache.options["variants"] * 4 * sum(parts["resnet20"].values())
    price = student.training.epochs * lean + written
    for name, cost in (
        ("mlperf_tiny/mlperf_resnet8/baseline-long", labels),
        (f"{pair}/kd-long", logits),
    ):
        epochs = recipes.get(name).steps[-1].training.epochs
        assert epochs == round(price / cost)


def test_the_table_names_each():
    lines = recipes.table().splitlines()
    assert len(lines) == 2 + len(recipes.names())
    line = next(line for line in lines if "wrn_40_2-shufflenet_v1 |" in line)
    assert "240 epochs, 0.01 ÷10 at 150/180/210 | 80.11 ± 0.32 |" in line


@pytest.mark.parametrize("name", recipes.names())
def test_no_setting_is_without_effect(name):
    for step in recipes.get(name).steps:
        if step.kind != recipes.CACHE:
            needs = {k: v for k, v in step.needs.items() if k != "cache"}
            kind = kinds.KINDS[step.kind](**needs, **step.options)
            kind.check_settings(step.training, step.data, None)


def test_unknown_names():
    with pytest.raises(ValueError, match="did you mean 'cifar100/wrn_40_2-wrn_16_2'"):
        recipes.get("cifar100/wrn_40_2-wrn_16_1")
    with pytest.raises(ValueError, match=r"\['teacher'\]. Received: 'backbone'"):
        recipes.get("cifar100/wrn_40_2-wrn_16_2").without("backbone")


# Runs.


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(drawings, "training_curves", lambda *_: None)


def run(name, folder, output, given=None, options=(), **scale):
    scale |= {"target_data": folder} if name.endswith("/linear") else {}
    recipe = recipes.get(name).scaled(epochs=1, batch_size=12, data=folder, **scale)
    return run_recipe(recipe, output, given, verbose=0, **dict(options))


@pytest.fixture(scope="module")
def shared_steps():
    """Run folders of steps that several experiments begin with."""
    return {}


def kind(name):
    """Returns what of an experiment decides on the way that it is run."""
    steps = recipes.get(name).steps
    methods = [step.options.get("method") for step in steps]
    options = [tuple(step.options) for step in steps]
    settings = name.partition("/")[0], methods, options
    return [step.kind for step in steps], settings


# Methods whose recipes differ from pair to pair in their networks alone.
BENCHMARK = ("/kd", "/fitnet", "/attention", "/similarity", "/relational")
KINDS = [kind(name) for name in recipes.names()]


def differs_little(name):
    """Returns whether another recipe shows most of it."""
    other = ("imagenet", "tiny_imagenet", "stl10", "photographs", "voc", "mlperf_tiny")
    rare = ("/frozen", "dkd", "standardized", *BENCHMARK)
    return name.startswith(other) or name.endswith(rare)


def with_new_networks():
    """Returns experiments that together have each network."""
    seen, names = set(), []
    for name in recipes.names():
        steps = recipes.get(name).steps
        networks = {(step.training.model, step.training.head) for step in steps}
        if not networks <= seen:
            names.append(name)
        seen |= networks
    return names


@pytest.mark.parametrize(
    "name",
    [
        # All of them take minutes.
        pytest.param(name, marks=[pytest.mark.slow] if differs_little(name) else [])
        for i, name in enumerate(recipes.names())
        if KINDS.index(kind(name)) == i
    ],
)
def test_each_runs_with_stand_ins(
    name, folder, stand_ins, eager_trainers, shared_steps, tmp_path
):
    steps = recipes.get(name).steps
    keys = {step.name: str(steps[: i + 1]) for i, step in enumerate(steps[:-1])}
    given = {n: shared_steps[key] for n, key in keys.items() if key in shared_steps}
    runs = run(name, folder, tmp_path / "out", given, image_size=8, limit=12)
    assert list(runs)[-1] == steps[-1].name
    trained = {step.name for step in steps if step.kind != recipes.CACHE}
    assert {*runs, *given} == trained
    shared_steps.update({keys[n]: runs[n].path for n in runs if n in keys})
    for finished in runs.values():
        assert finished.record["status"] == "finished"
        assert 0 <= finished.record["last"][finished.record["monitor"]] <= 1
    last = Run.open(tmp_path / "out" / list(runs)[-1])
    assert last.record["training"]["epochs"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", with_new_networks())
def test_each_runs_with_the_networks_themselves(name, folder, tmp_path):
    size = 64 if name.startswith("imagenet") else 32
    runs = run(name, folder, tmp_path / "out", image_size=size, limit=12)
    assert all(r.record["status"] == "finished" for r in runs.values())


@pytest.mark.slow
def test_what_is_finished_is_not_run_again(folder, stand_ins, tmp_path, capsys):
    first = run(PAIR, folder, tmp_path, image_size=8)
    began = first["teacher"].record["began"]
    shutil.rmtree(tmp_path / "student")
    again = run(PAIR, folder, tmp_path, image_size=8)
    assert again["teacher"].record["began"] == began
    assert "teacher: " in capsys.readouterr().out
    losses = [runs["student"].record["last"]["loss"] for runs in (first, again)]
    assert losses[0] == losses[1]
    with pytest.raises(FileExistsError, match="`--overwrite` replaces it"):
        run(PAIR, folder, tmp_path, image_size=8, seed=1)


@pytest.mark.slow
def test_a_cache_that_is_there(folder, tmp_path):
    def run_cached(variants):
        recipe = recipes.get("photographs/resnet20-resnet8/lean")
        options = {"variants": variants}
        cache = dataclasses.replace(recipe.steps[1], options=options)
        steps = (recipe.steps[0], cache, recipe.steps[2])
        recipe = dataclasses.replace(recipe, steps=steps)
        scale = {"epochs": 1, "batch_size": 12, "image_size": 8, "data": str(folder)}
        return run_recipe(recipe.scaled(**scale), tmp_path / "out", verbose=0)

    first = run_cached(1)
    assert list(first) == ["teacher", "student"]
    origin = first["student"].record["origin"]
    assert origin["weights"] == first["teacher"].weights_digest()
    header = tmp_path / "out" / "cache" / "header.json"
    written = header.stat().st_mtime_ns
    shutil.rmtree(tmp_path / "out" / "student")
    again = run_cached(1)
    assert header.stat().st_mtime_ns == written
    assert (
        again["student"].record["last"]["loss"]
        == first["student"].record["last"]["loss"]
    )
    # Of the same teacher, and not what is asked for.
    shutil.rmtree(tmp_path / "out" / "student")
    with pytest.raises(FileExistsError, match="teacher cache. Received: .*out/cache'"):
        run_cached(2)
    assert not (tmp_path / "out" / "student").exists()


@pytest.mark.slow
def test_a_teacher_that_is_there(folder, stand_ins, tmp_path):
    runs = run(PAIR, folder, tmp_path / "a", image_size=8)
    recipe = recipes.get(f"{PAIR}/frozen").scaled(epochs=1, batch_size=12)
    given = {"teacher": runs["teacher"].path}
    again = run_recipe(recipe, tmp_path / "b", given, verbose=0)
    assert list(again) == ["student"]
    assert again["student"].record["origin"]["run"] == runs["teacher"].path


@pytest.mark.slow
def test_a_student_of_another_teacher_is_not_kept(folder, stand_ins, tmp_path):
    few = run(PAIR, folder, tmp_path / "a", image_size=8, limit=12)
    with pytest.raises(FileExistsError, match="a/teacher', which holds a teacher run"):
        run(PAIR, folder, tmp_path / "a", image_size=8, limit=15)
    overwrite = {"overwrite": True}
    more = run(PAIR, folder, tmp_path / "a", None, overwrite, image_size=8, limit=15)
    digests = set()
    for runs, limit in ((few, 12), (more, 15)):
        record = runs["student"].record
        assert record["data"]["limit"] == limit
        digests.add(record["origin"]["weights"])
    assert digests >= {more["teacher"].weights_digest()} and len(digests) == 2

    # A teacher of the same settings, with other weights.
    shutil.copytree(more["teacher"].path, tmp_path / "other")
    network = more["teacher"].network()
    network.set_weights([weight + 1 for weight in network.get_weights()])
    network.save(tmp_path / "other" / "last.keras")
    given = {"teacher": tmp_path / "other"}
    with pytest.raises(FileExistsError, match="a/student', which holds a distill run"):
        run(PAIR, folder, tmp_path / "a", given, image_size=8, limit=15)
    last = run(PAIR, folder, tmp_path / "a", given, overwrite, image_size=8, limit=15)
    digest = last["student"].record["origin"]["weights"]
    assert digest == Run.open(tmp_path / "other").weights_digest()
