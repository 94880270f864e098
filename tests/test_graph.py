import keras
import numpy as np
import pytest

from keras_hsakd import checkpoints, heads, models
from keras_hsakd.graph import with_preprocessing

RAW = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), "uint8")
SCALE, OFFSET = [0.01, 0.02, 0.03], [-1.0, 0.0, 1.0]


def rescaling(scale=SCALE, offset=OFFSET):
    return keras.layers.Rescaling(scale, offset, dtype="float32")


def values(outputs):
    return outputs if isinstance(outputs, dict) else {"logits": outputs}


@pytest.mark.parametrize("strip", [lambda network: network, heads.strip_heads])
def test_with_preprocessing(strip, tiny_network, tmp_path):
    network = strip(tiny_network(dropout=0.1))
    whole = with_preprocessing(network, rescaling())
    normalised = (RAW * SCALE + OFFSET).astype("float32")
    expected = values(network(normalised))

    first, *others = [layer.name for layer in network.layers]
    assert [layer.name for layer in whole.layers] == [first, "preprocessing", *others]
    assert [w.path for w in whole.weights] == [w.path for w in network.weights]
    assert heads.output_names(whole) == heads.output_names(network)
    assert whole.name == network.name
    assert models.multiply_adds(whole) == models.multiply_adds(network)

    whole.save(tmp_path / "network.keras")
    for model in (whole, keras.saving.load_model(tmp_path / "network.keras")):
        for name, value in values(model(RAW)).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)
        # Its layers are its own: the outputs of each depend on its own images.
        part = keras.Model(model.input, model.get_layer("tiny_stage2_relu").output)
        other = keras.Model(network.input, network.get_layer("tiny_stage2_relu").output)
        np.testing.assert_allclose(part(RAW), other(normalised), rtol=1e-5, atol=1e-6)


@pytest.mark.core
def test_an_adapted_layer_is_copied_adapted():
    adapted = keras.layers.Normalization()
    adapted.adapt(np.random.default_rng(0).normal(5, 3, (64, 3)))
    images = keras.Input((8, 8, 3))
    network = keras.Model(images, keras.layers.Flatten()(adapted(images)))
    copy = with_preprocessing(network, keras.layers.Rescaling(2.0))
    halves = np.random.default_rng(1).random((2, 8, 8, 3), "float32")
    np.testing.assert_array_equal(copy(halves), network(2 * halves))


def test_another_preprocessing_takes_its_place(tiny_network):
    network = with_preprocessing(tiny_network(), rescaling())
    again = with_preprocessing(network, rescaling(0.5, 0.0))
    assert len(again.layers) == len(network.layers)
    layers = [model.get_layer("preprocessing") for model in (network, again)]
    assert [layer.offset for layer in layers] == [OFFSET, 0.0]
    # One of that name further inside is not what the images come to first.
    features = keras.layers.Conv2D(3, 3)(images := keras.Input((8, 8, 3)))
    inside = keras.layers.Rescaling(2.0, name="preprocessing")(features)
    with pytest.raises(ValueError, match='"preprocessing" is used 2 times'):
        with_preprocessing(keras.Model(images, inside), rescaling())


@pytest.mark.core
def test_preprocessing_is_computed_in_float32(tiny_network):
    keras.config.set_dtype_policy("mixed_bfloat16")
    network = with_preprocessing(tiny_network(), rescaling())
    layer = network.get_layer("preprocessing")
    assert layer.output.dtype == "float32"
    assert network.get_layer("tiny_stage1_conv").output.dtype == "bfloat16"
    assert heads.head_names(network) == ["aux_1", "aux_2"]


def test_a_network_with_preprocessing_is_split(tiny_network):
    network = with_preprocessing(tiny_network(), rescaling())
    parts = heads.split(network)
    features = parts.backbone(RAW)
    outputs = parts.heads([features[name] for name in parts.tap_names])
    np.testing.assert_array_equal(outputs["aux_1"], network(RAW)["aux_1"])


def test_a_network_with_preprocessing_has_the_state_dict_of_the_one_without():
    plain = models.create("resnet8", 3, (8, 8, 3))
    network = with_preprocessing(plain, rescaling())
    state = checkpoints.torch_state_dict(plain)
    checkpoints.load_torch(network, {key: value + 1 for key, value in state.items()})
    received = checkpoints.torch_state_dict(network)
    assert list(received) == list(state)
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(received[key], value + 1)
    # Its weights are its own.
    again = checkpoints.torch_state_dict(plain)
    np.testing.assert_array_equal(again["backbone.fc.bias"], state["backbone.fc.bias"])
