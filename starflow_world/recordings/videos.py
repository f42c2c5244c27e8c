"""A folder of videos with tables of actions: a row per frame, in a table per video or in one for all."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from starflow_world.errors import DataError
from starflow_world.io.media import measure_video, read_video
from starflow_world.recordings.rows import recording_of_rows
from starflow_world.recordings.source import Choice, Recording, Source, chosen_camera
from starflow_world.recordings.table import TABLES, Table, read_table

VIDEO_COLUMNS = ("video", "file", "filename")


class VideoFolder(Source):
    """MP4 files. Each has a table of its name beside it (`a.mp4`, `a.csv`), or one table of the folder has a column
    `video` with the names of the files."""

    kind = "videos"

    def __init__(self, folder: Path, choice: Choice) -> None:
        self.folder, self.choice, self.cameras = folder, choice, ("video",)
        self.camera = chosen_camera(str(folder), self.cameras, choice.camera)
        self._videos = sorted(folder.glob("*.mp4"))
        if not self._videos:
            raise DataError(f"{folder}: expected MP4 files, found none")
        self._tables = {video: table for video in self._videos for suffix in TABLES
                        if (table := video.with_suffix(suffix)).is_file()}
        self._common = None if self._tables else self._common_table()
        if self._tables and (missing := [video for video in self._videos if video not in self._tables]):
            raise DataError(f"{missing[0]}: expected a table {missing[0].stem}.csv or .parquet beside it, as other "
                            "videos have, found none")
        self._measured: dict[Path, tuple[int, float]] = {}
        self.fps = self._measure(self._videos[0])[1]

    def __len__(self) -> int:
        return len(self._videos)

    def __iter__(self) -> Iterator[Recording]:
        for video in self._videos:
            length, fps = self._measure(video)
            if self.choice.fps and abs(fps - self.choice.fps) > 0.01 * fps:
                raise DataError(f"{video}: expected {self.choice.fps:g} frames per second, the rate of the actions "
                                f"(--fps), found {fps:g}; write one row per frame")
            table = self._rows(video)
            yield recording_of_rows(table, str(video), length, partial(read_video, video, length), self.choice,
                                    fps=fps)

    def _measure(self, video: Path) -> tuple[int, float]:
        """Return the number of frames and the rate of a video; its file is read once."""
        if video not in self._measured:
            self._measured[video] = measure_video(video)
        return self._measured[video]

    def _rows(self, video: Path) -> Table:
        if self._common is None:
            return read_table(self._tables[video])
        table, names = self._common
        rows = table.take(names == video.name)
        if not len(rows):
            raise DataError(f"{table.path}: expected rows of {video.name}, found none")
        return rows

    def _common_table(self) -> tuple[Table, np.ndarray]:
        """Return the one table of the folder, and the name of the file of each row."""
        tables = sorted(path for path in self.folder.iterdir() if path.suffix in TABLES)
        if len(tables) != 1:
            raise DataError(f"{self.folder}: expected a table (.csv, .parquet) for each video, or one for all, found "
                            f"{', '.join(path.name for path in tables) or 'none'}")
        table = read_table(tables[0])
        column = next((name for name in VIDEO_COLUMNS if name in table.columns), "")
        if not column:
            raise DataError(f"{tables[0]}: expected a column {VIDEO_COLUMNS[0]} with the names of the files, found "
                            f"{', '.join(table.columns):.400}")
        names = np.array([str(name) for name in table.columns.pop(column)], dtype=object)
        known = {video.name for video in self._videos} | {video.stem for video in self._videos}
        strange = next((row for row, name in enumerate(names) if name not in known), None)
        if strange is not None:
            raise DataError(f"{table.where(strange)}: {column}: expected the name of a file in {self.folder}, found "
                            f"{names[strange]!r:.80}")
        return table, np.array([name if name.endswith(".mp4") else f"{name}.mp4" for name in names], dtype=object)
