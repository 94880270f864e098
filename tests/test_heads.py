import keras
import numpy as np
import pytest

import keras_hsakd
from keras_hsakd import heads


def test_head_names(tiny_network):
    assert heads.head_names(tiny_network(heads=3)) == ["aux_1", "aux_2", "aux_3"]


@pytest.mark.core
def test_strip_heads_shares_weights_and_equals_the_logits(tiny_network, batch):
    network = tiny_network()
    plain = heads.strip_heads(network)
    np.testing.assert_array_equal(
        plain.predict(batch[0], verbose=0),
        network.predict(batch[0], verbose=0)["logits"],
    )
    own = {id(v) for v in network.variables}
    assert all(id(v) in own for v in plain.variables)
    assert 0 < len(plain.variables) < len(network.variables)
    assert heads.strip_heads(plain) is plain


@pytest.mark.core
def test_split_computes_what_the_whole_does(tiny_network, batch):
    network = tiny_network()
    parts = heads.split(network)
    features = parts.backbone(batch[0])
    outputs = parts.heads([features[name] for name in parts.tap_names])
    expected = network(batch[0])
    assert parts.tap_names == ["tap_1", "tap_2"]
    assert set(outputs) == {"aux_1", "aux_2"}
    np.testing.assert_array_equal(features["logits"], expected["logits"])
    for name, value in outputs.items():
        np.testing.assert_array_equal(value, expected[name])
    halves = [{id(v) for v in part.variables} for part in (parts.backbone, parts.heads)]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == {id(v) for v in network.variables}


def test_a_network_that_was_split_still_saves(tiny_network, batch, tmp_path):
    network = tiny_network()
    heads.split(network)
    network.save(tmp_path / "network.keras")
    copy = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(copy(batch[0])["aux_2"], network(batch[0])["aux_2"])


def functional(outputs, dtype="float32"):
    images = keras.Input((8, 8, 3))
    features = keras.layers.GlobalAveragePooling2D()(images)
    return keras.Model(
        images,
        {
            name: keras.layers.Dense(n, dtype=dtype, name=name)(features)
            for name, n in outputs
        },
        name="wrong",
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: "resnet20", "functional keras.Model.*Received: 'resnet20'"),
        (
            lambda: keras_hsakd.models.create("resnet8", 10, heads=False),
            "`resnet8` to have auxiliary heads",
        ),
        (lambda: functional([("logits", 3)]), r"auxiliary heads.*\['logits'\]"),
        (
            lambda: functional([("logits", 3), ("aux_2", 12)]),
            "named.*'aux_1'.*Received.*'aux_2'",
        ),
        (
            lambda: functional([("logits", 3), ("aux_1", 3)]),
            "heads of `wrong` to have 12 units each.*'aux_1': 3",
        ),
        (
            lambda: functional([("logits", 3), ("aux_1", 12)], "mixed_bfloat16"),
            "to be float32.*Received: bfloat16",
        ),
    ],
)
def test_what_is_not_a_network_with_heads(make, message):
    with pytest.raises(ValueError, match=f"(?s)Expected.*{message}"):
        heads.head_names(make())
