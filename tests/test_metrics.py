"""What a classifier is worth, beside scikit-learn and beside what must be."""

import numpy as np
import pytest

from keras_hsakd.export import metrics

rng = np.random.default_rng(0)
PROBABILITIES = metrics.softmax(2 * rng.normal(size=(500, 6)))
LABELS = rng.integers(0, 6, 500)
PERFECT = np.eye(6)[LABELS]


def test_against_scikit_learn():
    learn = pytest.importorskip("sklearn.metrics")
    assert metrics.negative_log_likelihood(PROBABILITIES, LABELS) == pytest.approx(
        learn.log_loss(LABELS, PROBABILITIES)
    )
    assert metrics.brier_score(PROBABILITIES, LABELS) == pytest.approx(
        learn.brier_score_loss(LABELS, PROBABILITIES, scale_by_half=False)
    )
    for k in (1, 3):
        assert metrics.accuracy(PROBABILITIES, LABELS, k) == pytest.approx(
            learn.top_k_accuracy_score(LABELS, PROBABILITIES, k=k)
        )


def test_the_divergence_is_that_of_its_definition():
    other = metrics.softmax(rng.normal(size=(500, 6)))
    expected = [
        sum(p * np.log(p / q) for p, q in zip(*rows, strict=True))
        for rows in zip(other, PROBABILITIES, strict=True)
    ]
    received = metrics.divergence(other, PROBABILITIES)
    assert received == pytest.approx(np.mean(expected))
    assert received != pytest.approx(metrics.divergence(PROBABILITIES, other))
    assert metrics.divergence(other, other) == pytest.approx(0, abs=1e-12)
    assert metrics.divergence(PERFECT, PERFECT) == 0


def test_a_perfect_classifier():
    assert metrics.negative_log_likelihood(PERFECT, LABELS) == 0
    assert metrics.brier_score(PERFECT, LABELS) == 0
    assert metrics.expected_calibration_error(PERFECT, LABELS) == 0


def test_a_classifier_that_knows_nothing():
    nothing = np.full((500, 6), 1 / 6)
    assert metrics.negative_log_likelihood(nothing, LABELS) == pytest.approx(np.log(6))
    assert metrics.brier_score(nothing, LABELS) == pytest.approx(5 / 6)


def test_a_classifier_that_is_sure_and_wrong_has_finite_figures():
    wrong = np.roll(PERFECT, 1, axis=1)
    assert metrics.brier_score(wrong, LABELS) == 2
    assert metrics.expected_calibration_error(wrong, LABELS) == 1
    assert 500 < metrics.negative_log_likelihood(wrong, LABELS) < np.inf
