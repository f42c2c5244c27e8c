"""Monitors: they change nothing, and say of every frame what the scorer says of the whole episode."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from starflow_world.data.episodes import Episode
from starflow_world.envs.monitor import SurpriseMonitor, SurpriseVectorMonitor
from starflow_world.errors import ConfigError, DataError
from starflow_world.score import PARTS, Scorer
from tests.patchwork import ACTIONS, some
from tests.worlds import env_world

FIELDS = ("score", "p", "windowed", "cusum", "nats_per_dim")


class Noise(gymnasium.Env[Any, int]):
    """Random pictures; ends after `length` steps. Shows them as observations, or by render() only, `zoom` as large."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(self, length: int = 5, shown: bool = True, zoom: int = 1, actions: spaces.Space = ACTIONS) -> None:
        self.length, self.shown, self.zoom, self.render_mode = length, shown, zoom, "rgb_array"
        self.action_space = actions
        self.observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)
        if not shown:
            self.observation_space = spaces.Dict({"mission": spaces.Text(8)})  # type: ignore[assignment]

    def _observe(self) -> Any:
        self.frame = self.np_random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return self.frame.copy() if self.shown else {"mission": "b"}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return self._observe(), {"own": 1}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        return self._observe(), float(action), self.count >= self.length, False, {"own": 2}

    def render(self) -> np.ndarray:
        return self.frame.repeat(self.zoom, 0).repeat(self.zoom, 1)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.fit(env_world(ACTIONS), some(24), false_alarms=0.06, run_length=50)


def told(infos: dict[str, Any], row: int) -> dict[str, float]:
    """What a vector monitor says of a row."""
    return {key: float(infos["surprise"][key][row]) for key in FIELDS}


def recorded(frames: list[np.ndarray], actions: list[int], text: str) -> Episode:
    flat = np.zeros((len(frames), 4), np.float32)
    flat[np.arange(1, len(frames)), actions] = 1
    ends = np.zeros(len(frames), bool)
    return Episode(np.stack(frames), flat, np.zeros(len(frames), np.float32), ends, ends, text)


def test_a_monitor_changes_nothing_of_the_env(scorer: Scorer) -> None:
    plain, watched = Noise(), SurpriseMonitor(Noise(), scorer, text="a")
    assert watched.observation_space == plain.observation_space
    assert watched.action_space == plain.action_space
    first, second = plain.reset(seed=4), watched.reset(seed=4)
    assert np.array_equal(first[0], second[0])
    for action in (1, 2, 3, 0, 1):
        before, after = plain.step(action), watched.step(action)
        assert np.array_equal(before[0], after[0])
        assert before[1:4] == after[1:4]
        assert {key: after[4][key] for key in before[4]} == before[4]
    assert np.array_equal(plain.render(), watched.render())


@pytest.mark.parametrize(("shown", "zoom"), [(True, 1), (False, 1), (False, 4)])
def test_a_monitor_says_what_the_scorer_says_of_the_recorded_episode(scorer: Scorer, shown: bool, zoom: int) -> None:
    env = SurpriseMonitor(Noise(9, shown, zoom), scorer, text="b" if shown else None)
    _, info = env.reset(seed=1)
    raw: Any = env.unwrapped
    frames, actions, verdicts = [raw.frame], [], [info["surprise"]]
    for t in range(9):
        actions.append(t % 4)
        *_, info = env.step(t % 4)
        frames.append(raw.frame)
        verdicts.append(info["surprise"])
    scores = scorer(recorded(frames, actions, "b"))
    for key in FIELDS:
        np.testing.assert_allclose([one[key] for one in verdicts], getattr(scores, key), atol=0.02, err_msg=key)
    assert [one["alarm"] for one in verdicts] == scores.alarm.tolist()
    assert set(verdicts[0]["parts"]) == set(PARTS)
    assert verdicts[3]["heat"].shape == (4, 4)


def test_a_watched_env_passes_the_checker_of_gymnasium(scorer: Scorer) -> None:
    gymnasium.register("tests/Noise-v0", Noise)
    try:
        check_env(SurpriseMonitor(gymnasium.make("tests/Noise-v0"), scorer), skip_render_check=True)
    finally:
        del gymnasium.registry["tests/Noise-v0"]


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_rows_are_told_what_each_would_be_told_alone(scorer: Scorer, mode: AutoresetMode) -> None:
    lengths, steps = (3, 5), 9
    vector = SyncVectorEnv([lambda n=n: Noise(n) for n in lengths], autoreset_mode=mode)
    watched = SurpriseVectorMonitor(vector, scorer, text=["a", "b"])
    observations, infos = watched.reset(seed=[1, 2])
    episodes: list[list[Any]] = [[([observations[row]], [], [told(infos, row)])] for row in range(2)]
    ended = np.zeros(2, bool)
    for t in range(steps):
        action = np.array([t % 4, (t + 1) % 4])
        if mode is AutoresetMode.DISABLED and ended.any():
            observations, infos = watched.reset(options={"reset_mask": ended})
            assert infos["_surprise"].tolist() == ended.tolist()
            for row in np.flatnonzero(ended):
                episodes[row].append(([observations[row].copy()], [], [told(infos, row)]))
        anew = ended if mode is AutoresetMode.NEXT_STEP else np.zeros(2, bool)
        observations, _, terminated, truncated, infos = watched.step(action)
        ended = terminated | truncated
        anew = ended if mode is AutoresetMode.SAME_STEP else anew
        for row in range(2):
            if anew[row]:
                episodes[row].append(([observations[row].copy()], [], [told(infos, row)]))
            else:
                frames, actions, verdicts = episodes[row][-1]
                frames.append(observations[row].copy())
                actions.append(int(action[row]))
                verdicts.append(told(infos, row))
    for row, text in enumerate("ab"):
        whole = [one for one in episodes[row] if len(one[0]) > 1]
        assert len(episodes[row]) > 1
        for frames, actions, verdicts in whole:
            scores = scorer(recorded(frames, actions, text))
            for key in FIELDS:
                found = [one[key] for one in verdicts]
                np.testing.assert_allclose(found, getattr(scores, key), atol=0.02 if key != "nats_per_dim" else 1e-4)


def test_texts_of_rows_are_their_missions(scorer: Scorer) -> None:
    watched = SurpriseVectorMonitor(SyncVectorEnv([lambda: Noise(4, shown=False)] * 2), scorer)
    _, infos = watched.reset(seed=1)
    given = SurpriseVectorMonitor(SyncVectorEnv([lambda: Noise(4, shown=False)] * 2), scorer, text="b")
    _, expected = given.reset(seed=1)
    np.testing.assert_array_equal(infos["surprise"]["nats_per_dim"], expected["surprise"]["nats_per_dim"])
    assert watched.observation_space == given.env.observation_space


class Worded(Noise):
    """Says its task where MiniGrid's picture wrappers leave it: nowhere in the observation."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        return observation, {**info, "text": "b"}


def test_a_task_is_heard_wherever_the_env_says_it(scorer: Scorer) -> None:
    in_info, by_env = Worded(), type("MiniGridEnv", (Noise,), {"__module__": "minigrid.minigrid_env", "mission": "b"})()
    expected = SurpriseMonitor(Noise(), scorer, text="b").reset(seed=1)[1]["surprise"]["nats_per_dim"]
    assert SurpriseMonitor(Noise(), scorer).reset(seed=1)[1]["surprise"]["nats_per_dim"] != expected
    for env in (in_info, by_env):
        assert SurpriseMonitor(env, scorer).reset(seed=1)[1]["surprise"]["nats_per_dim"] == expected
    rows, given = (SurpriseVectorMonitor(SyncVectorEnv([kind, Noise]), scorer, text=text).reset(seed=[1, 1])[1]
                   for kind, text in ((Worded, None), (Noise, ["b", ""])))
    np.testing.assert_array_equal(rows["surprise"]["nats_per_dim"], given["surprise"]["nats_per_dim"])


def test_envs_that_do_not_fit_are_refused(scorer: Scorer) -> None:
    with pytest.raises(ConfigError, match="action space"):
        SurpriseMonitor(Noise(actions=spaces.Discrete(5)), scorer)
    blind = Noise(shown=False)
    blind.render_mode = None  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="rgb_array"):
        SurpriseMonitor(blind, scorer)
    with pytest.raises(ConfigError, match="one for each of 2 rows"):
        SurpriseVectorMonitor(SyncVectorEnv([Noise, Noise]), scorer, text=["a"])
    broken = SurpriseMonitor(Noise(shown=False), scorer)
    broken.unwrapped.render = lambda: np.zeros((8, 8, 2))  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"expected \(H, W\), .*found float64 \(8, 8, 2\)"):
        broken.reset(seed=0)
