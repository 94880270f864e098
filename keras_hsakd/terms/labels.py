"""Terms that need labels alone."""

import dataclasses
from typing import ClassVar

import keras

from keras_hsakd.ops import cross_entropy, smoothed_labels
from keras_hsakd.terms.base import IMAGES, Term, check_number


@keras.saving.register_keras_serializable("keras_hsakd")
@dataclasses.dataclass(repr=False)
class CrossEntropy(Term):
    """Cross-entropy of labels and predictions.

    Of the class logits it is on the images themselves, as in the paper, and reported
    as `ce_loss`. On `"heads"` the labels are the joint labels of class and view.

    Args:
        label_smoothing: Probability, from 0 to below 1, that is taken from each label
            and spread over all labels, in training. Defaults to 0.
        on: See `Term`. Defaults to `"images"`.
        **kwargs: `weight`, `warmup` and `name`, see `Term`.

    Raises:
        ValueError: If a setting is out of range.

    Example:
    >>> term = CrossEntropy(label_smoothing=0.1)
    >>> float(term.values(None, np.zeros((1, 2), "float32"), np.array([1]))[0])
    0.6931471824645996
    """

    label_smoothing: float = dataclasses.field(default=0.0, kw_only=True)
    on: str | list[str] = dataclasses.field(default=IMAGES, kw_only=True)

    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True

    def __post_init__(self):
        """Checks the settings."""
        super().__post_init__()
        check_number(self, "label_smoothing", lambda s: 0 <= s < 1, "from 0 to below 1")

    @property
    def label(self):
        return "ce"

    def values(self, teacher, student, labels):
        # A row without a label counts nothing, whatever its value is.
        if len(labels.shape) == 1:
            labels = keras.ops.maximum(labels, 0)
        if self.label_smoothing:
            classes = student.shape[-1]
            labels = smoothed_labels(labels, classes, self.label_smoothing)
        return cross_entropy(labels, student)
