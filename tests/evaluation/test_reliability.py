"""Reliability bins: calibrated predictions lie on the diagonal, others beside it."""

import numpy as np

from starflow_world.evaluation.reliability import end_bins, reward_bins


def test_calibrated_probabilities_lie_on_the_diagonal_and_others_do_not() -> None:
    rng = np.random.default_rng(0)
    said = rng.uniform(size=20_000)
    happened = rng.uniform(size=20_000) < said
    for one in end_bins(said, happened):
        assert one["low"] <= one["predicted"] <= one["high"] or abs(one["predicted"] - one["observed"]) < 0.03
    assert any(one["predicted"] > one["high"] for one in end_bins(said**0.5, happened))


def test_empty_bins_are_left_out_and_cases_are_counted() -> None:
    bins = end_bins(np.array([0.01, 0.02, 1.0]), np.array([False, False, True]))
    assert [(one["count"], one["observed"]) for one in bins] == [(2, 0.0), (1, 1.0)]


def test_rewards_have_bins_between_the_real_ones_and_none_where_all_are_equal() -> None:
    real = np.array([-1.0, 0.0, 0.0, 1.0])
    bins = reward_bins(np.array([-1.5, 0.0, 0.05, 0.9]), real)
    assert [one["observed"] for one in bins] == [-1.0, 0.0, 1.0]
    assert reward_bins(np.array([0.1, 0.2]), np.zeros(2)) == []
