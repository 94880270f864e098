import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_hsakd import data, export, models, strip_heads
from keras_hsakd.export import tensorflow

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), "uint8")


@pytest.fixture
def student():
    return models.create("resnet8", 10, (16, 16, 3))


def serve(path, images=IMAGES):
    signature = tf.saved_model.load(path).signatures["serving_default"]
    return {k: v.numpy() for k, v in signature(images=tf.constant(images)).items()}


def test_raw_images_in_named_predictions_out(student, tmp_path):
    path = str(tmp_path / "serving" / "student" / "1")
    info = data.info("cifar100")
    assert export.saved_model(student, path, info.preprocessing()) == path
    outputs = serve(path)
    normalised = (IMAGES / 255.0 - np.array(info.mean)) / np.array(info.std)
    logits = student.predict(normalised.astype("float32"), verbose=0)["logits"]
    assert set(outputs) == {"logits", "probabilities"}
    # float32 normalisation in another order
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-4, atol=1e-5)
    powers = np.exp(logits.astype("float64"))
    np.testing.assert_allclose(
        outputs["probabilities"], powers / powers.sum(1, keepdims=True), rtol=1e-4
    )
    variables = tf.saved_model.load(path).variables
    assert len(variables) == len(strip_heads(student).variables)
    assert os.listdir(tmp_path / "serving" / "student") == ["1"]


def test_any_batch_size_and_named_input(student, tmp_path):
    path = export.saved_model(student, tmp_path / "1")
    assert serve(path, IMAGES[:1])["logits"].shape == (1, 10)
    signature = tf.saved_model.load(path).signatures["serving_default"]
    (name, spec), *others = signature.structured_input_signature[1].items()
    assert (name, spec.dtype, others) == ("images", tf.uint8, [])
    assert spec.shape.as_list() == [None, 16, 16, 3]


def test_without_heads_and_without_preprocessing(student, tmp_path):
    plain = strip_heads(student)
    path = export.saved_model(plain, tmp_path / "1")
    expected = plain.predict(IMAGES.astype("float32"), verbose=0)
    np.testing.assert_allclose(serve(path)["logits"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_student_of_mixed_precision(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    student = models.create("resnet8", 10, (16, 16, 3))
    preprocessing = data.info("digits").preprocessing()
    outputs = serve(export.saved_model(student, tmp_path / "1", preprocessing))
    assert outputs["probabilities"].dtype == "float32"


def test_an_existing_folder_is_kept(student, tmp_path):
    (tmp_path / "1").mkdir()
    with pytest.raises(FileExistsError, match="Expected `path`.*Received: '.*1'"):
        export.saved_model(student, tmp_path / "1")


def test_nothing_is_left_when_the_export_fails(student, tmp_path, monkeypatch):
    zeros = {"logits": np.zeros((2, 10)), "probabilities": np.zeros((2, 10))}
    wrong = tensorflow.SAVED_MODEL._replace(load=lambda path: lambda images: zeros)
    monkeypatch.setattr(tensorflow, "SAVED_MODEL", wrong)
    with pytest.raises(RuntimeError, match="Expected the exported model to predict"):
        export.saved_model(student, tmp_path / "1")
    assert os.listdir(tmp_path) == []


def test_a_sequential_student(tmp_path):
    layers = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    student = keras.Sequential([keras.Input((16, 16, 3)), *layers])
    outputs = serve(export.saved_model(student, tmp_path / "1"))
    np.testing.assert_allclose(
        outputs["logits"], student(IMAGES.astype("float32")), rtol=1e-4, atol=1e-4
    )


def test_what_is_not_an_image_classifier(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="Expected `student` to map images"):
        export.saved_model(model, tmp_path / "1")
