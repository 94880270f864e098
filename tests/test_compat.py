"""What the package uses of Keras that is private is there, and in one module."""

import ast
import functools
import importlib
import inspect
import pathlib
import pkgutil
import re

import keras
import numpy as np
import pytest

import keras_hsakd
from keras_hsakd import compat
from keras_hsakd.layers import Logits

PACKAGE = pathlib.Path(keras_hsakd.__file__).parent
TENSORFLOW = keras.backend.backend() == "tensorflow"
# Public in spite of their names.
BY_CONVENTION = {"_asdict", "_exit", "_fields", "_make", "_replace"}


def dense(units=2):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)])


# What is private is there.


@pytest.mark.skipif(not TENSORFLOW, reason="a part of it is TensorFlow's alone")
def test_hooks_of_keras_are_there():
    gone = [row for row in compat.HOOKS if not callable(getattr(*row[:2], None))]
    assert not gone


@pytest.mark.core
def test_states_of_callbacks_are_there(tmp_path):
    callbacks = [
        keras.callbacks.EarlyStopping("loss"),
        keras.callbacks.ReduceLROnPlateau("loss"),
        keras.callbacks.ModelCheckpoint(tmp_path / "model.keras"),
        keras.callbacks.SwapEMAWeights(),
        keras.callbacks.TensorBoard(tmp_path / "logs", write_graph=False),
    ]
    assert set(map(type, callbacks)) == set(compat.CALLBACK_STATES)
    model = dense()
    model.compile(keras.optimizers.SGD(use_ema=True), "mse")
    model.fit(np.ones((2, 4)), np.ones((2, 2)), callbacks=callbacks, verbose=0)
    gone = [
        f"{type(callback).__name__}.{name}"
        for callback in callbacks
        for name in compat.CALLBACK_STATES[type(callback)]
        if not hasattr(callback, name)
    ]
    assert not gone


@pytest.mark.core
def test_the_node_of_a_tensor_is_found():
    image = keras.Input((4,))
    layer = keras.layers.Dense(2)
    layer(keras.Input((4,)))  # its first node, not the one asked for
    node = compat.node_of(layer(image))
    assert node.operation is layer
    assert node.input_tensors[0] is image
    assert not compat.node_of(image).input_tensors


class Block(keras.layers.Layer):
    """Layers as attributes, alone and in a list, as blocks of keras-cv have them."""

    def __init__(self):
        super().__init__()
        self.first = keras.layers.Dense(3)
        self.others = [keras.layers.Dense(3), dense(units=3)]

    def build(self, input_shape):
        """Has nothing to build: it is looked at, not called."""

    def call(self, inputs):
        return inputs


@pytest.mark.core
def test_layers_within_layers_are_found():
    inner, block, timed = dense(units=4), Block(), keras.layers.Dense(4)
    classifier = keras.layers.Dense(3, activation="softmax")
    classifier(x := inner(image := keras.Input((4,))))
    x = keras.layers.TimeDistributed(timed)(keras.layers.Reshape((1, 4))(x))
    head = Logits(classifier)(keras.layers.Reshape((4,))(x))
    model = keras.Sequential([keras.Model(image, head), block])
    found = {id(layer) for layer in compat.layers_of(model)}
    for layer in (model, inner, inner.layers[0], block, block.first, timed, classifier):
        assert id(layer) in found
    for layer in (block.others[0], block.others[1].layers[0]):
        assert id(layer) in found


@pytest.mark.core
def test_unseeded_random_operations_go_on():
    keras.utils.set_random_seed(1)
    keras.random.normal((2,))
    state = compat.global_seed()
    expected = keras.ops.convert_to_numpy(keras.random.normal((2,)))
    keras.utils.set_random_seed(2)  # there is no generator until one is needed
    assert compat.global_seed() is None
    compat.set_global_seed(state)
    received = keras.ops.convert_to_numpy(keras.random.normal((2,)))
    np.testing.assert_array_equal(received, expected)


@pytest.mark.core
def test_what_has_shapes_only_gets_no_values():
    with keras.StatelessScope(initialize_variables=False):
        waiting = dense()
    with compat.shapes_only():
        made = dense()
    with keras.StatelessScope():  # gives values to all that wait for them
        pass
    assert [v.shape for v in made.variables] == [(4, 2), (2,)]
    assert all(v._value is None for v in made.variables)
    assert all(v._value is not None for v in waiting.variables)


@pytest.mark.skipif(not TENSORFLOW, reason="tf.data")
def test_what_data_sets_are_made_of_is_found():
    import tensorflow as tf

    numbers = tf.data.Dataset.range(8)
    unchanged = numbers.repeat(2).prefetch(1).with_options(tf.data.Options())
    kinds, dataset = [], unchanged
    while dataset is not numbers:
        kinds.append(type(dataset).__name__)
        (dataset,) = compat.made_of(dataset)
    assert set(kinds) == compat.UNCHANGED and len(kinds) == 3
    assert compat.made_of(numbers) == []
    assert compat.made_of(unchanged.concatenate(numbers)) == [unchanged, numbers]
    mapped = [numbers.map(tf.abs), numbers.map(tf.abs, num_parallel_calls=2)]
    assert {type(dataset).__name__ for dataset in mapped} == compat.ONE_BY_ONE
    assert type(numbers.cache()).__name__ == compat.CACHE


@pytest.mark.skipif(not TENSORFLOW, reason="tf.data")
def test_what_is_drawn_anew_each_time_is_found():
    import tensorflow as tf

    numbers = tf.data.Dataset.range(8)
    tf.random.set_seed(None)  # with one, operations without a seed have one, too
    for shuffled, differs in (
        (numbers, False),
        (numbers.shuffle(8), True),
        (numbers.shuffle(8, seed=1), True),
        (numbers.shuffle(8, reshuffle_each_iteration=False), True),
        (numbers.shuffle(8, seed=1, reshuffle_each_iteration=False), False),
    ):
        assert compat.shuffles_differ(shuffled) is differs

    def in_a_branch(number):
        return tf.cond(number > 3, lambda: tf.random.normal(()), lambda: 0.0)

    def stateless(number):
        return tf.random.stateless_uniform((), (number, 1))

    for function, found in (
        (lambda number: tf.random.uniform(()), ["RandomUniform"]),
        (in_a_branch, ["RandomStandardNormal"]),
        (stateless, []),
    ):
        assert compat.stateful_random_operations(numbers.map(function)) == found


@pytest.mark.skipif(not TENSORFLOW, reason="tf.data")
def test_data_that_are_not_alike_when_read_again():
    import tensorflow as tf

    numbers = tf.data.Dataset.range(3)
    flip = keras.layers.RandomFlip()
    for dataset, alike in (
        (numbers, True),
        (numbers.map(lambda number: tf.io.read_file(tf.strings.as_string(number))), 1),
        (numbers.map(lambda number: tf.random.uniform(())), False),
        (numbers.map(lambda number: flip(tf.zeros((2, 2, 1)), training=True)), False),
        (numbers.map(lambda x: tf.numpy_function(abs, [x], tf.int64)), False),
    ):
        assert compat.reads_alike(dataset) == alike


@pytest.mark.core
def test_fit_tells_evaluate_that_it_is_its_validation():
    seen = []

    class Spy(keras.Sequential):
        def evaluate(self, *args, **kwargs):
            seen.append(kwargs.get(compat.WITHIN_FIT))
            return super().evaluate(*args, **kwargs)

    model = Spy([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    data = np.ones((2, 4)), np.ones((2, 2))
    model.fit(*data, validation_data=data, verbose=0)
    assert seen == [True]


@pytest.mark.skipif(not TENSORFLOW, reason="tf.distribute")
def test_the_length_of_distributed_data_is_told():
    import tensorflow as tf

    made = tf.distribute.OneDeviceStrategy("CPU:0").distribute_datasets_from_function(
        lambda context: tf.data.Dataset.range(8)
    )
    assert made.cardinality == 8
    compat.set_cardinality(made, 4)
    assert made.cardinality == 4


# What is private is in one module.


def is_private(name):
    public = name.endswith("__") or name in BY_CONVENTION
    return name.startswith("_") and name != "_" and not public


def accesses(tree):
    """Yields all (object as source code, private attribute, line) of a syntax tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner, name = node.value, node.attr
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", None) in ("getattr", "setattr", "hasattr")
            and isinstance(node.args[1], ast.Constant)
        ):
            owner, name = node.args[0], node.args[1].value
        else:
            continue
        if is_private(name):
            yield ast.unparse(owner), name, node.lineno


def test_no_other_module_reaches_for_what_is_private():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        if path.name == "compat.py":
            continue
        tree = ast.parse(path.read_text())
        own = {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, (ast.ClassDef, ast.FunctionDef))
        }
        for owner, name, line in accesses(tree):
            if not {owner, name} & {"self", "cls", "super()", *own}:
                wrong.append(f"{path}:{line} uses {owner}.{name}")
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                parts = re.findall(r"\w+", ast.unparse(node))
                if "keras.src" in ast.unparse(node) or any(map(is_private, parts)):
                    wrong.append(f"{path}:{node.lineno} has {ast.unparse(node)}")
    assert not wrong


@functools.cache
def syntax_tree(path):
    return ast.parse(pathlib.Path(path).read_text())


@functools.cache
def private_names(kind):
    """Returns the private names that a class defines, sets or uses on itself."""
    tree = next(
        node
        for node in syntax_tree(inspect.getsourcefile(kind)).body
        if isinstance(node, ast.ClassDef) and node.name == kind.__name__
    )
    owners = ("self", "cls", "super()")
    used = {name for owner, name, _ in accesses(tree) if owner in owners}
    return used | set(filter(is_private, vars(kind)))


def is_of(kind, package):
    return kind.__module__.partition(".")[0] == package


def test_classes_use_no_other_hooks_of_keras():
    used = set()
    for module in pkgutil.walk_packages(keras_hsakd.__path__, "keras_hsakd."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name)):
            if not inspect.isclass(kind) or not is_of(kind, "keras_hsakd"):
                continue
            of_keras = [base for base in kind.__mro__ if is_of(base, "keras")]
            ours = [base for base in kind.__mro__ if is_of(base, "keras_hsakd")]
            for base in of_keras:
                for own in ours:
                    for name in private_names(base) & private_names(own):
                        where = f"{own.__module__}.{own.__name__}"
                        used.add((name, where.removeprefix("keras_hsakd.")))
    assert used == {(name, where) for _, name, where in compat.HOOKS}
