"""Training of a network without heads, to compare with."""

from collections.abc import Sequence

import keras

from keras_hsakd.heads import is_plain, prepared
from keras_hsakd.terms import CrossEntropy
from keras_hsakd.trainers.base import Trainer
from keras_hsakd.trainers.parts import Learner


@keras.saving.register_keras_serializable("keras_hsakd")
class BaselineTrainer(Trainer):
    """Trains a network without heads on labels alone.

    It does what the network's own `fit` does with the cross-entropy as its loss, and
    adds what the trainers share: checks, the guard against a loss that is not finite,
    snapshots, several workers.

    Args:
        classifier: A functional model from images to class logits, or to their softmax,
            which is taken off. What is frozen in it stays frozen.
        terms: The terms of the loss, on labels alone, see `keras_hsakd.Distiller`.
            Defaults to `None`, `[CrossEntropy()]`.
        **kwargs: `name` and `dtype` of the `keras.Model`.

    Raises:
        ValueError: If the network does not map one batch of images to class logits.

    Example:
    >>> train, test = keras_hsakd.data.load("digits", image_size=8, limit=16)
    >>> network = keras_hsakd.models.create("resnet8", 10, (8, 8, 3), heads=False)
    >>> trainer = BaselineTrainer(network).compile("sgd", metrics=["accuracy"])
    >>> history = trainer.fit(train, validation_data=test, verbose=0)
    >>> sorted(history.history)
    ['accuracy', 'ce_loss', 'loss', 'val_accuracy', 'val_loss']
    """

    def __init__(
        self,
        classifier: keras.Model,
        terms: Sequence | None = None,
        views: None = None,
        sampled_views: None = None,
        **kwargs,
    ):
        classifier = prepared(classifier, "classifier")
        if not is_plain(classifier):
            raise ValueError(
                "Expected `classifier` to be a network without auxiliary heads, as "
                "`keras_hsakd.strip_heads` returns it. "
                f"Received: `{classifier.name}`, which has some"
            )
        terms = [CrossEntropy()] if terms is None else terms
        super().__init__([Learner("", classifier)], terms, None, **kwargs)
        self.classifier = classifier

    def get_config(self):
        serialized = keras.saving.serialize_keras_object(self.classifier)
        return {**super().get_config(), "classifier": serialized}
