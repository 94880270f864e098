"""A cached teacher gives what the teacher gives, and none is taken for another."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal

import keras
import numpy as np
import pytest
from processes import KILLED, end_of, start, worker_environments

import keras_hsakd
from keras_hsakd import data, lock, teachers
from keras_hsakd.data.pipelines import train_and_test
from keras_hsakd.teachers import TeacherCache, num_bytes
from keras_hsakd.teachers import cache_writing as writing
from keras_hsakd.terms import KL, CrossEntropy, Function

pytestmark = pytest.mark.usefixtures("eager_trainers")


def images(**options):
    options = {"image_size": 8, "batch_size": 8, "limit": 12, **options}
    return data.load("digits", **options)


def network(name, classes=10, heads=2, views=4):
    """Returns a network whose outputs depend on each pixel."""
    pixels = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu", name=f"{name}_conv")(pixels)
    x = keras.layers.Flatten()(x)
    outputs = {"logits": keras.layers.Dense(classes, name=f"{name}_logits")(x)}
    for i in range(1, heads + 1):
        outputs[f"aux_{i}"] = keras.layers.Dense(views * classes)(x)
    return keras.Model(pixels, outputs if heads else outputs["logits"], name=name)


@pytest.fixture(scope="module")
def teacher():
    keras.utils.set_random_seed(1)
    return network("teacher", heads=3)


@pytest.fixture(scope="module")
def written(teacher, tmp_path_factory):
    """Returns a cache in float32."""
    folder = tmp_path_factory.mktemp("caches")
    train, _ = images()
    return TeacherCache.write(
        folder / "cache", teacher, train, variants=2, dtype="float32", verbose=0
    )


@pytest.fixture
def cache(written, tmp_path):
    """Returns a copy of the cache, to be spoiled."""
    return shutil.copytree(written.path, tmp_path / "cache")


def student():
    keras.utils.set_random_seed(0)
    return network("student")


def losses(teacher, train, epochs=2, options=None, compiling=None, **fitting):
    """Trains a student, and returns the history and the weights."""
    distiller = keras_hsakd.Distiller(teacher, student(), **options or {})
    optimizer = keras_hsakd.optimizers.SGD(0.05, momentum=0.9)
    distiller.compile(optimizer, **compiling or {})
    history = distiller.fit(train, epochs=epochs, verbose=0, shuffle=False, **fitting)
    return history.history, distiller.student.get_weights()


def assert_same(first, second, relative=1e-5, absolute=1e-6):
    (logs, weights), (other_logs, other_weights) = first, second
    assert logs.keys() == other_logs.keys()
    for name in logs:
        np.testing.assert_allclose(logs[name], other_logs[name], relative, absolute)
    for one, other in zip(weights, other_weights, strict=True):
        np.testing.assert_allclose(one, other, relative, absolute)


# Training.


def test_it_trains_as_the_teacher_does(teacher, written):
    train, test = images()
    exact = losses(teacher, train, validation_data=test)
    train, test = images()
    compiled = {"run_eagerly": False}
    cached = losses(written, train, compiling=compiled, validation_data=test)
    assert_same(exact, cached)
    assert train.epoch_counter.value == 2


def test_the_step_may_augment(teacher, tmp_path):
    options = {"normalize": False, "flip": True}
    cache = TeacherCache.write(
        tmp_path / "cache", teacher, images(**options)[0], 1, verbose=0
    )
    expected, received = (
        losses(cache, images(**options)[0], 1, augment_on_device=on_device)
        for on_device in (False, True)
    )
    assert_same(expected, received)


def test_the_variants_come_again(teacher, written):
    train, _ = images()
    train = train.pipeline.dataset(written)
    epochs = []
    for _ in range(4):
        batches = [batch for batch, _ in train]
        epochs.append(np.concatenate([batch["images"] for batch in batches]))
        for batch in batches:
            views = [np.rot90(batch["images"], turns, (1, 2)) for turns in range(4)]
            computed = [teacher.predict_on_batch(view.copy()) for view in views]
            for name, targets in batch["targets"].items():
                expected = np.stack([outputs[name] for outputs in computed], axis=1)
                np.testing.assert_allclose(targets, expected, atol=1e-4)
    for first, second, same in ((0, 2, True), (1, 3, True), (0, 1, False)):
        assert not np.array_equal(epochs[first], epochs[second])  # in another order
        sums = [np.sort(epochs[i].sum(axis=(1, 2, 3))) for i in (first, second)]
        assert np.allclose(*sums) == same


@pytest.mark.core
def test_options_hold(teacher, written):
    options = {
        "pairs": [("aux_1", "aux_2"), ("aux_3", "aux_1")],
        "terms": [
            CrossEntropy(),
            Function(lambda t, s, labels: (t - s)[:, 0] ** 2, on=["logits", "aux_1"]),
            KL(2.0, on="aux_2", weight=0.5),
        ],
        "sampled_views": 2,
    }
    class_weight = {label: label / 5 for label in range(10)}
    train, _ = images()
    exact = losses(teacher, train, 1, options, class_weight=class_weight)
    train, _ = images()
    fitting = {"class_weight": class_weight, "steps_per_epoch": 2}
    cached = losses(written, train.repeat(2).prefetch(1), 1, options, **fitting)
    assert_same(exact, cached)


def test_terms_heads_and_images_without_labels(teacher, tmp_path):
    rng = np.random.default_rng(0)
    source = data.ArraySource(
        rng.integers(0, 256, (12, 8, 8, 3), "uint8"), np.arange(12) % 6 - 1, 8
    )
    layer = data.rescaling((0.5,) * 3, (0.25,) * 3)
    names = [str(label) for label in range(10)]

    def partly_labelled():
        how = data.Augmentation()
        return train_and_test(source, source, 8, 0, how, layer, names)[0]

    compiling = {"head_metrics": True}
    cache = TeacherCache.write(
        tmp_path / "cache", teacher, partly_labelled(), 1, dtype="float32", verbose=0
    )
    exact, cached = (
        losses(taught_by, partly_labelled(), 1, compiling=compiling)
        for taught_by in (teacher, cache)
    )
    assert "aux_1_joint_accuracy" in exact[0]
    assert_same(exact, cached)


def test_plain_classifiers_and_views_of_ones_own(tmp_path):
    train, _ = images()
    plain = network("plain", heads=0)
    cache = TeacherCache.write(tmp_path / "plain", plain, train, 1, verbose=0)
    assert cache.read(0, [3])["logits"].shape == (1, 1, 10)
    distiller = keras_hsakd.Distiller(cache, network("student", heads=0))
    assert distiller.compile("sgd").fit(train, verbose=0)

    views = [lambda x: x, lambda x: x[:, ::-1]]
    flipping = network("flipping", views=2)
    cache = TeacherCache.write(tmp_path / "own", flipping, train, 1, views, verbose=0)
    distiller = keras_hsakd.Distiller(cache, network("a", views=2), views=views)
    assert distiller.compile("sgd").fit(train, verbose=0)
    assert cache.check(flipping, train, views=views)["logits"].largest < 1e-5
    for others in (None, "half_turns", [lambda x: x, lambda x: x[:, :, ::-1]]):
        with pytest.raises(ValueError, match="Expected the views of the teacher cache"):
            keras_hsakd.Distiller(cache, network("b", views=2), views=others)


def test_workers_read_their_shares(written):
    train, _ = images(batch_size=7)
    train = train.pipeline.dataset(written)
    whole = [batch for batch, _ in train]
    train.epoch_counter.value = 0
    first = [batch for batch, _ in train.share(2, 0, 1)]
    train.epoch_counter.value = 0
    second = [batch for batch, _ in train.share(2, 1, 2)]
    for name in ("logits", "aux_3"):
        for parts in zip(whole, first, second, strict=True):
            expected, *halves = (part["targets"][name].numpy() for part in parts)
            np.testing.assert_array_equal(expected, np.concatenate(halves))


# Saving, and going on.


@pytest.mark.core
def test_a_trainer_is_saved_without_teacher_and_files(written, cache, tmp_path):
    train, test = images()
    distiller = keras_hsakd.Distiller(TeacherCache(cache), student()).compile("sgd")
    distiller.save(tmp_path / "trainer.keras")
    shutil.move(cache, tmp_path / "elsewhere")
    loaded = keras.saving.load_model(tmp_path / "trainer.keras")
    assert np.isfinite(loaded.evaluate(test, verbose=0))
    assert loaded.predict(test, verbose=0).shape == (12, 10)
    with pytest.raises(
        FileNotFoundError, match="Expected a teacher cache.*header.json"
    ):
        loaded.fit(train, verbose=0)
    loaded.teacher.path = str(tmp_path / "elsewhere")
    assert np.isfinite(loaded.fit(train, verbose=0).history["loss"]).all()


def test_a_loaded_trainer_takes_no_other_cache(teacher, cache, tmp_path):
    train, _ = images()
    distiller = keras_hsakd.Distiller(TeacherCache(cache), student()).compile("sgd")
    loaded = type(distiller).from_config(distiller.get_config()).compile("sgd")
    shutil.rmtree(cache)
    TeacherCache.write(cache, teacher, train, 3, dtype="float32", verbose=0)
    with pytest.raises(ValueError, match="with variants 2. Received: variants 3"):
        loaded.fit(train, verbose=0)


def test_a_training_goes_on_with_the_same_cache(teacher, written, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_begin(self, batch, logs=None):
            if (self.epoch, batch) == (1, 1):
                raise InterruptedError

    def train(cache, folder, *callbacks):
        callbacks += (keras_hsakd.Resume(tmp_path / folder, every_steps=1),)
        return losses(cache, images()[0], callbacks=callbacks)

    expected = train(written, "whole")
    with pytest.raises(InterruptedError):
        train(written, "stopped", Stop())
    other = TeacherCache.write(tmp_path / "other", teacher, images()[0], 3, verbose=0)
    with pytest.raises(ValueError, match="to be of this training, with frozen"):
        train(other, "stopped")
    assert_same(expected, train(written, "stopped"), 0, 0)


# What is refused.


def test_data_that_do_not_name_their_images(written):
    train, _ = images()
    distiller = keras_hsakd.Distiller(written, student()).compile("sgd")
    batch = next(iter(train))
    for others in (
        train.map(lambda images, labels: (images, labels)),
        train.take(1),
        train.shuffle(2),
    ):
        with pytest.raises(ValueError, match="do not name their images, or may"):
            distiller.fit(others, verbose=0)
    arrays = [part.numpy() for part in batch]
    with pytest.raises(ValueError, match="Received: a ndarray"):
        distiller.fit(*arrays, verbose=0)
    with pytest.raises(ValueError, match="Expected `fit` with a teacher cache"):
        distiller.train_on_batch(*arrays)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"limit": 11}, "examples .*, num_images 12. Received: .* 11"),
        ({"seed": 1}, "examples"),  # of which the limit depends
        ({"crop": "resized"}, "crop 'padded'. Received: crop 'resized'"),
        ({"normalize": False}, "normalisation {.*}. Received: normalisation None"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_other_data(written, options, named):
    train, _ = images(**options)
    distiller = keras_hsakd.Distiller(written, student()).compile("sgd")
    with pytest.raises(ValueError, match=f"the images of the teacher cache.*{named}"):
        distiller.fit(train, verbose=0)


def test_other_networks(written):
    train, _ = images()
    for options, named in (
        ({"classes": 9}, "classes. Received: 10 in `teacher` and 9 in `student`"),
        ({"heads": 4}, "at least as many auxiliary heads"),
        ({"heads": 0}, "heads both, or neither"),
        ({"views": 2}, "number of views"),
    ):
        with pytest.raises(ValueError, match=named):
            keras_hsakd.Distiller(written, network("student", **options))
    with pytest.raises(ValueError, match="the views of the teacher cache"):
        keras_hsakd.Distiller(written, student(), views="padded_rotations")
    with pytest.raises(ValueError, match="the teacher of the cache .*`teacher` with"):
        written.check(network("other", heads=3), train)


def test_files_are_known_by_name_size_and_label(tmp_path):
    def fingerprint(folder="photos", labels=(0, 0, 1)):
        files = sorted(map(str, (tmp_path / folder).rglob("*.png")))
        return data.FileSource(files, labels, image_size=8).fingerprint()

    for name in ("cat/1", "cat/2", "dog/1"):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"pixels")
    expected = fingerprint()
    assert fingerprint(labels=(0, 1, 1)) != expected
    shutil.move(tmp_path / "photos", tmp_path / "moved")
    assert fingerprint("moved") == expected
    cats = tmp_path / "moved" / "cat"
    (cats / "1.png").rename(cats / "3.png")
    assert fingerprint("moved") != expected
    (cats / "3.png").rename(cats / "1.png")
    assert fingerprint("moved") == expected
    (cats / "1.png").write_bytes(b"more pixels")
    assert fingerprint("moved") != expected


@pytest.mark.parametrize("name", ["variant-001.npy", "header.json"])
def test_a_flipped_byte(cache, name):
    path = pathlib.Path(cache) / name
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=name):
        TeacherCache(cache)


def test_missing_and_short_files(cache):
    path = pathlib.Path(cache) / "variant-001.npy"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ValueError, match="variant-001.npy.*checksum"):
        TeacherCache(cache)
    with pytest.raises(ValueError, match="variant-001.npy.*a damaged file"):
        TeacherCache(cache, verify=False).read(1, [0])
    path.unlink()
    with pytest.raises(ValueError, match="variant-001.npy.*of no file"):
        TeacherCache(cache)
    with pytest.raises(FileNotFoundError, match="which has no header.json"):
        TeacherCache(cache + "2" if isinstance(cache, str) else f"{cache}2")


# What is stored.


@pytest.mark.parametrize(
    "dtype, difference, divergence",
    [("float32", 1e-4, 1e-7), ("float16", 3e-3, 1e-6), ("uint8", 3e-2, 1e-4)],
)
def test_stored_outputs_are_those_of_the_teacher(
    teacher, tmp_path, dtype, difference, divergence
):
    train, _ = images()
    cache = TeacherCache.write(
        tmp_path / "cache", teacher, train, 3, dtype=dtype, verbose=0
    )
    for name, found in cache.check(teacher, train, images=20).items():
        assert found.difference < difference, name
        assert 0 <= found.mean <= found.largest < divergence, name
    assert cache.read(1, [4])["aux_1"].dtype == cache.read_dtype
    size = sum(path.stat().st_size for path in tmp_path.glob("cache/*.npy"))
    assert 0 < size - num_bytes(12, 3, 4, cache.outputs, dtype) < 3 * 1000


def test_values_that_a_dtype_cannot_hold(tmp_path):
    train, _ = images()
    large = network("large", heads=1)
    large.get_layer("large_logits").bias.assign(1e5 * (-1.0) ** np.arange(10))
    with pytest.raises(
        ValueError, match="float16 can hold.*'float32'.*1.* in 'logits'"
    ):
        TeacherCache.write(tmp_path / "a", large, train, 1, verbose=0)
    assert TeacherCache.write(
        tmp_path / "c", large, train, 1, dtype="float32", verbose=0
    )
    large.get_layer("large_logits").bias.assign(np.full(10, np.nan))
    with pytest.raises(ValueError, match="Expected finite outputs"):
        TeacherCache.write(tmp_path / "b", large, train, 1, dtype="uint8", verbose=0)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"variants": 0}, "`variants` to be at least 1"),
        ({"dtype": "bfloat16"}, "`dtype` to be one of"),
        ({"views": "half_turns"}, "heads of `teacher`"),
    ],
)
def test_arguments_that_do_not_suit(teacher, tmp_path, options, named):
    train, test = images()
    with pytest.raises(ValueError, match=named):
        TeacherCache.write(tmp_path / "cache", teacher, train, verbose=0, **options)
    for dataset in (train.map(lambda *batch: batch), test):
        with pytest.raises(ValueError, match="Expected the training images"):
            TeacherCache.write(tmp_path / "cache", teacher, dataset, verbose=0)
    larger, _ = images(image_size=16)
    with pytest.raises(ValueError, match=r"\(8, 8, 3\), as `teacher`.*\(16, 16, 3\)"):
        TeacherCache.write(tmp_path / "cache", teacher, larger, verbose=0)
    assert not list(tmp_path.iterdir())


# Writing.


def test_size_and_time_are_said_before(teacher, tmp_path, capfd):
    train, _ = images()
    (tmp_path / "cache.partial").mkdir()  # as a kill before the header leaves it
    TeacherCache.write(tmp_path / "cache", teacher, train, 4, batch_size=5)
    size, time, *bar = capfd.readouterr().out.splitlines()
    assert "12 images in 4 variants take 49.9 kB; " in size
    assert size.endswith(" are free.")
    assert re.fullmatch(r"It takes about \d+ seconds\.", time)
    assert "12/12" in bar[-1]
    with pytest.raises(FileExistsError, match="which exists"):
        TeacherCache.write(tmp_path / "cache", teacher, train)


def test_too_little_space(teacher, tmp_path, monkeypatch):
    train, _ = images()
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="Expected 12.5 kB of free space.*Received: 1 kB"):
        TeacherCache.write(tmp_path / "cache", teacher, train, 1, verbose=0)
    assert not list(tmp_path.iterdir())


@contextlib.contextmanager
def largest_file(size):
    """Lets no file grow beyond a size, as a full disk does."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_fills_up(teacher, tmp_path):
    train, _ = images()
    arguments = {"batch_size": 8, "origin": {"mean": (1, 2)}, "verbose": 0}
    whole = TeacherCache.write(tmp_path / "whole", teacher, train, 2, **arguments)
    with (
        largest_file(9_000),  # in the middle of the second batch
        pytest.raises(OSError, match="to write the teacher cache.*too large; .* kept"),
    ):
        TeacherCache.write(tmp_path / "cache", teacher, train, 2, **arguments)
    with pytest.raises(FileNotFoundError, match="of which .*partial' is a part"):
        TeacherCache(tmp_path / "cache")
    with pytest.raises(ValueError, match="begun in .*variants 2; .* variants 3"):
        TeacherCache.write(tmp_path / "cache", teacher, train, 3, **arguments)
    again = TeacherCache.write(tmp_path / "cache", teacher, train, 2, **arguments)
    assert again.header == whole.header


def test_a_second_writer_is_refused_and_changes_nothing(teacher, tmp_path):
    train, _ = images()
    message = rf"cache', where process {os.getpid()} on"
    with lock.held_beside(tmp_path / "cache"):
        before = os.listdir(tmp_path)
        with pytest.raises(BlockingIOError, match=message):
            TeacherCache.write(tmp_path / "cache", teacher, train, 1, verbose=0)
        assert os.listdir(tmp_path) == before
    (tmp_path / "cache.partial").mkdir()
    (tmp_path / "cache.partial" / ".partial-1-header.json").touch()
    TeacherCache.write(tmp_path / "cache", teacher, train, 1, verbose=0)
    assert os.listdir(tmp_path) == ["cache"]
    assert not list(tmp_path.glob("cache/.*"))


def write_and_die(folder, batches):
    """Writes a cache in a process of its own, which SIGKILL ends after some batches."""
    keras.utils.set_random_seed(1)
    rows_of, count = writing.format.rows_of, 0

    def dying(outputs, row):
        nonlocal count
        count += 1
        if count > batches:
            # In the middle of a row, too.
            with open(max(pathlib.Path(folder).glob("*.partial/*.npy")), "ab") as file:
                file.write(b"half a row")
            os.kill(os.getpid(), signal.SIGKILL)
        return rows_of(outputs, row)

    writing.format.rows_of = dying
    train, _ = images()
    teacher = network("teacher")
    cache = TeacherCache.write(
        pathlib.Path(folder) / "cache", teacher, train, 3, batch_size=8, verbose=0
    )
    print(json.dumps(cache.header["files"]))


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_killed_while_writing(tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    first = start(write_and_die, whole, 100)
    killed = []
    for batches in (0, 4):
        folder = tmp_path / str(batches)
        folder.mkdir()
        killed.append((folder, start(write_and_die, folder, batches)))
    expected = json.loads(end_of(first).splitlines()[-1])
    again = []
    for folder, process in killed:
        end_of(process, KILLED)
        assert not (folder / "cache").exists()
        again.append(start(write_and_die, folder, 100))
    for process in again:
        assert json.loads(end_of(process).splitlines()[-1]) == expected


# Many devices.


def train_on_devices(folder, workers):
    """Trains on two devices, or as one of several workers, and prints how."""
    import tensorflow as tf

    if workers:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    else:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * 2,
        )
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        history, weights = losses(TeacherCache(folder), images()[0])
    print(json.dumps([history, [values.tolist() for values in weights]]))


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute")
@pytest.mark.parametrize("environments", [[{}], worker_environments(2)], ids=len)
def test_many_devices_train_as_one(written, environments):
    workers = len(environments) > 1
    processes = [
        start(train_on_devices, written.path, workers, **environment)
        for environment in environments
    ]
    expected = losses(written, images()[0])
    for process in processes:
        found = json.loads(end_of(process).splitlines()[-1])
        assert_same(expected, found)


# In double precision.


def exact_and_cached(folder):
    """Trains 20 steps with a teacher and with its cache, and prints the losses."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    keras.utils.set_random_seed(1)
    teacher = keras_hsakd.models.create("resnet8", 10, (8, 8, 3))
    cache = TeacherCache.write(
        folder, teacher, images(limit=20)[0], 7, dtype="float32", verbose=0
    )
    found = []
    for taught_by in (teacher, cache):
        keras.utils.set_random_seed(0)
        student = keras_hsakd.models.create("wrn_10_1", 10, (8, 8, 3))
        distiller = keras_hsakd.Distiller(taught_by, student)
        distiller.compile(keras_hsakd.optimizers.SGD(0.05, momentum=0.9))

        class Losses(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                self.found.append(logs["loss"])

        callback = Losses()
        callback.found = []
        distiller.fit(images(limit=20)[0], epochs=7, verbose=0, callbacks=[callback])
        found.append(callback.found)
    print(json.dumps(found))


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="float64")
def test_losses_of_20_steps_in_double_precision(tmp_path):
    process = start(exact_and_cached, tmp_path / "cache")
    exact, cached = json.loads(end_of(process).splitlines()[-1])
    assert len(exact) == 21
    np.testing.assert_allclose(exact, cached, rtol=0, atol=1e-6)


def test_the_size_needs_no_files():
    outputs = {"logits": 100, "aux_1": 400, "aux_2": 400, "aux_3": 400}
    assert num_bytes(50_000, 8, 4, outputs) == 4_160_000_000
    assert set(teachers.DTYPES) == {"float16", "float32", "uint8"}
