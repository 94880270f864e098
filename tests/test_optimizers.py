import gc

import keras
import numpy as np
import numpy_reference as reference
import pytest

from keras_hsakd.optimizers import SGD, step_decay

pytestmark = pytest.mark.core
rng = np.random.default_rng(0)
WEIGHTS = rng.normal(size=(4, 3)).astype("float32")
GRADIENTS = rng.normal(size=(6, 4, 3)).astype("float32")
# It drops to a tenth after the third step: Keras' buffer would still hold the old one.
LEARNING_RATES = [0.1, 0.1, 0.1, 0.01, 0.01, 0.01]


def run(optimizer, gradients=GRADIENTS, learning_rates=LEARNING_RATES):
    variable = keras.Variable(WEIGHTS.astype(keras.config.floatx()))
    optimizer.build([variable])
    for gradient, learning_rate in zip(gradients, learning_rates, strict=True):
        optimizer.learning_rate = learning_rate
        optimizer.apply([keras.ops.convert_to_tensor(gradient)])
    return keras.ops.convert_to_numpy(variable)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_as_pytorch_across_a_learning_rate_drop(momentum, nesterov, weight_decay):
    settings = (momentum, nesterov, weight_decay)
    expected = reference.sgd(
        WEIGHTS.astype("float64"), GRADIENTS, LEARNING_RATES, *settings
    )
    np.testing.assert_allclose(
        run(SGD(0.1, *settings[:2], weight_decay)), expected, 1e-5
    )


def test_nothing_is_rounded_to_float32_in_float64(float64):
    """A momentum of float32(0.9) would be 3e-8 off, and move the authors' losses."""
    settings = (0.9, True, 0.05)
    expected = reference.sgd(
        WEIGHTS.astype("float64"), GRADIENTS, LEARNING_RATES, *settings
    )
    np.testing.assert_allclose(
        run(SGD(0.1, *settings), GRADIENTS.astype("float64")), expected, rtol=1e-13
    )


def test_differs_from_keras():
    arguments = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05}
    ours = run(SGD(0.1, **arguments))
    theirs = run(keras.optimizers.SGD(0.1, **arguments))
    assert np.abs(ours - theirs).max() > 1e-2


def test_excluded_variables_do_not_decay():
    optimizer = SGD(0.1, weight_decay=0.5)
    variable = keras.Variable(WEIGHTS, name="bias")
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build([variable])
    optimizer.apply([keras.ops.zeros((4, 3))])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), WEIGHTS)


def test_gradients_are_clipped_before_the_decay():
    expected = WEIGHTS - 0.1 * (np.clip(GRADIENTS[0], -0.1, 0.1) + 0.05 * WEIGHTS)
    received = run(
        SGD(0.1, weight_decay=0.05, clipvalue=0.1), GRADIENTS[:1], LEARNING_RATES[:1]
    )
    np.testing.assert_allclose(received, expected, rtol=1e-5)


def test_gradient_accumulation_averages():
    accumulated = run(
        SGD(0.1, momentum=0.9, weight_decay=0.05, gradient_accumulation_steps=2)
    )
    expected = reference.sgd(
        WEIGHTS.astype("float64"),
        GRADIENTS.reshape(3, 2, 4, 3).mean(axis=1),
        LEARNING_RATES[1::2],
        0.9,
        False,
        0.05,
    )
    np.testing.assert_allclose(accumulated, expected, rtol=1e-5)


def test_serialisation():
    optimizer = SGD(0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    config = keras.saving.serialize_keras_object(optimizer)
    copy = keras.saving.deserialize_keras_object(config)
    assert isinstance(copy, SGD)
    assert copy.get_config() == optimizer.get_config()
    np.testing.assert_array_equal(run(copy), run(optimizer))


def test_step_decay_drops_with_the_first_step_of_the_epoch():
    schedule = step_decay(0.05, epochs=240, steps_per_epoch=7)
    rates = [float(schedule(step)) for step in range(240 * 7)]
    expected = [
        0.05 * 0.1 ** sum(epoch >= milestone for milestone in (150, 180, 210))
        for epoch in range(240)
        for _ in range(7)
    ]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"epochs": 0},
        {"steps_per_epoch": 0},
        {"milestones": (0.5, 0.25)},
        {"milestones": (0.5, 1.0)},
    ],
)
def test_step_decay_of_bad_arguments(arguments):
    with pytest.raises(ValueError, match=f"Expected .*`{next(iter(arguments))}`"):
        step_decay(0.05, **{"epochs": 4, "steps_per_epoch": 4, **arguments})


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of its graphs")
def test_the_graph_of_a_step_goes_with_its_model():
    def graphs():
        gc.collect()
        found = (type(thing).__name__ for thing in gc.get_objects())
        return sum(name == "FuncGraph" for name in found)

    before = graphs()
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(SGD(0.1), "mse")
    model.fit(np.ones((2, 2)), np.ones((2, 1)), verbose=0)
    assert graphs() > before
    del model
    assert graphs() == before


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow")
@pytest.mark.parametrize("compiled_by_xla", [False, True])
def test_one_operation_a_variable(compiled_by_xla):
    import tensorflow as tf

    variable = keras.Variable(WEIGHTS)
    optimizer = SGD(0.1, 0.9, True, weight_decay=0.05)
    optimizer.build([variable])
    step = tf.function(
        lambda gradient: optimizer.apply([gradient]),
        autograph=False,
        jit_compile=compiled_by_xla,
    )
    for gradient in GRADIENTS:
        step(tf.constant(gradient))
    expected = reference.sgd(
        WEIGHTS.astype("float64"), GRADIENTS, [0.1] * 6, 0.9, True, 0.05
    )
    np.testing.assert_allclose(variable.numpy(), expected, 1e-5)
    graph = step.get_concrete_function(tf.constant(GRADIENTS[0])).graph
    kinds = [operation.type for operation in graph.get_operations()]
    assert kinds.count("ResourceApplyMomentum") == 1
