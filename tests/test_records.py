"""Records of runs that were touched: whatever they hold is one clear line."""

import copy
import dataclasses
import json
import pathlib
import random
import re
import tempfile

import keras
import pytest
from records import write_run

import keras_hsakd
from keras_hsakd import cli
from keras_hsakd.network_files import checkpoint_path
from keras_hsakd.runs import (
    CacheSettings,
    DataSettings,
    Run,
    caching,
)
from keras_hsakd.runs.record import FORMAT


def _today():
    """Returns a whole record, of a student."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        teacher = write_run(path / "teacher", kind="teacher", model="wrn_10_1")
        record = write_run(
            path / "run",
            kind="distill",
            model="wrn_10_1",
            data="digits",
            teacher=teacher,
        )
    record["images"] |= {"class_names": list("0123456789"), "image_size": 8}
    record["data"] = dataclasses.asdict(DataSettings(**record["data"]))
    return json.loads(json.dumps(record))


TODAY = _today()


def write(folder, record):
    text = record if isinstance(record, str) else json.dumps(record)
    (folder / "run.json").write_text(text)
    return str(folder)


def changed(path, value):
    """Returns today's record with one value changed, or taken out with `...`."""
    record = copy.deepcopy(TODAY)
    *parents, last = path
    part = record
    for name in parents:
        part = part[name]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    return record


def test_records_are_read(tmp_path):
    run = Run.open(write(tmp_path, TODAY))
    assert run.describe().startswith("distill run of wrn_10_1, finished after 2 of 2")
    assert run.data_settings().data == "digits"


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("kind",), 3, "`kind` in '.*' to be text. Received: 3"),
        (("kind",), "a\nb", "`kind` in '.*' to be a short line of text"),
        (("format",), "3", "'.*' to be the record of a run .* Received: format '3'"),
        (("origin",), [], "`origin` in '.*' to be an object. Received: \\[\\]"),
        (("origin", "run"), ..., "`origin.run` in '.*' to be there. Received: nothing"),
        (("epochs_done",), True, "`epochs_done` in '.*' to be a whole number"),
        (("epochs_done",), 2**63, "`epochs_done` in '.*' to be a whole number"),
        (("last", "loss"), "1", "`last.loss` in '.*' to be a number. Received: '1'"),
        (("last", "epoch"), ..., "`last` in '.*' to be results with `epoch` and"),
        (("best", "val_accuracy"), ..., "`best` in .* and a finite `val_accuracy`"),
        (
            ("last", "val_accuracy"),
            float("nan"),
            "`last` in .* a finite `val_accuracy`",
        ),
        (("data", "flip"), 1, "`data.flip` in '.*' to be true or false. Received: 1"),
        (("data", "crop"), "round", "`data.crop` in .* one of \\('padded', 'resized'"),
        (("data", "data"), ..., "`data.data` in '.*' to be there"),
        (("data", "mean"), [0.5], "`data.mean` in '.*' to be a list of 3"),
        (
            ("data", "image_size"),
            [16],
            "`data.image_size` .* whole number or a list of 2",
        ),
        (("data", "image_size"), "16x24", "`data.image_size` .* to be a whole number"),
        (
            ("data", "image_size"),
            [16, 0],
            "`data` .* suit. Received: Expected `image_s",
        ),
        (("data", "newer"), 1, "`data` in .* settings of this version. .* 'newer'"),
        (
            ("training", "warmup_epochs"),
            2,
            "`training` .* suit. Received: Expected `--warmup-epochs`",
        ),
        (("training", "epochs"), 0, "`training.epochs` .* at least 1. Received: 0"),
        (("training", "momentum"), float("nan"), "`training.momentum` .* a finite"),
        (("training", "milestones"), [0.5, {}], "`training.milestones\\[1\\]` in"),
        (("images", "image_size"), 10**6, "`images.image_size` .* at most 10000"),
        (("images", "image_size"), [8, 10**6], "`images.image_size\\[1\\]` .* at most"),
        (("images", "image_size"), [8, "8"], "`images.image_size\\[1\\]` .* number"),
        (("images", "image_size"), None, "`images.image_size` .* a whole number"),
        (("images", "class_names"), ["a"], "`images.class_names` .* two classes or"),
        (("images", "class_names"), {}, "`images.class_names` .* to be a list"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, path, value, message):
    with pytest.raises(ValueError, match=f"Expected {message}"):
        Run.open(write(tmp_path, changed(path, value)))


def test_a_newer_record_is_named_as_one(tmp_path):
    newer = changed(("versions", "keras_hsakd"), "9.1") | {"format": FORMAT + 1}
    message = (
        f"to be the record of a run of keras_hsakd {keras_hsakd.__version__}, "
        f"format {FORMAT}. Received: format {FORMAT + 1}, by keras_hsakd 9.1"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Run.open(write(tmp_path, newer))
    with pytest.raises(ValueError, match="of an unknown version"):
        Run.open(write(tmp_path, {"format": FORMAT + 1}))


@pytest.mark.parametrize(
    "content", [b"[" * 10**5, b'{"x": %s}' % (b"9" * 5000), b"\xff"]
)
def test_what_is_no_record_is_said(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match="Expected '.*run.json' to"):
        Run.open(tmp_path)


ODD = (
    *(None, True, False, 0, 1, -1, 0.5, 2**31, 2**63, 10**400, 1e308, float("nan")),
    *("", "x", "a\nb", "\udce9", "3", "rotations", [], [1], ["x"], {}, {"x": 1}),
    *(float("inf"), "x" * 10_000, [[]], [None] * 1000, {"": {"": {}}}, "\0"),
)


def mutant(record, draw):
    """Returns a record with a part that is odd, missing, doubled or new."""
    record = copy.deepcopy(record)
    part, places = record, []
    while isinstance(part, dict | list) and part:
        key = draw.choice([*part] if isinstance(part, dict) else range(len(part)))
        places.append((part, key))
        part = part[key]
    of, key = draw.choice(places)
    match draw.randrange(4):
        case 0 if isinstance(of, dict):
            del of[key]
        case 1 if isinstance(of, dict):
            of[draw.choice(["newer", "", "\n", *of])] = draw.choice(ODD)
        case 2:
            of[key] = [of[key], of[key]]
        case _:
            of[key] = draw.choice(ODD)
    return record


def torn(text, draw):
    """Returns a text with a part cut out, doubled, or replaced by others."""
    begin, end = sorted(draw.choices(range(len(text)), k=2))
    between = draw.choice(["", text[begin:end] * 2, '"', "{", "]", ",", "1e999", "\0"])
    return text[:begin] + between + text[end:]


COMMANDS = (
    "evaluate {folder} --verbose 0",
    "export {folder} {folder}/export",
    "distill --teacher {folder} --model resnet8 --output {folder}/student",
    "cache --teacher {folder} --output {folder}/cache",
    "linear --backbone {folder} --data digits --model wrn_10_1 --output {folder}/of",
    "baseline --data digits --model resnet8 --output {folder} --resume",
)


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_whatever_a_record_holds_is_one_line(tmp_path, capsys, count):
    draw = random.Random(count)
    # There are no networks: what passes for a record ends with that.
    for number in range(count):
        record = mutant(TODAY, draw)
        if draw.random() < 0.2:
            record = torn(json.dumps(record), draw)
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder, record)
        line = draw.choice(COMMANDS).format(folder=folder)
        assert cli.main(line.split()) == 1, (line, record)
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "Expected" in error, (line, error, record)
        assert len(error) < 2000


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_a_teacher_has_decoded_is_not_again_for_a_cache(
    tmp_path, monkeypatch, elsewhere
):
    class LoadedError(Exception):
        pass

    def load(settings, batch_size, seed, checked=None):
        assert checked == (None if elsewhere else record["images"])
        raise LoadedError

    folders = [tmp_path / name for name in ("photos", "others")]
    for folder in folders:
        folder.mkdir()
    record = changed(("data", "data"), str(folders[0]))
    record["images"] |= {"skipped": ["train/cat/1.png"]}
    teacher = write(tmp_path, record)
    monkeypatch.setattr(caching, "load", load)
    data = {"data": str(folders[1])} if elsewhere else {}
    with pytest.raises(LoadedError):
        caching.cache_teacher(tmp_path / "cache", CacheSettings(teacher=teacher), data)


def test_a_network_of_other_images_is_said(tmp_path):
    images = keras.Input((8, 8, 3))
    logits = keras.layers.Dense(10)(keras.layers.Flatten()(images))
    network = keras.Model(images, {"logits": logits})
    network.save(checkpoint_path(tmp_path, "last"))
    assert Run.open(write(tmp_path, TODAY)).network().input_shape == (None, 8, 8, 3)
    record = changed(("images", "image_size"), 16)
    with pytest.raises(ValueError, match="16 x 16 and 10 classes. Received: 8 x 8"):
        Run.open(write(tmp_path, record)).network()
    record = changed(("images", "image_size"), [8, 12])
    with pytest.raises(ValueError, match="8 x 12 and 10 classes. Received: 8 x 8"):
        Run.open(write(tmp_path, record)).network()
    record = changed(("images", "class_names"), ["a", "b"])
    with pytest.raises(ValueError, match="8 x 8 and 2 classes. .* and 10 classes"):
        Run.open(write(tmp_path, record)).network()
