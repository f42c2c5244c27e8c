"""The metrics of the anomaly benchmark against closed forms and against counting pairs one by one."""

import math

import numpy as np
import pytest

from starflow_world.commands.anomaly import metrics
from starflow_world.commands.anomaly.metrics import PageTest


def counted(scores: np.ndarray, labels: np.ndarray) -> float:
    """AUROC by its definition, pair by pair."""
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels] for n in scores[~labels]]
    return float(np.mean(pairs))


def cases(count: int = 30) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scores with many ties, labels of both classes."""
    rng = np.random.default_rng(0)
    drawn = [(rng.integers(0, 7, 25).astype(float), rng.random(25) < 0.4) for _ in range(count)]
    return [(scores, labels) for scores, labels in drawn if labels.any() and not labels.all()]


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    for scores, labels in cases():
        assert metrics.auroc(scores, labels) == pytest.approx(counted(scores, labels), abs=1e-12)


def test_auroc_is_one_sided() -> None:
    labels = np.array([False, False, True, True])
    assert metrics.auroc(np.array([0.0, 1, 2, 3]), labels) == 1
    assert metrics.auroc(np.array([3.0, 2, 1, 0]), labels) == 0
    assert metrics.auroc(np.zeros(4), labels) == 0.5
    assert math.isnan(metrics.auroc(np.zeros(4), np.zeros(4, bool)))


def test_auroc_of_two_normals_has_its_closed_form() -> None:
    rng, apart = np.random.default_rng(1), 1.3
    scores, labels = rng.standard_normal(40_000), np.arange(40_000) % 2 == 0
    expected = 0.5 * (1 + math.erf(apart / 2))  # Phi(d / sqrt 2)
    assert metrics.auroc(scores + apart * labels, labels) == pytest.approx(expected, abs=0.006)


def test_average_precision_of_a_ranking_by_hand() -> None:
    labels = np.array([True, False, True, False])
    assert metrics.aupr(np.array([4.0, 3, 2, 1]), labels) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.aupr(np.array([1.0, 2, 3, 4]), labels) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert metrics.aupr(np.zeros(4), labels) == pytest.approx(0.5)  # guessing: the share of positives
    assert math.isnan(metrics.aupr(np.zeros(4), np.zeros(4, bool)))


def test_false_positives_where_nineteen_of_twenty_are_found() -> None:
    scores = np.concatenate((np.arange(20.0), np.array([-1.0, 0.5, 0.7, 3.5])))
    labels = np.arange(24) < 20
    assert metrics.fpr_at(scores, labels) == pytest.approx(1 / 4)  # the threshold is 1: only 3.5 lies above it
    assert metrics.fpr_at(scores, labels, recall=1.0) == pytest.approx(3 / 4)
    assert metrics.fpr_at(np.zeros(24), labels) == 1  # equals cannot be told apart


def test_the_area_under_the_roc_curve_is_the_auroc() -> None:
    for scores, labels in cases():
        false, true = metrics.roc(scores, labels)
        assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
        assert np.trapezoid(true, false) == pytest.approx(metrics.auroc(scores, labels), abs=1e-12)


def test_the_bootstrap_repeats_whole_episodes() -> None:
    rng = np.random.default_rng(2)
    scores = [rng.integers(0, 9, length).astype(float) for length in (3, 8, 5, 11)]
    labels = [rng.random(len(episode)) < 0.5 for episode in scores]
    draws = np.random.default_rng(7).multinomial(4, np.full(4, 1 / 4), size=40)
    found = metrics.bootstrap_auroc(scores, labels, seed=7, resamples=40)
    for times, area in zip(draws, found, strict=True):
        repeated = [(s, y) for s, y, n in zip(scores, labels, times, strict=True) for _ in range(n)]
        s, y = (np.concatenate(part) for part in zip(*repeated, strict=True))
        assert area == pytest.approx(counted(s, y), abs=1e-9)


def test_run_length_of_a_fair_walk_is_its_closed_form() -> None:
    """A walk of +-1 reflected at 0 takes h (h + 1) steps to h on average."""
    walk = [np.random.default_rng(3).choice([-1.0, 1.0], 60_000)]
    for height in (1, 3, 6):
        test = PageTest(middle=0, deviation=1, threshold=height, slack=0)
        assert metrics.run_length(test, walk) == pytest.approx(height * (height + 1), rel=0.06)
    assert metrics.run_length(PageTest(0, 1, 1e9), walk) == math.inf


def test_page_test_begins_anew_after_an_alarm_and_with_every_episode() -> None:
    test = PageTest(middle=0, deviation=1, threshold=2, slack=0.5)
    assert test.alarms(np.full(7, 1.5)).tolist() == [False, True, False, True, False, True, False]
    assert metrics.run_length(test, [np.array([1.5])] * 10) == math.inf
    assert test.alarms(np.array([-100.0, 1.5, 1.5]))[2]  # what was very normal is no credit


def test_the_fitted_test_keeps_its_run_length_and_none_more_sensitive_does() -> None:
    rng = np.random.default_rng(4)
    normal = [3 + 2 * rng.standard_normal(50) for _ in range(400)]
    test = metrics.page_test(normal, 500)
    assert metrics.run_length(test, normal) >= 500
    assert metrics.run_length(PageTest(test.middle, test.deviation, test.threshold / 1.03), normal) < 500
    fresh = [3 + 2 * rng.standard_normal(50) for _ in range(400)]
    assert 250 < metrics.run_length(test, fresh) < 1000


def test_delay_is_counted_from_the_event() -> None:
    test = PageTest(middle=0, deviation=1, threshold=5, slack=0.5)
    scores = np.zeros(30)
    scores[3:5], scores[12:] = 10, 2.5  # a false alarm, then 2 per frame: the third reaches 5
    assert metrics.delay(test, scores, 12) == 2
    assert metrics.delay(test, scores[:13], 12) == math.inf
