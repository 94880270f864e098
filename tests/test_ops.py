import keras
import numpy as np
import numpy_reference as reference
import pytest

from keras_hsakd import ops

pytestmark = pytest.mark.core
rng = np.random.default_rng(0)


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def test_joint_labels():
    labels = np.array([2, 0, 5], "int32")
    np.testing.assert_array_equal(
        numpy(ops.joint_labels(labels)), reference.joint_labels(labels)
    )


def test_images_without_a_label_have_no_joint_label():
    joint = numpy(ops.joint_labels(np.array([-1, 2])))
    assert joint.tolist() == [-1, -1, -1, -1, 8, 9, 10, 11]


def test_joint_labels_of_narrow_types_do_not_overflow():
    labels = np.array([70, 255], "uint8")
    np.testing.assert_array_equal(
        numpy(ops.joint_labels(labels)), reference.joint_labels(labels.astype(int))
    )


def test_joint_probabilities_of_one_hot_labels_are_one_hot_joint_labels():
    labels = np.array([2, 0, 1])
    joint = numpy(ops.joint_labels(np.eye(3, dtype="float32")[labels]))
    np.testing.assert_array_equal(joint, np.eye(12)[reference.joint_labels(labels)])


def test_joint_probabilities_of_mixed_labels():
    joint = numpy(ops.joint_labels(np.array([[0.25, 0.75]], "float32")))
    assert joint.shape == (4, 8)
    np.testing.assert_array_equal(joint[1], [0, 0.25, 0, 0, 0, 0.75, 0, 0])


def test_class_logits_sum_over_rotations():
    joint = rng.normal(size=(6, 12)).astype("float32")
    expected = np.stack([joint[:, 4 * c : 4 * c + 4].sum(axis=1) for c in range(3)], 1)
    np.testing.assert_allclose(numpy(ops.class_logits(joint)), expected, rtol=1e-5)


@pytest.mark.parametrize("one_hot", [False, True])
def test_head_accuracies(one_hot):
    logits = rng.normal(size=(50, 6)).astype("float32")
    by_class = np.stack([logits[:, 2 * c : 2 * c + 2].sum(axis=1) for c in range(3)], 1)
    labels = np.where(np.arange(50) % 2, logits.argmax(1), np.arange(50) % 6)
    hits = ops.head_accuracies(
        np.eye(6, dtype="float32")[labels] if one_hot else labels, logits, num_views=2
    )
    np.testing.assert_array_equal(numpy(hits["joint"]), logits.argmax(1) == labels)
    expected = by_class.argmax(axis=1) == labels // 2
    np.testing.assert_array_equal(numpy(hits["class"]), expected)
    # The class by the sums is not always that of the largest joint logit.
    assert np.any(expected != (logits.argmax(axis=1) // 2 == labels // 2))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_kl_divergence(temperature):
    teacher, student = rng.normal(scale=5, size=(2, 7, 10)).astype("float32")
    np.testing.assert_allclose(
        numpy(ops.temperature_kl_divergence(teacher, student, temperature)),
        reference.kl_divergence(teacher, student, temperature),
        rtol=1e-4,  # float32 through exp and log
    )


def test_temperature_kl_divergence_of_extreme_logits_is_finite():
    teacher = np.array([[1e4, -1e4]], "float32")
    value = numpy(ops.temperature_kl_divergence(teacher, -teacher, 1.0))
    np.testing.assert_allclose(value, [2e4])
    assert numpy(ops.temperature_kl_divergence(teacher, teacher, 1.0)) == 0


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (0.5, 2.0), (1.0, 0.0)])
def test_decoupled_divergence(temperature, alpha, beta):
    teacher, student = rng.normal(scale=5, size=(2, 7, 10)).astype("float32")
    labels = np.array([0, 9, 3, -1, 3, 5, -1])
    settings = (temperature, alpha, beta)
    values = ops.decoupled_divergence(teacher, student, labels, *settings)
    expected = reference.decoupled_divergence(teacher, student, labels, *settings)
    np.testing.assert_allclose(numpy(values), expected, rtol=2e-4, atol=1e-5)
    hard = np.where(labels < 0, teacher.argmax(axis=1), labels)
    probabilities = 0.6 * np.eye(10, dtype="float32")[hard] + 0.04
    soft = ops.decoupled_divergence(teacher, student, probabilities, *settings)
    np.testing.assert_array_equal(numpy(soft), numpy(values))


def test_decoupled_divergence_is_the_temperature_kl_divergence_of_its_parts():
    teacher, student = rng.normal(size=(2, 7, 10))
    labels = np.arange(7)
    rest = 1 - reference.softmax(teacher, 3.0)[np.arange(7), labels]
    both, about_right = (
        numpy(ops.decoupled_divergence(teacher, student, labels, 3.0, 1.0, beta))
        for beta in (1.0, 0.0)
    )
    expected = reference.kl_divergence(teacher, student, 3.0)
    total = about_right + rest * (both - about_right)
    np.testing.assert_allclose(total, expected, rtol=1e-4)


def test_decoupled_divergence_of_extreme_logits_is_finite():
    teacher = np.array([[1e4, -1e4, 0.0]], "float32")
    values = ops.decoupled_divergence(teacher, -teacher, np.array([0]), 1.0)
    np.testing.assert_allclose(numpy(values), [2e4 + 8e4])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_standardized_divergence(temperature):
    teacher, student = rng.normal(scale=5, size=(2, 7, 10)).astype("float32")
    values = numpy(ops.standardized_divergence(teacher, student, temperature))
    expected = reference.standardized_divergence(teacher, student, temperature)
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    other = ops.standardized_divergence(teacher, 0.1 * student + 7, temperature)
    np.testing.assert_allclose(numpy(other), expected, rtol=1e-3)
