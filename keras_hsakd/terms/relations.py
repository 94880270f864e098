"""Terms that compare how images of a batch are related, in two networks.

Each value is an image's: of its relations to all images of the batch, which on several
replicas is the replica's part. An image of weight 0 is none that others are compared
with; of all others each counts alike, whatever it weighs, and its own weight is that of
its value. No labels are needed: an image without one is as any other.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import keras

from keras_hsakd import ops
from keras_hsakd.terms.base import FEATURES, check_number
from keras_hsakd.terms.features import OnFeatures, check_sizes


@dataclasses.dataclass(repr=False)
class OnRelations(OnFeatures):
    """Base class of the terms that compare the images of a batch."""

    compares_rows: ClassVar[bool] = True

    def make_layer(self, teacher_shape, student_shape):
        check_sizes(teacher_shape, student_shape)


@keras.saving.register_keras_serializable("keras_hsakd")
@dataclasses.dataclass(repr=False)
class SimilarityPreserving(OnRelations):
    """Difference of which images of a batch have similar features.

    `||G_T - G_S||^2 / B^2`, where `G` is the matrix of the products of the features of
    all pairs of images, each row divided by its L2 norm. It is summed over all features
    that the term is on, and reported as `similarity`. Shapes of features may differ.

    Args:
        on: See `Term`. Defaults to `"stages"`; the CRD benchmark has `"last_stage"`.
        **kwargs: `weight`, `warmup`, `teacher` and `name`, see `Term`. The weight of
            the CRD benchmark is 3000.

    Raises:
        ValueError: If a setting is out of range; where a trainer is made, if a size of
            the features is not known.

    Example:
    >>> features = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> term = SimilarityPreserving()
    >>> np.round(term.values(features, np.ones((2, 2)), None), 4).tolist()
    [0.2929, 0.2929]

    References: [Tung and Mori, 2019](https://arxiv.org/abs/1907.09682), and the
    [CRD benchmark](https://github.com/HobbitLong/RepDistiller).
    """

    @property
    def label(self):
        return "similarity"

    def values(self, teacher, student, labels, counts=None):
        return ops.similarity_difference(teacher, student, counts)


@keras.saving.register_keras_serializable("keras_hsakd")
@dataclasses.dataclass(repr=False)
class Relational(OnRelations):
    """Difference of the distances and angles between the features of images.

    ```
    distance * mean_ij huber(d_T(i, j) - d_S(i, j))
        + angle * mean_ijk huber(cos_T(j, i, k) - cos_S(j, i, k))
    ```

    with `d` the distance of two images' features, divided by the mean over all pairs
    whose distance is not zero, `cos(j, i, k)` the cosine of the angle at image `i`
    between images `j` and `k`, and `huber(x)` the smooth L1 loss, `x^2 / 2` up to 1 and
    `|x| - 1/2` above. Reported as `relational`. It takes `B^2` differences of features
    and `B^3` angles of a batch of `B` images.

    Args:
        distance: Weight of the distances. Defaults to 25.
        angle: Weight of the angles. Defaults to 50.
        on: See `Term`. Defaults to `"features"`, what the classifier takes.
        **kwargs: `weight`, `warmup`, `teacher` and `name`, see `Term`.

    Raises:
        ValueError: If a setting is out of range; where a trainer is made, if a size of
            the features is not known.

    Example:
    >>> features = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> values = Relational().values(features, 2 * features + 1, None)
    >>> bool(np.abs(values).max() < 1e-5)
    True

    References: [Park et al., 2019](https://arxiv.org/abs/1904.05068), and the
    [CRD benchmark](https://github.com/HobbitLong/RepDistiller).
    """

    distance: float = dataclasses.field(default=25.0, kw_only=True)
    angle: float = dataclasses.field(default=50.0, kw_only=True)
    on: str | Sequence[str] = dataclasses.field(default=FEATURES, kw_only=True)

    def __post_init__(self):
        """Checks the settings."""
        super().__post_init__()
        for setting in ("distance", "angle"):
            check_number(self, setting, lambda value: value >= 0, "0 or more")

    def values(self, teacher, student, labels, counts=None):
        distances, angles = ops.relational_differences(teacher, student, counts)
        return self.distance * distances + self.angle * angles
