"""Training on many devices under `tf.distribute`, and what Keras needs for it."""

import keras


def num_replicas() -> int:
    """Returns the number of replicas that share the batch of a step.

    Returns:
        That of the current `tf.distribute` strategy; 1 on other backends.

    Example:
    >>> num_replicas()
    1
    """
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def synchronize_batch_norm(network: keras.Model) -> keras.Model:
    """Has batch normalization use the batch of all replicas, not each its own part.

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
    for layer in network._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True
    return network


class MultiWorkerFit:
    """Mixin of a `keras.Model` that trains under `MultiWorkerMirroredStrategy`.

    Keras 3.15 fails there twice, each time before the first step is done:

    - it makes a tensor of the `PerReplica` batch that it builds the model with;
    - it averages the metrics of the workers along an axis, which scalars do not have.

    `tests/test_strategies.py` tells when Keras does without.
    """

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if iterator is not None and _has_workers(self):
            strategy = self.distribute_strategy
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

        chosen = step if _has_workers(self) else step_function
        return super()._make_function(chosen, **options)


def _has_workers(model):
    """Returns whether a model was made to be trained by several workers."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return isinstance(
        model.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy
    )
