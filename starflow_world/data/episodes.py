"""Episodes, and the files that hold them.

An episode is one HDF5 file, `episode-000123.h5`. Its first 512 bytes (an HDF5 user block, which every HDF5 reader
skips) carry a SHA-256 of the rest, so a damaged file is recognised before the HDF5 library parses any of it. This
guards against damage, not forgery: on a file made with intent to harm, the HDF5 library may hang.
Alignment, everywhere: `actions[t]` is the action that LED TO `frames[t]`; `actions[0]` is zeros and means none.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from starflow_world.errors import DataError
from starflow_world.io.files import atomic, not_written

FORMAT = 1
HEADER = 512
MAGIC = b"starflow_world episode sha256 "
NAME = re.compile(r"episode-(\d+)\.h5")
MAX_FILE_BYTES, MAX_ARRAY_BYTES = 2**30, 2**33
MAX_SIDE = 4096
FRAMEWISE = {"actions": "float32", "rewards": "float32", "terminated": "bool", "truncated": "bool"}
DTYPES = {"frames": "uint8", **FRAMEWISE}
RANKS = {"frames": 4, "actions": 2}  # all other arrays have one axis


@dataclass(frozen=True, eq=False)
class Episode:
    """An episode from its first frame to its last: T frames of H x W pixels, flattened actions of A numbers.

    frames (T, H, W, 3) uint8: RGB. actions (T, A) float32: actions[t] led to frames[t], as `gymnasium.spaces.flatten`
    gives it (one-hot for a Discrete space); actions[0] is zeros. rewards (T,) float32: rewards[t] came with frames[t];
    rewards[0] is 0. terminated, truncated (T,) bool: may be true at the last frame only. text: the task in words, if
    there is one. space: `space_to_json` of the action space. info: facts of your own that JSON can hold.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    text: str = ""
    space: str = "{}"
    info: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frames)

    def validate(self) -> "Episode":
        """Return self, or raise DataError naming the array whose shape, dtype or values are wrong."""
        for key in DTYPES:
            _check_form(key, getattr(self, key).shape, getattr(self, key).dtype, len(self.frames))
        _check_values(*(getattr(self, key) for key in FRAMEWISE))
        _check_strings(self.text, self.space, self.info)
        return self

    def digest(self) -> str:
        """Return a SHA-256 (hex) of the content: equal exactly where every array and string is equal."""
        sha = hashlib.sha256()
        for key in DTYPES:
            array = np.ascontiguousarray(getattr(self, key))
            sha.update(f"{key} {array.dtype} {array.shape}\n".encode())
            sha.update(array.tobytes())
        sha.update(json.dumps([self.text, self.space, self.info], sort_keys=True).encode())
        return sha.hexdigest()


@dataclass(frozen=True)
class Header:
    """The facts of an episode file that are read without decompressing its frames; shape (T, H, W, 3)."""

    shape: tuple[int, ...]
    action_size: int
    text: str
    space: str


def _check_form(key: str, shape: tuple[int, ...], dtype: np.dtype, frames: int) -> None:
    """Raise DataError when an array's rank, dtype, length or size is not what the format says."""
    if dtype != DTYPES[key] or len(shape) != RANKS.get(key, 1):
        expected = f"{RANKS.get(key, 1)} axes of {DTYPES[key]}"
        raise DataError(f"{key}: expected {expected}, found shape {shape} of {dtype}; convert the array")
    if shape[0] != frames or frames == 0:
        raise DataError(f"{key}: expected one entry per frame, of one frame or more, found {shape[0]} for {frames}")
    if key == "frames" and (shape[3] != 3 or not all(1 <= side <= MAX_SIDE for side in shape[1:3])):
        raise DataError(f"frames: expected (T, H, W, 3) with sides of 1 to {MAX_SIDE}, found {shape}; resize them")
    if key == "actions" and shape[1] == 0:
        raise DataError("actions: expected at least one number per action, found none; flatten the action space")
    if int(np.prod([int(side) for side in shape], dtype=object)) * np.dtype(dtype).itemsize > MAX_ARRAY_BYTES:
        raise DataError(f"{key}: expected at most {MAX_ARRAY_BYTES} bytes, found shape {shape}; store shorter episodes")


def _check_values(actions: np.ndarray, rewards: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> None:
    """Raise DataError on numbers that are not finite, on a first frame with an action, and on an early end."""
    for key, array in (("actions", actions), ("rewards", rewards)):
        if not np.isfinite(array).all():
            raise DataError(f"{key}: expected finite numbers, found {array[~np.isfinite(array)][0]}; repair them")
    if actions[0].any() or rewards[0] != 0:
        raise DataError(f"actions[0], rewards[0]: expected zeros, since nothing led to the first frame, found "
                        f"{actions[0].tolist()!s:.80} and {rewards[0]}; actions[t] is the action that led to frames[t]")
    if terminated[:-1].any() or truncated[:-1].any():
        first = int(np.flatnonzero(terminated | truncated)[0])
        raise DataError(f"terminated, truncated: expected an end at the last frame, {len(rewards) - 1}, only, found "
                        f"one at {first}; store an episode per file")


def _check_strings(text: Any, space: Any, info: Any) -> None:
    """Raise DataError unless text is a string without NUL, space a JSON string and info a dict that JSON can hold."""
    try:
        json.loads(space)
        if "\0" in text.encode().decode():
            raise ValueError("a NUL character in text")
        if not isinstance(info, dict) or json.loads(json.dumps(info, allow_nan=False)) != info:
            raise ValueError("an info that does not survive JSON")
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"text, space, info: expected text, a JSON string and a JSON dict, found {error}") from error


def episode_path(folder: Path | str, index: int) -> Path:
    """Return the file of episode `index` in `folder`; indices begin at 0 and leave no gaps."""
    return Path(folder) / f"episode-{index:06d}.h5"


def write_episode(path: Path | str, episode: Episode) -> None:
    """Check an episode and write it atomically, to the path that `episode_path` gives; folders are made. Gzip level 4,
    frames in chunks of 8, checksum in the user block. Equal episodes give equal bytes (with equal versions of h5py and
    HDF5). Raises DataError for a broken episode, a file above 1 GiB, and a path that cannot be written."""
    episode.validate()
    try:
        with atomic(path) as temporary:
            with h5py.File(temporary, "w", userblock_size=HEADER) as file:
                chunks = (min(8, len(episode)), *episode.frames.shape[1:])
                file.create_dataset("frames", data=episode.frames, chunks=chunks, compression=4)
                for key in FRAMEWISE:
                    file.create_dataset(key, data=getattr(episode, key))
                file.attrs.update(format=FORMAT, text=episode.text, space=episode.space)
                file.attrs["info"] = json.dumps(episode.info, sort_keys=True)
            with temporary.open("rb+") as raw:
                raw.seek(HEADER)
                content = raw.read()
                if HEADER + len(content) > MAX_FILE_BYTES:
                    raise DataError(f"{path}: expected a file of at most {MAX_FILE_BYTES} bytes, found "
                                    f"{HEADER + len(content)}; store shorter episodes or smaller frames")
                raw.seek(0)
                raw.write(_seal(content))
    except OSError as error:
        raise DataError(not_written(path, error)) from error


def _seal(content: bytes | memoryview) -> bytes:
    """Return the user block (512 bytes) for the rest of a file."""
    return (MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n").ljust(HEADER, b"\0")


def _read_bytes(path: Path) -> bytes:
    """Return the content of a plain file whose checksum matches; links and special files raise without blocking."""
    if path.is_symlink():  # not every system has O_NOFOLLOW
        raise DataError("a plain file was expected, found a link")
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as file:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > MAX_FILE_BYTES:
            raise DataError(f"no plain file of at most {MAX_FILE_BYTES} bytes (mode {stat.filemode(facts.st_mode)}, "
                            f"{facts.st_size} bytes)")
        content = file.read()
    if content[:HEADER] != _seal(memoryview(content)[HEADER:]):
        raise DataError("the checksum does not fit: this is no episode file, or it is damaged")
    return content


def _array(file: h5py.File, key: str) -> h5py.Dataset:
    """Return the dataset `key`, which must lie in the file itself: HDF5 could also refer to any other file."""
    if not isinstance(file.get(key, getlink=True), h5py.HardLink) or not isinstance(array := file[key], h5py.Dataset):
        raise DataError(f"{key}: expected an array in the file itself, found none")
    facts = array.id.get_create_plist()
    if facts.get_layout() == h5py.h5d.VIRTUAL or facts.get_external_count():
        raise DataError(f"{key}: expected an array in the file itself, found a reference to another file")
    return array


@contextmanager
def _opened(path: Path) -> Iterator[tuple[dict[str, h5py.Dataset], dict[str, Any]]]:
    """Yield the arrays, form checked, and the strings of an episode file; every error becomes a DataError naming it."""
    try:
        with h5py.File.in_memory(_read_bytes(path)) as file:
            if file.attrs.get("format") != FORMAT:
                raise DataError(f"format {FORMAT} was expected, not {file.attrs.get('format')!r}")
            arrays = {key: _array(file, key) for key in DTYPES}
            for key, array in arrays.items():
                _check_form(key, array.shape, array.dtype, len(arrays["frames"]))
            strings = {key: str(file.attrs[key]) for key in ("text", "space", "info")}
            yield arrays, strings | {"info": json.loads(strings["info"])}
    except (DataError, OSError, KeyError, ValueError, TypeError, RuntimeError, RecursionError) as error:
        raise DataError(f"{path}: expected an episode, found: {error}; record it again, or copy it again from where it "
                        "came from") from error


def read_header(path: Path | str) -> Header:
    """Check everything but the pixels of an episode file and return its facts. Raises DataError naming the file."""
    with _opened(Path(path)) as (arrays, strings):
        _check_values(*(arrays[key][:] for key in FRAMEWISE))
        _check_strings(**strings)
        return Header(tuple(arrays["frames"].shape), arrays["actions"].shape[1], strings["text"], strings["space"])


def read_episode(path: Path | str) -> Episode:
    """Read and check an episode. Raises DataError naming the file for damage of any kind, links and special files."""
    with _opened(Path(path)) as (arrays, strings):
        return Episode(**{key: array[:] for key, array in arrays.items()}, **strings).validate()


def flat_actions(episode: Episode) -> Tensor:
    """Return the actions (T, 1 + A) of an episode as a world reads them: 1 and the action, or zeros for none."""
    present = np.ones((len(episode), 1), np.float32)
    present[0] = 0
    return torch.from_numpy(np.concatenate((present, episode.actions), axis=1))
