"""What a process finds around it - hash seed, locale, time zone, folder - changes no result."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from tests.worlds import env_world, save_world

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import sys
from pathlib import Path
import torch
import starflow_world.training.world
from starflow_world.agents.policy import RandomPolicy
from starflow_world.agents.collect import rollout
from starflow_world.io.shards import file_digest
from starflow_world.model.checkpoint import WEIGHTS
from starflow_world.world import World
from tests.squares import recipe, world_config

torch.set_num_threads(1)
starflow_world.training.world.write_curves = lambda metrics, out: None  # pictures name their software
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
rollout(folder, out / "data", episodes=3, policy=RandomPolicy(), seed=1, max_steps=8, progress=False)
starflow_world.training.world.train(recipe(world_config(), steps=2), out / "data", out / "run")
world = World.load(out / "run")
state, seen = world.start(text=["gr\\u00fcn", "go"], seed=3)
state, seen = world.step(state, [1, 2])
print(*(file_digest(path) for path in sorted((out / "data").glob("*.h5"))))
print(file_digest(out / "run" / WEIGHTS), state.digest())
print(*(file_digest(out / name) for name in ("data/collection.json", "run/config.json", "run/starts.safetensors")))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_results_do_not_depend_on_hash_seed_locale_time_zone_or_folder(tmp_path: Path) -> None:
    """Episodes that are imagined, what is trained on them, and what that imagines: eight surroundings."""
    world, found = save_world(env_world(), tmp_path / "world"), {}
    surroundings = product(("0", "12345"), ("C", "C.UTF-8"), ("UTC", "Asia/Kathmandu"))
    for number, (seed, locale, zone) in enumerate(surroundings):
        place, out = tmp_path / f"place {number % 3}", tmp_path / f"out{number}"
        place.mkdir(exist_ok=True)
        around = {"PYTHONHASHSEED": seed, "LC_ALL": locale, "TZ": zone, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
        command = [sys.executable, "-c", PROGRAM, str(world), str(out)]
        environment = {**os.environ, **around, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found[seed, locale, zone] = done.stdout
        assert not list(place.iterdir()), "nothing is left in the folder it ran in"
    assert len(set(found.values())) == 1, found
