import json
import math
import pathlib

import keras
import numpy as np
import pytest
from reference.fill import fill

from keras_hsakd import checkpoints, heads, models

REFERENCE = pathlib.Path(__file__).parent / "reference"
# The authors' name of each of their networks, by ours.
AUTHORS = {
    "wrn_40_2": "wrn_40_2",
    "wrn_16_2": "wrn_16_2",
    "wrn_40_1": "wrn_40_1",
    "resnet56": "resnet56",
    "resnet20": "resnet20",
    "resnet32x4": "resnet32x4",
    "resnet8x4": "resnet8x4",
    "vgg13_bn": "vgg13_bn",
    "vgg8_bn": "vgg8_bn",
    "mobilenet_v2": "mobilenetV2",
    "shufflenet_v1": "ShuffleV1",
    "shufflenet_v2": "ShuffleV2",
    "resnet50": "ResNet50",
    "resnet18_imagenet": "resnet18_imagenet",
    "resnet34_imagenet": "resnet34_imagenet",
}
ALL = json.loads((REFERENCE / "official_models.json").read_text())
OFFICIAL = {name: ALL[f"{authors}_aux"] for name, authors in AUTHORS.items()}


ON_JAX = ("wrn_16_2",)


def outputs_file(name):
    return REFERENCE / "outputs" / f"{AUTHORS[name]}_aux.npz"


def trainable_parameters(model):
    return sum(math.prod(v.shape) for v in model.trainable_variables)


def test_every_official_network_is_there():
    assert {f"{authors}_aux" for authors in AUTHORS.values()} == set(ALL)
    assert set(AUTHORS) < set(models.names())


@pytest.mark.parametrize("name", AUTHORS)
def test_size_and_cost_of_the_official_network(name):
    official = OFFICIAL[name]
    with keras.StatelessScope(initialize_variables=False):  # shapes are enough
        network = models.create(name, official["num_classes"])
    plain = heads.strip_heads(network)
    size = models.default_image_size(name)
    assert (size, size, 3) == network.input_shape[1:]
    assert size == official["resolution"]
    assert len(heads.head_names(network)) == official["heads"]
    assert trainable_parameters(network) == official["parameters"]
    assert trainable_parameters(plain) == official["backbone_parameters"]
    assert models.multiply_adds(network) == official["multiply_adds"]
    assert models.multiply_adds(plain) == official["backbone_multiply_adds"]


@pytest.mark.parametrize(
    "name",
    [
        # On JAX one is enough.
        pytest.param(name, marks=[pytest.mark.core] if name in ON_JAX else [])
        for name in AUTHORS
        if outputs_file(name).exists()
    ],
)
def test_outputs_of_the_official_network(name):
    official = OFFICIAL[name]
    network = models.create(name, official["num_classes"])
    state = fill(official["state_dict"])
    checkpoints.load_torch(network, state)
    with np.load(outputs_file(name)) as reference:
        if "x" in reference:
            x = reference["x"]
        else:
            x = np.random.default_rng(7).standard_normal((2, 3, 224, 224))
        outputs = network.predict(x.transpose(0, 2, 3, 1).astype("float32"), verbose=0)
        expected = {"logits": reference["logits"]}
        for i in range(official["heads"]):
            expected[f"aux_{i + 1}"] = reference[f"aux_logits_{i}"]
    assert set(outputs) == set(expected)
    for key, value in expected.items():
        # float32 convolutions in another order: at most 9e-7 here.
        np.testing.assert_allclose(
            outputs[key], value, rtol=0, atol=1e-5 * np.abs(value).max()
        )


@pytest.mark.parametrize("name", models.names())
def test_every_variant_has_heads_and_takes_other_images(name):
    with keras.StatelessScope(initialize_variables=False):
        network = models.create(name, 7, input_shape=(16, 16, 1))
        plain = models.create(name, 7, input_shape=(16, 16, 1), heads=False)
    assert network.name == name
    assert network.output["logits"].shape == (None, 7)
    for head in heads.head_names(network):
        assert network.output[head].shape == (None, 28)
    assert plain.output_shape == (None, 7)
    stripped = heads.strip_heads(network)
    assert {v.path: v.shape for v in plain.variables} == {
        v.path: v.shape for v in stripped.variables
    }


@pytest.mark.core
@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("resnet8", True),
        pytest.param("shufflenet_v2_x0_3", False, marks=pytest.mark.slow),
    ],
)
def test_round_trip_through_a_file(name, heads, tmp_path):
    network = models.create(name, 5, (8, 8, 3), heads=heads)
    network.save(tmp_path / "network.keras")
    copy = keras.saving.load_model(tmp_path / "network.keras")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    outputs, copied = (keras.tree.flatten(model(x)) for model in (network, copy))
    for value, other in zip(outputs, copied, strict=True):
        np.testing.assert_array_equal(other, value)


@pytest.mark.core
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_outputs_are_float32_under_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    network = models.create("resnet8", 5, (8, 8, 3))
    for value in network(np.zeros((2, 8, 8, 3))).values():
        assert keras.backend.standardize_dtype(value.dtype) == "float32"
    assert network.get_layer("stage1_block1_conv1").compute_dtype != "float32"


def values(network, layer, attribute):
    return keras.ops.convert_to_numpy(getattr(network.get_layer(layer), attribute))


def normal(kernel):
    """Returns the deviation the authors' normal has; groups do not count."""
    size, _, *filters = kernel.shape
    # Of a depthwise kernel the last axis is 1, the one before it the filters.
    return np.sqrt(2 / (size**2 * max(filters[-1], filters[0] * (filters[-1] == 1))))


def uniform(kernel):
    """Returns the limit of PyTorch's default."""
    inputs = kernel.shape[:-1] if kernel.shape[-1] > 1 else kernel.shape[:2]
    return np.prod(inputs) ** -0.5


def assert_uniform(value, limit):
    assert np.abs(value).max() <= limit
    # The largest of n uniform draws is below its limit by about 1 / n of it.
    assert np.abs(value).max() > limit * (1 - 10 / value.size)
    rtol = 2 / np.sqrt(value.size)  # three deviations of the deviation are 1.3 of it
    np.testing.assert_allclose(value.std(), limit / np.sqrt(3), rtol=rtol)


def assert_normal(value, deviation):
    np.testing.assert_allclose(value.std(), deviation, rtol=3 / np.sqrt(value.size))
    assert abs(value.mean()) < 4 * deviation / np.sqrt(value.size)


# name: a layer of the backbone; then, for backbone and for heads: convolutions, linear
# layers, and whether biases start at zero
INITIALISATION = {
    "wrn_16_2": (
        "stage3_block1_conv2",
        ("normal", "uniform", True),
        ("normal", "uniform", True),
    ),
    "resnet32x4": (
        "stage3_block1_conv2",
        ("normal", "uniform", False),
        ("normal", "uniform", True),
    ),
    "resnet50": (
        "stage4_block1_conv2",
        ("normal", "uniform", False),
        ("normal", "uniform", False),
    ),
    "resnet18_imagenet": (
        "stage4_block1_conv2",
        ("normal", "uniform", False),
        ("normal", "uniform", False),
    ),
    "vgg8_bn": (
        "stage4_group1_block1_conv",
        ("normal", "normal", True),
        ("uniform", "uniform", False),
    ),
    "mobilenet_v2": (
        "stage4_group1_block2_conv2",  # depthwise
        ("normal", "normal", True),
        ("normal", "normal", True),
    ),
    "shufflenet_v1": (
        "stage3_block2_conv1",  # grouped
        ("uniform", "uniform", False),
        ("normal", "uniform", True),
    ),
    "shufflenet_v2": (
        "stage3_block1_conv4",  # depthwise
        ("uniform", "uniform", False),
        ("uniform", "uniform", False),
    ),
}


@pytest.mark.parametrize("name", INITIALISATION)
def test_initialisation(name):
    layer, of_backbone, of_heads = INITIALISATION[name]
    network = models.create(name, 1000, input_shape=(32, 32, 3))
    for prefix, classifier, (conv, dense, zero_bias) in (
        ("", "logits", of_backbone),
        ("aux_1_", "aux_1", of_heads),
    ):
        kernel = values(network, prefix + layer, "kernel")
        if conv == "normal":
            assert_normal(kernel, normal(kernel))
        else:
            assert_uniform(kernel, uniform(kernel))
        kernel, bias = (values(network, classifier, a) for a in ("kernel", "bias"))
        if dense == "normal":
            assert_normal(kernel, 0.01)
        else:
            assert_uniform(kernel, uniform(kernel))
        if zero_bias:
            assert not bias.any()
        else:
            assert_uniform(bias, uniform(kernel))
        if name.startswith("vgg"):
            bias = values(network, prefix + layer, "bias")
            kernel = values(network, prefix + layer, "kernel")
            if zero_bias:
                assert not bias.any()
            else:
                assert_uniform(bias, uniform(kernel))


@pytest.mark.core
def test_no_two_layers_start_with_the_same_weights():
    network = models.create("resnet14", 10)
    kernels = {
        values(network, layer.name, "kernel").tobytes()
        for layer in network.layers
        if isinstance(layer, keras.layers.Conv2D)
    }
    assert len(kernels) == sum("conv" in v.path for v in network.trainable_variables)


@pytest.mark.core
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet21", 10), "Expected `name`.*Received: name='resnet21'.*'resnet20'"),
        (("wrn-40-2", 10), "did you mean 'wrn_40_2'"),
        (("resnet8", 1), "`num_classes` to be at least 2.*num_classes=1"),
        (("resnet8", 10, (32, 32)), "height.*input_shape=\\(32, 32\\)"),
        (("resnet8", 10, (32, 32)), "`input_shape`.*input_shape=\\(32, 32\\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.create(*arguments)
