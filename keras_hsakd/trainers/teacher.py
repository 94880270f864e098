"""Training of a teacher with auxiliary heads."""

from collections.abc import Sequence

import keras
from keras import ops

from keras_hsakd.classifier import Classifier
from keras_hsakd.heads import head_names, named_outputs, prepared, split, strip_heads
from keras_hsakd.terms import CrossEntropy
from keras_hsakd.trainers.base import Trainer
from keras_hsakd.trainers.parts import Learner
from keras_hsakd.views import View


@keras.saving.register_keras_serializable("keras_hsakd")
class TeacherTrainer(Trainer):
    """Trains a network and its auxiliary heads on labels, to teach others.

    ```
    loss = CE(p(x), y) + sum_l mean_r CE(q_l(t_r(x)), 4 * y + r)
    ```

    with `t_r(x)` the image under each of four rotations, `p` the class predictions and
    `q_l` the joint predictions of class and rotation of auxiliary head `l`. The terms
    are reported as `ce_loss` and `ce_aux_1` to `ce_aux_L`.

    A `sample_weight` weighs an image's cross-entropy and those of its four views.

    Args:
        teacher: A functional model with auxiliary heads, see
            `keras_hsakd.models.create`.
        freeze_backbone: Whether to train the heads alone, on a backbone that is already
            trained: it runs in inference mode and keeps all its weights and
            statistics. Defaults to `False`, all is trained jointly.
        views: One of `keras_hsakd.views.names()`, or a list of two or more functions
            on batches of images, the first of which leaves them as they are; as many
            as the heads are made for. Defaults to `"rotations"`.
        sampled_views: See `keras_hsakd.Distiller`. Defaults to `None`, all views.
        terms: The terms of the loss, on labels alone, see `keras_hsakd.Distiller`.
            Defaults to `None`, those above:
            `[CrossEntropy(), CrossEntropy(on="heads")]`.
        **kwargs: `name` and `dtype` of the `keras.Model`.

    Raises:
        ValueError: If the heads are missing, the views do not suit heads or images, or
            there are not as many as are to be sampled.

    Example:
    >>> train, test = keras_hsakd.data.load("digits", image_size=8, limit=16)
    >>> teacher = keras_hsakd.models.create("resnet8", 10, input_shape=(8, 8, 3))
    >>> trainer = keras_hsakd.TeacherTrainer(teacher).compile("adam")
    >>> history = trainer.fit(train, validation_data=test, epochs=1, verbose=0)
    >>> sorted(history.history)
    ['ce_aux_1', 'ce_aux_2', 'ce_aux_3', 'ce_loss', 'loss', 'val_loss']

    Reference: [Yang et al., 2021](https://arxiv.org/abs/2107.13715), section 3.2.
    """

    def __init__(
        self,
        teacher: keras.Model,
        freeze_backbone: bool = False,
        views: str | Sequence[View] = "rotations",
        sampled_views: int | None = None,
        terms: Sequence | None = None,
        **kwargs,
    ):
        head_names(teacher)
        teacher = prepared(teacher, "teacher")
        if terms is None:
            terms = [CrossEntropy(), CrossEntropy(on="heads")]
        super().__init__(
            [Learner("", teacher)],
            terms,
            views,
            sampled_views,
            frozen=strip_heads(teacher).variables if freeze_backbone else (),
            **kwargs,
        )
        self.teacher = teacher
        self.freeze_backbone = freeze_backbone
        self._halves = split(teacher) if freeze_backbone else None

    def outputs_of(self, images, training=False):
        if not (training and self.freeze_backbone):
            return super().outputs_of(images, training)
        features = self._halves.backbone(images, training=False)
        features = {name: ops.stop_gradient(x) for name, x in features.items()}
        taps = [features[name] for name in self._halves.tap_names]
        heads = named_outputs(self.in_step(self._halves.heads), taps, training=True)
        return {"logits": features["logits"], **heads}

    def needed_outputs(self):
        ((teacher, names),) = super().needed_outputs()
        if not self.freeze_backbone:
            return [(teacher, names)]
        heads = names - {"logits"}
        return [(Classifier(self._halves.heads), heads)] if heads else []

    def get_config(self):
        return {
            **super().get_config(),
            "teacher": keras.saving.serialize_keras_object(self.teacher),
            "freeze_backbone": self.freeze_backbone,
        }
