"""What a training costs, by arithmetic: multiply-adds."""

from collections.abc import Mapping
from typing import NamedTuple

# A layer that is trained computes its outputs, the gradients of what it takes, and
# those of its weights: as many multiply-adds each time.
_TRAINED = 3


def image_multiply_adds(trainer) -> int:
    """Returns the multiply-adds of an image in a step of training.

    A forward pass counts once, a layer that is trained three times, and all of it for
    each view. What else a step does is little beside its convolutions.

    Args:
        trainer: The trainer, whose networks are of known sizes.

    Example:
    >>> student = keras_hsakd.models.create("wrn_16_2", num_classes=100, heads=False)
    >>> image_multiply_adds(keras_hsakd.trainers.BaselineTrainer(student))
    303355392
    """
    # Keras takes seconds to import, and a report needs none of it.
    from keras_hsakd.graph import multiply_adds
    from keras_hsakd.trainers.base import Trainer

    trained = {id(variable) for variable in trainer.trainable_variables}

    def passes(layer):
        return _TRAINED if any(id(w) in trained for w in layer.weights) else 1

    # Those of the base class are of all layers, those of a frozen backbone too.
    return trainer.num_seen * sum(
        multiply_adds(network.computing(names).outputs, passes=passes)
        for network, names in Trainer.needed_outputs(trainer)
    )


class Spent(NamedTuple):
    """Multiply-adds of a training, by arithmetic.

    Attributes:
        training: Of all its steps, with a teacher's forward passes where it has one.
        cache: Of writing the cache that it learned from; 0 without one.
    """

    training: int
    cache: int = 0


def spent(record: Mapping) -> Spent | None:
    """Returns the multiply-adds that a run took, without its validations.

    What stands before it, the training of its teacher, is not among them.

    Args:
        record: The content of its `run.json`.

    Returns:
        The numbers; `None` of a network that was trained elsewhere.

    Example:
    >>> record = {
    ...     "image_multiply_adds": 300,
    ...     "training": {},
    ...     "origin": None,
    ...     "epochs_done": 2,
    ...     "images": {"train": 10},
    ... }
    >>> spent(record).training
    6000
    """
    if "image_multiply_adds" not in record:
        return None
    training, images = record["training"], record["images"]["train"]
    if training.get("drop_remainder", False):
        images -= images % training["batch_size"]
    cache = (record["origin"] or {}).get("cache", {})
    return Spent(
        record["epochs_done"] * images * record["image_multiply_adds"],
        cache.get("multiply_adds", 0),
    )
