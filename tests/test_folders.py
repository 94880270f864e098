"""What `image_folder` finds in folders, and what it says of the rest."""

import json
import os
import shutil
import threading
import unicodedata
import warnings

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_hsakd import data
from keras_hsakd.data.subsets import hold_out

PNG = tf.io.encode_png(np.full((9, 8, 3), 50, "uint8")).numpy()
HUENDIN = "H\u00fcndin"


def write(folder, *files, content=PNG):
    for file in files:
        path = os.path.join(os.fsencode(folder), os.fsencode(file))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as opened:
            opened.write(content)


@pytest.fixture
def folder(tmp_path):
    """Three images of each class to train on, and one to test."""
    for name in ("cat", "dog"):
        write(tmp_path, *(f"train/{name}/{i}.png" for i in range(3)))
        write(tmp_path, f"test/{name}/0.png")
    return tmp_path


def read(folder, **arguments):
    """Returns both pipelines and the warnings."""
    # Of images that are not decoded, where a test is not of that.
    quick = {"stream": True, "corrupt": "unchecked"}
    arguments = {"image_size": 8, **quick, **arguments}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        datasets = data.image_folder(folder, **arguments)
    return *datasets, [str(warning.message) for warning in caught]


def below(dataset, folder):
    return [os.path.relpath(file, folder) for file in dataset.files]


def test_subfolders_and_links_are_walked_once(folder):
    write(folder, "train/cat/a/b/1.png", "train/cat/a/0.png", "elsewhere/7.png")
    links = {"cat/a/b/up": "train/cat", "cat/all": "train", "dog/more": "elsewhere"}
    for link, target in (links | {"dog/again": "elsewhere"}).items():
        (folder / "train" / link).symlink_to(folder / target)
    train, _, said = read(folder)
    cats = ["train/cat/0.png", "train/cat/1.png", "train/cat/2.png"]
    cats += ["train/cat/a/0.png", "train/cat/a/b/1.png"]
    dogs = [f"train/dog/{name}.png" for name in ("0", "1", "2", "again/7")]
    assert below(train, folder) == cats + dogs
    assert not said


def test_what_is_passed_over_is_counted_and_said_once(folder):
    write(folder, "train/cat/a.txt", "train/dog/deep/b.TXT", "test/cat/notes")
    write(folder, "train/stray.png")
    (folder / "train" / "cat" / "loop.link").symlink_to("loop.link")
    train, test, said = read(folder)
    assert (train.num_examples, test.num_examples) == (6, 2)
    assert said == [
        f"Passed over 5 of 13 files below '{folder}': "
        "2 .txt, 1 .link, 1 .png beside the class folders, 1 without an ending"
    ]


@pytest.mark.parametrize(
    "file",
    ["train/__MACOSX/cat/0.png", "train/cat/.hidden.png", "train/cat/Thumbs.db"]
    + ["train/cat/.ipynb_checkpoints/0.png", "train/desktop.ini", "train/@eaDir/0.png"],
)
def test_what_systems_leave_is_passed_over_in_silence(folder, file):
    write(folder, file)
    train, _, said = read(folder)
    assert (train.num_examples, train.class_names) == (6, ["cat", "dog"])
    assert not said


@pytest.mark.parametrize("ending", [".JPG", ".jpe", ".jfif", ".bmp", ".gif", ".WebP"])
def test_endings_that_are_read(folder, ending):
    write(folder, f"train/cat/3{ending}")
    assert read(folder)[0].num_examples == 7


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_classes_match_in_both_forms_of_unicode(folder, forms):
    for part, form in zip(("train", "test"), forms, strict=True):
        write(folder, f"{part}/{unicodedata.normalize(form, HUENDIN)}/0.png")
    train, test, _ = read(folder)
    assert train.class_names == test.class_names == [HUENDIN, "cat", "dog"]
    assert next(iter(test))[1].numpy().tolist() == [0, 1, 2]


def test_names_that_are_no_utf_8(folder):
    name = b"caf\xe9"
    for part in ("train", "test"):
        write(
            folder, *(part.encode() + b"/" + name + b"/\xff%d.png" % i for i in (0, 1))
        )
    write(folder, b"train/cat/\xfe.png", content=b"")
    train, test, said = read(folder, corrupt="skip")
    assert train.class_names == ["caf\\xe9", "cat", "dog"]
    assert "train/cat/\\xfe.png' (Expected" in said[0]
    assert train.skipped == ["train/cat/\udcfe.png"]
    record = json.loads(json.dumps([train.skipped, train.class_names]))
    assert len(list(test.unbatch())) == 4
    again, *_ = read(folder, corrupt="unchecked", skip=record[0])
    assert again.files == train.files and again.class_names == record[1]


@pytest.mark.parametrize(
    "add, error",
    [
        ("test/Dog/0.png", r"Received: \['Dog'\]; 'Dog' and 'dog' differ in upper"),
        ("test/fox/0.png", r"Received: \['fox'\]$"),
        ("train/cat/x.png/0.png", r"/train/cat/x.png' \(.* a folder or a device"),
        ("train/fox/readme.txt", "Received: none in '.*/train/fox'"),
    ],
)
def test_folders_that_are_refused(folder, add, error):
    write(folder, add)
    with pytest.raises(ValueError, match=error):
        read(folder, corrupt="refuse")


def test_two_classes_of_one_name(folder):
    for form in ("NFC", "NFD"):
        write(folder, f"train/{unicodedata.normalize(form, HUENDIN)}/0.png")
    with pytest.raises(ValueError, match=f"two that are '{HUENDIN}' in "):
        read(folder)


def test_a_test_folder_without_classes(folder):
    shutil.rmtree(folder / "test")
    (folder / "test").mkdir()
    with pytest.raises(ValueError, match="Expected a class folder in '.*test'"):
        read(folder)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "Received: an empty file"),
        (b"no image", "Received: text"),
        (PNG[: len(PNG) // 2], "Invalid PNG. Failed to initialize decoder."),
        (b"II*\0", "Received: one that is broken"),
    ],
)
def test_files_that_cannot_be_decoded_are_named(folder, content, reason):
    write(folder, "train/cat/3.png", content=content)
    with pytest.raises(ValueError, match="Received: 1 of 9 ") as caught:
        read(folder, corrupt="refuse")
    assert f"'{folder}/train/cat/3.png' (" in str(caught.value)
    assert f"{reason})" in str(caught.value)


def test_a_link_to_nothing_is_named(folder):
    (folder / "train" / "cat" / "3.png").symlink_to(folder / "gone.png")
    with pytest.raises(ValueError, match=r"cat/3.png' \(No such file or directory\)"):
        read(folder, corrupt="refuse")


def fingerprints(folder, **arguments):
    arguments = {"stream": True, "corrupt": "unchecked", **arguments}
    train, test = data.image_folder(folder, image_size=8, **arguments)
    return train.fingerprint(), test.fingerprint()


@pytest.mark.parametrize(
    "arguments",
    [{"limit": 2}, {"examples_per_class": 1, "seed": 3}, {"corrupt": "skip"}],
)
def test_data_are_the_same_wherever_they_are_and_whatever_is_chosen(
    folder, arguments, tmp_path_factory
):
    expected = fingerprints(folder)
    moved = shutil.copytree(folder, tmp_path_factory.mktemp("elsewhere") / "moved")
    assert fingerprints(moved, **arguments) == expected
    (moved / "test").rename(moved / "val")
    assert fingerprints(moved) == expected
    assert fingerprints(moved, validation=True)[0] == expected[0]


def swap_classes(folder):
    for source, target in (("cat", "x"), ("dog", "cat"), ("x", "dog")):
        (folder / "train" / source).rename(folder / "train" / target)


def move(source, target):
    return lambda folder: (folder / "train" / source).rename(folder / "train" / target)


@pytest.mark.parametrize(
    "change",
    [
        swap_classes,
        move("dog/2.png", "dog/3.png"),
        move("dog/2.png", "cat/3.png"),
        lambda folder: write(folder, "train/dog/3.png"),
        lambda folder: write(folder, "train/dog/1.png", content=PNG + b"more"),
        lambda folder: write(folder, "train/dog/1.png", content=PNG[:-1] + b"!"),
    ],
    ids=["swapped", "renamed", "moved", "added", "longer", "changed"],
)
def test_other_data_have_another_fingerprint(folder, change):
    write(folder, "train/dog/0.png", content=PNG[:-2] + b"??")
    train, test = fingerprints(folder, corrupt="unchecked")
    change(folder)
    others = fingerprints(folder, corrupt="unchecked")
    assert others[0] != train and others[1] == test


def test_unchecked_files_are_named_when_they_are_read(folder):
    write(folder, "train/cat/3.png", content=b"no image")
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{folder}/train/cat/3"):
        list(read(folder, corrupt="unchecked")[0])


@pytest.mark.parametrize("size, error", [(1, "at most 1"), (2, "at most 2"), (3, None)])
def test_nothing_held_out_is_an_error_before_images_are_read(tmp_path, size, error):
    for name in ("cat", "dog"):
        write(tmp_path, *(f"train/{name}/{i}.png" for i in range(size)), content=b"")
    expected = (
        f"at least 3 examples .* 20% of them. Received: {error}" if error else "empty"
    )
    with pytest.raises(ValueError, match=expected):
        read(tmp_path, validation=True, corrupt="refuse")


def test_hold_out_keeps_its_rounding():
    labels = np.repeat([0, 1, 2], [2, 3, 8])
    kept, out = hold_out(np.arange(13), labels, 0.2)
    assert out[0].tolist() == [4, 11, 12] and len(kept[0]) == 10


@pytest.mark.parametrize("shape", [(1, 1), (5, 4), (1, 500)])
def test_crops_of_tiny_images(shape):
    image = tf.fill((*shape, 3), tf.constant(77, tf.uint8))
    for fraction in (0.01, 0.5, 0.875, 1.0):
        assert (data.center_crop(image, 8, fraction).numpy() == 77).all()
    crops = tf.map_fn(
        lambda seed: data.random_resized_crop(image, 8, seed),
        tf.stack([tf.range(50), tf.range(50)], axis=1),
        fn_output_signature=tf.float32,
    )
    np.testing.assert_allclose(crops, np.full((50, 8, 8, 3), 77), rtol=1e-5)


def test_files_that_python_decodes_do_not_wait_for_each_other(tmp_path):
    for i in range(12):
        for part in ("train/a", "train/b", "test/a"):
            file = tmp_path / part / f"{i}.gif"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (9, 9), i).save(file)
    train, _ = data.image_folder(tmp_path, image_size=8)
    read = []
    # TensorFlow has a thread for each core; as many files must not block all of them.
    reading = threading.Thread(target=lambda: read.extend(train), daemon=True)
    reading.start()
    reading.join(timeout=60)
    assert len(read) == train.cardinality()


def test_names_of_classes_are_of_one_line(folder):
    write(folder, "train/ash\nbark/1.png")
    with pytest.raises(ValueError, match=r"one line each. Received: \['ash\\nbark'\]"):
        read(folder)


def test_images_are_not_larger_than_those_that_are_decoded(folder):
    with pytest.raises(ValueError, match="at most 10000.*image_size=100000"):
        data.image_folder(folder, image_size=100_000)
