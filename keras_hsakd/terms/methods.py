"""Methods of distillation by name: the terms that each is the sum of."""

import dataclasses
from collections.abc import Mapping

from keras_hsakd.spelling import parse_call
from keras_hsakd.suggestions import did_you_mean
from keras_hsakd.terms.base import HEADS, LOGITS, Term
from keras_hsakd.terms.features import Attention, Hint
from keras_hsakd.terms.labels import CrossEntropy
from keras_hsakd.terms.logits import DKD, KL, Standardized
from keras_hsakd.terms.relations import Relational, SimilarityPreserving

# Published settings, on the class logits, where `hsakd` has the same on its heads; or
# on features, as in the CRD benchmark.
METHODS = {
    "hsakd": (CrossEntropy(), KL(3.0)),
    "kd": (CrossEntropy(weight=0.1), KL(4.0, weight=0.9)),
    "dkd": (CrossEntropy(), DKD(4.0, warmup=20)),
    "standardized": (CrossEntropy(weight=0.1), Standardized(2.0, weight=9.0)),
    "fitnet": (CrossEntropy(), Hint(weight=100.0, on="stage_2", regressor=True)),
    "attention": (CrossEntropy(), Attention(weight=1000.0)),
    "similarity": (
        CrossEntropy(),
        SimilarityPreserving(weight=3000.0, on="last_stage"),
    ),
    "relational": (CrossEntropy(), Relational()),
}
_EPOCHS = 240  # of the published warm-ups
_SPELLED = (
    *(CrossEntropy, KL, DKD, Standardized),
    *(Hint, Attention, SimilarityPreserving, Relational),
)


def of_method(
    name: str,
    heads: bool | None = None,
    epochs: int = _EPOCHS,
    settings: Mapping[str, float] | None = None,
) -> list[Term]:
    """Returns the terms of a method.

    Args:
        name: One of `METHODS`.
        heads: Whether the student learns from the teacher's heads, too, by the same
            terms, which those on features cannot. Defaults to `None`: by `"hsakd"`
            alone.
        epochs: Epochs of the training; a warm-up, published for 240, changes in
            proportion. Defaults to 240.
        settings: Other settings of the terms that compare with the teacher, by name,
            such as `temperature`. Defaults to `None`, the published ones.

    Returns:
        A list of terms.

    Raises:
        ValueError: If there is no such method, or it has no such setting or no heads.

    Example:
    >>> of_method("kd", settings={"temperature": 2.0})
    [CrossEntropy(weight=0.1), KL(temperature=2.0, weight=0.9)]
    """
    if name not in METHODS:
        raise ValueError(
            f"Expected `method` to be one of {tuple(METHODS)}. "
            f"Received: {name!r}{did_you_mean(name, METHODS)}"
        )
    terms = []
    for term in METHODS[name]:
        if term.needs_teacher:
            warmup = term.warmup * epochs / _EPOCHS
            changes = {"warmup": warmup, **_known(name, term, settings or {})}
            term = dataclasses.replace(term, **changes)
        terms.append(term)
    if name == "hsakd" if heads is None else heads:
        learning = [term for term in terms if term.needs_teacher]
        if any(term.on != LOGITS for term in learning):
            raise ValueError(
                "Expected a method on logits to learn from heads, too. "
                f"Received: {name!r}, which is on features, with heads"
            )
        terms += [dataclasses.replace(term, on=HEADS) for term in learning]
    return terms


def _known(method, term, settings):
    """Returns settings, each of which a term has."""
    known = [
        field.name
        for field in dataclasses.fields(term)
        if isinstance(field.default, float)
    ]
    for name in settings:
        if name not in known:
            raise ValueError(
                f"Expected settings among {known} for the method {method!r}. "
                f"Received: {name!r}{did_you_mean(name, known)}"
            )
    return settings


def parse(text: str) -> Term:
    """Returns the term that a text spells as Python does, without running it.

    Args:
        text: For example `"KL(4.0, weight=0.9, on='heads')"`.

    Raises:
        ValueError: If there is no such term, or it has no such setting.

    Example:
    >>> parse("KL(4.0, on=['aux_2', 'aux_3'])")
    KL(temperature=4.0, on=['aux_2', 'aux_3'])
    """
    kinds = {kind.__name__: kind for kind in _SPELLED}
    name, args, settings = parse_call(text)
    if name not in kinds:
        raise ValueError(
            f"Expected a term of {list(kinds)}. "
            f"Received: {name!r}{did_you_mean(name, kinds)}"
        )
    try:
        return kinds[name](*args, **settings)
    except TypeError as error:
        known = [field.name for field in dataclasses.fields(kinds[name])]
        raise ValueError(
            f"Expected settings among {known} for {name}. Received: {text!r} ({error})"
        ) from None
