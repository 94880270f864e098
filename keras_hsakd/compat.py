"""Every private thing of Keras and of `tf.data` that the package uses.

An upgrade may take any of it away; `tests/test_compat.py` names what is gone,
and keeps all other modules from private things.
"""

import contextlib
from collections.abc import Iterator

import keras
import numpy as np

# Hooks of Keras that our classes override, or call on themselves: class of Keras, name,
# where it is used.
HOOKS = (
    (keras.Model, "_maybe_symbolic_build", "distribution.ReplicatedFit"),
    (keras.Model, "_make_function", "distribution.ReplicatedFit"),
    (keras.optimizers.SGD, "_use_weight_decay", "optimizers.SGD"),
    (keras.optimizers.SGD, "_get_variable_index", "optimizers.SGD"),
    (keras.optimizers.SGD, "_apply_weight_decay", "optimizers.SGD"),
    (keras.optimizers.SGD, "_all_reduce_sum_gradients", "optimizers.SGD"),
)

# What changes in Keras' own callbacks while they are called.
CALLBACK_STATES = {
    keras.callbacks.EarlyStopping: (
        *("wait", "stopped_epoch", "best", "best_epoch", "best_weights"),
    ),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: (
        *("best", "_batches_seen_since_last_saving", "_last_batch_seen"),
    ),
    keras.callbacks.SwapEMAWeights: ("_ema_weights_in_model",),
    keras.callbacks.TensorBoard: ("_global_train_batch", "_global_test_batch"),
}


# Data sets of `tf.data` by the names of their classes: those whose batches are, one by
# one, those of the data set that they are made of, and those of them that change none.
ONE_BY_ONE = {"_MapDataset", "_ParallelMapDataset"}
UNCHANGED = {"_OptionsDataset", "_PrefetchDataset", "_RepeatDataset"}
CACHE = "CacheDataset"


def made_of(dataset) -> list:
    """Returns the data sets that a `tf.data.Dataset` is directly made of."""
    return list(dataset._inputs())


def shuffles_differ(dataset) -> bool:
    """Returns whether a `tf.data.Dataset` shuffles, and anew each time it is read."""
    if type(dataset).__name__ != "_ShuffleDataset":
        return False
    seeded = bool(dataset._seed or dataset._seed2)
    return dataset._reshuffle_each_iteration is not False or not seeded


def stateful_random_operations(dataset) -> list[str]:
    """Returns the kinds of random operations, not stateless, in a data set's functions.

    Args:
        dataset: `tf.data.Dataset`; what it is made of is not looked at.
    """
    kinds = set()
    for function in dataset._functions():
        graph = function.function.graph.as_graph_def()
        for nodes in (graph.node, *(f.node_def for f in graph.library.function)):
            kinds |= {node.op for node in nodes if node.op.startswith(_RANDOM)}
    return sorted(kinds)


def reads_alike(dataset) -> bool:
    """Returns whether the functions of a `tf.data.Dataset` keep no state.

    Those that draw at random do, as do those in Python. What the data set is made of is
    not looked at.
    """
    return not any(
        operation.op_def is not None and operation.op_def.is_stateful
        for function in dataset._functions()
        for operation in function.function.graph.get_operations()
    )


# The argument with which `fit` calls `evaluate` for its validation.
WITHIN_FIT = "_use_cached_eval_dataset"

_RANDOM = ("Random", "TruncatedNormal", "Multinomial", "Stateful")


def set_cardinality(distributed, steps: int) -> None:
    """Tells a data set that `distribute_datasets_from_function` made its length.

    It takes that of the first worker's data, which has an element for each replica.
    """
    distributed._cardinality = np.int64(steps)


def node_of(tensor: keras.KerasTensor):
    """Returns the node that computes a tensor: `operation`, `input_tensors`, ..."""
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]


def layers_of(model: keras.Model) -> list[keras.Layer]:
    """Returns a model and all layers in it, also those that layers have as attributes.

    `model.layers` has those of a model alone: what a block of keras-cv is made of,
    batch normalization too, is in nothing public.
    """
    return model._flatten_layers()


def global_seed() -> np.ndarray | None:
    """Returns the state that unseeded random operations draw from; None before one."""
    generator = _global_state().get_global_attribute(_GLOBAL_SEED)
    return None if generator is None else keras.ops.convert_to_numpy(generator.state)


def set_global_seed(state: np.ndarray) -> None:
    """Gives unseeded random operations the state that `global_seed` returned."""
    generator = _global_state().get_global_attribute(_GLOBAL_SEED)
    if generator is None:
        generator = keras.random.SeedGenerator(0)
        _global_state().set_global_attribute(_GLOBAL_SEED, generator)
    generator.state.assign(state)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Networks that are made in the block have shapes, and never get values.

    Of `keras.StatelessScope(initialize_variables=False)` alone, they would get them,
    all at once, when the next network is made.
    """
    waiting = _global_state().get_global_attribute(_WITHOUT_VALUES, [])
    _global_state().set_global_attribute(_WITHOUT_VALUES, [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        _global_state().set_global_attribute(_WITHOUT_VALUES, waiting)


_GLOBAL_SEED = "global_seed_generator"
_WITHOUT_VALUES = "uninitialized_variables"


def _global_state():
    # Imported when used: the rest works without it.
    from keras.src.backend.common import global_state

    return global_state
