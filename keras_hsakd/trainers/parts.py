"""Terms of a loss on the outputs that networks have: a part of the loss each."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import keras

from keras_hsakd import terms as all_terms
from keras_hsakd.heads import layer_names, output_names
from keras_hsakd.suggestions import did_you_mean
from keras_hsakd.teacher_cache import TeacherCache
from keras_hsakd.terms import Term
from keras_hsakd.terms.base import HEADS, IMAGES, LOGITS


class Part(NamedTuple):
    """A term on one output of a network that is trained.

    Attributes:
        metric: Name of its metric.
        term: The term.
        network: Name of the network, a prefix of its metrics.
        output: Name of the network's output or layer.
        target: Name of the teacher's output or layer that it is compared with.
        on_views: Whether it is on all views of an image, and not on the image alone.
    """

    metric: str
    term: Term
    network: str
    output: str
    target: str
    on_views: bool

    @property
    def is_of_a_head(self) -> bool:
        """Whether its labels are the joint labels."""
        return self.on_views and self.output != LOGITS


class Learner(NamedTuple):
    """A network that is trained, and who teaches it.

    Attributes:
        prefix: What the names of its metrics begin with.
        network: The network.
        teachers: Networks or caches whose outputs it is compared with; none for a
            network that learns from labels alone.
        pairs: Head of the teachers by the head of the network that is compared with it.
    """

    prefix: str
    network: keras.Model
    teachers: Sequence[keras.Model | TeacherCache] = ()
    pairs: Mapping[str, str] = {}


def parts_of(terms: Sequence, learner: Learner) -> list[Part]:
    """Returns the parts that terms are on the outputs of a network.

    Args:
        terms: List of what `keras_hsakd.terms.get` takes.
        learner: The network.

    Raises:
        ValueError: If a term needs what is not there, or two have the same name.
    """
    if isinstance(terms, (str, Mapping)) or not isinstance(terms, Sequence):
        raise ValueError(f"Expected `terms` to be a list of terms. Received: {terms!r}")
    parts = []
    for term in map(all_terms.get, terms):
        if term.needs_teacher and not learner.teachers:
            raise ValueError(
                "Expected `terms` that need labels alone, such as CrossEntropy, where "
                f"there is no teacher. Received: {term!r}"
            )
        outputs = [name for on in term.on_names for name in _outputs(on, term, learner)]
        parts += [_part(term, on, len(outputs) == 1, learner) for on in outputs]
    counts = Counter(part.metric for part in parts)
    for part in parts:
        if counts[part.metric] > 1 or part.metric == f"{learner.prefix}loss":
            raise ValueError(
                "Expected `terms` of different names, which their metrics have: give "
                f"a term another one by `name`. Received: {part.term!r}, whose name "
                f"would be {part.metric!r}"
            )
    return parts


def _outputs(on, term, learner):
    """Returns the names of all that a term is on by one of its names."""
    network = learner.network
    heads = output_names(network)[1:]
    if on == HEADS:
        if not heads:
            raise ValueError(
                f"Expected a network with auxiliary heads for {term!r}. "
                f"Received: `{network.name}`, which has none"
            )
        return heads
    places = (LOGITS, IMAGES, *heads)
    if on in places or on in layer_names(network):
        return [on]
    known = (*places, HEADS, *layer_names(network))
    raise ValueError(
        f"Expected `on` to be one of {(*places, HEADS)}, or the name of a layer of "
        f"`{network.name}`. Received: on={on!r}{did_you_mean(on, known)}"
    )


def _part(term, on, is_only, learner):
    """Returns the part of a term on one output."""
    suffix = {LOGITS: "main", IMAGES: "loss"}.get(on, on)
    metric = f"{term.name or term.label}_{suffix}"
    if term.name and is_only:
        metric = term.name
    output = LOGITS if on == IMAGES else on
    is_head = output in output_names(learner.network)[1:]
    target = term.teacher or learner.pairs.get(output, output)
    for teacher in learner.teachers if term.needs_teacher and output != LOGITS else ():
        _check_target(target, is_head, term, teacher)
    return Part(
        f"{learner.prefix}{metric}",
        term,
        learner.prefix,
        output,
        target,
        on_views=on == LOGITS or is_head,
    )


def _check_target(name, is_head, term, teacher):
    """Raises a ValueError unless a teacher has a head, or a layer, of a name."""
    if isinstance(teacher, TeacherCache):
        if not is_head:
            raise ValueError(
                "Expected terms on logits and heads with a teacher's cached outputs, "
                f"which have no features of layers. Received: {term!r}"
            )
        what, role, known = "head", teacher.signature.name, teacher.signature.heads
    elif is_head:
        what, role, known = "head", teacher.name, output_names(teacher)[1:]
    else:
        what, role, known = "layer", teacher.name, layer_names(teacher)
    if name not in known:
        raise ValueError(
            f"Expected `teacher` to name a {what} of `{role}` for {term!r}. "
            f"Received: {name!r}{did_you_mean(name, known)}"
        )
