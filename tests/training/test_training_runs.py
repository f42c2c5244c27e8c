"""Whole training runs: killed, resumed, continued, judged and refused. A resumed run is the undisturbed one to the bit.

Runs are forked and use one thread: then their bits depend on nothing that other tests did.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import starflow_world.training.world
from starflow_world.errors import CheckpointError, ConfigError
from starflow_world.io.files import TEMPORARY, read_tensors
from starflow_world.model.checkpoint import TRAINING, WEIGHTS, load_networks, load_starts
from starflow_world.training import train
from starflow_world.world import World
from tests.io.test_files import dying, forked, launched
from tests.processes import over
from tests.squares import SMALL, recipe

pytestmark = pytest.mark.usefixtures("no_curves")
STEPS = 8


def training(
    data: Path, out: Path, disturb: Callable[[], None] = lambda: None, **changes: object
) -> Callable[[], None]:
    """A run for a process of its own, going on where the folder stands."""

    def work() -> None:
        torch.set_num_threads(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        disturb()
        train(recipe(steps=STEPS, **changes), data, out, valid=data, resume=(out / TRAINING).exists(), command="test")

    return work


def run(data: Path, out: Path, disturb: Callable[[], None] = lambda: None, **changes: object) -> int:
    """Its exit code."""
    return forked(training(data, out, disturb, **changes))


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, patch = tmp_path_factory.mktemp("undisturbed"), pytest.MonkeyPatch()
    patch.setattr(starflow_world.training.world, "write_curves", lambda metrics, out: None)
    assert run(data, out) == 0
    patch.undo()
    return out


def assert_same_run(out: Path, other: Path) -> None:
    """Weights, optimizers, facts and learning curves are equal to the bit, and nothing is left over."""
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in other.iterdir())
    for path in other.iterdir():
        if path.name != TRAINING:
            assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    (one, facts), (two, expected) = read_tensors(out / TRAINING), read_tensors(other / TRAINING)
    assert facts == expected
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in two)
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))


def test_a_run_is_repeated_to_the_bit(data, undisturbed, tmp_path):
    assert run(data, tmp_path) == 0
    assert_same_run(tmp_path, undisturbed)
    assert load_networks(tmp_path)[0].config.name == "tiny"
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["steps"], card["episodes"], card["command"]) == (STEPS, 4, "test")


def test_a_run_killed_at_random_moments_is_resumed_to_the_bit(data, undisturbed, tmp_path):
    rng, moments, codes = random.Random(1), [], []
    for _ in range(3):
        before = saved(tmp_path)
        process = launched(training(data, tmp_path))
        while not over(process) and saved(tmp_path) == before:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.08)
        os.kill(process, signal.SIGKILL)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
        moments.append(len((tmp_path / "metrics.jsonl").read_text().splitlines()))
    assert -signal.SIGKILL in codes
    assert set(codes) <= {-signal.SIGKILL, 0}, "a run may be through before it is killed, but not fail"
    print(f"killed after {moments} steps")
    assert run(data, tmp_path) == 0
    assert_same_run(tmp_path, undisturbed)


def saved(out: Path) -> int:
    """When the run was saved last."""
    return (out / TRAINING).stat().st_mtime_ns if (out / TRAINING).exists() else 0


@pytest.mark.parametrize(("owner", "call"), [(os, "fsync"), (Path, "replace")])
def test_a_run_killed_while_it_saves_is_resumed_to_the_bit(data, undisturbed, tmp_path, owner, call):
    """A save syncs and renames several files: the run dies before each of them, and in the last save too."""
    codes = []
    for moment in (3, 4, 5, 6, 7, 5, 4, 3):
        codes.append(run(data, tmp_path, lambda moment=moment: dying(call, moment, owner)))  # type: ignore[misc]
    assert codes.count(-signal.SIGKILL) >= 6
    assert run(data, tmp_path) == 0
    assert_same_run(tmp_path, undisturbed)


def test_a_run_killed_between_its_last_two_files_is_finished(data, undisturbed, tmp_path):
    assert run(data, tmp_path) == 0
    for name in ("config.json", WEIGHTS, "card.json"):
        (tmp_path / name).unlink()
    (tmp_path / f"{TEMPORARY}x.safetensors").write_text("half")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "na')
    assert run(data, tmp_path) == 0
    assert_same_run(tmp_path, undisturbed)


def test_judging_does_not_disturb_training(data, undisturbed, tmp_path):
    assert run(data, tmp_path, valid_every=1) == 0
    assert (tmp_path / WEIGHTS).read_bytes() == (undisturbed / WEIGHTS).read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all("valid_excess" in line and "valid_start_excess" in line for line in lines)


def test_a_run_goes_on_only_as_it_began_but_for_what_may_change(data, undisturbed, tmp_path):
    begun = recipe(steps=STEPS)
    wider = replace(SMALL, flow=replace(SMALL.flow, deep_width=80, deep_layers=3))
    with pytest.raises(ConfigError, match=r"found world\.flow\.deep_layers=3 instead of 2, .*deep_width=80 instead"):
        train(recipe(wider, steps=STEPS), data, undisturbed, resume=True)
    with pytest.raises(ConfigError, match=r"found train\.lengths=.*, train\.learning_rate=1\.0.*, train\.seed=3 inst"):
        train(recipe(steps=STEPS, learning_rate=1.0, seed=3, lengths=(2,)), data, undisturbed, resume=True)
    with pytest.raises(ConfigError, match="add --resume"):
        train(begun, data, undisturbed)
    with pytest.raises(CheckpointError, match="expected a safetensors file, found none"):
        train(begun, data, tmp_path / "nothing", resume=True)
    longer = tmp_path / "longer"
    assert run(data, longer) == 0
    train(recipe(steps=STEPS + 1, save_minutes=9.0, valid_every=5), data, longer, resume=True)
    assert len((longer / "metrics.jsonl").read_text().splitlines()) == STEPS + 1


def test_a_run_that_was_never_saved_begins_anew(data, undisturbed, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    assert run(data, tmp_path) == 0
    assert_same_run(tmp_path, undisturbed)


def test_a_run_may_begin_with_the_weights_of_a_checkpoint(data, undisturbed, tmp_path):
    out = tmp_path / "continued"
    train(recipe(steps=1, learning_rate=1e-12, site_learning_rate=1e-12), data, out, init=undisturbed)
    one, other = (load_networks(folder)[0].state_dict() for folder in (undisturbed, out))
    assert one.keys() == other.keys()
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-9
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    fresh = json.loads((undisturbed / "metrics.jsonl").read_text().splitlines()[0])
    assert first["nats_per_dim"] > fresh["nats_per_dim"]  # it goes on from what was learned
    with pytest.raises(CheckpointError, match="tensors do not fit"):
        train(recipe(replace(SMALL, flow=replace(SMALL.flow, deep_width=80))), data, tmp_path / "x", init=undisturbed)


def test_a_trained_world_brings_its_starts(undisturbed):
    found = load_starts(undisturbed)
    assert found is not None
    assert found[0].shape == (4, 8, 8, 3)
    assert found[1] == ("row 0", "row 1", "row 2", "row 3")
    assert [int(frame[-1, -1, 0]) for frame in found[0]] == [0, 1, 2, 3]
    world = World.load(undisturbed)
    assert world.starts is not None
    state, _ = world.start(world.starts.frames[:, None], text=world.starts.texts)
    assert world.step(state, [0, 1, 2, 3])[1].frames.shape == (4, 1, 8, 8, 3)


def test_training_leaves_the_global_random_numbers_alone(data, tmp_path):
    before = torch.get_rng_state()
    train(recipe(steps=1), data, tmp_path)
    assert torch.equal(before, torch.get_rng_state())
