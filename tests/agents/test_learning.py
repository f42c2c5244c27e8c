"""Agents: what they see of a picture, that an interrupted run goes on as if it had not been, and their files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

pytest.importorskip("stable_baselines3")
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from starflow_world.agents.algorithms import AgentPolicy, LearnerSettings, check_actions, default_settings
from starflow_world.agents.collect import play
from starflow_world.agents.environment import Environment
from starflow_world.agents.judging import Start, score_policy
from starflow_world.agents.learning import AGENT, learn, load_agent
from starflow_world.agents.network import Places
from starflow_world.agents.policy import Policy
from starflow_world.agents.sb3 import SB3VecEnv
from starflow_world.agents.task import PictureEnv
from starflow_world.errors import CheckpointError, ConfigError
from starflow_world.io.files import read_tensors, write_tensors
from tests.games import BOX, DISCRETE

GAMES = {name: Environment(name, frame_size=16, max_steps=6) for name in (DISCRETE, BOX)}
KINDS = [("ppo", DISCRETE), ("ppo", BOX), ("dqn", DISCRETE), ("sac", BOX)]
CHUNK = 32


def small(algorithm: str = "ppo") -> LearnerSettings:
    return LearnerSettings(algorithm, batch=16, pairs=2, frequencies=1, width=8, rollout=8, epochs=2, warmup=8, every=2,
                           explore=64)


def games(name: str = DISCRETE, rows: int = 4) -> SB3VecEnv:
    makes: list[Callable[[], PictureEnv]] = [lambda: PictureEnv(GAMES[name], range(20))] * rows
    return SB3VecEnv(SyncVectorEnv(makes, autoreset_mode=AutoresetMode.SAME_STEP))


def weights(policy: Policy) -> dict[str, float]:
    """A judge that looks at the network."""
    assert isinstance(policy, AgentPolicy)
    with torch.no_grad():
        return {"weights": float(sum(tensor.double().sum() for tensor in policy.network.state_dict().values()))}


def run(
    folder: Path, steps: int, *, resume: bool = False, settings: LearnerSettings | None = None, name: str = DISCRETE
) -> list[dict[str, float]]:
    chosen = small() if settings is None else settings
    return learn(games(name), folder, chosen, weights, steps=steps, chunk=CHUNK, seed=3, resume=resume)


# ---- what it sees ----------------------------------------------------------------------------------------------------


def picture(*things: tuple[int, int, int]) -> torch.Tensor:
    """Black tiles, but for things (row, column, colour channel), (1, 3, 64, 64)."""
    shown = torch.zeros(1, 3, 64, 64)
    for row, column, channel in things:
        shown[0, channel, row * 8 + 1 : row * 8 + 7, column * 8 + 1 : column * 8 + 7] = 1.0
    return shown


@torch.no_grad()
def test_the_same_relation_gives_like_features_wherever_it_is_and_the_place_is_seen_too() -> None:
    torch.manual_seed(0)
    places = Places(spaces.Box(0, 255, (3, 64, 64), np.uint8))
    pictures = [picture((1, 1, 0), (3, 2, 2)), picture((4, 5, 0), (6, 6, 2)), picture((4, 5, 0), (6, 4, 2)),
                picture((4, 5, 2), (6, 6, 0))]
    assert not torch.allclose(places(pictures[0]), places(pictures[1]), atol=0.01)
    places.read_maps.weight.zero_()  # relations alone
    here, there, *others = (places(one) for one in pictures)
    for another in others:
        assert 2 * (here - there).norm() < min((here - another).norm(), (there - another).norm())


@pytest.mark.parametrize("size", [(10, 10), (56, 56), (210, 160), (2, 3), (33, 65)])
@torch.no_grad()
def test_frames_of_any_size_are_seen_to_their_last_pixel(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    places = Places(spaces.Box(0, 255, (3, *size), np.uint8))
    frames = torch.rand(2, 3, *size)
    frames[1] = frames[0]
    frames[1, :, -1, -1] += 5.0
    first, second = places(frames)
    assert first.shape == (64,)
    assert not torch.equal(first, second)


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "name"), KINDS)
def test_an_interrupted_run_goes_on_to_the_same_bits(algorithm: str, name: str, tmp_path: Path) -> None:
    settings = small(algorithm)
    whole = run(tmp_path / "whole", 3 * CHUNK, settings=settings, name=name)
    run(tmp_path / "parts", CHUNK, settings=settings, name=name)
    parts = run(tmp_path / "parts", 3 * CHUNK, settings=settings, name=name, resume=True)
    assert parts == whole
    assert [point["steps"] for point in whole] == [0, CHUNK, 2 * CHUNK, 3 * CHUNK]
    assert len({point["weights"] for point in whole}) == 4
    one, other = (read_tensors(tmp_path / folder / AGENT)[0] for folder in ("whole", "parts"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert any(key.startswith("optimizer/") for key in one)
    assert len(list((tmp_path / "parts").iterdir())) == (1 if algorithm == "ppo" else 2)  # one memory at most


def test_a_run_that_is_done_is_not_trained_again(tmp_path: Path) -> None:
    curve = run(tmp_path, CHUNK)
    before = (tmp_path / AGENT).read_bytes()
    assert run(tmp_path, CHUNK, resume=True) == curve
    assert (tmp_path / AGENT).read_bytes() == before


def test_a_run_of_other_settings_is_refused(tmp_path: Path) -> None:
    run(tmp_path, CHUNK)
    with pytest.raises(ConfigError, match="new folder"):
        run(tmp_path, 2 * CHUNK, resume=True, settings=replace(small(), discount=0.5))


def test_a_batch_larger_than_a_rollout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch"):
        run(tmp_path, CHUNK, settings=replace(small(), batch=64))


@pytest.mark.parametrize(("algorithm", "space", "hint"), [
    ("dqn", spaces.Box(-1, 1, (2,)), "choose --algorithm ppo or sac"),
    ("sac", spaces.Discrete(3), "choose --algorithm ppo or dqn"),
    ("sac", spaces.Box(-np.inf, np.inf, (1,)), "expected Box actions"),
    ("ppo", spaces.Discrete(3, start=1), "a Discrete from 0"),
    ("ppo", spaces.MultiDiscrete([2, 2]), "found MultiDiscrete"),
])
def test_actions_that_an_algorithm_cannot_choose_are_refused(algorithm: str, space: spaces.Space, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        check_actions(algorithm, space)


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(ConfigError, match="algorithm: expected one of ppo, dqn, sac, found 'a2c'"):
        default_settings("a2c")


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "name"), KINDS)
def test_a_saved_agent_acts_as_the_one_that_was_trained_and_records_any_env(
    algorithm: str, name: str, tmp_path: Path
) -> None:
    kept: list[AgentPolicy] = []
    learn(games(name), tmp_path, small(algorithm), lambda policy: kept.append(policy) or {}, steps=CHUNK, chunk=CHUNK)
    policy, env = load_agent(tmp_path), PictureEnv(GAMES[name])
    assert score_policy(policy, env, [Start(1), Start(2)]) == score_policy(kept[-1], env, [Start(1), Start(2)])
    policy.check(env)
    courses = []
    for seed in (1, 1, 2):
        policy.reset(seed, env)
        courses.append([np.asarray(policy(np.full((16, 16, 3), 100, np.uint8))).tolist() for _ in range(100)])
    assert courses[0] == courses[1] != courses[2]
    assert all(env.action_space.contains(np.float32(a) if name == BOX else a) for a in courses[0])
    plain = Environment(name, frame_size=16, max_steps=6).make()
    assert len(play(plain, policy, seed=0, index=0, frame_size=16)) == 7


def test_an_agent_watches_the_frames_of_an_env_that_observes_something_else(tmp_path: Path) -> None:
    run(tmp_path, CHUNK)
    policy = load_agent(tmp_path)

    class Symbols(PictureEnv):
        observation_space = spaces.Discrete(2)

        def __init__(self) -> None:
            super().__init__(GAMES[DISCRETE])
            self.observation_space = spaces.Discrete(2)

    courses = []
    for env, seen in ((PictureEnv(GAMES[DISCRETE]), True), (Symbols(), False)):
        frame, _ = env.reset(seed=5)
        policy.reset(0, env)
        courses.append([policy(frame if seen else 1) for _ in range(30)])
    assert courses[0] == courses[1]


def test_a_damaged_agent_is_refused(tmp_path: Path) -> None:
    run(tmp_path, CHUNK)
    whole = bytearray((tmp_path / AGENT).read_bytes())
    whole[-1] ^= 1
    (tmp_path / AGENT).write_bytes(whole)
    with pytest.raises(CheckpointError, match="damaged"):
        load_agent(tmp_path)


def test_an_agent_with_a_missing_weight_or_of_an_older_version_is_refused(tmp_path: Path) -> None:
    run(tmp_path, CHUNK)
    tensors, facts = read_tensors(tmp_path / AGENT)
    name = next(name for name in tensors if name.endswith("norm.weight"))
    write_tensors(tmp_path / AGENT, {k: v for k, v in tensors.items() if k != name}, facts, sealed=True)
    with pytest.raises(CheckpointError, match=r"norm\.weight"):
        load_agent(tmp_path)
    write_tensors(tmp_path / AGENT, tensors, {"agent": '{"recipe": {"rollout": 32}}'}, sealed=True)
    with pytest.raises(CheckpointError, match="older agent"):
        load_agent(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "name"), KINDS)
def test_every_algorithm_learns_a_game_in_reality(algorithm: str, name: str, tmp_path: Path) -> None:
    judged = [Start(seed) for seed in range(1000, 1020)]
    settings = replace(default_settings(algorithm), warmup=200, explore=2000, batch=64, every=4)
    curve = learn(games(name, 16), tmp_path, settings,
                  lambda policy: score_policy(policy, PictureEnv(GAMES[name]), judged).to_dict(),
                  steps=(steps := 18_432 if algorithm == "sac" else 6144), chunk=steps)
    assert curve[-1]["reward"] > max(3.5, curve[0]["reward"] + 1)  # of at most 6
