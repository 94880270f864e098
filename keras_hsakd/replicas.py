"""Replicas of a `tf.distribute` strategy, on which a network trains at once."""

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
