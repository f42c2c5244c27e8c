"""Reference checkpoints whose tensors are read one at a time: .pth, .safetensors, and folders of either kind.

    FILE.pth                                a state dict, memory-mapped; its pickle may name tensors and plain data only
    FILE.safetensors
    FOLDER/*.safetensors                    with an index, or as FSDP wrote them through HuggingFaceStorageWriter
    FOLDER/.metadata + FOLDER/*.distcp      torch's distributed checkpoint; its table of contents is never unpickled

The prefix `model.`, the nine entries that nothing reads and the state of optimizers are dropped.
"""

import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from starflow_world.errors import CheckpointError
from starflow_world.io.files import DAMAGE, is_file, is_folder
from starflow_world.io.shards import TensorSource, open_shards, open_tensors, refuse
from starflow_world.video.convert.names import NOT_READ
from starflow_world.video.convert.records import Record, read_records

SAFE_TORCH = (2, 10)
MOST_MAPPED = 1 << 27
OPTIMIZER = ("optimizer.", "optim.")
NAMED = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
METADATA = ".metadata"


def open_reference(path: Path) -> TensorSource:
    """Open a reference checkpoint under the reference's names; its tensors are floats of one dtype."""
    if is_folder(path) and is_file(path / METADATA):
        source = _open_distributed(path)
    elif is_folder(path) and any(path.glob("*.safetensors")):
        source = open_shards(path)
    elif not is_file(path):
        expected = "a reference checkpoint (.pth, .safetensors, or a folder of either kind)"
        raise CheckpointError(f"{path}: expected {expected}, found none")
    else:
        source = open_tensors(path) if path.suffix == ".safetensors" else _open_pickle(path)
    kept = {name: name.removeprefix("model.") for name in source.shapes if not name.startswith(OPTIMIZER)}
    names = {new: old for old, new in kept.items() if new not in NOT_READ}
    if len(set(kept.values())) < len(kept):
        twice = [name for name in kept if name != kept[name] and kept[name] in kept]
        raise CheckpointError(f"{path}: expected each name once, found {twice[0]} also without the prefix `model.`")
    refuse(path, [f"{new} is no tensor of floats" for new, old in names.items() if old not in source.dtypes
                  or not source.dtypes[old].is_floating_point])
    dtypes = sorted({str(source.dtypes[old]) for old in names.values()})
    if len(dtypes) > 1:
        raise CheckpointError(f"{path}: expected one dtype, found {', '.join(dtypes)}")
    return source.renamed(names)


def _open_pickle(path: Path) -> TensorSource:
    """Open a .pth file. Tensors that were read stay mapped, so the file is mapped again from time to time."""
    state, touched = _unpickle(path, path), 0
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{path}: expected a dictionary of tensors, found {type(state).__name__}")
    refuse(path, [f"{name} is no tensor of floats" for name, t in state.items() if not isinstance(t, Tensor)])
    keys = {str(name): name for name in state}

    def read(name: str) -> Tensor:
        nonlocal state, touched
        if touched > MOST_MAPPED:
            state, touched = None, 0
            state = _unpickle(path, path)
        assert isinstance(state, Mapping)
        tensor = state[keys[name]]
        touched += tensor.nbytes
        return tensor

    shapes = {str(name): tuple(t.shape) for name, t in state.items()}
    return TensorSource(shapes, {str(name): t.dtype for name, t in state.items()}, read)


def _unpickle(file: Path | io.BytesIO, path: Path) -> object:
    """Return the content of a file of torch.save; its pickle may name tensors and plain data only."""
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < SAFE_TORCH:
        raise CheckpointError(
            f"{path}: expected torch 2.10 or newer, found {torch.__version__}; a hostile .pth file can harm older ones"
        )
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=isinstance(file, Path))
    except Exception as error:  # a damaged stream can raise any error
        reason = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        raise CheckpointError(f"{path}: expected a state dict in torch's zip format, found {reason:.200}") from None


def _open_distributed(folder: Path) -> TensorSource:
    """Open a folder of torch.distributed.checkpoint."""
    path = folder / METADATA
    try:
        table = read_records(path.read_bytes())
        homes = {_key(index): info.state for index, info in table.get("storage_data").items()}
        parts = {
            name: entry.state for name, entry in table.get("state_dict_metadata").items()
            if entry.kind == "TensorStorageMetadata" and not name.startswith(OPTIMIZER)
        }
        shapes = {name: _numbers(state["size"]) for name, state in parts.items()}
        kinds = {name: state["properties"].state[0].kind for name, state in parts.items()}
        boxes = {
            name: [(_numbers(c.get("offsets")), _numbers(c.get("sizes"))) for c in state["chunks"]]
            for name, state in parts.items()
        }
        places = {(name, at): _place(homes[name, at]) for name, chunks in boxes.items() for at, _ in chunks}
    except (*DAMAGE, IndexError, StopIteration) as error:
        raise CheckpointError(
            f"{path}: expected the table of a distributed checkpoint, found {error}; nothing of it was run"
        ) from None
    short = [name for name, chunks in boxes.items() if sum(math.prod(b) for _, b in chunks) != math.prod(shapes[name])]
    refuse(folder, [f"{name} is not whole" for name in short])
    dtypes = {name: NAMED.get(kind, torch.uint8) for name, kind in kinds.items()}

    def read(name: str) -> Tensor:
        whole = torch.empty(shapes[name], dtype=dtypes[name])
        for at, box in boxes[name]:
            part = _read_slice(folder, *places[name, at])
            if not isinstance(part, Tensor) or tuple(part.shape) != box or part.dtype != whole.dtype:
                shown = f"{tuple(part.shape)} {part.dtype}" if isinstance(part, Tensor) else type(part).__name__
                raise CheckpointError(f"{folder}: expected a piece {box} {whole.dtype} of {name}, found {shown}; it is "
                                      "damaged")
            whole[tuple(slice(start, start + size) for start, size in zip(at, box, strict=True))] = part
        return whole

    return TensorSource(shapes, dtypes, read)


def _key(index: Record) -> tuple[str, tuple[int, ...] | None]:
    offset = index.get("offset") if "offset" in index.state else None
    return index.get("fqn"), None if offset is None else _numbers(offset)


def _numbers(size: Any) -> tuple[int, ...]:
    """Return the numbers of a torch.Size."""
    numbers = tuple(size.arguments[0] if size.arguments else ())
    if size.kind != "Size" or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"{size} for a size")
    return numbers


def _place(state: Mapping[str, Any]) -> tuple[str, int, int]:
    """Return file, first byte and length of a piece."""
    name, start, length = state["relative_path"], state["offset"], state["length"]
    if not isinstance(name, str) or Path(name).name != name or start < 0 or length < 0:
        raise ValueError(f"{name!r:.80} for a file in the folder")
    if state.get("transform_descriptors"):
        raise ValueError("pieces that are compressed or encrypted")
    return name, start, length


def _read_slice(folder: Path, name: str, start: int, length: int) -> object:
    path = folder / name
    size = path.stat().st_size if is_file(path) else 0
    if size < start + length:
        raise CheckpointError(f"{path}: expected at least {start + length} bytes, found {size}; fetch it again")
    with path.open("rb") as file:
        file.seek(start)
        return _unpickle(io.BytesIO(file.read(length)), path)
