"""Several networks as one teacher: its targets, its cache, what it refuses."""

import json

import keras
import numpy as np
import pytest

import keras_hsakd
from keras_hsakd import Distiller, Ensemble, TeacherCache, data, optimizers, strip_heads
from keras_hsakd.terms import CrossEntropy, Hint

core = pytest.mark.core  # those that also run on JAX
EAGER = {"run_eagerly": keras.backend.backend() == "tensorflow"}
rng = np.random.default_rng(0)
IMAGES = rng.random((6, 8, 8, 3), "float32")
LABELS = np.arange(6) % 3


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def after_a_step(teacher, student, **options):
    distiller = Distiller(teacher, student, **options)
    distiller.compile(optimizers.SGD(0.05), **EAGER)
    logs = distiller.train_on_batch(IMAGES, LABELS, return_dict=True)
    return distiller, logs


@core
def test_two_equal_teachers_are_one(tiny_network):
    results = []
    for count in (1, 2):
        keras.utils.set_random_seed(0)
        teacher, student = tiny_network("t"), tiny_network("s")
        teachers = teacher if count == 1 else [teacher, teacher]
        distiller, logs = after_a_step(teachers, student)
        results.append((logs, distiller.student.get_weights()))
    (expected, weights), (logs, own) = results
    for name, value in expected.items():
        assert logs[name] == pytest.approx(value, rel=1e-6), name
    for received, wanted in zip(own, weights, strict=True):
        np.testing.assert_allclose(received, wanted, atol=1e-7)


@core
def test_targets_are_weighted_means(tiny_network):
    """Of heads, too: where a network has more, of the last ones."""
    first, second = tiny_network("a"), tiny_network("b", heads=3)
    outputs = Ensemble([first, second], weights=[3, 1])(IMAGES)
    one, other = first(IMAGES), second(IMAGES)
    for name, of_other in (
        ("logits", "logits"),
        ("aux_1", "aux_2"),
        ("aux_2", "aux_3"),
    ):
        expected = 0.75 * numpy(one[name]) + 0.25 * numpy(other[of_other])
        np.testing.assert_allclose(numpy(outputs[name]), expected, atol=1e-6)
    assert set(outputs) == {"logits", "aux_1", "aux_2"}


def test_the_teachers_stay_as_they_are_and_are_saved(tiny_network, tmp_path):
    teachers = [tiny_network("a"), tiny_network("b")]
    before = [w for network in teachers for w in network.get_weights()]
    ensemble = Ensemble(teachers, weights=[2, 1])
    distiller, _ = after_a_step(ensemble, tiny_network("s"))
    after = [w for network in teachers for w in network.get_weights()]
    for received, expected in zip(after, before, strict=True):
        np.testing.assert_array_equal(received, expected)
    path = tmp_path / "trainer.keras"
    distiller.save(path)
    loaded = keras.saving.load_model(path)
    assert loaded.frozen_digest() == distiller.frozen_digest()
    again = [
        each.train_on_batch(IMAGES, LABELS, return_dict=True)
        for each in (distiller, loaded)
    ]
    for name, value in again[0].items():
        assert again[1][name] == pytest.approx(value, rel=1e-6), name


def test_features_are_of_the_network_that_is_named_or_the_first(tiny_network):
    teachers = [strip_heads(tiny_network(name, width=6)) for name in "ab"]
    terms = [CrossEntropy(), Hint(on="stage_1")]

    def hint(teacher):
        keras.utils.set_random_seed(0)
        student = strip_heads(tiny_network("s"))
        return after_a_step(teacher, student, terms=terms)[1]["hint"]

    for ensemble, expected in (
        (Ensemble(teachers, features="b"), teachers[1]),
        (teachers, teachers[0]),
        ([teachers[0], teachers[0]], teachers[0]),  # of one name
    ):
        assert hint(ensemble) == pytest.approx(hint(expected), rel=1e-6)


def test_networks_that_differ(tiny_network, float64):
    """In precision and preprocessing: a network that no term needs does not run."""
    double = tiny_network("double")
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("mixed_bfloat16")
    half = tiny_network("half")
    keras.config.set_dtype_policy("float32")
    images = keras.Input((8, 8, 3))
    scaled = tiny_network("inner")(keras.layers.Rescaling(2.0)(images))
    scaled = keras.Model(images, scaled, name="scaled")
    assert Ensemble([half, double])(IMAGES)["logits"].dtype == "float64"
    _, logs = after_a_step([half, scaled, double], tiny_network("s"))
    assert np.isfinite(logs["loss"])


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="needs tf.data")
def test_a_cache_of_several(tiny_network, tmp_path):
    """A student learns the same from it, as far as half precision goes."""
    train, _ = data.load("digits", image_size=8, limit=16, batch_size=8)
    teachers = [tiny_network(name, num_classes=10) for name in "ab"]
    path = tmp_path / "cache"
    cache = TeacherCache.write(path, teachers, train, variants=1, verbose=0)
    header = json.loads((path / "header.json").read_text())
    assert header["teacher"]["name"] == "a+b"
    assert cache.check(teachers, train)["logits"].mean < 1e-5
    with pytest.raises(ValueError, match="Expected the teacher of the cache"):
        cache.check(Ensemble(teachers, weights=[2, 1]), train)
    losses = []
    for teacher in (teachers, cache):
        keras.utils.set_random_seed(0)
        distiller = Distiller(teacher, tiny_network("s", num_classes=10))
        distiller.compile("sgd")
        losses.append(distiller.fit(train, verbose=0).history["loss"][0])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    with pytest.raises(ValueError, match="which have no features"):
        student = strip_heads(tiny_network("s", num_classes=10))
        plain = strip_heads(teachers[0])
        plain = TeacherCache.write(tmp_path / "plain", plain, train, 1, verbose=0)
        Distiller(plain, student, terms=[CrossEntropy(), Hint()])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tiny: Ensemble([tiny("a")]), "a list of two or more"),
        (lambda tiny: Ensemble([tiny("a"), tiny("b", num_classes=4)]), "of classes.*4"),
        (lambda tiny: Ensemble([tiny("a"), tiny("b", num_views=2)]), "number of views"),
        (lambda tiny: Ensemble([tiny("a"), strip_heads(tiny("b"))]), "number of views"),
        (lambda tiny: Ensemble([tiny("a"), tiny("b", size=16)]), "of the same shape"),
        (lambda tiny: Ensemble([tiny("a"), tiny("b")], [1]), "2 numbers above 0"),
        (lambda tiny: Ensemble([tiny("a"), tiny("b")], [1, 0]), "2 numbers above 0"),
        (
            lambda tiny: Ensemble([tiny("a"), tiny("b")], features="c"),
            "name of exactly one",
        ),
        (
            lambda tiny: Ensemble([tiny("a"), tiny("a")], features="a"),
            "exactly.*'a', 'a'",
        ),
        (lambda tiny: Distiller([tiny("a"), s := tiny("s")], s), "share no variables"),
    ],
)
def test_networks_that_do_not_go_together(tiny_network, make, message):
    with pytest.raises(ValueError, match=message):
        make(tiny_network)


def test_the_public_name():
    assert keras_hsakd.Ensemble is Ensemble
