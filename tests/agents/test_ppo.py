"""PPO agents: what they see of a picture, that an interrupted run goes on as if it had not been, and their files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

pytest.importorskip("minigrid")
pytest.importorskip("stable_baselines3")

from starflow_world.agents.babyai.rooms import Room, Rooms, rooms_with
from starflow_world.agents.policy import Policy
from starflow_world.agents.ppo import AGENT, Places, PPOPolicy, PPOSettings, learn, load_policy
from starflow_world.agents.sb3 import SB3VecEnv
from starflow_world.errors import CheckpointError, ConfigError
from starflow_world.io.files import read_tensors, write_tensors

SMALL = PPOSettings(rollout=8, batch=16, epochs=2, pairs=2, frequencies=1, width=8)
CHUNK = 32


def rooms() -> SB3VecEnv:
    return SB3VecEnv(Rooms(4, range(20), max_steps=6), actions=3)


def chances(policy: Policy) -> dict[str, float]:
    """A judge that asks what the agent would do."""
    assert isinstance(policy, PPOPolicy)
    seen, _ = policy.network.obs_to_tensor(np.full((64, 64, 3), 100, np.uint8))
    with torch.no_grad():
        return {"left": float(policy.network.get_distribution(seen).distribution.probs[0, 0])}


def run(folder: Path, steps: int, *, resume: bool = False, settings: PPOSettings = SMALL) -> list[dict[str, float]]:
    return learn(rooms(), folder, settings, chances, steps=steps, chunk=CHUNK, seed=3, resume=resume)


# ---- what it sees ----------------------------------------------------------------------------------------------------


def picture(*things: tuple[int, int, int]) -> torch.Tensor:
    """Black tiles, but for things (row, column, colour channel), (1, 3, 64, 64)."""
    shown = torch.zeros(1, 3, 64, 64)
    for row, column, channel in things:
        shown[0, channel, row * 8 + 1 : row * 8 + 7, column * 8 + 1 : column * 8 + 7] = 1.0
    return shown


@torch.no_grad()
def test_the_same_relation_gives_like_features_wherever_it_is() -> None:
    torch.manual_seed(0)
    places = Places(spaces.Box(0, 255, (3, 64, 64), np.uint8))
    here = places(picture((1, 1, 0), (3, 2, 2)))
    there = places(picture((4, 5, 0), (6, 6, 2)))
    other = places(picture((4, 5, 0), (6, 4, 2)))
    swapped = places(picture((4, 5, 2), (6, 6, 0)))
    for another in (other, swapped):
        assert 2 * (here - there).norm() < min((here - another).norm(), (there - another).norm())


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 4 * CHUNK)
    run(tmp_path / "parts", 2 * CHUNK)
    parts = run(tmp_path / "parts", 4 * CHUNK, resume=True)
    assert parts == whole
    assert [point["steps"] for point in whole] == [0, CHUNK, 2 * CHUNK, 3 * CHUNK, 4 * CHUNK]
    assert len({point["left"] for point in whole}) == 5
    one, other = (read_tensors(tmp_path / name / AGENT)[0] for name in ("whole", "parts"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(name.startswith("optimizer/") for name in one)


def test_a_run_that_is_done_is_not_trained_again(tmp_path: Path) -> None:
    curve = run(tmp_path, CHUNK)
    before = (tmp_path / AGENT).read_bytes()
    assert run(tmp_path, CHUNK, resume=True) == curve
    assert (tmp_path / AGENT).read_bytes() == before


def test_a_run_of_other_settings_is_refused(tmp_path: Path) -> None:
    run(tmp_path, CHUNK)
    with pytest.raises(ConfigError, match="new folder"):
        run(tmp_path, 2 * CHUNK, resume=True, settings=replace(SMALL, discount=0.5))


def test_a_batch_larger_than_a_rollout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch"):
        run(tmp_path, CHUNK, settings=replace(SMALL, batch=64))


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_saved_agent_acts_as_the_one_that_was_trained(tmp_path: Path) -> None:
    curve = run(tmp_path, CHUNK)
    assert [path.name for path in tmp_path.iterdir()] == [AGENT]
    policy = load_policy(tmp_path)
    assert chances(policy)["left"] == pytest.approx(curve[-1]["left"], abs=1e-7)
    env, shown = Room(), np.full((64, 64, 3), 100, np.uint8)
    courses = []
    for seed in (1, 1, 2):
        policy.reset(seed, env)
        courses.append([policy(shown) for _ in range(400)])
    assert courses[0] == courses[1] != courses[2]
    assert set(courses[0]) <= {0, 1, 2}
    assert courses[0].count(0) / 400 == pytest.approx(curve[-1]["left"], abs=0.08)


def test_a_damaged_agent_is_refused(tmp_path: Path) -> None:
    run(tmp_path, CHUNK)
    whole = bytearray((tmp_path / AGENT).read_bytes())
    whole[-1] ^= 1
    (tmp_path / AGENT).write_bytes(whole)
    with pytest.raises(CheckpointError, match="damaged"):
        load_policy(tmp_path)


def test_an_agent_with_a_missing_weight_is_refused(tmp_path: Path) -> None:
    run(tmp_path, CHUNK)
    tensors, facts = read_tensors(tmp_path / AGENT)
    name = next(name for name in tensors if name.endswith("norm.weight"))
    write_tensors(tmp_path / AGENT, {k: v for k, v in tensors.items() if k != name}, facts, sealed=True)
    with pytest.raises(CheckpointError, match=r"norm\.weight"):
        load_policy(tmp_path)


@pytest.mark.slow
def test_it_learns_to_reach_the_red_ball_in_real_rooms(tmp_path: Path) -> None:
    from starflow_world.agents.judging import Start, score

    seeds = rooms_with("go to the red ball", 1000)
    judged = [Start(seed) for seed in rooms_with("go to the red ball", 100, begin=10_000_000)]
    env = SB3VecEnv(Rooms(64, seeds), actions=3)
    curve = learn(env, tmp_path, PPOSettings(), lambda policy: score(policy, Room(), judged).to_dict(),
                  steps=49_152, chunk=16_384)
    assert curve[0]["success"] < 0.6
    assert curve[-1]["success"] >= 0.75
