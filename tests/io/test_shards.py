"""Tensors over several files come back as they were written, or not at all."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from starflow_world.errors import CheckpointError
from starflow_world.io.files import read_tensors
from starflow_world.io.shards import INDEX, TensorSource, open_shards, read_shards, write_shards
from starflow_world.model.checkpoint import CONFIG, WEIGHTS, load_networks, save_checkpoint
from tests.worlds import tiny_world


def source_of(tensors: dict[str, Tensor]) -> TensorSource:
    return TensorSource(
        {name: tuple(t.shape) for name, t in tensors.items()}, {name: t.dtype for name, t in tensors.items()},
        tensors.__getitem__,
    )


def test_shards_hold_what_was_written_and_others_can_read_them(tmp_path):
    generator = torch.Generator().manual_seed(0)
    dtypes = [torch.bfloat16, torch.float32, torch.float16, torch.float64]
    tensors = {f"t{k}": torch.randn(3, k, generator=generator).to(dtypes[k % 4]) for k in range(9)}
    tensors["number"] = torch.tensor(3.0)
    digest = write_shards(tmp_path, source_of(tensors), largest=100)
    files = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(files) > 2
    assert all(path.name.endswith(f"-of-{len(files):05}.safetensors") for path in files)
    found, others = read_shards(tmp_path, digest), {k: t for path in files for k, t in load_file(path).items()}
    for name, tensor in tensors.items():
        assert found[name].dtype == others[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
        assert torch.equal(others[name], tensor)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()


def test_shards_that_changed_are_refused(tmp_path):
    tensors = {"a": torch.ones(4), "b": torch.ones(4)}
    digest = write_shards(tmp_path, source_of(tensors), largest=16)
    paths = [tmp_path / f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents, strict=True):
        for damage in (content[:-1], content[:-1] + b"\1", content[: len(content) // 2]):
            path.write_bytes(damage)
            with pytest.raises(CheckpointError, match=path.name):
                read_shards(tmp_path, digest)
        path.unlink()
        with pytest.raises(CheckpointError, match=path.name):
            read_shards(tmp_path, digest)
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="expected digest"):
        read_shards(tmp_path, "0" * 64)
    index = json.loads((tmp_path / INDEX).read_text())
    for change in ({"weight_map": 3}, {"weight_map": {"a": paths[1].name}}):
        (tmp_path / INDEX).write_text(json.dumps(index | change))
        with pytest.raises(CheckpointError):
            open_shards(tmp_path)


def test_an_index_names_files_of_its_own_folder_only(tmp_path):
    (tmp_path / "inner").mkdir()
    save_file({"a": torch.ones(4)}, tmp_path / "a.safetensors")
    for name in ("../a.safetensors", str(tmp_path / "a.safetensors")):
        (tmp_path / "inner" / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(CheckpointError, match="outside the folder"):
            open_shards(tmp_path / "inner")


def test_pieces_of_a_tensor_are_put_where_their_offsets_say(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    for rank, rows in enumerate((slice(0, 1), slice(1, 4))):
        facts = {"DCP_SHARDING_INFO": json.dumps({"w": {"saved_offsets": [rows.start, 0]}})}
        save_file({"w": whole[rows].contiguous()}, tmp_path / f"shard-0000{rank}-model.safetensors", facts)
    assert torch.equal(open_shards(tmp_path).read("w"), whole)
    (tmp_path / "shard-00000-model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="a file is missing"):
        open_shards(tmp_path)


def sharded(folder: Path) -> Path:
    """A checkpoint of a tiny world whose weights lie in several files."""
    world = tiny_world()
    save_checkpoint(folder, world.networks, {})
    tensors, _ = read_tensors(folder / WEIGHTS)
    digest = write_shards(folder, source_of(tensors), largest=20_000)
    (folder / WEIGHTS).unlink()
    values = json.loads((folder / CONFIG).read_text())
    del values["digest"]
    (folder / CONFIG).write_text(json.dumps({**values, "weights": digest}))
    return folder


def test_a_world_is_loaded_from_several_files_as_from_one(tmp_path):
    save_checkpoint(tmp_path / "one", tiny_world().networks, {})
    expected, _ = load_networks(tmp_path / "one")
    found, _ = load_networks(sharded(tmp_path / "several"))
    assert len(list((tmp_path / "several").glob("model-*"))) > 2
    assert found.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(t, expected.state_dict()[name]) for name, t in found.state_dict().items())


def test_a_world_in_several_files_is_refused_when_one_changed(tmp_path):
    folder = sharded(tmp_path / "several")
    path = sorted(folder.glob("model-*-of-*"))[1]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=path.name):
        load_networks(folder)
    path.write_bytes(content)
    (folder / INDEX).write_text((folder / INDEX).read_text() + " ")
    with pytest.raises(CheckpointError, match="digest"):
        load_networks(folder)
