"""Data sets of `tf.data` without its autotuning, which the end of a pass waits for."""

import os


def without_autotuning(dataset):
    """Returns a `tf.data.Dataset` that is read on all CPUs at once, and not tuned.

    TensorFlow 2.21 tunes how much of a data set is read at once in a thread that sleeps
    longer each time, up to a minute. A pass that ends just as this thread falls asleep
    waits for it, often as long as the pass itself took: where epochs are short, a good
    part of a training (`benchmarks/autotuning.py`). The elements and their order are
    the same either way.

    Args:
        dataset: `tf.data.Dataset`. One whose `options().autotune.enabled` is set, to
            `True` or `False`, is returned as it is.

    Example:
    >>> import tensorflow as tf
    >>> dataset = without_autotuning(tf.data.Dataset.range(3))
    >>> dataset.options().autotune.enabled
    False
    """
    import tensorflow as tf

    if dataset.options().autotune.enabled is not None:
        return dataset
    options = tf.data.Options()
    options.autotune.enabled = False
    # Of each `tf.data.AUTOTUNE`; it would be 16 at most.
    options.autotune.initial_parallelism = os.cpu_count()
    # TensorFlow puts one at the end of what it tunes, and finds its size otherwise.
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)
