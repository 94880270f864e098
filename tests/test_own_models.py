"""Other people's models: heads on, a step, heads off, exported and saved."""

import keras
import numpy as np
import numpy_reference as reference
import pytest
import tensorflow as tf
from keras import layers

from keras_hsakd import Distiller, TeacherTrainer, attach_heads, strip_heads
from keras_hsakd.heads import head_names

apps = keras.applications
CLASSES = 3


def small_cnn():
    model = keras.Sequential([keras.Input((32, 32, 3)), layers.Rescaling(0.5)])
    for filters in (8, 16):
        model.add(layers.Conv2D(filters, 3, 2, padding="same"))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(CLASSES, activation="softmax"))
    return model


def two_branches():
    images = x = keras.Input((32, 32, 3))
    for stage in range(2):
        left = layers.Conv2D(8, 3, 2, padding="same")(x)
        right = layers.Conv2D(8, 5, 2, padding="same")(x)
        x = layers.Concatenate(name=f"join{stage}")([left, right])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, layers.Dense(CLASSES)(x))


def nested_backbone():
    backbone = apps.MobileNetV2(
        (32, 32, 3), alpha=0.35, include_top=False, weights=None
    )
    images = keras.Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(backbone(images))
    return keras.Model(images, layers.Dense(CLASSES, activation="softmax")(x))


def application(name, size=64, **arguments):
    def make():
        return getattr(apps, name)(
            input_shape=(size, size, 3), weights=None, classes=CLASSES, **arguments
        )

    return pytest.param(make, {}, marks=pytest.mark.slow, id=name)


EFFICIENT_NET = {
    "width_coefficient": 0.5,
    "depth_coefficient": 0.5,
    "stackwise_kernel_sizes": [3, 3, 3],
    "stackwise_num_repeats": [1, 2, 2],
    "stackwise_input_filters": [16, 16, 24],
    "stackwise_output_filters": [16, 24, 32],
    "stackwise_expansion_ratios": [1, 4, 4],
    "stackwise_squeeze_and_excite_ratios": [0.0, 0.0, 0.25],
    "stackwise_strides": [1, 2, 2],
}
BLOCKS = ["fused", "fused", "unfused"]


def backbone(package, name, **arguments):
    """Returns a row for a backbone of keras-cv or keras-hub with a classifier."""

    def make():
        models = pytest.importorskip(package).models
        size = "image_shape" if package == "keras_hub" else "input_shape"
        made = getattr(models, name)(**{size: (64, 64, 3)}, **arguments)
        images = keras.Input((64, 64, 3))
        x = layers.GlobalAveragePooling2D()(made(images))
        return keras.Model(images, layers.Dense(CLASSES, activation="softmax")(x))

    return pytest.param(make, {}, marks=pytest.mark.slow, id=f"{package}-{name}")


LIGHT = {"head": "light", "taps": ["normal_concat_3", "normal_concat_8"]}
MODELS = [
    pytest.param(small_cnn, {}, id="sequential"),
    pytest.param(two_branches, {}, marks=pytest.mark.slow, id="two_branches"),
    pytest.param(
        nested_backbone, {"head": "light"}, marks=pytest.mark.slow, id="nested"
    ),
    application("ResNet50"),
    application("ResNet50V2"),
    application("MobileNetV2"),
    application("MobileNetV3Small"),
    application("EfficientNetB0"),
    application("EfficientNetV2B0"),
    application("DenseNet121"),
    application("ConvNeXtTiny"),
    application("VGG16"),
    application("Xception", 96),
    application("InceptionV3", 96),
    pytest.param(
        lambda: apps.NASNetMobile((64, 64, 3), weights=None, classes=CLASSES),
        LIGHT,
        marks=pytest.mark.slow,
        id="NASNetMobile",
    ),
    backbone(
        "keras_cv",
        "ResNetBackbone",
        stackwise_filters=[64, 32],
        stackwise_blocks=[1, 1],
        stackwise_strides=[1, 2],
        block_type="basic_block",
        include_rescaling=False,
    ),
    backbone(
        "keras_cv",
        "MobileNetV3Backbone",
        stackwise_expansion=[1, 4, 6],
        stackwise_filters=[16, 24, 40],
        stackwise_kernel_size=[3, 3, 5],
        stackwise_stride=[2, 2, 2],
        stackwise_se_ratio=[0.25, None, 0.25],
        stackwise_activation=["relu", "relu", "hard_swish"],
        include_rescaling=False,
    ),
    backbone(
        "keras_cv",
        "EfficientNetV2Backbone",
        **EFFICIENT_NET,
        stackwise_conv_types=BLOCKS,
        include_rescaling=False,
    ),
    backbone(
        "keras_hub",
        "ResNetBackbone",
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 32],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
    ),
    backbone(
        "keras_hub",
        "MobileNetBackbone",
        stackwise_expansion=[[40, 56], [64, 144]],
        stackwise_num_blocks=[2, 2],
        stackwise_num_filters=[[16, 16], [24, 24]],
        stackwise_kernel_size=[[3, 3], [5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1, 1], [2, 2]],
        output_num_filters=144,
        input_activation="hard_swish",
        output_activation="hard_swish",
        input_num_filters=16,
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        squeeze_and_excite=0.5,
        last_layer_filter=144,
    ),
    backbone(
        "keras_hub",
        "EfficientNetBackbone",
        **EFFICIENT_NET,
        stackwise_block_types=BLOCKS,
    ),
]


def can_be_read_back(network):
    """Returns whether Keras can: keras-cv 0.9 has a layer that takes no name."""
    try:
        type(network).from_config(network.get_config())
    except TypeError as error:
        assert "HardSigmoidActivation" in str(error)
        return False
    return True


@pytest.mark.parametrize(("make", "arguments"), MODELS)
def test_from_a_model_to_a_served_student(make, arguments, tmp_path):
    model = make()
    size = model.input_shape[1]
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype("float32")
    before = keras.ops.convert_to_numpy(model(images))
    variables = [id(v) for v in model.variables]
    network = attach_heads(model, **{"head": "copy", **arguments})
    assert head_names(network)

    # The heads come off: the class logits of the model, from its own variables.
    plain = strip_heads(network)
    assert sorted(id(v) for v in plain.variables) == sorted(variables)
    logits = keras.ops.convert_to_numpy(plain(images))
    np.testing.assert_array_equal(logits, network(images)["logits"])
    if np.allclose(before.sum(axis=1), 1, atol=1e-4):
        logits = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
    np.testing.assert_allclose(logits, before, rtol=1e-4, atol=1e-5)

    kept = [keras.ops.convert_to_numpy(v).copy() for v in model.trainable_variables]
    trainer = TeacherTrainer(network).compile(keras.optimizers.SGD(1e-3))
    trainer.train_on_batch(images, np.array([0, 1]))
    moved = [
        np.any(old != keras.ops.convert_to_numpy(new))
        for old, new in zip(kept, model.trainable_variables, strict=True)
    ]
    assert np.mean(moved) > 0.5  # a bias before batch normalization stands still
    assert [id(v) for v in model.variables] == variables

    expected = {k: keras.ops.convert_to_numpy(v) for k, v in network(images).items()}
    network.save(tmp_path / "network.keras")
    if can_be_read_back(network):
        copies = (
            keras.saving.load_model(tmp_path / "network.keras"),
            type(network).from_config(network.get_config()),
            keras.models.clone_model(network),
        )
        for copy in copies:
            copy.set_weights(network.get_weights())
            for name, value in copy(images).items():
                np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5)

    plain.export(str(tmp_path / "served"), verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(
        served.serve(images), expected["logits"], rtol=1e-3, atol=1e-4
    )


def test_heads_on_a_frozen_backbone_of_ones_own():
    model = small_cnn()
    network = attach_heads(model)
    before = [keras.ops.convert_to_numpy(v).copy() for v in model.variables]
    heads = [v for v in network.trainable_variables if "aux_" in v.path]
    kept = [keras.ops.convert_to_numpy(v).copy() for v in heads]
    trainer = TeacherTrainer(network, freeze_backbone=True)
    trainer.compile("adam", run_eagerly=True)
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("float32")
    trainer.fit(images, np.array([0, 1, 2, 0]), verbose=0)
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, new)
    assert heads
    assert any(np.any(old != new.numpy()) for old, new in zip(kept, heads, strict=True))


def test_teacher_and_student_of_other_sizes_and_preprocessing_see_the_same_image():
    """Each resizes and rescales by its own layers; the losses are of what they see."""

    def sized(size, scale):
        images = keras.Input((24, 24, 3))
        x = layers.Rescaling(scale)(layers.Resizing(size, size)(images))
        for filters in (4, 8):
            x = layers.Conv2D(filters, 3, 2, padding="same", activation="relu")(x)
        x = layers.GlobalAveragePooling2D()(x)
        # Light heads would normalize by the batch.
        return attach_heads(keras.Model(images, layers.Dense(CLASSES)(x)), head="copy")

    teacher, student = sized(32, 1 / 255), sized(16, 0.5)
    distiller = Distiller(teacher, student).compile(keras.optimizers.SGD(0.0))
    images = np.random.default_rng(0).uniform(0, 255, (4, 24, 24, 3)).astype("float32")
    views = reference.rotated_views(images)
    outputs = [
        {k: keras.ops.convert_to_numpy(v) for k, v in network(views).items()}
        for network in (teacher, student)
    ]
    labels = np.array([0, 1, 2, 0])
    expected = reference.student_losses(*outputs, labels, temperature=3.0)
    logs = distiller.train_on_batch(images, labels, return_dict=True)
    for name, value in expected.items():
        assert logs[name] == pytest.approx(value, rel=1e-4), name


def test_a_distilled_model_has_the_variables_it_had():
    model = small_cnn()
    paths = [(v.path, v.shape) for v in model.variables]
    student = attach_heads(model)
    distiller = Distiller(attach_heads(small_cnn()), student)
    distiller.compile("adam", run_eagerly=True)
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("float32")
    distiller.fit(images, np.array([0, 1, 2, 0]), verbose=0)
    assert [(v.path, v.shape) for v in model.variables] == paths
    assert {id(v) for v in strip_heads(student).variables} == {
        id(v) for v in model.variables
    }
