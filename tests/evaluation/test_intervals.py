"""Intervals hold what they are of as often as they say."""

import math

import numpy as np
import pytest

from starflow_world.evaluation.intervals import (
    Share,
    interquartile_mean,
    interval,
    ratio_band,
    resampled,
    resampled_iqm,
)


def test_the_interval_of_a_share_holds_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for hits in rng.binomial(2000, 0.01, 2000).tolist():
        low, high = Share(hits, 2000).interval
        held += low <= 0.01 <= high
    assert 0.93 <= held / 2000 <= 0.98


def test_a_share_of_all_or_of_none_is_not_certain_and_one_of_no_cases_is_not_a_number() -> None:
    assert Share(0, 100).interval[0] == 0.0 < Share(0, 100).interval[1]
    assert Share(198, 198).interval[0] < 0.99
    assert math.isnan(Share(0, 0).share)
    assert Share(0, 0).interval == (0.0, 1.0)
    assert str(Share(1, 2) + Share(2, 2)) == "75.00 % (30.06 to 95.44) of 4"


def test_the_interval_over_episodes_is_wider_where_their_frames_go_together() -> None:
    """80 episodes of 50 frames, 1 % flagged: one by one, or all frames of an episode in twenty-five together."""
    rng = np.random.default_rng(0)
    apart, together = rng.binomial(50, 0.04, 80), 50 * (rng.random(80) < 0.04)
    widths = [np.diff(interval(resampled(hits.tolist(), [50] * 80)))[0] for hits in (apart, together)]
    alone = np.diff(Share(int(apart.sum()), 4000).interval)[0]
    assert widths[0] == pytest.approx(alone, rel=0.25)
    assert widths[1] > 3 * widths[0]


def test_the_middle_of_samples() -> None:
    samples = np.random.default_rng(1).normal(size=999)
    assert interval(samples, 0.5) == (np.quantile(samples, 0.25), np.quantile(samples, 0.75))
    assert np.isnan(interval(np.full(3, np.nan))).all()


def test_a_band_is_of_the_episodes_that_reach_a_step() -> None:
    values = np.array([[1.0, 2.0, np.nan], [3.0, np.nan, np.nan]])
    band = ratio_band(values)
    assert band.value[:2].tolist() == [2.0, 2.0]
    assert math.isnan(band.value[2])
    assert band.episodes.tolist() == [2, 1, 0]
    assert (band.low[0], band.high[0]) == (1.0, 3.0)
    assert (band.low[1], band.high[1]) == (2.0, 2.0)


def test_a_band_of_a_ratio_weighs_episodes_by_their_parts() -> None:
    hits, cases = np.array([[1.0], [0.0], [8.0]]), np.array([[1.0], [1.0], [8.0]])
    assert ratio_band(hits, cases).value[0] == 0.9


def test_a_band_over_episodes_holds_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        band = ratio_band(rng.normal(size=(30, 1)), resamples=200)
        held += band.low[0] <= 0 <= band.high[0]
    assert 0.88 <= held / 300 <= 0.99


def test_the_interquartile_mean_leaves_out_a_quarter_of_the_runs_at_either_end() -> None:
    assert interquartile_mean(np.array([9.0, 0.0, 1.0, 2.0, -50.0, 3.0, 4.0, 700.0])) == pytest.approx(2.5)
    assert interquartile_mean(np.array([3.0, 1.0, 2.0])) == 2.0  # of three runs none
    assert interquartile_mean(np.array([[5.0, 1.0, 2.0, 3.0, 90.0], [1.0] * 5])).tolist() == pytest.approx([10 / 3, 1])


def test_the_interval_over_runs_holds_the_middle_of_all_runs_nearly_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(0), 0
    for seed in range(300):
        low, high = interval(resampled_iqm(rng.normal(2.0, 1.0, 10).tolist(), seed=seed, resamples=400))
        held += low <= 2.0 <= high
    assert 0.85 <= held / 300 <= 0.98  # a bootstrap over ten runs is a little too sure
    assert interval(resampled_iqm([1.5])) == (1.5, 1.5)
