"""Two processes that train together: they learn what one does, decide alike, and go on from what they saved.

Processes are forked, talk over gloo and use one thread each. Worlds are those of test_training, with text.
"""

import json
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import starflow_world.training.world
from starflow_world.codec import Streams
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.errors import CheckpointError, ConfigError
from starflow_world.io.files import read_tensors, write_tensors
from starflow_world.io.shards import open_shards
from starflow_world.model.checkpoint import WEIGHTS, load_networks, save_checkpoint
from starflow_world.model.networks import Networks
from starflow_world.training import train
from starflow_world.training.batches import Sampler
from starflow_world.training.distributed import ALONE, Processes, full_tensor
from starflow_world.training.objective import frame_weights
from starflow_world.training.state import STATE
from starflow_world.training.world import WorldTrainer
from tests.processes import Work, alone, ended, over, start, together
from tests.squares import FAST, SMALL, fill, recipe, world_config
from tests.worlds import randomise

STEPS = 3
WORLD = replace(SMALL, flow=replace(SMALL.flow, shallow_blocks=1, denoiser_layers=1))
"""A world of all kinds of networks."""
RATES = {"learning_rate": 4e-4, "site_learning_rate": 4e-4}  # at which rounding errors of tiny gradients stay small


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("data"), (5, 8, 4, 12))


@pytest.fixture(scope="module", autouse=True)
def no_curves() -> None:
    patch = pytest.MonkeyPatch()
    Networks(WORLD)  # what it imports is imported once, before processes are forked
    patch.setattr(starflow_world.training.world, "write_curves", lambda metrics, out: None)
    yield
    patch.undo()


def training(data: Path, out: Path, disturb: Callable[[Processes], None] = lambda _: None, **changes: object) -> Work:
    """A run that goes on where the folder stands."""

    def work(processes: Processes) -> None:
        disturb(processes)
        made = recipe(WORLD, **{"steps": STEPS, "save_minutes": 9.0, **RATES, **changes})
        train(made, data, out, valid=data, resume=(out / STATE).exists(), processes=processes)

    return work


def figures(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, Tensor]:
    return load_networks(out)[0].state_dict()


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of two sets of tensors."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    together(2, training(data, out))
    return out


def test_two_processes_learn_what_one_does(data, undisturbed, tmp_path):
    alone(training(data, tmp_path))
    one, two = weights(tmp_path), weights(undisturbed)
    torch.manual_seed(FAST.seed)
    error, moved = apart(one, two), apart(one, Networks(world_config(flow=WORLD.flow)).state_dict())
    print(f"{STEPS} steps: weights move by {moved:.1g} and are {error:.1g} apart")
    for mine, theirs in zip(figures(tmp_path), figures(undisturbed), strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert theirs[name] == pytest.approx(value, rel=1e-5, abs=1e-6), (name, mine["step"])
    assert error <= 1e-5 < moved / 50


@pytest.mark.parametrize("changes", [
    {"checkpointing": True},
    *(pytest.param(changes, marks=pytest.mark.slow) for changes in ({}, {"parts": ("flow.features", "action")})),
], ids=str)
def test_two_processes_have_the_gradients_of_one(data, tmp_path, changes):
    """After the step of a batch whose halves hold unequal numbers of true starts, which weigh less."""
    config, windows = replace(FAST, seed=0, **changes), EpisodeDataset(data).memory_map()
    halves = [Sampler(windows, config, Processes(rank, 2)).batch(0) for rank in (0, 1)]
    assert len({float(frame_weights(half, config).sum()) for half in halves}) == 2
    world = world_config(flow=WORLD.flow)
    save_checkpoint(tmp_path / "begun", randomise(Networks(world)), {})  # fresh layers have no gradient yet

    def work(processes: Processes) -> None:
        made = WorldTrainer(world, config, windows, init=tmp_path / "begun", processes=processes)
        made.advance()
        found = {name: full_tensor(p.grad) for name, p in made.networks.named_parameters() if p.grad is not None}
        if processes.main:
            write_tensors(tmp_path / f"{processes.count}.safetensors", found)

    alone(work)
    together(2, work)
    one, two = (read_tensors(tmp_path / f"{count}.safetensors")[0] for count in (1, 2))
    assert len(one) > 5
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        assert gradient.any() or ".attention." not in name, name
        limit = 1e-5 * float(gradient.abs().max()) + 1e-9
        torch.testing.assert_close(two[name], gradient, rtol=0, atol=limit, msg=name)


def test_a_run_told_to_stop_is_saved_and_goes_on_to_the_bit(data, undisturbed, tmp_path):
    """One of two processes is told to; both stop behind the same step."""

    def tell(processes: Processes) -> None:
        advance = WorldTrainer.advance

        def told(trainer: WorldTrainer) -> dict[str, float]:
            if trainer.step == 1 and processes.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return advance(trainer)

        WorldTrainer.advance = told  # type: ignore[method-assign]

    assert ended(start(2, training(data, tmp_path, tell))) == [1, 1]
    assert [line["step"] for line in figures(tmp_path)] == [1, 2]
    together(2, training(data, tmp_path))
    assert figures(tmp_path) == figures(undisturbed)
    assert (tmp_path / WEIGHTS).read_bytes() == (undisturbed / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_a_run_killed_at_random_moments_is_resumed_to_the_bit(data, undisturbed, tmp_path):
    rng = random.Random(1)
    for _ in range(4):
        before = (tmp_path / STATE).read_bytes() if (tmp_path / STATE).exists() else b""
        started = start(2, training(data, tmp_path, save_minutes=0.0))
        while not all(map(over, started)) and (
            not (tmp_path / STATE).exists() or (tmp_path / STATE).read_bytes() == before
        ):
            time.sleep(0.001)
        time.sleep(rng.random() * 0.5)
        for process in started:
            os.kill(process, signal.SIGKILL)
        ended(started)
    together(2, training(data, tmp_path))
    assert figures(tmp_path) == figures(undisturbed)
    assert (tmp_path / WEIGHTS).read_bytes() == (undisturbed / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_another_number_of_processes_goes_on(data, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    together(1, training(data, tmp_path, steps=STEPS))
    assert (tmp_path / WEIGHTS).read_bytes() == (undisturbed / WEIGHTS).read_bytes()


def test_what_two_processes_save_is_safetensors_that_we_read(undisturbed):
    (home,) = undisturbed.glob("training-*")
    files = [path for path in home.iterdir() if path.name.startswith("shard-0000")]
    assert len(files) == 2 == len(list(home.iterdir()))
    assert all(path.suffix == ".safetensors" for path in files)
    found = open_shards(home)
    for name, tensor in weights(undisturbed).items():
        assert torch.equal(found.read(f"weights/{name}"), tensor), name
    states = {name.rsplit("/", 1)[1] for name in found.shapes if name.startswith("optimizer/")}
    assert states == {"step", "exp_avg", "exp_avg_sq", "momentum_buffer"}


@pytest.mark.slow
def test_a_damaged_save_is_refused_by_all(data, undisturbed, tmp_path):
    for harm in ("cut", "gone", "pointer"):
        folder = tmp_path / harm
        shutil.copytree(undisturbed, folder)
        (path,) = folder.glob("training-*/shard-00002-*")
        if harm == "cut":
            path.write_bytes(path.read_bytes()[:-9])
        elif harm == "gone":
            path.unlink()
        else:
            (folder / STATE).write_text(json.dumps({"folder": "../x", "facts": {}}))

        def work(processes: Processes, folder: Path = folder) -> None:
            with pytest.raises(CheckpointError, match=str(folder)):
                training(data, folder)(processes)

        together(2, work)


def test_a_batch_that_is_not_finite_on_one_process_is_skipped_by_all(data, tmp_path):
    def work(processes: Processes) -> None:
        made = WorldTrainer(world_config(), FAST, EpisodeDataset(data).memory_map(), processes=processes)
        encode = made.networks.codec.encode

        def spoil(frames: Tensor) -> tuple[Tensor, Streams]:
            latents, streams = encode(frames)
            return latents * (float("nan") if made.step == 1 and processes.rank == 1 else 1.0), streams

        made.networks.codec.encode = spoil  # type: ignore[method-assign]
        for step, skipped in enumerate((0, 1, 1)):
            before = {name: full_tensor(t).clone() for name, t in made.networks.state_dict().items()}
            assert made.advance()["skipped"] == skipped
            same = all(torch.equal(full_tensor(t), before[name]) for name, t in made.networks.state_dict().items())
            assert same == (step == 1)

    together(2, work)


@pytest.mark.slow
def test_in_bf16_weights_and_sums_stay_float32(data):
    """What is gathered inside layers is bfloat16; figures are those of one process in bf16, to what bf16 rounds."""

    def work(processes: Processes) -> None:
        kinds = (("bf16", processes), ("bf16", ALONE), ("f32", ALONE))
        made = [WorldTrainer(world_config(), replace(FAST, precision=kind), EpisodeDataset(data).memory_map(),
                        processes=where) for kind, where in kinds]
        seen: list[torch.dtype] = []
        layer = made[0].networks.flow.deep.layers[0]
        layer.feed_forward.up.register_forward_pre_hook(lambda module, _: seen.append(module.weight.dtype))
        layer.feed_forward.norm.register_forward_pre_hook(lambda module, _: seen.append(module.weight.dtype))
        two, one, exact = ([trainer.advance() for _ in range(3)] for trainer in made)
        assert seen[:2] == [torch.float32, torch.bfloat16]
        assert {p.dtype for p in made[0].networks.parameters()} == {torch.float32}
        assert {p.grad.dtype for p in made[0].networks.parameters() if p.grad is not None} == {torch.float32}
        assert all(math.isfinite(value) for value in made[0].validate(made[0].sampler, batches=1).values())
        for mine, theirs, precise in zip(two, one, exact, strict=True):
            assert mine["nats_per_dim"] == pytest.approx(theirs["nats_per_dim"], rel=1e-2)
            assert mine["nats_per_dim"] != pytest.approx(precise["nats_per_dim"], rel=1e-9)

    together(2, work)


def test_rows_that_cannot_be_shared_evenly_are_refused(data):
    with pytest.raises(ConfigError, match="expected rows that 3 processes can share evenly, found 8"):
        Sampler(EpisodeDataset(data).memory_map(), FAST, Processes(0, 3)).batch(0)
