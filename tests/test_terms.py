"""Terms of a loss: their values, what they are on, and what is refused."""

import dataclasses
import pathlib

import keras
import numpy as np
import numpy_reference as reference
import pytest

import keras_hsakd
from keras_hsakd import (
    Distiller,
    TeacherTrainer,
    models,
    optimizers,
    strip_heads,
    terms,
)
from keras_hsakd.terms import (
    DKD,
    KL,
    METHODS,
    CrossEntropy,
    Function,
    KerasDistillation,
    Standardized,
    Term,
    of_method,
    parse,
)
from keras_hsakd.trainers import BaselineTrainer

core = pytest.mark.core  # those that also run on JAX
TENSORFLOW = keras.backend.backend() == "tensorflow"
EAGER = {"run_eagerly": TENSORFLOW}
rng = np.random.default_rng(0)
TEACHER, STUDENT = rng.normal(size=(2, 6, 5)).astype("float32")
LABELS = np.arange(6) % 5


def sgd():
    return optimizers.SGD(0.05, momentum=0.9)


class BatchOf(keras.utils.PyDataset):
    """One batch of images and labels."""

    def __init__(self, images, labels):
        super().__init__()
        self.batch = images, labels

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.batch


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def outputs(network, images, training):
    """Returns a network's outputs for its views of images, leaving it as it was."""
    kept = network.get_weights()
    results = network(reference.rotated_views(images), training=training)
    network.set_weights(kept)
    return {name: numpy(x) for name, x in results.items()}


# Values.


@core
@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (KL(2.0), reference.kl_divergence(TEACHER, STUDENT, 2.0)),
        (
            DKD(2.0, beta=6.0),
            reference.decoupled_divergence(TEACHER, STUDENT, LABELS, 2.0, 1, 6),
        ),
        (Standardized(2.0), reference.standardized_divergence(TEACHER, STUDENT, 2.0)),
        (CrossEntropy(), reference.cross_entropy(LABELS, STUDENT)),
        (
            CrossEntropy(label_smoothing=0.3),
            -np.sum(
                (0.7 * np.eye(5)[LABELS] + 0.06) * np.log(reference.softmax(STUDENT)),
                axis=1,
            ),
        ),
        (Function(lambda t, s, y: t[:, 0] * s[:, 1]), TEACHER[:, 0] * STUDENT[:, 1]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values(term, expected):
    received = numpy(term.values(TEACHER, STUDENT, LABELS))
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)
    one_hot = np.eye(5, dtype="uint8")[LABELS]
    if not isinstance(term, Function):
        again = numpy(term.values(TEACHER, STUDENT, one_hot.astype("float32")))
        np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-6)


def test_equal_logits_have_no_gradient_when_standardized():
    if not TENSORFLOW:
        pytest.skip("gradients by TensorFlow's tape")
    import tensorflow as tf

    logits = tf.constant([[1.0, 1.0, 1.0], [1.0, 2.0, 4.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = tf.reduce_sum(Standardized().values(TEACHER[:2, :3], logits, None))
    gradient = tape.gradient(loss, logits).numpy()
    assert np.isfinite(gradient).all() and not gradient[0].any() and gradient[1].any()


# Settings.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KL(0), "`temperature` of KL to be a number, > 0. .*temperature=0"),
        (lambda: KL(float("nan")), "`temperature` of KL"),
        (lambda: KL("3"), "`temperature` of KL .*temperature='3'"),
        (lambda: KL(3.0, weight=-1), "`weight` of KL to be a number, 0 or more"),
        (lambda: KL(3.0, weight=float("inf")), "`weight` of KL"),
        (lambda: KL(3.0, warmup=-1), "`warmup` of KL to be a number, 0 or more"),
        (lambda: DKD(beta=-1.0), "`beta` of DKD"),
        (lambda: CrossEntropy(label_smoothing=1.0), "`label_smoothing` of CrossEntr"),
        (lambda: KL(3.0, on=[]), r"`on` of KL to be one of .*Received: \[\]"),
        (lambda: KL(3.0, on=[1]), "`on` of KL to be one of"),
        (
            lambda: KL(3.0, on="heads", teacher="aux_1"),
            "one head, one stage or one layer, with",
        ),
        (lambda: Function(), "a function of .teacher's output, student's output"),
        (lambda: terms.get("kl"), "each of `terms` to be a term .*Received: 'kl'"),
        (lambda: terms.get(KL), "each of `terms` to be a term"),
        (lambda: terms.get(keras.losses.KLDivergence()), "each of `terms`"),
        (lambda: terms.get(keras.losses.kl_divergence), "each of `terms`"),
        (lambda: KerasDistillation(None), "to be a keras.distillation.Distillation"),
        (
            lambda: terms.get(
                keras.distillation.FeatureDistillation("mse", "conv", "conv")
            ),
            "FeatureDistillation without layers of its own.*on='...'.*'conv'",
        ),
        (lambda: of_method("dkdd"), "`method` to be one of .*did you mean 'dkd'"),
        (lambda: of_method("kd", settings={"beta": 6.0}), "settings among .*'beta'"),
        (lambda: parse("import os"), "a term as Python spells it.*'import os'"),
        (lambda: parse("KL(open('x'))"), "a term as Python spells it"),
        (lambda: parse("Dkd(3.0)"), "a term of .*Received: 'Dkd'"),
        (lambda: parse("KL(tau=3.0)"), "settings among .*'temperature'.* for KL"),
    ],
)
def test_settings_that_are_none(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_settings_stay_as_they_are(tiny_network):
    term = KL(3.0)
    with pytest.raises(AttributeError, match="settings of a term to stay.*another KL"):
        term.temperature = 5.0
    distiller = Distiller(tiny_network("t"), tiny_network("s"))
    for name, value in (("temperature", 5.0), ("terms", [KL(5.0)])):
        with pytest.raises(AttributeError, match=f"`{name}` to stay.*another Distill"):
            setattr(distiller, name, value)
    assert distiller.temperature == 3.0


@pytest.mark.parametrize(
    "text",
    [
        "KL(temperature=4.0, weight=0.9)",
        "CrossEntropy(label_smoothing=0.1, on='heads')",
        "DKD(beta=6.0, warmup=20, on=['aux_1', 'aux_2'])",
        "Standardized(on='aux_1', teacher='aux_3', name='scale')",
    ],
)
def test_a_term_is_spelled_and_saved(text):
    term = parse(text)
    assert repr(term) == text
    config = keras.saving.serialize_keras_object(term)
    assert keras.saving.deserialize_keras_object(config) == term


def test_methods_by_name():
    assert of_method("hsakd") == [*METHODS["hsakd"], KL(3.0, on="heads")]
    assert of_method("hsakd", heads=False) == [CrossEntropy(), KL(3.0)]
    assert of_method("dkd", epochs=24, settings={"beta": 6.0}) == [
        CrossEntropy(),
        DKD(4.0, beta=6.0, warmup=2.0),
    ]
    kd = of_method("kd", heads=True, settings={"temperature": 2.0})
    assert kd == [
        CrossEntropy(weight=0.1),
        *(KL(2.0, weight=0.9, on=on) for on in ("logits", "heads")),
    ]


# On networks.


def networks(make, heads=True, **options):
    pair = make("t", width=6, **options), make("s", **options)
    return pair if heads else [strip_heads(network) for network in pair]


def test_hsakd_is_the_same_spelt_out(tiny_network, batch):
    logs = []
    for spelt in (None, [CrossEntropy(), KL(3.0), KL(3.0, on="heads")]):
        keras.utils.set_random_seed(0)
        distiller = Distiller(*networks(tiny_network), terms=spelt)
        distiller.compile(sgd(), **EAGER)
        for _ in range(2):
            last = distiller.train_on_batch(*batch, return_dict=True)
        logs.append(last)
    assert logs[0] == logs[1]
    with pytest.raises(ValueError, match="`temperature` or `terms`.*temperature=4.0"):
        Distiller(*networks(tiny_network), temperature=4.0, terms=[KL(3.0)])


@keras.saving.register_keras_serializable("tests")
def weighted_squares(teacher, student, labels):
    """Values that depend on which outputs and labels a function gets."""
    squares = keras.ops.sum(teacher * (teacher - student) ** 2, axis=-1)
    return squares * keras.ops.cast(1 + labels, squares.dtype)


@core
def test_rows_and_labels_that_a_function_gets(tiny_network, batch):
    images, labels = batch[0], np.where(np.arange(12) % 5 < 2, -1, batch[1])
    on = ["logits", "images", "aux_1", "aux_2"]
    distiller = Distiller(
        *networks(tiny_network), terms=[Function(weighted_squares, on=on, weight=0.5)]
    )
    distiller = Distiller.from_config(distiller.get_config())
    assert distiller.terms[0].function is weighted_squares
    teacher = outputs(distiller.teacher, images, training=False)
    student = outputs(distiller.student, images, training=True)
    distiller.compile(sgd(), **EAGER)
    logs = distiller.train_on_batch(images, labels, return_dict=True)
    total = logs.pop("loss")
    assert total == pytest.approx(0.5 * sum(logs.values()), rel=1e-5)
    joint = reference.joint_labels(labels)
    for metric, name, labels_of_rows in (
        ("main", "logits", np.repeat(labels, 4)),
        ("loss", "logits", labels),
        ("aux_1", "aux_1", joint),
        ("aux_2", "aux_2", joint),
    ):
        step = 4 if metric == "loss" else 1
        squares = np.sum(teacher[name] * (teacher[name] - student[name]) ** 2, axis=1)
        expected = np.mean(squares[::step] * (1 + labels_of_rows))
        received = logs[f"weighted_squares_{metric}"]
        assert received == pytest.approx(expected, rel=1e-4), metric


@core
def test_features_of_layers(tiny_network, batch):
    """On the images themselves; each network runs once, and nothing else is kept."""

    def distance(teacher, student, labels):
        return keras.ops.mean((teacher[..., :4] - student) ** 2, axis=(1, 2, 3))

    layer = Function(distance, on="s_stage2_conv", teacher="t_stage2_conv", name="hint")
    distiller = Distiller(*networks(tiny_network), terms=[CrossEntropy(), layer])
    parts = (
        (distiller.teacher, "t_stage2_conv", False),
        (
            distiller.student,
            "s_stage2_conv",
            True,
        ),
    )
    kept = distiller.student.get_weights()
    maps = []
    for network, name, training in parts:
        whole = keras.Model(network.input, network.get_layer(name).output)
        rows = reference.rotated_views(batch[0])
        maps.append(numpy(whole(rows, training=training))[::4])
    distiller.student.set_weights(kept)
    distiller.compile(sgd(), **EAGER)
    logs = distiller.train_on_batch(*batch, return_dict=True)
    expected = np.mean((maps[0][..., :4] - maps[1]) ** 2)
    assert set(logs) == {"loss", "ce_loss", "hint"}
    assert logs["hint"] == pytest.approx(expected, rel=1e-4)


@keras.saving.register_keras_serializable("tests")
class Regressed(Term):
    """Squared error after a layer of its own."""

    def make_layer(self, teacher_shape, student_shape):
        return keras.layers.Dense(teacher_shape[-1], name="regressor")

    def values(self, teacher, student, labels):
        return keras.ops.mean((teacher - student) ** 2, axis=-1)


@core
def test_a_layer_of_a_term_is_trained_and_saved_with_the_trainer(
    tiny_network, batch, tmp_path
):
    keras.utils.set_random_seed(1)
    distiller = Distiller(*networks(tiny_network), terms=[Regressed(on="aux_2")])
    distiller.compile(sgd(), **EAGER)
    distiller.train_on_batch(*batch)
    (layer,) = distiller._layers_of_terms
    before = numpy(layer.kernel).copy()
    distiller.train_on_batch(*batch)
    assert np.any(numpy(layer.kernel) != before)
    assert not {id(v) for v in layer.variables} & {
        id(v) for v in distiller.student.variables
    }
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    values = [
        t.train_on_batch(*batch, return_dict=True)["loss"] for t in (distiller, loaded)
    ]
    assert values[0] == values[1]


@core
def test_terms_come_in_over_the_first_epochs(tiny_network, batch):
    warm = [KL(3.0, warmup=2.5), KL(3.0, on="heads", warmup=5)]
    distiller = Distiller(*networks(tiny_network), terms=[CrossEntropy(), *warm])
    distiller.compile(keras.optimizers.SGD(0.0))  # compiled: it reads a variable
    data = {"batch_size": 12, "shuffle": False, "verbose": 0}
    logs = distiller.fit(*batch, epochs=3, **data).history
    heads = np.add(logs["kl_aux_1"], logs["kl_aux_2"])
    assert np.ptp(logs["kl_main"]) < 1e-4  # reported without the weight
    expected = logs["ce_loss"] + logs["kl_main"] * np.array([0.4, 0.8, 1])
    np.testing.assert_allclose(
        logs["loss"], expected + heads * np.array([0.2, 0.4, 0.6]), rtol=1e-5
    )
    # Without epochs, all of the weights.
    logs = distiller.train_on_batch(*batch, return_dict=True)
    assert logs.pop("loss") == pytest.approx(sum(logs.values()), rel=1e-5)
    again = Distiller.from_config(distiller.get_config()).compile("sgd", **EAGER)
    logs = again.fit(*batch, initial_epoch=1, epochs=2, **data).history
    heads = logs["kl_aux_1"][0] + logs["kl_aux_2"][0]
    expected = logs["ce_loss"][0] + 0.8 * logs["kl_main"][0] + 0.4 * heads
    assert logs["loss"][0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["teacher", "distiller", "baseline"])
def test_labels_are_smoothed_in_training_alone(method, tiny_network, batch):
    images, labels = batch
    network = tiny_network(batch_norm=False)
    if method == "distiller":
        labels = np.where(np.arange(12) < 4, -1, labels)
    labelled = labels >= 0
    log_p = keras.ops.log_softmax(network.predict(images, verbose=0)["logits"])
    spread = -np.asarray(log_p)[labelled].mean()
    teacher = tiny_network("teacher", batch_norm=False)
    results, tested = [], []
    for smoothing in (0.0, 0.3):
        own = [CrossEntropy(label_smoothing=smoothing)]
        trainer = {
            "teacher": lambda t: TeacherTrainer(network, terms=t),
            "distiller": lambda t: Distiller(teacher, network, terms=t),
            "baseline": lambda t: BaselineTrainer(strip_heads(network), terms=t),
        }[method](own)
        trainer.compile(keras.optimizers.SGD(0.0), **EAGER)
        logs = trainer.fit(images, labels, batch_size=12, verbose=0).history
        results.append(logs["ce_loss"][0])
        tested.append(trainer.evaluate(images, abs(labels), verbose=0))
    assert results[1] == pytest.approx(0.7 * results[0] + 0.3 * spread, rel=1e-5)
    assert tested[0] == tested[1]


@pytest.mark.parametrize("kind", ["uint8", "bool", "int64"])
def test_one_hot_labels_may_be_of_any_kind(kind, tiny_network, batch):
    smoothed = CrossEntropy(label_smoothing=0.1), CrossEntropy(on="heads")
    trainer = TeacherTrainer(tiny_network(), terms=smoothed)
    one_hot = np.eye(3)[batch[1]]
    trainer.compile(keras.optimizers.SGD(0.0), **EAGER)
    expected, received = (
        trainer.fit(batch[0], labels, batch_size=12, verbose=0).history
        for labels in (one_hot.astype("float32"), one_hot.astype(kind))
    )
    for name, (value,) in expected.items():
        assert received[name][0] == pytest.approx(value, rel=1e-6), name


# Losses of `keras.distillation`.


@core
def test_a_loss_of_keras_is_a_term(tiny_network, batch):
    loss = keras.distillation.LogitsDistillation(4.0, keras.losses.KLDivergence())
    logs = []
    for term in (KL(4.0, weight=0.9), KerasDistillation(loss, weight=0.9)):
        keras.utils.set_random_seed(0)
        pair = networks(tiny_network, heads=False)
        distiller = Distiller(*pair, terms=[CrossEntropy(weight=0.1), term])
        distiller = Distiller.from_config(distiller.get_config())
        distiller.set_weights([w for n in pair for w in n.get_weights()])
        distiller.compile(sgd(), **EAGER)
        for _ in range(3):
            last = distiller.train_on_batch(*batch, return_dict=True)
        logs.append(sorted(last.values()))
    # Rounding of logarithms, times the squared temperature.
    np.testing.assert_allclose(logs[0], logs[1], atol=3e-6)


def test_what_a_loss_without_rows_is_refused_with(tiny_network, batch):
    loss = keras.distillation.LogitsDistillation(4.0, keras.losses.KLDivergence())
    images, labels = batch
    distiller = Distiller(*networks(tiny_network), terms=[CrossEntropy(), loss])
    distiller.compile(sgd(), **EAGER)
    weights = np.ones(12, "float32")
    none = np.where(labels == 0, -1, labels)
    for refused, what in (
        (lambda: distiller.fit(images, labels, sample_weight=weights), "sample weig"),
        (lambda: distiller.fit(images, labels, class_weight={0: 1, 1: 1, 2: 2}), "sa"),
        (lambda: distiller.train_on_batch(images, labels, weights), "sample weights"),
        (lambda: distiller.fit(images, none), "images without a label"),
        (
            lambda: Distiller(*networks(tiny_network), terms=[loss], sampled_views=2),
            "`sampled_views`",
        ),
    ):
        with pytest.raises(ValueError, match=f"one value a row for {what}"):
            refused()
    assert np.isfinite(distiller.fit(images, labels, verbose=0).history["loss"][0])


# What is refused when the trainer is made.


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([KL(3.0, on="aux_3")], "`on` to be one of .*on='aux_3'.*did you mean"),
        ([KL(3.0, on="s_stage1_con")], "the name of a layer of `s`.*'s_stage1_conv'"),
        ([KL(3.0, on="aux_1", teacher="aux_7")], "name a head of `t`.*'aux_7'"),
        ([KL(3.0, on="s_stage1_conv")], "a stage or a layer of `t` .*'t_stage1_conv'"),
        (
            [KL(3.0), KL(6.0)],
            "different names.*by `name`. Received: .*'kl_main'",
        ),
        ([KL(3.0, name="loss")], "different names"),
        (KL(3.0), "`terms` to be a list of terms. Received: KL"),
        ("kd", "`terms` to be a list of terms. Received: 'kd'"),
        ([KL(3.0, weight=0)], "at least one of `terms` to have a weight above 0"),
    ],
)
def test_terms_that_do_not_suit(tiny_network, wrong, message):
    with pytest.raises(ValueError, match=message):
        Distiller(*networks(tiny_network), terms=wrong)


def test_terms_that_need_a_teacher_or_heads(tiny_network):
    with pytest.raises(ValueError, match="auxiliary heads for KL.*`s`, which has none"):
        Distiller(*networks(tiny_network, heads=False), terms=[KL(3.0, on="heads")])
    for trainer, network in (
        (TeacherTrainer, tiny_network()),
        (BaselineTrainer, strip_heads(tiny_network())),
    ):
        with pytest.raises(ValueError, match="need labels alone.*no teacher.*KL"):
            trainer(network, terms=[KL(3.0)])


def test_values_that_are_not_one_a_row(tiny_network, batch):
    reduced = Function(lambda t, s, y: keras.ops.mean(t - s))
    distiller = Distiller(*networks(tiny_network), terms=[reduced])
    with pytest.raises(ValueError, match=r"one value for a row.*Received: shape \(\)"):
        distiller.compile(sgd(), **EAGER).train_on_batch(*batch)


# Classifiers that end in a softmax.


def test_a_softmax_is_taken_off(tiny_network, batch):
    plain = networks(tiny_network, heads=False)
    ended = [keras.Sequential([n, keras.layers.Softmax()]) for n in plain]
    logs = []
    for pair in (plain, ended):
        distiller = Distiller(*pair).compile(keras.optimizers.SGD(0.0), **EAGER)
        baseline = BaselineTrainer(pair[1]).compile(keras.optimizers.SGD(0.0), **EAGER)
        logs.append(
            [
                distiller.train_on_batch(*batch, return_dict=True)["loss"],
                baseline.train_on_batch(*batch, return_dict=True)["loss"],
            ]
        )
    np.testing.assert_allclose(logs[0], logs[1], rtol=1e-6)
    before = plain[1].get_weights()
    Distiller(*ended).compile(sgd(), **EAGER).train_on_batch(*batch)
    after = plain[1].get_weights()
    assert any(np.any(a != b) for a, b in zip(before, after, strict=True))
    sigmoid = keras.Sequential([plain[1], keras.layers.Activation("sigmoid")])
    with pytest.raises(ValueError, match="`student`: .*values from 0 to 1"):
        Distiller(plain[0], sigmoid)


# A loop of somebody's own.


@pytest.mark.skipif(not TENSORFLOW, reason="TensorFlow's tape")
@pytest.mark.parametrize("heads", [True, False])
def test_a_loop_of_ones_own_is_a_step(tiny_network, batch, heads):
    import tensorflow as tf

    pair = networks(tiny_network, heads)
    start = pair[1].get_weights()
    distiller = Distiller(*pair).compile("sgd", **EAGER)
    distiller.train_on_batch(*batch)
    expected = pair[1].get_weights()
    pair[1].set_weights(start)
    distiller = Distiller(*pair).compile("sgd", **EAGER)
    with tf.GradientTape() as tape:
        received = distiller(batch[0], training=True)
        loss = distiller.compute_loss(batch[0], batch[1], received)
    trained = distiller.trainable_variables
    distiller.optimizer.apply(tape.gradient(loss, trained), trained)
    for mine, theirs in zip(pair[1].get_weights(), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    if heads:
        distiller = Distiller(*pair, sampled_views=2)
        with pytest.raises(ValueError, match="`fit` or `train_on_batch` with `sampled"):
            distiller(batch[0], training=True)


def test_a_student_that_is_frozen_is_refused(tiny_network, batch):
    teacher, student = networks(tiny_network)
    student.trainable = False
    distiller = Distiller(teacher, student).compile("sgd")
    for train in (distiller.fit, distiller.train_on_batch):
        with pytest.raises(ValueError, match="`s` to have weights that the loss tr"):
            train(*batch)


def test_images_of_several_sizes_in_a_batch(tiny_network, batch):
    if not TENSORFLOW:
        pytest.skip("ragged tensors are TensorFlow's")
    import tensorflow as tf

    distiller = Distiller(*networks(tiny_network)).compile("sgd")
    with pytest.raises(ValueError, match="have one size in a batch.*a ragged tensor"):
        distiller.fit(tf.RaggedTensor.from_tensor(batch[0]), batch[1])


def test_a_term_is_a_dataclass_of_its_settings():
    assert dataclasses.replace(KL(3.0), on="heads") == KL(3.0, on="heads")


def test_the_term_of_ones_own_in_the_docs(eager_trainers):
    page = pathlib.Path(__file__).parent.parent / "docs" / "methods.md"
    _, section = page.read_text().split("## A term of your own in 15 lines")
    code = section.split("```python")[1].split("```")[0]
    assert sum(map(bool, map(str.strip, code.split("terms = ")[0].splitlines()))) <= 15
    teacher, student = (
        models.create(name, 3, (8, 8, 3)) for name in ("wrn_10_1", "resnet8")
    )
    images = rng.normal(size=(4, 8, 8, 3)).astype("float32")
    known = {
        "hsakd": keras_hsakd,
        "keras": keras,
        "CrossEntropy": CrossEntropy,
        "KL": KL,
        "teacher": teacher,
        "student": student,
        "train": BatchOf(images, np.arange(4) % 3),
    }
    exec(code, known)
    assert "embedding_logits_pool" in known["distiller"].history.history
