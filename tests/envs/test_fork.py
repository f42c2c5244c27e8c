"""Forked processes step worlds, although OpenMP's threads of the parent do not survive a fork.

Each test runs a fresh Python, because a fork is harmless until the parent has computed on several threads.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
LIMIT = 240.0  # seconds, after which a child is taken to hang

START = """
import multiprocessing, os, sys
import gymnasium, torch
import starflow_world
from starflow_world import World, WorldEnv

def compute():
    assert bool(torch.exp(torch.zeros(10**6)).sum() == 10**6)  # large enough for several threads
    return torch.get_num_threads()

folder, fork = sys.argv[1], multiprocessing.get_context("fork")
torch.set_num_threads(2)  # also where the machine has one core
world = World.load(folder)
state, _ = world.step(world.start(text=["a"], seed=0)[0], [1])
assert compute() == 2
"""

END = """
assert compute() == 2, "the parent keeps its threads"
world.step(state, [2])
print("done")
"""


def run_fresh(code: str, folder: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in THREADS}
    command = [sys.executable, "-c", START + code + END, str(folder)]
    environment |= {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes) as program:
        try:
            output, errors = program.communicate(timeout=LIMIT)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)  # children that hang outlive it
    assert (program.returncode, output) == (0, "done\n"), errors


pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork"), pytest.mark.timeout(2 * LIMIT)]


def test_gymnasiums_async_vector_env_steps_worlds_in_forked_processes(saved: Path) -> None:
    run_fresh("""
make = dict(id="StarflowWorld/Custom-v0", num_envs=2, path=folder, render_mode="rgb_array")
envs = gymnasium.make_vec(vectorization_mode="async", vector_kwargs={"context": "fork"}, **make)
first = envs.reset(seed=3)[0]
second = envs.step(envs.action_space.sample())[0]
assert first.shape == second.shape == (2, 8, 8, 3) and len(envs.render()) == 2
assert envs.call("get_wrapper_attr", "max_episode_steps")
envs.close()
""", saved)


def test_a_forked_pool_steps_the_parents_world_and_collects_on_one_thread(saved: Path) -> None:
    run_fresh("""
import tempfile
from starflow_world import collect
from starflow_world.agents.policy import RandomPolicy

def play(action):
    out = tempfile.mkdtemp()
    env = gymnasium.wrappers.RecordEpisodeStatistics(WorldEnv(world))
    shapes = world.step(state, [action])[1].frames.shape[2:], env.reset(seed=action)[0].shape
    collect("CartPole-v1", out, episodes=1, policy=RandomPolicy(), seed=0, max_steps=3, progress=False)
    return compute(), shapes, sum(name.endswith(".h5") for name in os.listdir(out))

def play_in_a_child():
    child = fork.Process(target=lambda: os._exit(7 if play(2)[0] == 1 else 1))
    child.start(), child.join()
    os._exit(child.exitcode)

with fork.Pool(2) as pool:
    assert pool.map(play, [0, 1]) == [(1, ((8, 8, 3), (8, 8, 3)), 1)] * 2
child = fork.Process(target=play_in_a_child)
child.start(), child.join()
assert child.exitcode == 7, "a child of a child"
""", saved)
