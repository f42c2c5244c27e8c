"""Scales, ranks and sums: on numbers whose distribution is known."""

import numpy as np
import pytest

from starflow_world.errors import ScorerError
from starflow_world.score.calibration import Change, Memory, Ranks, check_support
from starflow_world.score.tails import FEWEST, Tails


def test_a_scale_says_how_rare_a_number_is_also_where_there_was_none() -> None:
    rng = np.random.default_rng(0)
    normal = 20 * rng.standard_exponential((4000, 1))
    tails = Tails.fit(normal, np.ones(4000, np.int64), 2)
    at = np.array([[10.0], [46.0], [138.0], [230.0]])
    found = tails(at, np.ones(4, np.int64))[:, 0]
    np.testing.assert_allclose(found, at[:, 0] / 20, rtol=0.25)
    assert (np.diff(tails(np.linspace(0, 1e6, 999)[:, None], np.ones(999, np.int64))[:, 0]) > 0).all()


def test_heavy_normal_tails_make_far_numbers_less_strange() -> None:
    rng = np.random.default_rng(0)
    light, heavy = rng.standard_exponential(3000), rng.pareto(1.5, 3000)
    tails = Tails.fit(np.stack((light, heavy), axis=1), np.ones(3000, np.int64), 2)
    found = tails(np.array([[20.0, 20.0]]), np.ones(1, np.int64))[0]
    assert found[0] > 2 * found[1]
    assert found[1] == pytest.approx(1.5 * np.log(21), rel=0.25)


def test_what_is_common_behind_one_action_may_be_rare_behind_another() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat([1, 2, 3], (2000, 400, FEWEST - 1))
    values = rng.standard_exponential((len(group), 1)) + 20 * (group == 2)[:, None]
    tails = Tails.fit(values, group, 4)
    rare, common, few = tails(np.full((3, 1), 20.5), np.array([1, 2, 3]))[:, 0]
    assert rare > 8
    assert common < 2
    assert few < rare, "too few frames of its own: judged as all together"


def test_p_values_of_normal_frames_are_uniform_at_every_age() -> None:
    rng = np.random.default_rng(0)

    def normal(count: int) -> list[np.ndarray]:
        return [rng.standard_normal(30) + 5.0 / (1 + np.arange(30)) for _ in range(count)]

    ranks = Ranks.fit(normal(600), 500)
    p = np.stack([ranks(score, np.arange(30)) for score in normal(600)])
    assert list(ranks.ages[:4]) == [0, 1, 2, 4]
    for age in (0, 1, 7, 29):
        assert abs((p[:, age] <= 0.1).mean() - 0.1) < 0.05
    assert abs((p <= 0.01).mean() - 0.01) < 0.003
    assert p.min() > 0
    whole = Ranks(np.sort(ranks.scores), np.array([0, len(ranks.scores)]), np.zeros(1, np.int64))
    unfair = np.stack([whole(score, np.arange(30)) for score in normal(300)])
    assert (unfair[:, 0] <= 0.1).mean() > 0.5, "without ages beginnings would all be flagged"


def test_ages_with_too_few_frames_share_their_ranks() -> None:
    ranks = Ranks.fit([np.arange(9.0)] * 40, 100)
    assert list(ranks.ages) == [0, 4]
    assert list(np.diff(ranks.starts)) == [160, 200]
    assert len(Ranks.fit([np.arange(9.0)], 100).ages) == 1


def test_the_change_detector_keeps_its_run_length_and_sees_a_weak_change_that_lasts() -> None:
    rng = np.random.default_rng(0)

    def sums(change: Change, surprise: np.ndarray) -> np.ndarray:
        memory, found = Memory(), []
        for drift in change.standardised(surprise, np.ones(len(surprise), np.int64)):
            memory, _ = change.step(memory, float(drift), 0.0)
            found.append(memory.cusum)
        return np.array(found)

    def normal(count: int, scale: float = 1.0) -> list[np.ndarray]:
        return [scale * rng.lognormal(1.0, 0.5, 200) for _ in range(count)]

    start = Change.fit(np.concatenate(normal(50)), np.ones(10_000, np.int64), 2, window=8)
    drifts = [start.standardised(one, np.ones(200, np.int64)) for one in normal(100)]
    change = start.fitted(drifts, [np.zeros(200)] * 100, run_length=1000)
    crossings = sum(int((np.diff((sums(change, one) > change.threshold).astype(int)) > 0).sum()) for one in normal(100))
    assert 5 <= crossings <= 60, "20,000 normal frames, about 20 alarms"
    changed = [sums(change, one) for one in normal(20, scale=1.6)]
    delays = [int((one > change.threshold).argmax()) for one in changed if (one > change.threshold).any()]
    assert len(delays) == 20
    assert np.median(delays) < 40


def test_windowed_surprise_is_two_sided() -> None:
    change = Change(np.zeros(2), np.ones(2), window=4)
    memory, last = Memory(), 0.0
    for _ in range(6):
        memory, last = change.step(memory, -1.5, 0.0)
    assert last == pytest.approx(-3.0)
    assert len(memory.recent) == 4


@pytest.mark.parametrize(("frames", "rate", "good"), [(500, 0.01, True), (499, 0.01, False), (50, 0.1, True),
                                                      (49, 0.1, False), (5000, 0.001, True), (4999, 0.001, False)])
def test_a_rate_needs_frames_in_proportion(frames: int, rate: float, good: bool) -> None:
    if good:
        check_support(frames, rate)
    else:
        with pytest.raises(ScorerError, match="give more episodes or allow more false alarms"):
            check_support(frames, rate)
