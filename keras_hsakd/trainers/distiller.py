"""Distillation of a student from a teacher."""

from collections.abc import Sequence

import keras
from keras import ops

from keras_hsakd.compat import layers_of
from keras_hsakd.heads import head_names, num_views
from keras_hsakd.losses import TemperatureKLDivergence
from keras_hsakd.trainers.base import HeadsTrainer
from keras_hsakd.views import View


@keras.saving.register_keras_serializable("keras_hsakd")
class Distiller(HeadsTrainer):
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

    The teacher is in inference mode and never changes. `evaluate` and `predict` see
    plain images and the student's class logits; `export` writes the student without
    its heads; `save` keeps both networks, to go on training.

    A `sample_weight` weighs an image's cross-entropy and its four rows of each
    divergence; sums are divided by the numbers of rows, not by sums of weights.

    Args:
        teacher: A trained functional model with auxiliary heads, see
            `keras_hsakd.models.create`.
        student: A functional model with heads, for the same classes. The two must not
            share layers.
        temperature: The temperature `tau > 0` of the divergences. Defaults to 3.
        pairs: Pairs `(teacher's head, student's head)` of names, each of the student's
            heads once: `[("aux_1", "aux_1"), ("aux_4", "aux_2")]`. Defaults to the last
            of the teacher's heads, in order.
        views: One of `keras_hsakd.views.names()`, or a list of two or more functions
            on batches of images, the first of which leaves them as they are; as many
            as the heads are made for. Defaults to `"rotations"`.
        **kwargs: `name` and `dtype` of the `keras.Model`.

    Raises:
        ValueError: If heads are missing or do not pair, classes or image shapes differ,
            layers are shared, the views do not suit heads or images, or the
            temperature is not positive.

    Example:
    >>> train, test = keras_hsakd.data.load("digits", image_size=8, limit=16)
    >>> teacher = keras_hsakd.models.create("resnet8", 10, input_shape=(8, 8, 3))
    >>> student = keras_hsakd.models.create("wrn_10_1", 10, input_shape=(8, 8, 3))
    >>> distiller = keras_hsakd.Distiller(teacher, student).compile("adam")
    >>> history = distiller.fit(train, validation_data=test, epochs=1, verbose=0)
    >>> sorted(history.history)
    ['ce_loss', 'kl_aux_1', 'kl_aux_2', 'kl_aux_3', 'kl_main', 'loss', 'val_loss']

    Reference: [Yang et al., 2021](https://arxiv.org/abs/2107.13715), section 3.3.
    """

    def __init__(
        self,
        teacher: keras.Model,
        student: keras.Model,
        temperature: float = 3.0,
        pairs: Sequence[tuple[str, str]] | None = None,
        views: str | Sequence[View] = "rotations",
        **kwargs,
    ):
        check_pair(teacher, student)
        teacher_heads = _teacher_heads(teacher, student, pairs)
        divergence = TemperatureKLDivergence(temperature, reduction=None)
        super().__init__(
            {"": student},
            ["kl_main", *(f"kl_{head}" for head in head_names(student))],
            views,
            frozen=teacher.variables,
            **kwargs,
        )
        self.teacher = teacher
        self.student = student
        self.divergence = divergence
        self._teacher_heads = teacher_heads

    @property
    def temperature(self) -> float:
        """The temperature of the divergences."""
        return self.divergence.temperature

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The heads that teach, each with the student's head that learns from it."""
        return [(teacher, student) for student, teacher in self._teacher_heads.items()]

    @property
    def network(self) -> keras.Model:
        """The student."""
        return self.student

    def forward(self, images, training=False):
        return self.student(images, training=training)

    def view_terms(self, images, labels, outputs):
        targets = self.teacher(images, training=False)
        return {
            "kl_main" if name == "logits" else f"kl_{name}": self.divergence(
                ops.stop_gradient(targets[self._teacher_heads.get(name, name)]), logits
            )
            for name, logits in outputs.items()
        }

    def get_config(self):
        return {
            **super().get_config(),
            "teacher": keras.saving.serialize_keras_object(self.teacher),
            "student": keras.saving.serialize_keras_object(self.student),
            "temperature": self.temperature,
            "pairs": [list(pair) for pair in self.pairs],
        }


def _teacher_heads(teacher, student, pairs):
    """Returns the head of the teacher that each head of the student learns from."""
    of_teacher, of_student = head_names(teacher), head_names(student)
    if pairs is None:
        if len(of_teacher) < len(of_student):
            raise ValueError(
                "Expected `teacher` to have at least as many auxiliary heads as "
                "`student`; `pairs` lets one teach several. Received: "
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


def check_pair(
    teacher: keras.Model,
    student: keras.Model,
    roles: tuple[str, str] = ("teacher", "student"),
) -> None:
    """Raises a ValueError unless one network can learn from another."""
    networks = dict(zip(roles, (teacher, student), strict=True))
    both = " and ".join(f"`{role}`" for role in roles)
    for role, network in networks.items():
        try:
            head_names(network)
        except ValueError as error:
            raise ValueError(f"`{role}`: {error}") from None
    for what, count in (
        ("classes", lambda network: network.output["logits"].shape[-1]),
        ("views", num_views),
    ):
        counts = [count(network) for network in (teacher, student)]
        if counts[0] != counts[1]:
            raise ValueError(
                f"Expected {both} to have the same number of {what}. "
                f"Received: {counts[0]} in `{teacher.name}` and {counts[1]} in "
                f"`{student.name}`"
            )
    shapes = [tuple(network.input_shape[1:]) for network in (teacher, student)]
    if any(
        edge not in (None, other) and other is not None
        for edge, other in zip(*shapes, strict=True)
    ):
        raise ValueError(
            f"Expected {both} to take images of the same shape; one of another size "
            "can begin with `keras.layers.Resizing`. "
            f"Received: {shapes[0]} in `{teacher.name}` and {shapes[1]} in "
            f"`{student.name}`"
        )
    teacher_ids = {id(layer) for layer in layers_of(teacher)}
    shared = [layer.name for layer in layers_of(student) if id(layer) in teacher_ids]
    if shared:
        raise ValueError(
            f"Expected {both} to share no layers, or training the one would change the "
            f"other. Received: shared layers {shared[:5]}"
        )
