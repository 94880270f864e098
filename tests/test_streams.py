"""One stream of images: the same whatever reads it, and exact when it goes on."""

import collections

import keras
import numpy as np
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("the pipelines are TensorFlow's", allow_module_level=True)

import tensorflow as tf

from keras_hsakd import Resume, data
from keras_hsakd.data.pipelines import train_and_test
from keras_hsakd.resume import list_snapshots
from keras_hsakd.trainers import BaselineTrainer

# Images are the same whatever the batch size and the number of workers.


class CountedSource(data.ArraySource):
    """Reads images one by one, as files are read, and notes which."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.read_indices = []

    def read(self, index):
        noted = tf.numpy_function(self._note, [index], tf.int64)
        image, label = super().read(tf.ensure_shape(noted, ()))
        return image, label

    def _note(self, index):
        self.read_indices.append(int(index))
        return index

    def batches(self, *arguments, **options):
        return data.Source.batches(self, *arguments, **options)


def random_images(examples, size=9):
    images = np.random.default_rng(0).integers(0, 256, (examples, size, size, 3))
    return images.astype("uint8")


def pixels_by_image(batches):
    """Returns the bytes and the label of each image by its index; each comes once."""
    found = {}
    for inputs, labels in batches.as_numpy_iterator():
        for image, index, label in zip(
            inputs["images"], inputs["indices"], labels, strict=True
        ):
            assert index not in found
            found[int(index)] = image.tobytes(), int(label)
    return found


ARRAYS = data.ArraySource, data.Augmentation()
ONE_BY_ONE = CountedSource, data.Augmentation("resized")
ALL = [(size, workers) for size in (7, 32, 64) for workers in (1, 2, 4)]


@pytest.mark.parametrize(
    ("source", "augmentation", "readers"),
    [
        pytest.param(*ARRAYS, [(7, 1), (32, 2), (64, 4)], id="arrays"),
        pytest.param(*ONE_BY_ONE, [(7, 4)], id="one by one", marks=pytest.mark.slow),
        pytest.param(*ARRAYS, ALL, id="all arrays", marks=pytest.mark.slow),
        pytest.param(*ONE_BY_ONE, ALL, id="all one by one", marks=pytest.mark.slow),
        pytest.param(
            data.ArraySource,
            data.Augmentation(augment="rand_augment"),
            [(7, 2)],  # its pipelines take long to make
            id="rand_augment",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_epoch_is_the_same_for_any_batch_size_and_number_of_workers(
    source, augmentation, readers
):
    images = source(random_images(70), np.arange(70), 9)

    def epoch(batch_size, workers, number=3):
        train, test = train_and_test(
            images, images, batch_size, 5, augmentation, None, ["a"], with_indices=True
        )
        merged = {}, {}
        for worker in range(workers):
            train.epoch_counter.value = number
            for pipeline, found in zip((train, test), merged, strict=True):
                if workers > 1:
                    pipeline = pipeline.share(workers, worker, worker + 1)
                own = pixels_by_image(pipeline)
                assert not own.keys() & found.keys()
                found |= own
        return merged

    expected, in_order = epoch(32, 1)
    assert len(expected) == len(in_order) == 70 and expected != in_order
    assert epoch(32, 1, number=4)[0] != expected
    for reader in readers:
        assert epoch(*reader) == (expected, in_order)


@pytest.mark.parametrize("examples", [66, 3])
def test_each_worker_reads_its_own_share_alone(examples):
    counts = []
    for worker in range(4):
        source = CountedSource(random_images(examples), np.arange(examples), 9)
        _, test = train_and_test(
            source, source, 16, 0, data.Augmentation(), None, ["a"]
        )
        share = test.share(4, worker, worker + 1)
        sizes = [len(labels) for _, labels in share]
        # As many steps for each, or one would wait for the others for ever.
        assert len(sizes) == share.cardinality() == -(-examples // 16)
        assert len(source.read_indices) == sum(sizes)
        counts.append(len(source.read_indices))
    assert sum(counts) == examples
    assert max(counts) - min(counts) <= 1


def test_batches_carry_the_indices_where_asked():
    train, test = data.load("digits", image_size=8, limit=20, with_indices=True)
    (inputs, _), *_ = test
    np.testing.assert_array_equal(inputs["indices"], np.arange(20))
    _, without = data.load("digits", image_size=8, limit=20)
    np.testing.assert_array_equal(inputs["images"], next(iter(without))[0])
    one, other = (
        dict(zip(inputs["indices"].numpy(), labels.numpy(), strict=True))
        for inputs, labels in (next(iter(train)), next(iter(train)))
    )
    assert list(one) != list(other) and one == other


# A training goes on where it was, whatever the data are derived from.

BATCHES = 4  # of 5 images, in a pass


class Seen(keras.callbacks.Callback):
    """Notes the batches that a trainer trains on, and stops it after some."""

    def __init__(self, trainer, most=None):
        super().__init__()
        self.batches = []
        step = trainer.train_step

        def noting(batch):
            if len(self.batches) == most:
                raise InterruptedError
            self.batches.append(batch[0].numpy().tobytes())
            return step(batch)

        trainer.train_step = noting


def ours(seed=0):
    source = data.ArraySource(random_images(20, 8), np.arange(20) % 10, 8)
    names = [str(digit) for digit in range(10)]
    arguments = 5, seed, data.Augmentation(), None, names
    return train_and_test(source, source, *arguments)[0]


def plain():
    images = random_images(20, 8).astype("float32")
    return tf.data.Dataset.from_tensor_slices((images, np.arange(20) % 10)).batch(5)


def darker(images, labels):
    return images // 2, labels


# Data and the steps of an epoch. Those tested in the fast run take all ways to go on.
FAST = (
    "ours, half a pass an epoch",
    "ours, batched over passes",
    "plain, repeated",
)
EXACT = {
    "ours": (ours, None),
    "ours, half a pass an epoch": (ours, 2),
    "ours, repeated": (lambda: ours().repeat(), 3),
    "ours, repeated and prefetched": (lambda: ours().repeat().prefetch(2), 3),
    "ours, twice an epoch": (lambda: ours().repeat(2), None),
    "ours, mapped": (lambda: ours().map(darker), None),
    "ours, mapped, half a pass": (lambda: ours().map(darker), 2),
    "ours, mapped and repeated": (lambda: ours().map(darker).repeat(), 3),
    "ours, repeated and mapped": (lambda: ours().repeat().map(darker), 3),
    "ours, in other batches": (lambda: ours().unbatch().batch(6), None),
    "ours, batched over passes": (lambda: ours().repeat().unbatch().batch(6), 3),
    "ours, filtered": (lambda: ours().filter(lambda x, y: y[0] != y[1]), None),
    "two of ours": (lambda: ours().concatenate(ours(seed=1)), None),
    "plain": (plain, None),
    "plain, half a pass": (plain, 2),
    "plain, repeated": (lambda: plain().repeat(), 3),
    "plain, more steps than batches": (plain, 7),
}


def fit(dataset, steps_per_epoch, folder=None, most=None, epochs=3):
    keras.utils.set_random_seed(0)
    images = keras.Input((8, 8, 3))
    logits = keras.layers.Dense(10)(keras.layers.Flatten()(images))
    trainer = BaselineTrainer(keras.Model(images, logits))
    trainer.compile("adam", run_eagerly=True)
    seen = Seen(trainer, most)
    callbacks = [seen] if folder is None else [seen, Resume(folder, every_steps=1)]
    options = {"epochs": epochs, "steps_per_epoch": steps_per_epoch, "verbose": 0}
    try:
        trainer.fit(dataset, callbacks=callbacks, **options)
    except InterruptedError:
        assert most is not None
    return seen.batches, [np.asarray(w) for w in trainer.get_weights()]


@pytest.mark.parametrize(
    "name",
    [
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in EXACT
    ],
)
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_a_training_goes_on_at_the_batch_where_it_was(name, tmp_path):
    make, steps = EXACT[name]
    expected, weights = fit(make(), steps)
    if "ours" in name:
        assert len(set(expected)) == len(expected)  # no pass is like another
    # In the middle of an epoch, and at the end of one or near it.
    seen = []
    for most in (len(expected) // 2 - 1, len(expected) - 2):
        seen += fit(make(), steps, tmp_path, most - len(seen))[0]
    rest, received = fit(make(), steps, tmp_path)
    assert seen + rest == expected
    for one, other in zip(received, weights, strict=True):
        np.testing.assert_array_equal(one, other)


def random_flip(images, labels):
    return tf.image.random_flip_left_right(images), labels


@pytest.mark.parametrize(
    ("make", "steps", "message"),
    [
        (ours, 3, "without an end.*steps_per_epoch=3 and a .* of 4 batches"),
        (plain, 3, "multiple of so many batches.*steps_per_epoch=3"),
        (lambda: plain().filter(lambda x, y: True), 3, "of unknown length"),
        (lambda: plain().shuffle(9), None, "shuffles in another way each time"),
        (lambda: ours().shuffle(9, 1), None, "`reshuffle_each_iteration=False`"),
        (lambda: ours().map(random_flip), None, "draws from .'RandomUniform'"),
        (lambda: ours().unbatch().cache().batch(5), None, "leave `cache..` out"),
    ],
    ids=["ours", "plain", "unknown", "shuffled", "seeded", "random", "cached"],
)
def test_data_that_could_not_go_on_exactly_are_refused(make, steps, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit(make(), steps, tmp_path)
    assert not list_snapshots(tmp_path)


def test_data_without_an_end_need_steps():
    with pytest.raises(ValueError, match="`steps_per_epoch` with data without an end"):
        fit(plain().repeat(), None)


def test_a_shuffle_that_is_the_same_each_time_goes_on(tmp_path):
    dataset = plain().shuffle(9, seed=1, reshuffle_each_iteration=False)
    expected, _ = fit(dataset, None)
    seen, _ = fit(dataset, None, tmp_path, most=6)
    assert seen + fit(dataset, None, tmp_path)[0] == expected


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_a_second_training_goes_on_with_the_next_pass(steps):
    dataset = ours()
    first, _ = fit(dataset, steps, epochs=2)
    done = dataset.epoch_counter.value
    assert done == -(-2 * (steps or BATCHES) // BATCHES) or steps == 3
    second, _ = fit(dataset, steps, epochs=2)
    counts = collections.Counter(first + second)
    assert max(counts.values()) == 1
