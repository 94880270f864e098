"""Training of a network without heads, to compare with."""

import keras
from keras import ops

from keras_hsakd.distribution import (
    loss_of_replica,
    num_replicas,
    run_on_rows,
    train_on_rows,
)
from keras_hsakd.ops import cross_entropy, smoothed_labels, standardized_labels
from keras_hsakd.trainers import checks
from keras_hsakd.trainers.fitting import Fitting, dtype_policy


class BaselineTrainer(Fitting, keras.Model):
    """Trains a network without heads on labels alone.

    It does what the network's own `fit` does with the cross-entropy as its loss, and
    adds what the trainers share: checks, the guard against a loss that is not finite,
    snapshots, several workers.

    Args:
        network: A functional model from images to class logits. What is frozen in it
            stays frozen.
        **kwargs: `name` and `dtype` of the `keras.Model`.

    Raises:
        ValueError: If the network does not map one batch of images to class logits.

    Example:
    >>> train, test = keras_hsakd.data.load("digits", image_size=8, limit=16)
    >>> network = keras_hsakd.models.create("resnet8", 10, (8, 8, 3), heads=False)
    >>> trainer = BaselineTrainer(network).compile("sgd", metrics=["accuracy"])
    >>> history = trainer.fit(train, validation_data=test, verbose=0)
    >>> sorted(history.history)
    ['accuracy', 'loss', 'val_accuracy', 'val_loss']
    """

    def __init__(self, network: keras.Model, **kwargs):
        checks.check_network(network)
        kwargs.setdefault("dtype", dtype_policy(network))
        # The network casts its own inputs.
        super().__init__(autocast=False, **kwargs)
        self.network = network
        self.label_smoothing = 0.0
        self.built = True

    def compile(self, *args, label_smoothing: float = 0.0, **kwargs):
        """Configures training as `keras.Model.compile`, with the cross-entropy.

        Args:
            *args: Arguments of `keras.Model.compile`.
            label_smoothing: Probability, from 0 to below 1, that is taken from the
                label of an image and spread over all classes, while training. Defaults
                to 0.
            **kwargs: The same.

        Returns:
            The model, so that `.fit(...)` can follow.
        """
        checks.check_label_smoothing(label_smoothing)
        self.label_smoothing = label_smoothing
        super().compile(*args, **kwargs, loss=cross_entropy)
        return self

    def train_step(self, *args):
        # TensorFlow calls train_step(data), JAX train_step(state, data).
        *state, data = args
        x, *others = keras.utils.unpack_x_y_sample_weight(data)
        return super().train_step(*state, (self.augmented(x), *others))

    def compute_loss(self, x=None, y=None, *args, training=True, **kwargs):
        y, suit = self.suited(y, training)
        y = standardized_labels(y)
        if training and self.label_smoothing:
            classes = checks.num_classes(self.network)
            y = smoothed_labels(y, classes, self.label_smoothing)
        loss = super().compute_loss(x, y, *args, training=training, **kwargs)
        if training:
            loss = loss_of_replica(loss * num_replicas(), ops.shape(x)[0])
        return checks.marked(loss, suit)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        y, _ = self.suited(y)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def call(self, images, training=None):
        images = self.augmented(images)
        if training:
            return train_on_rows(
                lambda images: self.network(images, training=True), images
            )
        return run_on_rows(self.network, images)
