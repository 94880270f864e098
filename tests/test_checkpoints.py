import json
import pathlib
import pickle
import sys
import types

import keras
import numpy as np
import pytest
from reference.fill import fill

from keras_hsakd import checkpoints, models

OFFICIAL = json.loads(
    (pathlib.Path(__file__).parent / "reference" / "official_models.json").read_text()
)
NAMES = ["resnet20", "wrn_16_2"]


@pytest.fixture
def state():
    return fill(OFFICIAL["resnet20_aux"]["state_dict"])


@pytest.fixture
def network():
    return models.create("resnet20", 100)


def weights(model):
    return [keras.ops.convert_to_numpy(w).copy() for w in model.weights]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrapper", [None, "net", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_all_forms_of_a_state_dict_load(name, wrapper, prefix):
    state = fill(OFFICIAL[f"{name}_aux"]["state_dict"])
    wrapped = {prefix + key: value for key, value in state.items()}
    if wrapper:
        wrapped = {wrapper: wrapped, "epoch": 3}
    network = models.create(name, 100)
    assert checkpoints.load_torch(network, wrapped) is network
    np.testing.assert_array_equal(
        network.get_layer("aux_2").kernel, state["auxiliary_classifier.fc2.weight"].T
    )
    np.testing.assert_array_equal(
        network.get_layer("stem_conv").kernel,
        state["backbone.conv1.weight"].transpose(2, 3, 1, 0),
    )
    # Every weight was given: the sum of all is that of the state dict.
    total = sum(float(np.sum(v, dtype="float64")) for v in state.values())
    loaded = sum(float(np.sum(w, dtype="float64")) for w in weights(network))
    np.testing.assert_allclose(loaded, total, rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("backbone.fc.bias"),
            "1 missing, backbone.fc.bias; 0 left over, none",
        ),
        (lambda s: s.update(extra=np.zeros(1)), "0 missing, none; 1 left over, extra"),
        (
            lambda s: s.update({"backbone.fc.bias": np.zeros(10, "float32")}),
            r"1 others, backbone.fc.bias: \(10,\) instead of \(100,\)",
        ),
        (
            lambda s: s.update({"backbone.conv1.weight": np.zeros((16, 3, 1, 1))}),
            r"1 others, backbone.conv1.weight: \(16, 3, 1, 1\) instead of \(16",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(
    state, network, change, message
):
    before = weights(network)
    change(state)
    with pytest.raises(ValueError, match=f"Expected.*`resnet20`. Received: {message}"):
        checkpoints.load_torch(network, state)
    for old, new in zip(before, weights(network), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_model_that_is_not_of_the_zoo(tiny_network, state):
    with pytest.raises(ValueError, match="models.create.*model named 'tiny'"):
        checkpoints.load_torch(tiny_network(), state)


def test_a_missing_file(network):
    with pytest.raises(FileNotFoundError, match="'nowhere.pth', which is not a file"):
        checkpoints.load_torch(network, "nowhere.pth")


def test_a_file_loads(network, state, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "resnet20.pth.tar"
    torch.save({"net": {k: torch.from_numpy(v) for k, v in state.items()}}, path)
    checkpoints.load_torch(network, path)
    np.testing.assert_array_equal(
        network.get_layer("logits").bias, state["backbone.fc.bias"]
    )


def test_a_file_is_read_without_executing_code(network, tmp_path, monkeypatch):
    """What must hold of the call, also where PyTorch is not installed."""
    arguments = {}

    def load(path, **kwargs):
        arguments.update(kwargs)
        raise EOFError("Ran out of input")

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=load))
    path = tmp_path / "broken.pth"
    path.write_bytes(b"")
    before = weights(network)
    with pytest.raises(ValueError, match=r"broken.pth', which is.*Ran out of input"):
        checkpoints.load_torch(network, path)
    assert arguments["weights_only"] is True
    for old, new in zip(before, weights(network), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_file_without_pytorch(network, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "some.pth"
    path.write_bytes(b"")
    with pytest.raises(ImportError, match=r"keras_hsakd\[torch\]"):
        checkpoints.load_torch(network, path)


class Exploit:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps(Exploit())])
def test_a_corrupt_or_malicious_file(network, content, tmp_path, capsys):
    pytest.importorskip("torch")
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="Expected.*PyTorch.*broken.pth', which is"):
        checkpoints.load_torch(network, path)
    assert "executed" not in capsys.readouterr().out


def test_a_truncated_file(network, state, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "truncated.pth"
    torch.save({k: torch.from_numpy(v) for k, v in state.items()}, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="truncated.pth', which is corrupt"):
        checkpoints.load_torch(network, path)
