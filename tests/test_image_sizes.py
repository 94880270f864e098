"""Images that are not square, from the command line to the served network."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from keras_hsakd import cli, commands, data, heads, sizes
from keras_hsakd.runs import (
    DataSettings,
    Distill,
    ExecutionSettings,
    Run,
    Teacher,
    TrainingSettings,
    compare,
    evaluate,
    export_run,
    kinds,
    planning,
    tensorboard,
    timing,
    train,
)
from keras_hsakd.tryout.artefacts import open_artefact
from keras_hsakd.tryout.opening import open_networks

DIGITS = DataSettings(data="digits", image_size=(16, 24), limit=8, center_crop=0.75)
TRAINING = TrainingSettings(model="wrn_10_1", epochs=1, batch_size=8)
RESUME = ExecutionSettings(resume=True)
VIEWS = "padded_rotations"


@pytest.fixture(scope="module")
def runs(stand_ins, eager_trainers, tmp_path_factory):
    """Returns a folder with the runs of a teacher and of its student."""
    folder = tmp_path_factory.mktemp("runs")
    teacher = Teacher(views=VIEWS)
    train(teacher, folder / "teacher", TRAINING, DIGITS, verbose=0)
    student = Distill(teacher=folder / "teacher", weak_teacher=True)
    train(student, folder / "student", TRAINING, verbose=0)
    return folder


# Sizes


@pytest.mark.parametrize(
    "text, size, written, words",
    [
        ("24", 24, "24", "24 x 24"),
        ("24x24", 24, "24", "24 x 24"),
        ("16x24", (16, 24), "16x24", "16 x 24"),
    ],
)
def test_a_size_has_one_form(text, size, written, words):
    assert sizes.parsed(text) == size
    assert sizes.simplest(list(sizes.edges(size))) == size
    assert sizes.written(size) == written
    assert sizes.in_words(size) == words
    settings = DataSettings(data="digits", image_size=sizes.as_json(size))
    assert settings == DataSettings(data="digits", image_size=sizes.edges(size))
    assert settings.image_size == size


@pytest.mark.parametrize(
    ("command", "text"),
    [("teacher", "0x5"), ("run", "axb"), ("models", "192x"), ("teacher", "-8")],
)
def test_what_is_no_size_is_said(capsys, command, text):
    with pytest.raises(SystemExit):
        cli.main([command, f"--image-size={text}"])
    expected = (
        "argument --image-size: Expected height x width in pixels, for example "
        f"192x256, or one number for both. Received: '{text}'\n"
    )
    assert capsys.readouterr().err.endswith(expected)


@pytest.mark.parametrize("command", ["teacher", "mutual", "plan --teacher resnet8"])
def test_views_that_do_not_suit_are_said_before_an_image_is_read(
    tmp_path, monkeypatch, capsys, command
):
    monkeypatch.chdir(tmp_path)
    line = f"{command} --data digits --model resnet8 --image-size"
    if "plan" not in command:
        line = line.replace("--data", "--output out --data")
    monkeypatch.setattr(data, "load", None)
    for size, message in (
        ("16x24", "Expected `--views` to be one of ['padded_rotations', 'half_turns'"),
        (
            "4x24",
            "Expected `image_size` to be an integer >= 8 and at most 10000, or two",
        ),
    ):
        assert cli.main([*line.split(), size]) == 1
        error = capsys.readouterr().err
        assert message in error and f"image_size={sizes.parsed(size)}" in error
    assert not list(tmp_path.iterdir())


def test_the_folder_of_a_line_of_a_study_has_the_size_as_it_is_typed():
    told = {"name": "a/b", "image_size": (16, 24), "seeds": None}
    assert commands.folder_of(told) == "a--b--image_size-16x24"


# From the teacher to the served student


@pytest.mark.slow
def test_from_a_teacher_to_a_served_student(runs, tmp_path):
    record = json.loads((runs / "student" / "run.json").read_text())
    assert record["data"]["image_size"] == [16, 24]
    assert record["images"]["image_size"] == [16, 24]
    assert record["views"] == VIEWS
    student = Run.open(runs / "student")
    network = student.network()
    assert network.input_shape == (None, 16, 24, 3)
    kind = Distill(teacher=runs / "teacher", weak_teacher=True)
    again = train(kind, runs / "student", TRAINING, execution=RESUME)
    assert again.record == student.record

    # Of 8 x 8 pixels the largest part of 2 : 3 is 5.33 x 8; of that 4 x 6.
    _, test = data.load("digits", image_size=8, limit=8, normalize=False)
    ((pixels, labels),) = test
    shown = tf.image.resize(pixels[:, 2:6, 1:7], (16, 24), antialias=True)
    outputs = network.predict(shown, verbose=0)
    measured = evaluate(runs / "student", heads=True, verbose=0)
    found = outputs["logits"].argmax(axis=1)
    assert measured["accuracy"] == pytest.approx(np.mean(found == labels))
    assert "aux_1_joint_accuracy" in measured

    exported = export_run(runs / "student", tmp_path / "serving")["saved_model"]
    assert exported.error is None
    signatures = tf.saved_model.load(exported.path).signatures
    files = tf.map_fn(tf.io.encode_png, pixels, tf.string)
    for name, value in (("float_images", shown), ("image_bytes", files)):
        (key,) = signatures[name].structured_input_signature[1]
        served = signatures[name](**{key: value})
        np.testing.assert_allclose(served["logits"], outputs["logits"], atol=1e-4)


def test_a_report_counts_images_that_are_not_square(runs, tmp_path):
    (comparison,) = compare([runs]).comparisons
    by_kind = {method.name.split()[0]: method for method in comparison.methods}
    parts = heads.multiply_adds_by_part(Run.open(runs / "teacher").network())
    assert by_kind["teacher"].spent.training == 8 * 4 * 3 * sum(parts.values())
    content = json.loads((runs / "teacher" / "run.json").read_text())
    content["images"]["image_size"] = 24
    (tmp_path / "square").mkdir()
    (tmp_path / "square" / "run.json").write_text(json.dumps(content))
    (comparison,) = compare([runs / "teacher", tmp_path]).comparisons
    first, second = (method.name for method in comparison.methods)
    assert "image_size 16x24" in first and "image_size 24" in second


def test_a_student_without_heads_has_views_that_suit(runs):
    kind = Distill(teacher=runs / "teacher", heads=False, views="rotations")
    with pytest.raises(ValueError, match="Expected `--views` to be one of"):
        kind.data_settings({}, kind.origin())


def test_other_images_do_not_go_on(runs):
    wanted = dataclasses.replace(DIGITS, image_size=16)
    message = r"the settings of the run .* {'image_size': \[16, 24\]}. Received: .* 16}"
    with pytest.raises(ValueError, match=message):
        train(
            Teacher(views=VIEWS), runs / "teacher", TRAINING, wanted, RESUME, verbose=0
        )


@pytest.mark.slow
def test_all_commands_take_such_images(
    stand_ins, eager_trainers, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kinds, "check_better_than_chance", lambda origin: None)
    rng = np.random.default_rng(0)
    for part in ("train/{}/1", "train/{}/2", "train/{}/3", "test/{}/1"):
        for name in ("cat", "dog"):
            photo = rng.integers(0, 256, (20, 40, 3), "uint8")
            file = f"photos/{part.format(name)}.png"
            tf.io.write_file(file, tf.io.encode_png(photo))

    def run(line, said="Wrote", status=0):
        found = cli.main(line.split())
        printed = "".join(capfd.readouterr())
        assert found == status and said in printed, printed

    def in_a_process(task):
        return json.loads(json.dumps(timing.answer(json.loads(json.dumps(task)))))

    images = "--data photos --image-size 16x24 --crop resized --center-crop 0.9"
    network = "--model wrn_10_1 --epochs 2 --batch-size 4"
    small = f"{network} --verbose 0 --output"
    with monkeypatch.context() as patch:
        patch.setattr(planning, "_in_a_process", in_a_process)
        plan = f"plan --teacher wrn_10_1 --views half_turns {images} {network}"
        run(f"{plan} --seconds 0 --output plan.json", "of 16 x 24 pixels")
    options = f"{images} --views half_turns --plan plan.json --tensorboard-images 2"
    run(f"teacher {options} {small} teacher")
    teacher = Run.open("teacher")
    assert teacher.record["planned"]["name"] == "teacher"

    # A training that was killed in its third step ends as one that was not.
    left = iter(range(2))

    def stop(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt

    options += " --resume --snapshot-steps 1"
    with monkeypatch.context() as patch:
        patch.setattr(tensorboard.TensorBoard, "on_train_batch_end", stop)
        run(f"teacher {options} {small} again", "interrupted", status=130)
    run(f"teacher {options} {small} again")
    again = Run.open("again")
    assert again.weights_digest() == teacher.weights_digest()
    assert again.record["last"]["loss"] == teacher.record["last"]["loss"]

    run("cache --teacher teacher --output cache --variants 2")
    run("cache --check --output cache", "logits")
    run(f"distill --cache cache {small} student")
    plain = f"distill --teacher teacher --no-heads {small} plain --views"
    run(f"{plain} rotations", "Expected `--views` to be one of", status=1)
    run(f"{plain} padded_rotations")
    run(f"distill --teacher teacher --crop padded --augment-on-device {small} shifted")
    run(f"mutual {images} --views color_permutations {small} mutual")
    run(f"linear --backbone student --data photos {small} linear")
    run("evaluate student --quality --teacher teacher --verbose 0")
    run("export student served --format saved_model keras --report")
    run("report teacher student --output report")
    answering = [*open_networks("student"), open_artefact("served/1")]
    file = tf.io.read_file("photos/test/cat/1.png").numpy()
    answers = [answer(file) for answer in answering]
    assert [len(answer.views) for answer in answers] == [2, 2, 0]
    assert answers[0].image.shape == (16, 24, 3)
    assert answers[0].predictions == [
        (name, pytest.approx(probability, abs=1e-5))
        for name, probability in answers[2].predictions
    ]
