"""Linux and macOS: the package works where the names that only Linux has are absent."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

WITHOUT_LINUX = """
import builtins, io, os

for name in ("sched_getaffinity", "sched_setaffinity", "O_NOFOLLOW", "posix_fallocate", "posix_fadvise", "memfd_create",
             "pidfd_open", "copy_file_range", "splice", "eventfd"):
    if hasattr(os, name):
        delattr(os, name)


def without_proc(function):
    def run(path, *arguments, **named):
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", os.fspath(path))
        return function(path, *arguments, **named)
    return run


for name in ("open", "stat", "lstat", "listdir", "scandir", "readlink"):
    setattr(os, name, without_proc(getattr(os, name)))
builtins.open = io.open = without_proc(open)
"""
PROGRAM = """
import sys
from pathlib import Path

import gymnasium
import torch

import starflow_world.training.world
from starflow_world import World, WorldState
from starflow_world.cli import main
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.envs.shard import own_threads
from starflow_world.training import train
from tests.squares import fill, recipe, world_config

assert not hasattr(os, "O_NOFOLLOW") and not Path("/proc/self").exists()
torch.set_num_threads(1)
starflow_world.training.world.write_curves = lambda metrics, out: None
out = Path(sys.argv[1])
world = World.load("babyai-gotolocal")
state, _ = world.start(world.starts.frames[:1, None], text=world.starts.texts[:1], seed=0)
state, _ = world.step(state, [1])
state.save(out / "state.safetensors")
assert WorldState.load(out / "state.safetensors", world).digest() == state.digest()
env = gymnasium.make("StarflowWorld/BabyAI-GoToLocal-v0")
env.reset(seed=0)
env.step(2)
main(["collect", "--env", "CartPolePixels-v0", "--policy", "random", "--episodes", "2", "--out", str(out / "data")])
assert len(EpisodeDataset(out / "data")) == 2
train(recipe(world_config(), steps=2), fill(out / "squares", (5, 8)), out / "run")
World.load(out / "run").start(text=["go"], seed=3)
assert own_threads(1) >= 1
print("done")
"""


def test_everything_that_runs_on_macos_runs_without_the_names_of_linux(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WITHOUT_LINUX + PROGRAM, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("done\n")
