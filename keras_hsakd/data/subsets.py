"""Parts of labelled examples, in even shares of the classes."""

import dataclasses
import math

import numpy as np

from keras_hsakd.data.arguments import check_integer

Examples = tuple[np.ndarray, np.ndarray]

_VALIDATION_FRACTION = 0.2
REST = "rest"  # as `unlabeled`: what is not chosen, without labels


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which examples are trained on and measured on, as `load` takes it.

    Attributes:
        seed: As in `load`.
        validation: As in `load`.
        examples_per_class: As in `load`.
        label_fraction: As in `load`.
        limit: As in `load`.
        rest: Whether what the two before leave out is kept without labels.

    Raises:
        ValueError: If one is outside its range.
    """

    seed: int
    validation: bool
    examples_per_class: int | None
    label_fraction: float | None
    limit: int | None
    rest: bool

    def __post_init__(self):
        """Checks the ranges."""
        check_integer("seed", self.seed, 0)
        for name in ("examples_per_class", "limit"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)
        if self.label_fraction is not None and not 0 < self.label_fraction <= 1:
            raise ValueError(
                "Expected `label_fraction` to be above 0 and at most 1. "
                f"Received: label_fraction={self.label_fraction}"
            )
        if self.label_fraction is not None and self.examples_per_class is not None:
            raise ValueError(
                "Expected one of `label_fraction` and `examples_per_class`. Received: "
                f"label_fraction={self.label_fraction}, "
                f"examples_per_class={self.examples_per_class}"
            )

    @property
    def is_of_classes(self) -> bool:
        """Whether some of each class of the training examples are chosen."""
        return self.examples_per_class is not None or self.label_fraction is not None

    @property
    def is_of_all(self) -> bool:
        """Whether all examples are kept."""
        return self.limit is None and (self.rest or not self.is_of_classes)

    def of(self, train: Examples, test: Examples | None) -> tuple[Examples, Examples]:
        """Returns what `choose` chooses."""
        return choose(
            train,
            test,
            self.validation,
            self.examples_per_class,
            self.seed,
            self.label_fraction,
            self.limit,
            self.rest,
        )


def choose(
    train: Examples,
    test: Examples | None,
    validation: bool,
    examples_per_class: int | None,
    seed: int,
    label_fraction: float | None = None,
    limit: int | None = None,
    rest: bool = False,
) -> tuple[Examples, Examples]:
    """Returns the examples to train on and those to measure on.

    Args:
        train: Pair `(inputs, labels)` of all the training examples.
        test: The same of the test examples; not used with `validation`.
        validation: Bool, whether to measure on the last 20 % of each class of the
            training examples, which are then not trained on.
        examples_per_class: Int, the number of training examples to keep of each class,
            or `None`.
        seed: Int; what is kept is a function of it alone.
        label_fraction: Float, the part of each class of the training examples to keep,
            or `None`.
        limit: Int, the most training examples and test examples to keep, or `None`.
        rest: Bool, whether the training examples that `examples_per_class` or
            `label_fraction` would leave out are kept with the label -1.

    Returns:
        Two pairs `(inputs, labels)`.

    Raises:
        ValueError: If there are too few examples, or no rest.

    Example:
    >>> train = np.arange(10), np.zeros(10, int)
    >>> kept, measured = choose(train, None, True, examples_per_class=3, seed=0)
    >>> len(kept[0]), measured[0].tolist()
    (3, [8, 9])
    """
    if validation:
        train, test = hold_out(*train, _VALIDATION_FRACTION)
    if examples_per_class is not None or label_fraction is not None:
        inputs, labels = train
        positions = np.arange(len(labels))
        if examples_per_class is not None:
            kept, _ = few(positions, labels, examples_per_class, seed)
        else:
            kept, _ = fraction_of_each(positions, labels, label_fraction, seed)
        if rest:
            train = inputs, np.where(np.isin(positions, kept), labels, -1)
        else:
            train = inputs[kept], labels[kept]
    elif rest:
        raise ValueError(
            "Expected `examples_per_class` or `label_fraction` with unlabeled='rest', "
            "which is what they leave out. Received: neither"
        )
    if limit is not None:
        train, test = (_any(*examples, limit, seed) for examples in (train, test))
    return train, test


def hold_out(
    inputs: np.ndarray, labels: np.ndarray, fraction: float
) -> tuple[Examples, Examples]:
    """Holds out the last part of each class, in the order of the examples.

    Args:
        inputs: Array, one entry per example.
        labels: Integer array, one per example.
        fraction: Float between 0 and 1, the part of each class to hold out.

    Returns:
        Two pairs `(inputs, labels)`: what is kept, and what is held out.

    Raises:
        ValueError: If the classes are so small that nothing would be held out.

    Example:
    >>> kept, held_out = hold_out(np.arange(10), np.zeros(10, int), 0.2)
    >>> held_out[0].tolist()
    [8, 9]
    """
    counts = np.bincount(labels)
    kept = np.round(counts * (1 - fraction))
    if (kept == counts).all():
        least = math.floor(0.5 / fraction) + 1
        raise ValueError(
            f"Expected at least {least} examples of a class, to hold out "
            f"{fraction:.0%} of them. Received: at most {counts.max()}"
        )
    out = _ranks(labels) >= kept[labels]
    return (inputs[~out], labels[~out]), (inputs[out], labels[out])


def few(
    inputs: np.ndarray, labels: np.ndarray, examples_per_class: int, seed: int
) -> Examples:
    """Keeps a number of random examples of each class, in their order.

    Args:
        inputs: Array, one entry per example.
        labels: Integer array, one per example.
        examples_per_class: Int, the number to keep of each class.
        seed: Int; the choice is a function of it alone.

    Returns:
        The pair `(inputs, labels)` of what is kept.

    Raises:
        ValueError: If a class has fewer examples.

    Example:
    >>> sorted(few(np.arange(4), np.array([0, 1, 0, 1]), 1, seed=0)[1].tolist())
    [0, 1]
    """
    fewest = np.bincount(labels).min()
    if examples_per_class > fewest:
        raise ValueError(
            f"Expected `examples_per_class` to be at most {fewest}, the size of the "
            f"smallest class. Received: examples_per_class={examples_per_class}"
        )
    counts = np.full(len(np.bincount(labels)), examples_per_class)
    return _of_each(inputs, labels, counts, seed)


def fraction_of_each(
    inputs: np.ndarray, labels: np.ndarray, fraction: float, seed: int
) -> Examples:
    """Keeps a part of the examples of each class, at least one, in their order.

    Args:
        inputs: Array, one entry per example.
        labels: Integer array, one per example.
        fraction: Float, above 0 and at most 1.
        seed: Int; the choice is a function of it alone.

    Returns:
        The pair `(inputs, labels)` of what is kept.

    Example:
    >>> labels = np.array([0, 0, 0, 0, 1, 1])
    >>> fraction_of_each(np.arange(6), labels, 0.5, seed=0)[1].tolist()
    [0, 0, 1]
    """
    counts = np.maximum(np.round(np.bincount(labels) * fraction), 1)
    return _of_each(inputs, labels, counts, seed)


def _of_each(inputs, labels, counts, seed):
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = np.sort(order[_ranks(labels[order]) < counts[labels[order]]])
    return inputs[chosen], labels[chosen]


def _any(inputs, labels, limit, seed):
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = np.sort(order[:limit])
    return inputs[chosen], labels[chosen]


def _ranks(labels: np.ndarray) -> np.ndarray:
    """Returns the place of each example among those of its class."""
    counts = np.bincount(labels)
    ranks = np.empty_like(labels)
    ranks[np.argsort(labels, kind="stable")] = np.concatenate(
        [np.arange(count) for count in counts]
    )
    return ranks
