import json
import pathlib

import keras
import numpy as np
import pytest
from reference.fill import fill

from keras_hsakd import checkpoints, heads, models

REFERENCE = pathlib.Path(__file__).parent / "reference"
OFFICIAL = {
    name.removesuffix("_aux"): row
    for name, row in json.loads(
        (REFERENCE / "official_models.json").read_text()
    ).items()
}
OURS = [name for name in OFFICIAL if name in models.names()]
WITH_OUTPUTS = [n for n in OURS if (REFERENCE / "outputs" / f"{n}_aux.npz").exists()]


def trainable_parameters(model):
    return sum(v.value.shape.num_elements() for v in model.trainable_variables)


def test_every_official_network_of_the_two_families_is_there():
    assert set(OURS) == {n for n in OFFICIAL if n.startswith(("wrn", "resnet"))} - {
        "resnet18_imagenet",
        "resnet34_imagenet",
    }


@pytest.mark.parametrize("name", OURS)
def test_size_and_cost_of_the_official_network(name):
    official = OFFICIAL[name]
    network = models.create(name, official["num_classes"])
    plain = heads.strip_heads(network)
    assert len(heads.head_names(network)) == official["heads"]
    assert trainable_parameters(network) == official["parameters"]
    assert trainable_parameters(plain) == official["backbone_parameters"]
    assert models.multiply_adds(network) == official["multiply_adds"]
    assert models.multiply_adds(plain) == official["backbone_multiply_adds"]


@pytest.mark.core
@pytest.mark.parametrize("name", WITH_OUTPUTS)
def test_outputs_of_the_official_network(name):
    network = models.create(name, num_classes=100)
    checkpoints.load_torch(network, fill(OFFICIAL[name]["state_dict"]))
    with np.load(REFERENCE / "outputs" / f"{name}_aux.npz") as reference:
        outputs = network.predict(reference["x"].transpose(0, 2, 3, 1), verbose=0)
        expected = {"logits": reference["logits"]}
        for i in range(OFFICIAL[name]["heads"]):
            expected[f"aux_{i + 1}"] = reference[f"aux_logits_{i}"]
    assert set(outputs) == set(expected)
    for key, value in expected.items():
        # float32 convolutions in another order: about 5e-7 here.
        np.testing.assert_allclose(
            outputs[key], value, rtol=0, atol=1e-5 * np.abs(value).max()
        )


@pytest.mark.parametrize("name", models.names())
def test_every_variant_builds_with_and_without_heads(name):
    network = models.create(name, 7, input_shape=(16, 16, 1))
    assert network.name == name
    assert network.output["logits"].shape == (None, 7)
    assert network.output["aux_3"].shape == (None, 28)
    plain = models.create(name, 7, input_shape=(16, 16, 1), heads=False)
    assert plain.output_shape == (None, 7)
    stripped = heads.strip_heads(network)
    assert {v.path: v.shape for v in plain.variables} == {
        v.path: v.shape for v in stripped.variables
    }


@pytest.mark.core
@pytest.mark.parametrize("name", ["resnet8", "wrn_10_1"])
def test_round_trip_through_a_file(name, tmp_path):
    network = models.create(name, 5, (8, 8, 3))
    network.save(tmp_path / "network.keras")
    copy = keras.saving.load_model(tmp_path / "network.keras")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    for key, value in network(x).items():
        np.testing.assert_array_equal(copy(x)[key], value)


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


@pytest.mark.core
@pytest.mark.parametrize(
    ("name", "zero_biases"),
    [("resnet32x4", {"aux_1", "aux_2", "aux_3"}), ("wrn_16_2", None)],
)
def test_initialisation(name, zero_biases):
    network = models.create(name, 1000)
    for layer in ("stage3_block1_conv2", "aux_1_stage3_block1_conv2"):
        kernel = values(network, layer, "kernel")
        expected = np.sqrt(2 / (9 * kernel.shape[-1]))
        # Some 100,000 draws: the standard deviation is known to 1 %.
        np.testing.assert_allclose(kernel.std(), expected, rtol=0.01)
        assert np.abs(kernel).max() > 3.5 * expected  # not truncated
        assert abs(kernel.mean()) < 0.01 * expected
    for layer in ("logits", "aux_1", "aux_2", "aux_3"):
        kernel, bias = (values(network, layer, a) for a in ("kernel", "bias"))
        limit = kernel.shape[0] ** -0.5
        assert 0.99 * limit < np.abs(kernel).max() <= limit
        np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.02)
        if zero_biases is None or layer in zero_biases:
            assert not bias.any()
        else:
            assert 0.9 * limit < np.abs(bias).max() <= limit


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
        (("resnet8", 10, (32, 16, 3)), "square.*input_shape=\\(32, 16, 3\\)"),
        (("resnet8", 10, (32, 32)), "`input_shape`.*input_shape=\\(32, 32\\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.create(*arguments)
