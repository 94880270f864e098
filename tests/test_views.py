import functools
import itertools

import keras
import numpy as np
import pytest

from keras_hsakd import (
    Distiller,
    MutualDistiller,
    TeacherTrainer,
    attach_heads,
    check_views,
    models,
    ops,
    strip_heads,
    views,
)

rng = np.random.default_rng(0)
TENSORFLOW = keras.backend.backend() == "tensorflow"
# Where tracing is not what is tested, TensorFlow need not trace. JAX is slow without.
EAGER = {"run_eagerly": TENSORFLOW}


def numpy(x):
    return keras.ops.convert_to_numpy(x)


EXPECTED = {
    None: [lambda x: x],
    "rotations": [functools.partial(np.rot90, k=r, axes=(1, 2)) for r in range(4)],
    # the same for square images
    "padded_rotations": [
        functools.partial(np.rot90, k=r, axes=(1, 2)) for r in range(4)
    ],
    "half_turns": [lambda x: x, lambda x: x[:, ::-1, ::-1]],
    "color_permutations": [
        lambda x, order=order: x[..., list(order)]
        for order in itertools.permutations(range(3))
    ],
}


@pytest.mark.parametrize("turns", range(-1, 6))
def test_quarter_turns_of_images_that_are_not_square(turns):
    images = rng.normal(size=(2, 3, 5, 2)).astype("float32")
    np.testing.assert_array_equal(
        numpy(ops.quarter_turned(images, turns)), np.rot90(images, turns, axes=(1, 2))
    )


@pytest.mark.core
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("name", [*views.names(), None])
def test_named_views(name, dtype):
    images = rng.integers(0, 256, (2, 5, 5, 3)).astype(dtype)
    rows = numpy(ops.transformed_views(images, views.get(name)))
    assert rows.dtype == dtype
    expected = np.stack([view(images) for view in EXPECTED[name]], axis=1)
    np.testing.assert_array_equal(rows.reshape(expected.shape), expected)
    np.testing.assert_array_equal(
        numpy(ops.untransformed(rows, len(EXPECTED[name]))), images
    )


def test_all_views_have_captions():
    for name in views.names():
        assert len(set(views.captions(name))) == len(views.get(name))
    image = keras.ops.convert_to_tensor([[[[1.0, 2.0, 3.0]]]])
    captions = views.captions("color_permutations")
    for caption, view in zip(captions, views.get("color_permutations"), strict=True):
        order = keras.ops.convert_to_numpy(view(image)).ravel()
        assert caption == "".join("RGB"[int(channel) - 1] for channel in order)


def test_integer_images_are_turned_as_floats_are():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), "uint8")
    functions = views.get("padded_rotations")
    rows = ops.transformed_views(images, functions)
    assert keras.backend.standardize_dtype(rows.dtype) == "uint8"
    floats = ops.transformed_views(images.astype("float32"), functions)
    np.testing.assert_allclose(numpy(rows), numpy(floats), atol=0.501)


def test_padded_rotations_keep_the_frame_and_the_proportions():
    images = np.ones((1, 4, 8, 3), "float32")
    images[:, :, :4] = 3  # the left half, which a quarter turn puts at the bottom
    rows = numpy(ops.transformed_views(images, views.get("padded_rotations")))
    assert rows.shape == (4, 4, 8, 3)
    np.testing.assert_array_equal(rows[2], images[0, ::-1, ::-1])
    for row, (top, bottom) in ((rows[1], (1, 3)), (rows[3], (3, 1))):
        np.testing.assert_array_equal(row[:, [0, 1, 6, 7]], 0)
        # Antialiasing blends neighbours at the edges.
        np.testing.assert_allclose(row[:2, 3:5], top, rtol=0.25)
        np.testing.assert_allclose(row[2:, 3:5], bottom, rtol=0.25)


def test_joint_labels_and_class_logits_of_other_numbers_of_views():
    np.testing.assert_array_equal(
        numpy(ops.joint_labels(np.array([2, 0]), 3)), [6, 7, 8, 0, 1, 2]
    )
    one_hot = numpy(ops.joint_labels(np.eye(3, dtype="float32")[[2, 0]], 2))
    np.testing.assert_array_equal(one_hot, np.eye(6)[[4, 5, 0, 1]])
    joint = np.arange(6.0).reshape(1, 6)
    np.testing.assert_array_equal(numpy(ops.class_logits(joint, 2)), [[1, 5, 9]])


def network(num_views, shape=(8, 12, 3), name="net"):
    images = keras.Input(shape)
    x = keras.layers.Conv2D(4, 3, activation="relu", name=f"{name}_conv")(images)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = {
        "logits": keras.layers.Dense(3)(x),
        "aux_1": keras.layers.Dense(3 * num_views)(x),
    }
    return keras.Model(images, outputs, name=name)


@keras.saving.register_keras_serializable("tests")
def unchanged(images):
    return images


@keras.saving.register_keras_serializable("tests")
def mirrored(images):
    return keras.ops.flip(images, axis=2)


TRAINERS = {
    "teacher": lambda n, **kwargs: TeacherTrainer(network(n), **kwargs),
    "distiller": lambda n, **kwargs: Distiller(
        network(n, name="a"), network(n, name="b"), **kwargs
    ),
    "mutual": lambda n, **kwargs: MutualDistiller(
        [network(n, name="a"), network(n, name="b")], **kwargs
    ),
}


@pytest.mark.core
@pytest.mark.parametrize(
    ("name", "chosen", "count"),
    [
        ("distiller", [unchanged, mirrored], 2),
        # On JAX one is enough.
        *([("teacher", "padded_rotations", 4)] if TENSORFLOW else []),
        *([("mutual", [unchanged, mirrored], 2)] if TENSORFLOW else []),
    ],
)
def test_images_that_are_not_square_train_and_trainers_are_saved(
    name, chosen, count, tmp_path
):
    trainer = TRAINERS[name](count, views=chosen)
    trainer.compile("sgd", metrics=["accuracy"], head_metrics=True, **EAGER)
    images = rng.normal(size=(6, 8, 12, 3)).astype("float32")
    labels = np.arange(6) % 3
    logs = trainer.fit(images, labels, verbose=0).history
    assert all(np.isfinite(value) for value in logs.values())
    trainer.save(tmp_path / "trainer.keras")
    copy = keras.saving.load_model(tmp_path / "trainer.keras")
    assert copy.views == (chosen if isinstance(chosen, str) else tuple(chosen))
    expected = trainer.evaluate(images, labels, heads=True, verbose=0, return_dict=True)
    received = copy.evaluate(images, labels, heads=True, verbose=0, return_dict=True)
    assert received == pytest.approx(expected)


@pytest.mark.core
def test_the_losses_of_other_views(batch):
    """Against NumPy, with the networks' own outputs for each view."""
    images, labels = batch
    trainer = TeacherTrainer(network(6, (8, 8, 3)), views="color_permutations")
    permuted = [view(images) for view in EXPECTED["color_permutations"]]
    outputs = [trainer.network(view) for view in permuted]

    def cross_entropy(labels, logits):
        return keras.losses.sparse_categorical_crossentropy(
            labels, logits, from_logits=True
        )

    expected = {
        "ce_loss": np.mean(numpy(cross_entropy(labels, outputs[0]["logits"]))),
        "ce_aux_1": np.mean(
            [
                numpy(cross_entropy(6 * labels + r, output["aux_1"]))
                for r, output in enumerate(outputs)
            ]
        ),
    }
    trainer.compile("sgd", **EAGER)
    logs = trainer.train_on_batch(images, labels, return_dict=True)
    for name, value in expected.items():
        assert logs[name] == pytest.approx(value, rel=1e-5)


def test_the_zoo_and_attached_heads_take_other_views():
    zoo = models.create("resnet8", 3, (16, 24, 3), num_views=2)
    attached = attach_heads(strip_heads(zoo), num_views=2)
    for made in (zoo, attached):
        assert made.output["aux_1"].shape == (None, 6)
        TeacherTrainer(made, views="half_turns")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, "rotatoins"), "did you mean 'rotations'"),
        ((2, [unchanged]), "two or more functions"),
        ((2, [unchanged, "half_turns"]), "two or more functions"),
        ((2, "rotations"), "for the 4 `views`; give `num_views=4`.*for 2 views"),
        (
            (4, "rotations"),
            r"square ones: take views='padded_rotations'.*\(1, 12, 8, 3\)",
        ),
        ((2, [mirrored, unchanged]), "first of `views` to leave images as they are"),
        ((2, [unchanged, lambda x: x @ 1]), "Expected view 1 of `views` to take"),
    ],
)
def test_views_that_do_not_suit(arguments, message):
    count, chosen = arguments
    with pytest.raises(ValueError, match=f"(?s){message}"):
        TeacherTrainer(network(count), views=chosen)


def test_images_of_any_size_are_checked_at_the_first_batch():
    trainer = TeacherTrainer(network(4, (None, None, 3))).compile("sgd", **EAGER)
    images = rng.normal(size=(3, 8, 12, 3)).astype("float32")
    with pytest.raises(ValueError, match="square"):
        trainer.fit(images, np.arange(3), verbose=0)
    trainer.fit(images[:, :, :8], np.arange(3), verbose=0)


def test_networks_for_different_views():
    with pytest.raises(ValueError, match="number of views. Received: 2 in .* and 4"):
        Distiller(network(2, name="a"), network(4, name="b"))


def fixed(joint_labels):
    """Returns a network whose heads say the joint label that an image's pixel holds."""
    images = keras.Input((2, 2, 1))
    place = keras.ops.cast(images[:, 0, 0, 0], "int32")
    table = keras.initializers.Constant(np.eye(12)[joint_labels])
    aux = keras.layers.Embedding(12, 12, embeddings_initializer=table)(place)
    logits = keras.layers.Dense(3)(keras.layers.Flatten()(images))
    return keras.Model(images, {"logits": logits, "aux_1": aux})


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        (range(12), "These views suit the data."),
        # Class 1 half turned is taken for class 2 upright.
        ([0, 1, 2, 3, 4, 5, 8, 7, 8, 9, 10, 11], "'1' and '2' look alike"),
        # Each class is known, its views never.
        ([0] * 4 + [4] * 4 + [8] * 4, "can hardly tell these views apart"),
        ([0] * 12, "hardly know the classes yet"),
    ],
)
def test_check_views(said, advice):
    # The pixel at the corner of view r of class y is 4 * y + r.
    corner = {0: (0, 0), 1: (0, 1), 2: (1, 1), 3: (1, 0)}
    images = np.zeros((3, 2, 2, 1), "float32")
    for label in range(3):
        for turns, place in corner.items():
            images[(label, *place)] = 4 * label + turns
    said = np.asarray(list(said))
    report = check_views(fixed(said), [(images, np.arange(3))])
    truth = np.arange(12)
    assert report.view_accuracy == {"aux_1": np.mean(said % 4 == truth % 4)}
    assert report.class_accuracy == {"aux_1": np.mean(said // 4 == truth // 4)}
    assert advice in report.advice
    assert report.advice in str(report)
    if "'1'" in advice:
        (confusion,) = report.confusions
        assert confusion == views.Confusion("1", 2, "2", 0, 1.0)
        assert report.hardest_classes[0] == ("1", 0.75)
        assert "'1' in view 2 is taken for '2' in view 0: 100.0%" in str(report)


def test_check_views_without_images():
    with pytest.raises(ValueError, match="Expected `dataset` to have images"):
        check_views(network(2), [], views="half_turns")


def test_check_views_passes_over_images_without_a_label():
    images = rng.normal(size=(6, 8, 8, 3)).astype("float32")
    labels = np.array([0, -1, 2, 1, -1, 0])
    made = network(4, (8, 8, 3))
    few = check_views(made, [(images[labels >= 0], labels[labels >= 0])])
    assert str(check_views(made, [(images, labels[:, None])])) == str(few)
    with pytest.raises(ValueError, match="labels from 0 to 2, .* labels from -1 to 9"):
        check_views(made, [(images, np.array([0, -1, 2, 1, -1, 9]))])


def test_padded_rotations_need_edges_that_are_known():
    images = keras.KerasTensor((None, None, None, 3))
    _, padded, *_ = views.get("padded_rotations")
    with pytest.raises(ValueError, match="known height and width.*shape \\(None, None"):
        padded(images)


def test_check_views_needs_heads():
    with pytest.raises(ValueError, match="Expected `net` to have auxiliary heads"):
        check_views(strip_heads(network(4)), [])


def test_check_views_reports_the_accuracy_of_classes_that_evaluation_reports():
    images, labels = rng.normal(size=(60, 8, 8, 3)).astype("float32"), np.arange(60) % 3
    made = network(4, (8, 8, 3))
    # Some classes by the sums are not those of the largest joint logits.
    made.set_weights([rng.normal(size=w.shape) for w in made.get_weights()])
    report = check_views(made, [(images[:40], labels[:40]), (images[40:], labels[40:])])
    trainer = TeacherTrainer(made).compile(**EAGER)
    logs = trainer.evaluate(images, labels, heads=True, verbose=0, return_dict=True)
    expected = logs["aux_1_class_accuracy"]
    assert report.class_accuracy["aux_1"] == pytest.approx(expected)
