"""What is promised of the numbers and pictures of the shipped world, on its own starts and on real episodes."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from starflow_world.config.world import DecodeConfig
from starflow_world.envs.vector_env import WorldVectorEnv
from starflow_world.noise import normals
from starflow_world.world import World
from starflow_world.world.state import WorldState

pytestmark = pytest.mark.slow
NAME = "babyai-gotolocal"
Moves = list[int]
AtMost = Callable[[str, float, float], None]


@pytest.fixture(scope="module")
def world() -> World:
    return World.load(NAME, device="cpu")


def walk(world: World, rows: int, steps: int) -> Iterator[tuple[WorldState, Moves]]:
    """The states of random walks from the first starts, each with the actions that are taken in it."""
    rng = np.random.default_rng(0)
    state, _ = world.start(world.starts.frames[:rows, None], text=world.starts.texts[:rows])
    for _ in range(steps):
        moves = rng.integers(0, world.action_space.n, rows).tolist()
        yield state, moves
        state, _ = world.step(state, moves)


def test_errors_do_not_grow_from_token_to_token(at_most: AtMost) -> None:
    """A twin whose first token's noise is off by 1e-6, over four frames decoded token by token."""
    world = World.load(NAME, device="cpu", dtype=torch.float64).decoded(DecodeConfig(chunk=1))
    *_, (state, moves) = walk(world, 8, 4)
    noise = normals(state.key, state.step, "prior", world.dynamics.noise_shape).double()
    off = noise.clone()
    off[:, 0] += 1e-6
    (one, said), (other, heard) = (world.step(state, moves, noise=z) for z in (noise, off))
    apart = [said.latents - heard.latents]
    for _ in range(3):
        (one, said), (other, heard) = world.step(one, moves), world.step(other, moves)
        apart.append(said.latents - heard.latents)
    distance = torch.cat(apart, dim=1).square().mean(-1).sqrt()
    assert (distance[:, 0] > 1e-8).all(), "the twins are apart"
    growth = (distance[:, -1] / distance[:, 0]) ** (1 / (distance.shape[1] - 1))
    at_most("growth", growth.max(), 1.02)


def test_frames_take_few_sweeps_and_are_close_to_those_decoded_token_by_token(
    world: World, at_most: AtMost
) -> None:
    exact = world.decoded(DecodeConfig(chunk=1))
    for state, moves in walk(world, 16, 20):
        found, truth = world.step(state, moves)[1], exact.step(state, moves)[1]
        assert found.converged.all()
        tokens, channels = found.latents.shape[1:]
        at_most("sweeps", found.sweeps.max(), tokens / 2)
        at_most("latents", (found.latents - truth.latents).abs().max(), 1e-2)
        at_most("nats per dimension", (found.nats - truth.nats).abs().max() / (tokens * channels), 1e-3)


def test_real_frames_are_nearer_and_more_likely_when_they_are_denoised(world: World, at_most: AtMost) -> None:
    pytest.importorskip("minigrid")
    from starflow_world.agents.babyai.bot import MixedPolicy
    from starflow_world.agents.collect import play
    from starflow_world.agents.environment import make_env
    from starflow_world.agents.policy import NoEnd

    env = make_env("BabyAI-GoToLocalS8N4-v0", max_steps=40)
    episodes = [play(env, NoEnd(MixedPolicy()), seed=11, index=index) for index in range(4)]
    frames = torch.from_numpy(np.stack([episode.frames[:41] for episode in episodes]))
    actions = torch.from_numpy(np.stack([episode.actions[:41] for episode in episodes]).argmax(-1)).tolist()
    state, _ = world.start(frames[:, :1], text=[episode.text for episode in episodes])
    farther, rarer = [], []
    for t in range(1, 41):
        moves = [row[t] for row in actions]
        after, noisy = world.observe(state, moves, frames[:, t])
        clean = after.latents[:, -1]
        truth = world.networks.codec.encode(frames[:, t : t + 1])[0][:, 0]
        before, left = ((found - truth).square().mean((1, 2)).sqrt() for found in (noisy.latents, clean))
        farther.append(left > 0.1 * before)
        rarer.append(world.observe(state, moves, latents=clean)[1].nats <= noisy.nats)
        state = after
    at_most("share with a tenth of the noise or more", torch.stack(farther).double().mean(), 0.05)
    at_most("share not more likely", torch.stack(rarer).double().mean(), 0.05)


def test_a_thousand_random_steps_look_like_real_ones(world: World, at_most: AtMost) -> None:
    """Mean and deviation of every frame lie in the range of the real frames of the start set, give or take 3 sd."""

    def looks(frames: np.ndarray) -> np.ndarray:
        return np.stack((frames.mean((1, 2, 3)), frames.std((1, 2, 3))))

    rows, shown = 8, []
    env = WorldVectorEnv(world, rows, max_episode_steps=64)
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(1000 // rows):
        frames, rewards, _, _, infos = env.step(env.action_space.sample())
        assert np.isfinite((rewards, infos["nats"], infos["end_probability"])).all()
        shown.append(frames)
    real, found = looks(world.starts.frames.numpy()), looks(np.concatenate(shown))
    beyond = np.maximum(real.min(1) - found.min(1), found.max(1) - real.max(1)) / real.std(1)
    at_most("deviations beyond the range of real frames", max(beyond.max(), 0), 3)
    assert len({frames.tobytes() for frames in shown}) > 100, "they do not freeze"
