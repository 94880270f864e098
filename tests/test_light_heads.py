"""Light heads: what they compute, and that they cost no more than they may."""

import math

import keras
import numpy as np
import pytest

from keras_hsakd import attach_heads, light, models, strip_heads
from keras_hsakd.compat import shapes_only
from keras_hsakd.heads import head_names, multiply_adds_by_part

layers = keras.layers

# Making those that are slow takes seconds.
NETWORKS = [
    *("resnet8", "wrn_16_2", "vgg8_bn"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            *("resnet56", "mobilenet_v2", "shufflenet_v2_x0_3"),
            *("MobileNet", "MobileNetV2", "MobileNetV3Small"),
            *("DenseNet121", "EfficientNetB0", "ResNet50"),
        )
    ),
]


def made(name, size, classes):
    with shapes_only():
        if name in models.names():
            return models.create(name, classes, (size, size, 3), head="light")
        make = getattr(keras.applications, name)
        model = make(input_shape=(size, size, 3), weights=None, classes=classes)
        return attach_heads(model)


def trainable(model):
    return sum(math.prod(v.shape) for v in model.trainable_variables)


@pytest.mark.parametrize("name", NETWORKS)
def test_all_heads_together_are_within_the_budget(name):
    for size in (32, 96, 224):
        for classes in (10, 100, 1000):
            network = made(name, size, classes)
            plain = strip_heads(network)
            parts = multiply_adds_by_part(network)
            backbone = parts.pop("backbone")
            assert len(parts) == len(head_names(network)) > 2
            assert sum(parts.values()) <= light.MULTIPLY_ADDS * backbone
            for count in (keras.Model.count_params, trainable):
                assert count(network) <= (1 + light.PARAMETERS) * count(plain)
            # No narrower than it must be.
            channels = network.get_layer("aux_1_conv1").filters
            assert (
                channels == 256
                or channels > 8
                or (name, classes)
                == (
                    "resnet8",
                    1000,
                )
            )


@pytest.mark.parametrize("name", ["vgg8_bn", "resnet8"])
def test_heads_of_the_zoo_are_where_copies_are(name):
    with shapes_only():
        copied, lighter = (
            models.create(name, 10, head=head, num_views=2)
            for head in ("copy", "light")
        )
    assert head_names(lighter) == head_names(copied)
    shapes = {name: output.shape for name, output in copied.output.items()}
    assert {name: x.shape for name, x in lighter.output.items()} == shapes
    # They begin with the same layers, and so with the same weights.
    assert [v.path for v in strip_heads(lighter).variables] == [
        v.path for v in strip_heads(copied).variables
    ]
    with pytest.raises(ValueError, match="`head` to be one of .*'heavy'"):
        models.create(name, 10, head="heavy")


@pytest.mark.core
def test_joint_logits_are_those_of_joint_labels():
    """Value M * y + r is that of class y in view r."""
    network = models.create("resnet8", 5, (16, 16, 3), head="light", num_views=3)
    weights = [
        keras.ops.convert_to_numpy(weight)
        for part in ("views", "classes")
        for weight in network.get_layer(f"aux_2_{part}").weights
    ]
    pool = network.get_layer("aux_2_features").output
    outputs = {"pooled": pool, "joint": network.output["aux_2"]}
    values = keras.Model(network.input, outputs)(
        np.random.default_rng(0).normal(size=(2, 16, 16, 3))
    )
    pooled = keras.ops.convert_to_numpy(values["pooled"])
    of_views, bias_of_views, of_classes, bias_of_classes = weights
    for row in range(2):
        of_a_view = (pooled[row] @ of_views + bias_of_views).reshape(3, -1)
        for y in range(5):
            for r in range(3):
                expected = of_a_view[r] @ of_classes[:, y] + bias_of_classes[y]
                received = float(values["joint"][row, 3 * y + r])
                assert received == pytest.approx(expected, abs=1e-5)


@pytest.mark.core
def test_heads_of_a_tiny_network_have_8_channels():
    images = keras.Input((16, 16, 3))
    x = layers.Conv2D(2, 3, name="tapped")(images)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(2, 3)(x))
    model = keras.Model(images, layers.Dense(3)(x))
    network = attach_heads(model, taps=["tapped"])
    assert network.get_layer("aux_1_conv3").filters == 8
