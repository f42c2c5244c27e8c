"""Tensors in several safetensors files, read and written one at a time, so that memory holds one of them.

A folder holds model-00001-of-00003.safetensors ... and model.safetensors.index.json, the layout that Hugging Face's
libraries and torch's distributed checkpoints share. Our index also has the digest of every file, so the digest of the
index covers all weights. Tensors that FSDP wrote in pieces, with their offsets, are read too.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from starflow_world.errors import CheckpointError
from starflow_world.io.files import DAMAGE, atomic, is_file, not_written, odd_numbers, write_text

INDEX = "model.safetensors.index.json"
LARGEST_INDEX, LARGEST_FILE = 1 << 24, 4 << 30
CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
DTYPES = {code: dtype for dtype, code in CODES.items()}
PIECES = "DCP_SHARDING_INFO"


@dataclass(frozen=True)
class TensorSource:
    """Named tensors that are read on demand: shapes and dtypes by name; `read(name)` returns one tensor."""

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    read: Callable[[str], Tensor]

    def renamed(self, names: Mapping[str, str]) -> "TensorSource":
        """Return the tensors that `names` (new -> old) lists, under their new names."""
        return TensorSource(
            {new: self.shapes[old] for new, old in names.items()},
            {new: self.dtypes[old] for new, old in names.items()},
            lambda name: self.read(names[name]),
        )


def write_shards(folder: Path | str, tensors: TensorSource, *, largest: int = LARGEST_FILE) -> str:
    """Write tensors in files of at most `largest` bytes (or one tensor), then the index; return its digest."""
    folder = Path(folder)
    (folder / INDEX).unlink(missing_ok=True)  # until the new one is there, the folder has no weights
    groups, sizes = _groups(tensors, largest), {name: _bytes(tensors, name) for name in tensors.shapes}
    homes: dict[str, str] = {}
    digests: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        try:
            with atomic(folder / file) as temporary:
                digests[file] = _write(temporary, tensors, group)
        except OSError as problem:
            raise CheckpointError(not_written(folder / file, problem)) from None
        homes |= dict.fromkeys(group, file)
    index = {"metadata": {"total_size": sum(sizes.values()), "digests": digests}, "weight_map": homes}
    text = json.dumps(index, indent=1) + "\n"
    write_text(folder / INDEX, text)
    return hashlib.sha256(text.encode()).hexdigest()


def _bytes(tensors: TensorSource, name: str) -> int:
    return math.prod(tensors.shapes[name]) * tensors.dtypes[name].itemsize


def _groups(tensors: TensorSource, largest: int) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    size = 0
    for name in tensors.shapes:
        size += _bytes(tensors, name)
        if size > largest and groups[-1]:
            groups, size = [*groups, []], _bytes(tensors, name)
        groups[-1].append(name)
    return groups


def _write(path: Path, tensors: TensorSource, names: list[str]) -> str:
    """Write one safetensors file, tensor by tensor; return its digest."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + _bytes(tensors, name)
        shape, code = list(tensors.shapes[name]), CODES[tensors.dtypes[name]]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            digest.update(part)
            file.write(part)
        for name in names:
            tensor = tensors.read(name)
            assert (tuple(tensor.shape), tensor.dtype) == (tuple(tensors.shapes[name]), tensors.dtypes[name])
            numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            digest.update(numbers)
            file.write(numbers)
            del tensor, numbers
    return digest.hexdigest()


def open_shards(folder: Path | str, *, digest: str | None = None) -> TensorSource:
    """Open the tensors of a folder, reading only the headers of its files.

    `digest`: expected digest of the index; it and the digests of the files must match. Raises CheckpointError.
    """
    folder = Path(folder)
    homes, digests = _index(folder, digest)
    pieces: dict[str, list[_Piece]] = {}
    for file in sorted(set(homes.values())) if homes else [path.name for path in sorted(folder.glob("*.safetensors"))]:
        if digest is not None and (own := file_digest(folder / file)) != (named := digests.get(file, "none")):
            expected = f"the digest {named:.12} that {INDEX} names"
            raise CheckpointError(f"{folder / file}: expected {expected}, found {own:.12}: damaged; fetch it again")
        for piece in _pieces(folder / file):
            if not homes or homes.get(piece.name) == file:
                pieces.setdefault(piece.name, []).append(piece)
    if missing := [name for name in homes if name not in pieces]:
        raise CheckpointError(f"{folder}: expected {missing[0]} in {homes[missing[0]]}, found none; fetch it again")
    return _source(folder, pieces)


def open_tensors(path: Path | str) -> TensorSource:
    """Open the tensors of one safetensors file, reading only its header. Raises CheckpointError."""
    path = Path(path)
    return _source(path, {piece.name: [piece] for piece in _pieces(path)})


def _source(where: Path, pieces: "Mapping[str, list[_Piece]]") -> TensorSource:
    if not pieces:
        raise CheckpointError(f"{where}: expected tensors, found none")
    shapes = {name: _whole(where, parts) for name, parts in pieces.items()}
    dtypes = {name: parts[0].dtype for name, parts in pieces.items()}
    return TensorSource(shapes, dtypes, lambda name: _read(name, pieces[name], shapes[name], dtypes[name]))


def _index(folder: Path, expected: str | None) -> tuple[dict[str, str], dict[str, str]]:
    """Return the file of each tensor and the digest of each file; both empty if there is no index."""
    path = folder / INDEX
    if not is_file(path):
        if expected is not None:
            raise CheckpointError(f"{path}: expected the index of the weights, found none; fetch it again")
        return {}, {}
    try:
        if path.stat().st_size > LARGEST_INDEX:
            raise ValueError(f"{path.stat().st_size} bytes")
        text = path.read_bytes()
        values = json.loads(text)
        homes, digests = values["weight_map"], values.get("metadata", {}).get("digests", {})
        if not all(isinstance(name, str) and name == Path(name).name for name in (*homes.values(), *digests)):
            raise ValueError("files outside the folder")
        absent = [name for name in homes.values() if not is_file(folder / name)]
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected an index of tensors, found damage: {error}; fetch it again") from None
    if expected is not None and (own := hashlib.sha256(text).hexdigest()) != expected:
        raise CheckpointError(f"{path}: expected digest {expected:.12}, found {own:.12}; it belongs to other weights")
    if absent:
        raise CheckpointError(f"{folder / absent[0]}: expected a file that {INDEX} names, found none; fetch it again")
    return homes, digests


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class _Piece:
    """A tensor, or a box-shaped part of one, in a file."""

    path: Path
    name: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype


def _pieces(path: Path) -> list[_Piece]:
    parts = []
    try:
        with safe_open(path, framework="pt") as file:
            boxes = json.loads((file.metadata() or {}).get(PIECES, "{}"))
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(name)
                shape = tuple(part.get_shape())
                offsets = tuple(int(number) for number in boxes[name]["saved_offsets"]) if name in boxes else None
                if offsets is not None and (len(offsets) != len(shape) or min(offsets, default=0) < 0):
                    raise ValueError(f"{name} of shape {shape} at {offsets}")
                dtype = DTYPES.get(part.get_dtype(), torch.uint8)  # any non-float dtype: readers raise an error for it
                parts.append(_Piece(path, name, offsets or (0,) * len(shape), shape, dtype))
    except DAMAGE as damage:
        raise CheckpointError(f"{path}: expected a whole safetensors file, found {damage}; fetch it again") from None
    return parts


def _whole(folder: Path, pieces: list[_Piece]) -> tuple[int, ...]:
    """Return the shape of the tensor that the pieces form. Raises CheckpointError if they leave gaps."""
    name, ranks = pieces[0].name, {len(piece.shape) for piece in pieces}
    if len(ranks) > 1 or len({piece.dtype for piece in pieces}) > 1:
        raise CheckpointError(f"{folder}: expected pieces of one kind, found {name} with several ranks or dtypes")
    ends = [[at + size for at, size in zip(p.offsets, p.shape, strict=True)] for p in pieces]
    shape = tuple(max(axis) for axis in zip(*ends, strict=True))
    boxes = {(piece.offsets, piece.shape) for piece in pieces}
    if sum(math.prod(box) for _, box in boxes) != math.prod(shape) or len(boxes) < len(pieces):
        some = f"{len(pieces)} of {sorted(boxes)!s:.200}"
        raise CheckpointError(f"{folder}: expected pieces that fill {name} {shape}, found {some}; a file is missing")
    return shape


def _read(name: str, pieces: list[_Piece], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    whole: Tensor | None = None
    for piece in pieces:
        try:
            with safe_open(piece.path, framework="pt") as file:
                part = file.get_tensor(name)
                if len(pieces) == 1:
                    return part.clone()
                whole = torch.empty(shape, dtype=dtype) if whole is None else whole
                box = tuple(slice(at, at + n) for at, n in zip(piece.offsets, piece.shape, strict=True))
                whole[box] = part
        except DAMAGE as damage:
            raise CheckpointError(f"{piece.path}: expected {name}, found damage: {damage}; fetch it again") from None
    assert whole is not None
    return whole


def read_shards(folder: Path | str, digest: str) -> dict[str, Tensor]:
    """Return all tensors of a folder whose index has this digest; check that all floats are finite."""
    source = open_shards(folder, digest=digest)
    tensors = {name: source.read(name) for name in source.shapes}
    for name, tensor in tensors.items():
        if wrong := odd_numbers(tensor):
            raise CheckpointError(f"{folder}: {name}: expected finite numbers of 16 to 64 bits, found {wrong}")
    return tensors


def refuse(path: Path | str, problems: list[str]) -> None:
    """Raise CheckpointError with the number of problems and the first five of them."""
    if problems:
        raise CheckpointError(f"{path}: {len(problems)} tensors do not fit: {'; '.join(problems[:5])}")


def misfits(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return one sentence for each tensor that is missing, unknown or of another shape."""
    return (
        [f"{name} is missing" for name in expected if name not in found]
        + [f"{name} is unknown" for name in found if name not in expected]
        + [
            f"{name} has shape {found[name]} instead of {shape}"
            for name, shape in expected.items() if name in found and found[name] != shape
        ]
    )
