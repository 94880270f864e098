import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest

from keras_hsakd import layers


@pytest.fixture(autouse=True)
def clean_keras():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def float64():
    """Runs a test in double precision, where the backend has it."""
    if keras.backend.backend() == "jax":
        pytest.skip("Keras promotes to float32 at most on JAX")
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")


@pytest.fixture
def tiny_network():
    """Returns a maker of the smallest networks with two heads, by hand."""

    def make(
        name="tiny", num_classes=3, size=8, width=4, heads=2, batch_norm=True, dropout=0
    ):
        def block(x, stride, name):
            x = keras.layers.Conv2D(
                width, 3, strides=stride, padding="same", name=f"{name}_conv"
            )(x)
            if batch_norm:
                x = layers.BatchNormalization(name=f"{name}_bn")(x)
            if dropout:
                x = keras.layers.Dropout(dropout, name=f"{name}_dropout")(x)
            return keras.layers.ReLU(name=f"{name}_relu")(x)

        def classify(x, units, name):
            x = keras.layers.GlobalAveragePooling2D(name=f"{name}_pool")(x)
            dtype = keras.backend.result_type(keras.config.floatx(), "float32")
            return keras.layers.Dense(units, dtype=dtype, name=name)(x)

        images = keras.Input((size, size, 3), name="images")
        x = images
        outputs = {}
        for i in range(1, heads + 1):
            x = block(x, 1 if i == 1 else 2, f"{name}_stage{i}")
            head = block(x, 1, f"{name}_head{i}")
            outputs[f"aux_{i}"] = classify(head, 4 * num_classes, f"aux_{i}")
        outputs["logits"] = classify(x, num_classes, "logits")
        return keras.Model(images, outputs, name=name)

    return make


@pytest.fixture
def batch():
    """Returns 12 images of 3 classes, and their labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(12, dtype="int32") % 3
    images = rng.normal(size=(12, 8, 8, 3)) + labels[:, None, None, None]
    return images.astype("float32"), labels
