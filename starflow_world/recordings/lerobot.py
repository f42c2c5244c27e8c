"""LeRobot folders of versions 2.x and 3.x: numbers in Parquet files, pictures in MP4s or in the Parquet files.

Version 2 has a file per episode and camera. Version 3 has many episodes in a file; meta/episodes says where each lies.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from starflow_world.errors import DataError
from starflow_world.io.files import DAMAGE, is_file
from starflow_world.io.media import decode_picture, measure_video, read_video, read_video_from
from starflow_world.recordings.rows import action_columns, recording_of_rows, usual_column, wanted_columns
from starflow_world.recordings.source import Choice, Recording, Source, chosen_camera
from starflow_world.recordings.table import read_dictionaries, read_pictures, read_table

INFO = "meta/info.json"


@dataclass(frozen=True)
class Entry:
    """Where an episode lies: its rows in the table `data`, its frames in `clip` from `seconds` on."""

    index: int
    length: int
    text: str
    data: Path
    clip: Path | None
    seconds: float


class LeRobotFolder(Source):
    """A folder of the LeRobot format. The action of a row was taken at the row's frame, and leads to the next one."""

    kind = "lerobot"

    def __init__(self, folder: Path, choice: Choice) -> None:
        self.folder, self.choice = folder, choice
        self._info = info = self._read_info()
        features: dict[str, Any] = info["features"]
        self.fps = float(info["fps"])
        self.cameras = tuple(key for key, feature in features.items() if _is_camera(feature))
        self.camera = chosen_camera(str(folder / INFO), self.cameras, choice.camera)
        self._in_videos = features[self.camera]["dtype"] == "video"
        numbers = [key for key, feature in features.items() if feature.get("dtype") not in ("video", "image")]
        self._columns = [*wanted_columns(choice, numbers, str(folder / INFO)), "episode_index"]
        self._tasks = not choice.text and usual_column("text", "", numbers, "") is None
        self._by_file = str(info["codebase_version"]).startswith("v3.")
        self._measured: dict[Path, tuple[int, float]] = {}
        kinds = [features[column] for column in action_columns(choice.action, numbers, str(folder / INFO))]
        if all(str(kind.get("dtype")).startswith("float") for kind in kinds):
            size = sum(int(np.prod(kind.get("shape") or [1])) for kind in kinds)
            self.space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self._entries = self._list()
        if not self._entries:
            raise DataError(f"{folder}: expected episodes, found none")
        if choice.fps and choice.fps != self.fps:
            raise DataError(f"{folder / INFO}: expected {choice.fps:g} frames per second (--fps), found {self.fps:g}")

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"version": str(self._info["codebase_version"])}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Recording]:
        read = lru_cache(1)(partial(read_table, names=self._columns))
        for entry in self._entries:
            name, table = f"episode {entry.index} of {self.folder}", read(entry.data)
            rows = table.take(table.column("episode_index") == entry.index)
            if len(rows) != entry.length:
                raise DataError(f"{entry.data}: expected {entry.length} rows of episode {entry.index}, as its entry in "
                                f"{self.folder / 'meta'} says, found {len(rows)}")
            if entry.clip is not None:
                frames = self._measure(entry.clip)
                begin = round(entry.seconds * (self.fps or 1.0))
                if frames < begin + entry.length or (not self._by_file and frames != entry.length):
                    raise DataError(f"{entry.clip}: expected {entry.length} frames from frame {begin} on, one for each"
                                    f" row of episode {entry.index} in {entry.data}, found {frames} in all")
            first = int(rows.rows[0]) if len(rows) else 0
            yield recording_of_rows(rows, name, entry.length, partial(self.frames, entry, first), self.choice,
                                    text=entry.text, fps=self.fps)

    def frames(self, entry: Entry, first: int) -> Iterator[np.ndarray]:
        """Decode the frames of an episode, whose rows begin with row `first` of its table."""
        if entry.clip is None:
            for data in read_pictures(entry.data, self.camera, first, entry.length):
                yield decode_picture(data, str(entry.data))
        elif self._by_file:
            yield from read_video_from(entry.clip, entry.seconds, entry.length)
        else:
            yield from read_video(entry.clip, entry.length)

    def _measure(self, path: Path) -> int:
        """Return the number of frames of a video, whose rate must be that of the rows."""
        if path not in self._measured:
            self._measured[path] = measure_video(path)
        count, fps = self._measured[path]
        if abs(fps - (self.fps or 0.0)) > 0.01 * fps:
            raise DataError(f"{path}: expected {self.fps:g} frames per second, the rate of the actions in "
                            f"{self.folder / INFO}, found {fps:g}")
        return count

    def _read_info(self) -> dict[str, Any]:
        path = self.folder / INFO
        try:
            info = json.loads(_text(path))
            version, features = str(info["codebase_version"]), info["features"]
            if not version.startswith(("v2.", "v3.")):
                raise ValueError(f"version {version:.20}, expected 2.x or 3.x")
            sides = [side for feature in features.values() for side in feature.get("shape") or ()]
            if not float(info["fps"]) > 0 or not all(isinstance(side, int) for side in sides):
                raise ValueError(f"fps {info['fps']!r:.20} and features {features!r:.80}")
            return dict(info)
        except DAMAGE as damage:
            raise DataError(f"{path}: expected the description of a LeRobot folder, found {damage!r:.160}") from None

    def _path(self, pattern: str, **numbers: Any) -> Path:
        """Return a file of the folder by the pattern in its description."""
        try:
            path = self.folder / str(self._info[pattern]).format(**numbers)
            path.resolve().relative_to(self.folder.resolve())
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise DataError(f"{self.folder / INFO}: {pattern}: expected the pattern of a path in the folder, found "
                            f"{self._info.get(pattern)!r:.120} ({error!r:.60})") from None
        return path

    def _list(self) -> list[Entry]:
        place = self.folder / "meta" / ("episodes" if self._by_file else "episodes.jsonl")
        try:
            entries = [*map(self._entry_of_file, _rows(place))] if self._by_file else [
                self._entry(json.loads(line)) for line in _text(place).splitlines() if line.strip()
            ]
        except DAMAGE as damage:
            raise DataError(f"{place}: expected the list of episodes, found {damage!r:.160}") from None
        return sorted(entries, key=lambda entry: entry.index)

    def _entry(self, row: dict[str, Any]) -> Entry:
        """Return an episode of version 2."""
        index = int(row["episode_index"])
        numbers = {"episode_chunk": index // max(1, int(self._info.get("chunks_size", 1000))), "episode_index": index}
        video = self._path("video_path", **numbers, video_key=self.camera) if self._in_videos else None
        return Entry(index, int(row["length"]), self._task(row), self._path("data_path", **numbers), video, 0.0)

    def _entry_of_file(self, row: dict[str, Any]) -> Entry:
        """Return an episode of version 3."""
        data, pictures = ({part: int(row[f"{key}/{part}"]) for part in ("chunk_index", "file_index")} if key else {}
                          for key in ("data", f"videos/{self.camera}" if self._in_videos else ""))
        video = self._path("video_path", **pictures, video_key=self.camera) if self._in_videos else None
        seconds = float(row[f"videos/{self.camera}/from_timestamp"]) if self._in_videos else 0.0
        return Entry(int(row["episode_index"]), int(row["length"]), self._task(row), self._path("data_path", **data),
                     video, seconds)

    def _task(self, row: dict[str, Any]) -> str:
        """Return the task of an episode, where no column says it."""
        tasks = list(dict.fromkeys(str(task) for task in row.get("tasks") or ())) if self._tasks else []
        if len(tasks) > 1:
            raise DataError(f"{self.folder}: expected one task in episode {row['episode_index']}, found {len(tasks)}: "
                            f"{', '.join(tasks):.160}; name a column with --text, or leave the texts out: --text none")
        return tasks[0] if tasks else ""


def _is_camera(feature: dict[str, Any]) -> bool:
    """Return whether a feature has colour pictures; maps of depth do not count."""
    facts = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    depth = facts.get("is_depth_map") or facts.get("video.is_depth_map")
    return feature.get("dtype") in ("video", "image") and not depth


def _text(path: Path) -> str:
    """Return the content of a plain file: reading a pipe would wait for ever."""
    if not is_file(path):
        raise ValueError("no file")
    return path.read_text(encoding="utf-8")


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of the tables of episodes of version 3, without statistics."""
    paths = sorted(folder.rglob("*.parquet"))
    if not paths:
        raise DataError(f"{folder}: expected Parquet files, found none")
    for path in paths:
        yield from read_dictionaries(path, lambda name: not name.startswith("stats/"))
