import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_hsakd import Distiller, TeacherTrainer, attach_heads, models, strip_heads
from keras_hsakd.logits import check_logits, without_softmax
from keras_hsakd.trainers.baseline import BaselineTrainer

CLASSES = 5
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(4, 8, 8, 3)).astype("float32")


@keras.saving.register_keras_serializable("test_logits")
class SoftmaxDense(layers.Dense):
    """A softmax that is in no attribute."""

    def call(self, inputs):
        return ops.softmax(super().call(inputs))


@keras.saving.register_keras_serializable("test_logits")
class CosineDense(layers.Dense):
    """Logits that are no product with the kernel."""

    def call(self, inputs):
        return 10 * ops.matmul(
            ops.normalize(inputs, axis=-1), ops.normalize(self.kernel, axis=0)
        )


class Classifier(layers.Layer):
    """A classifier of which nothing is known from outside."""

    def __init__(self, activation):
        super().__init__()
        self.dense = layers.Dense(CLASSES)
        self.activation_function = activation

    def build(self, shape):
        self.dense.build(shape)

    def call(self, inputs):
        return self.activation_function(self.dense(inputs))


def exponentials(logits):
    powers = ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))
    return powers / ops.sum(powers, axis=-1, keepdims=True)


def convolution(x, activation):
    x = layers.Reshape((1, 1, -1))(x)
    return layers.Conv2D(CLASSES, 1, activation=activation)(x)


def inner(activation):
    """A classifier that is a model."""
    features = keras.Input((6,))
    return keras.Model(features, layers.Dense(CLASSES, activation=activation)(features))


def softmaxed(x):
    return layers.Dense(CLASSES, activation="softmax")(x)


def dense(x):
    return layers.Dense(CLASSES)(x)


def classifier(end, dtype=None):
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", activation="relu")(images)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(6, 3, padding="same", activation="relu")(x)
    return keras.Model(images, end(layers.GlobalAveragePooling2D()(x)), name="mine")


def softmax_of(logits):
    return keras.ops.convert_to_numpy(ops.softmax(ops.cast(logits, "float32")))


SOFTMAX = {
    "Dense": softmaxed,
    "layer": lambda x: layers.Softmax()(dense(x)),
    "Activation": lambda x: layers.Activation("softmax")(dense(x)),
    "operation": lambda x: ops.softmax(dense(x)),
    "layer as activation": lambda x: layers.Dense(CLASSES, layers.Softmax())(x),
    "own function": lambda x: layers.Dense(CLASSES, exponentials)(x),
    "Lambda": lambda x: layers.Lambda(exponentials)(dense(x)),
    "own call": SoftmaxDense(CLASSES),
    "of exponentials": lambda x: exponentials(dense(x)),
    "of logarithms": lambda x: ops.exp(ops.log_softmax(dense(x))),
    "normalized": lambda x: (p := softmaxed(x)) / ops.sum(p, axis=-1, keepdims=True),
    "of cooler logits": lambda x: ops.softmax(dense(x) / 2),
    "cast": lambda x: ops.cast(softmaxed(x), "float32"),
    "identity": lambda x: layers.Identity()(softmaxed(x)),
    "linear": lambda x: layers.Activation("linear", dtype="float32")(softmaxed(x)),
    "clip": lambda x: ops.clip(softmaxed(x), 1e-7, 1 - 1e-7),
    "reshapes": lambda x: layers.Flatten()(layers.Reshape((1, CLASSES))(softmaxed(x))),
    "convolution": lambda x: layers.Flatten()(convolution(x, "softmax")),
    "after a convolution": lambda x: layers.Flatten()(
        layers.Softmax()(convolution(x, None))
    ),
    "model": lambda x: inner("softmax")(x),
    "float16": lambda x: layers.Activation("linear", dtype="float32")(
        layers.Dense(CLASSES, activation="softmax", dtype="mixed_float16")(x)
    ),
    "bfloat16": lambda x: layers.Dense(
        CLASSES, activation="softmax", dtype="mixed_bfloat16"
    )(x),
}


ON_JAX_TOO = pytest.mark.core  # where the others would take long to compile


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=ON_JAX_TOO if name in ("Dense", "Lambda") else ())
        for name in SOFTMAX
    ],
)
def test_a_softmax_is_taken_off_however_it_is_spelt(name):
    model = classifier(SOFTMAX[name])
    with pytest.raises(ValueError, match="Expected `mine` to output class logits"):
        check_logits(model)
    tolerance = 1e-2 if "float16" in name else 1e-6
    for network in (strip_heads(model), attach_heads(model)):
        outputs = network(IMAGES)
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs
        assert tuple(logits.shape) == (4, CLASSES)
        expected = keras.ops.convert_to_numpy(ops.cast(model(IMAGES), "float32"))
        np.testing.assert_allclose(softmax_of(logits), expected, atol=tolerance)
    check_logits(network)  # the heads, too


PROBABILITIES = {
    "sigmoid": lambda x: layers.Dense(CLASSES, activation="sigmoid")(x),
    "hard sigmoid": lambda x: layers.Dense(CLASSES, activation="hard_sigmoid")(x),
    "sigmoid of zeros": lambda x: layers.Dense(
        CLASSES, activation="sigmoid", kernel_initializer="zeros"
    )(x),
    "one-hot": lambda x: ops.one_hot(ops.argmax(dense(x), axis=-1), CLASSES),
    "inside of a layer": Classifier(ops.softmax),
    "sigmoid inside of a layer": Classifier(ops.sigmoid),
    "temperature": lambda x: layers.Dense(CLASSES, lambda z: ops.softmax(z / 2))(x),
    "percent": lambda x: 100 * softmaxed(x),
    "percent of an operation": lambda x: 100 * ops.softmax(dense(x)),
    "smoothed": lambda x: 0.9 * softmaxed(x) + 0.1 / CLASSES,
    "fewer classes": lambda x: layers.Dense(6, activation="softmax")(x)[:, 1:],
    "twice": lambda x: layers.Softmax()(softmaxed(x)),
    "mean of two": lambda x: layers.Average()([softmaxed(x), softmaxed(x)]),
    "each position": lambda x: layers.Flatten()(
        layers.Softmax()(layers.Reshape((2, 3))(layers.Dense(6)(x)))
    ),
}


@pytest.mark.parametrize("name", PROBABILITIES)
def test_probabilities_that_no_logits_can_be_had_of_are_refused(name):
    model = classifier(PROBABILITIES[name])
    with pytest.raises(ValueError, match="Expected `mine` to output class logits"):
        strip_heads(model)
    with pytest.raises(ValueError, match="Expected"):
        attach_heads(model)


LOGITS = {
    "Dense": dense,
    "zeros": lambda x: layers.Dense(CLASSES, kernel_initializer="zeros")(x),
    "two classes": lambda x: layers.Dense(2)(x),
    "ReLU": lambda x: layers.Dense(CLASSES, activation="relu")(x),
    "logarithms": lambda x: ops.log_softmax(dense(x)),
    "normalized": lambda x: dense(layers.LayerNormalization()(x)),
    "cosines": CosineDense(CLASSES),
    "inside of a layer": Classifier(lambda x: x),
    "mean of two": lambda x: layers.Average()([dense(x), dense(x)]),
    "after probabilities": lambda x: dense(softmaxed(x)),
    "model": lambda x: inner(None)(x),
}


@pytest.mark.parametrize("name", LOGITS)
def test_logits_are_what_they_are(name):
    for seed in range(5):
        keras.utils.set_random_seed(seed)
        model = classifier(LOGITS[name])
        check_logits(model)
        assert without_softmax(model) is model
        assert strip_heads(model) is model


def test_lists_of_one_are_a_classifier_too():
    model = classifier(dense)
    network = strip_heads(keras.Model([model.input], [model.output]))
    assert network.input_shape == (None, 8, 8, 3)
    assert network.output is model.output


def test_networks_of_few_images_or_of_integers_are_probed_too():
    images = keras.Input((8, 8, 3), batch_size=2, dtype="uint8")
    x = layers.Flatten()(layers.Rescaling(1 / 255)(images))
    check_logits(keras.Model(images, layers.Dense(3)(x)))
    with pytest.raises(ValueError, match="probabilities"):
        check_logits(keras.Model(images, layers.Dense(3, "softmax")(x)))


def test_images_of_any_size_are_probed_too():
    images = keras.Input((None, None, 3))
    for activation in (None, "softmax"):
        x = layers.Conv2D(CLASSES, 1, activation=activation)(images)
        model = keras.Model(images, layers.GlobalAveragePooling2D()(x))
        if activation is None:
            assert strip_heads(model) is model
        else:
            with pytest.raises(ValueError, match="probabilities"):
                strip_heads(model)


@ON_JAX_TOO
def test_a_probe_changes_nothing():
    images = keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Dropout(0.5)(images), training=True)
    model = keras.Model(images, layers.Dense(3)(layers.Flatten()(x)))
    before = [np.array(v) for v in model.variables]
    check_logits(model)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


@ON_JAX_TOO
def test_a_single_unit_is_refused():
    for activation in (None, "sigmoid"):
        model = classifier(lambda x, a=activation: layers.Dense(1, activation=a)(x))
        with pytest.raises(
            ValueError, match="two classes or more.*shape \\(None, 1\\)"
        ):
            attach_heads(model)


def test_a_model_with_a_call_of_its_own_is_refused():
    class Softmaxed(keras.Model):
        def call(self, inputs):
            return ops.softmax(super().call(inputs))

    functional = classifier(dense)
    model = Softmaxed(functional.inputs, functional.outputs)
    for use in (check_logits, strip_heads, attach_heads, BaselineTrainer):
        with pytest.raises(ValueError, match="call of its own"):
            use(model)


def test_trainers_refuse_probabilities_that_are_no_softmax():
    network = models.create("resnet8", 3, input_shape=(8, 8, 3))
    plain = strip_heads(network)
    soft = keras.Sequential(
        [keras.Input((8, 8, 3)), plain, layers.Activation("sigmoid")], name="soft"
    )
    outputs = dict(network.output)
    outputs["aux_2"] = layers.Softmax()(outputs["aux_2"])
    soft_head = keras.Model(network.input, outputs, name="hard")
    other = models.create("wrn_10_1", 3, input_shape=(8, 8, 3), heads=False)
    for make, what in (
        (lambda: BaselineTrainer(soft), "`soft`"),
        (lambda: Distiller(soft, other), "`soft`"),
        (lambda: Distiller(other, soft), "`soft`"),
        (lambda: TeacherTrainer(soft_head), "output 'aux_2' of `hard`"),
    ):
        message = f"Expected {what} to output class logits. Received: probabilities"
        with pytest.raises(ValueError, match=message):
            make()


def test_heads_are_classifiers_of_the_models_own_kind():
    network = attach_heads(classifier(CosineDense(CLASSES)), head="copy")
    assert isinstance(network.get_layer("aux_1"), CosineDense)
    network = attach_heads(classifier(SoftmaxDense(CLASSES)), head="copy")
    assert type(network.get_layer("aux_1")) is layers.Dense
