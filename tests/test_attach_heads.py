import keras
import numpy as np
import pytest

from keras_hsakd import Distiller, attach_heads, find_taps, strip_heads
from keras_hsakd.heads import head_names

pytestmark = pytest.mark.core

layers = keras.layers


def small_cnn(activation=None, size=16):
    return keras.Sequential(
        [
            keras.Input((size, size, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="first"),
            layers.MaxPooling2D(),
            layers.Conv2D(12, 3, padding="same", activation="relu", name="second"),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 3, padding="same", activation="relu", name="third"),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.2),
            layers.Dense(5, activation=activation),
        ],
        name="small_cnn",
    )


def residual(size=16):
    """A stem of lower resolution, residual stages, a separate softmax."""
    images = keras.Input((size, size, 3))
    x = layers.Conv2D(8, 3, 2, padding="same", name="stem")(images)
    for width, stride in ((8, 1), (16, 2)):
        shortcut = layers.Conv2D(width, 1, stride, name=f"shortcut{width}")(x)
        x = layers.ZeroPadding2D()(x)
        x = layers.Conv2D(width, 3, stride, name=f"conv{width}_1")(x)
        x = layers.BatchNormalization(name=f"bn{width}")(x)
        x = layers.Conv2D(width, 3, padding="same", name=f"conv{width}_2")(x)
        x = keras.ops.relu(x + shortcut)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, layers.Softmax()(layers.Dense(5)(x)), name="residual")


def nested():
    """A frozen backbone as one layer, called in inference mode."""
    backbone = residual()
    backbone = keras.Model(backbone.input, backbone.layers[-4].output, name="backbone")
    backbone.trainable = False
    images = keras.Input((16, 16, 3))
    x = backbone(layers.Rescaling(1 / 127.5, -1)(images), training=False)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, layers.Dense(5)(x), name="nested")


MODELS = [
    (small_cnn, [(16, 16, 8), (8, 8, 12), (4, 4, 16)]),
    (lambda: small_cnn("softmax"), [(16, 16, 8), (8, 8, 12), (4, 4, 16)]),
    (residual, [(8, 8, 8), (4, 4, 16)]),
    (nested, [(8, 8, 8), (4, 4, 16)]),
]


@pytest.mark.parametrize(("make", "shapes"), MODELS)
@pytest.mark.parametrize("head", ["copy", "light"])
def test_heads_come_on_and_off(make, shapes, head):
    model = make()
    network = attach_heads(model, head=head)
    assert head_names(network) == [f"aux_{i}" for i in range(1, len(shapes) + 1)]
    assert [tap.shape for tap in find_taps(model, head=head)] == shapes
    size = model.input_shape[1]
    images = np.random.default_rng(0).random((2, size, size, 3), "float32") * 255
    outputs = network(images)
    plain = strip_heads(network)
    np.testing.assert_array_equal(plain(images), outputs["logits"])
    assert outputs["aux_1"].shape == (2, 20)
    expected = model(images)
    received = plain(images)
    if np.allclose(keras.ops.sum(expected, axis=-1), 1):
        received = keras.ops.softmax(received)
    np.testing.assert_allclose(received, expected, atol=1e-6)
    assert {id(v) for v in plain.weights} == {id(v) for v in model.weights}


def test_what_is_distilled_is_the_users_own_model():
    teacher = attach_heads(small_cnn())
    model = small_cnn("softmax")
    before = model.get_weights()
    distiller = Distiller(teacher, attach_heads(model)).compile("sgd")
    images = np.random.default_rng(0).random((4, 16, 16, 3), "float32")
    distiller.fit(images, np.arange(4), batch_size=4, verbose=0)
    after = model.get_weights()
    assert all((a != b).any() for a, b in zip(before, after, strict=True))


def test_saved_and_loaded(tmp_path):
    network = attach_heads(small_cnn("softmax"))
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    images = np.random.default_rng(0).random((2, 16, 16, 3), "float32")
    for name, value in network(images).items():
        np.testing.assert_array_equal(loaded(images)[name], value)


def test_named_taps():
    network = attach_heads(small_cnn(), taps=["third", "second"])
    assert head_names(network) == ["aux_1", "aux_2"]
    for taps, message in (
        (["secnd"], "did you mean 'second'"),
        ([], "to name layers of `small_cnn`"),
        (["dropout_x"], "to name layers"),
    ):
        with pytest.raises(ValueError, match=message):
            attach_heads(small_cnn(), taps=taps)
    with pytest.raises(ValueError, match="every path goes through.*conv16_1"):
        attach_heads(residual(), taps=["conv16_1"], head="copy")
    assert head_names(attach_heads(residual(), taps=["conv16_1"]))


def test_a_model_of_feature_maps_gets_a_classifier():
    model = residual()
    features = keras.Model(model.input, model.layers[-4].output, name="features")
    assert attach_heads(features, num_classes=7).output["logits"].shape == (None, 7)
    with pytest.raises(ValueError, match="give `num_classes`"):
        attach_heads(features)


def test_a_student_is_a_model_like_any_other():
    model = small_cnn()
    images = np.random.default_rng(0).random((2, 16, 16, 3), "float32")
    network = attach_heads(model)
    expected = keras.Model(model.inputs[0], model.get_layer("second").output)(images)
    for student in (network, strip_heads(network)):
        features = keras.Model(student.input, student.get_layer("second").output)
        np.testing.assert_array_equal(features(images), expected)
    again = attach_heads(
        keras.Sequential([features, layers.Flatten(), layers.Dense(7)])
    )
    assert again.output["aux_1"].shape == (None, 28)


def test_copies_take_along_what_is_not_trained():
    rng = np.random.default_rng(0)
    adapted = layers.Normalization(name="adapted")
    adapted.adapt(rng.normal(5, 3, (64, 8, 8, 8)))
    images = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", name="first")(images)
    x = adapted(layers.MaxPooling2D()(x))
    x = layers.MaxPooling2D()(layers.Conv2D(8, 3, padding="same", name="second")(x))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(x))
    model = keras.Model(images, layers.Dense(5)(x))
    network = attach_heads(model, taps=["first"], head="copy")
    (copy,) = (
        layer
        for layer in network.layers
        if isinstance(layer, layers.Normalization) and layer is not adapted
    )
    features = rng.normal(5, 3, (2, 8, 8, 8)).astype("float32")
    np.testing.assert_array_equal(copy(features), adapted(features))
    convolution = network.get_layer("aux_1_second")
    assert not np.array_equal(convolution.kernel, network.get_layer("second").kernel)


class Subclassed(keras.Model):
    def call(self, images):
        return images


class Unserializable(layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.convolution = layers.Conv2D(4, 3, padding="same")

    def call(self, x):
        return self.function(self.convolution(x))


def test_what_cannot_be_taken_apart():
    images = keras.Input((16, 16, 3))
    x = layers.MaxPooling2D()(layers.Conv2D(4, 3, padding="same")(images))
    x = layers.MaxPooling2D()(Unserializable(lambda x: x)(x))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x))
    unserializable = keras.Model(images, layers.Dense(5)(x))
    assert attach_heads(unserializable)
    inside = keras.Model(images, layers.Flatten()(Subclassed()(images)))
    open_size = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            layers.Conv2D(4, 3),
            layers.GlobalMaxPooling2D(),
            layers.Dense(5),
        ]
    )
    for model, message in (
        (Subclassed(), "cannot be taken apart"),
        (inside, "cannot be taken apart"),
        (open_size, "images of known size"),
        (keras.Sequential([layers.Dense(5)]), "begin it with `keras.Input"),
        (unserializable, "'unserializable' of type Unserializable"),
    ):
        with pytest.raises(ValueError, match=message):
            attach_heads(model, head="copy")
    with pytest.raises(ValueError, match="`head` to be one of .*'heavy'"):
        attach_heads(small_cnn(), head="heavy")
    with pytest.raises(ValueError, match=r"shape \(batch, 6\)"):
        attach_heads(small_cnn(), num_classes=6)
