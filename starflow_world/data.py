"""Episodes on disk, and a memory-mapped copy of them for training.

One episode is one HDF5 file, `episode-000123.h5`. Its first 512 bytes (an HDF5 user block, which every HDF5 reader
skips) carry a SHA-256 of the rest, so a damaged file is recognised before the HDF5 library parses any of it.
Damage, not forgery: on a file made with intent to harm, checksum included, the HDF5 library may hang.
Alignment, everywhere: `actions[t]` is the action that LED TO `frames[t]`; `actions[0]` is zeros and means none.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from starflow_world.errors import DataError
from starflow_world.files import TEMPORARY, atomic, write_text

FORMAT = 1
HEADER = 512
MAGIC = b"starflow_world episode sha256 "
NAME = re.compile(r"episode-(\d+)\.h5")
MAX_FILE_BYTES, MAX_ARRAY_BYTES = 2**30, 2**33
MAX_SIDE = 4096
FRAMEWISE = {"actions": "float32", "rewards": "float32", "terminated": "bool", "truncated": "bool"}
DTYPES = {"frames": "uint8", **FRAMEWISE}
RANKS = {"frames": 4, "actions": 2}  # the others have one axis
MAPPED = ("frames", "actions", "rewards", "terminated")


@dataclass(frozen=True, eq=False)
class Episode:
    """Frames, actions, rewards and ends from a start to its end; T frames of H x W pixels, flat actions of size A.

    frames (T, H, W, 3) uint8, actions (T, A) float32, rewards (T,) float32, terminated and truncated (T,) bool.
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
        """Return self, or raise DataError saying which promise about shapes, dtypes or values is broken."""
        for key in DTYPES:
            _check_form(key, getattr(self, key).shape, getattr(self, key).dtype, len(self.frames))
        _check_values(*(getattr(self, key) for key in FRAMEWISE))
        _check_strings(self.text, self.space, self.info)
        return self

    def digest(self) -> str:
        """SHA-256 (hex) of the content: equal for two episodes exactly when every array and string is equal."""
        sha = hashlib.sha256()
        for key in DTYPES:
            array = np.ascontiguousarray(getattr(self, key))
            sha.update(f"{key} {array.dtype} {array.shape}\n".encode())
            sha.update(array.tobytes())
        sha.update(json.dumps([self.text, self.space, self.info], sort_keys=True).encode())
        return sha.hexdigest()


@dataclass(frozen=True)
class Header:
    """What is known of an episode file without decompressing its frames."""

    shape: tuple[int, ...]
    action_size: int
    text: str
    space: str


def _check_form(key: str, shape: tuple[int, ...], dtype: np.dtype, frames: int) -> None:
    """Raise DataError when an array's rank, dtype, length or size is not what the format says."""
    if dtype != DTYPES[key] or len(shape) != RANKS.get(key, 1):
        want = f"{RANKS.get(key, 1)} axes of {DTYPES[key]}"
        raise DataError(f"{key}: expected {want}, found shape {shape} of {dtype}; convert the array")
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
        raise DataError("actions[0], rewards[0]: expected zeros, since nothing led to the first frame, found others; "
                        "actions[t] must be the action that led to frames[t]")
    if terminated[:-1].any() or truncated[:-1].any():
        raise DataError("terminated, truncated: expected ends at the last frame only, found an earlier one; split it")


def _check_strings(text: Any, space: Any, info: Any) -> None:
    """Raise DataError unless text is plain text, space is a JSON string and info a dict that JSON can hold."""
    try:
        json.loads(space)
        if "\0" in text.encode().decode():
            raise ValueError("a NUL character in text")
        if not isinstance(info, dict) or json.loads(json.dumps(info, allow_nan=False)) != info:
            raise ValueError("an info that does not survive JSON")
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"text, space, info: expected text, a JSON string and a JSON dict, found {error}") from error


def episode_path(folder: Path | str, index: int) -> Path:
    """The file of episode `index` in `folder`."""
    return Path(folder) / f"episode-{index:06d}.h5"


def write_episode(path: Path | str, episode: Episode) -> None:
    """Write a valid episode atomically: gzip level 4, frames in chunks of 8, checksum in the user block.

    Equal episodes give equal bytes (with equal versions of h5py and HDF5). Raises DataError when it cannot be written.
    """
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
                line = MAGIC + hashlib.sha256(raw.read()).hexdigest().encode() + b"\n"
                raw.seek(0)
                raw.write(line.ljust(HEADER, b"\0"))
    except OSError as error:
        raise DataError(f"{path}: expected to write an episode, found {error}; make room for it") from error


def _read_bytes(path: Path) -> bytes:
    """The checked content of a plain file: no link is followed, nothing that is not a file is read, nothing blocks."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as file:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > MAX_FILE_BYTES:
            raise DataError(f"a plain file of at most {MAX_FILE_BYTES} bytes was expected")
        content = file.read()
    line = MAGIC + hashlib.sha256(memoryview(content)[HEADER:]).hexdigest().encode() + b"\n"
    if content[:HEADER] != line.ljust(HEADER, b"\0"):
        raise DataError("the checksum does not fit: this is no episode file, or it is damaged")
    return content


def _array(file: h5py.File, key: str) -> h5py.Dataset:
    """The dataset `key`, which must lie in the file itself: HDF5 could also refer to any other file."""
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
        raise DataError(f"{path}: expected an episode, found: {error}. Collect this episode again, or leave it out "
                        "with skip_bad=True") from error


def read_header(path: Path | str) -> Header:
    """Check everything but the pixels of an episode file and return its facts; DataError names the file."""
    with _opened(Path(path)) as (arrays, strings):
        _check_values(*(arrays[key][:] for key in FRAMEWISE))
        _check_strings(**strings)
        return Header(tuple(arrays["frames"].shape), arrays["actions"].shape[1], strings["text"], strings["space"])


def read_episode(path: Path | str) -> Episode:
    """Read and check one episode; DataError names the file for damage of any kind, links and special files."""
    with _opened(Path(path)) as (arrays, strings):
        return Episode(**{key: array[:] for key, array in arrays.items()}, **strings).validate()


@dataclass(frozen=True)
class Windows:
    """A memory-mapped copy of a dataset: N frames of all E episodes end to end. All arrays are read-only.

    frames (N, H, W, 3) uint8, actions (N, A) float32, rewards (N,) float32, terminated (N,) bool;
    offsets (E,) and lengths (E,) int64: episode e is offsets[e] : offsets[e] + lengths[e]; one text per episode.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    texts: tuple[str, ...]
    action_space_json: str

    def window(self, episode: int, start: int, length: int) -> dict[str, np.ndarray]:
        """Own copies of frames, actions, rewards and terminated, rows start : start + length of one episode.

        actions[0] of a window that starts in mid-episode is the action that led into it. Raises DataError when the
        episode has fewer frames than asked for.
        """
        episodes = len(self.lengths)
        if not (0 <= episode < episodes and 0 <= start and 0 < length and start + length <= self.lengths[episode]):
            raise DataError(f"expected a window inside one of {episodes} episodes, found {episode=} {start=} {length=}")
        rows = slice(begin := int(self.offsets[episode]) + start, begin + length)
        return {key: getattr(self, key)[rows].copy() for key in MAPPED}


class EpisodeDataset:
    """The episodes of a folder in the order of their indices; every file is checked once, frames are read when asked.

    A damaged or missing episode, or one whose frame size or space differs from the first, is a DataError;
    with skip_bad it is left out and `bad` maps its file name to the reason. `texts` has one text per episode, `lengths`
    (E,) int64 the frames of each, `action_space_json` the space they share, as the opaque JSON they were written with.
    """

    def __init__(self, folder: Path | str, *, skip_bad: bool = False) -> None:
        self.folder = Path(folder)
        self.bad: dict[str, str] = {}
        self.paths: list[Path] = []
        self._headers: list[Header] = []
        for path in self._list():
            try:
                self._add(path)
            except DataError as error:
                if not skip_bad:
                    raise
                self.bad[path.name] = str(error)
        if not self.paths:
            raise DataError(f"{folder}: expected at least one good episode, found none; collect episodes into it first")
        self.texts = tuple(header.text for header in self._headers)
        self.lengths = np.array([header.shape[0] for header in self._headers], dtype=np.int64)
        self.action_space_json = self._headers[0].space

    def _list(self) -> list[Path]:
        """All episode paths from index 0 to the highest, missing ones included."""
        try:
            names = sorted(os.listdir(self.folder))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.folder}: expected a folder of episodes, found {error}; collect one") from error
        found: dict[int, str] = {}
        for name in names:
            match = NAME.fullmatch(name)
            if match and (other := found.setdefault(int(match[1]), name)) != name:
                raise DataError(f"{self.folder}: expected one file per index, found {other} and {name}; remove one")
        if found and max(found) > 10 * len(found) + 1000:
            raise DataError(f"{self.folder}: expected indices without large gaps, found {found[max(found)]}; renumber")
        return [self.folder / found.get(i, episode_path("", i).name) for i in range(max(found, default=-1) + 1)]

    def _add(self, path: Path) -> None:
        """Check one file against itself and against the first of the dataset."""
        header = read_header(path)
        self._headers.append(header)
        mine, first = ((h.shape[1:], h.action_size, h.space) for h in (header, self._headers[0]))
        if mine != first:
            self._headers.pop()
            raise DataError(f"{path}: expected the frame size and space {first} of the first episode, found {mine}")
        self.paths.append(path)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Episode:
        return read_episode(self.paths[index])

    def key(self) -> str:
        """Digest over the names, sizes and modification times of the files: changes when any file does."""
        facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.paths]
        return hashlib.sha256(json.dumps([FORMAT, str(self.folder.resolve()), facts]).encode()).hexdigest()[:24]

    def memory_map(self, cache_folder: Path | str | None = None) -> Windows:
        """The uncompressed copy of this dataset, built once per content, in `cache_folder` (default: folder/.cache)."""
        cache = Path(cache_folder) if cache_folder is not None else self.folder / ".cache"
        target = cache / f"windows-{self.key()}"
        try:
            return self._open(target)
        except (OSError, ValueError, KeyError, TypeError):
            shutil.rmtree(target, ignore_errors=True)
        if cache_folder is None:
            for stale in cache.glob("windows-*"):
                shutil.rmtree(stale, ignore_errors=True)
        cache.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=cache))
        try:
            self._build(building)
            os.rename(building, target)
        except OSError as error:
            if not target.exists():  # else another process was faster, with the same content
                raise DataError(f"{target}: expected to write here, found {error}; give a cache_folder") from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return self._open(target)

    def _build(self, folder: Path) -> None:
        """Write the arrays of all episodes end to end as .npy files, then the index."""
        total, first = int(self.lengths.sum()), self._headers[0]
        shapes = {"frames": (total, *first.shape[1:]), "actions": (total, first.action_size)}
        create = np.lib.format.open_memmap
        arrays = {key: create(folder / f"{key}.npy", "w+", DTYPES[key], shapes.get(key, (total,))) for key in MAPPED}
        for path, end in zip(self.paths, np.cumsum(self.lengths), strict=True):
            episode = read_episode(path)
            for key, array in arrays.items():
                array[end - len(episode):end] = getattr(episode, key)
        for array in arrays.values():
            array.flush()
        index = {"lengths": self.lengths.tolist(), "texts": self.texts, "space": self.action_space_json}
        write_text(folder / "index.json", json.dumps(index))

    def _open(self, folder: Path) -> Windows:
        """Map a finished copy; OSError, ValueError or KeyError when it is not there or not whole."""
        index = json.loads((folder / "index.json").read_text())
        lengths = np.array(index["lengths"], dtype=np.int64)
        arrays = {key: np.asarray(np.load(folder / f"{key}.npy", mmap_mode="r", allow_pickle=False)) for key in MAPPED}
        if any(len(array) != lengths.sum() or array.dtype != DTYPES[key] for key, array in arrays.items()):
            raise ValueError("a memory-mapped copy that is not whole")
        return Windows(**arrays, offsets=np.cumsum(lengths) - lengths, lengths=lengths, texts=tuple(index["texts"]),
                       action_space_json=index["space"])
