import keras
import numpy as np
import numpy_reference as reference
import pytest

from keras_hsakd import losses, ops

pytestmark = pytest.mark.core
rng = np.random.default_rng(0)
TEACHER, STUDENT = rng.normal(size=(2, 6, 5)).astype("float32")


def test_mean_over_the_batch():
    value = losses.TemperatureKLDivergence(2.0)(TEACHER, STUDENT)
    expected = reference.kl_divergence(TEACHER, STUDENT, 2.0).mean()
    np.testing.assert_allclose(float(value), expected, rtol=1e-5)


def test_sample_weight():
    weights = np.arange(6.0)
    loss = losses.TemperatureKLDivergence(reduction=None)
    np.testing.assert_allclose(
        loss(TEACHER, STUDENT, weights),
        weights * reference.kl_divergence(TEACHER, STUDENT, 3.0),
        rtol=1e-5,
    )


def test_config_round_trip():
    loss = losses.TemperatureKLDivergence(4.0, reduction="sum", name="kl")
    config = keras.saving.serialize_keras_object(loss)
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == loss.get_config()
    assert float(copy(TEACHER, STUDENT)) == float(loss(TEACHER, STUDENT))


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="Expected `temperature`.*> 0. Received"):
        losses.TemperatureKLDivergence(temperature)


def test_named_divergences():
    """All of them, of logits alone and with labels."""
    labels = np.arange(6) % 5
    expected = {
        "kl": reference.kl_divergence(TEACHER, STUDENT, 2.0),
        "dkd": reference.decoupled_divergence(TEACHER, STUDENT, labels, 2.0, 1, 8),
        "standardized": reference.standardized_divergence(TEACHER, STUDENT, 2.0),
    }
    assert losses.names() == list(expected)
    for name, values in expected.items():
        received = losses.get(name, 2.0)(TEACHER, STUDENT, labels)
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(received), values, rtol=1e-5
        )


def test_a_function_is_a_divergence_as_it_is():
    def divergence(teacher, student, labels):
        return labels

    assert losses.get(divergence) is divergence


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="uses a gradient tape"
)
def test_equal_logits_have_no_gradient_when_standardized():
    import tensorflow as tf

    teacher = np.array([[2.0, 1.0, 0.0], [1.0, 1.0, 1.0]], "float32")
    student = tf.Variable([[0.5, 0.5, 0.5], [0.0, 1.0, 0.0]])
    with tf.GradientTape() as tape:
        rows = ops.standardized_divergence(teacher, student)
    gradient = tape.gradient(rows, student).numpy()
    np.testing.assert_array_equal(gradient[0], 0)
    assert np.isfinite(rows).all() and 0 < np.abs(gradient[1]).max() < 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("kll",), r"one of .*'standardized'\] or .*'kll' \(did you mean 'kl'"),
        ((3,), "Expected `divergence` .*Received: divergence=3"),
        # It would take the labels for weights.
        ((losses.TemperatureKLDivergence(),), "Expected `divergence` .*Received: "),
        (("kl", 0), "Expected `temperature` to be a number > 0. Received: temp"),
        (("kl", "3"), "Expected `temperature` to be a number > 0. Received: .*'3'"),
    ],
)
def test_what_is_no_divergence(arguments, message):
    with pytest.raises(ValueError, match=message):
        losses.get(*arguments)
