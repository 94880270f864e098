import importlib.util
import json
import math
import pathlib

import keras
import numpy as np
import pytest
from reference.fill import fill

from keras_hsakd import checkpoints, heads, models, zoo
from keras_hsakd.compat import shapes_only

PROGRAM = pathlib.Path(__file__).parent.parent / "benchmarks" / "zoo.py"
spec = importlib.util.spec_from_file_location("costs", PROGRAM)
costs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(costs)
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
# Smaller networks of the same family are as good.
LARGE = (
    "wrn_40_2",
    "resnet56",
    "resnet110",
    "resnet32x4",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet18_imagenet",
    "resnet34_imagenet",
    "resnet50_imagenet",
    "vgg13_bn",
)


def by_cost(names):
    """Returns parameters of a test; those of large networks are slow."""
    marks = {name: [pytest.mark.slow] for name in LARGE}
    return [pytest.param(name, marks=marks.get(name, [])) for name in names]


def outputs_file(name):
    return REFERENCE / "outputs" / f"{AUTHORS[name]}_aux.npz"


def trainable_parameters(model):
    return sum(math.prod(v.shape) for v in model.trainable_variables)


def test_every_official_network_is_there():
    assert {f"{authors}_aux" for authors in AUTHORS.values()} == set(ALL)
    assert set(AUTHORS) < set(models.names())


@pytest.mark.parametrize("name", by_cost(AUTHORS))
def test_size_and_cost_of_the_official_network(name):
    official = OFFICIAL[name]
    with shapes_only():  # shapes are enough
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
        *(pytest.param(name, marks=pytest.mark.core) for name in ON_JAX),
        *by_cost(
            name
            for name in AUTHORS
            if outputs_file(name).exists() and name not in ON_JAX
        ),
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
        outputs = network(x.transpose(0, 2, 3, 1).astype("float32"), training=False)
        expected = {"logits": reference["logits"]}
        for i in range(official["heads"]):
            expected[f"aux_{i + 1}"] = reference[f"aux_logits_{i}"]
    assert set(outputs) == set(expected)
    for key, value in expected.items():
        # float32 convolutions in another order: at most 9e-7 here.
        np.testing.assert_allclose(
            outputs[key], value, rtol=0, atol=1e-5 * np.abs(value).max()
        )
    assert_same_state(checkpoints.torch_state_dict(network), state)


def assert_same_state(back, state):
    assert set(back) == set(state)
    for key, value in state.items():
        assert back[key].dtype == value.dtype
        np.testing.assert_array_equal(back[key], value)


ONE_OF_EACH = ("wrn_16_2", "resnet8", "vgg8_bn", "mobilenet_v2", "mlperf_resnet8")
ONE_OF_EACH += ("shufflenet_v1", "shufflenet_v2_x0_3")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ONE_OF_EACH else pytest.mark.slow)
        for name in models.names()
    ],
)
def test_every_variant_has_heads_and_takes_other_images(name):
    with shapes_only():
        network = models.create(name, 7, input_shape=(15, 15, 3))
        plain = models.create(name, 7, input_shape=(15, 15, 3), heads=False)
    assert network.name == name
    assert network.output["logits"].shape == (None, 7)
    for head in heads.head_names(network):
        assert network.output[head].shape == (None, 28)
    assert plain.output_shape == (None, 7)
    stripped = heads.strip_heads(network)
    assert {v.path: v.shape for v in plain.variables} == {
        v.path: v.shape for v in stripped.variables
    }
    assert_every_variable_has_a_key(network)
    # What the command line tells of it without making it.
    assert zoo.COSTS[name].image_size == models.default_image_size(name)
    assert list(told(name, 15, 7)) == [
        trained(plain),
        models.multiply_adds(plain),
        len(heads.head_names(network)),
        trained(network),
    ]


@pytest.mark.parametrize("name", ["mobilenet_v2", "vgg8_bn", "resnet18_imagenet"])
def test_the_file_of_costs_is_as_it_is_written(name):
    known = zoo.COSTS[name]
    counted = costs.cost(name, known.image_size)
    assert json.loads(json.dumps(counted)) == list(known)
    row = json.dumps(counted._asdict())
    assert f'"{name}": {row}' in costs.PATH.read_text()


def told(name, image_size, num_classes):
    """Returns the numbers of a network in the table."""
    for line in models.table(image_size, num_classes).splitlines():
        _, of, *cells, _ = (cell.strip() for cell in line.split("|"))
        if of == name:
            return [int(cell.replace(",", "")) for cell in cells]


def trained(network):
    return sum(math.prod(variable.shape) for variable in network.trainable_variables)


@pytest.mark.parametrize("name", ["wrn_10_1", "vgg8_bn", "resnet18_imagenet"])
def test_images_need_not_be_square(name):
    with shapes_only():
        plain = models.create(name, 7, input_shape=(15, 40, 3), heads=False)
    assert zoo.multiply_adds(name, (15, 40), 7) == models.multiply_adds(plain)
    assert zoo.multiply_adds(name, (40, 15), 7) == models.multiply_adds(plain)


def test_images_may_be_grey():
    with shapes_only():
        network = models.create("resnet8", 7, input_shape=(8, 8, 1))
    assert network.input_shape == (None, 8, 8, 1)


def test_the_costs_are_of_all_networks():
    assert list(zoo.COSTS) == models.names()
    with pytest.raises(ValueError, match="`image_size` to be at least 8 for vgg8_bn"):
        models.table(7)
    with pytest.raises(ValueError, match=r"at least 8 for vgg8_bn.*=\(7, 32\)"):
        models.table((7, 32))
    with pytest.raises(ValueError, match="`num_classes` to be at least 2.*=1"):
        models.table(num_classes=1)


def assert_every_variable_has_a_key(network):
    variables = [e.variable for e in checkpoints._entries(network).values()]
    assert {id(v) for v in variables} == {id(v) for v in network.variables}


FOUR_STAGES = (64, 128, 256, 512)
# name: its builder, and what a row of the table stands for
BUILDERS = {
    "wrn_16_2": (models.wrn, {"depth": 16, "widening": 2}),
    "resnet14": (models.resnet, {"blocks": (2, 2, 2), "filters": (16, 32, 64)}),
    "resnet8x4": (
        models.resnet,
        {"blocks": (1, 1, 1), "filters": (64, 128, 256), "stem_filters": 32},
    ),
    "resnet50": (
        models.resnet,
        {"blocks": (3, 4, 6, 3), "filters": FOUR_STAGES, "block": "bottleneck"},
    ),
    "resnet18_imagenet": (
        models.resnet,
        {"blocks": (2, 2, 2, 2), "filters": FOUR_STAGES, "image_size": 224},
    ),
    "vgg11_bn": (models.vgg, {"convolutions": (1, 1, 2, 2, 2)}),
    "mobilenet_v2": (models.mobilenet_v2, {"width": 0.5}),
    "shufflenet_v1": (models.shufflenet, {"version": 1, "filters": (240, 480, 960)}),
    "shufflenet_v2": (
        models.shufflenet,
        {"version": 2, "filters": (116, 232, 464), "neck_filters": 1024},
    ),
    "mlperf_resnet8_26": (models.mlperf_resnet, {"filters": 26}),
}


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {"num_views": 2}) for name in BUILDERS), ("wrn_16_2", {"heads": False})],
)
def test_a_builder_makes_the_rows_of_its_table(name, options):
    builder, parameters = BUILDERS[name]
    with shapes_only():
        row = models.create(name, 10, **options)
        built = builder(**parameters, num_classes=10, **options)
    # That of all rows here but "resnet8x4" tells the parameters.
    assert built.name == name.replace("8x4", "8")
    assert built.input_shape == row.input_shape
    assert [(v.path, v.shape, v.trainable) for v in built.variables] == [
        (v.path, v.shape, v.trainable) for v in row.variables
    ]
    assert [layer.get_config() for layer in built.layers] == [
        layer.get_config() for layer in row.layers
    ]


@pytest.mark.core
def test_a_wide_residual_network_that_is_in_no_table():
    with shapes_only():
        network = models.wrn(28, 10, num_classes=10)
    assert network.name == "wrn_28_10"
    # The 36.5 million of Zagoruyko and Komodakis, table 4.
    assert trainable_parameters(heads.strip_heads(network)) == 36_479_194
    assert len(heads.head_names(network)) == 3


# Of each family, a small network that is in no table.
SMALL = {
    "wrn_10_2": lambda **options: models.wrn(10, 2, **options),
    "resnet10": lambda **options: models.resnet((1, 1, 2), (4, 8, 12), **options),
    "resnet14": lambda **options: models.resnet(
        (1, 1, 1, 1), (4, 8, 12, 16), block="bottleneck", **options
    ),
    "resnet10_imagenet": lambda **options: models.resnet(
        (1, 1, 1, 1), (4, 8, 12, 16), image_size=64, **options
    ),
    "vgg9_bn": lambda **options: models.vgg((1, 1, 1, 1, 2), **options),
    "mobilenet_v2": lambda **options: models.mobilenet_v2(0.1, **options),
    "shufflenet_v1": lambda **options: models.shufflenet(
        1, (36, 72, 144), blocks=(1, 2, 1), **options
    ),
    "shufflenet_v2": lambda **options: models.shufflenet(
        2, (12, 24, 48), neck_filters=32, blocks=(1, 2, 1), **options
    ),
    "mlperf_resnet8_4": lambda **options: models.mlperf_resnet(4, **options),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_network_that_is_in_no_table(name):
    with shapes_only():
        network = SMALL[name](num_classes=5, input_shape=(16, 16, 3), num_views=2)
        other = SMALL[name](num_classes=5, name="other", heads=False)
    assert network.name == name
    assert other.name == "other"
    assert network.output["logits"].shape == (None, 5)
    for head in heads.head_names(network):
        assert network.output[head].shape == (None, 10)
    assert_every_variable_has_a_key(network)


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


def initialised(network, name):
    """Returns one layer of a network that has shapes alone, with weights."""
    layer = network.get_layer(name)
    copy = type(layer).from_config(layer.get_config())
    copy.build(layer.input.shape)
    return copy


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
    with shapes_only():
        network = models.create(name, 1000, input_shape=(32, 32, 3))
    for prefix, classifier, (conv, dense, zero_bias) in (
        ("", "logits", of_backbone),
        ("aux_1_", "aux_1", of_heads),
    ):
        convolution = initialised(network, prefix + layer)
        linear = initialised(network, classifier)
        kernel = keras.ops.convert_to_numpy(convolution.kernel)
        if conv == "normal":
            assert_normal(kernel, normal(kernel))
        else:
            assert_uniform(kernel, uniform(kernel))
        kernel = keras.ops.convert_to_numpy(linear.kernel)
        if dense == "normal":
            assert_normal(kernel, 0.01)
        else:
            assert_uniform(kernel, uniform(kernel))
        for biased in (convolution, linear):
            if biased.bias is None:
                continue
            bias = keras.ops.convert_to_numpy(biased.bias)
            if zero_bias:
                assert not bias.any()
            else:
                assert_uniform(bias, uniform(biased.kernel))


@pytest.mark.core
def test_no_two_layers_start_with_the_same_weights():
    network = models.create("resnet14", 10)
    kernels = {
        keras.ops.convert_to_numpy(layer.kernel).tobytes()
        for layer in network.layers
        if isinstance(layer, keras.layers.Conv2D)
    }
    assert len(kernels) == sum("conv" in v.path for v in network.trainable_variables)


# MLPerf Tiny's layers with weights, in the order of its Keras files: shapes of kernels
# with biases, and of batch normalizations.
def _mlperf_shapes(filters):
    def conv(size, taken, made):
        return [(size, size, taken, made), (made,)]

    def norm(made):
        return [(made,)] * 4

    shapes = conv(3, 3, filters) + norm(filters)
    taken = filters
    for made in (filters, 2 * filters, 4 * filters):
        shapes += conv(3, taken, made) + norm(made) + conv(3, made, made)
        shapes += conv(1, taken, made) if made > taken else []
        shapes += norm(made)
        taken = made
    return [*shapes, (taken, 10), (10,)]


@pytest.mark.parametrize(
    ("name", "filters", "parameters"),
    [
        ("mlperf_resnet8", 16, 78_666),
        ("mlperf_resnet8_26", 26, 205_306),
        ("mlperf_resnet8_40", 40, 482_730),
    ],
)
def test_the_layers_of_mlperf_tiny(name, filters, parameters):
    with shapes_only():
        network = models.create(name, 10, heads=False)
    assert network.count_params() == parameters
    layers = [layer for layer in network.layers if layer.weights]
    shapes = [tuple(weight.shape) for layer in layers for weight in layer.weights]
    assert shapes == _mlperf_shapes(filters)
    for layer in network.layers:
        if "conv" in layer.name:
            assert layer.padding == "same"
        if "bn" in layer.name:
            assert (layer.epsilon, layer.momentum) == (1e-3, 0.99)
    # He's: truncated normals of the inputs, not of the filters.
    kernel = initialised(network, "stage3_block1_conv1").kernel
    assert_normal(keras.ops.convert_to_numpy(kernel), (2 / (9 * 2 * filters)) ** 0.5)
    linear = initialised(network, "logits")
    kernel = keras.ops.convert_to_numpy(linear.kernel)
    assert_normal(kernel, (2 / (4 * filters)) ** 0.5)
    assert not np.any(linear.bias)


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


@pytest.mark.core
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.wrn(27, 10, 10), r"`depth` to be 6n \+ 4.*depth=27"),
        (lambda: models.wrn(4, 10, 10), r"`depth` to be 6n \+ 4.*depth=4"),
        (lambda: models.wrn(28, 0, 10), "`widening` to be at least 1.*widening=0"),
        (lambda: models.wrn(28, 10, 1), "`num_classes` to be at least 2.*=1"),
        (
            lambda: models.wrn(28, 10, 10, num_views=1),
            "`num_views` to be at least 2.*num_views=1",
        ),
        (
            lambda: models.wrn(28, 10, 10, input_shape=(32, 32)),
            r"`input_shape`.*input_shape=\(32, 32\)",
        ),
        (
            lambda: models.resnet((1, 1), (16, 32, 64), 10),
            r"`blocks` and `filters` to have a number for each stage.*blocks=\(1, 1\)",
        ),
        (lambda: models.resnet((), (), 10), r"`blocks` to be at least 1.*blocks=\(\)"),
        (
            lambda: models.resnet((1, 0), (16, 32), 10),
            r"`blocks` to be at least 1.*blocks=\(1, 0\)",
        ),
        (
            lambda: models.resnet((1,), (16,), 10, block="wide"),
            "`block` to be one of.*'bottleneck'.*block='wide'",
        ),
        (lambda: models.mlperf_resnet(0, 10), "`filters` to be at least 1.*filters=0"),
        (lambda: models.vgg((1, 1, 1), 10), r"`convolutions`.*five.*\(1, 1, 1\)"),
        (lambda: models.vgg((1, 1, 0, 1, 1), 10), "`convolutions`.*at least 1.*0"),
        (lambda: models.mobilenet_v2(0.05, 10), "`width` to be at least.*width=0.05"),
        (
            lambda: models.shufflenet(3, (12, 24, 48), 10),
            "`version` to be 1 or 2.*version=3",
        ),
        (
            lambda: models.shufflenet(1, (24, 48, 96), 10),
            r"growing multiples of 12 above 24.*\(24, 48, 96\)",
        ),
        (
            lambda: models.shufflenet(1, (36, 72, 100), 10),
            r"growing multiples of 12 above 24.*\(36, 72, 100\)",
        ),
        (
            lambda: models.shufflenet(2, (12, 25, 48), 10),
            r"version 2 to be even.*\(12, 25, 48\)",
        ),
    ],
)
def test_parameters_that_no_network_has(make, message):
    with pytest.raises(ValueError, match=f"Expected.*{message}"):
        make()
