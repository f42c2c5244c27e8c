"""Checkpoints: saved is loaded, to the bit; damage of any kind is one clear error that names the file."""

import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from starflow_world.config.reading import to_dict
from starflow_world.config.train import TrainConfig
from starflow_world.config.world import WorldConfig
from starflow_world.errors import CheckpointError, ConfigError, StarflowError
from starflow_world.io.files import read_tensors, write_tensors
from starflow_world.io.shards import file_digest
from starflow_world.model.checkpoint import (
    CONFIG,
    STARTS,
    TRAINING,
    WEIGHTS,
    load_networks,
    load_starts,
    load_training,
    save_checkpoint,
    save_starts,
    save_training,
    training_facts,
)
from starflow_world.model.networks import Networks
from starflow_world.training.optimizers import world_optimizers
from starflow_world.world import SHIPPED, World, find_world
from tests.worlds import TINY, randomise

FLOW = {"shallow_blocks": 1, "denoiser_layers": 0, "deep_layers": 1}


def small(gain: float = 0.5, **changes: object) -> Networks:
    torch.manual_seed(0)
    return randomise(Networks(replaced(**changes)), gain).eval()


def replaced(**changes: object) -> WorldConfig:
    return replace(TINY, **{"height": 4, "width": 4, "flow": replace(TINY.flow, **FLOW)} | changes)  # type: ignore[arg-type]


def content(networks: Networks) -> str:
    """Digest of config and weights."""
    found = hashlib.sha256(json.dumps(to_dict(networks.config), sort_keys=True).encode())
    for name, tensor in sorted(networks.state_dict().items()):
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def resealed(folder: Path, **changes: Any) -> None:
    """Rewrite config.json as its owner could, with digests that fit."""
    values = json.loads((folder / CONFIG).read_text())
    values["world"] |= changes
    values["weights"] = file_digest(folder / WEIGHTS)
    del values["digest"]
    seal = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    (folder / CONFIG).write_text(json.dumps({**values, "digest": seal}))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    save_checkpoint(folder, small(), {"steps": 3})
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A checkpoint of its own for every test."""
    return Path(shutil.copytree(original, tmp_path / "checkpoint"))


# ---- saved is loaded -------------------------------------------------------------------------------------------------


def test_what_is_loaded_is_what_was_saved(folder):
    networks, found = load_networks(folder)
    assert content(networks) == content(small())
    assert found == file_digest(folder / WEIGHTS)
    assert not networks.training
    assert all(parameter.requires_grad for parameter in networks.parameters())
    assert not any(tensor.is_meta for tensor in [*networks.parameters(), *networks.buffers()])
    assert json.loads((folder / "card.json").read_text()) == {"steps": 3}
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", CONFIG, WEIGHTS]


def test_a_loaded_world_is_the_saved_one_and_its_name_is_its_content(folder, tmp_path):
    world, again = World.load(folder), World.load(str(folder))
    frames = torch.randint(0, 256, (1, 3, 4, 4, 3), dtype=torch.uint8)
    assert torch.equal(world.log_prob(frames), World(small()).log_prob(frames))
    assert world.world_id == again.world_id
    save_checkpoint(tmp_path / "other", small(gain=0.4), {})
    save_checkpoint(tmp_path / "renamed", small(name="other"), {})
    others = {World.load(tmp_path / name).world_id for name in ("other", "renamed")}
    assert len(others | {world.world_id}) == 3
    assert World.load(folder, dtype=torch.float64).log_prob(frames).dtype == torch.float64


def test_loading_draws_no_random_numbers(folder):
    before = torch.get_rng_state(), random.getstate()
    World.load(folder)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_a_checkpoint_of_before_there_were_seals_can_be_loaded(folder):
    values = json.loads((folder / CONFIG).read_text())
    del values["digest"]
    (folder / CONFIG).write_text(json.dumps(values))
    assert content(load_networks(folder)[0]) == content(small())


def test_a_world_is_found_by_its_folder_or_its_name(tmp_path):
    assert find_world(tmp_path) == tmp_path
    for wrong in ("no such world", tmp_path / "none", "a\0b", "x" * 5000, "../..\n"):
        if not Path(str(wrong)[:200]).is_dir():
            with pytest.raises(CheckpointError, match="expected a folder or the name of a shipped world"):
                find_world(wrong)
    with pytest.raises(ConfigError, match="device: expected one of this machine"):
        World.load(_saved(tmp_path), device="quantum")


def test_a_folder_of_rollouts_does_not_hide_the_world_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cartpole-pixels").mkdir()
    assert find_world("cartpole-pixels") == SHIPPED / "cartpole-pixels"
    (tmp_path / "cartpole-pixels" / CONFIG).touch()
    assert find_world("cartpole-pixels") == Path("cartpole-pixels")


def _saved(folder: Path) -> Path:
    save_checkpoint(folder, small(), {})
    return folder


# ---- damage ----------------------------------------------------------------------------------------------------------


def flips(rng: np.random.Generator, path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    for _ in range(int(rng.integers(1, 4))):
        damaged[int(rng.integers(len(damaged)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(damaged)


def cut(rng: np.random.Generator, path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * int(rng.integers(64)) // 64])


def stuffed(rng: np.random.Generator, path: Path) -> None:
    damaged, where = path.read_bytes(), int(rng.integers(path.stat().st_size))
    stuff = rng.integers(0, 256, int(rng.integers(1, 50)), np.uint8).tobytes()
    path.write_bytes(damaged[:where] + stuff + damaged[where:])


def lie(rng: np.random.Generator, path: Path) -> None:
    path.write_bytes(int(rng.integers(2**62) >> int(rng.integers(62))).to_bytes(8, "little") + path.read_bytes()[8:])


def swapped(rng: np.random.Generator, path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    one, other = sorted(rng.integers(len(damaged) // 2, size=2).tolist())
    damaged[one : one + 4], damaged[other + 4 : other + 8] = damaged[other + 4 : other + 8], damaged[one : one + 4]
    path.write_bytes(damaged)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_damage_is_a_checkpoint_error_that_names_the_file_or_changes_nothing(original, tmp_path, count):
    rng, expected, refused = np.random.default_rng(0), content(small()), 0
    kinds: list[Callable[[np.random.Generator, Path], None]] = [flips, cut, stuffed, lie, swapped]
    begin = time.process_time()
    for index in range(count):
        folder = Path(shutil.copytree(original, tmp_path / "damaged", dirs_exist_ok=True))
        path = folder / (CONFIG, WEIGHTS)[index % 2]
        kinds[index % len(kinds)](rng, path)
        try:
            found = content(load_networks(folder)[0])
        except CheckpointError as error:
            refused += 1
            said = str(error)
            assert str(folder) in said, said
        else:
            assert found == expected
    print(f"{count} mutations: {refused} refused, {time.process_time() - begin:.1f} s")
    assert refused > 0.8 * count


def test_tensors_that_do_not_fit_are_refused_although_every_digest_does(folder):
    tensors, facts = read_tensors(folder / WEIGHTS)
    name, wide = "flow.deep.head.out.weight", "flow.deep.start"
    wrongs: list[tuple[dict[str, Tensor], str]] = [
        ({k: v for k, v in tensors.items() if k != name}, f"1 tensors do not fit: {name} is missing"),
        ({**tensors, "more": torch.zeros(1)}, "1 tensors do not fit: more is unknown"),
        ({("x" if k == name else k): v for k, v in tensors.items()}, f"2 tensors do not fit: {name} is missing; x is"),
        ({**tensors, name: tensors[name].T.contiguous()}, f"{name} is \\(16, 10\\).* instead of \\(10, 16\\)"),
        ({**tensors, name: tensors[name].long()}, f"{name} is .*int64"),
        ({**tensors, name: tensors[name] * float("nan")}, f"{name}: expected finite"),
        ({**tensors, wide: tensors[wide].to(torch.complex64)}, f"{wide} is .*complex64"),
        ({}, "expected the layers that config.json describes, found only 0 tensors"),
        ({f"{k}.": v for k, v in tensors.items()}, f"{2 * len(tensors)} tensors do not fit"),
    ]
    for wrong, said in wrongs:
        write_tensors(folder / WEIGHTS, wrong, facts)
        resealed(folder)
        with pytest.raises(CheckpointError, match=said) as caught:
            load_networks(folder)
        assert str(folder / WEIGHTS) in str(caught.value)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("changes", [
    {"flow": {"channels": 12}}, {"flow": to_dict(TINY.flow)}, {"flow": {**to_dict(TINY.flow), "deep_layers": 1024}},
    {"flow": {**to_dict(TINY.flow), "shallow_blocks": 1024, "shallow_layers": 1024}},
    {"flow": {**to_dict(TINY.flow), "deep_width": 20 * 52_428}}, {"text": {"kind": "t5", "length": 8, "width": 18}},
    {"action_space": '{"type": "Discrete", "n": 1000000000000}'}, {"action_space": "{}"},
    {"outcome": {"width": 1 << 20}}, {"height": 1 << 14, "width": 1 << 14}, {"name": 3},
    {"window": 1 << 14, "height": 1 << 10, "width": 1 << 10},
    {"surprise": 1}, {"action_space": '{"type": "MultiBinary", "n": 1000000000000}'},
])
def test_the_config_of_another_model_is_refused_quickly_and_without_memory(folder, changes):
    import resource

    resealed(folder, **changes)
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=str(folder)):
        load_networks(folder)
    assert time.process_time() - begin < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


@pytest.mark.parametrize("change", [
    ('"noise_level": 0.3', '"noise_level": 0.7'), ('"window": 6', '"window": 5'), ('"tiny"', '"tony"'),
    ('"tolerance": 0.001', '"tolerance": 0.01'), ('"end": "sample"', '"end": "threshold"'),
])
def test_a_number_changed_in_a_config_is_noticed_although_it_could_be_meant(folder, change):
    text = (folder / CONFIG).read_text()
    assert text.count(change[0]) == 1
    (folder / CONFIG).write_text(text.replace(*change))
    with pytest.raises(CheckpointError, match="expected content of the digest"):
        load_networks(folder)


def test_files_of_two_checkpoints_are_not_mixed(folder, tmp_path):
    save_checkpoint(tmp_path / "other", small(gain=0.3), {})
    for name in (CONFIG, WEIGHTS):
        mixed = Path(shutil.copytree(folder, tmp_path / f"mixed {name}"))
        shutil.copy(tmp_path / "other" / name, mixed / name)
        with pytest.raises(CheckpointError, match="expected digest"):
            load_networks(mixed)


@pytest.mark.parametrize("text", [
    "", "[]", "null", "3", "{", '{"format": 1}', '{"format": 2, "weights": "x", "world": {}}',
    '{"format": 1, "weights": 3, "world": {}}', '{"format": 1, "weights": "x"}',
    '{"format": 1, "weights": "x", "world": {}, "run": "rm"}', "[" * 100_000, "\xff",
])
def test_a_config_that_is_none_is_refused(folder, text):
    (folder / CONFIG).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=str(folder / CONFIG)):
        load_networks(folder)


def test_folders_pipes_and_loops_in_the_place_of_files_are_refused(original, tmp_path):
    for name in (CONFIG, WEIGHTS):
        for index, make in enumerate((os.mkdir, os.mkfifo, lambda path: os.symlink(path, path), lambda path: None)):
            folder = Path(shutil.copytree(original, tmp_path / f"{name} {index}"))
            (folder / name).unlink()
            make(folder / name)
            with pytest.raises(CheckpointError, match=str(folder / name)):
                load_networks(folder)
    for path in (tmp_path / "none", original / CONFIG, "x" * 5000, "a\0b"):
        with pytest.raises(CheckpointError, match="found none"):
            load_networks(path)


# ---- start sets and trainings ----------------------------------------------------------------------------------------


def test_a_start_set_comes_back(folder):
    assert load_starts(folder) is None
    frames = torch.randint(0, 256, (5, 4, 4, 3), dtype=torch.uint8)
    texts = ("", "é", "go", "</s>", "\0")
    save_starts(folder, frames, texts)
    found = load_starts(folder)
    assert found is not None
    assert torch.equal(found[0], frames)
    assert found[1] == texts
    starts = World.load(folder).starts
    assert starts is not None
    assert len(starts) == 5


def test_damage_to_a_start_set_is_a_checkpoint_error(folder):
    frames, path, rng = torch.zeros(3, 4, 4, 3, dtype=torch.uint8), folder / STARTS, np.random.default_rng(0)
    save_starts(folder, frames, ["a", "b", "c"])
    whole = path.read_bytes()
    for kind in (flips, cut, stuffed, lie) * 10:
        path.write_bytes(whole)
        kind(rng, path)
        with pytest.raises(CheckpointError, match=str(path)):
            load_starts(folder)
    path.write_bytes(whole)
    tensors, facts = read_tensors(path)
    for wrong in ({"shape": "[3, 4, 4, 2]"}, {"shape": "[3, 4, 4, 4]"}, {"shape": "[1e9, 1e9, 4, 3]"}, {"shape": "[3]"},
                  {"shape": "[3.0, 4, 4, 3]"}, {"shape": "3"}, {"shape": "[3, 4, -4, -3]"}, {"texts": '["a"]'},
                  {"texts": "[1, 2, 3]"}, {"texts": "3"}, {"shape": "[" * 9999}, {"shape": "[3, 99999, 99999, 3]"}):
        write_tensors(path, tensors, {**facts, **wrong}, sealed=True)
        with pytest.raises(CheckpointError, match="expected a start set, found damage"):
            load_starts(folder)
    save_starts(folder, torch.zeros(3, 8, 4, 3, dtype=torch.uint8), ["a", "b", "c"])
    with pytest.raises(CheckpointError, match="expected starts of the world's size"):
        World.load(folder)


def test_a_training_comes_back_or_is_refused(tmp_path):
    def fresh() -> tuple[Networks, list[torch.optim.Optimizer]]:
        networks = small()
        return networks, world_optimizers(networks, TrainConfig())

    networks, optimizers = fresh()
    for parameter in networks.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    save_training(tmp_path, networks, optimizers, {"step": 7})
    again, restored = fresh()
    assert load_training(tmp_path, again, restored) == training_facts(tmp_path) == {"step": 7}
    assert content(again) == content(networks)
    for one, other in zip(optimizers, restored, strict=True):
        old, new = one.state_dict()["state"], other.state_dict()["state"]
        assert old.keys() == new.keys()
        assert all(torch.equal(torch.as_tensor(v), new[k][n]) for k, values in old.items() for n, v in values.items())
    whole, rng, path = (tmp_path / TRAINING).read_bytes(), np.random.default_rng(0), tmp_path / TRAINING
    for kind in (flips, cut, stuffed, lie) * 8:
        path.write_bytes(whole)
        kind(rng, path)
        for call in (lambda: load_training(tmp_path, *fresh()), lambda: training_facts(tmp_path)):
            with pytest.raises(StarflowError, match=str(path)):
                call()
