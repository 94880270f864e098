import keras
import numpy as np
import pytest

from keras_hsakd import (
    Distiller,
    TeacherTrainer,
    attach_heads,
    find_taps,
    models,
    strip_heads,
    views,
)
from keras_hsakd.attach import with_new_classifier
from keras_hsakd.heads import head_names

TENSORFLOW = keras.backend.backend() == "tensorflow"
EAGER = {"run_eagerly": TENSORFLOW}

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
    distiller = Distiller(teacher, attach_heads(model)).compile("sgd", **EAGER)
    images = np.random.default_rng(0).random((4, 16, 16, 3), "float32")
    distiller.fit(images, np.arange(4), batch_size=4, verbose=0)
    after = model.get_weights()
    assert all((a != b).any() for a, b in zip(before, after, strict=True))


@pytest.mark.core
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


def classifier_of(*end, middle=()):
    """Returns a model of two stages, with `end` from its pooled features on."""
    images = x = keras.Input((12, 12, 3))
    x = layers.Conv2D(4, 3, padding="same", name="first")(x)
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="second")(x)
    for layer in (*middle, layers.Conv2D(6, 3, name="third")):
        x = layer(x)
    x = layers.GlobalAveragePooling2D()(x)
    for layer in end or [layers.Dense(3, name="top")]:
        x = layer(x)
    return keras.Model(images, x)


def copied(model):
    return attach_heads(model, taps=["second"], head="copy")


class SoftCap(layers.Layer):
    """A layer without a configuration, and without `trainable`."""

    def __init__(self, cap):
        super().__init__()
        self.cap = cap

    def call(self, x):
        return self.cap * keras.ops.tanh(x / self.cap)


class Temperature(layers.Layer):
    def __init__(self, name=None):
        super().__init__(name=name)

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x):
        return self.scale * x


# What follows the class weights: a function of NumPy, where there is one.
ENDS = {
    "scale": ([layers.Rescaling(30.0)], lambda z: 30 * z),
    "cap": ([SoftCap(2.0)], lambda z: 2 * np.tanh(z / 2)),
    "operation": ([lambda z: keras.ops.tanh(z / 5) * 5], lambda z: 5 * np.tanh(z / 5)),
    "learned": ([Temperature()], lambda z: z),
    "log_softmax": ([keras.ops.log_softmax], None),
    "normalized": ([layers.BatchNormalization()], None),
    "reshape": ([lambda z: keras.ops.reshape(z, (-1, 3))], lambda z: z),
    "Reshape": ([layers.Reshape((1, 3)), layers.Reshape((3,))], lambda z: z),
    "softmax": ([layers.Rescaling(4.0), layers.Softmax()], lambda z: 4 * z),
}


@pytest.mark.parametrize("name", ENDS)
def test_heads_have_what_follows_the_class_weights(name):
    follows, expected = ENDS[name]
    model = classifier_of(layers.Dense(3, name="top"), *follows)
    images = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype("float32")
    for network, products in (
        (copied(model), "aux_1"),
        (attach_heads(model, taps=["second"]), "aux_1"),
        (with_new_classifier(model, 12), "logits"),
    ):
        output = network.outputs[0] if products == "logits" else network.output["aux_1"]
        before = network.get_layer(products).output
        values = keras.Model(network.input, [before, output])(images)
        given, received = map(keras.ops.convert_to_numpy, values)
        assert received.shape == given.shape == (2, 12)
        if expected:
            np.testing.assert_allclose(received, expected(given), rtol=1e-5, atol=1e-6)
        shared = {id(v) for v in model.weights} & {
            id(v) for x in network.layers if "aux_1" in x.name for v in x.weights
        }
        assert not shared


def test_an_activation_that_is_no_softmax_is_in_the_heads():
    images = 100 * np.ones((2, 12, 12, 3), "float32")

    def capped(z):
        return 2 * keras.ops.tanh(z / 2)

    for activation, most in (("tanh", 1), (capped, 2)):
        network = copied(classifier_of(layers.Dense(3, activation)))
        assert np.abs(network(images)["aux_1"]).max() <= most


def test_a_scale_of_each_class_is_refused_by_name():
    per_class = layers.Rescaling([1.0, 2.0, 3.0], name="calibration")
    model = classifier_of(layers.Dense(3, name="top"), per_class)
    for head in ("copy", "light"):
        with pytest.raises(ValueError, match="follows 'top' to take 12.*'calibration'"):
            attach_heads(model, head=head)


def test_heads_of_a_cosine_classifier_learn():
    unit = {"kernel_constraint": "unit_norm", "use_bias": False}
    end = (layers.UnitNormalization(), layers.Dense(3, **unit), layers.Rescaling(30.0))
    network = copied(classifier_of(*end))
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(6, 12, 12, 3)).astype("float32"), np.arange(6) % 3
    trainer = TeacherTrainer(network).compile(keras.optimizers.Adam(0.02))
    trainer.fit(images, labels, epochs=30, verbose=0)
    assert (
        trainer.evaluate(images, labels, heads=True, verbose=0, return_dict=True)[
            "aux_1_joint_accuracy"
        ]
        > 2 / 12
    )


def test_copies_of_layers_with_lora_are_whole():
    convolution = layers.Conv2D(4, 3, padding="same", name="adapted")
    model = classifier_of(middle=[convolution])
    for name in ("adapted", "top"):
        model.get_layer(name).enable_lora(2)
    network = copied(model)
    heads = [v for v in network.variables if v.path.startswith("aux_")]
    assert not [v.path for v in heads if "lora" in v.path]
    frozen = [v.path for v in heads if not v.trainable]
    assert not frozen
    new = with_new_classifier(model, 5).get_layer("logits")
    assert [v.trainable for v in new.variables] == [True, True]


def test_copies_of_frozen_layers_learn_also_within_others():
    inner = layers.TimeDistributed(layers.Dense(4), name="rows")
    model = classifier_of(
        middle=[layers.Reshape((36, 4)), inner, layers.Reshape((6, 6, 4))]
    )
    model.trainable = False
    network = copied(model)
    copy = network.get_layer("aux_1_rows")
    assert len(copy.trainable_variables) == 2


def test_quantized_layers_are_refused_by_name():
    quantized = classifier_of(middle=[layers.Dense(4, name="inner")])
    quantized.get_layer("inner").quantize("int8")
    with pytest.raises(ValueError, match="'inner'.*is quantized"):
        copied(quantized)
    assert attach_heads(quantized)  # which copy nothing of it
    for activation in (None, "softmax"):
        model = classifier_of(layers.Dense(3, activation=activation, name="top"))
        model.get_layer("top").quantize("int8")
        with pytest.raises(ValueError, match="'top', quantized to int8"):
            attach_heads(model)
        if activation is None:  # to be exported, for example
            assert strip_heads(model).output_shape == (None, 3)


class Plain(layers.Layer):
    """A layer that takes nothing but its own argument."""

    def __init__(self, units):
        super().__init__()
        self.inner = layers.Dense(units)

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        return {"units": self.inner.units}


@pytest.mark.parametrize(
    "layer", [layers.SpatialDropout2D(0.5), Temperature(), Plain(4)]
)
def test_layers_without_arguments_of_all_layers_are_copied(layer):
    network = copied(classifier_of(middle=[layer]))
    copy = network.get_layer(f"aux_1_{layer.name}")
    assert type(copy) is type(layer)
    assert copy is not layer
    assert len(copy.trainable_variables) == len(layer.trainable_variables)


@pytest.fixture
def channels_first():
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


REFUSED = "channels last.*Received: .*'channels_first'"


def test_a_setting_of_channels_first_is_refused(channels_first):
    last = {"data_format": "channels_last"}
    images = keras.Input((12, 12, 3))
    x = layers.Conv2D(4, 3, **last)(images)
    x = layers.GlobalAveragePooling2D(**last)(x)
    model = keras.Model(images, layers.Dense(3)(x))
    for use in (
        lambda: models.create("resnet8", 3, (3, 12, 12)),
        lambda: models.wrn(10, 1, num_classes=3),
        lambda: attach_heads(model),
        lambda: find_taps(model),
        lambda: views.get("half_turns"),
        lambda: views.get("padded_rotations"),
    ):
        with pytest.raises(ValueError, match=REFUSED):
            use()


def test_layers_with_channels_first_are_refused():
    first = {"data_format": "channels_first"}
    images = keras.Input((3, 12, 12))
    x = layers.Conv2D(4, 3, name="first", **first)(images)
    x = layers.GlobalAveragePooling2D(**first)(x)
    model = keras.Model(images, layers.Dense(3)(x))
    inside = keras.Model(images, model(images))
    turned = keras.ops.conv(
        keras.ops.transpose(images, (0, 2, 3, 1)),
        np.ones((3, 3, 12, 4), "float32"),
        data_format="channels_first",
    )
    operations = keras.Model(images, layers.Dense(3)(layers.Flatten()(turned)))
    for use in (
        lambda: attach_heads(model),
        lambda: find_taps(inside, head="copy"),
        lambda: attach_heads(operations),
        lambda: Distiller(model, keras.models.clone_model(model), views="half_turns"),
    ):
        with pytest.raises(ValueError, match=REFUSED):
            use()
