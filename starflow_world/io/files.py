"""Files: atomic writes (a reader sees the old content or the new, never a part) and tensor files.

A sealed tensor file contains a digest of its content: safetensors detects a wrong length, but not a wrong number.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from starflow_world.errors import CheckpointError, ConfigError, DataError, StarflowError

TEMPORARY = ".writing-"
SEAL, FACTS = "digest", "starflow_world"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DAMAGE = (  # errors raised while reading a damaged file; RecursionError is a RuntimeError
    SafetensorError, OSError, ValueError, RuntimeError, OverflowError, MemoryError, KeyError, TypeError, AttributeError,
)


def not_written(path: Path | str, problem: Exception) -> str:
    """Return the message for a file that could not be written: the system's error and what to do about it."""
    code = problem.errno if isinstance(problem, OSError) else None
    todo = "choose another path"
    if code in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        todo = "make room for it"
    elif code in (errno.EACCES, errno.EPERM, errno.EROFS):
        todo = "choose a folder that you may write"
    return f"{path}: expected to write a file, found {problem}; {todo}"


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; if the block ends without an error, sync it and rename it to `path`.

    After an error the temporary is removed and an existing file at `path` is unchanged. Raises ConfigError for an empty
    path.
    """
    path = Path(path)
    if not path.name:
        raise ConfigError(f"path: expected the name of a file, found {str(path)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_leftovers(folder: Path | str) -> None:
    """Delete temporaries, files and folders, that a killed process left in `folder`."""
    for leftover in Path(folder).glob(f"{TEMPORARY}*"):
        if is_folder(leftover):
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def recorded(path: Path) -> dict[str, Any]:
    """Return the record that `claim` wrote at `path`; {} if it is missing or damaged (`claim` then raises)."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except DAMAGE:
        return {}
    return values if isinstance(values, dict) else {}


def claim(path: Path, record: Mapping[str, Any], key: str | None = None) -> None:
    """Write the record of a run into its folder, which must be new or hold the same record (with `key`: the same value
    of that key). Remove incomplete files of a killed process there. Raises DataError."""
    wanted = json.loads(json.dumps(record))
    if path.exists():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            old, new = (record, wanted) if key is None else (record[key], wanted[key])
        except DAMAGE as damage:
            raise DataError(f"{path}: expected the record of a run, found {damage!r:.120}; use a new folder") from None
        if old != new:
            raise DataError(f"{path}: expected {new}, found {old}, another run's; use a new folder")
    try:
        write_text(path, json.dumps(wanted, indent=1))
    except OSError as error:
        raise DataError(not_written(path, error)) from error
    remove_leftovers(path.parent)


def write_tensors(
    path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, *,
    sealed: bool = False, error: type[StarflowError] = CheckpointError,
) -> None:
    """Write tensors to a safetensors file, atomically; `sealed` adds a digest to the metadata. Raises `error`."""
    whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    facts = dict(metadata or {})
    if sealed:
        facts[SEAL] = _seal(whole, facts)
    try:
        with atomic(path) as temporary:
            # Not save_file: it writes to a second temporary, which is not removed if the process is killed.
            temporary.write_bytes(save(whole, {FACTS: json.dumps(facts, sort_keys=True)}))
    except (OSError, SafetensorError) as problem:
        raise error(not_written(path, problem)) from None


def read_tensors(
    path: Path | str, error: type[StarflowError] = CheckpointError, *, sealed: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a safetensors file; check that all floats are finite. Raises `error`.

    A stored digest must match; `sealed`: there must be one.
    """
    path = Path(path)
    if not is_file(path):
        raise error(f"{path}: expected a safetensors file, found none")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = _unpacked(dict(file.metadata() or {}))
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        floats = {name: t for name, t in tensors.items() if t.is_floating_point()}
        bad = [name for name, t in floats.items() if odd_numbers(t)]
    except DAMAGE as damage:
        raise error(f"{path}: expected a whole safetensors file, found damage: {damage}; fetch it again") from None
    if bad:
        raise error(f"{path}: {bad[0]}: expected finite numbers of 16 to 64 bits, found {odd_numbers(tensors[bad[0]])}")
    if (sealed or SEAL in metadata) and (own := _seal(tensors, metadata)) != (named := metadata.get(SEAL, "none")):
        expected = f"content of the digest {named:.12} that the file names"
        raise error(f"{path}: expected {expected}, found {own:.12}: damaged; fetch it again")
    return tensors, metadata


def odd_numbers(tensor: Tensor) -> str:
    """Describe a wrong dtype or the number of non-finite values of a float tensor; "" if there is nothing wrong."""
    if tensor.dtype not in FLOATS:
        return str(tensor.dtype).removeprefix("torch.")
    count = int((~torch.isfinite(tensor)).sum())
    return f"{count} that are NaN or infinite" if count else ""


def _unpacked(metadata: dict[str, str]) -> dict[str, str]:
    """Return the metadata packed in one entry (the library orders several randomly), or that of older files."""
    if FACTS not in metadata:
        return metadata
    facts = json.loads(metadata[FACTS])
    if not isinstance(facts, dict) or not all(isinstance(value, str) for value in facts.values()):
        raise ValueError("metadata that is no dictionary of strings")
    return facts


def is_file(path: Path | str) -> bool:
    """Return whether a regular file exists at `path`; False for an invalid path."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path | str) -> bool:
    """Return whether a folder exists at `path`; False for an invalid path."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def _seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of names, dtypes, shapes, values and metadata."""
    facts = {key: value for key, value in metadata.items() if key != SEAL}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
