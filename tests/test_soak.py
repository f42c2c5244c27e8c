"""What is done a thousand times leaves nothing behind, and what is imagined for long stays what it was.

Memory is counted after warming up, in which caches of the libraries fill.
"""

import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from starflow_world.config.world import OutcomeConfig
from starflow_world.envs.vector_env import WorldVectorEnv
from starflow_world.envs.world_env import WorldEnv
from starflow_world.io.memory import resident
from starflow_world.world import World
from tests.worlds import env_world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.usefixtures("one_thread")]
TIMES, MEGABYTES = 1000, 20
VISIBLE = 16  # grey levels: a frame carries noise far below that
AtMost = Callable[[str, float, float], None]


@contextmanager
def leaving_nothing(at_most: AtMost) -> Iterator[None]:
    """What is done inside leaves no descriptor and no thread open, and little memory."""

    def open_now() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    gc.collect()
    before, memory = open_now(), resident()
    yield
    gc.collect()
    assert open_now() == before
    at_most("growth in MB", resident() - memory, MEGABYTES)


def test_a_thousand_envs_that_are_made_and_closed_leave_nothing_behind(saved: Path, at_most: AtMost) -> None:
    def cycle(seed: int) -> None:
        env = WorldEnv(saved, render_mode="rgb_array")
        env.reset(seed=seed)
        env.step(seed % 4)
        env.render()
        env.close()

    for seed in range(TIMES // 10):
        cycle(seed)
    with leaving_nothing(at_most):
        for seed in range(TIMES):
            cycle(seed)


def test_a_thousand_resets_in_mid_episode_leave_nothing_behind(at_most: AtMost) -> None:
    """Of the shipped world: a state of it that is kept would be seen."""
    env = WorldEnv("babyai-gotolocal", reward_fn=lambda *_: (0.0, False))  # nothing ends by itself

    def cycle(seed: int) -> None:
        env.reset(seed=seed)
        for step in range(seed % 4):
            env.step((seed + step) % 4)

    for seed in range(TIMES // 10):
        cycle(seed)
    with leaving_nothing(at_most):
        for seed in range(TIMES):
            cycle(seed)


def test_64_rows_that_end_at_random_run_for_2000_steps(at_most: AtMost) -> None:
    world = env_world(size=4, window=12, outcome=OutcomeConfig(16, bins=5, end="sample"))
    world.networks.outcome.read.bias.data[-1] += 6.0
    env = WorldVectorEnv(world, 64, max_episode_steps=40)
    env.action_space.seed(0)
    env.reset(seed=0)
    ends, ages = np.zeros(2, int), []

    def run(steps: int) -> None:
        for step in range(steps):
            _, rewards, terminated, truncated, infos = env.step(env.action_space.sample())
            assert np.isfinite((rewards, infos["nats"], infos["end_probability"])).all()
            ends[:] += terminated.sum(), truncated.sum()
            if step % 100 == 0:
                ages.append(len(set(env.snapshot().steps.tolist())))

    run(200)
    with leaving_nothing(at_most):
        run(2000)
    assert ends.min() > 500, "rows end in both ways"
    assert np.median(ages) > 10, "rows are of many ages"


def test_ten_thousand_imagined_frames_do_not_drift_freeze_or_saturate(at_most: AtMost) -> None:
    """Ten rows of 1,000 steps without a reset. Waiting, or walking into a wall, rightly changes nothing: what must
    change the picture is a turn."""
    world = World.load("babyai-gotolocal", device="cpu")
    rows, steps, part, turns = 10, 1000, 100, 2
    actions = np.random.default_rng(0).integers(0, world.action_space.n, (steps, rows))
    state, last = world.start(world.starts.frames[:rows, None], text=world.starts.texts[:rows])
    nats, bounds, still, run = [], [], 0, np.zeros(rows, int)
    for moves in actions:
        state, seen = world.step(state, moves.tolist(), reuse=True)
        assert all(part.isfinite().all() for part in (seen.latents, seen.nats, seen.reward, seen.end_probability))
        nats.append(seen.nats / seen.latents[0].numel())
        bounds.append(((seen.frames == 0) | (seen.frames == 255)).float().mean())
        changed = ((seen.frames.int() - last.frames.int()).abs().amax((1, 2, 3, 4)) > VISIBLE).numpy()
        still += int((~changed & (moves < turns)).sum())
        run = np.where(changed, 0, run + 1)
        assert run.max() < 100, "a row stands still"
        last = seen
    first, end = torch.stack(nats[:part]).mean(), torch.stack(nats[-part:]).mean()
    at_most("drift of nats per dimension, first to last 1,000 frames", abs(first - end), 0.1)
    at_most("share of turns that change nothing", still / (actions < turns).sum(), 0.01)
    real = world.starts.frames
    more = torch.stack(bounds[-part:]).mean() - ((real == 0) | (real == 255)).float().mean()
    at_most("share of values at 0 or 255 beyond that of real frames, last 1,000", more, 0.05)
