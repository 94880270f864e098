"""What all trainers do, seen on one, and what each does of its own."""

import keras
import numpy as np
import numpy_reference as reference
import pytest

from keras_hsakd import (
    Distiller,
    MutualDistiller,
    TeacherTrainer,
    optimizers,
    strip_heads,
)
from keras_hsakd.teachers import cache_writing as writing
from keras_hsakd.teachers import get
from keras_hsakd.terms import KL, CrossEntropy
from keras_hsakd.trainers import BaselineTrainer

core = pytest.mark.core  # a dozen that also run on JAX
TENSORFLOW = keras.backend.backend() == "tensorflow"
# Where tracing is not what is tested, TensorFlow need not trace. JAX is slow without.
EAGER = {"run_eagerly": TENSORFLOW}


def make_distiller(make, terms=None, **options):
    networks = make("teacher", width=6, **options), make("student", **options)
    return Distiller(*networks, terms=terms)


def make_joint(make, **options):
    return TeacherTrainer(make("teacher", **options))


def make_frozen(make, **options):
    return TeacherTrainer(make("teacher", **options), freeze_backbone=True)


TRAINERS = {"distiller": make_distiller, "joint": make_joint, "frozen": make_frozen}


@pytest.fixture
def make_trainer(tiny_network):
    return lambda **options: make_distiller(tiny_network, **options)


@pytest.fixture(params=TRAINERS if TENSORFLOW else ["distiller"])
def make_each(request, tiny_network):
    return lambda **options: TRAINERS[request.param](tiny_network, **options)


def sgd(**kwargs):
    return optimizers.SGD(
        0.05, momentum=0.9, nesterov=True, weight_decay=5e-4, **kwargs
    )


def values(variables):
    return [keras.ops.convert_to_numpy(v).copy() for v in variables]


def assert_equal(first, second, **tolerance):
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        if tolerance:
            np.testing.assert_allclose(a, b, **tolerance)
        else:
            np.testing.assert_array_equal(a, b)


def changed(before, after):
    return [bool(np.any(a != b)) for a, b in zip(before, after, strict=True)]


def outputs(network, images, training):
    """Returns a network's outputs for its views of images, leaving it as it was."""
    plain = not isinstance(network.output, dict)
    kept = values(network.variables)
    result = network(
        images if plain else reference.rotated_views(images), training=training
    )
    result = {"logits": result} if plain else result
    result = {name: keras.ops.convert_to_numpy(x) for name, x in result.items()}
    for variable, value in zip(network.variables, kept, strict=True):
        variable.assign(value)
    return result


# Losses.


def unlabeled(labels, kind):
    """Returns labels of which some, or all, are -1."""
    return np.where({"some": np.arange(12) % 5 < 2, "all": True}[kind], -1, labels)


@pytest.mark.parametrize(
    ("heads", "weighted", "without"),
    [
        (True, True, None),
        (False, False, None),
        pytest.param(True, False, "some", marks=core),
        (False, True, "some"),
        (True, True, "all"),
    ],
)
def test_losses_of_the_student(tiny_network, batch, heads, weighted, without):
    images, labels = batch
    labels = labels if without is None else unlabeled(labels, without)
    weights = np.linspace(0, 2, len(labels)).astype("float32") if weighted else None
    networks = [tiny_network("t"), tiny_network("s")]
    if not heads:
        networks = map(strip_heads, networks)
    distiller = Distiller(*networks, temperature=2.0)
    expected = reference.student_losses(
        outputs(distiller.teacher, images, training=False),
        outputs(distiller.student, images, training=True),
        labels,
        2.0,
        weights,
    )
    distiller.compile(sgd(), **EAGER)
    logs = distiller.train_on_batch(images, labels, weights, return_dict=True)
    of_heads = {"kl_aux_1", "kl_aux_2"} if heads else set()
    assert set(logs) == {"loss", "ce_loss", "kl_main"} | of_heads
    loss = reference.student_loss(expected, labels)
    assert logs.pop("loss") == pytest.approx(loss, rel=1e-5)
    for name, value in expected.items():
        assert logs[name] == pytest.approx(value, rel=1e-4), name


@core
@pytest.mark.parametrize(
    ("freeze_backbone", "weighted"), [(False, False), (True, True)]
)
def test_losses_of_the_teacher(tiny_network, batch, freeze_backbone, weighted):
    images, labels = batch
    weights = np.linspace(0, 2, len(labels)).astype("float32") if weighted else None
    trainer = TeacherTrainer(tiny_network(), freeze_backbone=freeze_backbone)
    if freeze_backbone:  # its backbone infers, its heads train
        features = trainer._halves.backbone(reference.rotated_views(images))
        taps = [features[name] for name in trainer._halves.tap_names]
        kept = values(trainer.teacher.variables)
        heads = trainer._halves.heads(taps, training=True)
        for variable, value in zip(trainer.teacher.variables, kept, strict=True):
            variable.assign(value)
        expected = {"logits": features["logits"], **heads}
        expected = {k: keras.ops.convert_to_numpy(v) for k, v in expected.items()}
    else:
        expected = outputs(trainer.teacher, images, training=True)
    expected = reference.teacher_losses(expected, labels, weights)
    trainer.compile(sgd(), **EAGER)
    logs = trainer.train_on_batch(images, labels, weights, return_dict=True)
    assert logs.pop("loss") == pytest.approx(sum(expected.values()), rel=1e-5)
    assert set(logs) == set(expected)
    for name, value in expected.items():
        assert logs[name] == pytest.approx(value, rel=1e-4), name


def test_images_without_a_label_leave_the_gradients_of_the_others(tiny_network, batch):
    images, labels = batch[0], unlabeled(batch[1], "some")
    results = []
    for kept, weight in ((labels > -2, 1), (labels >= 0, np.mean(labels >= 0))):
        keras.utils.set_random_seed(1)
        trainer = make_distiller(tiny_network, [CrossEntropy()], batch_norm=False)
        trainer.compile(sgd(), **EAGER)
        weights = np.full(kept.sum(), weight, "float32")
        trainer.train_on_batch(images[kept], labels[kept], weights)
        results.append(values(trainer.network.variables))
    assert_equal(*results, rtol=1e-5, atol=1e-6)


@core
def test_metrics_are_of_images_with_a_label(make_trainer, batch):
    images, labels = batch[0], unlabeled(batch[1], "some")
    weights = np.linspace(0, 2, len(labels)).astype("float32")
    trainer = make_trainer(batch_norm=False)
    trainer.compile(
        keras.optimizers.SGD(0.0),
        weighted_metrics=["accuracy"],
        head_metrics=True,
        **EAGER,
    )
    known = labels >= 0
    expected = trainer.evaluate(
        images[known],
        labels[known],
        sample_weight=weights[known],
        return_dict=True,
        verbose=0,
    )
    # The last batch has no label at all.
    data = (np.concatenate([x, x]) for x in (images, labels, weights))
    images, labels, weights = data
    labels[12:] = -1
    for form in (labels, labels[:, None]):
        logs = trainer.fit(
            images, form, 12, sample_weight=weights, shuffle=False, verbose=0
        ).history
        assert expected.keys() <= logs.keys()
        for name in expected.keys() - {"loss"}:
            assert logs[name][0] == pytest.approx(expected[name], rel=1e-5), name
        assert logs["ce_loss"][0] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.parametrize("make", [make_distiller, make_joint])
def test_one_hot_and_column_labels_give_the_same_losses(make, tiny_network, batch):
    images, labels = batch
    trainer = make(tiny_network)
    start = values(trainer.network.variables)
    logs = []
    for form in (labels, labels[:, None], np.eye(3, dtype="float32")[labels]):
        trainer.compile(sgd(), metrics=["accuracy"], head_metrics=True, **EAGER)
        for variable, value in zip(trainer.network.variables, start, strict=True):
            variable.assign(value)
        logs.append(trainer.fit(images, form, batch_size=12, verbose=0).history)
    for other in logs[1:]:
        assert set(other) == set(logs[0])
        for name, value in logs[0].items():
            np.testing.assert_allclose(other[name], value, rtol=1e-5)


def test_weights_of_terms(make_trainer, batch):
    weighted = [KL(3.0), KL(3.0, on="aux_1", weight=0.2), KL(3.0, on="aux_2")]
    trainer = make_trainer(terms=[CrossEntropy(weight=0.5), *weighted])
    trainer.compile(sgd(), **EAGER)
    logs = trainer.train_on_batch(*batch, return_dict=True)
    total = logs.pop("loss")
    expected = sum(logs.values()) - 0.8 * logs["kl_aux_1"] - 0.5 * logs["ce_loss"]
    assert total == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_logged_over_the_epoch(make_trainer, batch):
    trainer = make_trainer().compile(keras.optimizers.SGD(0.0), **EAGER)
    history = trainer.fit(*batch, batch_size=4, verbose=0).history
    terms = [value for name, (value,) in history.items() if name != "loss"]
    assert history["loss"][0] == pytest.approx(sum(terms), rel=1e-5)


def test_regularisation_of_the_trained_network_counts(tiny_network, batch):
    student = tiny_network("student")
    student.get_layer("logits").kernel.regularizer = keras.regularizers.L2(10.0)
    kernel = values([student.get_layer("logits").kernel])[0]
    distiller = Distiller(tiny_network("teacher"), student).compile(sgd(), **EAGER)
    logs = distiller.train_on_batch(*batch, return_dict=True)
    penalty = logs.pop("loss") - sum(logs.values())
    assert penalty == pytest.approx(10.0 * np.sum(kernel**2), rel=1e-4)


def test_what_a_teachers_layers_add_is_not_trained_on(tiny_network, batch):
    teacher = tiny_network("teacher")
    teacher.get_layer("logits").activity_regularizer = keras.regularizers.L2(10.0)
    distiller = Distiller(teacher, tiny_network("student")).compile(sgd(), **EAGER)
    logs = distiller.train_on_batch(*batch, return_dict=True)
    assert logs.pop("loss") == pytest.approx(sum(logs.values()), rel=1e-5)


def test_without_heads_it_is_the_distiller_of_keras(tiny_network, batch):
    teacher = strip_heads(tiny_network("t", width=6))
    students = [strip_heads(tiny_network("s")) for _ in range(2)]
    students[1].set_weights(students[0].get_weights())
    terms = [CrossEntropy(weight=0.1), KL(4.0, weight=0.9)]
    ours = Distiller(teacher, students[0], terms=terms)
    ours.compile(sgd(), **EAGER)
    # By name, "kl_divergence" is of logits in Keras 3.15.
    divergence = keras.distillation.LogitsDistillation(
        4.0, loss=keras.losses.KLDivergence()
    )
    theirs = keras.distillation.Distiller(
        teacher, students[1], divergence, student_loss_weight=0.1
    )
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    theirs.compile(sgd(), loss=cross_entropy, **EAGER)
    for _ in range(3):
        logs = [
            trainer.train_on_batch(*batch, return_dict=True)
            for trainer in (ours, theirs)
        ]
        # Keras keeps probabilities above 1e-7.
        assert logs[0]["loss"] == pytest.approx(logs[1]["total_loss"], rel=1e-5)
    for weight, expected in zip(*(s.get_weights() for s in students), strict=True):
        np.testing.assert_allclose(weight, expected, atol=1e-5)


def test_targets_are_all_that_is_asked_of_the_teacher(tiny_network, batch):
    images, labels = batch
    rng = np.random.default_rng(0)
    known = {
        name: rng.normal(size=(48, units)).astype("float16")
        for name, units in (("logits", 3), ("aux_1", 12), ("aux_2", 12))
    }

    class Knowing(Distiller):
        def targets(self, batch):
            assert batch["images"].shape == (48, 8, 8, 3)
            return known

    distiller = Knowing(tiny_network("t"), tiny_network("s"), temperature=2.0)
    student = outputs(distiller.student, images, training=True)
    expected = reference.student_losses(known, student, labels, 2.0)
    distiller.teacher.call = None  # it does not run
    distiller.compile(sgd(), **EAGER)
    logs = distiller.train_on_batch(images, labels, return_dict=True)
    for name, value in expected.items():
        assert logs[name] == pytest.approx(value, rel=1e-4), name


# What changes and what does not.


@core
def test_the_teacher_never_changes(tiny_network, batch):
    distiller = make_distiller(tiny_network, dropout=0.5).compile(sgd(), **EAGER)
    teacher, student = distiller.teacher, distiller.student
    before = [values(teacher.variables), values(student.trainable_variables)]
    distiller.fit(*batch, batch_size=4, epochs=2, verbose=0)
    assert_equal(before[0], values(teacher.variables))
    assert all(changed(before[1], values(student.trainable_variables)))
    assert teacher.trainable and teacher.trainable_variables  # it leaves as it came
    trained = {id(v) for v in distiller.trainable_variables}
    assert trained == {id(v) for v in student.trainable_variables}


def test_random_layers_of_a_teacher_are_not_what_it_is_known_by(
    tiny_network, batch, tmp_path
):
    tiny_network("t", dropout=0.5).save(tmp_path / "teacher.keras")
    teachers = [keras.saving.load_model(tmp_path / "teacher.keras") for _ in range(2)]
    digests = {Distiller(t, tiny_network("s")).frozen_digest() for t in teachers}
    digests |= {writing.known_by(get(teacher))["weights"] for teacher in teachers}
    assert len(digests) == 1


@pytest.mark.skipif(not TENSORFLOW, reason="uses a gradient tape")
def test_no_gradient_into_the_teacher_or_a_frozen_backbone(tiny_network, batch):
    import tensorflow as tf

    for trainer in (make_distiller(tiny_network), make_frozen(tiny_network)):
        trainer.compile(sgd())
        with tf.GradientTape() as tape:
            views = {"images": reference.rotated_views(batch[0])}
            predictions = trainer(views, training=True)
            loss = trainer.compute_loss(views, batch[1], predictions, training=True)
        frozen = [
            v.value
            for v in trainer.variables
            if v.trainable and all(v is not t for t in trainer.trainable_variables)
        ]
        trained = [v.value for v in trainer.trainable_variables]
        gradients = tape.gradient(loss, frozen + trained)
        assert len(frozen) > 0
        assert all(g is None for g in gradients[: len(frozen)])
        assert all(g is not None for g in gradients[len(frozen) :])


@core
def test_a_frozen_backbone_never_changes_and_its_heads_do(tiny_network, batch):
    trainer = make_frozen(tiny_network, dropout=0.5).compile(sgd(), **EAGER)
    backbone = strip_heads(trainer.teacher)
    before = [values(backbone.variables), values(trainer.trainable_variables)]
    trainer.fit(*batch, batch_size=4, epochs=2, verbose=0)
    assert_equal(before[0], values(backbone.variables))
    assert all(changed(before[1], values(trainer.trainable_variables)))
    in_backbone = {id(v) for v in backbone.variables}
    assert {id(v) for v in trainer.teacher.trainable_variables} == {
        id(v) for v in trainer.trainable_variables
    } | {id(v) for v in backbone.trainable_variables}
    assert not in_backbone & {id(v) for v in trainer.trainable_variables}


def test_batch_norm_statistics_move_once_a_step_on_all_views(tiny_network, batch):
    distiller = make_distiller(tiny_network)
    distiller.compile(keras.optimizers.SGD(0.0), **EAGER)
    convolution = distiller.student.get_layer("student_stage1_conv")
    features = convolution(reference.rotated_views(batch[0]).astype("float32"))
    _, mean, variance = reference.batch_normalization(
        keras.ops.convert_to_numpy(features), 1.0, 0.0, 1e-5
    )
    distiller.train_on_batch(*batch)
    normalization = distiller.student.get_layer("student_stage1_bn")
    statistics = values([normalization.moving_mean, normalization.moving_variance])
    assert_equal(statistics, [0.1 * mean, 0.9 + 0.1 * variance], rtol=1e-4, atol=1e-7)


def test_each_network_runs_once_a_step(batch):
    calls = []

    @keras.saving.register_keras_serializable("test")
    class Count(keras.layers.Layer):
        def call(self, x):
            calls.append((self.name, x.shape[0]))
            return x

    def network(name):
        images = keras.Input((8, 8, 3))
        x = keras.layers.GlobalAveragePooling2D()(Count(name=name)(images))
        dense = keras.layers.Dense
        return keras.Model(images, {"logits": dense(3)(x), "aux_1": dense(12)(x)})

    distiller = Distiller(network("teacher"), network("student"))
    distiller.compile(sgd(), jit_compile=False, **EAGER)
    calls.clear()
    distiller.train_on_batch(*batch)
    assert sorted(calls) == [("student", 48), ("teacher", 48)]


# Options of Keras.


def test_the_users_own_line(tiny_network, batch):
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices(batch).batch(4)
    teacher, student = tiny_network("teacher"), tiny_network("student")
    history = Distiller(teacher, student).compile("adam").fit(dataset)
    assert np.isfinite(history.history["loss"]).all()


def spy_on_labels(trainer):
    """Makes a trainer note the labels that it sees, in a list an epoch."""
    seen = []

    class Spy(type(trainer)):
        def train_step(self, *args):
            seen[-1].append(keras.ops.convert_to_numpy(args[-1][1]).tolist())
            return super().train_step(*args)

    trainer.__class__ = Spy
    begin = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: seen.append([]))
    return seen, begin


def test_arrays_are_shuffled(make_trainer, batch):
    trainer = make_trainer(num_classes=12)
    seen, begin = spy_on_labels(trainer)
    trainer.compile(sgd(), **EAGER)
    trainer.fit(batch[0], np.arange(12), 4, verbose=0, callbacks=begin)
    order = np.concatenate(seen[0]).tolist()
    assert order != sorted(order) == list(range(12))


def test_each_epoch_is_the_next_of_the_data(make_trainer):
    from keras_hsakd import data

    train, _ = data.load("digits", image_size=8, examples_per_class=2, batch_size=8)
    expected = [[y.numpy().tolist() for _, y in train] for _ in range(2)]
    train.epoch_counter.value = 0
    trainer = make_trainer(num_classes=10)
    seen, begin = spy_on_labels(trainer)
    trainer.compile(sgd(), metrics=["accuracy"], **EAGER)
    trainer.fit(train, epochs=2, verbose=0, callbacks=[begin])
    assert train.epoch_counter.value == 2
    assert seen == expected


def test_class_weight_is_a_sample_weight(make_trainer, batch):
    images, labels = batch
    weight = {0: 0.5, 1: 1.0, 2: 3.0}
    sample_weight = np.array([weight[label] for label in labels], "float32")
    trainer = make_trainer()
    start = values(trainer.network.variables)
    results = []
    for options in ({"class_weight": weight}, {"sample_weight": sample_weight}):
        trainer.compile(sgd(), **EAGER)
        for variable, value in zip(trainer.network.variables, start, strict=True):
            variable.assign(value)
        trainer.fit(images, labels, batch_size=12, verbose=0, **options)
        results.append(values(trainer.network.variables))
    assert_equal(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_learning_lowers_the_loss(make_trainer, batch, policy):
    keras.config.set_dtype_policy(policy)
    trainer = make_trainer()
    keras.config.set_dtype_policy("float32")  # the network's own policy decides
    trainer.compile(sgd(), **EAGER)
    scaled = isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    logs = [trainer.train_on_batch(*batch, return_dict=True) for _ in range(15)]
    losses = [step["loss"] for step in logs]
    assert losses[-1] < (0.99 if policy == "float32" else 1) * losses[0]
    assert trainer.predict(batch[0], verbose=0).dtype == "float32"


def train(trainer, batch, optimizer, steps=4, **options):
    trainer.compile(optimizer, jit_compile=options.pop("jit_compile", False), **options)
    images, labels = (np.concatenate([part] * steps) for part in batch)
    size = len(labels) // steps
    trainer.fit(images, labels, batch_size=size, shuffle=False, verbose=0)
    return values(trainer.network.variables)


@pytest.mark.slow
def test_compilation_and_several_steps_a_call_do_not_change_results(
    tiny_network, batch
):
    results = []
    for settings in (EAGER, {}, {"jit_compile": True}, {"steps_per_execution": 2}):
        keras.utils.set_random_seed(1)
        trainer = make_distiller(tiny_network)
        results.append(train(trainer, batch, sgd(), **settings))
    for result in results[1:]:
        # XLA fuses float32 operations in another order; four steps add up.
        assert_equal(results[0], result, rtol=1e-3, atol=1e-5)


@core
def test_gradient_accumulation_is_a_larger_batch(tiny_network, batch):
    images, labels = batch[0], unlabeled(batch[1], "some")
    results = []
    for accumulation, size in ((None, 12), (3, 4)):
        keras.utils.set_random_seed(1)
        trainer = make_distiller(tiny_network, batch_norm=False)
        trainer.compile(sgd(gradient_accumulation_steps=accumulation), **EAGER)
        trainer.fit(images, labels, batch_size=size, shuffle=False, verbose=0)
        results.append(values(trainer.network.variables))
    assert_equal(*results, rtol=1e-4, atol=1e-6)


# Evaluation.


@core
def test_evaluate_and_predict_see_plain_images_and_class_logits(make_each, batch):
    images, labels = batch
    trainer = make_each().compile(sgd(), metrics=["accuracy"], **EAGER)
    trainer.fit(images, labels, verbose=0)
    logits = keras.ops.convert_to_numpy(trainer.network(images)["logits"])
    predictions = trainer.predict(images, batch_size=5, verbose=0)
    np.testing.assert_allclose(predictions, logits, rtol=1e-4, atol=1e-5)
    results = trainer.evaluate(
        images, labels, batch_size=5, return_dict=True, verbose=0
    )
    assert set(results) == {"loss", "accuracy"}
    expected = reference.cross_entropy(labels, logits).mean()
    assert results["loss"] == pytest.approx(expected, rel=1e-4)
    assert results["accuracy"] == pytest.approx(np.mean(logits.argmax(1) == labels))
    on_batch = trainer.test_on_batch(images, labels, return_dict=True)
    assert on_batch == pytest.approx(results, rel=1e-4)


def test_accuracies_of_the_heads(make_trainer, batch):
    images, labels = batch
    trainer = make_trainer().compile(sgd(), metrics=["accuracy"], **EAGER)
    for _ in range(3):
        trainer.train_on_batch(images, labels)
    arguments = {"batch_size": 5, "return_dict": True, "verbose": 0}
    plain = trainer.evaluate(images, labels, **arguments)
    results = trainer.evaluate(images, labels, heads=True, **arguments)
    heads = outputs(trainer.network, images, training=False)
    joint = reference.joint_labels(labels)
    for name in ("aux_1", "aux_2"):
        predicted = heads[name].argmax(axis=1)
        expected = results.pop(f"{name}_joint_accuracy")
        assert np.mean(predicted == joint) == pytest.approx(expected)
        by_class = heads[name].reshape(-1, 3, 4).sum(axis=2).argmax(axis=1)
        expected = results.pop(f"{name}_class_accuracy")
        assert np.mean(by_class == joint // 4) == pytest.approx(expected)
    assert results == pytest.approx(plain, rel=1e-4)
    assert trainer.evaluate(images, labels, **arguments) == pytest.approx(plain)


def test_evaluating_heads_first_on_a_new_trainer(make_trainer, batch):
    trainer = make_trainer().compile(sgd(), metrics=["accuracy"], **EAGER)
    results = trainer.evaluate(*batch, heads=True, return_dict=True, verbose=0)
    assert {"accuracy", "aux_2_class_accuracy"} < set(results)


def test_head_metrics_while_training(make_trainer, batch):
    trainer = make_trainer()
    trainer.compile(sgd(), metrics=["accuracy"], head_metrics=True, **EAGER)
    history = trainer.fit(*batch, validation_data=batch, verbose=0).history
    heads = {f"aux_{i}_{kind}_accuracy" for i in (1, 2) for kind in ("joint", "class")}
    validation = {f"val_{name}" for name in {"loss", "accuracy"} | heads}
    assert heads < set(history)
    assert {name for name in history if name.startswith("val_")} == validation


def test_networks_without_heads(tiny_network, batch):
    images, labels = batch
    distiller = Distiller(*(strip_heads(tiny_network(name)) for name in "ts"))
    distiller.compile(sgd(), metrics=["accuracy"], **EAGER)
    history = distiller.fit(images, labels, validation_data=batch, verbose=0).history
    assert set(history) == {
        *("loss", "ce_loss", "kl_main", "accuracy", "val_loss", "val_accuracy")
    }
    logits = keras.ops.convert_to_numpy(distiller.student(images))
    np.testing.assert_allclose(
        distiller.predict(images, verbose=0), logits, rtol=1e-4, atol=1e-5
    )
    loss = history["val_loss"][0]
    assert loss == pytest.approx(reference.cross_entropy(labels, logits).mean(), 1e-4)
    copy = Distiller.from_config(distiller.get_config())
    assert copy.get_config() == distiller.get_config()
    for refused in (
        lambda: distiller.evaluate(images, labels, heads=True),
        lambda: distiller.compile(sgd(), head_metrics=True),
    ):
        with pytest.raises(ValueError, match="Expected .*heads.*`s`, which has none"):
            refused()


def test_networks_without_heads_learn_on_views(tiny_network, batch):
    images, labels = batch
    teacher, student = (strip_heads(tiny_network(name)) for name in "ts")
    rows = reference.rotated_views(images)
    logits = (teacher(rows), student(rows, training=True))
    logits = map(keras.ops.convert_to_numpy, logits)
    expected = reference.kl_divergence(*logits, 3.0).mean()
    distiller = Distiller(teacher, student, views="rotations")
    distiller.compile(sgd(), **EAGER)
    history = distiller.fit(images, labels, batch_size=len(images), verbose=0).history
    assert history["kl_main"][0] == pytest.approx(expected, rel=1e-4)
    assert set(history) == {"loss", "ce_loss", "kl_main"}


# Saving.


def test_config_round_trip(make_each, batch):
    trainer = make_each()
    copy = type(trainer).from_config(trainer.get_config())
    assert copy.get_config() == trainer.get_config()
    copy.set_weights(trainer.get_weights())
    assert_equal(
        [trainer.predict(batch[0], verbose=0)], [copy.predict(batch[0], verbose=0)]
    )


@core
def test_a_saved_trainer_goes_on_where_it_was(make_each, batch, tmp_path):
    keras.config.set_dtype_policy("mixed_float16")  # the loss' scale is kept too
    trainer = make_each()
    trainer.compile(sgd(), metrics=["accuracy"], head_metrics=True, **EAGER)
    trainer.fit(*batch, shuffle=False, verbose=0)
    trainer.save(tmp_path / "trainer.keras")
    copy = keras.saving.load_model(tmp_path / "trainer.keras")
    histories = [
        t.fit(*batch, shuffle=False, verbose=0).history for t in (trainer, copy)
    ]
    assert histories[0] == histories[1]
    assert_equal(values(trainer.variables), values(copy.variables))
    assert len(copy.trainable_variables) == len(trainer.trainable_variables)


@pytest.mark.skipif(not TENSORFLOW, reason="SavedModels need TensorFlow")
def test_export_is_the_student_alone(tiny_network, batch, tmp_path):
    import tensorflow as tf

    distiller = make_distiller(tiny_network)
    distiller.export(str(tmp_path / "student"), verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "student"))
    plain = strip_heads(distiller.student)
    np.testing.assert_allclose(
        exported.serve(batch[0]), plain(batch[0]), rtol=1e-5, atol=1e-6
    )
    assert len(exported.variables) == len(plain.variables)


@pytest.mark.skipif(not TENSORFLOW, reason="Keras exports ONNX of TensorFlow's graphs")
def test_onnx_is_the_student_alone(tiny_network, batch, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    distiller = make_distiller(tiny_network)
    path = str(tmp_path / "student.onnx")
    distiller.export(path, format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(path)
    (logits,) = session.run(None, {session.get_inputs()[0].name: batch[0]})
    expected = strip_heads(distiller.student)(batch[0])
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


# Bad input.


def test_heads_must_be_there(tiny_network):
    plain = strip_heads(tiny_network())
    with_heads = tiny_network("other")
    images = with_heads.input
    features = keras.Model(images, keras.layers.ReLU()(images))
    both = "`teacher` and `student` to have auxiliary heads both, or neither"
    for make, message in (
        (lambda: Distiller(plain, with_heads), f"{both}.*`other` and none in `tiny`"),
        (lambda: Distiller(with_heads, plain), f"{both}.*`other` and none in `tiny`"),
        (lambda: TeacherTrainer(plain), "Expected `tiny` to have auxiliary heads"),
        (
            lambda: Distiller(plain, with_heads.get_layer("logits")),
            "`student`: Expected a functional keras.Model",
        ),
        (
            lambda: Distiller(strip_heads(with_heads), features),
            r"`student`: .* class logits of shape .*\(None, 8, 8, 3\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"heads": 3}, r"at least as many auxiliary heads.*\['aux_1', 'aux_2'\] in"),
        ({"num_classes": 5}, "same number of classes. Received: 3 in .* and 5 in"),
        (
            {"size": 16},
            "images of the same shape; one of another size can begin with "
            r"`keras.layers.Resizing`. Received: \(8, 8, 3\) .* \(16, 16",
        ),
    ],
)
def test_networks_that_do_not_pair(tiny_network, student, message):
    with pytest.raises(ValueError, match=message):
        Distiller(tiny_network("teacher"), tiny_network("student", **student))


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (None, {"aux_1": "aux_2", "aux_2": "aux_3"}),
        (
            [("aux_1", "aux_2"), ("aux_1", "aux_1")],
            {"aux_1": "aux_1", "aux_2": "aux_1"},
        ),
    ],
)
def test_heads_that_differ_in_number_are_paired(tiny_network, batch, pairs, expected):
    images, labels = batch
    teacher, student = tiny_network("teacher", heads=3), tiny_network("student")
    distiller = Distiller(teacher, student, pairs=pairs).compile(sgd(), **EAGER)
    assert {student: teacher for teacher, student in distiller.pairs} == expected
    targets = outputs(teacher, images, training=False)
    of_student = outputs(student, images, training=True)
    logs = distiller.train_on_batch(images, labels, return_dict=True)
    for learner, source in expected.items():
        value = reference.kl_divergence(
            targets[source], of_student[learner], 3.0
        ).mean()
        assert logs[f"kl_{learner}"] == pytest.approx(value, rel=1e-4)
    copy = Distiller.from_config(distiller.get_config())
    assert copy.pairs == distiller.pairs


@pytest.mark.parametrize(
    "pairs",
    [
        [("aux_1", "aux_1")],
        [("aux_1", "aux_1"), ("aux_2", "aux_1")],
        [("aux_9", "aux_1"), ("aux_2", "aux_2")],
        [("aux_1",), ("aux_2", "aux_2")],
    ],
)
def test_pairs_that_are_none(tiny_network, pairs):
    with pytest.raises(ValueError, match="`pairs`.*'aux_1', 'aux_2'.*Received: pairs"):
        Distiller(tiny_network("t"), tiny_network("s"), pairs=pairs)


def test_shared_layers(tiny_network):
    network = tiny_network()
    same = keras.Model(network.input, network.output)
    for student in (network, same):
        with pytest.raises(ValueError, match="share no variables.*'tiny_stage1_conv"):
            Distiller(network, student)


def test_what_has_no_weights_is_shared(tmp_path):
    images, shared = keras.Input((8, 8, 3)), keras.layers.Dropout(0.5)

    def network():
        x = shared(keras.layers.Conv2D(4, 3)(images))
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(images, keras.layers.Dense(3)(x))

    distiller = Distiller(network(), network()).compile("sgd")
    distiller.fit(np.ones((4, 8, 8, 3), "float32"), np.arange(4) % 3, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    assert keras.saving.load_model(tmp_path / "distiller.keras")


@pytest.mark.parametrize("temperature", [0, -3.0])
def test_temperature_must_be_positive(tiny_network, temperature):
    with pytest.raises(
        ValueError, match="Expected `temperature` of KL to be a number, > 0"
    ):
        Distiller(tiny_network("a"), tiny_network("b"), temperature=temperature)


def test_a_network_of_images_that_are_not_square(tiny_network):
    images = keras.Input((8, 6, 3))
    x = keras.layers.GlobalAveragePooling2D()(images)
    network = keras.Model(
        images,
        {"logits": keras.layers.Dense(3)(x), "aux_1": keras.layers.Dense(12)(x)},
    )
    with pytest.raises(ValueError, match=r"square.*half_turns.*\(1, 8, 6, 3\) into"):
        TeacherTrainer(network)


def test_losses_are_not_chosen(make_trainer):
    with pytest.raises(ValueError, match="Expected no `loss`: .*`terms`"):
        make_trainer().compile(sgd(), loss="mse")
    with pytest.raises(ValueError, match="Expected no `loss_weights`: .*`terms`"):
        make_trainer().compile(sgd(), loss_weights={"kl_main": 0.5})
    with pytest.raises(TypeError, match="positional"):  # Keras' second one is the loss
        make_trainer().compile(sgd(), "mse")


@pytest.mark.parametrize(
    ("images", "labels", "message", "form"),
    [
        ((4, 8, 8, 3), [0, 1, 2, 3], "labels in 0 to 2.*from 0 to 3", "arrays"),
        ((4, 8, 8, 3), [-2, 1, 2, 0], "or -1.*labels from -2 to 2", "dataset"),
        ((4, 8, 8, 3), np.eye(4), r"class prob.*shape \(4, 4\)", "generator"),
        ((4, 8, 8), [0, 1, 2, 0], r"\(batch, 8, 8, 3\).*shape \(4, 8, 8\)", "arrays"),
        ((4, 8, 6, 3), [0, 1, 2, 0], r"shape \(4, 8, 6, 3\)", "dataset"),
    ],
)
def test_the_first_batch_is_checked(make_trainer, images, labels, message, form):
    import tensorflow as tf

    data = np.zeros(images, "float32"), np.asarray(labels)
    if form == "arrays":
        arguments = {"x": data[0], "y": data[1]}
    elif form == "dataset":
        arguments = {"x": tf.data.Dataset.from_tensors(data)}
    else:
        arguments = {"x": (part for part in [data])}
    trainer = make_trainer().compile(sgd())
    before = values(trainer.variables)
    with pytest.raises(ValueError, match=f"(?s)Expected.*{message}"):
        trainer.fit(**arguments, verbose=0)
    assert_equal(before, values(trainer.variables))


UNLABELED = {
    "joint": (make_joint, {}, "only `Distiller` takes images without a label, -1"),
    "baseline": (
        lambda make: BaselineTrainer(strip_heads(make("a"))),
        {},
        "only `Distiller` takes images without a label, -1",
    ),
    "mutual": (
        lambda make: MutualDistiller([make("a"), make("b")]),
        {},
        "only `Distiller` takes images without a label, -1",
    ),
    "metrics": (
        make_distiller,
        {"metrics": ["accuracy"]},
        r"`weighted_metrics=\['accuracy'\]` .* Received: metrics=\['accuracy'\]",
    ),
    "class_weight": (
        make_distiller,
        {"class_weight": {0: 1.0, 1: 2.0, 2: 1.0}},
        "no `class_weight` where images have no label",
    ),
}


@pytest.mark.parametrize("name", UNLABELED)
@pytest.mark.parametrize("told_by", ["first batch", "data set"])
def test_images_without_a_label_are_refused(tiny_network, batch, name, told_by):
    import tensorflow as tf

    make, options, message = UNLABELED[name]
    options = dict(options)
    class_weight = options.pop("class_weight", None)
    trainer = make(tiny_network).compile(sgd(), **options)
    images, labels = batch
    if told_by == "first batch":
        labels = unlabeled(labels, "some")
    data = tf.data.Dataset.from_tensors((images, labels))
    data.num_unlabeled = int(told_by == "data set")
    with pytest.raises(ValueError, match=f"Expected .*{message}"):
        trainer.fit(data, class_weight=class_weight, verbose=0)


def test_labels_are_needed(make_trainer, batch):
    import tensorflow as tf

    trainer = make_trainer().compile(sgd())
    for unlabelled in (tf.data.Dataset.from_tensors(batch[0]), batch[0]):
        with pytest.raises(ValueError, match="Expected labels.*Received: None"):
            trainer.fit(unlabelled, verbose=0)


def test_an_empty_dataset(make_trainer):
    import tensorflow as tf

    trainer = make_trainer().compile(sgd())
    empty = tf.data.Dataset.from_tensor_slices((np.zeros((0, 8, 8, 3)), [0][:0]))
    for nothing in (empty.batch(4), (b for b in [])):
        with pytest.raises(ValueError, match="Expected `x` to have at least one batch"):
            trainer.fit(nothing, verbose=0)


def test_a_generator_loses_no_batch(make_trainer, batch):
    trainer = make_trainer().compile(sgd(), **EAGER)
    seen = []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda step, logs: seen.append(step)
    )
    trainer.fit((b for b in [batch] * 3), verbose=0, callbacks=count)
    assert seen == [0, 1, 2]


def test_compile_comes_before_fit(make_trainer, batch):
    with pytest.raises(ValueError, match="`compile\\(\\)` .* a Distiller that is not"):
        make_trainer().fit(*batch)


def test_class_weight_must_have_each_class(make_trainer, batch):
    trainer = make_trainer().compile(sgd())
    with pytest.raises(ValueError, match="`class_weight` to have each class of 0 to 2"):
        trainer.fit(*batch, class_weight={0: 1.0, 1: 2.0})


def test_other_metrics_need_be_neither_finite_nor_scalar(make_trainer, batch):
    def undefined(labels, logits):
        return logits[:, 0] * np.nan

    metrics = [keras.metrics.F1Score(average=None), undefined]
    trainer = make_trainer().compile(sgd(), metrics=metrics, **EAGER)
    labels = np.eye(3, dtype="float32")[batch[1]]
    history = trainer.fit(batch[0], labels, verbose=0).history
    assert np.shape(history["f1_score"][0]) == (3,)
    assert np.isnan(history["undefined"][0])


def test_a_loss_that_is_not_finite_stops_training_and_is_named(tiny_network, batch):
    images, labels = np.concatenate([batch[0]] * 3), np.concatenate([batch[1]] * 3)
    distiller = make_distiller(tiny_network, batch_norm=False)
    distiller.compile(sgd(), **EAGER)
    kernel = distiller.teacher.get_layer("aux_2").kernel
    kernel.assign(np.full(kernel.shape, np.inf))  # one head of the teacher is ruined
    finished = []
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: finished.append(epoch)
    )
    with pytest.raises(FloatingPointError, match="kl_aux_2=nan") as error:
        distiller.fit(images, labels, batch_size=12, verbose=0, callbacks=[keep])
    assert "kl_main" not in str(error.value) and "kl_aux_1" not in str(error.value)
    assert finished == []  # no checkpoint of a ruined model
    values(distiller.variables)  # and it can still be read
