"""What the trainers in which a network learns from another have in common."""

from collections.abc import Mapping, Sequence

import keras
from keras import ops

from keras_hsakd import losses
from keras_hsakd.heads import Signature, signature
from keras_hsakd.losses import Divergence
from keras_hsakd.teacher_cache import TeacherCache
from keras_hsakd.trainers.base import HeadsTrainer
from keras_hsakd.views import View


class DistillationTrainer(HeadsTrainer):
    """Base class of the trainers whose networks learn from a teacher's outputs.

    Args:
        networks: See `HeadsTrainer`.
        view_terms: See `HeadsTrainer`.
        temperature: The temperature `tau > 0` of a named divergence.
        divergence: See `keras_hsakd.losses.get`.
        divergence_options: See `options` of `keras_hsakd.losses.get`.
        views: See `HeadsTrainer`.
        **kwargs: Other arguments of `HeadsTrainer`.
    """

    def __init__(
        self,
        networks: dict[str, keras.Model],
        view_terms: dict[str, tuple[str, str]],
        temperature: float,
        divergence: str | Divergence,
        divergence_options: Mapping[str, float] | None,
        views: str | Sequence[View] | None,
        **kwargs,
    ):
        losses.get(divergence, temperature, divergence_options)  # checks them
        super().__init__(networks, view_terms, views, **kwargs)
        self.temperature = temperature
        self.divergence = divergence
        # A tuple: Keras would track a dict.
        self._divergence_options = tuple((divergence_options or {}).items())

    @property
    def divergence_options(self) -> dict[str, float]:
        """Further settings of a named divergence, by name."""
        return dict(self._divergence_options)

    def learning(self, outputs, prefix=""):
        """Returns those of a network's outputs that learn from a teacher's.

        Args:
            outputs: Dict by the names of outputs.
            prefix: Of the network's terms. Defaults to none.
        """
        return {
            name: output
            for name, output in outputs.items()
            if self.weighs(f"{prefix}{term_name(name)}")
        }

    def divergences(self, targets, outputs, batch, labels):
        """Returns the divergences of outputs from a teacher's, by their terms.

        Args:
            targets: Dict of the teacher's logits for the batch's rows of views, with
                the names of the outputs that learn from them.
            outputs: Dict of a network's logits for the same rows.
            batch: The batch, as `train_step` makes it.
            labels: Class labels `(B,)` or class probabilities `(B, N)`.

        Returns:
            Dict of `kl_main` and `kl_aux_1` to `kl_aux_L`, each with one value a row.
        """
        divergence = losses.get(
            self.divergence, self.temperature, self.divergence_options
        )
        class_labels = ops.repeat(labels, self.num_seen, axis=0)
        labels_of_views = self.joint_labels_of(batch, labels)
        terms = {}
        for name, logits in outputs.items():
            values = divergence(
                ops.stop_gradient(ops.cast(targets[name], logits.dtype)),
                logits,
                class_labels if name == "logits" else labels_of_views,
            )
            if len(values.shape) != 1:
                raise ValueError(
                    "Expected `divergence` to return one value a row, of shape (rows,)."
                    f" Received: shape {tuple(values.shape)} from {self.divergence}"
                )
            terms[term_name(name)] = values
        return terms

    def get_config(self):
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "divergence": keras.saving.serialize_keras_object(self.divergence),
            "divergence_options": self.divergence_options,
        }


def term_name(output_name: str) -> str:
    """Returns the name of the divergence of one of a network's outputs."""
    return "kl_main" if output_name == "logits" else f"kl_{output_name}"


def check_pair(
    teacher: keras.Model | TeacherCache,
    student: keras.Model,
    roles: tuple[str, str] = ("teacher", "student"),
) -> None:
    """Raises a ValueError unless a network can learn from another, or from a cache."""
    both = " and ".join(f"`{role}`" for role in roles)
    first, second = (
        signature_of(network, role)
        for network, role in zip((teacher, student), roles, strict=True)
    )
    if bool(first.heads) != bool(second.heads):
        with_heads, without = (first, second) if first.heads else (second, first)
        raise ValueError(
            f"Expected {both} to have auxiliary heads both, or neither. "
            f"Received: heads in `{with_heads.name}` and none in `{without.name}`"
        )
    for what, counts in (
        ("classes", (first.num_classes, second.num_classes)),
        ("views", (first.num_views, second.num_views)),
    ):
        if counts[0] != counts[1]:
            raise ValueError(
                f"Expected {both} to have the same number of {what}. "
                f"Received: {counts[0]} in `{first.name}` and {counts[1]} in "
                f"`{second.name}`"
            )
    shapes = first.image_shape, second.image_shape
    if any(
        edge not in (None, other) and other is not None
        for edge, other in zip(*shapes, strict=True)
    ):
        raise ValueError(
            f"Expected {both} to take images of the same shape; one of another size "
            "can begin with `keras.layers.Resizing`. "
            f"Received: {shapes[0]} in `{first.name}` and {shapes[1]} in "
            f"`{second.name}`"
        )
    if isinstance(teacher, TeacherCache):
        return
    teacher_ids = {id(variable) for variable in teacher.weights}
    shared = [each.path for each in student.weights if id(each) in teacher_ids]
    if shared:
        raise ValueError(
            f"Expected {both} to share no variables, or training the one would change "
            f"the other. Received: shared variables {shared[:5]}"
        )


def signature_of(network: keras.Model | TeacherCache, role: str) -> Signature:
    """Returns what a network takes and gives, or the one whose outputs are cached.

    Args:
        network: The network, or the cache.
        role: What an error calls it.
    """
    if isinstance(network, TeacherCache):
        return network.signature
    try:
        return signature(network)
    except ValueError as error:
        raise ValueError(f"`{role}`: {error}") from None
