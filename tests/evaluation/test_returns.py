"""What a world remembers, on frames that return."""

import numpy as np

from starflow_world.evaluation.intervals import Share
from starflow_world.evaluation.returns import return_figures, returning
from tests.evaluation.test_fidelity import episode
from tests.worlds import tiny_world


def test_a_frame_returns_if_it_was_seen_in_the_context_and_is_not_the_last_one() -> None:
    seen = episode(length=8)
    for t, other in ((3, 1), (5, 4), (7, 0)):
        seen.frames[t] = seen.frames[other]
    assert np.flatnonzero(returning(seen, context=4)).tolist() == [3]
    assert np.flatnonzero(returning(seen, context=7)).tolist() == [3, 7]


def test_returning_frames_are_measured_with_the_history_and_without() -> None:
    world, episodes = tiny_world(), [episode(seed=s, length=8) for s in range(2)]
    for seen in episodes:
        seen.frames[4], seen.frames[6] = seen.frames[2], seen.frames[5]
    found = return_figures(world, episodes)
    assert found["return_frames"] == 2
    assert np.isclose(found["memory_nats"], found["return_nats_alone"] - found["return_nats"])
    assert isinstance(found["return_exact"], Share)
    assert found["return_exact"].total == found["return_exact_alone"].total == 2
    assert return_figures(world, [episode(length=6)]) == {}
