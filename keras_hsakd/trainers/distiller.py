"""Distillation of a student from a teacher."""

from collections.abc import Mapping, Sequence

import keras
from keras import ops

from keras_hsakd.distribution import run_on_rows
from keras_hsakd.heads import named_outputs, output_names
from keras_hsakd.losses import Divergence
from keras_hsakd.teacher_cache import TeacherCache
from keras_hsakd.trainers import checks
from keras_hsakd.trainers.distillation import (
    DistillationTrainer,
    check_pair,
    signature_of,
    term_name,
)
from keras_hsakd.trainers.feeding import remade
from keras_hsakd.views import View


@keras.saving.register_keras_serializable("keras_hsakd")
class Distiller(DistillationTrainer):
    """Distils a student from a teacher by HSAKD.

    ```
    loss = CE(p_S(x), y)
         + mean_r tau^2 KL(p_T(t_r(x)) || p_S(t_r(x)))
         + sum_l mean_r tau^2 KL(q_l_T(t_r(x)) || q_l_S(t_r(x)))
    ```

    with `t_r(x)` the image under each of four rotations, `p` the class predictions and
    `q_l` the joint predictions of class and rotation of auxiliary head `l`. The terms
    are reported as `ce_loss`, `kl_main` and `kl_aux_1` to `kl_aux_L`, by the student's
    heads.

    Each head of the student learns from one head of the teacher. Where the teacher has
    more, the last ones teach, the deepest the deepest, unless `pairs` says otherwise.

    Where neither network has heads, the one view is the image itself, and what is left
    is the distillation of logits: `CE(p_S(x), y) + tau^2 KL(p_T(x) || p_S(x))`.

    The teacher is in inference mode and never changes. `evaluate` and `predict` see
    plain images and the student's class logits; `export` writes the student without
    its heads; `save` keeps both networks, to go on training.

    A `sample_weight` weighs an image's cross-entropy and its four rows of each
    divergence; sums are divided by the numbers of rows, not by sums of weights.

    A training image without a label has the label -1: it has no cross-entropy, and all
    divergences, which need none. Sums are divided by the numbers of all images and
    rows, so that each image counts for itself, whatever else is in its batch. `ce_loss`
    is reported as the mean over the images with a label, as are `weighted_metrics` and
    those of heads; `loss` is what is trained on, in which it counts by their share.

    Args:
        teacher: A trained functional model with auxiliary heads, see
            `keras_hsakd.models.create`, or a plain classifier; or its outputs, a
            `TeacherCache`, for `fit` with the data set that it was written of.
        student: A functional model with heads if the teacher has them, for the same
            classes. The two must not share layers.
        temperature: The temperature `tau > 0` of the divergences. Defaults to 3.
        pairs: Pairs `(teacher's head, student's head)` of names, each of the student's
            heads once: `[("aux_1", "aux_1"), ("aux_4", "aux_2")]`. Defaults to the last
            of the teacher's heads, in order.
        views: One of `keras_hsakd.views.names()`, or a list of two or more functions
            on batches of images, the first of which leaves them as they are; as many
            as the heads are made for. Defaults to `"rotations"`, and without heads to
            the image alone.
        divergence: One of `keras_hsakd.losses.names()`, or a function of (teacher
            logits, student logits, labels) with one value a row, to which `temperature`
            does not apply. It is called on the main logits with the class labels, and
            on the logits of each head with the joint labels, -1 both for an image
            without a label. Defaults to `"kl"`.
        divergence_options: Further settings of a named divergence: `alpha` and `beta`
            of `"dkd"`. Defaults to `None`, those of
            `keras_hsakd.ops.decoupled_divergence`.
        divergence_warmup: Number of epochs over which the divergences come in: in epoch
            `e`, from 1, they have `min(e / divergence_warmup, 1)` of their weights.
            They are reported without them. Defaults to 0, all from the start.
        sampled_views: Number of views of each image that a step of training sees, from
            2 to all: the image itself, and others that are drawn anew in each step. The
            rows of those drawn weigh as much as those of all others would, so that the
            loss, its terms and their gradients are those of the method on the average
            (batch normalization aside, whose statistics are of what a step sees); so
            are the accuracies of heads. Defaults to `None`, all views.
        **kwargs: `name` and `dtype` of the `keras.Model`.

    Raises:
        ValueError: If one network has heads and the other none, heads do not pair,
            classes or image shapes differ, layers are shared, the views do not suit
            heads or images, the divergence is unknown or has no such option, the
            temperature is not positive, the warm-up is negative, or there are not as
            many views as are to be sampled.

    Example:
    >>> train, test = keras_hsakd.data.load("digits", image_size=8, limit=16)
    >>> teacher = keras_hsakd.models.create("resnet8", 10, input_shape=(8, 8, 3))
    >>> student = keras_hsakd.models.create("wrn_10_1", 10, input_shape=(8, 8, 3))
    >>> distiller = keras_hsakd.Distiller(teacher, student).compile("adam")
    >>> history = distiller.fit(train, validation_data=test, epochs=1, verbose=0)
    >>> sorted(history.history)
    ['ce_loss', 'kl_aux_1', 'kl_aux_2', 'kl_aux_3', 'kl_main', 'loss', 'val_loss']

    References: [Yang et al., 2021](https://arxiv.org/abs/2107.13715), section 3.3;
    [Hinton et al., 2015](https://arxiv.org/abs/1503.02531) for networks without heads.
    """

    takes_unlabeled = True

    def __init__(
        self,
        teacher: keras.Model | TeacherCache,
        student: keras.Model,
        temperature: float = 3.0,
        pairs: Sequence[tuple[str, str]] | None = None,
        views: str | Sequence[View] | None = None,
        divergence: str | Divergence = "kl",
        sampled_views: int | None = None,
        divergence_options: Mapping[str, float] | None = None,
        divergence_warmup: float = 0,
        **kwargs,
    ):
        if not divergence_warmup >= 0:
            raise ValueError(
                "Expected `divergence_warmup` to be a number of epochs, 0 or more. "
                f"Received: divergence_warmup={divergence_warmup}"
            )
        check_pair(teacher, student)
        frozen = []
        if isinstance(teacher, TeacherCache):
            views = teacher.suited_views(views)
        else:
            checks.check_network(teacher)
            frozen = teacher.variables
        teacher_heads = _teacher_heads(
            signature_of(teacher, "teacher"), signature_of(student, "student"), pairs
        )
        super().__init__(
            {"": student},
            {term_name(name): ("", name) for name in output_names(student)},
            temperature,
            divergence,
            divergence_options,
            views,
            sampled_views=sampled_views,
            frozen=frozen,
            **kwargs,
        )
        self.teacher = teacher
        self.student = student
        self._teacher_heads = teacher_heads
        self.divergence_warmup = divergence_warmup
        if divergence_warmup:
            # A variable, which a compiled step reads anew. Where no epochs are told,
            # all of the weights.
            self.divergence_warmth = self.add_weight(
                name="divergence_warmth",
                initializer="ones",
                dtype="float32",
                trainable=False,
            )

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The heads that teach, each with the student's head that learns from it."""
        return [(teacher, student) for student, teacher in self._teacher_heads.items()]

    @property
    def network(self) -> keras.Model:
        """The student."""
        return self.student

    def outputs_of(self, images, training=False):
        student = self.in_step(self.student) if training else self.student
        return named_outputs(student, images, training)

    def needed_outputs(self, trained):
        learning = [name for name in trained[""] if self.weighs(term_name(name))]
        teaching = {self._teacher_heads.get(name, name) for name in learning}
        needed = super().needed_outputs(trained)
        return needed if self._is_cached else [*needed, (self.teacher, teaching)]

    def targets(self, batch):
        """Returns the teacher's dict of outputs for a batch's rows of views.

        It is the one place where a training asks for them.
        """
        if self._is_cached:
            return batch["targets"]
        teacher = self.in_step(self.teacher)
        return run_on_rows(lambda rows: named_outputs(teacher, rows), batch["images"])

    def rows_of(self, x):
        if not self._is_cached:
            return super().rows_of(x)
        targets = {
            name: ops.reshape(values, (-1, values.shape[-1]))
            for name, values in x["targets"].items()
        }
        return {**super().rows_of(x), "targets": targets}

    def read(self, data, on_device):
        if self._is_cached:
            return remade(data, self.teacher, on_device)
        return super().read(data, on_device)

    def frozen_digest(self):
        return self.teacher.digest if self._is_cached else super().frozen_digest()

    def loss_weight(self, term):
        weight = super().loss_weight(term)
        if self.divergence_warmup and term != "ce_loss":
            weight *= ops.convert_to_tensor(self.divergence_warmth)
        return weight

    def own_callbacks(self):
        return [_WarmUp()] if self.divergence_warmup else []

    def train_on_batch(self, *args, **kwargs):
        if self._is_cached:
            raise ValueError(
                "Expected `fit` with a teacher cache, whose data name their images. "
                "Received: a call of `train_on_batch`"
            )
        return super().train_on_batch(*args, **kwargs)

    @property
    def _is_cached(self):
        return isinstance(self.teacher, TeacherCache)

    def view_terms(self, batch, labels, outputs):
        learning = self.learning(outputs)
        if not learning:
            return {}
        targets = self.targets(batch)
        paired = {
            name: targets[self._teacher_heads.get(name, name)] for name in learning
        }
        return self.divergences(paired, learning, batch, labels)

    def get_config(self):
        return {
            **super().get_config(),
            "teacher": keras.saving.serialize_keras_object(self.teacher),
            "student": keras.saving.serialize_keras_object(self.student),
            "pairs": [list(pair) for pair in self.pairs],
            "divergence_warmup": self.divergence_warmup,
        }


class _WarmUp(keras.callbacks.Callback):
    """Tells a distiller how much of their weights its divergences have in an epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        warmth = (epoch + 1) / self.model.divergence_warmup
        self.model.divergence_warmth.assign(min(warmth, 1.0))


def _teacher_heads(teacher, student, pairs):
    """Returns the head of the teacher that each head of the student learns from."""
    of_teacher, of_student = teacher.heads, student.heads
    if pairs is None:
        if len(of_teacher) < len(of_student):
            raise ValueError(
                "Expected `teacher` to have at least as many auxiliary heads as "
                "`student`: attach fewer (`taps`), or let one teach several (`pairs`). "
                "Received: "
                f"{of_teacher} in `{teacher.name}` and {of_student} in `{student.name}`"
            )
        last = of_teacher[len(of_teacher) - len(of_student) :]
        return dict(zip(of_student, last, strict=True))
    pairs = [tuple(pair) for pair in pairs]
    taught = [pair[-1] for pair in pairs]
    if any(len(pair) != 2 or pair[0] not in of_teacher for pair in pairs) or sorted(
        taught
    ) != sorted(of_student):
        raise ValueError(
            "Expected `pairs` of a head of `teacher` and a head of `student`, each of "
            f"the student's once: the heads are {of_teacher} in `{teacher.name}` and "
            f"{of_student} in `{student.name}`. Received: pairs={pairs}"
        )
    return {student_head: teacher_head for teacher_head, student_head in pairs}
