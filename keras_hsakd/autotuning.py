"""Data sets of `tf.data` without its autotuning, which the end of a pass waits for."""


def without_autotuning(dataset):
    """Returns a `tf.data.Dataset` that TensorFlow does not tune.

    TensorFlow 2.21 tunes how much of a data set is read at once in a thread that sleeps
    longer each time, up to a minute. Some passes end while it falls asleep, and wait
    for it, about as long as they took: where epochs are short, a good part of the time
    (`benchmarks/autotuning.py`). The elements and their order are the same either way.

    It is for data sets whose maps have `num_parallel_calls`, and which end in a
    `prefetch`. TensorFlow adds both to what it tunes.

    Args:
        dataset: `tf.data.Dataset`.

    Example:
    >>> import tensorflow as tf
    >>> dataset = without_autotuning(tf.data.Dataset.range(3))
    >>> dataset.options().autotune.enabled
    False
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
