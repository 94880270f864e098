"""The terms that the loss of a trainer is the sum of."""

import keras

from keras_hsakd.terms.base import Term
from keras_hsakd.terms.features import Attention, Hint
from keras_hsakd.terms.functions import (
    Function,
    KerasDistillation,
    is_function_of_three,
)
from keras_hsakd.terms.labels import CrossEntropy
from keras_hsakd.terms.logits import DKD, KL, Standardized
from keras_hsakd.terms.methods import METHODS, of_method, parse
from keras_hsakd.terms.relations import Relational, SimilarityPreserving

__all__ = [
    "DKD",
    "KL",
    "METHODS",
    "Attention",
    "CrossEntropy",
    "Function",
    "Hint",
    "KerasDistillation",
    "Relational",
    "SimilarityPreserving",
    "Standardized",
    "Term",
    "get",
    "of_method",
    "parse",
]


def get(term) -> Term:
    """Returns a term as it is, or makes one.

    Args:
        term: A `Term`; a function of (teacher's output, student's output, labels) with
            one value a row; or a `keras.distillation.DistillationLoss`.

    Raises:
        ValueError: If it is none of these.

    Example:
    >>> get(KL(4.0))
    KL(temperature=4.0)
    """
    if isinstance(term, Term):
        return term
    if isinstance(term, keras.distillation.DistillationLoss):
        return KerasDistillation(term)
    if is_function_of_three(term):
        return Function(term)
    raise ValueError(
        "Expected each of `terms` to be a term of keras_hsakd.terms, such as "
        "CrossEntropy() or KL(4.0), a function of (teacher's output, student's output, "
        "labels) with one value a row, or a keras.distillation.DistillationLoss. "
        f"Received: {term!r}"
    )
