"""Training on many devices and by many workers, and what Keras needs for it."""

import contextlib
import functools
import itertools
from collections.abc import Iterator

import keras
import numpy as np
from keras import ops

from keras_hsakd.autotuning import without_autotuning
from keras_hsakd.compat import layers_of, set_cardinality

STRATEGIES = ("mirrored", "multiworker")


def make_strategy(name: str | None):
    """Returns a `tf.distribute` strategy by the name that the command line gives it.

    Args:
        name: `"mirrored"`, the GPUs of this machine; `"multiworker"`, the processes
            that `TF_CONFIG` names, each of which must call this before anything else;
            or `None`, the strategy of the scope, as a rule one device.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        ValueError: If the name is another one, or the backend is not TensorFlow.

    Example:
    >>> make_strategy(None).num_replicas_in_sync
    1
    """
    if name not in (None, *STRATEGIES):
        raise ValueError(
            f"Expected `strategy` to be one of {STRATEGIES}. Received: {name!r}"
        )
    if name is not None and keras.backend.backend() != "tensorflow":
        raise ValueError(
            "Expected the TensorFlow backend for a `tf.distribute` strategy; on JAX, "
            "`keras.distribution.set_distribution` has the same effect. "
            f"Received: strategy={name!r} on {keras.backend.backend()}"
        )
    import tensorflow as tf

    return tf.distribute.get_strategy() if name is None else _made_once(name)


@functools.cache
def _made_once(name):
    """Returns a strategy, whose communication a process cannot set up twice."""
    import tensorflow as tf

    strategies = {
        "mirrored": tf.distribute.MirroredStrategy,
        "multiworker": tf.distribute.MultiWorkerMirroredStrategy,
    }
    return strategies[name]()


def worker_index(model: keras.Model | None = None) -> int:
    """Returns the number of this process among the workers that train together.

    Worker 0, the chief, alone writes files.

    Args:
        model: A model, for the strategy that it was made under. Defaults to `None`,
            the current strategy.

    Returns:
        That of JAX's processes, or of the strategy's workers; 0 where there is one.

    Example:
    >>> worker_index()
    0
    """
    if keras.backend.backend() == "jax":
        import jax

        return jax.process_index()
    strategy = _strategy(model)
    if not _is_multi_worker(strategy):
        return 0
    resolver = strategy.cluster_resolver
    has_chief = "chief" in resolver.cluster_spec().jobs
    return resolver.task_id + int(has_chief and resolver.task_type == "worker")


def num_workers(model: keras.Model | None = None) -> int:
    """Returns the number of processes that train together.

    Args:
        model: A model, for the strategy that it was made under. Defaults to `None`,
            the current strategy.

    Example:
    >>> num_workers()
    1
    """
    if keras.backend.backend() == "jax":
        import jax

        return jax.process_count()
    strategy = _strategy(model)
    if not _is_multi_worker(strategy):
        return 1
    return strategy.cluster_resolver.cluster_spec().num_tasks("worker") + (
        "chief" in strategy.cluster_resolver.cluster_spec().jobs
    )


def scope_of(model: keras.Model):
    """Returns the context in which the variables of a model are made."""
    strategy = _strategy(model)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def check_in_scope(network) -> None:
    """Raises a ValueError unless a network has its variables on all replicas.

    Args:
        network: A model that is to be trained, or to teach, under the current strategy.
    """
    strategy = _strategy(None)
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return
    for variable in getattr(network, "variables", ()):
        if not strategy.extended.variable_created_in_scope(variable.value):
            raise ValueError(
                f"Expected `{network.name}` to be made, or loaded, in the scope of the "
                "strategy that it is trained under: `with strategy.scope():`. "
                f"Received: a network whose '{variable.path}' was made outside of it"
            )


def num_replicas(model: keras.Model | None = None) -> int:
    """Returns the number of replicas that share the batch of a step.

    Args:
        model: A model, for the strategy that it was made under. Defaults to `None`,
            the current strategy.

    Returns:
        That of the `tf.distribute` strategy; 1 on other backends.

    Example:
    >>> num_replicas()
    1
    """
    strategy = _strategy(model)
    return 1 if strategy is None else strategy.num_replicas_in_sync


def distributed(dataset, model: keras.Model):
    """Returns a data set of which each of a model's workers reads its own share.

    Nor does TensorFlow tune it, see `without_autotuning`. Other data sets than those of
    `keras_hsakd.data` are left to Keras, which lets every worker read all of them.

    Args:
        dataset: What a trainer is given.
        model: The trainer.
    """
    if not hasattr(dataset, "share"):
        return dataset
    strategy = _strategy(model)
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return without_autotuning(dataset)
    replicas = strategy.num_replicas_in_sync

    def share(context):
        each = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * each
        return without_autotuning(dataset.share(replicas, first, first + each))

    made = strategy.distribute_datasets_from_function(share)
    set_cardinality(made, dataset.cardinality())
    return made


def global_sum(value):
    """Returns the sum of a value over the replicas of a step.

    Args:
        value: A replica's number or tensor, of the same shape in all of them.

    Returns:
        The same on all replicas; the value as it is where there is one replica.

    Example:
    >>> global_sum(3)
    3
    """
    context = _replica_context()
    if context is None:
        return value
    import tensorflow as tf

    return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.convert_to_tensor(value))


def mean_of_rows(values):
    """Returns the mean of a replica's values; 0 where it has none.

    Args:
        values: Tensor of shape `(rows,)`, floating point.

    Example:
    >>> float(mean_of_rows(keras.ops.convert_to_tensor([1.0, 3.0])))
    2.0
    """
    if _replica_context() is None:
        return ops.mean(values)
    rows = ops.cast(ops.maximum(ops.shape(values)[0], 1), values.dtype)
    return ops.sum(values) / rows


def loss_of_replica(mean, rows):
    """Returns a replica's loss as Keras' training step needs it, however many rows.

    Keras sums the gradients of replicas, so that the gradient counts by the replica's
    part of all rows. The value is for the log, where Keras multiplies it by the number
    of replicas and by that of the replica's own rows.

    Args:
        mean: The mean loss of the replica's rows, see `mean_of_rows`.
        rows: The number of rows.

    Example:
    >>> loss_of_replica(2.0, rows=3)
    2.0
    """
    if _replica_context() is None:
        return mean / num_replicas()
    rows = ops.cast(rows, mean.dtype)
    counted = mean * rows / global_sum(rows)
    return counted + ops.stop_gradient(mean / num_replicas() - counted)


def losses_of_replica(losses: list) -> list:
    """Returns those losses that layers added while they ran on this replica.

    All replicas share the layers, and the lists that these keep.

    Args:
        losses: `model.losses`, in a step of training.

    Example:
    >>> losses_of_replica([3.0])
    [3.0]
    """
    if _replica_context() is None:
        return losses
    import tensorflow as tf

    def device(tensor):
        spec = tf.DeviceSpec.from_string(tensor.device)
        return spec.device_type, spec.device_index

    own = device(tf.zeros(()))  # a replica's operations are put on its device
    return [loss for loss in losses if not loss.device or device(loss) == own]


def run_on_rows(function, images):
    """Returns what a function makes of a replica's images, which may be none.

    TensorFlow 2.21 on CPUs gives convolutions of no image a wrong shape: where there
    is none, the function gets a blank one, and its rows are dropped.

    Args:
        function: Function from images to tensors of as many rows, or a multiple.
        images: Tensor of shape `(rows, height, width, channels)`.

    Example:
    >>> run_on_rows(lambda images: images + 1, np.ones((2, 8, 8, 3))).shape
    (2, 8, 8, 3)
    """
    if _replica_context() is None:
        return function(images)
    return _run_filled(function, images, _blank(images, 1))


def train_on_rows(function, images, rows: int = 1):
    """Does as `run_on_rows`, with an image of another replica in place of a blank one.

    Batch normalization takes what runs in training into its statistics.

    Args:
        function: As in `run_on_rows`.
        images: As in `run_on_rows`, with all replicas' images of the same size.
        rows: The rows of an image, those of its views. Defaults to 1.

    Example:
    >>> train_on_rows(lambda images: images + 1, np.ones((2, 8, 8, 3))).shape
    (2, 8, 8, 3)
    """
    context = _replica_context()
    if context is None:
        return function(images)
    import tensorflow as tf

    # The first replica that has images gives one to those that have none.
    index = context.replica_id_in_sync_group
    has_any = tf.cast(tf.shape(images)[0] > 0, "float32")
    having = global_sum(has_any * tf.one_hot(index, num_replicas()))
    gives = tf.equal(tf.argmax(having, output_type=tf.int32), index)
    given = tf.concat([images, _blank(images, rows)], axis=0)[:rows]
    given = global_sum(tf.cast(given, "float32") * tf.cast(gives, "float32"))
    return _run_filled(function, images, tf.cast(given, images.dtype))


def _blank(images, rows):
    import tensorflow as tf

    return tf.zeros([rows, *ops.shape(images)[1:]], images.dtype)


def _run_filled(function, images, filling):
    """Runs a function on other images, whose rows are dropped, where there are none."""
    import tensorflow as tf

    is_any = tf.shape(images)[0] > 0
    missing = tf.where(is_any, 0, tf.shape(filling)[0])
    filled = tf.concat([images, filling[:missing]], axis=0)
    filled = tf.ensure_shape(filled, (None, *images.shape[1:]))
    return keras.tree.map_structure(
        lambda x: x[: tf.where(is_any, tf.shape(x)[0], 0)], function(filled)
    )


def synchronize_batch_norm(network: keras.Model) -> keras.Model:
    """Makes batch normalization use the batch of all replicas, not each its own part.

    Replicas then train as one device does. Without it they do as many papers' numbers
    were made: each normalizes its own part of the batch, which costs no communication
    in every layer. It has an effect on the TensorFlow backend alone; on JAX a batch is
    always normalized as a whole.

    Args:
        network: A model that was not trained, saved or compiled into a step yet.

    Returns:
        The network itself, whose layers were changed.

    Example:
    >>> strategy = tf.distribute.get_strategy()
    >>> with strategy.scope():
    ...     network = keras_hsakd.models.create("resnet8", num_classes=10)
    ...     network = keras_hsakd.synchronize_batch_norm(network)
    >>> network.get_layer("stem_bn").synchronized
    True
    """
    for layer in layers_of(network):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True
    return network


def next_batches(iterator: Iterator, count: int) -> Iterator:
    """Returns the next batches of an iterator, as many as there are.

    Args:
        iterator: What Keras gives to a function of an execution.
        count: Most batches.

    Raises:
        StopIteration: If there are none, which ends an epoch.

    Example:
    >>> list(next_batches(iter("abc"), 2))
    ['a', 'b']
    """
    batches = itertools.islice(iterator, count)
    return itertools.chain([next(batches)], batches)


def steps_done(callback: keras.callbacks.Callback, batch: int) -> int:
    """Returns the steps of an epoch that are done after a batch.

    With `steps_per_execution` Keras counts the last execution as a whole one, also
    where it goes past the end of the epoch.

    Args:
        callback: A callback of the training.
        batch: What Keras calls its `on_train_batch_end` with.

    Example:
    >>> callback = keras.callbacks.Callback()
    >>> callback.set_params({"steps": 7})
    >>> steps_done(callback, 3), steps_done(callback, 8)
    (4, 7)
    """
    steps = callback.params.get("steps")  # None where that is unknown
    return min(batch + 1, steps or batch + 1)


class ReplicatedFit:
    """Mixin of a `keras.Model` that trains on several replicas, or by several workers.

    Keras 3.15 fails there, each time before the first step is done:

    - it builds the model with the mean of the replicas' parts of the first batch, whose
      rows may differ, and of which it makes a tensor where there are several workers;
    - it averages the metrics of workers along an axis, which scalars do not have;
    - it makes a loop of `steps_per_execution` steps that cannot be run. From Python,
      nothing is read between the steps either.

    `tests/test_strategies.py` tells when Keras does without.
    """

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        strategy = _strategy(self)
        if iterator is not None and strategy and strategy.num_replicas_in_sync > 1:
            for _, _, batches in iterator:
                data_batch = keras.tree.map_structure(
                    lambda x: strategy.experimental_local_results(x)[0], next(batches)
                )
                break
            iterator = None
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    def _make_function(self, step_function, **options):
        def step(data):
            return keras.tree.map_structure(lambda x: x[None], step_function(data))

        strategy, size = _strategy(self), self.steps_per_execution
        chosen = step if _is_multi_worker(strategy) else step_function
        function = super()._make_function(chosen, **options)
        if size == 1 or strategy is None or strategy.num_replicas_in_sync == 1:
            return function
        return lambda iterator: function(next_batches(iterator, size))


def any_worker(model: keras.Model, *flags: bool) -> list[bool]:
    """Returns, for each flag, whether it is set on any of a model's workers.

    All workers must call it at the same step.
    """
    if num_workers(model) == 1:
        return list(flags)
    return gathered(model, np.array(flags, "float64")).any(axis=0).tolist()


def gathered(model: keras.Model, values: np.ndarray) -> np.ndarray:
    """Returns a vector of each of a model's workers, a row each, in their order.

    All workers must call it at the same step.
    """
    if num_workers(model) == 1:
        return values[None]
    if keras.backend.backend() == "jax":
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(values)
    import tensorflow as tf

    row = tf.constant([[worker_index(model), *values]], tf.float64)
    rows = _gathering(model.distribute_strategy)(row).numpy()
    by_worker = {int(row[0]): row[1:] for row in rows}
    return np.stack([by_worker[index] for index in sorted(by_worker)])


@functools.cache
def _gathering(strategy):
    """Returns a function that gathers rows, traced once: it may run in each step."""
    import tensorflow as tf

    @tf.function
    def gather(row):
        return strategy.gather(strategy.run(tf.identity, args=(row,)), axis=0)

    return gather


def wait_for_workers(model: keras.Model) -> None:
    """Returns when all of a model's workers have come here."""
    with lost_workers_named(model):
        gathered(model, np.zeros(1))


def read_replicas(model: keras.Model, variables: list) -> np.ndarray:
    """Returns the values of variables in each replica, a row each, in float64.

    The variables of metrics differ between replicas, which are summed when read.

    Args:
        model: The model that they belong to; all its workers must call it at the same
            step.
        variables: `keras.Variable`s of no more than double precision.

    Returns:
        Array of shape `(replicas, sizes of all variables)`, the same on all workers.
    """
    strategy = _strategy(model)
    if strategy is None:
        return _vector([[keras.ops.convert_to_numpy(v) for v in variables]])
    local = zip(
        *(strategy.experimental_local_results(v.value) for v in variables), strict=True
    )
    rows = _vector([[part.numpy() for part in parts] for parts in local])
    workers = gathered(model, rows.ravel())
    return workers.reshape(-1, rows.shape[1])


def assign_replicas(model: keras.Model, variables: list, rows: np.ndarray) -> None:
    """Gives variables the values that `read_replicas` returned.

    With another number of replicas, the first gets the sum of all.
    """
    strategy = _strategy(model)
    replicas = 1 if strategy is None else strategy.num_replicas_in_sync
    first = worker_index(model) * (replicas // num_workers(model))
    if len(rows) != replicas:
        rows = np.stack([rows.sum(axis=0), *np.zeros((replicas - 1, rows.shape[1]))])
    offset = 0
    for variable in variables:
        size = int(np.prod(variable.shape))
        parts = rows[:, offset : offset + size].reshape(-1, *variable.shape)
        offset += size
        if replicas == 1:
            variable.assign(parts[0])
            continue
        components = strategy.experimental_local_results(variable.value)
        for component, part in zip(components, parts[first:], strict=False):
            component.assign(part.astype(component.dtype.as_numpy_dtype))


def _vector(rows):
    return np.stack(
        [np.concatenate([np.ravel(x).astype("float64") for x in row]) for row in rows]
    )


@contextlib.contextmanager
def lost_workers_named(model: keras.Model | None = None) -> Iterator[None]:
    """Raises an error that says so where another worker is gone.

    TensorFlow notices within a minute, whether the process died or does not answer.

    Args:
        model: A model, for the strategy that it was made under. Defaults to `None`,
            the current strategy.

    Raises:
        RuntimeError: In place of the error of the communication.
    """
    try:
        yield
    except Exception as error:
        if num_workers(model) > 1 and type(error).__name__ in _LOST:
            raise RuntimeError(
                f"Expected all {num_workers(model)} workers to train to the end. "
                f"Received: worker {worker_index(model)} cannot reach another one "
                f"({type(error).__name__}). Start all of them again; with snapshots "
                "they go on"
            ) from error
        raise


# What TensorFlow raises in communication with a process that is gone.
_LOST = ("UnavailableError", "AbortedError", "DeadlineExceededError", "CancelledError")


def _strategy(model):
    """Returns the strategy of a model, or the current one; None without TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    return tf.distribute.get_strategy() if model is None else model.distribute_strategy


def _replica_context():
    """Returns the context of one of several replicas; None where there is one."""
    if num_replicas() == 1:
        return None
    import tensorflow as tf

    return tf.distribute.get_replica_context()  # None while a model is built


def _is_multi_worker(strategy):
    if strategy is None:
        return False
    import tensorflow as tf

    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and bool(
        strategy.cluster_resolver.cluster_spec().jobs  # none without TF_CONFIG
    )
