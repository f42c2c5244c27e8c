"""A state is a value: cloned, branched, stacked, saved in one process and continued in another."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from starflow_world.errors import StarflowError, StateError
from starflow_world.io.files import read_tensors, write_tensors
from starflow_world.model.checkpoint import save_checkpoint
from starflow_world.world import World
from starflow_world.world.state import TENSORS, WorldState
from tests.worlds import KINDS, tiny_world

ROOT = Path(__file__).resolve().parents[2]
WINDOW = 6


def small_world(**changes: object) -> World:
    return tiny_world(height=4, width=4, **changes)


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small world: snapshots are shared by processes that load it."""
    folder = tmp_path_factory.mktemp("world")
    save_checkpoint(folder, small_world(**KINDS[request.param]).networks, {})
    return folder


@pytest.fixture(scope="module")
def world(folder: Path) -> World:
    return World.load(folder)


def pictures(rows: int, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (rows, count, 4, 4, 3), generator=generator, dtype=torch.uint8)


def started(world: World, *ages: int) -> WorldState:
    parts = [world.start(pictures(1, age, age), text=f"row {i}", seed=age)[0] for i, age in enumerate(ages)]
    return WorldState.stack(parts)


def moved(world: World, state: WorldState, count: int) -> WorldState:
    for t in range(count):
        state, _ = world.step(state, [(t + row) % 4 for row in range(len(state))])
    return state


def storages(state: WorldState) -> set[int]:
    tensors = [getattr(state, name) for name in (*TENSORS, "text")]
    assert state.cache is not None
    tensors += [state.cache.keys, state.cache.values, state.cache.length]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor is not None and tensor.numel()}


# ---- values ----------------------------------------------------------------------------------------------------------


def test_a_clone_continues_bit_identically_and_shares_nothing(world):
    state = started(world, 1, 5)
    twin, before = state.clone(), state.digest()
    assert twin.digest() == before
    assert not storages(state) & storages(twin)
    other = moved(world, twin, 100)
    assert state.digest() == before
    assert not storages(state[[0, 1]]) & storages(state)
    assert moved(world, state, 100).digest() == other.digest()


def test_methods_return_new_values(world):
    state = started(world, 2, 6, 3)
    before = state.digest()
    keyed = state.with_keys([7, 8, 9])
    assert keyed.key.tolist() == [7, 8, 9]
    assert torch.equal(keyed.tokens, state.tokens)
    mixed = state.replace_rows(torch.tensor([1]), keyed[0])
    assert mixed.key.tolist() == [state.key[0], 7, state.key[2]]
    assert mixed.texts == ("row 0", "row 0", "row 2")
    assert mixed[[0, 2]].digest() == state[[0, 2]].digest()
    assert mixed[1].digest() == keyed[0].digest()
    assert WorldState.stack([state[0], state[[1, 2]]]).digest() == before
    assert state[torch.tensor([True, False, True])].digest() == state[[0, 2]].digest() == state[[-3, -1]].digest()
    assert state[np.int64(1)].digest() == state[1].digest() == state[np.array([1])].digest()
    moved(world, keyed, 1)
    world.step(keyed, [0, 0, 0], reuse=True)
    assert state.digest() == before


def test_keys_of_a_copy_survive_the_original_giving_its_cache_away(world):
    state = started(world, 6)
    keyed = state.with_keys([1])
    before = keyed.digest()
    world.step(state, [1], reuse=True)  # slides: its storage is written from the beginning
    assert keyed.digest() == before


@pytest.mark.parametrize("rows", [[], [3], [-4], "0", None, 1.0, [0.5], [True], [[0]], slice(0, 1), torch.tensor(True)])
def test_wrong_rows_are_one_clear_error(world, rows):
    state = started(world, 1, 2, 3)
    with pytest.raises(StateError, match="rows: expected"):
        state[rows]


def test_rows_of_several_worlds_and_wrong_keys_are_refused(world):
    state = started(world, 1, 2)
    for wrong in ([], [state, replace(state, world_id="another")]):
        with pytest.raises(StateError, match="stack"):
            WorldState.stack(wrong)
    for keys in ([1], [1, -1], torch.ones(3)):
        with pytest.raises(StateError, match="keys"):
            state.with_keys(keys)
    with pytest.raises(StateError, match="rows"):
        state.replace_rows(torch.tensor([0]), state)
    with pytest.raises(StateError, match="expected one of world"):
        world.step(replace(state, world_id="another"), [0, 0])
    with pytest.raises(StateError, match="float32"):
        world.step(replace(state, tokens=state.tokens.double()), [0, 0])


# ---- snapshots -------------------------------------------------------------------------------------------------------

CONTINUE = """
import json, sys
import torch
from starflow_world.world.state import WorldState
from starflow_world.world import World
torch.set_num_threads(int(sys.argv[2]))
world, found = World.load(sys.argv[1]), []
for paths in sys.argv[3].split(), sys.argv[4].split():
    state = WorldState.stack([WorldState.load(path, world) for path in paths])
    for t in range(50):
        state, seen = world.step(state, [(t + row) % 4 for row in range(len(state))])
    found.append([state.digest(), seen.latents.tolist(), seen.frames.tolist()])
print(json.dumps(found))
"""


def test_a_snapshot_continues_in_another_process(world, folder, tmp_path, at_most):
    """Exact ones bit for bit, compact ones nearly; one row for each of the ages, in one computation of 6 rows."""
    ages = (0, 1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 2)
    states = [world.empty(["go"], [5])]
    state, _ = world.start(pictures(1, 1), text="stay", seed=3)
    for _ in range(max(ages)):
        states.append(state)
        state, _ = world.step(state, [1])
    names: dict[str, list[str]] = {"exact": [], "compact": []}
    for kind, paths in names.items():
        for age in ages:
            assert int(states[age].step) == age
            paths.append(str(tmp_path / f"{kind}-{age}"))
            states[age].save(paths[-1], exact=kind == "exact")
    given = [str(folder), str(torch.get_num_threads()), *map(" ".join, names.values())]
    command = [sys.executable, "-c", CONTINUE, *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    exact, compact = json.loads(done.stdout)
    state = WorldState.stack([states[age] for age in ages])
    for t in range(50):
        state, seen = world.step(state, [(t + row) % 4 for row in range(len(state))])
    assert exact == [state.digest(), seen.latents.tolist(), seen.frames.tolist()]
    changed = (torch.tensor(compact[2]) - seen.frames.int()).abs()
    at_most("latents after 50 steps", (torch.tensor(compact[1]) - seen.latents).abs().max(), 1e-4)
    assert changed.max() <= 1
    assert (changed > 0).float().mean() <= 1e-3


def test_a_compact_snapshot_is_small_and_a_loaded_one_shares_no_memory_with_its_file(world, tmp_path):
    state = started(world, 6, 2)
    state.save(tmp_path / "exact")
    state.save(tmp_path / "compact", exact=False)
    assert (tmp_path / "exact").stat().st_size > 5 * (tmp_path / "compact").stat().st_size
    loaded = WorldState.load(tmp_path / "exact", world)
    assert loaded.digest() == state.digest()
    assert loaded.texts == state.texts
    with (tmp_path / "exact").open("r+b") as file:
        file.write(bytes((tmp_path / "exact").stat().st_size))
    assert loaded.digest() == state.digest()
    assert WorldState.load(tmp_path / "compact", world).cache is None


def test_a_snapshot_serves_a_world_of_another_precision(world, tmp_path):
    state = started(world, 3)
    state.save(tmp_path / "snapshot")
    same = {"codec": world.config.codec, "flow": world.config.flow}
    precise = World(small_world(dtype=torch.float64, **same).networks, world.world_id)
    loaded = WorldState.load(tmp_path / "snapshot", precise)
    assert loaded.tokens.dtype == torch.float64
    error = precise.step(loaded, [1])[1].latents - world.step(state, [1])[1].latents
    assert error.abs().max() < 1e-3  # f32 against f64


def test_a_snapshot_of_another_world_or_format_is_refused(world, tmp_path):
    path = tmp_path / "snapshot"
    started(world, 3).save(path)
    with pytest.raises(StateError, match="expected a state of world"):
        WorldState.load(path, small_world(gain=0.3))
    tensors, metadata = read_tensors(path)
    wrongs = [
        ({**metadata, "format": "1"}, tensors, "format"), ({}, tensors, "format"),
        ({**metadata, "texts": "[]"}, tensors, "texts"), ({**metadata, "texts": "[1]"}, tensors, "texts"),
        ({**metadata, "texts": '["much too long"]'}, tensors, "text"),
        ({**metadata, "texts": '["a", "b"]'}, tensors, "length"),
        (metadata, {**tensors, "key": tensors["key"] - 2**63}, "keys"),
        (metadata, {**tensors, "length": tensors["length"] + WINDOW}, "length"),
        (metadata, {**tensors, "step": tensors["step"] * 0}, "length"),
        (metadata, {**tensors, "cache.length": tensors["cache.length"] + 1}, "cache"),
        (metadata, {**tensors, "cache.keys": tensors["cache.keys"][:1]}, "cache.keys"),
        (metadata, {**tensors, "tokens": tensors["tokens"][:, :3]}, "tokens"),
        (metadata, {**tensors, "tokens": tensors["tokens"].long()}, "tokens"),
        (metadata, {**tensors, "tokens": tensors["tokens"] / 0}, "finite"),
        (metadata, {**tensors, "text": tensors["text"][:, :2]}, "text"),
        (metadata, {**tensors, "more": tensors["key"] + 1}, "more"),
        (metadata, {k: v for k, v in tensors.items() if k != "latents"}, "latents"),
        (metadata, {k: v for k, v in tensors.items() if k != "cache.keys"}, "cache.keys"),
    ]
    for facts, content, reason in wrongs:
        write_tensors(path, content, facts, sealed=True)
        with pytest.raises(StateError, match=reason):
            WorldState.load(path, world)
    write_tensors(path, tensors, {k: v for k, v in metadata.items() if k != "digest"})
    with pytest.raises(StateError, match="digest"):
        WorldState.load(path, world)


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """One mutation: flipped bits, a cut, inserted or repeated bytes, a lie about the header."""
    where, kind = int(rng.integers(len(content))), int(rng.integers(6))
    if kind == 0:
        return content[:where]
    if kind == 1:
        return content[:where] + bytes(rng.integers(0, 256, 1 + where % 9, dtype=np.uint8)) + content[where:]
    if kind == 2:
        return int(rng.integers(2**20)).to_bytes(8, "little") + content[8:]
    where = int(rng.integers(8 + int.from_bytes(content[:8], "little"))) if kind == 3 else where  # in the header
    changed = bytearray(content)
    changed[where] ^= 1 << int(rng.integers(8))
    return bytes(changed)


@pytest.mark.parametrize("count", [100, pytest.param(2500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("exact", [True, False])
def test_damage_to_a_snapshot_is_a_state_error_or_changes_nothing(world, tmp_path, exact, count):
    path, rng = tmp_path / "snapshot", np.random.default_rng(int(exact))
    state = started(world, 3, 6)
    state.save(path, exact=exact)
    content = path.read_bytes()
    expected = WorldState.load(path, world).digest()
    for _ in range(count):
        path.write_bytes(damaged(content, rng))
        try:
            found = WorldState.load(path, world).digest()
        except StateError as error:
            found = expected if str(path) in str(error) else str(error)
        assert found == expected


def test_no_snapshot_is_no_snapshot(world, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "link")
    for path in (tmp_path, tmp_path / "none", tmp_path / "link", "a\0b", "x" * 5000, "/dev/null"):
        with pytest.raises(StarflowError, match="expected a safetensors file, found none"):
            WorldState.load(path, world)
