import keras
import numpy as np
import pytest
from keras import layers

from keras_hsakd import attach_heads, backbone, models
from keras_hsakd.graph import with_preprocessing


def pixels(height, width, channels=3):
    shape = (2, height, width, channels)
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def check_features(student, found, expected):
    """Compares features with the outputs of the student's layers, by level."""
    height, width, channels = student.input_shape[1:]
    images = pixels(height, width, channels)
    outputs = {k: student.get_layer(name).output for k, name in expected.items()}
    features = keras.Model(student.input, outputs)(images)
    values = found(images)
    assert sorted(values) == sorted(expected)
    for level, value in values.items():
        np.testing.assert_array_equal(value, features[level])
        stride = 2 ** int(level[1:])
        assert value.shape[1:3] == (height // stride, width // stride)


ZOO = {
    "resnet8": {f"P{i}": f"stage{i + 1}_block1_relu2" for i in range(3)},
    "wrn_10_1": {
        "P0": "stage2_block1_relu1",
        "P1": "stage3_block1_relu1",
        "P2": "neck_relu",
    },
    "mobilenet_v2": {
        "P0": "stage2_group1_block1_relu1",
        "P1": "stage3_group1_block1_relu1",
        "P2": "stage4_group1_block1_relu1",
        "P3": "neck_relu",
    },
    "shufflenet_v2_x0_3": {
        "P0": "stem_relu",
        "P1": "stage1_block4_shuffle",
        "P2": "stage2_block8_shuffle",
        "P3": "neck_relu",
    },
    "resnet18_imagenet": {
        "P1": "stem_relu",
        **{f"P{i + 1}": f"stage{i}_block2_relu2" for i in range(1, 5)},
    },
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "resnet8" else pytest.mark.slow)
        for name in ZOO
    ],
)
def test_features_are_those_of_the_student(name):
    student = models.create(name, num_classes=3, input_shape=(32, 64, 3), num_views=2)
    check_features(student, backbone(student), ZOO[name])


APPLICATIONS = {
    "ResNet50": {
        "P2": "conv2_block3_out",
        "P3": "conv3_block4_out",
        "P4": "conv4_block6_out",
        "P5": "conv5_block3_out",
    },
    "MobileNetV2": {
        "P3": "block_6_expand_relu",
        "P4": "block_13_expand_relu",
        "P5": "out_relu",
    },
    "EfficientNetB0": {
        "P3": "block4a_expand_activation",
        "P4": "block6a_expand_activation",
        "P5": "top_activation",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_features_of_applications(name):
    make = getattr(keras.applications, name)
    student = attach_heads(
        make(input_shape=(64, 64, 3), weights=None, classes=3), head="light"
    )
    expected = APPLICATIONS[name]
    check_features(student, backbone(student, list(expected)), expected)
    wide = backbone(student, input_shape=(96, 160, 3))(pixels(96, 160))
    assert wide["P5"].shape[1:3] == (3, 5)


def classifier_on(made):
    """Returns a classifier on a backbone of keras-cv or keras-hub, which it shares."""
    images = keras.Input((64, 64, 3))
    x = layers.GlobalAveragePooling2D()(made(images))
    return attach_heads(keras.Model(images, layers.Dense(3)(x)), head="light")


RESNET = {"block_type": "basic_block"}


@pytest.mark.slow
def test_features_of_keras_cv():
    made = pytest.importorskip("keras_cv").models.ResNetBackbone(
        stackwise_filters=[64, 16, 24, 24],
        stackwise_blocks=[1, 1, 1, 1],
        stackwise_strides=[1, 2, 2, 2],
        include_rescaling=True,
        input_shape=(64, 64, 3),
        **RESNET,
    )
    found = backbone(classifier_on(made), list(made.pyramid_level_inputs))
    outputs = {
        k: made.get_layer(name).output for k, name in made.pyramid_level_inputs.items()
    }
    check_same(found, keras.Model(made.input, outputs))


@pytest.mark.slow
def test_features_of_keras_hub():
    made = pytest.importorskip("keras_hub").models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 16, 24, 24],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        image_shape=(64, 64, 3),
        **RESNET,
    )
    found = backbone(classifier_on(made), list(made.pyramid_outputs))
    check_same(found, keras.Model(made.input, made.pyramid_outputs))


def check_same(found, expected):
    values, features = found(pixels(64, 64)), expected(pixels(64, 64))
    assert sorted(values) == sorted(features)
    assert {"P3", "P4", "P5"} <= set(values)
    for level, value in values.items():
        np.testing.assert_array_equal(value, features[level])


@pytest.mark.slow
def test_detectors_of_keras_hub_take_it():
    hub = pytest.importorskip("keras_hub").models
    student = models.create("resnet18_imagenet", 3, (64, 64, 3), heads=False)
    found = backbone(student, input_shape=(None, None, 3))
    pyramid = hub.RetinaNetBackbone(found, min_level=3, max_level=6, use_p5=False)
    assert pyramid(pixels(64, 96))["P3"].shape == (2, 8, 12, 256)


def test_heads_and_classifier_are_gone(tiny_network):
    student = tiny_network()
    found = backbone(student)
    assert sorted(found.output) == ["P0", "P1"]
    assert [w.path for w in found.weights] == [
        w.path for w in student.weights if w.path.startswith("tiny_stage")
    ]


def test_images_of_another_size():
    student = models.create("resnet8", num_classes=3, input_shape=(16, 16, 3))
    other = models.create("resnet8", num_classes=3, input_shape=(24, 40, 3))
    other.set_weights(student.get_weights())
    expected = backbone(other)(pixels(24, 40))
    for shape in ((24, 40, 3), (None, None, 3)):
        found = backbone(student, input_shape=shape)
        assert found.input_shape == (None, *shape)
        # As detectors take it: the layer of a level has one output, of these images.
        names = found.pyramid_level_inputs
        by_name = {k: found.get_layer(name).output for k, name in names.items()}
        for taken in (by_name, found.pyramid_outputs):
            values = keras.Model(found.input, taken)(pixels(24, 40))
            for level, value in expected.items():
                np.testing.assert_array_equal(values[level], value)


def test_preprocessing_stays_inside(tiny_network):
    student = tiny_network()
    whole = with_preprocessing(student, layers.Rescaling(1 / 255))
    for shape in (None, (16, 16, 3)):
        images = pixels(*(shape or (8, 8))[:2])
        values = backbone(whole, input_shape=shape)(images)
        expected = backbone(student, input_shape=shape)(images / np.float32(255))
        for level, value in expected.items():
            np.testing.assert_allclose(values[level], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frozen", [False, True])
def test_training_it_trains_the_student_unless_frozen(tiny_network, frozen):
    student = tiny_network()
    before = [np.array(v) for v in student.weights]
    found = backbone(student, ["P1"])
    found.trainable = not frozen
    x = layers.Conv2D(1, 1)(found(found.input)["P1"])
    detector = keras.Model(found.input, x)
    detector.compile("sgd", "mse")
    detector.train_on_batch(pixels(8, 8), np.ones((2, 4, 4, 1)))
    moved = {
        weight.path
        for old, weight in zip(before, student.weights, strict=True)
        if np.any(old != np.array(weight))
    }
    # Moving averages and kernels of the backbone, and nothing of the heads.
    parts = {f"tiny_stage{i}_bn/moving_mean" for i in (1, 2)} | {
        f"tiny_stage{i}_conv/kernel" for i in (1, 2)
    }
    assert parts <= moved if not frozen else not moved
    assert all(path.startswith("tiny_stage") for path in moved)


@pytest.mark.core
def test_it_is_saved_with_its_levels(tiny_network, tmp_path):
    found = backbone(tiny_network(), input_shape=(16, 16, 3))
    found.save(tmp_path / "backbone.keras")
    again = keras.saving.load_model(tmp_path / "backbone.keras")
    assert again.pyramid_level_inputs == {"P0": "P0", "P1": "P1"}
    for level, value in found(pixels(16, 16)).items():
        np.testing.assert_array_equal(again(pixels(16, 16))[level], value)


def cnn(*front, pool=None, back=(), size=32):
    """Returns a classifier of strides 1, 2 and 4, and layers around its stages."""
    images = keras.Input((size, size, 3))
    x = images
    for layer in front:
        x = layer(x)
    for number, stride in enumerate((1, 2, 2)):
        x = layers.Conv2D(4, 3, stride, padding="same", name=f"conv{number}")(x)
    for layer in (*back, pool or layers.GlobalAveragePooling2D()):
        x = layer(x)
    if len(x.shape) == 4:
        x = layers.Flatten(name="flat")(x)
    return keras.Model(images, layers.Dense(3, name="logits")(x), name="cnn")


def test_what_comes_after_the_features_may_have_a_fixed_size():
    for pool in (layers.Flatten(), layers.AveragePooling2D(8)):
        student = cnn(pool=pool)
        assert sorted(backbone(student).output) == ["P0", "P1", "P2"]
        found = backbone(student, input_shape=(20, 12, 3))
        assert found.output["P2"].shape == (None, 5, 3, 4)


class Positions(layers.Layer):
    """Adds a learned value for each position."""

    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:])

    def call(self, inputs):
        return inputs + self.table


RESIZING = {"height": 64, "width": 64, "name": "resized"}


@pytest.mark.parametrize("shape", [(40, 40, 3), (None, None, 3)])
@pytest.mark.parametrize(
    "layer, levels, culprit",
    [
        ([layers.Resizing(**RESIZING)], None, "resized"),
        ([layers.Conv2D(3, 1), layers.Resizing(**RESIZING)], ["P1"], "resized"),
        ([Positions(name="positions")], None, "positions"),
        (
            [
                layers.Flatten(),
                layers.Dense(48, name="mixed"),
                layers.Reshape((4, 4, 3)),
            ],
            {"P2": "conv2"},
            "mixed|conv2",  # flattening images of unknown size is no error yet
        ),
    ],
    ids=["image", "map", "positions", "flat"],
)
def test_what_cannot_be_resized_is_named(layer, levels, culprit, shape):
    student = cnn(*[type(x).from_config(x.get_config()) for x in layer])
    with pytest.raises(ValueError, match=f"Received: '({culprit})', which"):
        backbone(student, levels, shape)


def test_levels_are_chosen_by_level_or_by_layer():
    student = cnn()
    assert list(backbone(student, ["P1"]).output) == ["P1"]
    student = cnn(back=[layers.Conv2D(5, 3, padding="same", name="last")])
    assert backbone(student).output["P2"].shape[-1] == 5
    check_features(student, backbone(student, {"P2": "conv2"}), {"P2": "conv2"})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"levels": ["P2", "P3"]}, r"of those of `cnn`, .*'P2': 'conv2'.*: \['P3'\]"),
        ({"levels": {"P1": "conv_1"}}, "'conv_1' .did you mean 'conv1'"),
        ({"levels": {"P1": "logits"}}, "conv2. Received: 'logits'"),
        ({"levels": {"P3": "conv1"}}, "'P3' for 'conv1', which is 'P1'"),
        ({"input_shape": (32, 32)}, r"input_shape=\(32, 32\)"),
        ({"input_shape": (32, 32, 1)}, "with the 3 channels of `cnn`"),
    ],
)
def test_what_is_not_there_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        backbone(cnn(), **options)


def test_models_that_cannot_be_taken_apart_are_refused():
    vector = keras.Input((4,))
    with pytest.raises(ValueError, match="to take one batch of images"):
        backbone(keras.Model(vector, layers.Dense(2)(vector)))
    with pytest.raises(ValueError, match="Expected a functional keras.Model"):
        backbone(keras.Sequential([layers.Conv2D(4, 3)]).layers[0])
    with pytest.raises(ValueError, match="known sizes: give `input_shape`"):
        backbone(cnn(size=None))
    assert len(backbone(cnn(size=None), input_shape=(8, 8, 3)).output) == 3
