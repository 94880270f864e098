import keras
import numpy as np
import numpy_reference as reference
import pytest

from keras_hsakd import ops

pytestmark = pytest.mark.core
rng = np.random.default_rng(0)


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def test_rotated_views_are_numpys_rot90_image_by_image():
    images = rng.normal(size=(3, 5, 5, 2)).astype("float32")
    views = numpy(ops.rotated_views(images))
    np.testing.assert_array_equal(views, reference.rotated_views(images))
    np.testing.assert_array_equal(numpy(ops.untransformed(views)), images)


def test_rotated_views_keep_the_dtype():
    images = np.zeros((1, 4, 4, 3), "uint8")
    assert numpy(ops.rotated_views(images)).dtype == "uint8"


def test_joint_labels():
    labels = np.array([2, 0, 5], "int32")
    np.testing.assert_array_equal(
        numpy(ops.joint_labels(labels)), reference.joint_labels(labels)
    )


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
