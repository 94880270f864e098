"""Images that are kept in memory: the same as those that are read in each pass."""

import os

import keras
import numpy as np
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("the pipelines are TensorFlow's", allow_module_level=True)

import psutil
import tensorflow as tf

from keras_hsakd import data, machine
from keras_hsakd.data import keeping

RNG = np.random.default_rng(0)
SIZES = {"same": [(8, 8)], "mixed": [(8, 8), (9, 7), (30, 20)], "large": [(40, 30)]}
OPTIONS = {"image_size": 8, "batch_size": 4, "normalize": False}


def write(path, size, encode=tf.io.encode_png):
    tf.io.write_file(str(path), encode(RNG.integers(0, 256, (*size, 3), "uint8")))


@pytest.fixture
def folder_of(tmp_path):
    """Returns a function that writes a folder of 10 training and 6 test images."""

    def make(sizes, encode=tf.io.encode_png):
        for part, count in (("train", 10), ("test", 6)):
            for i in range(count):
                name = f"{part}/{('cat', 'dog')[i % 2]}/{i}.png"
                write(tmp_path / name, sizes[i % len(sizes)], encode)
        return tmp_path

    return make


@pytest.fixture
def decoded(monkeypatch):
    """Notes how many images are decoded for a check alone."""
    counts = []
    decodable = keeping.decodable

    def counted(source, indices):
        counts.append(len(indices))
        return decodable(source, indices)

    monkeypatch.setattr(keeping, "decodable", counted)
    return counts


def content(dataset):
    return [
        tuple((np.asarray(x).dtype, np.asarray(x).tobytes()) for x in batch)
        for batch in dataset.as_numpy_iterator()
    ]


def passes(datasets):
    """Returns the bytes of an epoch, in the middle of a stream, and of test images."""
    train, test = datasets
    train.epoch_counter.value = 3
    return [content(train), content(train.stream(2, 1).take(3)), content(test)]


CASES = {
    "same size": ("same", {}),
    "several sizes": ("mixed", {}),
    "larger": ("large", {"batch_size": 3}),
    "normalised": ("mixed", {"normalize": True}),
    "random parts of the same size": ("same", {"crop": "resized"}),
    "random parts": ("mixed", {"crop": "resized"}),
    "center crops": ("mixed", {"center_crop": 0.7}),
    "center crops of the same size": ("same", {"center_crop": 0.7}),
    "held out": ("mixed", {"validation": True}),
    "without labels": ("same", {"examples_per_class": 2, "unlabeled": "rest"}),
    "not square": ("mixed", {"image_size": (8, 12), "flip": False}),
}


FAST = "same size", "several sizes", "random parts"


@pytest.mark.parametrize(
    "name",
    [
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in [*CASES, "rand_augment"]
    ],
)
def test_kept_images_are_those_that_are_streamed(folder_of, name):
    sizes, options = CASES.get(name, ("mixed", {"augment": "rand_augment"}))
    folder, options = folder_of(SIZES[sizes]), OPTIONS | options
    kept = data.image_folder(folder, **options)
    streamed = data.image_folder(folder, **options, stream=True)
    assert all(part.kept_bytes > 0 for part in kept)
    assert all(part.kept_bytes is None for part in streamed)
    assert kept[0].element_spec == streamed[0].element_spec
    assert passes(kept) == passes(streamed)
    # What is known of either is the same.
    assert kept[0].files == streamed[0].files
    assert kept[0].fingerprint() == streamed[0].fingerprint()
    assert kept[0].pipeline.fingerprint == streamed[0].pipeline.fingerprint


def test_workers_share_kept_images_as_streamed_ones(folder_of):
    folder = folder_of(SIZES["mixed"])
    kept, streamed = (
        data.image_folder(folder, **OPTIONS, stream=stream) for stream in (False, True)
    )
    for worker in range(2):
        for one, other in zip(kept, streamed, strict=True):
            share = 2, worker, worker + 1
            assert content(one.share(*share)) == content(other.share(*share))


def test_an_image_is_kept_as_the_smaller_of_what_it_is_and_what_becomes_of_it(
    folder_of,
):
    small, large, float_32 = 3 * 8 * 8, 3 * 40 * 30, 4
    for name, expected in (("same", small), ("large", small * float_32)):
        train, test = data.image_folder(folder_of(SIZES[name]), **OPTIONS)
        assert (train.kept_bytes, test.kept_bytes) == (10 * expected, 6 * expected)
    train, _ = data.image_folder(folder_of(SIZES["large"]), **OPTIONS, crop="resized")
    assert train.kept_bytes == 10 * large


def test_more_than_fits_is_streamed(folder_of, monkeypatch):
    folder = folder_of(SIZES["same"])
    each = 3 * 8 * 8
    for room, train_fits, test_fits in (
        (10 * each - 1, False, True),
        (16 * each - 1, True, False),
        (6 * each - 1, False, False),
    ):
        monkeypatch.setattr(keeping, "room", lambda room=room: room)
        train, test = data.image_folder(folder, **OPTIONS)
        assert (train.kept_bytes is not None) == train_fits
        assert (test.kept_bytes is not None) == test_fits


def test_what_other_processes_leave_is_counted(monkeypatch, tmp_path):
    class Memory:
        available = 4000

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    assert keeping.room() == 1000
    monkeypatch.setattr(machine, "_CONTAINER", tmp_path)
    for limit, free in (("max\n", 4000), ("900\n", 600), ("100\n", 0)):
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text("300\n")
        assert machine.free_memory() == free


# Checks


def test_unchanged_files_are_not_checked_again(folder_of, decoded):
    folder = folder_of(SIZES["mixed"])
    streamed = {**OPTIONS, "stream": True}
    data.image_folder(folder, **streamed)
    assert sum(decoded) == 16
    data.image_folder(folder, **streamed)
    assert sum(decoded) == 16
    write(folder / "train/cat/0.png", (8, 9))
    data.image_folder(folder, **streamed)
    assert sum(decoded) == 17
    (folder / "test/dog/1.png").write_text("no image")
    with pytest.raises(ValueError, match="Received: 1 of 16 .*dog/1.png' .*text"):
        data.image_folder(folder, **streamed)


def test_what_has_been_kept_is_not_checked_again(folder_of, decoded):
    folder = folder_of(SIZES["mixed"])
    data.image_folder(folder, **OPTIONS)
    data.image_folder(folder, **OPTIONS, stream=True)
    assert sum(decoded) == 0


@pytest.mark.parametrize("state", ["damaged", "a folder", "no place"])
def test_a_record_that_cannot_be_used_is_none(folder_of, decoded, state, monkeypatch):
    folder = folder_of(SIZES["same"])
    data.image_folder(folder, **OPTIONS, stream=True)
    cache = os.environ["XDG_CACHE_HOME"]
    (record,) = os.listdir(f"{cache}/keras_hsakd/checked")
    record = f"{cache}/keras_hsakd/checked/{record}"
    if state == "no place":
        monkeypatch.setenv("XDG_CACHE_HOME", f"{record}/below")
    else:
        os.remove(record)
        if state == "damaged":
            with open(record, "w") as file:
                file.write("no array")
        else:
            os.mkdir(record)
    data.image_folder(folder, **OPTIONS, stream=True)
    assert sum(decoded) == 32


@pytest.mark.parametrize("stream", [False, True])
def test_a_limit_reads_what_it_keeps_alone(folder_of, stream):
    folder = folder_of(SIZES["same"])
    options = {**OPTIONS, "limit": 3, "stream": stream}
    train, test = data.image_folder(folder, **options)
    for part in ("train", "test"):
        chosen = {*train.files, *test.files}
        for file in folder.glob(f"{part}/*/*.png"):
            if str(file) not in chosen:
                file.write_text("no image")
    again, _ = data.image_folder(folder, **options)
    assert again.files == train.files


def test_a_damaged_file_among_those_chosen_has_others_chosen(folder_of):
    folder, options = folder_of(SIZES["same"]), {**OPTIONS, "limit": 3}
    train, _ = data.image_folder(folder, **options)
    bad = train.files[0]
    with open(bad, "w") as file:
        file.write("no image")
    with pytest.raises(ValueError, match=f"Received: 1 of 6 .*{bad}"):
        data.image_folder(folder, **options)
    with pytest.warns(UserWarning, match=f"Skipped 1 of 16 .*{bad}"):
        train, test = data.image_folder(folder, **options, corrupt="skip")
    assert train.num_examples == test.num_examples == 3 and bad not in train.files
    again, _ = data.image_folder(folder, **options, skip=train.skipped)
    assert again.files == train.files


@pytest.mark.parametrize("stream", [False, True])
def test_damaged_files_are_left_out(folder_of, stream):
    folder = folder_of(SIZES["mixed"])
    (folder / "train/cat/2.png").write_text("no image")
    with pytest.warns(UserWarning, match="Skipped 1 of 16 .*cat/2.png"):
        train, _ = data.image_folder(folder, **OPTIONS, stream=stream, corrupt="skip")
    assert train.num_examples == 9 and train.skipped == ["train/cat/2.png"]
    assert (train.kept_bytes is None) == stream
    assert len([*train.unbatch()]) == 9


def test_what_is_no_file_is_not_read(folder_of):
    folder = folder_of(SIZES["same"])
    os.mkfifo(folder / "train/cat/pipe.png")
    with pytest.raises(ValueError, match="pipe.png' .*a folder or a device"):
        data.image_folder(folder, **OPTIONS)


def test_training_images_are_not_looked_at_by_who_measures(folder_of, decoded):
    folder = folder_of(SIZES["mixed"])
    (folder / "train/cat/0.png").write_text("no image")
    train, test = data.image_folder(folder, **OPTIONS, stream="train")
    assert train.kept_bytes is None and test.kept_bytes > 0
    assert not decoded
    with pytest.raises(ValueError, match="Expected `stream` to be a bool or 'train'"):
        data.image_folder(folder, **OPTIONS, stream="test")


# Progress


class Terminal:
    """A terminal that notes what is drawn on it."""

    def __init__(self):
        self.drawn = []

    def isatty(self):
        return True

    def write(self, text):
        self.drawn.append(text)

    def flush(self):
        pass


def test_progress_is_drawn_now_and_then_for_a_terminal_alone(monkeypatch, capsys):
    def read():
        progress = keeping.Progress(1000)
        for _ in range(1000):
            progress.add(1)

    read()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(keeping, "_SECONDS_UNSAID", 0.0)
    read()
    assert capsys.readouterr().out == "Decoding 1,000 images\n"
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    read()
    text = "".join(terminal.drawn)
    assert "1000/1000" in text and text.count("/1000") < 10
