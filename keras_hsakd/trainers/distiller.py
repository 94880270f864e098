"""Distillation of a student from a teacher."""

from collections.abc import Sequence

import keras

from keras_hsakd import teachers
from keras_hsakd.heads import prepared, signature
from keras_hsakd.trainers.distillation import Distillation, check_pair, terms_at
from keras_hsakd.trainers.parts import Learner
from keras_hsakd.views import View


@keras.saving.register_keras_serializable("keras_hsakd")
class Distiller(Distillation):
    """Distils a student from a teacher: by HSAKD, or by a list of terms of your own.

    HSAKD is the sum of

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

    These are the terms `[CrossEntropy(), KL(3.0), KL(3.0, on="heads")]` of
    `keras_hsakd.terms`. Other methods are other lists; each term has a weight of its
    own, and is reported without it.

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
            `keras_hsakd.models.create`, or a plain classifier, whose softmax is taken
            off if it ends in one; a list of them, or an `Ensemble`; or its outputs, a
            `TeacherCache`, for `fit` with the data set that it was written of.
        student: A functional model with heads if the teacher has them, for the same
            classes. The two must not share variables.
        temperature: The temperature `tau > 0` of HSAKD. Defaults to `None`, 3.
        pairs: Pairs `(teacher's head, student's head)` of names, each of the student's
            heads once: `[("aux_1", "aux_1"), ("aux_4", "aux_2")]`. Defaults to the last
            of the teacher's heads, in order.
        views: One of `keras_hsakd.views.names()`, or a list of two or more functions
            on batches of images, the first of which leaves them as they are; as many
            as the heads are made for. Defaults to `"rotations"`, and without heads to
            the image alone.
        sampled_views: Number of views of each image that a step of training sees, from
            2 to all: the image itself, and others that are drawn anew in each step. The
            rows of those drawn weigh as much as those of all others would, so that the
            loss, its terms and their gradients are those of the method on the average
            (batch normalization aside, whose statistics are of what a step sees); so
            are the accuracies of heads. Defaults to `None`, all views.
        terms: The terms of the loss, in place of HSAKD: a list of terms of
            `keras_hsakd.terms`, of functions of (teacher's output, student's output,
            labels) with one value a row, or of losses of `keras.distillation`.
            Defaults to `None`, HSAKD at the `temperature`.
        **kwargs: `name` and `dtype` of the `keras.Model`.

    Raises:
        ValueError: If one network has heads and the other none, heads do not pair,
            classes or image shapes differ, variables are shared, the views do not suit
            heads or images, a term needs what is not there, the temperature is not
            positive or stands beside `terms`, or there are not as many views as are to
            be sampled.

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
        teacher: keras.Model | Sequence[keras.Model] | teachers.Teacher,
        student: keras.Model,
        temperature: float | None = None,
        pairs: Sequence[tuple[str, str]] | None = None,
        views: str | Sequence[View] | None = None,
        sampled_views: int | None = None,
        terms: Sequence | None = None,
        **kwargs,
    ):
        asked = teachers.get(teacher)
        student = prepared(student, "student")
        views = asked.checked_views(views)
        check_pair(asked, student)
        of_student = signature(student)
        teacher_heads = _teacher_heads(asked.signature, of_student, pairs)
        super().__init__(
            [Learner("", student, (asked,), teacher_heads)],
            terms_at(temperature, terms, bool(of_student.heads)),
            views,
            sampled_views=sampled_views,
            frozen=asked.variables,
            **kwargs,
        )
        is_network = isinstance(asked, teachers.NetworkTeacher)
        self.teacher = asked.networks[0] if is_network else asked
        self.student = student
        self._asked = asked
        self._teacher_heads = teacher_heads

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The heads that teach, each with the student's head that learns from it."""
        return [(teacher, student) for student, teacher in self._teacher_heads.items()]

    @property
    def cache(self) -> teachers.TeacherCache | None:
        """Where the teacher's outputs are read from, if they are not computed."""
        return self._asked.cache

    def teachers_outputs(self, batch, outputs):
        return {"": [self.targets(batch)]}

    def targets(self, batch):
        """Returns what the teacher gives for a batch's rows of views, by name.

        It is the one place where a training asks for it.
        """
        return self._asked.targets(batch, self.in_step)

    def rows_of(self, x):
        return {**super().rows_of(x), **self._asked.rows(x)}

    def frozen_digest(self):
        return self.cache.digest if self.cache else super().frozen_digest()

    def get_config(self):
        return {
            **super().get_config(),
            "teacher": keras.saving.serialize_keras_object(self.teacher),
            "student": keras.saving.serialize_keras_object(self.student),
            "pairs": [list(pair) for pair in self.pairs],
        }


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
