import argparse
import contextlib
import pickle
import sys
import types

import keras
import numpy as np
import pytest
from reference.fill import fill
from test_models import OFFICIAL, SMALL, assert_same_state, by_cost, outputs_file

import keras_hsakd
from keras_hsakd import attach_heads, checkpoints, models
from keras_hsakd.compat import shapes_only


def filled(name):
    return fill(OFFICIAL[name]["state_dict"])


@pytest.fixture
def state():
    return filled("resnet20")


@pytest.fixture(scope="module")
def initial():
    network = models.create("resnet20", 100)
    return network, network.get_weights()


@pytest.fixture
def network(initial):
    """Returns a network as it was before other tests loaded weights."""
    network, values = initial
    network.set_weights(values)
    return network


def weights(model):
    return [keras.ops.convert_to_numpy(w).copy() for w in model.weights]


def assert_loaded(network, state):
    np.testing.assert_array_equal(
        network.get_layer("logits").bias, state["backbone.fc.bias"]
    )
    np.testing.assert_array_equal(
        network.get_layer("stem_conv").kernel,
        state["backbone.conv1.weight"].transpose(2, 3, 1, 0),
    )


def test_every_weight_of_a_state_dict_is_loaded(network, state):
    assert checkpoints.load_torch(network, state) is network
    assert_loaded(network, state)
    np.testing.assert_array_equal(
        network.get_layer("aux_2").kernel, state["auxiliary_classifier.fc2.weight"].T
    )
    total = sum(float(np.sum(v, dtype="float64")) for v in state.values())
    loaded = sum(float(np.sum(w, dtype="float64")) for w in weights(network))
    np.testing.assert_allclose(loaded, total, rtol=1e-9)


def renamed(state, change):
    return {change(key): value for key, value in state.items()}


@pytest.mark.parametrize(
    "place",
    [
        lambda good, other: {"net": good, "epoch": 3, "acc": 0.5},
        lambda good, other: {"epoch": 1, "model_state_dict": good, "loss": 0.1},
        lambda good, other: {"state_dict_ema": good},
        lambda good, other: {"checkpoint": {"ema": {"model": good}}, "args": {"a": 1}},
        # Several: the trained one, whichever comes first.
        lambda good, other: {"model_ema": other, "model": good},
        lambda good, other: {"net": {"params": good, "params_ema": other}},
        lambda good, other: {"student": other, "state_dict": {"net": good}},
        # Optimizers by number, by name, and by name in mappings of their own.
        lambda good, other: {
            "module": good,
            "optimizer": {"state": {0: {"exp_avg": np.ones(3)}}},
            "optim": {"state": {"conv1.weight": {"exp_avg": np.ones(3)}}},
            "shadow": {"exp_avg": other},
        },
        # Hydra's flat options are no weights.
        lambda good, other: {"best": good, "options": {"loss.weight": 0.5}},
    ],
)
def test_a_state_dict_is_found_where_it_stands(network, state, place):
    content = place(state, {key: value + 1 for key, value in state.items()})
    checkpoints.load_torch(network, content)
    assert_loaded(network, state)
    assert checkpoints.has_heads(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda key: f"module.{key}",
        lambda key: f"module._orig_mod.module.{key}",
        lambda key: key.replace("conv1.", "_orig_mod.conv1.module."),
        lambda key: key.replace(
            "layer1.", "_fsdp_wrapped_module.layer1._checkpoint_wrapped_module."
        ),
    ],
)
def test_what_wraps_modules_is_passed_over(network, state, change):
    content = {"n_averaged": np.array(7), **renamed(state, change)}
    content["module.backbone.bn1.num_batches_tracked"] = np.array(7)
    checkpoints.load_torch(network, content)
    assert_loaded(network, state)


def test_one_of_several_state_dicts(network, state):
    averaged = {key: value + 1 for key, value in state.items()}
    both = {"model": state, "model_ema": renamed(averaged, lambda key: f"module.{key}")}
    for prefix in ("model_ema.", "model_ema", "module.model_ema."):
        checkpoints.load_torch(network, both, prefix=prefix)
        assert_loaded(network, averaged)
    peers = {"peers": {"first": state, "second": averaged}}
    with pytest.raises(ValueError, match='2, "peers.first.", "peers.second."'):
        checkpoints.load_torch(network, peers)
    checkpoints.load_torch(network, peers, prefix="peers.second.")
    assert_loaded(network, averaged)
    with pytest.raises(ValueError, match="'net3.' for keys that begin with \"peers.\""):
        checkpoints.load_torch(network, peers, prefix="net3.")
    with pytest.raises(ValueError, match="each weight once.*'module.backbone.conv1.w"):
        checkpoints.load_torch(
            network, {**state, "module.backbone.conv1.weight": np.zeros(1)}
        )


@pytest.mark.parametrize(
    ("content", "received"),
    [
        ({"optimizer": {0: np.ones(1)}, "epoch": 1}, "keys 'optimizer', 'epoch'"),
        ({}, "keys none"),
    ],
)
def test_a_checkpoint_without_a_state_dict(network, content, received):
    with pytest.raises(ValueError, match=f"Expected a state dict.*{received}"):
        checkpoints.load_torch(network, content)


@pytest.mark.parametrize("content", [[1], keras.Sequential()])
def test_what_is_neither_path_nor_state_dict(network, content):
    with pytest.raises(ValueError, match=f"Received: a {type(content).__name__}"):
        checkpoints.load_torch(network, content)


@pytest.mark.parametrize("whole", [True, False])
def test_a_prefix_that_was_not_given_is_named(network, state, whole):
    state = state if whole else backbone_of(state)
    content = {f"model.{key}": value for key, value in state.items()}
    content["criterion.weight"] = np.ones(3)
    with pytest.raises(ValueError, match='model.*conv1.*`prefix="model."` loads'):
        checkpoints.load_torch(network, {"state_dict": content})
    nested = renamed(content, lambda key: f"net.{key}")
    for prefix in ("net", "net."):
        with pytest.raises(ValueError, match='`prefix="net.model."` loads'):
            checkpoints.load_torch(network, nested, prefix=prefix)
    checkpoints.load_torch(network, nested, prefix="net.model.")


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_floats_of_any_width(network, state, dtype):
    state = {key: value.astype(dtype) for key, value in state.items()}
    checkpoints.load_torch(network, state)
    assert_loaded(network, {k: v.astype("float32") for k, v in state.items()})


@pytest.mark.parametrize(
    ("change", "received"),
    [
        (lambda v: v.astype("int32"), "dense.*bn1.running_var: ndarray.*int32"),
        (lambda v: v > 0, "dense.*bn1.running_var: ndarray.*bool"),
        (lambda v: v + 0j, "dense.*bn1.running_var: ndarray.*complex64"),
        (lambda v: v.tolist(), "dense.*bn1.running_var: list"),
        (lambda v: None, "dense.*bn1.running_var: NoneType"),
        (lambda v: v * np.nan, "finite.*1 others, backbone.bn1.running_var$"),
        (lambda v: np.float64(1e300) * (1 + v), "finite.*backbone.bn1.running_var$"),
        (lambda v: -1 - v, "no negative running_var.*backbone.bn1.running_var$"),
    ],
)
def test_what_is_no_weight_is_refused_before_any_is_loaded(
    state, network, change, received
):
    before = weights(network)
    state["backbone.bn1.running_var"] = change(state["backbone.bn1.running_var"])
    with pytest.raises(ValueError, match=f"Expected a state dict.*{received}"):
        checkpoints.load_torch(network, state)
    for old, new in zip(before, weights(network), strict=True):
        np.testing.assert_array_equal(old, new)


# `test_models` does so for those with outputs of the authors' code.
@pytest.mark.parametrize(
    "name", by_cost(name for name in OFFICIAL if not outputs_file(name).exists())
)
def test_to_our_weights_and_back_is_the_identity(name):
    state = filled(name)
    network = models.create(name, OFFICIAL[name]["num_classes"], (32, 32, 3))
    checkpoints.load_torch(network, state)
    assert_same_state(checkpoints.torch_state_dict(network), state)


def backbone_of(state, classifier="fc"):
    """Returns the state dict of a backbone alone, as CRD and torchvision have it."""
    return {
        key.removeprefix("backbone.").replace("classifier", classifier): value
        for key, value in state.items()
        if key.startswith("backbone.")
    }


def test_a_backbone_alone_leaves_the_heads_as_they_are(network, state):
    before = {v.path: keras.ops.convert_to_numpy(v) for v in network.variables}
    checkpoints.load_torch(network, {"model": backbone_of(state), "epoch": 240})
    for variable in network.variables:
        same = np.array_equal(
            keras.ops.convert_to_numpy(variable), before[variable.path]
        )
        assert same == variable.path.startswith("aux_"), variable.path


def test_a_network_without_heads_to_a_backbone_and_back(state):
    plain = models.create("resnet20", 100, heads=False)
    checkpoints.load_torch(plain, backbone_of(state))
    back = checkpoints.torch_state_dict(plain)
    assert set(back) == set(backbone_of(state))
    with pytest.raises(ValueError, match="left over, auxiliary_classifier"):
        checkpoints.load_torch(plain, state)


def test_mobilenet_of_crd():
    """Its classifier is a Sequential of one layer."""
    state = filled("mobilenet_v2")
    network = models.create("mobilenet_v2", 100, heads=False)
    checkpoints.load_torch(network, backbone_of(state, classifier="classifier.0"))
    np.testing.assert_array_equal(
        network.get_layer("logits").bias, state["backbone.classifier.bias"]
    )


def test_a_part_of_a_state_dict(network, state):
    both = {f"net{i}.{key}": i * value for i in (1, 2) for key, value in state.items()}
    checkpoints.load_torch(network, both, prefix="net2.")
    np.testing.assert_array_equal(
        network.get_layer("logits").bias, 2 * state["backbone.fc.bias"]
    )
    with pytest.raises(ValueError, match="496 left over, net1"):
        checkpoints.load_torch(network, {**state, **both})


def test_another_number_of_classes(state):
    network = models.create("resnet20", 7)
    with pytest.raises(ValueError, match="8 others.*`classifiers=False` loads"):
        checkpoints.load_torch(network, state)
    before = keras.ops.convert_to_numpy(network.get_layer("logits").kernel)
    checkpoints.load_torch(network, state, classifiers=False)
    np.testing.assert_array_equal(network.get_layer("logits").kernel, before)
    np.testing.assert_array_equal(
        network.get_layer("aux_3_stage3_block1_bn1").gamma,
        state["auxiliary_classifier.block_extractor3.0.0.bn1.weight"],
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("backbone.fc.bias"),
            "1 missing, backbone.fc.bias; 0 left over, none",
        ),
        (lambda s: s.update(extra=np.zeros(1)), "0 missing, none; 1 left over, extra$"),
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


def test_a_model_of_that_name_that_is_not_of_the_zoo():
    images = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="conv1_conv")(images)
    model = keras.Model(images, keras.layers.Flatten()(x), name="resnet50")
    with pytest.raises(ValueError, match="models.create.*layer named 'conv1_conv'"):
        checkpoints.torch_state_dict(model)


@pytest.mark.parametrize("name", ["wrn_10_2", "resnet14"])
def test_a_network_that_is_in_no_table(name, tmp_path):
    """Also where it was read from a file, which holds no more than its layers."""

    def make():
        return SMALL[name](num_classes=5, input_shape=(16, 16, 3))

    network, copy = make(), make()
    state = checkpoints.torch_state_dict(network)
    assert len([key for key in state if "num_batches" not in key]) == len(
        network.variables
    )
    network.save(tmp_path / "network.keras")
    network = keras.saving.load_model(tmp_path / "network.keras")
    assert set(checkpoints.torch_state_dict(network)) == set(state)
    checkpoints.load_torch(copy, checkpoints.torch_state_dict(network))
    for old, new in zip(weights(network), weights(copy), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_names_of_resnets_follow_from_their_stages():
    with shapes_only():
        small, imagenet = (
            models.torch_names(SMALL[name](num_classes=5, heads=False))
            for name in ("resnet14", "resnet10_imagenet")
        )
    assert small["stage2_block1_shortcut_conv"] == "backbone.layer2.0.shortcut.0"
    assert small["logits"] == "backbone.linear"
    assert imagenet["stage2_block1_shortcut_conv"] == "backbone.layer2.0.downsample.0"
    assert imagenet["logits"] == "backbone.fc"


@pytest.mark.parametrize("head", ["copy", "light"])
def test_a_backbone_alone_goes_under_heads_that_were_attached(head):
    plain, other = (models.create("resnet8", 5, (8, 8, 3), heads=False) for _ in "12")
    network = attach_heads(other, head=head)
    checkpoints.load_torch(network, checkpoints.torch_state_dict(plain))
    for old, new in zip(weights(plain), weights(other), strict=True):
        np.testing.assert_array_equal(old, new)
    # The authors have no names for such heads: better none than half of them.
    with pytest.raises(ValueError, match="models.create.*layer named 'aux_"):
        checkpoints.torch_state_dict(network)


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


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.bfloat16(),
        lambda tensor: tensor.double(),
        lambda tensor: tensor.float().requires_grad_(),
        lambda tensor: tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor,
    ],
)
def test_tensors_as_training_leaves_them(network, state, change):
    torch = pytest.importorskip("torch")
    tensors = {k: change(torch.from_numpy(v)) for k, v in state.items()}
    checkpoints.load_torch(network, tensors)
    assert_loaded(network, {k: v.detach().float().numpy() for k, v in tensors.items()})


@pytest.mark.parametrize(
    ("change", "received"),
    [
        (lambda tensor: tensor.to_sparse(), "torch.sparse_coo"),
        (lambda tensor: tensor.to("meta"), "meta"),
        (lambda tensor: tensor.long(), "torch.int64"),
    ],
)
def test_tensors_that_are_no_weights(network, state, change, received):
    torch = pytest.importorskip("torch")
    state["backbone.conv1.weight"] = change(
        torch.from_numpy(state["backbone.conv1.weight"])
    )
    with pytest.raises(ValueError, match=f"conv1.weight: Tensor.*{received}"):
        checkpoints.load_torch(network, state)


def test_a_file_of_bfloat16(network, state, tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    state = {key: value.astype("bfloat16") for key, value in state.items()}
    numpy.save_file(state, tmp_path / "resnet20.safetensors")
    checkpoints.load_torch(network, tmp_path / "resnet20.safetensors")
    assert_loaded(network, {k: v.astype("float32") for k, v in state.items()})


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".safetensors"])
def test_a_file_that_we_wrote(network, state, suffix, tmp_path):
    package = "safetensors" if suffix == ".safetensors" else "torch"
    pytest.importorskip(package)
    checkpoints.load_torch(network, state)
    path = tmp_path / f"resnet20{suffix}"
    checkpoints.save_torch(network, path)
    copy = models.create("resnet20", 100)
    checkpoints.load_torch(copy, path)
    for old, new in zip(weights(network), weights(copy), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_a_file_holds_beside_the_weights(network, state, zipped, tmp_path):
    """CRD's checkpoints hold their arguments, others NumPy's numbers and paths."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "resnet20.pth"
    tensors = {k: torch.from_numpy(v) for k, v in backbone_of(state).items()}
    content = {
        "opt": argparse.Namespace(milestones=[150, 180, 210], folder=tmp_path),
        "model": tensors,
        "best_acc": np.float64(0.5),
        "generator": np.random.RandomState(0).get_state(),
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    checkpoints.load_torch(network, path)
    assert_loaded(network, state)


def test_weights_that_are_no_tensors_in_a_file(network, state, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(state, tmp_path / "resnet20.pth")
    with pytest.raises(ValueError, match="conv1.weight: .*no tensor of PyTorch"):
        checkpoints.load_torch(network, tmp_path / "resnet20.pth")


def test_a_file_is_read_without_executing_code(network, tmp_path, monkeypatch):
    """What must hold of the call, also where PyTorch is not installed."""
    arguments = {}

    def load(path, **kwargs):
        arguments.update(kwargs)
        raise EOFError("Ran out of input")

    serialization = types.SimpleNamespace(
        safe_globals=lambda allowed: contextlib.nullcontext()
    )
    torch = types.SimpleNamespace(load=load, serialization=serialization)
    monkeypatch.setitem(sys.modules, "torch", torch)
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


# Keras files, as MLPerf Tiny publishes them.


def their_classifier(filters=4, classes=5):
    """Returns MLPerf Tiny's network as Keras' own layers make it, with a softmax."""
    layers, conv = keras.layers, lambda *a, **k: keras.layers.Conv2D(*a, **k)

    def unit(x, width, stride=1):
        x = conv(width, 3, strides=stride, padding="same")(x)
        return layers.BatchNormalization()(x)

    images = keras.Input((16, 16, 3))
    x = layers.ReLU()(unit(images, filters))
    for width in (filters, 2 * filters, 4 * filters):
        stride = 1 if width == filters else 2
        y = unit(layers.ReLU()(unit(x, width, stride)), width)
        if stride > 1:
            x = conv(width, 1, strides=2, padding="same")(x)
        x = layers.ReLU()(layers.add([x, y]))
    x = layers.Flatten()(layers.AveragePooling2D(x.shape[1])(x))
    return keras.Model(images, layers.Dense(classes, activation="softmax")(x))


@pytest.fixture
def keras_file(tmp_path):
    """Returns a classifier with statistics that moved, and its file."""
    model, rng = their_classifier(), np.random.default_rng(0)
    for weight in model.weights:
        if len(weight.shape) == 1:
            weight.assign(weight + rng.uniform(0, 0.2, weight.shape))
    model.save(tmp_path / "model.h5")
    return model, tmp_path / "model.h5"


@pytest.mark.parametrize("heads", [False, True])
def test_a_keras_file_is_loaded(keras_file, heads):
    model, path = keras_file
    network = models.mlperf_resnet(4, 5, input_shape=(16, 16, 3), heads=heads)
    of_heads = {v.path: np.array(v) for v in network.variables if "aux" in v.path}
    assert checkpoints.load_keras(network, path) is network
    # Small, so that no probability is next to 0 or 1.
    x = np.random.default_rng(1).uniform(0, 1, (3, 16, 16, 3)).astype("float32")
    logits = keras_hsakd.strip_heads(network)(x, training=False)
    np.testing.assert_allclose(
        keras.ops.softmax(logits), model(x, training=False), rtol=1e-4, atol=1e-6
    )
    for variable in network.variables:
        if variable.path in of_heads:
            np.testing.assert_array_equal(variable, of_heads[variable.path])


def test_a_keras_file_of_other_layers(keras_file, tmp_path):
    model, path = keras_file
    network = models.mlperf_resnet(4, 7, input_shape=(16, 16, 3), heads=False)
    before = weights(network)
    for wrong, message in (
        (path, r"48 weights of `mlperf_resnet8_4`.*number 47 has.*\(16, 5\) instead"),
        (tmp_path, "Expected a Keras .h5 file"),
        (__file__, "Expected a Keras .h5 file, with the names"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            checkpoints.load_keras(network, wrong)
    model.weights[-1].assign(np.full(5, np.nan))
    model.save(path)
    fitting = models.mlperf_resnet(4, 5, input_shape=(16, 16, 3), heads=False)
    with pytest.raises(ValueError, match="finite weights"):
        checkpoints.load_keras(fitting, path)
    for value, other in zip(weights(network), before, strict=True):
        np.testing.assert_array_equal(value, other)
