"""Reports of artefacts: metrics, measuring, rendering, what is kept aside."""

import numpy as np
import pytest

from keras_hsakd.export import metrics


@pytest.fixture
def answers():
    """Returns probabilities of 200 images of 7 classes, others of them, and labels."""
    rng = np.random.default_rng(0)
    probabilities, others = rng.dirichlet(np.full(7, 0.3), (2, 200))
    labels = np.where(rng.random(200) < 0.5, probabilities.argmax(1), others.argmax(1))
    return probabilities, others, labels


# Metrics.


@pytest.mark.parametrize("k", [1, 5])
def test_accuracy(answers, k):
    probabilities, _, labels = answers
    ranks = [
        sorted(range(7), key=lambda c, row=row: (-row[c], c)).index(label)
        for row, label in zip(probabilities, labels, strict=True)
    ]
    expected = np.mean([rank < k for rank in ranks])
    assert metrics.accuracy(probabilities, labels, k) == pytest.approx(expected)
    assert 0.5 < expected < 1


def test_the_first_of_equal_classes_is_the_most_likely():
    equal = np.full((3, 3), 1 / 3)
    assert metrics.accuracy(equal, [0, 1, 2]) == pytest.approx(1 / 3)
    assert metrics.accuracy(equal, [0, 1, 2], k=2) == pytest.approx(2 / 3)
    assert metrics.confusion_matrix(equal, [0, 1, 2])[:, 0].tolist() == [1, 1, 1]


def test_agreement(answers):
    probabilities, others, _ = answers
    same = [p.argmax() == o.argmax() for p, o in zip(*answers[:2], strict=True)]
    assert metrics.agreement(probabilities, others) == pytest.approx(np.mean(same))
    assert metrics.agreement(others, others) == 1


def calibration_error(probabilities, labels, bins):
    """Returns the error by the book: bins one after another."""
    confidences, error = probabilities.max(axis=1), 0
    right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (confidences > low) & (confidences <= high)
        if inside.any():
            gap = abs(right[inside].mean() - confidences[inside].mean())
            error += inside.mean() * gap
    return error


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error(answers, bins):
    probabilities, _, labels = answers
    expected = calibration_error(probabilities, labels, bins)
    error = metrics.expected_calibration_error(probabilities, labels, bins)
    assert error == pytest.approx(expected, rel=1e-9)
    assert error > 0.01


def test_a_certain_classifier_is_as_wrong_as_it_is_sure():
    certain = np.eye(4, dtype="float32")[[0, 1, 2, 3]]
    assert metrics.expected_calibration_error(certain, [0, 1, 2, 3]) == 0
    assert metrics.expected_calibration_error(certain, [0, 1, 2, 0]) == 0.25


def test_confusion(answers):
    probabilities, _, labels = answers
    matrix = metrics.confusion_matrix(probabilities, labels)
    for label in range(7):
        for found in range(7):
            count = np.sum((labels == label) & (probabilities.argmax(1) == found))
            assert matrix[label, found] == count


def test_the_classes_that_lost_most():
    # Labels in rows: one image of class 1, none of class 3.
    expected = np.diag([10, 1, 4, 0])
    confusion = np.array([[8, 2, 0, 0], [0, 0, 1, 0], [0, 0, 4, 0], [0, 0, 0, 0]])
    losses = metrics.lost_most(confusion, expected)
    assert losses == [(1, 1, 0.0, 1.0), (0, 10, 0.8, 1.0)]
    assert metrics.lost_most(confusion, expected, count=1) == losses[:1]
    assert metrics.lost_most(expected, confusion) == []
