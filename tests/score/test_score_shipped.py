"""The shipped world watches the environment it was trained on; minutes, so in the slow tier."""

from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starflow_world import World
from starflow_world.agents.babyai.bot import MixedPolicy
from starflow_world.agents.collect import play
from starflow_world.agents.environment import make_env
from starflow_world.agents.policy import NoEnd
from starflow_world.data.episodes import Episode
from starflow_world.envs.monitor import SurpriseMonitor
from starflow_world.score import Scorer, Scores

pytestmark = pytest.mark.slow
ENV = "BabyAI-GoToLocalS8N4-v0"
LEFT = 0


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    env = make_env(ENV, max_steps=40)
    normal = [play(env, NoEnd(MixedPolicy()), seed=7, index=index) for index in range(60)]
    return Scorer.fit(World.load("babyai-gotolocal"), normal, false_alarms=0.01)


@pytest.fixture(scope="module")
def fresh() -> list[Episode]:
    env = make_env(ENV, max_steps=40)
    return [play(env, NoEnd(MixedPolicy()), seed=8, index=index) for index in range(16)]


@pytest.fixture(scope="module")
def calm(scorer: Scorer, fresh: list[Episode]) -> list[Scores]:
    return scorer.score(fresh)


def area(positive: np.ndarray, negative: np.ndarray) -> float:
    """One-sided area under the ROC curve."""
    return float((positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean())


def turns(episode: Episode) -> np.ndarray:
    """Frames that a turn led to: there the next frame is never the last one, and never hidden by what is in the way."""
    return np.flatnonzero((episode.actions.argmax(1) <= 1) & (np.arange(len(episode)) > 0))


def test_false_alarms_on_fresh_normal_episodes_are_at_most_three_times_the_rate(calm: list[Scores]) -> None:
    flags = np.concatenate([one.alarm for one in calm])
    assert flags.mean() <= 0.03, "asked for 1 %; clustered frames and a small calibration set leave room"


def changed(episode: Episode, kind: str, t: int) -> Episode:
    """The episode with something wrong at frame t, or from there on."""
    frames, actions = episode.frames.copy(), episode.actions.copy()
    if kind == "wrong action":
        actions[t, :2] = actions[t, 1::-1]
    elif kind == "frozen":
        frames[t] = frames[t - 1]
    elif kind == "reversed":
        past = frames[t - 2 :: -1]
        frames[t : t + len(past)] = past[: len(frames) - t]
    elif kind == "recoloured":
        frames[t, 8:16, 8:16] = 200, 40, 40
    elif kind == "blank":
        frames[t:] = 0
    else:
        noise = np.random.default_rng(t).integers(0, 90, (64, 64, 3))
        frames[t:] = np.where((frames[t:] == 0).all(-1, keepdims=True), noise, frames[t:])
    return replace(episode, frames=frames, actions=actions)


@pytest.mark.parametrize("kind", ["wrong action", "frozen", "reversed", "recoloured", "blank", "texture"])
def test_events_are_found_at_once_and_stand_apart(
    scorer: Scorer, fresh: list[Episode], calm: list[Scores], kind: str
) -> None:
    """On events that are sure to be wrong: at a turn."""
    places = [int(turns(one)[turns(one) > 2][0]) for one in fresh]
    found = scorer.score([changed(one, kind, t) for one, t in zip(fresh, places, strict=True)])
    strange = np.array([one.score[t] for one, t in zip(found, places, strict=True)])
    normal = np.concatenate([one.score[1:] for one in calm])
    at_once = [one.alarm[t : t + 2].any() for one, t in zip(found, places, strict=True)]
    assert area(strange, normal) >= 0.98
    assert np.mean(at_once) >= 0.9


def test_frozen_frames_are_flagged_although_raw_nats_call_them_ordinary(
    scorer: Scorer, fresh: list[Episode]
) -> None:
    """Frames that stand still where the agent does nothing are as likely as can be; the turn that is not
    shown is flagged all the same."""
    one = fresh[0]
    done = np.zeros_like(one.actions)
    done[1:, 6] = 1
    still = replace(one, frames=np.repeat(one.frames[:1], len(one), axis=0), actions=done)
    asleep = scorer(still)
    assert asleep.nats_per_dim[1:].mean() >= scorer(one).nats_per_dim[1:].mean()
    assert asleep.alarm[1:].mean() < 0.1, "nothing was to move"
    done[10, 6], done[10, LEFT] = 0, 1
    asked = scorer(replace(still, actions=done))
    assert asked.alarm[10]
    assert asked.action_ratio[10] < 0 < scorer(one).action_ratio[turns(one)].min()


def test_a_monitored_env_reports_a_teleport_and_what_it_reports_is_the_score(scorer: Scorer, tmp_path: Path) -> None:
    scorer.save(tmp_path)
    env = SurpriseMonitor(make_env(ENV, max_steps=40), Scorer.load(tmp_path, scorer.world))
    with redirect_stdout(StringIO()):
        env.reset(seed=5)
    told = [env.step(action)[4]["surprise"] for action in (0, 1, 0, 1)]
    assert not any(one["alarm"] for one in told)
    raw: Any = env.unwrapped
    free = [(x, y) for x in range(1, 7) for y in range(1, 7) if raw.grid.get(x, y) is None]
    old = tuple(raw.agent_pos)
    new = max(free, key=lambda cell: abs(cell[0] - old[0]) + abs(cell[1] - old[1]))
    raw.agent_pos = np.array(new)
    found = env.step(1)[4]["surprise"]
    assert found["alarm"]
    hottest = np.argsort(-found["heat"].ravel())[:2]
    assert {divmod(int(index), 4) for index in hottest} == {(y // 2, x // 2) for x, y in (old, new)}


def test_the_spread_over_noise_draws_is_small_beside_the_gap_to_an_anomaly(
    scorer: Scorer, fresh: list[Episode]
) -> None:
    """On the same frame: normal, and frozen at a turn."""
    from starflow_world.score.evidence import episode_evidence

    episode = fresh[1]
    t = int(turns(episode)[2])
    frames = episode.frames.copy()
    frames[t] = frames[t - 1]
    pair = [episode, replace(episode, frames=frames)]
    drawn = np.array([[found.surprise[t].sum() for found in episode_evidence(scorer.world, pair, seeds=[seed], batch=4)]
                      for seed in range(8)])
    gap = drawn[:, 1].mean() - drawn[:, 0].mean()
    assert gap > 0
    assert drawn.std(0).max() <= 0.1 * gap
