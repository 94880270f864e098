"""Terms on features: their values and gradients, where they tap, what they refuse."""

import dataclasses

import keras
import numpy as np
import numpy_reference as reference
import pytest

import keras_hsakd
from keras_hsakd import Distiller, models, optimizers, strip_heads, terms
from keras_hsakd.ops import adaptive_average_pool
from keras_hsakd.terms import (
    KL,
    Attention,
    CrossEntropy,
    Hint,
    KerasDistillation,
    Relational,
    SimilarityPreserving,
)

core = pytest.mark.core  # those that also run on JAX
BACKEND = keras.backend.backend()
EAGER = {"run_eagerly": BACKEND == "tensorflow"}
rng = np.random.default_rng(0)
IMAGES = rng.random((6, 8, 8, 3), "float32")
LABELS = np.arange(6) % 3


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def gradient(function, x):
    """Returns the gradient of the sum of a function's values."""
    if BACKEND == "jax":
        import jax

        return jax.grad(lambda x: keras.ops.sum(function(x)))(x)
    import tensorflow as tf

    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(function(x))
    return tape.gradient(total, x)


def slope(function, x, size=1e-6):
    """Returns the same by central differences, entry by entry."""
    found = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = size
        found[index] = (function(x + step) - function(x - step)).sum() / (2 * size)
    return found


TERMS = {
    "hint": (Hint(), reference.hint, (3, 4, 4, 2), (3, 4, 4, 2)),
    "attention": (Attention(), reference.attention, (3, 4, 4, 5), (3, 4, 4, 2)),
    "attention of other sizes": (
        *(Attention(), reference.attention),
        *((3, 4, 4, 5), (3, 6, 6, 2)),
    ),
    "similarity": (
        *(SimilarityPreserving(), reference.similarity),
        *((4, 2, 2, 3), (4, 3, 3, 2)),
    ),
    "relational": (Relational(), reference.relational, (4, 6), (4, 3)),
}


@pytest.mark.parametrize("name", TERMS)
def test_values_and_gradients(name, float64):
    term, expected, teacher_shape, shape = TERMS[name]
    teacher, student = rng.normal(size=teacher_shape), rng.normal(size=shape)
    values = numpy(term.values(teacher, student, None))
    np.testing.assert_allclose(values, expected(teacher, student), rtol=1e-9)
    received = gradient(lambda x: term.values(teacher, x, None), student)
    by_difference = slope(lambda x: expected(teacher, x), student)
    np.testing.assert_allclose(received, by_difference, atol=1e-6)


@pytest.mark.parametrize(
    ("term", "teacher_shape", "shape", "expected"),
    [
        (Attention(), (4, 6, 6, 5), (4, 4, 4, 3), 0.0004783727733616101),
        (SimilarityPreserving(), (4, 6, 6, 5), (4, 4, 4, 3), 0.4545568250403418),
        (Relational(), (6, 5), (6, 3), 1.3164934660026524),
        (Hint(), (4, 6, 6, 5), (4, 6, 6, 5), 1.0028908000149332),
    ],
)
def test_values_of_the_benchmarks_code(term, teacher_shape, shape, expected, float64):
    """Of the losses in HobbitLong/RepDistiller, commit b84f547, run by PyTorch."""

    def wave(shape, frequency):
        return np.sin(frequency * np.arange(np.prod(shape))).reshape(shape)

    values = term.values(wave(teacher_shape, 0.7), wave(shape, 1.1), None)
    assert numpy(values).mean() == pytest.approx(expected, rel=1e-9)


@core
@pytest.mark.parametrize("name", TERMS)
def test_values_in_single_precision(name):
    term, expected, teacher_shape, shape = TERMS[name]
    teacher = rng.normal(size=teacher_shape).astype("float32")
    student = rng.normal(size=shape).astype("float32")
    values = numpy(term.values(teacher, student, None))
    np.testing.assert_allclose(values, expected(teacher, student), rtol=1e-4)


@core
@pytest.mark.parametrize("sizes", [(7, 3), (4, 4), (6, 4), (5, 1)])
def test_pooling_to_any_size(sizes):
    maps = rng.normal(size=(2, sizes[0], sizes[0], 3)).astype("float32")
    received = numpy(adaptive_average_pool(maps, (sizes[1], sizes[1])))
    np.testing.assert_allclose(received, reference.pooled(maps, sizes[1]), atol=1e-6)


@core
@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("rows", [1, 4])
def test_features_that_are_all_the_same_or_zero(name, rows):
    """No value and no gradient is NaN, and a single image has no relations."""
    term, _, teacher_shape, shape = TERMS[name]
    for value in (0.0, 2.0):
        teacher = np.full((rows, *teacher_shape[1:]), value, "float32")
        student = np.full((rows, *shape[1:]), value, "float32")
        assert np.abs(numpy(term.values(teacher, student, None))).max() < 1e-6
        received = gradient(lambda x, t=teacher: term.values(t, x, None), student)
        assert np.isfinite(numpy(received)).all()
    if term.compares_rows and rows == 1:
        other = rng.normal(size=shape).astype("float32")[:1]
        assert np.abs(numpy(term.values(teacher, other, None))).max() < 1e-6


@pytest.mark.skipif(BACKEND != "tensorflow", reason="replicas without images")
@pytest.mark.parametrize("name", TERMS)
def test_no_images(name):
    term, _, teacher_shape, shape = TERMS[name]
    none = [np.zeros((0, *x[1:]), "float32") for x in (teacher_shape, shape)]
    assert term.values(*none, None).shape == (0,)


@core
@pytest.mark.parametrize("term", [SimilarityPreserving(), Relational()])
def test_rows_that_do_not_count(term):
    """Others have the values that they have without them."""
    teacher, student = (rng.normal(size=(5, 3)).astype("float32") for _ in range(2))
    counts = np.array([1, 0, 1, 1, 0])
    chosen = counts > 0
    expected = term.values(teacher[chosen], student[chosen], None)
    received = term.values(teacher, student, None, counts=counts)
    np.testing.assert_allclose(numpy(received)[chosen], numpy(expected), rtol=1e-5)


# In a distiller.


@pytest.fixture
def pair(tiny_network):
    """Returns a teacher and a student without heads, of other widths."""

    def make(width=6):
        keras.utils.set_random_seed(1)
        teacher = strip_heads(tiny_network("t", width=width))
        return teacher, strip_heads(tiny_network("s"))

    return make


def distilled(pair, *terms, steps=3, weights=None, **options):
    """Returns a distiller after steps on one batch, and the logs of the last one."""
    distiller = Distiller(*pair, terms=[CrossEntropy(), *terms], **options)
    distiller.compile(optimizers.SGD(0.05, momentum=0.9), **EAGER)
    for _ in range(steps):
        logs = distiller.train_on_batch(IMAGES, LABELS, weights, return_dict=True)
    return distiller, logs


def features(network, name):
    return numpy(keras.Model(network.input, network.get_layer(name).output)(IMAGES))


@core
def test_a_term_on_features_is_one_metric(pair):
    teacher, student = pair()
    names = {n: [f"{n}_stage{i}_relu" for i in (1, 2)] for n in "ts"}
    student_model = keras.models.clone_model(student)
    student_model.set_weights(student.get_weights())
    maps = keras.Model(
        student_model.input,
        [student_model.get_layer(name).output for name in names["s"]],
    )(IMAGES, training=True)
    expected = [
        reference.attention(features(teacher, of_teacher), numpy(own)).mean()
        for of_teacher, own in zip(names["t"], maps, strict=True)
    ]
    _, logs = distilled((teacher, student), Attention(weight=10.0), steps=1)
    assert set(logs) == {"ce_loss", "attention", "loss"}
    assert logs["attention"] == pytest.approx(sum(expected), rel=1e-5)
    total = logs["ce_loss"] + 10 * logs["attention"]
    assert logs["loss"] == pytest.approx(total, rel=1e-5)


@core
@pytest.mark.parametrize(
    ("on", "expected"),
    [
        ("stages", ["s_stage1_relu", "s_stage2_relu"]),
        ("stage_1", ["s_stage1_relu"]),
        ("last_stage", ["s_stage2_relu"]),
        ("features", ["logits_pool"]),
        (["s_stage1_conv", "stage_2"], ["s_stage1_conv", "s_stage2_relu"]),
    ],
)
def test_where_a_term_taps(pair, on, expected):
    teacher, student = pair()
    if isinstance(on, list):  # the teacher's layer has another name
        on = ["stage_1", "stage_2"]
        expected = ["s_stage1_relu", "s_stage2_relu"]
    distiller = Distiller(teacher, student, terms=[SimilarityPreserving(on=on)])
    (part,) = distiller._parts
    classifier = distiller._learners[""].classifier
    layers = [
        keras_hsakd.graph.operation_of(classifier.tensor(tap.output)).name
        for tap in part.taps
    ]
    assert layers == expected
    assert part.metric == "similarity"


def test_stages_of_the_zoo_are_where_its_heads_are():
    """In wide ResNets before batch normalization and ReLU, as the benchmark has it."""
    for name, ends in (
        ("wrn_16_1", [f"stage{i}_block2_add" for i in (1, 2, 3)]),
        ("resnet8", [f"stage{i}_block1_relu2" for i in (1, 2, 3)]),
    ):
        network = keras_hsakd.classifier.Classifier(models.create(name, 10))
        found = [
            keras_hsakd.graph.operation_of(tensor).name
            for tensor in network.stages.values()
        ]
        assert found == ends


@core
def test_hint_is_the_loss_of_keras(pair):
    """Its own layers are left out: for them Keras runs the student a second time."""
    loss = keras.distillation.FeatureDistillation(loss="mse")
    place = {"on": "s_stage1_relu", "teacher": "t_stage1_relu", "weight": 0.7}
    logs, weights = [], []
    for term in (Hint(**place), KerasDistillation(loss, **place)):
        distiller, last = distilled(pair(width=4), term)
        logs.append(sorted(last.values()))
        weights.append(distiller.student.get_weights())
    np.testing.assert_allclose(logs[0], logs[1], rtol=1e-6)
    for received, expected in zip(*weights, strict=True):
        np.testing.assert_allclose(received, expected, atol=1e-7)


@core
def test_weights_of_images_and_relations(pair):
    """An image of weight 0 is as none; a batch's sum is divided by all its images."""
    values = {}
    for name, count, weights in (
        ("all", 4, None),
        ("with others", 6, np.array([1, 1, 1, 1, 0, 0], "float32")),
    ):
        teacher, student = pair()
        for network in (teacher, student):  # statistics of the batch would differ
            for layer in network.layers:
                if "bn" in layer.name:
                    layer.trainable = False
        distiller = Distiller(teacher, student, terms=[Relational()])
        distiller.compile("sgd", **EAGER)
        values[name] = distiller.train_on_batch(
            IMAGES[:count], LABELS[:count], weights, return_dict=True
        )["relational"]
    assert values["with others"] * 6 / 4 == pytest.approx(values["all"], rel=1e-4)


# The regressor.


@core
@pytest.mark.parametrize(
    ("shape", "student_shape"),
    [
        ((None, 4, 4, 5), (None, 4, 4, 2)),
        ((None, 4, 4, 5), (None, 8, 8, 2)),
        ((None, 8, 8, 5), (None, 4, 4, 2)),
        ((None, 5), (None, 2)),
    ],
)
def test_a_regressor_has_the_teachers_shape(shape, student_shape):
    layer = Hint().make_layer(shape, student_shape)
    layer.build(student_shape)
    assert layer.output_shape == shape
    other = Hint().make_layer(shape, student_shape)
    other.build(student_shape)
    for received, expected in zip(layer.weights, other.weights, strict=True):
        np.testing.assert_array_equal(numpy(received), numpy(expected))


@core
def test_a_regressor_learns_with_the_student_and_stays_behind(pair, tmp_path):
    teacher, student = pair()
    before = [w.copy() for w in student.get_weights()]
    distiller = Distiller(teacher, student, terms=[CrossEntropy(), Hint()])
    for received, expected in zip(student.get_weights(), before, strict=True):
        np.testing.assert_array_equal(received, expected)
    distiller, logs = distilled(pair(), Hint(weight=0.5))
    regressors = distiller._layers_of_terms
    assert len(regressors) == 2
    assert {id(v) for r in regressors for v in r.trainable_variables} <= {
        id(v) for v in distiller.trainable_variables
    }
    path = tmp_path / "trainer.keras"
    distiller.save(path)
    loaded = keras.saving.load_model(path)
    again = [
        each.train_on_batch(IMAGES, LABELS, return_dict=True)
        for each in (distiller, loaded)
    ]
    for name, value in again[0].items():
        assert again[1][name] == pytest.approx(value, rel=1e-6), name
    path = tmp_path / "student.keras"
    distiller.student.save(path)
    names = [w.path for w in keras.saving.load_model(path).weights]
    assert not any("regressor" in name for name in names)


def hint_of_large_features(teacher, student):
    """Returns the metric of features of 1000; the largest float16 is 65504."""
    maps = teacher.get_layer("t_stage1_relu").output
    scaled = keras.layers.Rescaling(1000.0, name="scaled")(maps)
    logits = keras.layers.Dense(3, dtype="float32")(keras.layers.Flatten()(scaled))
    teacher = keras.Model(teacher.input, logits)
    hint = Hint(on="s_stage1_relu", teacher="scaled")
    return distilled((teacher, student), hint, steps=1)[1]["hint"]


@core
def test_a_regressor_in_mixed_precision(pair):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        value = hint_of_large_features(*pair())
    finally:
        keras.config.set_dtype_policy("float32")
    assert 1e4 < value < np.inf


def test_a_regressor_of_single_precision_for_a_student_of_double(pair, float64):
    networks = pair()
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    assert 1e4 < hint_of_large_features(*networks) < np.inf


@core
def test_models_within_that_cannot_be_taken_apart_learn_from_logits(tiny_network):
    """Only terms on features need to look into a student."""

    @keras.saving.register_keras_serializable("test_features")
    class Opaque(keras.Model):
        def call(self, x):
            return 2 * x

    images = keras.Input((8, 8, 3))
    inner = tiny_network("inner")
    student = keras.Model(images, inner(Opaque()(images)), name="student")
    distiller = Distiller(tiny_network("t"), student).compile("sgd", **EAGER)
    logs = distiller.train_on_batch(IMAGES, LABELS, return_dict=True)
    assert np.isfinite(logs["kl_aux_2"])


# What is refused.


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (Hint(regressor=False), "same shape without a regressor.*of the teacher"),
        (Attention(on="features"), "feature maps of known sizes"),
        (Hint(on="stage_7"), "`on` to be one of .*'stage_1', 'stage_2'.*'stage_7'"),
        (Hint(on="stage_1", teacher="t_stage1_rel"), "did you mean 't_stage1_relu'"),
        (Hint(on="s_stage1_relu"), "a stage or a layer of `t`.*'s_stage1_relu'"),
        (Attention(on=["stages", "stage_1"]), "the same features once"),
        (
            Attention(on=["stage_1", "s_stage1_relu"], name="twice"),
            "a stage or a layer",
        ),
    ],
)
def test_features_that_are_not_there(pair, term, message):
    with pytest.raises(ValueError, match=message):
        Distiller(*pair(), terms=[CrossEntropy(), term])


def test_layers_that_are_called_twice(pair):
    teacher, student = pair()
    images = keras.Input((8, 8, 3))
    both = keras.layers.Add()([student(images), student(keras.layers.ReLU()(images))])
    student = keras.Model(images, both, name="both")
    with pytest.raises(ValueError, match="'s_stage1_relu', a layer that is called 2 "):
        Distiller(teacher, student, terms=[Attention(on="s_stage1_relu")])


def test_maps_of_unknown_size():
    """Of which the terms on relations would make vectors."""
    networks = []
    for _ in range(2):
        images = keras.Input((None, None, 3))
        x = keras.layers.Conv2D(4, 3, name="maps")(images)
        x = keras.layers.GlobalAveragePooling2D()(x)
        networks.append(keras.Model(images, keras.layers.Dense(3)(x)))
    with pytest.raises(ValueError, match=r"of known sizes.*\(None, None, None, 4\)"):
        Distiller(*networks, terms=[SimilarityPreserving(on="maps")])


@keras.saving.register_keras_serializable("test_features")
@dataclasses.dataclass(repr=False)
class Sparsity(terms.Term):
    """A term on features without a teacher."""

    needs_teacher = False

    def values(self, teacher, student, labels):
        return keras.ops.mean(keras.ops.abs(student), axis=(1, 2, 3))


@core
def test_what_a_teacher_is_not_asked_for(pair):
    """Stages, by a term that needs no teacher or names the teacher's layer."""
    _, student = pair()
    images = keras.Input((8, 8, 3))
    x = keras.layers.Flatten(name="flat")(images)
    teacher = keras.Model(images, keras.layers.Dense(3)(x), name="flat")
    _, logs = distilled(
        (teacher, student), Sparsity(on="stage_1", name="size"), steps=1
    )
    assert set(logs) == {"ce_loss", "size", "loss"}
    term = SimilarityPreserving(on="last_stage", teacher="flat")
    assert "similarity" in distilled((teacher, student), term, steps=1)[1]


@core
def test_the_name_of_a_term_on_features_and_logits(pair):
    term = Hint(on=["stage_1", "logits"], name="near")
    _, logs = distilled(pair(width=4), term, steps=1)
    assert set(logs) == {"ce_loss", "near", "near_main", "loss"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Relational(angle=-1.0), "`angle` of Relational.*0 or more"),
        (lambda: terms.of_method("fitnet", heads=True), "on logits to learn from head"),
        (lambda: Hint(on="stages", teacher="x"), "to be one head, one stage"),
    ],
)
def test_settings_that_are_none(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_methods_have_the_settings_of_the_benchmark():
    assert [repr(terms.of_method(name)[1]) for name in terms.METHODS][4:] == [
        "Hint(regressor=True, weight=100.0, on='stage_2')",
        "Attention(weight=1000.0)",
        "SimilarityPreserving(weight=3000.0, on='last_stage')",
        "Relational()",
    ]
    (term,) = terms.of_method("relational", settings={"angle": 5.0})[1:]
    assert terms.parse(repr(term)) == term


def test_all_methods_train(pair):
    for name in ("fitnet", "attention", "similarity", "relational"):
        _, logs = distilled(pair(), *terms.of_method(name)[1:], KL(4.0), steps=1)
        assert np.isfinite(logs["loss"]), name
