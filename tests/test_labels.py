"""Labels and images that do not suit are refused, wherever they come from."""

import keras
import numpy as np
import pytest

from keras_hsakd import Distiller, MutualDistiller, TeacherTrainer, strip_heads
from keras_hsakd.ops import valid_labels
from keras_hsakd.trainers import BaselineTrainer, checks

core = pytest.mark.core
TENSORFLOW = keras.backend.backend() == "tensorflow"
EAGER = {"run_eagerly": TENSORFLOW}
IMAGES = np.random.default_rng(0).random((12, 8, 8, 3)).astype("float32")
LABELS = np.arange(12) % 3
ROWS = np.eye(3, dtype="float32")[LABELS]

TRAINERS = {
    "teacher": lambda make: TeacherTrainer(make()),
    "distiller": lambda make: Distiller(make("t"), make("s")),
    "mutual": lambda make: MutualDistiller([make("a"), make("b")]),
    "baseline": lambda make: BaselineTrainer(strip_heads(make())),
}


@pytest.fixture
def make(tiny_network):
    """Returns a maker of compiled trainers, by their names."""

    def make(name="baseline", metrics=None):
        trainer = TRAINERS[name](tiny_network)
        return trainer.compile(keras.optimizers.SGD(0.1), metrics=metrics, **EAGER)

    return make


def values(trainer):
    return [keras.ops.convert_to_numpy(v).copy() for v in trainer.trainable_variables]


class Batches(keras.utils.PyDataset):
    """A data set of which only the first batch is seen before training."""

    def __init__(self, *batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


class Endless(Batches):
    num_batches = None


def changed(labels, value):
    """Returns labels of which the fourth is another."""
    labels = np.array(labels)
    labels[3] = value
    return labels


WRONG = {
    "too large": changed(LABELS, 3),
    "negative": changed(LABELS, -2),
    "a column": changed(LABELS, 3)[:, None],
    "no whole number": changed(LABELS.astype("float32"), 0.5),
    "no number": changed(LABELS.astype("float32"), np.nan),
    "two classes": changed(ROWS, [1, 1, 0]),
    "no class": changed(ROWS, [0, 0, 0]),
    "below zero": changed(ROWS, [-0.5, 1, 0.5]),
    "no numbers": changed(ROWS, [np.nan] * 3),
}


@pytest.mark.parametrize("name", WRONG)
def test_which_labels_are_valid(name):
    labels, valid = valid_labels(WRONG[name], num_classes=3)
    labels = keras.ops.convert_to_numpy(labels)
    assert not valid and labels.dtype == WRONG[name].dtype
    assert not np.any(labels[3])
    right = [row != 3 for row in range(12)]
    np.testing.assert_array_equal(labels[right], WRONG[name][right])
    assert valid_labels(WRONG[name][right], num_classes=3)[1]


@pytest.mark.parametrize(
    "labels",
    [
        LABELS.astype("uint8"),
        LABELS == 1,
        LABELS[:, None].astype("float64"),
        ROWS.astype("uint8"),
        ROWS * 0.9 + 0.1 / 3,
        np.full((4, 3), 0.33),
        np.full((4, 3), 1 / 3, "float16"),
        keras.ops.cast(np.full((4, 3), 1 / 3), "bfloat16"),
    ],
    ids=["uint8", "bool", "column", "one-hot", "smoothed", "rounded", "half", "brain"],
)
def test_labels_that_suit(tiny_network, labels):
    assert valid_labels(labels, num_classes=3)[1]
    checks.check_labels(tiny_network(), labels)


@pytest.mark.parametrize(
    ("trainer", "labels"),
    [
        ("baseline", "no number"),
        ("baseline", "two classes"),
        ("teacher", "too large"),
        pytest.param("distiller", "no class", marks=core),
        ("mutual", "a column"),
    ],
)
def test_labels_of_a_later_batch_end_training(make, trainer, labels):
    trainer = make(trainer)
    wrong = WRONG[labels]
    right = ROWS if wrong.shape == ROWS.shape else LABELS.reshape(wrong.shape)
    batches = [(IMAGES, right.astype(wrong.dtype)), (IMAGES, wrong)]
    expected = r"^Expected labels in 0 to 2, .* other labels at step 2 of epoch 1"
    with pytest.raises(ValueError, match=expected):
        trainer.fit(Batches(*batches), shuffle=False, verbose=0)
    assert all(np.isfinite(value).all() for value in values(trainer))


def test_a_batch_with_a_wrong_label_trains_nothing(make):
    trainer = make("teacher")
    before = values(trainer)
    trainer.check_batch = lambda *arguments: None
    logs = trainer.train_on_batch(IMAGES, WRONG["too large"], return_dict=True)
    assert logs["loss"] == -np.inf and np.isfinite(logs["ce_loss"])
    for old, new in zip(before, values(trainer), strict=True):
        np.testing.assert_array_equal(old, new)


def test_an_image_without_a_label_is_for_the_training_of_a_distiller(make):
    labels = changed(LABELS, -1)
    batches = Batches((IMAGES, LABELS), (IMAGES, labels))
    trainer = make("distiller")
    trainer.fit(batches, shuffle=False, verbose=0)
    for refused in (
        lambda: trainer.fit(IMAGES, LABELS, validation_data=batches, verbose=0),
        lambda: trainer.evaluate(batches, verbose=0),
        lambda: make("teacher").fit(batches, shuffle=False, verbose=0),
    ):
        with pytest.raises(ValueError, match="Expected labels in 0 to 2.*other labels"):
            refused()


def test_metrics_count_no_image_without_a_label(make):
    labels = changed(LABELS, -1)
    trainer = make("distiller", metrics=["accuracy"])
    with pytest.raises(ValueError, match=r"`weighted_metrics=.*metrics=\['accuracy'\]"):
        trainer.train_on_batch(IMAGES, labels)
    batches = Batches((IMAGES, LABELS), (IMAGES, labels))  # the second is not looked at
    with pytest.raises(ValueError, match="Expected labels in 0 to 2.*other labels"):
        trainer.fit(batches, shuffle=False, verbose=0)
    trainer = make("distiller")
    assert np.isfinite(trainer.train_on_batch(IMAGES, labels, return_dict=True)["loss"])


@pytest.mark.parametrize("trainer", [pytest.param("distiller", marks=core), "baseline"])
def test_labels_of_a_later_batch_end_validation(make, trainer):
    trainer = make(trainer, metrics=["accuracy"])
    batches = Batches((IMAGES, LABELS), (IMAGES, WRONG["too large"]))
    with pytest.raises(ValueError, match="other labels in `validation_data`"):
        trainer.fit(IMAGES, LABELS, validation_data=batches, verbose=0)
    for form in ({}, {"return_dict": True}):
        with pytest.raises(ValueError, match="other labels in `x`"):
            trainer.evaluate(batches, verbose=0, **form)


@pytest.mark.skipif(not TENSORFLOW, reason="tf.data")
@pytest.mark.parametrize("wrong", [WRONG["too large"], -np.ones_like(LABELS)])
def test_class_weights_of_wrong_labels_end_in_the_same_error(make, wrong):
    import tensorflow as tf

    def generate():
        yield from [(IMAGES, LABELS), (IMAGES, wrong)]

    spec = tf.TensorSpec((None, 8, 8, 3)), tf.TensorSpec((None,), tf.int64)
    dataset = tf.data.Dataset.from_generator(generate, output_signature=spec)
    weights = {0: 1.0, 1: 2.0, 2: 1.0}
    error = "Expected labels in 0 to 2, .*`, or class .* other labels at step 2"
    with pytest.raises(ValueError, match=error):
        make("distiller").fit(dataset, class_weight=weights, verbose=0)
    weighted = dataset.map(lambda images, labels: (images, labels, labels))
    with pytest.raises(ValueError, match="`class_weight`.*weights of their own"):
        make().fit(weighted, class_weight=weights, verbose=0)


@pytest.mark.skipif(not TENSORFLOW, reason="tf.data")
def test_class_weights_are_the_same_from_arrays_and_data_sets(make):
    import tensorflow as tf

    weights = {0: 1.0, 1: 2.0, 2: 4.0}
    trainer = make("teacher")
    trainer.optimizer.learning_rate = 0.0
    expected = trainer.fit(IMAGES, LABELS, 12, class_weight=weights, verbose=0).history
    for labels in (LABELS, LABELS[:, None], ROWS):
        data = tf.data.Dataset.from_tensors((IMAGES, labels))
        logs = trainer.fit(data, class_weight=weights, verbose=0).history
        assert logs["loss"] == pytest.approx(expected["loss"], rel=1e-3)


# Before training.


@pytest.mark.skipif(not TENSORFLOW, reason="tf.data")
def test_labels_of_a_data_set_are_looked_at_for_a_moment(make):
    import tensorflow as tf

    labels = np.sort(LABELS) + 1
    data = tf.data.Dataset.from_tensor_slices((IMAGES, labels)).batch(4)
    trainer = make()
    before = values(trainer)
    for arguments in ({"x": data}, {"x": data.map(lambda x, y: (-x, y)).repeat(2)}):
        with pytest.raises(ValueError, match="Received: labels from 3 to 3"):
            trainer.fit(**arguments, verbose=0)
    for old, new in zip(before, values(trainer), strict=True):
        np.testing.assert_array_equal(old, new)
    # What is drawn at random is not to be drawn as often as time allows.
    noisy = data.map(lambda x, y: (x + tf.random.uniform(tf.shape(x)), y))
    with pytest.raises(ValueError, match="other labels at step 3 of epoch 1"):
        trainer.fit(noisy, verbose=0)


@pytest.mark.skipif(not TENSORFLOW, reason="data")
def test_our_data_tell_all_their_labels(make):
    from keras_hsakd.data.augment import Augmentation
    from keras_hsakd.data.pipelines import train_and_test
    from keras_hsakd.data.sources import ArraySource

    source = ArraySource(
        np.zeros((60, 8, 8, 3), "uint8"), [*[0, 1, 2] * 19, 0, 1, 3], 8
    )
    train, test = train_and_test(source, source, 1, 0, Augmentation(), None, [])
    np.testing.assert_array_equal(train.labels, source.labels)
    for arguments in (
        {"x": train.prefetch(1)},
        {"x": IMAGES, "y": LABELS, "validation_data": test},
    ):
        with pytest.raises(ValueError, match="Received: labels from 0 to 3"):
            make().fit(**arguments, verbose=0)
    # But not if they were changed since.
    epoch = train.epoch_counter.value
    make().fit(train.map(lambda x, y: (x, y % 3)), verbose=0)
    assert train.epoch_counter.value == epoch + 1


class Text:
    """What pandas gives: an array in all but name."""

    shape = (12,)

    def __len__(self):
        return 12

    def __array__(self, dtype=None, copy=None):
        return np.array(["cat"] * 12, object)


REFUSED = {
    "text": (IMAGES, np.array(["cat"] * 12), "numbers.*Received: dtype <U3"),
    "objects": (IMAGES, Text(), "numbers.*Received: dtype object"),
    "a list": (IMAGES, LABELS.tolist(), "labels of shape.*Received: a list"),
    "NaN": (IMAGES, WRONG["no number"], "labels that are finite"),
    "halves": (IMAGES, WRONG["no whole number"], "whole numbers.*Received: 0.5"),
    "multi-hot": (IMAGES, WRONG["two classes"], "multi-hot.*a row that sums to 2"),
    "below zero": (IMAGES, WRONG["below zero"], "0 or more. Received: -0.5"),
    "nothing": (IMAGES[:0], LABELS[:0], "at least one image"),
    "fewer labels": (IMAGES, LABELS[:10], "cardinality.* 12 images and 10 labels"),
    "a dict": ({"image": IMAGES}, None, r"images of shape.*a dict of \['image'\]"),
    "NaN images": (IMAGES * np.nan, LABELS, "images of finite values"),
    "channels first": (IMAGES.transpose(0, 3, 1, 2), LABELS, r"shape \(12, 3, 8, 8\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_data_that_are_refused(make, name):
    images, labels, message = REFUSED[name]
    trainer = make()
    for use in (trainer.fit, trainer.evaluate):
        with pytest.raises(ValueError, match=f"^Expected .*{message}"):
            use(images, labels, verbose=0)
    for use in (trainer.train_on_batch, trainer.test_on_batch):
        with pytest.raises(ValueError, match=f"^Expected .*{message}"):
            use(images, labels)
    for form in (Batches((images, labels)), (images, labels), iter_of(images, labels)):
        with pytest.raises(
            ValueError, match=f"^`validation_data`: Expected .*{message}"
        ):
            trainer.fit(IMAGES, LABELS, validation_data=form, verbose=0)


def test_images_of_validation_have_the_size_of_those_of_training():
    images = keras.Input((None, None, 3))
    x = keras.layers.GlobalAveragePooling2D()(images)
    trainer = BaselineTrainer(keras.Model(images, keras.layers.Dense(3)(x)))
    trainer.compile("sgd", **EAGER)
    larger = np.repeat(IMAGES, 2, axis=1), LABELS
    with pytest.raises(ValueError, match=r"^`validation_data`: .*\(batch, 8, 8, 3\)"):
        trainer.fit(IMAGES, LABELS, validation_data=larger, verbose=0)
    trainer.evaluate(*larger, verbose=0)


def iter_of(*batch):
    return (part for part in [batch])


@core
def test_data_without_a_batch_or_an_end(make):
    trainer = make()
    for empty in (Batches(), (batch for batch in ())):
        with pytest.raises(ValueError, match="Expected `x` to have at least one batch"):
            trainer.fit(empty, verbose=0)
    with pytest.raises(
        ValueError, match="`validation_data` to have at least one batch"
    ):
        trainer.fit(IMAGES, LABELS, validation_data=Batches(), verbose=0)
    endless = Endless((IMAGES, LABELS))
    for argument, use in (
        ("steps_per_epoch", lambda: trainer.fit(endless)),
        (
            "validation_steps",
            lambda: trainer.fit(IMAGES, LABELS, validation_data=endless),
        ),
        ("steps", lambda: trainer.evaluate(endless)),
    ):
        with pytest.raises(
            ValueError, match=f"Expected `{argument}` with data without"
        ):
            use()


def test_a_torch_loader_is_looked_at(make):
    torch = pytest.importorskip("torch")

    def loader(images, labels):
        data = torch.utils.data.TensorDataset(*map(torch.from_numpy, (images, labels)))
        return torch.utils.data.DataLoader(data, batch_size=6)

    channels_first = np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2))
    with pytest.raises(ValueError, match=r"images of shape.* shape \(6, 3, 8, 8\)"):
        make().fit(loader(channels_first, LABELS), verbose=0)
    with pytest.raises(ValueError, match="labels from 1 to 3"):
        make().fit(loader(IMAGES, LABELS + 1), verbose=0)


def test_a_baseline_learns_from_probabilities(make):
    trainer = make()
    results = [trainer.evaluate(IMAGES, y, verbose=0) for y in (LABELS, ROWS)]
    assert results[0] == pytest.approx(results[1], rel=1e-5)
