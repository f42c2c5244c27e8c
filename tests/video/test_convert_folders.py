"""Checkpoints in several files: what torch's distributed writers leave is read, and nothing of it is run."""

import io
import pickle  # noqa: TID251 (to write what must be refused)
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter, HuggingFaceStorageWriter

from starflow_world.errors import CheckpointError
from starflow_world.model.checkpoint import load_flow
from starflow_world.video.convert import convert
from starflow_world.video.convert.records import read_records
from starflow_world.video.convert.sources import open_reference
from tests.references import OPTIONS, Canary, golden_state

KINDS = ["distributed", "hugging face", "consolidated", "pieces"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    return golden_state()


@pytest.fixture(scope="module")
def written(reference, tmp_path_factory) -> dict[str, Path]:
    """The reference state dict as each of torch's writers leaves it."""
    state = dict(reference) | {f"optimizer.state.{name}.exp_avg": t.clone() for name, t in list(reference.items())[:3]}
    places = {kind: tmp_path_factory.mktemp(kind.replace(" ", "_")) for kind in KINDS}
    numbers = {name: 1 + index % 3 for index, name in enumerate(state)}
    dcp.save(state, storage_writer=FileSystemWriter(places["distributed"]))
    dcp.save(state, storage_writer=HuggingFaceStorageWriter(str(places["hugging face"]), numbers))
    for name, consolidated in (("pieces", False), ("consolidated", True)):
        writer = HuggingFaceStorageWriter(
            str(places[name]), numbers, save_distributed=True, enable_consolidation=consolidated
        )
        dcp.save(state, storage_writer=writer)
    return places


@pytest.mark.parametrize("kind", KINDS)
def test_what_torch_writes_becomes_the_same_flow_as_one_file(reference, written, tmp_path, kind):
    torch.save(reference, tmp_path / "one.pth")
    convert(tmp_path / "one.pth", tmp_path / "one", **OPTIONS)
    convert(written[kind], tmp_path / "several", **OPTIONS)
    expected = load_flow(tmp_path / "one").state_dict()
    found = load_flow(tmp_path / "several").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


TWO = """
import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemWriter, HuggingFaceStorageWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
rank, store, source, distributed, pieces = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
state = {name: distribute_tensor(t, mesh, [Shard(0)]) for name, t in load_file(source).items()}
dcp.save(state, storage_writer=FileSystemWriter(distributed))
dcp.save(state, storage_writer=HuggingFaceStorageWriter(pieces, save_distributed=True))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_what_two_processes_wrote_in_pieces_is_read_whole(tmp_path):
    generator = torch.Generator().manual_seed(0)
    whole = {f"blocks.{k}.w": torch.randn(5 + k, 3, generator=generator) for k in range(3)}
    save_file(whole, tmp_path / "whole.safetensors")
    folders = [tmp_path / "distributed", tmp_path / "pieces"]
    words = [str(tmp_path / name) for name in ("store", "whole.safetensors", "distributed", "pieces")]
    processes = [subprocess.Popen([sys.executable, "-c", TWO, str(rank), *words]) for rank in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    for folder in folders:
        source = open_reference(folder)
        assert {name: tuple(t.shape) for name, t in whole.items()} == dict(source.shapes)
        assert all(torch.equal(source.read(name), t) for name, t in whole.items())


@pytest.mark.parametrize("protocol", range(6))
def test_a_hostile_table_of_contents_is_refused_and_not_run(tmp_path, protocol):
    canary = tmp_path / "canary"
    for content in (Canary(canary), {"state_dict_metadata": Canary(canary)}, [Canary(canary)]):
        with (tmp_path / ".metadata").open("wb") as file:
            pickle.dump(content, file, protocol)
        with pytest.raises(CheckpointError, match=r"metadata: expected the table .*(may run code|opcode)"):
            convert(tmp_path, tmp_path / "out")
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


def test_names_that_are_accepted_are_not_called_either():
    class Metadata:
        def __reduce__(self):
            return dcp.metadata.TensorProperties, (1, 2, 3, 4, 5, 6, 7, 8, 9)  # would raise

    record = read_records(pickle.dumps(Metadata()))
    assert (record.kind, record.arguments) == ("TensorProperties", (1, 2, 3, 4, 5, 6, 7, 8, 9))


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"\x80\x04.", b"garbage", b"\x80\x04N.", b"(lp0\n."])
def test_a_damaged_table_of_contents_is_one_error(tmp_path, content):
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"\.metadata"):
        convert(tmp_path, tmp_path / "out")


def test_a_hostile_piece_is_refused_and_not_run(reference, tmp_path):
    canary, folder = tmp_path / "canary", tmp_path / "checkpoint"
    dcp.save(dict(reference), storage_writer=FileSystemWriter(folder))
    (path,) = folder.glob("*.distcp")
    whole, buffer = path.read_bytes(), io.BytesIO()
    torch.save(Canary(canary), buffer)
    hostile = buffer.getvalue()
    path.write_bytes(hostile + whole[len(hostile) :])
    with pytest.raises(CheckpointError, match="distcp"):
        convert(folder, tmp_path / "out", **OPTIONS)
    path.write_bytes(whole[:-1000])
    with pytest.raises(CheckpointError, match=rf"expected at least \d+ bytes, found {len(whole) - 1000};"):
        convert(folder, tmp_path / "out", **OPTIONS)
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_not_written_to(reference, tmp_path):
    torch.save(reference, tmp_path / "reference.pth")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="new or empty folder"):
        convert(tmp_path / "reference.pth", tmp_path / "out", **OPTIONS)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "out" / "mine.txt").unlink()
    convert(tmp_path / "reference.pth", tmp_path / "out", **OPTIONS)
    assert load_flow(tmp_path / "out").config.deep_layers == 3
    assert not list(tmp_path.glob(".writing-*"))
