"""Terms of a loss on the outputs that networks have: a part of the loss each."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import keras

from keras_hsakd import terms as all_terms
from keras_hsakd.classifier import Classifier
from keras_hsakd.heads import output_names
from keras_hsakd.suggestions import did_you_mean
from keras_hsakd.teachers import Teacher
from keras_hsakd.terms import Term
from keras_hsakd.terms.base import (
    FEATURES,
    HEADS,
    IMAGES,
    LAST_STAGE,
    LOGITS,
    PLACES,
    STAGES,
)


class Tap(NamedTuple):
    """What a term compares.

    Attributes:
        output: Name of the network's output, stage or layer.
        target: Name of the teacher's.
    """

    output: str
    target: str


class Part(NamedTuple):
    """A term on outputs of a network that is trained, with one metric.

    Attributes:
        metric: Name of its metric.
        term: The term.
        network: Name of the network, a prefix of its metrics.
        taps: What it compares; its values are summed.
        on_views: Whether it is on all views of an image, and not on the image alone.
    """

    metric: str
    term: Term
    network: str
    taps: tuple[Tap, ...]
    on_views: bool

    @property
    def outputs(self) -> set[str]:
        """Names of what it needs of the network."""
        return {tap.output for tap in self.taps}

    @property
    def targets(self) -> set[str]:
        """Names of what it needs of the teachers."""
        return {tap.target for tap in self.taps} if self.term.needs_teacher else set()

    @property
    def is_of_a_head(self) -> bool:
        """Whether its labels are the joint labels."""
        return self.on_views and self.outputs != {LOGITS}


@dataclasses.dataclass(frozen=True)
class Learner:
    """A network that is trained, and who teaches it.

    Attributes:
        prefix: What the names of its metrics begin with.
        network: The network.
        teachers: Who teaches it; nobody for one that learns from labels alone.
        pairs: Head of the teachers by the head of the network that is compared with it.
    """

    prefix: str
    network: keras.Model
    teachers: Sequence[Teacher] = ()
    pairs: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def classifier(self) -> Classifier:
        """The network taken apart."""
        return Classifier(self.network)

    @property
    def heads(self) -> list[str]:
        """Names of its auxiliary heads."""
        return output_names(self.network)[1:]


def as_terms(terms: Sequence) -> list[Term]:
    """Returns the terms of a list of what `keras_hsakd.terms.get` takes.

    Raises:
        ValueError: If it is no such list.
    """
    if isinstance(terms, (str, Mapping)) or not isinstance(terms, Sequence):
        raise ValueError(f"Expected `terms` to be a list of terms. Received: {terms!r}")
    return list(map(all_terms.get, terms))


def parts_of(terms: Sequence[Term], learner: Learner) -> list[Part]:
    """Returns the parts that terms are on the outputs of a network.

    Args:
        terms: The terms.
        learner: The network.

    Raises:
        ValueError: If a term needs what is not there, or two have the same name.
    """
    parts = []
    for term in terms:
        if term.needs_teacher and not learner.teachers:
            raise ValueError(
                "Expected `terms` that need labels alone, such as CrossEntropy, where "
                f"there is no teacher. Received: {term!r}"
            )
        parts += _parts(term, learner)
    counts = Counter(part.metric for part in parts)
    for part in parts:
        if counts[part.metric] > 1 or part.metric == f"{learner.prefix}loss":
            raise ValueError(
                "Expected `terms` of different names, which their metrics have: give "
                f"a term another one by `name`. Received: {part.term!r}, whose name "
                f"would be {part.metric!r}"
            )
    return parts


def _parts(term, learner):
    """Returns the parts of a term."""
    found = [part for on in term.on_names for part in _on(on, term, learner)]
    if term.is_summed:
        features = [part for part in found if not part.on_views]
        if features:
            taps = tuple(tap for part in features for tap in part.taps)
            _check_once(taps, term, learner)
            merged = features[0]._replace(metric=term.name or term.label, taps=taps)
            found = [merged, *(part for part in found if part.on_views)]
    if term.name and len(found) == 1:
        found = [found[0]._replace(metric=term.name)]
    return [part._replace(metric=learner.prefix + part.metric) for part in found]


def _on(on, term, learner):
    """Returns the parts of a term by one of the names that it is on."""

    def part(end, taps, on_views):
        metric = f"{term.name or term.label}_{end}"
        return Part(metric, term, learner.prefix, tuple(taps), on_views)

    heads = learner.heads
    if on == LOGITS:
        return [part("main", [Tap(LOGITS, LOGITS)], True)]
    if on == IMAGES:
        return [part("loss", [Tap(LOGITS, LOGITS)], False)]
    if on == HEADS and not heads:
        raise ValueError(
            f"Expected a network with auxiliary heads for {term!r}. "
            f"Received: `{learner.network.name}`, which has none"
        )
    if on == HEADS or on in heads:
        names = heads if on == HEADS else [on]
        return [part(name, [_head(name, term, learner)], True) for name in names]
    return [part(on, _features(on, term, learner), False)]


def _head(name, term, learner):
    """Returns the tap of a term on a head."""
    target = term.teacher or learner.pairs.get(name, name)
    for teacher in learner.teachers if term.needs_teacher else ():
        heads = teacher.signature.heads
        if target not in heads:
            raise ValueError(
                f"Expected `teacher` to name a head of `{teacher.signature.name}` for "
                f"{term!r}. Received: {target!r}{did_you_mean(target, heads)}"
            )
    return Tap(name, target)


def _check_once(taps, term, learner):
    """Raises a ValueError if a term would count features twice."""
    own = learner.classifier
    if len({(id(own.tensor(tap.output)), tap.target) for tap in taps}) < len(taps):
        raise ValueError(
            f"Expected `on` to name the same features once. Received: {term!r}, which "
            f"is on {[tap.output for tap in taps]}"
        )


def _features(on, term, learner):
    """Returns the taps of a term on features."""
    own = learner.classifier
    if on in (STAGES, LAST_STAGE):
        return _stages(on, term, learner)
    if own.tensor(on) is None:
        places = (*PLACES, *learner.heads, *own.stages)
        raise ValueError(
            f"Expected `on` to be one of {places}, or the name of a layer of "
            f"`{own.name}`. Received: on={on!r}{_near(on, own, places)}"
        )
    return [Tap(on, _known(term.teacher or on, term, learner))]


def _stages(on, term, learner):
    """Returns the taps of a term on all stages, or on the last one."""
    own = learner.classifier
    # A term that names the teacher's layer, or needs no teacher, uses no other stages.
    others = [] if term.teacher or not term.needs_teacher else learner.teachers
    found = [list(each.classifier.stages) for each in others]
    count = min(map(len, [own.stages, *found]))
    if not count:
        raise ValueError(
            f"Expected networks with stages, whose images have a known size, for "
            f"{term!r}. Received: `{own.name}`, or a teacher, without"
        )
    count = 1 if on == LAST_STAGE else count
    names = list(own.stages)[-count:]
    targets = [stages[-count:] for stages in found] or [names]
    if term.teacher:
        targets = [[_known(term.teacher, term, learner)]]
    if any(each != targets[0] for each in targets):
        counts = {each.signature.name: len(each.classifier.stages) for each in others}
        raise ValueError(
            f"Expected teachers with the same number of stages each for {term!r}: name "
            f"one that all have, such as on='stage_1'. Received: {counts}"
        )
    return list(map(Tap, names, targets[0]))


def _known(target, term, learner):
    """Returns the name of a teacher's features, which all teachers must have."""
    for teacher in learner.teachers if term.needs_teacher else ():
        network = teacher.classifier
        if network.tensor(target) is None:
            places = (FEATURES, *network.stages)
            raise ValueError(
                f"Expected `teacher` to name a stage or a layer of `{network.name}` for"
                f" {term!r}. Received: {target!r}{_near(target, network, places)}"
            )
    return target


def _near(name, network, places):
    """Returns a hint, for an error, about a name that a network does not have."""
    if calls := len(network.calls.get(name, ())):
        return f", a layer that is called {calls} times"
    return did_you_mean(name, (*places, *network.layers))
