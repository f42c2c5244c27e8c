"""Folders of episodes, their memory-mapped copies for training, and the record of their source environment."""

import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from starflow_world.data.episodes import DTYPES, FORMAT, NAME, Episode, Header, episode_path, read_episode, read_header
from starflow_world.errors import DataError
from starflow_world.io.files import DAMAGE, TEMPORARY, write_text

MAPPED = ("frames", "actions", "rewards", "terminated")
COLLECTION = "collection.json"
ORIGIN = ("env", "env_kwargs", "wrappers", "frame_size", "max_steps", "reward", "view", "source")


def origin(folder: Path | str) -> dict[str, Any]:
    """Return the record of where a folder's episodes come from, which `collect` or `data import` wrote into
    collection.json.

    The keys are those of ORIGIN that the file has: id of the environment, its keyword arguments, its wrappers, side of
    a frame in pixels, step limit (absent: the environment's own), reward mode and view (absent: render); or the source
    of imported recordings. Returns {} for a folder without that file. Raises DataError for a damaged file.
    """
    path = Path(folder) / COLLECTION
    if not path.exists():
        return {}
    try:
        recipe = json.loads(path.read_text(encoding="utf-8")).get("recipe", {})
        if type(recipe.get("max_steps")) not in (int, type(None)):
            raise ValueError(f"max_steps {recipe['max_steps']!r}")
        return {key: recipe[key] for key in ORIGIN if recipe.get(key) is not None}
    except DAMAGE as damage:
        raise DataError(f"{path}: expected the record of a collection, found {damage!r:.120}; collect again") from None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of the installed packages among `packages`, for the record of what made episodes."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True)
class Windows:
    """A memory-mapped, read-only copy of a dataset: the N frames of all E episodes end to end. frames (N, H, W, 3)
    uint8, actions (N, A) float32, rewards (N,) float32, terminated (N,) bool; offsets (E,) and lengths (E,) int64:
    episode e is offsets[e] : offsets[e] + lengths[e]; texts (E)."""

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    texts: tuple[str, ...]
    action_space_json: str

    def window(self, episode: int, start: int, length: int) -> dict[str, np.ndarray]:
        """Return copies of frames, actions, rewards and terminated, rows start : start + length of an episode.
        actions[0] of a window that starts in mid-episode is the action that led to its first frame. Raises DataError
        for a window beyond the episode."""
        episodes = len(self.lengths)
        if not (0 <= episode < episodes and 0 <= start and 0 < length and start + length <= self.lengths[episode]):
            raise DataError(f"expected a window inside one of {episodes} episodes, found {episode=} {start=} {length=}")
        rows = slice(begin := int(self.offsets[episode]) + start, begin + length)
        return {key: getattr(self, key)[rows].copy() for key in MAPPED}


class EpisodeDataset:
    """The E episodes of a folder in the order of their indices; dataset[i] reads an `Episode`.

    Every file is checked when the dataset is made; frames are read when asked for. A damaged or missing episode, or one
    whose frame size or action space differs from the first, raises DataError; with `skip_bad` it is left out, and `bad`
    maps its file name to the reason. texts (E), lengths (E,) int64 in frames, action_space_json: the space they share.
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
        """Return all episode paths from index 0 to the highest, missing ones included."""
        try:
            names = sorted(os.listdir(self.folder))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.folder}: expected a folder of episodes, found {error}; collect one") from error
        files: dict[int, str] = {}
        for name in names:
            match = NAME.fullmatch(name)
            if match and (other := files.setdefault(int(match[1]), name)) != name:
                raise DataError(f"{self.folder}: expected one file per index, found {other} and {name}; remove one")
        if files and max(files) > 10 * len(files) + 1000:
            raise DataError(f"{self.folder}: expected indices without large gaps, found {files[max(files)]}; renumber")
        return [self.folder / files.get(i, episode_path("", i).name) for i in range(max(files, default=-1) + 1)]

    def _add(self, path: Path) -> None:
        """Check the content of one file, and its agreement with the first file of the dataset."""
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
        """Return a digest over the names, sizes and modification times of the files."""
        facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.paths]
        return hashlib.sha256(json.dumps([FORMAT, str(self.folder.resolve()), facts]).encode()).hexdigest()[:24]

    def memory_map(self, cache_folder: Path | str | None = None) -> Windows:
        """Return the uncompressed copy of this dataset in `cache_folder` (default: folder/.cache), built once. Raises
        DataError if it cannot be written."""
        cache = Path(cache_folder) if cache_folder is not None else self.folder / ".cache"
        target = cache / f"windows-{self.key()}"
        try:
            return self._open(target)
        except (OSError, ValueError, KeyError, TypeError):
            shutil.rmtree(target, ignore_errors=True)
        if cache_folder is None:
            for stale in cache.glob("windows-*"):
                shutil.rmtree(stale, ignore_errors=True)
        building = cache / f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            building.mkdir(parents=True)
            self._build(building)
            os.rename(building, target)
        except OSError as error:
            if not target.exists():  # else another process was faster, with the same content
                size = int(self.lengths.sum()) * math.prod(self._headers[0].shape[1:]) >> 20
                raise DataError(f"{cache}: expected to write the uncompressed frames here ({size} MiB), found {error}; "
                                "give a folder with room: train --cache, memory_map(cache_folder)") from error
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
        """Map a finished copy; raises OSError, ValueError or KeyError if it is missing or incomplete."""
        index = json.loads((folder / "index.json").read_text())
        lengths = np.array(index["lengths"], dtype=np.int64)
        arrays = {key: np.asarray(np.load(folder / f"{key}.npy", mmap_mode="r", allow_pickle=False)) for key in MAPPED}
        if any(len(array) != lengths.sum() or array.dtype != DTYPES[key] for key, array in arrays.items()):
            raise ValueError("an incomplete memory-mapped copy")
        return Windows(**arrays, offsets=np.cumsum(lengths) - lengths, lengths=lengths, texts=tuple(index["texts"]),
                       action_space_json=index["space"])
