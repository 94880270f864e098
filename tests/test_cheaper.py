"""Steps that cost less by choice."""

import functools
import itertools

import keras
import numpy as np
import pytest

from keras_hsakd import (
    Distiller,
    MutualDistiller,
    Resume,
    TeacherTrainer,
    optimizers,
    strip_heads,
)
from keras_hsakd.ops import (
    sampled_view_weights,
    sampled_views,
    seen_rows,
    transformed_views,
)
from keras_hsakd.terms import KL, CrossEntropy

core = pytest.mark.core  # those that also run on JAX
TENSORFLOW = keras.backend.backend() == "tensorflow"
# Where tracing is not what is tested, TensorFlow need not trace. JAX is slow without.
EAGER = {"run_eagerly": TENSORFLOW}

TRAINERS = {
    "distiller": lambda make, **o: Distiller(make("t", width=6), make("s"), **o),
    "joint": lambda make, **o: TeacherTrainer(make("t"), **o),
    "frozen": lambda make, **o: TeacherTrainer(make("t"), freeze_backbone=True, **o),
    "mutual": lambda make, **o: MutualDistiller([make("a"), make("b", width=6)], **o),
}


def sgd():
    return optimizers.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def values(variables):
    return [keras.ops.convert_to_numpy(v).copy() for v in variables]


def assert_equal(first, second, **tolerance):
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


# Sampled views.


@core
def test_each_choice_of_views_is_as_likely_and_the_image_is_always_there():
    numbers = np.random.default_rng(0).random((6000, 3))
    for sampled, choices in ((2, 3), (3, 3), (4, 1)):
        table = keras.ops.convert_to_numpy(sampled_views(numbers, sampled))
        assert table.shape == (6000, sampled)
        assert (table[:, 0] == 0).all()
        chosen, counts = np.unique(
            np.sort(table[:, 1:], axis=1), axis=0, return_counts=True
        )
        assert len(chosen) == choices
        assert (np.diff(chosen, axis=1) > 0).all()  # without replacement
        assert np.abs(counts / 6000 - 1 / choices).max() < 0.03


@core
@pytest.mark.parametrize("num_views, sampled", [(4, 2), (4, 3), (6, 3), (4, 4)])
def test_the_weighted_mean_over_all_draws_is_the_mean_of_all_views(num_views, sampled):
    rows = np.random.default_rng(0).normal(size=(5 * num_views, 2))
    weights = sampled_view_weights(num_views, sampled)
    assert weights.mean() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx((num_views - 1) / (sampled - 1))
    means = []
    for numbers in itertools.permutations(np.linspace(0, 1, num_views - 1)):
        seen = sampled_views(np.tile(numbers, (5, 1)), sampled)
        seen = keras.ops.convert_to_numpy(seen_rows(rows, seen, num_views))
        means.append(np.mean(seen.reshape(5, sampled, 2) * weights[:, None], (0, 1)))
    np.testing.assert_allclose(np.mean(means, axis=0), rows.mean(axis=0), atol=1e-6)


@pytest.mark.skipif(not TENSORFLOW, reason="gradients by TensorFlow's tape")
@pytest.mark.parametrize(
    "method, sampled, classes",
    [
        ("distiller", 2, None),
        ("distiller", 3, "probabilities"),
        ("joint", 3, None),
        ("frozen", 2, None),
        ("mutual", 2, None),
    ],
)
def test_expected_loss_and_gradient_are_the_methods(
    tiny_network, batch, float64, method, sampled, classes
):
    """The mean over all draws, the same for all images, of networks that infer."""
    import tensorflow as tf

    images, labels = batch[0][:3].astype("float64"), batch[1][:3]
    labels = np.eye(3)[labels] * 0.7 + 0.1 if classes else labels
    weights = np.array([0.5, 1.0, 2.0])

    def make(**options):
        keras.utils.set_random_seed(0)
        return TRAINERS[method](tiny_network, **options).compile(sgd())

    def of(trainer, batch):
        with tf.GradientTape() as tape:
            outputs = trainer.outputs_of(batch["images"])  # in inference mode
            loss = trainer.compute_loss(batch, labels, outputs, weights)
        gradients = tape.gradient(loss, trainer.trainable_variables)
        logs = [metric.result() for metric in trainer._term_metrics.values()]
        trainer.reset_metrics()
        return [np.asarray(x) for x in (loss, *logs, *gradients)]

    trainer = make(sampled_views=sampled)
    views = transformed_views(images, trainer.view_functions)
    drawn = []
    for others in itertools.combinations((1, 2, 3), sampled - 1):
        seen = np.tile(np.array((0, *others)), (3, 1))
        drawn.append(of(trainer, {"images": seen_rows(views, seen), "seen": seen}))
    assert np.ptp([loss for loss, *_ in drawn]) > 1e-3
    means = [np.mean(draws, axis=0) for draws in zip(*drawn, strict=True)]
    assert_equal(means, of(make(), {"images": views}), rtol=1e-6, atol=1e-9)


class Spy:
    """Sees the batches of a trainer's steps."""

    def __init__(self, trainer):
        self.batches, outputs_of = [], trainer.outputs_of
        teachers_outputs = trainer.teachers_outputs

        def seen_by_the_teacher(batch, outputs):
            self.batches.append(keras.tree.map_structure(np.asarray, batch))
            return teachers_outputs(batch, outputs)

        def outputs_spied(images, training=False):
            assert not training or len(images) == 24
            return outputs_of(images, training)

        trainer.teachers_outputs = seen_by_the_teacher
        trainer.outputs_of = outputs_spied


@pytest.mark.skipif(not TENSORFLOW, reason="steps are looked at as they run")
def test_each_step_sees_views_of_its_own(tiny_network, batch):
    images, labels = batch
    trainer = TRAINERS["distiller"](tiny_network, sampled_views=2)
    spy = Spy(trainer)
    trainer.compile(sgd(), weighted_metrics=["accuracy"], head_metrics=True, **EAGER)
    logs = trainer.fit(images, labels, batch_size=12, epochs=3, verbose=0).history
    assert all(np.isfinite(values).all() for values in logs.values())
    accuracies = [v for name, v in logs.items() if "accuracy" in name]
    assert accuracies and np.max(accuracies) <= 1 + 1e-6
    tables = [batch["seen"] for batch in spy.batches]
    assert {table.shape for table in tables} == {(12, 2)}
    assert len({table.tobytes() for table in tables}) == 3
    views = np.asarray(transformed_views(images, trainer.view_functions))
    for batch in spy.batches:
        # Images are shuffled: each row of a view is known by its values.
        seen = batch["images"].reshape(12, 2, *images.shape[1:])
        for pair, (_, view) in zip(seen, batch["seen"], strict=True):
            (number,) = np.flatnonzero((images == pair[0]).all(axis=(1, 2, 3)))
            np.testing.assert_array_equal(pair[1], views[4 * number + view])


def test_the_logged_accuracies_of_heads_are_those_of_all_views(tiny_network, batch):
    images, labels = batch[0], np.where(np.arange(12) < 3, -1, batch[1])
    student = tiny_network("s", batch_norm=False)
    bias = np.zeros(12)
    bias[[0, 5]] = 100, 99  # all are told for the first class, unturned
    student.get_layer("aux_1").bias.assign(bias)
    distiller = Distiller(tiny_network("t"), student, sampled_views=2)
    distiller.compile(keras.optimizers.SGD(0.0), head_metrics=True, **EAGER)
    logs = distiller.train_on_batch(images, labels, return_dict=True)
    expected = distiller.test_on_batch(images[3:], labels[3:], return_dict=True)
    for name, accuracy in (("joint", 1 / 12), ("class", 1 / 3)):
        assert expected[f"aux_1_{name}_accuracy"] == pytest.approx(accuracy)
        assert logs[f"aux_1_{name}_accuracy"] == pytest.approx(accuracy)


def test_all_views_sampled_are_the_exact_method(tiny_network, batch):
    results = []
    for sampled in (None, 4):
        keras.utils.set_random_seed(1)
        distiller = TRAINERS["distiller"](tiny_network, sampled_views=sampled)
        distiller.compile(sgd(), **EAGER).train_on_batch(*batch)
        results.append(values(distiller.variables))
    assert_equal(*results, rtol=0)


@pytest.mark.parametrize("sampled", [1, 0, 5, 2.5, "two"])
def test_numbers_of_views_that_are_none(tiny_network, sampled):
    with pytest.raises(ValueError, match="`sampled_views` to be a number from 2 to 4"):
        TeacherTrainer(tiny_network(), sampled_views=sampled)


def test_one_view_is_not_sampled(tiny_network):
    networks = [strip_heads(tiny_network("t")), strip_heads(tiny_network("s"))]
    with pytest.raises(ValueError, match="no `sampled_views` for networks without"):
        Distiller(*networks, sampled_views=2)


def stretched(images):
    return 2 * images


def test_views_of_ones_own_are_sampled(tiny_network, batch):
    functions = [lambda x: x, stretched, lambda x: -x]
    networks = [tiny_network(name, num_views=3) for name in "ts"]
    distiller = Distiller(*networks, views=functions, sampled_views=2)
    logs = distiller.compile(sgd(), **EAGER).train_on_batch(*batch, return_dict=True)
    assert np.isfinite(list(logs.values())).all()


@core
def test_draws_go_on_in_a_file_and_from_a_snapshot(tiny_network, batch, tmp_path):
    def make():
        keras.utils.set_random_seed(2)
        trainer = TRAINERS["joint"](tiny_network, sampled_views=2)
        return trainer.compile(sgd(), metrics=["accuracy"], **EAGER)

    def fit(trainer, epochs=2, **options):
        options = {"batch_size": 6, "shuffle": False, "verbose": 0, **options}
        trainer.fit(*batch, epochs=epochs, **options)
        return values(trainer.variables)

    expected = fit(make())
    if TENSORFLOW:  # nothing of its own on JAX, where compiling takes long
        first = make()
        fit(first, epochs=1)
        first.save(tmp_path / "trainer.keras")
        again = keras.saving.load_model(tmp_path / "trainer.keras")
        assert again.sampled_views == 2
        assert_equal(fit(again, initial_epoch=1), expected, rtol=0)

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations == 3:
                raise KeyboardInterrupt

    resume = Resume(tmp_path / "snapshots", every_steps=1)
    with pytest.raises(KeyboardInterrupt):
        fit(make(), callbacks=[Stop(), resume])
    assert_equal(fit(make(), callbacks=[resume]), expected, rtol=0)


# Terms of weight 0.


def terms_with(method, weight):
    """Returns the terms of a method, those on the first head of a weight."""
    terms = [CrossEntropy()]
    if method != "distiller":
        terms += [
            CrossEntropy(on="aux_1", weight=weight),
            CrossEntropy(on="aux_2"),
        ]
    if method in ("distiller", "mutual"):
        terms += [KL(3.0), KL(3.0, on="aux_1", weight=weight), KL(3.0, on="aux_2")]
    return terms


LEFT_OUT = {
    "distiller": ["kl_aux_1"],
    "joint": ["ce_aux_1"],
    "frozen": ["ce_aux_1"],
    "mutual": [f"net_{i}_{term}_aux_1" for i in (1, 2) for term in ("ce", "kl")],
}
OF_THE_HEAD = ("head1", "aux_1")  # in the names of its layers


@pytest.fixture
def ran(monkeypatch):
    """Returns the names of the convolutions that have run, a list that grows."""
    names, call = [], keras.layers.Conv2D.call

    @functools.wraps(call)  # Keras looks at its signature
    def seen(layer, *args, **kwargs):
        names.append(layer.name)
        return call(layer, *args, **kwargs)

    monkeypatch.setattr(keras.layers.Conv2D, "call", seen)
    return names


def some_steps(method, make, batch, weight, **compiling):
    """Returns what is logged of three steps, and the variables by name, of which."""
    keras.utils.set_random_seed(3)
    trainer = TRAINERS[method](make, terms=terms_with(method, weight))
    trainer.compile(sgd(), **EAGER, **compiling)
    before = values(trainer.variables)
    for _ in range(3):
        logs = trainer.train_on_batch(*batch, return_dict=True)
    after = values(trainer.variables)
    networks = getattr(trainer, "networks", [trainer.network])
    ids = {id(v): f"{n.name}/{v.path}" for n in networks for v in n.variables}
    changes = {
        ids[id(v)]: pair
        for v, *pair in zip(trainer.variables, before, after, strict=True)
        if id(v) in ids
    }
    return logs, changes


@pytest.mark.skipif(not TENSORFLOW, reason="layers are looked at as they run")
@pytest.mark.parametrize("method", TRAINERS)
def test_heads_of_weight_0_are_not_computed(tiny_network, batch, ran, method):
    logs, changes = some_steps(method, tiny_network, batch, 0)
    assert ran and not any("head1" in name for name in ran)
    ran.clear()
    # Too little to change a number, and more than nothing.
    expected, all_changes = some_steps(method, tiny_network, batch, 1e-20)
    assert any("head1" in name for name in ran)
    assert expected.keys() - logs.keys() == set(LEFT_OUT[method])
    for name, value in logs.items():
        assert value == pytest.approx(expected[name], rel=1e-6), name
    for name, (before, after) in changes.items():
        if any(part in name for part in OF_THE_HEAD):
            np.testing.assert_array_equal(after, before, err_msg=name)
            assert method == "frozen" or (all_changes[name][1] != before).any()
        else:
            np.testing.assert_allclose(
                after, all_changes[name][1], rtol=1e-6, atol=1e-8, err_msg=name
            )


@pytest.mark.skipif(not TENSORFLOW, reason="layers are looked at as they run")
def test_a_teacher_of_whom_nobody_learns_does_not_run(tiny_network, batch, ran):
    def trainer_of(*terms):
        trainer = TRAINERS["distiller"](tiny_network, terms=terms)
        ran.clear()
        return trainer.compile(sgd(), **EAGER)

    kl = [KL(3.0, weight=0), KL(3.0, on="heads", weight=0)]
    logs = trainer_of(CrossEntropy(), *kl).train_on_batch(*batch, return_dict=True)
    assert set(logs) == {"loss", "ce_loss"}
    assert set(ran) == {"s_stage1_conv", "s_stage2_conv"}
    for weight in (0, 1):
        trainer = trainer_of(KL(3.0, weight=weight), KL(3.0, on="heads"))
        logs = trainer.train_on_batch(*batch, return_dict=True)
        assert ("kl_main" in logs) == (weight > 0) and "ce_loss" not in logs
        assert trainer.evaluate(*batch, verbose=0) > 0


@pytest.mark.skipif(not TENSORFLOW, reason="layers are looked at as they run")
def test_the_accuracies_of_a_head_of_weight_0(tiny_network, batch, ran):
    trainer = TRAINERS["distiller"](tiny_network, terms=terms_with("distiller", 0))
    trainer.compile(sgd(), head_metrics=True, **EAGER)
    logs = trainer.train_on_batch(*batch, return_dict=True)
    assert {"aux_1_joint_accuracy", "aux_2_joint_accuracy"} < set(logs)
    assert "s_head1_conv" in ran and "t_head1_conv" not in ran
    kernel = trainer.student.get_layer("aux_1").kernel
    assert not any(kernel is v for v in trainer.trainable_variables)


def test_a_training_without_a_head_goes_on(tiny_network, batch, tmp_path):
    images, labels = batch

    def make():
        keras.utils.set_random_seed(2)
        trainer = TRAINERS["joint"](tiny_network, terms=terms_with("joint", 0))
        return trainer.compile(sgd(), **EAGER)

    def fit(trainer, epochs, **options):
        options = {"batch_size": 12, "shuffle": False, "verbose": 0, **options}
        trainer.fit(images, labels, epochs=epochs, **options)
        return values(trainer.variables + trainer.optimizer.variables)

    expected = fit(make(), 2)
    first = make()
    fit(first, 1, callbacks=[Resume(tmp_path / "snapshots")])
    if TENSORFLOW:
        first.save(tmp_path / "trainer.keras")
        again = keras.saving.load_model(tmp_path / "trainer.keras")
        assert_equal(fit(again, 2, initial_epoch=1), expected, rtol=0)
    resume = Resume(tmp_path / "snapshots")
    assert_equal(fit(make(), 2, callbacks=[resume]), expected, rtol=0)


def test_weights_that_leave_nothing_to_train(tiny_network, batch):
    with pytest.raises(ValueError, match="at least one of `terms` to have a weight"):
        TRAINERS["distiller"](tiny_network, terms=[CrossEntropy(weight=0)])
    trainer = TRAINERS["frozen"](tiny_network, terms=[CrossEntropy()]).compile(sgd())
    for train in (trainer.fit, trainer.train_on_batch):
        with pytest.raises(ValueError, match="`t` to have weights that the loss trai"):
            train(*batch)
