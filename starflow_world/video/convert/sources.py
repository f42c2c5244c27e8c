"""Reference checkpoints whose tensors are read one at a time: .pth, .safetensors, and folders of either kind.

    FILE.pth                                a state dict, memory-mapped; its pickle may name tensors and plain data only
    FILE.safetensors
    FOLDER/*.safetensors                    with an index, or as FSDP wrote them through HuggingFaceStorageWriter
    FOLDER/.metadata + FOLDER/*.distcp      torch's distributed checkpoint; its table of contents is never unpickled

Names come without prefixes, and without what training needs beside weights (weights.py). A .pth file may hold nested
dictionaries; what they say of the model in the published program's words must be what we read.
"""

import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from starflow_world.config.published import refuse_arguments
from starflow_world.errors import CheckpointError, ConfigError
from starflow_world.io.files import DAMAGE, is_file, is_folder
from starflow_world.io.shards import CODES, TensorSource, open_shards, open_tensors, refuse
from starflow_world.video.convert.buffers import UNUSED
from starflow_world.video.convert.records import Record, read_records
from starflow_world.video.convert.weights import model_names, split_name

SAFE_TORCH = (2, 10)
MOST_MAPPED = 1 << 27
DEEPEST = 8
"""Dictionaries inside dictionaries."""
ARGUMENTS = ("args", "arguments", "config", "hparams", "hyper_parameters")
OPTIMIZER = ("optimizer.", "optim.")
NAMED = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
METADATA = ".metadata"


def open_reference(path: Path, weights: str = "") -> TensorSource:
    """Open a reference checkpoint under the reference's names; all but the unused buffers are tensors of floats.

    `weights`: which set of several, such as ema (weights.py).
    """
    if is_folder(path) and is_file(path / METADATA):
        source = _open_distributed(path)
    elif is_folder(path) and any(path.glob("*.safetensors")):
        source = open_shards(path)
    elif not is_file(path):
        expected = "a reference checkpoint (.pth, .safetensors, or a folder of either kind)"
        raise CheckpointError(f"{path}: expected {expected}, found none")
    else:
        source = open_tensors(path) if path.suffix == ".safetensors" else _open_pickle(path)
    names = model_names(path, source, weights)
    refuse(path, [f"{new} is no tensor of floats" for new, old in names.items()
                  if source.dtypes.get(old) not in CODES and not UNUSED.fullmatch(new)])
    return source.renamed(names)


def _open_pickle(path: Path) -> TensorSource:
    """Open a .pth file. Tensors that were read stay mapped, so the file is mapped again from time to time."""
    state, touched = _unpickle(path, path), 0
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{path}: expected a dictionary of tensors, found {type(state).__name__}")
    for key in ARGUMENTS:
        if isinstance(said := state.get(key), Mapping):
            try:
                refuse_arguments(said)
            except ConfigError as error:
                raise CheckpointError(f"{path}: {key}: {error}") from None
    found = list(_flat(state))
    refuse(path, [f"{name} is there twice" for name, count in Counter(name for name, _ in found).items() if count > 1])
    refuse(path, [f"{name} is no tensor of floats" for name, t in found
                  if not isinstance(t, Tensor) and (split_name(name) or (None,))[0] is not None])
    tensors = {name: t for name, t in found if isinstance(t, Tensor)}
    shapes, dtypes = {n: tuple(t.shape) for n, t in tensors.items()}, {n: t.dtype for n, t in tensors.items()}
    del found

    def read(name: str) -> Tensor:
        nonlocal state, tensors, touched
        if touched > MOST_MAPPED:
            state, tensors, touched = None, {}, 0
            state = _unpickle(path, path)
            assert isinstance(state, Mapping)
            tensors = dict(_flat(state))
        tensor = tensors[name]
        touched += tensor.nbytes
        return tensor

    return TensorSource(shapes, dtypes, read)


def _flat(values: Mapping[Any, Any], prefix: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    """Yield what is in dictionaries inside dictionaries, under names such as model.var."""
    for key, value in values.items():
        if isinstance(value, Mapping) and depth < DEEPEST:
            yield from _flat(value, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}", value


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
