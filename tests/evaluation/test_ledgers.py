"""Ledgers count objects: none are lost in real frames, and those that are taken away are found."""

import numpy as np
import pytest

from starflow_world.agents.collect import play
from starflow_world.agents.environment import Environment
from starflow_world.agents.laws import law_of
from starflow_world.agents.laws.dynamic_obstacles import BALL, FLOOR, DynamicObstaclesLaw
from starflow_world.agents.policy import CarefulPolicy
from starflow_world.data.episodes import Episode
from starflow_world.evaluation.ledgers import LOSSES, LawLedger, TileLedger, make_ledger

pytest.importorskip("minigrid")
ROOM = Environment("MiniGrid-Dynamic-Obstacles-5x5-v0", frame_size=20, max_steps=12)
GIVEN = 2


@pytest.fixture(scope="module")
def law() -> DynamicObstaclesLaw:
    found = law_of(ROOM)
    assert isinstance(found, DynamicObstaclesLaw)
    return found


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    env = ROOM.make()
    return [play(env, CarefulPolicy(), seed=3, index=index, frame_size=20) for index in range(3)]


def without_a_ball(law: DynamicObstaclesLaw, frame: np.ndarray) -> np.ndarray:
    symbols = law.read(frame[None])
    symbols[0][tuple(np.argwhere(symbols[0] == BALL)[0])] = FLOOR
    return law.draw(symbols)[0]


@pytest.mark.parametrize("known", [True, False])
def test_real_frames_lose_nothing(known: bool, law: DynamicObstaclesLaw, episodes: list[Episode]) -> None:
    ledger = make_ledger(law if known else None, episodes, GIVEN, 4)
    assert isinstance(ledger, LawLedger if known else TileLedger)
    for step in range(1, min(map(len, episodes)) - GIVEN + 1):
        real = np.stack([episode.frames[GIVEN - 1 + step] for episode in episodes])
        found = ledger.judge(step, real, real)
        assert all(np.nan_to_num(found[name]).sum() == 0 for name in LOSSES)
        if known:
            assert np.nanmin(found["legal"]) == 1


@pytest.mark.parametrize("known", [True, False])
def test_an_object_that_is_taken_away_has_vanished(
    known: bool, law: DynamicObstaclesLaw, episodes: list[Episode]
) -> None:
    ledger = make_ledger(law if known else None, episodes, GIVEN, 4)
    assert ledger is not None
    real = episodes[0].frames[GIVEN][None]
    found = ledger.judge(1, np.stack([without_a_ball(law, real[0])]), real)
    assert [found[name].tolist() for name in LOSSES] == [[0], [1], [0]]
    if known:
        assert found["legal"] == 0


def test_a_rollout_is_judged_no_further_than_its_actions(law: DynamicObstaclesLaw, episodes: list[Episode]) -> None:
    ledger, frame = LawLedger(law, episodes[:1], GIVEN), episodes[0].frames[:1]
    assert np.isnan(ledger.judge(len(episodes[0]), frame, frame)["legal"]).all()


def test_frames_without_tiles_have_no_ledger() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    zeros, none = np.zeros(3, np.float32), np.zeros(3, bool)
    noise = Episode(frames.repeat(9, 0), np.zeros((27, 3), np.float32), zeros, none, none)
    assert make_ledger(None, [noise] * 3, 1, 1) is None
