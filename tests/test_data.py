import shutil
import sys
import types
import urllib.error

import numpy as np
import pytest
import tensorflow as tf

from keras_hsakd import data, ops
from keras_hsakd.data import augment, datasets, pipelines, subsets

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.5, 0.2)


def numbered_source(examples, size=8):
    """Image `i` is full of the value `i`, and so is its label."""
    values = np.arange(examples, dtype="uint8")
    images = np.broadcast_to(values[:, None, None, None], (examples, size, size, 3))
    return data.ArraySource(images, values, size)


def slope_images(examples, size=32):
    """Pixels are at least 10 and grow from left to right."""
    row = np.linspace(10, 250, size).astype("uint8")
    return np.broadcast_to(row[None, None, :, None], (examples, size, size, 3))


def random_images(examples, size=9):
    images = np.random.default_rng(0).integers(0, 256, (examples, size, size, 3))
    return images.astype("uint8")


def arrays(dataset):
    """All the images, and all the labels, of a dataset."""
    images, labels, *_ = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def labels_of(dataset):
    return arrays(dataset)[1].tolist()


def assert_same_batches(left, right):
    left, right = list(left.as_numpy_iterator()), list(right.as_numpy_iterator())
    assert len(left) == len(right) > 0
    for batch, other in zip(left, right, strict=True):
        for one, two in zip(batch, other, strict=True):
            np.testing.assert_array_equal(one, two)


def normalised(images, mean, std):
    return (images / 255.0 - np.array(mean)) / np.array(std)


@pytest.fixture(scope="module")
def digits():
    """The digits as `((images, labels), (images, labels))`, 8 x 8, uint8."""
    return datasets._read_digits("digits", None)[:2]


@pytest.fixture
def fake_tfds(monkeypatch):
    """Stands in for `tensorflow_datasets.load`; holds the calls it received."""
    calls = []

    def split(examples):
        labels = np.arange(examples) % 10
        return tf.constant(slope_images(examples)), tf.constant(labels)

    def fake_load(name, **kwargs):
        calls.append((name, kwargs))
        label = types.SimpleNamespace(names=[f"class {i}" for i in range(10)])
        dataset_info = types.SimpleNamespace(features={"label": label})
        return [split(100), split(30)], dataset_info

    monkeypatch.setattr("tensorflow_datasets.load", fake_load)
    monkeypatch.setattr(datasets, "_check_obtainable", lambda *arguments: None)
    return calls


# Crop and flip


@pytest.mark.parametrize("padding, rows, columns", [(2, 2, 2), ((1, 3), 1, 3)])
def test_random_crop_takes_windows_of_the_padded_image(padding, rows, columns):
    images = np.random.default_rng(0).integers(1, 255, (300, 5, 6, 3), "uint8")
    cropped = data.random_crop(tf.constant(images), data.draw(300, (3, 4)), padding)
    assert cropped.dtype == tf.uint8 and cropped.shape == images.shape

    padded = np.pad(images, [(0, 0), (rows, rows), (columns, columns), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 6), axis=(1, 2))
    windows = np.moveaxis(windows, 3, -1)  # (image, row, column, height, width, 3)
    matches = (windows == cropped.numpy()[:, None, None]).all(axis=(3, 4, 5))
    assert (matches.sum(axis=(1, 2)) == 1).all()
    # All 5 x 5 or 3 x 7 offsets occur among 300 images, none too often.
    assert matches.sum(axis=0).min() > 0 and matches.sum(axis=0).max() < 40


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("flip", [False, True])
def test_one_image_is_cropped_as_in_a_batch(dtype, flip):
    images = tf.constant(random_images(40).astype(dtype))
    draws = data.draw(40, (3, 4))
    batch = data.random_crop(images, draws, (3, 5), flip)
    ones = [
        augment.random_crop_of_one(images[i], draws.at(i), (3, 5), flip)
        for i in range(40)
    ]
    assert batch.dtype == ones[0].dtype == dtype
    np.testing.assert_array_equal(batch, ones)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_step_shifts_images_as_the_pipeline_crops_them(dtype, flip):
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 32, 3)).astype(dtype)
    draws = data.draw(40, (3, 4))
    augmentation = data.Augmentation(flip=flip)
    expected = augmentation.of_images(tf.constant(images), draws)
    shifted = ops.shifted(images, augmentation.shifts(draws, (16, 32)))
    assert shifted.dtype == dtype
    np.testing.assert_array_equal(shifted, expected)


def test_about_half_of_the_images_are_flipped():
    images = slope_images(200)
    draws = data.draw(200, (3, 4))
    same = data.random_crop(tf.constant(images), draws, padding=0)
    np.testing.assert_array_equal(same, images)
    flipped = data.random_crop(tf.constant(images), draws, padding=0, flip=True)
    mirrored = (flipped == images[:, :, ::-1]).numpy().all(axis=(1, 2, 3))
    unchanged = (flipped == images).numpy().all(axis=(1, 2, 3))
    assert (mirrored ^ unchanged).all()
    assert 70 < mirrored.sum() < 130


def test_draws_are_a_function_of_the_seed_and_differ_between_images():
    first, again, other = (data.draw(50, seed) for seed in ((1, 2), (1, 2), (1, 3)))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a.numpy() != c.numpy()).all()
        assert len(np.unique(a.numpy().reshape(50, -1), axis=0)) == 50


# Batches of one epoch


def test_epoch_has_each_image_once_with_its_label():
    images, labels = arrays(data.epoch_batches(numbered_source(50), 8, 0, epoch=0))
    assert sorted(labels) == list(range(50)) != labels.tolist()
    np.testing.assert_array_equal(images[:, 0, 0, 0], labels)


def test_order_follows_from_seed_and_epoch():
    source = numbered_source(50)

    def order(seed, epoch):
        return labels_of(data.epoch_batches(source, 8, seed, epoch))

    assert order(0, 0) == order(0, tf.constant(0)) == order(0, tf.constant(0, "int64"))
    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9


def test_augmentation_differs_between_images_and_epochs():
    source = data.ArraySource(slope_images(16), np.zeros(16), 32)
    images = [
        image.tobytes()
        for epoch in range(2)
        for images, *_ in data.epoch_batches(
            source, 4, 0, epoch, augmentation=data.Augmentation()
        ).as_numpy_iterator()
        for image in images
    ]
    # 9 x 9 places, mirrored or not: some pairs of 32 are alike.
    assert len(images) == 32 and len(set(images)) > 20


@pytest.mark.parametrize("crop", ["padded", "resized"])
@pytest.mark.parametrize("first_step", [0, 1, 6])
def test_epoch_from_a_step_is_the_tail_of_the_epoch(first_step, crop):
    source = data.ArraySource(slope_images(50), np.arange(50), 32)

    def batches(**kwargs):
        augmentation = data.Augmentation(crop)
        return data.epoch_batches(source, 8, 7, 3, augmentation=augmentation, **kwargs)

    assert_same_batches(batches(first_step=first_step), batches().skip(first_step))


def test_steps_before_the_first_are_not_read():
    class Spy(data.ArraySource):
        def batches(self, indices, *arguments):
            self.steps = len(list(indices))
            return super().batches(indices, *arguments)

    spy = Spy(slope_images(50), np.arange(50), 32)
    data.epoch_batches(spy, 8, 0, epoch=0, first_step=4)
    assert spy.steps == 7 - 4


# Crops


def coordinates(height, width):
    """Returns an image whose pixels tell their row and column."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.stack([rows, columns, 0 * rows], axis=-1).astype("float32")


@pytest.mark.parametrize("size, stretched", [(16, 1), ((16, 24), 3 / 2)])
def test_random_resized_crop_takes_parts_of_the_stated_area_and_shape(size, stretched):
    image = coordinates(60, 80)
    edges = np.array(size) * [1, 1]
    areas, ratios = [], []
    for i in range(300):
        crop = data.random_resized_crop(image, size, seed=(0, i)).numpy()
        # The middles of the outer pixels span 15 of the 16 parts of each side.
        height, width = np.ptp(crop[..., :2], axis=(0, 1)) * edges / (edges - 1)
        areas.append(height * width / 4800)
        ratios.append(width / height / stretched)
    # The ends of the ranges, to the rounding of a crop to whole pixels.
    assert 0.06 < min(areas) < 0.12
    assert 0.85 < max(areas) < 1.02
    assert 0.7 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.45
    again = data.random_resized_crop(image, size, seed=(0, 299)).numpy()
    np.testing.assert_array_equal(again, crop)


@pytest.mark.parametrize(
    ("fraction", "rows", "columns"),
    [
        (1.0, (0, 60), (10, 70)),
        (0.5, (15, 45), (25, 55)),
        (1.0, (10, 50), (0, 80)),
        (0.5, (20, 40), (20, 60)),
        (1.0, (0, 60), (25, 55)),
        (1.0, (0, 60), (0, 80)),
    ],
)
def test_center_crop(fraction, rows, columns):
    size = rows[1] - rows[0], columns[1] - columns[0]
    crop = data.center_crop(coordinates(60, 80), size, fraction).numpy()
    expected = coordinates(60, 80)[slice(*rows), slice(*columns)]
    np.testing.assert_allclose(crop, expected, atol=1e-4)


# Images that are not square


@pytest.mark.parametrize("shape", [(16, 24), (30, 20)])
def test_images_that_are_not_square_go_through_as_by_hand(shape):
    images = np.random.default_rng(0).integers(0, 256, (12, *shape, 3), "uint8")
    source = data.ArraySource(images, np.arange(12), (16, 24))
    augmentation = data.Augmentation()
    batches = data.epoch_batches(source, 5, 3, 2, augmentation=augmentation)
    resized = tf.image.resize(images, (16, 24), antialias=True).numpy()
    padded = np.pad(resized, [(0, 0), (2, 2), (3, 3), (0, 0)])  # an eighth of each
    _, draws_seed = pipelines._seeds(3, tf.constant(2, tf.int64))
    uniform = data.draw(12, draws_seed).uniform.numpy()
    received, labels = arrays(batches)
    assert sorted(labels) == list(range(12))
    for image, label in zip(received, labels, strict=True):
        row, column = np.floor(uniform[label, :2] * [5, 7]).astype(int)
        expected = padded[label, row : row + 16, column : column + 24]
        if uniform[label, 2] < 0.5:
            expected = expected[:, ::-1]
        np.testing.assert_allclose(image, expected, atol=1e-3)


def test_files_that_are_not_square_go_through_as_by_hand(tmp_path):
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (2, 30, 60, 3), "uint8")
    for part in ("train", "test"):
        for name, photo in zip("ab", photos, strict=True):
            file = str(tmp_path / part / name / "1.png")
            tf.io.write_file(file, tf.io.encode_png(photo))
    train, test = data.image_folder(
        tmp_path, image_size=(16, 24), normalize=False, crop="resized", center_crop=0.8
    )
    # The largest part of 2 : 3 is 30 x 45; of that 24 x 36.
    part = photos[:, 3:27, 12:48]
    np.testing.assert_allclose(
        arrays(test)[0], tf.image.resize(part, (16, 24), antialias=True), atol=1e-3
    )
    assert train.element_spec[0].shape == (None, 16, 24, 3)
    assert train.pipeline.fingerprint["image_size"] == [16, 24]
    images, labels = arrays(train.pipeline.dataset())
    _, draws_seed = pipelines._seeds(0, tf.constant(0, tf.int64))
    draws = data.draw(2, draws_seed)
    for image, label in zip(images, labels, strict=True):
        expected = data.random_resized_crop(
            photos[label], (16, 24), draws.seeds[label, 0]
        )
        if draws.uniform[label, 2] < 0.5:
            expected = expected[:, ::-1]
        np.testing.assert_allclose(image, expected, atol=1e-3)


def test_a_part_of_each_class():
    train, test = data.load("digits", label_fraction=0.25, batch_size=1000)
    full, _ = data.load("digits", batch_size=1000)
    counts, of_all = (np.bincount(next(iter(d))[1]) for d in (train, full))
    np.testing.assert_array_equal(counts, np.round(of_all / 4))
    assert test.num_examples == 798


def test_a_limit_is_of_both_parts_and_keeps_the_classes():
    train, test = data.load("digits", limit=7)
    assert (train.num_examples, test.num_examples) == (7, 7)
    assert len(train.class_names) == 10


# The pipelines


def test_each_pass_has_an_order_of_its_own_that_can_be_replayed():
    train, _ = data.load("digits", examples_per_class=10)
    first, second = train.take(-1).cache(), train.take(-1).cache()
    first_labels, second_labels = labels_of(first), labels_of(second)
    assert first_labels != second_labels
    assert train.epoch_counter.value == 2

    train.epoch_counter.value = 0
    assert_same_batches(train, first)
    assert_same_batches(data.load("digits", examples_per_class=10)[0], first)
    train.epoch_counter.value = 1
    assert_same_batches(train, second)


def test_counter_advances_with_the_first_batch():
    train, _ = data.load("digits", examples_per_class=10)
    iterator = iter(train)
    assert train.epoch_counter.value == 0
    next(iterator)
    assert train.epoch_counter.value == 1
    assert len(list(iterator)) == 1
    assert train.epoch_counter.value == 1


def test_resume_in_the_middle_of_an_epoch():
    train, _ = data.load("digits", examples_per_class=10, batch_size=16)
    train.epoch_counter.value = 5
    whole = list(train.as_numpy_iterator())
    train.epoch_counter.value = 5
    tail = train.skip(3)
    assert tail.cardinality() == len(whole) - 3
    for (images, labels), expected in zip(
        tail.as_numpy_iterator(), whole[3:], strict=True
    ):
        np.testing.assert_array_equal(images, expected[0])
        np.testing.assert_array_equal(labels, expected[1])
    assert train.epoch_counter.value == 6

    # A pass that begins there has its whole length, and nothing at its end.
    train.epoch_counter.value, train.epoch_counter.first_step = 5, 3
    resumed = list(train.as_numpy_iterator())
    assert len(resumed) == len(whole)
    for (images, labels), expected in zip(resumed[:-3], whole[3:], strict=True):
        np.testing.assert_array_equal(images, expected[0])
        np.testing.assert_array_equal(labels, expected[1])
    assert [len(labels) for _, labels in resumed[-3:]] == [0, 0, 0]
    assert (train.epoch_counter.value, train.epoch_counter.first_step) == (6, 0)


@pytest.mark.parametrize("flip", [True, False])
def test_crop_pads_with_black_and_flip_can_be_off(flip):
    source = data.ArraySource(slope_images(64), np.zeros(64), 32)
    layer = pipelines.rescaling(MEAN, STD)
    train, test = pipelines.train_and_test(
        source, source, 64, 0, data.Augmentation(flip=flip), layer, ["a"]
    )
    images, _ = arrays(train)
    raw = np.round((images * STD + MEAN) * 255)
    assert raw.min() == 0 and set(np.unique(raw)) == {0, *np.unique(slope_images(1))}
    # At most 4 black rows at the top or at the bottom.
    black_rows = (raw == 0).all(axis=(2, 3)).sum(axis=1)
    assert black_rows.max() == 4 and len(set(black_rows)) == 5
    middle = raw[:, 16, 8:24, 0]
    mirrored = (np.diff(middle, axis=1) < 0).all(axis=1)
    assert mirrored.any() == flip and not mirrored.all()
    np.testing.assert_allclose(
        arrays(test)[0], normalised(slope_images(64), MEAN, STD), atol=1e-6
    )


# Named data sets


@pytest.mark.parametrize("function", [data.load, data.info])
@pytest.mark.parametrize(
    "name, hint",
    [
        ("cifar10O", r" \(did you mean 'cifar10'\?\)$"),
        ("CIFAR100", r" \(did you mean 'cifar100'\?\)$"),
        ("imagenet", "$"),
        (None, "$"),
    ],
)
def test_unknown_name(function, name, hint):
    message = (
        rf"Expected `name` to be one of \[.*\], or `tfds:`.*. Received: {name!r}{hint}"
    )
    with pytest.raises(ValueError, match=message):
        function(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` .*=0"),
        ({"batch_size": 2.5}, "`batch_size` .*=2.5"),
        ({"image_size": 7}, "`image_size` .*=7"),
        ({"image_size": [16, 7]}, r"`image_size` .*=\[16, 7\]"),
        ({"image_size": [16]}, r"`image_size` .*=\[16\]"),
        ({"seed": -1}, "`seed` .*=-1"),
        ({"augment": "mixup"}, "`augment` .*'mixup'"),
        ({"crop": "random"}, "`crop` to be one of .*'resized'.*crop='random'"),
        ({"center_crop": 1.5}, "`center_crop` to be None or above 0.*1.5"),
        ({"label_fraction": 0}, "`label_fraction` to be above 0.*label_fraction=0"),
        ({"label_fraction": 0.5, "examples_per_class": 3}, "one of `label_fraction`"),
        ({"examples_per_class": 0}, "`examples_per_class` .*=0"),
        ({"limit": 0}, "`limit`.*limit=0"),
    ],
)
def test_arguments_are_checked_before_work_starts(fake_tfds, arguments, message):
    for read, name in ((data.load, "cifar10"), (data.image_folder, "/nowhere")):
        with pytest.raises(ValueError, match=f"Expected {message}"):
            read(name, **arguments)
    assert not fake_tfds


@pytest.mark.parametrize(
    ("name", "value"), [("mean", (0,)), ("std", (1, 1)), ("std", (1, 0, 1))]
)
def test_image_folder_checks_its_normalisation(name, value):
    with pytest.raises(ValueError, match=f"Expected `{name}` .* Received: "):
        data.image_folder("/does/not/matter", **{name: value})


def test_more_examples_than_a_class_has():
    message = "`examples_per_class` to be at most 97.* Received: examples_per_class=98"
    with pytest.raises(ValueError, match=message):
        data.load("digits", examples_per_class=98)


def test_digits_constants_are_those_of_the_training_images(digits):
    (images, _), _ = digits
    images = tf.image.resize(images, (32, 32)).numpy().astype("float64") / 255
    row = data.info("digits")
    np.testing.assert_allclose(row.mean, images.mean(axis=(0, 1, 2)), atol=5e-5)
    np.testing.assert_allclose(row.std, images.std(axis=(0, 1, 2)), atol=5e-5)


def test_digits_are_split_by_class_whatever_the_seed(digits):
    (train_images, train_labels), (test_images, test_labels) = digits
    assert train_images.dtype == "uint8" and train_images.max() == 255
    assert (len(train_labels), len(test_labels)) == (999, 798)
    share = np.bincount(test_labels) / np.bincount([*train_labels, *test_labels])
    np.testing.assert_allclose(share, 4 / 9, atol=0.01)

    images, labels = arrays(data.load("digits", seed=5)[1])
    np.testing.assert_array_equal(labels, test_labels)
    expected = data.info("digits").preprocessing()(
        tf.image.resize(test_images, (32, 32))
    )
    np.testing.assert_allclose(images, expected, atol=1e-6)


def test_digits_are_not_flipped(monkeypatch):
    digits = types.SimpleNamespace(
        images=slope_images(90, 8)[..., 0] / 255 * 16, target=np.arange(90) % 10
    )
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: digits)
    images, _ = arrays(data.load("digits", image_size=8)[0])
    assert (np.diff(images[:, 4, 1:7, 0], axis=1) > 0).all()


def test_digits_without_sklearn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'keras_hsakd\[demo\]'"):
        data.load("digits")


def test_examples_per_class():
    def chosen(**kwargs):
        return data.load("digits", examples_per_class=7, batch_size=70, **kwargs)

    train, test = chosen()
    assert np.bincount(labels_of(train)).tolist() == [7] * 10
    assert len(labels_of(test)) == 798


def test_examples_per_class_are_chosen_by_the_seed():
    source = np.arange(200), np.arange(200) % 10
    first, again, other = (subsets.few(*source, 5, seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other) and len(set(first)) == 50


def test_validation_holds_out_a_fixed_fifth_of_the_training_images(digits):
    (images, labels), _ = digits
    (kept, kept_labels), (held_out, held_out_labels) = subsets.hold_out(
        images, labels, 0.2
    )
    np.testing.assert_allclose(
        np.bincount(held_out_labels) / np.bincount(labels), 0.2, atol=0.01
    )
    pixels = sorted(image.tobytes() for image in images)
    assert pixels == sorted(image.tobytes() for image in (*kept, *held_out))

    for seed in (0, 1):
        train, validation = data.load(
            "digits", image_size=8, seed=seed, validation=True, examples_per_class=70
        )
        expected = data.info("digits").preprocessing()(held_out)
        np.testing.assert_allclose(arrays(validation)[0], expected, atol=1e-6)
        assert labels_of(validation) == held_out_labels.tolist()
        assert np.bincount(labels_of(train)).tolist() == [70] * 10
    assert len(labels_of(data.load("digits", validation=True)[0])) == len(kept)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_through_tfds(fake_tfds, name):
    train, test = data.load(name, data_dir="/somewhere")
    assert fake_tfds == [
        (
            name,
            {
                "split": ["train", "test"],
                "batch_size": -1,
                "as_supervised": True,
                "data_dir": "/somewhere",
                "with_info": True,
            },
        )
    ]
    assert train.class_names == test.class_names == [f"class {i}" for i in range(10)]
    assert (train.num_examples, test.num_examples) == (100, 30)
    images, labels = arrays(test)
    row = data.info(name)
    np.testing.assert_allclose(
        images, normalised(slope_images(30), row.mean, row.std), atol=1e-6
    )
    assert labels.tolist() == [*range(10)] * 3
    images, labels = arrays(train)
    assert np.bincount(labels).tolist() == [10] * 10
    falls = (np.diff(images[:, 16, 8:24, 0], axis=1) < 0).all(axis=1)
    assert 0 < falls.sum() < 100


@pytest.mark.parametrize("error", [OSError("no network"), AssertionError("no data")])
def test_cifar_that_cannot_be_had(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("tensorflow_datasets.load", fail)
    monkeypatch.setattr(datasets, "_check_obtainable", lambda *arguments: None)
    with pytest.raises(FileNotFoundError) as caught:
        data.load("cifar100", data_dir="/somewhere")
    message = str(caught.value)
    assert "'/somewhere/cifar100'" in message and str(error) in message
    assert "`tfds build cifar100 --data_dir /somewhere`" in message
    assert "/somewhere/downloads/manual/cifar-100-binary.tar.gz" in message
    assert caught.value.__cause__ is error


def test_what_cannot_be_downloaded_is_not_tried_for_minutes(tmp_path, monkeypatch):
    asked = []

    def answer(request, timeout):
        asked.append((request.get_method(), request.full_url))
        raise error

    monkeypatch.setattr("urllib.request.urlopen", answer)
    url = datasets._ARCHIVES["cifar100"]
    # A server that answers, if only that it does not like the question.
    error = urllib.error.HTTPError(url, 403, "forbidden", {}, None)
    datasets._check_obtainable(str(tmp_path), "cifar100")
    assert asked == [("HEAD", url)]
    error = urllib.error.URLError("no network")
    with pytest.raises(OSError, match="no network"):
        datasets._check_obtainable(str(tmp_path), "cifar100")
    (tmp_path / "cifar100").mkdir()
    datasets._check_obtainable(str(tmp_path), "cifar100")
    assert len(asked) == 2


# Folders of images


def write_image(path, image):
    encode = tf.io.encode_jpeg if path.suffix == ".JPG" else tf.io.encode_png
    tf.io.write_file(str(path), encode(image))


@pytest.fixture
def folder(tmp_path):
    """Gray images: train cats of 10, 11 ..., dogs of 60, 61 ...; test the same."""
    for split, count in (("train", 5), ("test", 3)):
        for first, name in ((60, "dog"), (10, "cat")):
            for i in range(count):
                # The last one is a JPEG with an upper case suffix.
                suffix = "JPG" if i == count - 1 else "png"
                image = np.full((20, 30, 3), first + i, "uint8")
                write_image(tmp_path / split / name / f"{i}.{suffix}", image)
        (tmp_path / split / "README.txt").write_text("not a class")
        (tmp_path / split / "cat" / ".hidden.png").write_text("not an image")
        (tmp_path / split / "cat" / "notes.txt").write_text("not an image")
    return tmp_path


def test_image_folder(folder):
    train, test = data.image_folder(folder, batch_size=4, image_size=16)
    assert train.class_names == test.class_names == ["cat", "dog"]
    assert (train.num_examples, test.num_examples) == (10, 6)
    assert train.cardinality() == 3 and test.cardinality() == 2
    assert train.element_spec == (
        tf.TensorSpec((None, 16, 16, 3), tf.float32),
        tf.TensorSpec((None,), tf.int32),
    )
    images, labels = arrays(test)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    gray = np.array([10, 11, 12, 60, 61, 62])[:, None, None, None]
    expected = np.broadcast_to(gray, (6, 16, 16, 3))
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    np.testing.assert_allclose(images, normalised(expected, *imagenet), atol=1e-5)

    # A crop with padding 2 leaves the middle as it was.
    images, labels = arrays(train)
    middle = np.round((images[:, 8, 8] * imagenet[1] + imagenet[0]) * 255)[:, 0]
    assert sorted(middle) == [*range(10, 15), *range(60, 65)]
    np.testing.assert_array_equal(labels, middle >= 60)


def test_image_folder_reads_whole_images_with_flip_mean_and_std(tmp_path):
    for file in ("train/a/1", "train/b/1", "test/a/1"):
        write_image(tmp_path / f"{file}.png", slope_images(1)[0])
    train, test = data.image_folder(tmp_path, image_size=16, mean=MEAN, std=STD)
    expected = tf.image.resize(slope_images(1), (16, 16), antialias=True)
    np.testing.assert_allclose(
        arrays(test)[0], normalised(expected, MEAN, STD), atol=1e-5
    )

    def some_mirrored(train):
        rows = np.concatenate([arrays(train)[0][:, 8, 4:12, 0] for _ in range(8)])
        return (np.diff(rows, axis=1) < 0).all(axis=1).any()

    assert some_mirrored(train)
    assert not some_mirrored(
        data.image_folder(tmp_path, image_size=16, flip=False, stream=True)[0]
    )


@pytest.mark.parametrize("name", ["val", "validation"])
def test_image_folder_with_another_name_for_test(folder, name):
    (folder / "test").rename(folder / name)
    _, test = data.image_folder(folder, stream=True)
    assert len(labels_of(test)) == 6


@pytest.mark.parametrize("missing", ["", "train", "test"])
def test_image_folder_that_is_missing(folder, missing):
    (folder / missing).rename(folder.with_name(f"{folder.name}-elsewhere"))
    name = f"'{missing}'" if missing else "an existing folder"
    with pytest.raises(FileNotFoundError, match=f"`path` .*{name}.* Received: path="):
        data.image_folder(folder)


def test_image_folder_with_one_class(folder):
    for split in ("train", "test"):
        (folder / split / "dog").rename(folder / split / ".dog")
    with pytest.raises(ValueError, match=r"at least two .* Received: \['cat'\]"):
        data.image_folder(folder)


def test_image_folder_with_an_empty_class(folder):
    (folder / "train" / "fox").mkdir()
    with pytest.raises(ValueError, match="Expected each class .* Received: .*fox"):
        data.image_folder(folder)


def test_image_folder_with_an_unknown_test_class(folder):
    (folder / "test" / "dog").rename(folder / "test" / "fox")
    with pytest.raises(ValueError, match=r"\['cat', 'dog'\]. Received: \['fox'\]"):
        data.image_folder(folder)


# What is wrong with files


def write_files(folder, **contents):
    for name, content in contents.items():
        (folder / "train" / "cat" / name.replace("__", ".")).write_bytes(content)


def test_grey_and_transparent_images_are_read(folder):
    rgba = np.full((20, 30, 4), 40, "uint8")
    rgba[..., 3] = 7
    files = {
        "grey__png": tf.io.encode_png(rgba[..., :1]),
        "grey__jpg": tf.io.encode_jpeg(rgba[..., :1]),
        "grey_alpha__png": tf.io.encode_png(rgba[..., 2:]),
        "rgba__png": tf.io.encode_png(rgba),
        "deep__png": tf.io.encode_png(rgba[..., :3].astype("uint16") * 256),
    }
    write_files(folder, **{name: file.numpy() for name, file in files.items()})
    train, _ = data.image_folder(folder, image_size=20, mean=(0, 0, 0), std=(1, 1, 1))
    assert train.num_examples == 15
    images, _ = arrays(train)
    values = np.round(255 * images[:, 10, 10]).astype(int)
    assert (values == 40).all(axis=1).sum() == 5


@pytest.fixture
def corrupt_folder(folder):
    content = tf.io.encode_jpeg(np.full((20, 30, 3), 50, "uint8")).numpy()
    whole = (folder / "train" / "dog" / "0.png").read_bytes()
    write_files(
        folder,
        empty__png=b"",
        half__jpg=content[: len(content) // 2],
        half__png=whole[: len(whole) // 2],
        text__jpg=b"no image",
    )
    return folder


def test_corrupt_files_are_skipped_with_a_warning(corrupt_folder):
    with pytest.warns(UserWarning, match="Skipped 4 of 20 files .*half.jpg"):
        train, test = data.image_folder(corrupt_folder, corrupt="skip", stream=True)
    assert (train.num_examples, test.num_examples) == (10, 6)
    assert sorted(labels_of(train)) == [0] * 5 + [1] * 5


def test_a_class_of_corrupt_files_alone(folder):
    for file in (folder / "test" / "dog").iterdir():
        file.write_text("no image")
    with (
        pytest.warns(UserWarning, match="Skipped 3"),
        pytest.raises(ValueError, match="Received: none in class 'dog'"),
    ):
        data.image_folder(folder, corrupt="skip", stream=True)


def test_image_folder_validation_and_few_examples(folder):
    for part in ("test", "train"):
        for file in (folder / part).rglob("*.txt"):
            file.unlink()
    shutil.rmtree(folder / "test")
    train, validation = data.image_folder(folder, validation=True)
    assert (train.num_examples, validation.num_examples) == (8, 2)
    gray = 255 * (arrays(validation)[0][:, 0, 0, 0] * 0.229 + 0.485)
    # The last of five by file name.
    np.testing.assert_allclose(gray, [14, 64], atol=1.5)
    train, _ = data.image_folder(
        folder, validation=True, examples_per_class=2, stream=True
    )
    assert sorted(labels_of(train)) == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="`examples_per_class` to be at most 4"):
        data.image_folder(folder, validation=True, examples_per_class=5)


@pytest.mark.parametrize("classes", [[], ["train"], ["cat", "dog"]])
def test_a_folder_of_another_layout_is_told_the_right_one(tmp_path, classes):
    for name in classes:
        (tmp_path / name).mkdir()
    message = (
        r"at least two class folders .* \[\]"
        if "train" in classes
        else ("path/train/<class>/")
    )
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        data.image_folder(tmp_path)


# Stronger augmentation


def test_rand_augment_is_a_function_of_the_seed():
    images = np.random.default_rng(0).integers(0, 256, (16, 12, 12, 3)).astype("uint8")
    seeds, other_seeds = (data.draw(16, (0, i)).seeds[:, 1] for i in (1, 2))
    first = data.rand_augment(images, seeds).numpy()
    assert (first != data.rand_augment(images, other_seeds).numpy()).any()
    # Of an image's own seed alone, whatever the batch.
    part = data.rand_augment(images[5:8], seeds[5:8])
    np.testing.assert_array_equal(part, first[5:8])
    assert first.shape == images.shape and first.dtype == "float32"
    assert first.min() >= 0
    assert first.max() <= 255
    # Each image has its own transformations.
    same = data.rand_augment(np.repeat(images[:1], 16, axis=0), seeds).numpy()
    assert len({image.tobytes() for image in same}) > 8


def test_a_pipeline_with_rand_augment_can_be_replayed():
    few = {"image_size": 8, "examples_per_class": 2, "batch_size": 8}
    train, _ = data.load("digits", augment="rand_augment", **few)
    whole = list(train.as_numpy_iterator())
    train.epoch_counter.value = 0
    tail = list(train.skip(1).as_numpy_iterator())
    assert len(whole) == len(tail) + 1
    for (images, labels), (others, other_labels) in zip(whole[1:], tail, strict=True):
        np.testing.assert_array_equal(images, others)
        np.testing.assert_array_equal(labels, other_labels)
    plain, _ = data.load("digits", **few)
    assert np.abs(next(plain.as_numpy_iterator())[0] - whole[0][0]).max() > 0.1
