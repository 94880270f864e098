import dataclasses
import pathlib
import re
import struct
import time

import numpy as np
import pytest
import tensorflow as tf

from keras_hsakd import data
from keras_hsakd.data import datasets
from keras_hsakd.data.shared import shared
from keras_hsakd.runs import (
    Baseline,
    DataSettings,
    TrainingSettings,
    evaluate,
    images,
    recipes,
    train,
)

NOWHERE = "https://127.0.0.1:9/cifar-100-binary.tar.gz"


def contents(images, labels):
    return {(x.tobytes(), int(y)) for x, y in zip(images, labels, strict=True)}


def test_cifar100_as_tensorflow_datasets_builds_it(cifar100, cifar100_data_dir):
    train, test = data.load("cifar100", data_dir=cifar100_data_dir, batch_size=96)
    assert train.class_names == [f"fine {i}" for i in range(100)]
    assert (train.num_examples, test.num_examples) == (96, 32)
    row = data.info("cifar100")
    (received, labels), *_ = test.as_numpy_iterator()
    raw = np.round((received * row.std + row.mean) * 255).astype("uint8")
    # tensorflow-datasets stores examples in an order of its own.
    assert contents(raw, labels) == contents(*cifar100.test)
    (_, labels), *_ = train.as_numpy_iterator()
    assert sorted(labels) == sorted(cifar100.train[1])


def test_what_cannot_be_had_fails_soon(tmp_path, monkeypatch):
    monkeypatch.setitem(datasets._ARCHIVES, "cifar100", NOWHERE)
    began = time.monotonic()
    with pytest.raises(FileNotFoundError, match="Run `tfds build cifar100"):
        data.load("cifar100", data_dir=str(tmp_path))
    assert time.monotonic() - began < 60  # not the minutes of retries
    assert not list(tmp_path.iterdir())


def test_what_is_there_needs_no_network(cifar100_data_dir, monkeypatch):
    monkeypatch.setitem(datasets._ARCHIVES, "cifar100", NOWHERE)
    assert data.load("cifar100", data_dir=cifar100_data_dir)[0].num_examples == 96


# Any data set


@pytest.fixture
def build(tmp_path):
    """Returns a function that has TFDS' own tools build a data set."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")

    def unprepared(splits, features=None, name="photos", **options):
        features = features or {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
        return tfds.dataset_builders.AdhocBuilder(
            name=name,
            version="1.2.3",
            features=tfds.features.FeaturesDict(features),
            split_datasets={
                split: [(str(key), example) for key, example in enumerate(examples)]
                for split, examples in splits.items()
            },
            data_dir=str(tmp_path / "tfds"),
            **options,
        )

    def prepared(splits, features=None, file_format="array_record", **options):
        builder = unprepared(splits, features, file_format=file_format, **options)
        builder.download_and_prepare()
        return str(tmp_path / "tfds")

    prepared.unprepared = unprepared
    return prepared


def flat(values, labels=None):
    """Returns examples: images of one value each, which is known after a crop, too."""
    return [
        {"image": np.full((9 + value % 3, 8, 3), value, "uint8"), "label": label}
        for value, label in zip(values, labels or np.array(values) % 2, strict=True)
    ]


def values(dataset):
    """Returns the values of all images of `flat` in a data set of 0 to 255."""
    return sorted(int(image.max()) for images, _ in dataset for image in images.numpy())


def test_pixels_are_those_of_a_folder_of_the_same_files(build, tmp_path):
    rng = np.random.default_rng(0)
    examples = []
    for i, (suffix, channels) in enumerate(
        [(".jpg", 3), (".png", 3), (".jpg", 1), (".png", 1), (".bmp", 3)] * 2
    ):
        image = tf.constant(rng.integers(0, 256, (9 + i, 20 - i, channels), "uint8"))
        encode = tf.io.encode_jpeg if suffix == ".jpg" else tf.io.encode_png
        content = encode(image).numpy()
        if suffix == ".bmp":  # whose last bytes are zeros
            header = struct.pack("<2s3I", b"BM", 66, 0, 54)
            header += struct.pack("<3I2H6I", 40, 2, 2, 1, 24, 0, 12, 0, 0, 0, 0)
            content = header + bytes([i, 2, 3, 0, 0, 0, 0, 0]) + bytes(8)
        for part in ("train", "test"):
            file = tmp_path / "folder" / part / ("cat", "dog")[i % 2] / f"{i}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        examples.append({"image": str(file), "label": ("cat", "dog")[i % 2]})
    data_dir = build({"train": examples, "other": examples})

    def read(source):
        pairs = (source.read(tf.constant(i, tf.int64)) for i in range(len(source)))
        return sorted((*x.shape, x.numpy().tobytes(), int(y)) for x, y in pairs)

    with pytest.warns(UserWarning, match="no split 'test' or 'validation'"):
        records = data.TfdsRecords("tfds:photos", data_dir)
    files = [example["image"] for example in examples]
    assert read(data.TfdsSource(records, np.arange(10), 12)) == read(
        data.FileSource(files, [i % 2 for i in range(10)], 12)
    )

    options = {"image_size": 12, "center_crop": 0.9, "batch_size": 4}
    _, test = data.load("tfds:photos", data_dir=data_dir, test_split="other", **options)
    _, expected = data.image_folder(tmp_path / "folder", **options)
    assert test.class_names == expected.class_names
    images, labels = zip(*expected.unbatch().as_numpy_iterator(), strict=True)
    assert contents(images, labels) == contents(
        *zip(*test.unbatch().as_numpy_iterator(), strict=True)
    )


@pytest.mark.parametrize(
    "splits, arguments, train_size, test_size, warning",
    [
        ({"test": (4, 0), "validation": (2, 0)}, {}, 20, 4, ""),
        ({"validation": (2, 0)}, {}, 20, 2, ""),
        ({}, {}, 16, 4, "no split 'test' or 'validation': .* last 20% of each class"),
        # The test labels of imagenet2012 are kept secret.
        ({"test": (4, -1), "validation": (2, 0)}, {}, 20, 2, "on its split 'validatio"),
        ({"test": (4, -1)}, {}, 16, 4, "no labels in its split 'test': .* last 20%"),
        ({"test": (4, 0)}, {"test_split": "train[:25%]"}, 20, 5, ""),
        ({"more": (6, 0)}, {"train_split": "more", "test_split": "train"}, 6, 20, ""),
    ],
)
def test_splits_are_found(
    build, recwarn, splits, arguments, train_size, test_size, warning
):
    examples = {
        name: flat(range(100, 100 + count), [label] * count)
        for name, (count, label) in splits.items()
    }
    data_dir = build({"train": flat(range(1, 21)), **examples})
    arguments = {"data_dir": data_dir, "stream": True, **arguments}
    train, test = data.load("tfds:photos", **arguments)
    assert (train.num_examples, test.num_examples) == (train_size, test_size)
    assert sum(len(labels) for _, labels in test) == test_size
    said = [str(each.message) for each in recwarn if "measured on" in str(each.message)]
    assert len(said) == bool(warning)
    assert all(re.search(warning, each) for each in said)


def test_parts_of_the_training_split(build, monkeypatch):
    data_dir = build({"train": flat(range(1, 41)), "test": flat(range(101, 111))})

    def load(**options):
        datasets = data.load(
            "tfds:photos:1.2.3",
            data_dir=data_dir,
            image_size=8,
            normalize=False,
            stream=True,
            **options,
        )
        return [values(dataset) for dataset in datasets]

    assert load() == [[*range(1, 41)], [*range(101, 111)]]
    train, held_out = load(validation=True)
    assert sorted(train + held_out) == [*range(1, 41)] and len(held_out) == 8
    assert sum(value % 2 for value in held_out) == 4
    assert load(validation=True, seed=5)[1] == held_out
    few, test = load(examples_per_class=3, seed=1)
    assert sum(value % 2 for value in few) == 3 and len(few) == 6
    assert len(load(label_fraction=0.25)[0]) == 10
    # No record is read but those of the images that are kept.
    monkeypatch.setattr(data.TfdsRecords, "_read_labels", None)
    train, test = load(limit=7)
    assert len(train) == len(test) == 7
    assert set(train) < {*range(1, 41)} and set(test) < {*range(101, 111)}


def test_batches_that_are_filled_up(build):
    data_dir = build({"train": flat(range(1, 7)), "test": flat([9])})
    records = data.TfdsRecords("tfds:photos", data_dir)
    source = data.TfdsSource(records, np.arange(5, 2, -1), 8)
    indices = tf.data.Dataset.from_tensors((tf.constant([2, 0, 1, -1], tf.int64),))
    ((images, labels, read),) = source.batches(indices, lambda *batch: batch)
    assert read.numpy().tolist() == [2, 0, 1]
    for i, index in enumerate(read):
        image, label = source.read(index)
        assert float(tf.reduce_max(images[i])) == float(tf.reduce_max(image))
        assert labels[i] == label


def test_records_are_known_by_name_version_split_and_position(build):
    data_dir = build({"train": flat(range(1, 7)), "test": flat([9])})

    def fingerprint(name="tfds:photos", positions=(1, 3), **options):
        records = data.TfdsRecords(name, data_dir, **options)
        return data.TfdsSource(records, np.array(positions), 8).fingerprint()

    assert fingerprint() == fingerprint("tfds:photos:1.2.3")
    assert fingerprint() != fingerprint(positions=(1, 2))
    assert fingerprint() != fingerprint(train_split="train[2:]")


def test_held_out_images_are_in_neither_part_of_the_others(build):
    data_dir = build({"train": flat(range(1, 51))})
    options = {"data_dir": data_dir, "image_size": 8, "normalize": False}
    with pytest.warns(UserWarning):
        train, test = map(values, data.load("tfds:photos", **options))
    with pytest.warns(UserWarning):
        datasets = data.load("tfds:photos", validation=True, **options)
    kept, validation = map(values, datasets)
    assert sorted(train + test) == [*range(1, 51)]
    assert sorted(kept + validation) == train


def test_what_is_no_image_classification_is_refused(build):
    tfds = pytest.importorskip("tensorflow_datasets")
    features = tfds.features
    image, label = flat([1])[0].values()
    for name, of_one, example, has in [
        ("texts", {"text": features.Text()}, {"text": "a"}, "text (Text)"),
        (
            "objects",
            {
                "image": features.Image(shape=(None, None, 3)),
                "labels": features.Sequence(features.ClassLabel(num_classes=3)),
            },
            {"image": image, "labels": [1, 2]},
            "image (Image), labels (Sequence)",
        ),
        (
            "pairs",
            {
                "left": features.Image(shape=(None, None, 3)),
                "right": features.Image(shape=(None, None, 3)),
                "label": features.ClassLabel(num_classes=3),
            },
            {"left": image, "right": image, "label": label},
            "left (Image), right (Image)",
        ),
        (
            "depths",
            {
                "image": features.Image(shape=(None, None, 1), dtype=np.float32),
                "label": features.ClassLabel(num_classes=3),
            },
            {"image": np.float32(image[..., :1]), "label": label},
            "image (Image), label (ClassLabel)",
        ),
    ]:
        data_dir = build({"train": [example]}, of_one, name=name)
        with pytest.raises(ValueError, match="image classification") as caught:
            data.load(f"tfds:{name}", data_dir=data_dir)
        assert f"'tfds:{name}', which has " in str(caught.value)
        assert all(part in str(caught.value) for part in has.split(", "))


def test_classes_without_names_are_numbers(build):
    features = pytest.importorskip("tensorflow_datasets").features
    of_each = {
        "photo": features.Image(shape=(None, None, 1)),
        "kind": features.ClassLabel(num_classes=3),
    }
    image = np.full((9, 8, 1), 7, "uint8")
    examples = [{"photo": image, "kind": kind} for kind in (2, 1)]
    data_dir = build({"train": examples, "test": examples}, of_each)
    _, test = data.load("tfds:photos", data_dir=data_dir, normalize=False)
    assert test.class_names == ["0", "1", "2"]
    ((images, labels),) = test
    assert sorted(labels) == [1, 2] and np.allclose(images, 7)


def test_another_format_is_refused_with_the_command(build, cifar100_data_dir):
    data_dir = build({"train": flat([1, 2])}, file_format="tfrecord")
    with pytest.raises(ValueError, match="Received: tfrecord") as caught:
        data.load("tfds:photos", data_dir=data_dir)
    command = f"`tfds build photos --file_format=array_record --data_dir {data_dir} "
    assert command in str(caught.value)
    # Two features are labels; its supervised keys tell which one is meant.
    with pytest.raises(ValueError, match="Received: tfrecord"):
        data.load("tfds:cifar100", data_dir=cifar100_data_dir)


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("tfds:oxford_flower102", {}, "did you mean 'oxford_flowers102'"),
        ("tfds:photos:9.9.9", {}, r"photos' has \['1.2.3'\]"),
        ("tfds:photos", {"train_split": "trian"}, "`train_split` .* of .'train'"),
        ("tfds:photos", {"test_split": "train[:200%]"}, "`test_split` to be a split"),
        ("tfds:photos", {"mean": (0.5,)}, "`mean` to have 3 values"),
        ("tfds:photos", {"limit": 0}, "`limit` to be an integer >= 1"),
        ("digits", {"test_split": "test"}, "Expected no `test_split` for a data set w"),
    ],
)
def test_wrong_arguments(build, name, arguments, message):
    data_dir = build({"train": flat([1, 2])})
    with pytest.raises(ValueError, match=message):
        data.load(name, data_dir=data_dir, **arguments)


def test_it_is_prepared_where_it_is_not_there(build, monkeypatch):
    builder = build.unprepared({"train": flat([1, 2, 3]), "test": flat([4])})
    monkeypatch.setattr("tensorflow_datasets.builder", lambda *_, **options: builder)
    train, test = data.load("tfds:photos", image_size=8, normalize=False)
    assert (values(train), values(test)) == ([1, 2, 3], [4])
    assert builder.info.file_format.value == "array_record"


def test_any_that_cannot_be_had_fails_soon(tmp_path, monkeypatch):
    asked = []

    def no_answer(url):
        asked.append(url)
        raise OSError("no network")

    monkeypatch.setattr("keras_hsakd.data.tfds.check_answer", no_answer)
    with pytest.raises(FileNotFoundError, match="no network") as caught:
        data.load("tfds:oxford_flowers102", data_dir=str(tmp_path))
    command = "`tfds build oxford_flowers102 --file_format=array_record --data_dir "
    assert command in str(caught.value) and asked[0].endswith("102flowers.tgz")
    assert not list(tmp_path.iterdir())


def test_an_image_that_cannot_be_read_is_named(build, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    broken = {"image": str(tmp_path / "text.png"), "label": 1}
    data_dir = build({"train": flat([1, 2]), "test": [broken]})
    _, test = data.load("tfds:photos", data_dir=data_dir)
    place = r"image \d of tfds:{}, split train\+test"
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="text in ." + place.format("photos")
    ):
        list(test)
    secret = flat(range(1, 9), [0, 1, 0, 1, -1, 1, 0, 1])
    data_dir = build({"train": flat([1, 2]), "test": secret}, name="secrets")
    _, test = data.load("tfds:secrets", data_dir=data_dir, test_split="test")
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=place.format("secrets") + ".*: -1"
    ):
        list(test)


# In runs


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"corrupt": "skip"}, "Expected no `corrupt` for a data set of `tfds:`"),
        (
            {"data": "digits", "train_split": "train"},
            "Expected no `train_split` for a n",
        ),
        (
            {"data": "{folder}", "test_split": "test"},
            "Expected no `test_split` for a f",
        ),
    ],
)
def test_settings_of_other_kinds_of_data(tmp_path, changes, message):
    changes = {name: text.format(folder=tmp_path) for name, text in changes.items()}
    with pytest.raises(ValueError, match=message):
        images.load(DataSettings(**{"data": "tfds:photos", **changes}), 8, 0)


def test_a_run(build, tmp_path, stand_ins_once):
    data_dir = build(
        {"train": flat(range(1, 9)), "test": flat(range(4)), "more": flat([7, 8, 9])}
    )
    settings = DataSettings(
        data="tfds:photos", data_dir=data_dir, image_size=8, mean=(0.1, 0.2, 0.3)
    )
    training = TrainingSettings(model="resnet8", epochs=1, batch_size=4)
    run = train(Baseline(), tmp_path / "run", training, settings, verbose=0)
    assert run.class_names == ["cat", "dog"]
    assert (run.record["images"]["train"], run.record["images"]["test"]) == (8, 4)
    assert run.record["images"]["mean"] == [0.1, 0.2, 0.3]
    results = evaluate(tmp_path / "run", verbose=0)
    assert results["accuracy"] == run.record["last"]["val_accuracy"]
    assert evaluate(tmp_path / "run", test_split="more", verbose=0)["loss"] > 0
    # Neither belongs to another place.
    moved = images.changed(run, {"data": "tfds:others"})
    assert (moved.data_dir, moved.mean) == (None, (0.1, 0.2, 0.3))


def test_the_recipes_of_imagenet():
    recipe = recipes.get("imagenet/resnet34_imagenet-resnet18_imagenet")
    (before, *_), (after, *_) = (
        [s.data for s in each.steps if isinstance(s.data, DataSettings)]
        for each in (recipe, recipe.scaled(data="tfds:imagenet2012", data_dir="there"))
    )
    assert before.corrupt == "unchecked"
    assert after == dataclasses.replace(
        before, data="tfds:imagenet2012", data_dir="there", corrupt=None
    )
    elsewhere = recipe.scaled(data="/data/imagenet").steps[0].data
    assert elsewhere == dataclasses.replace(before, data="/data/imagenet")


@pytest.mark.slow
def test_splits_that_overlap(build):
    where = {"data_dir": build({"train": flat(range(10)), "test": flat(range(20, 24))})}

    def load(train, test="test"):
        return data.load("tfds:photos", train_split=train, test_split=test, **where)

    assert shared(*load("train")).count == 0
    assert shared(*load("train+test"))[:2] == (4, ("number 0", "number 10"))
    assert shared(*load("train[:60%]", "train[4:]")).count == 2
    for one, other in (("train", "train"), ("test", "test[:100%]")):
        with pytest.raises(ValueError, match=f"another split than .*'{one}'. Received"):
            load(one, other)
    # What is measured on is the same, whatever is trained on.
    (_, one), (_, other) = load("train"), load("train[:50%]")
    assert one.fingerprint() == other.fingerprint()


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_file_that_is_cut_off_is_named(part, build):
    data_dir = build({"train": flat(range(10)), "test": flat(range(20, 24))})
    (file,) = pathlib.Path(data_dir).rglob(f"photos-{part}.array_record*")
    file.write_bytes(file.read_bytes()[:-100])
    message = f"the files of 'tfds:photos', split {part}, to be readable. Received: "
    with pytest.raises(ValueError, match=message):
        data.load("tfds:photos", data_dir=data_dir)
