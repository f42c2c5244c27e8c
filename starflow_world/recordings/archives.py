"""NumPy archives (.npz): one recording per file, read row by row."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from starflow_world.errors import DataError
from starflow_world.io.files import is_file
from starflow_world.recordings.rows import USUAL, action_columns, recording_of_rows, wanted_columns
from starflow_world.recordings.source import NONE, Choice, Recording, Source, chosen_camera
from starflow_world.recordings.table import Table

SMALLEST_SIDE = 8
MOST_ROW_BYTES, MOST_BYTES = 1 << 28, 1 << 30
"""Largest frame, and largest array of anything else, that is decompressed."""


class ArchiveFolder(Source):
    """A folder of .npz files, or one file. An archive has frames (T, H, W, 3), T or T - 1 actions, and may have as many
    rewards and ends, and a text."""

    kind = "archives"

    def __init__(self, place: Path, choice: Choice) -> None:
        self.folder, self.choice = place, choice
        self._paths = [place] if place.is_file() else sorted(place.glob("*.npz"))
        if not self._paths:
            raise DataError(f"{place}: expected .npz files, found none")
        shapes = array_shapes(self._paths[0])
        self.cameras = tuple(name for name, shape in shapes.items() if _is_video(shape))
        self.camera = chosen_camera(str(self._paths[0]), self.cameras, choice.camera)

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[Recording]:
        for path in self._paths:
            shapes = array_shapes(path)
            if self.camera not in shapes or not _is_video(shapes[self.camera]):
                raise DataError(f"{path}: expected an array {self.camera!r} of frames (T, H, W, 3), found {shapes}")
            words = self.choice.text or next((name for name in USUAL["text"] if name in shapes), "")
            with _opened(path) as archive:
                text = str(archive[words]) if shapes.get(words) == () else ""
            choice = replace(self.choice, text=NONE) if text else self.choice
            length = shapes[self.camera][0]
            table = _steps(path, [name for name in shapes if shapes[name] and name not in self.cameras], choice, length)
            yield recording_of_rows(table, str(path), length, partial(read_rows, path, self.camera), choice, text=text)


def _steps(path: Path, names: list[str], choice: Choice, length: int) -> Table:
    """Return the arrays that describe the steps to `length` frames as a table.

    Rewards and ends that have an entry per frame, where actions have none for the first, lose their first.
    """
    wanted = wanted_columns(choice, names, str(path))
    with _opened(path) as archive:
        columns = {name: archive[name] for name in wanted}
    actions = action_columns(choice.action, names, str(path))
    rows = len(columns[actions[0]])
    for name, column in columns.items():
        if len(column) == length == rows + 1:
            columns[name] = column[1:]
        elif len(column) != rows:
            raise DataError(f"{path}: {name}: expected {rows} entries, as many as {actions[0]} has, found "
                            f"{len(column)}")
        if column.dtype.kind not in "biuf":
            columns[name] = columns[name].astype(object)
    return Table(path, columns, np.arange(rows))


def array_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays of an archive, without decompressing them. Raises DataError."""
    shapes = {}
    with _opened(path) as archive:
        for name in archive.files:
            with archive.zip.open(f"{name}.npy") as file:
                shape, _, dtype = _header(file)
            row = int(np.prod([int(side) for side in shape[1:]], dtype=object)) * dtype.itemsize
            if row > MOST_ROW_BYTES or row * (shape[0] if shape and not _is_video(shape) else 1) > MOST_BYTES:
                raise ValueError(f"{name}: an array {shape} of {dtype}, larger than any recording's")
            shapes[name] = shape
    return shapes


def read_rows(path: Path, name: str) -> Iterator[np.ndarray]:
    """Yield the rows of one array of an archive, decompressed one after the other. Raises DataError."""
    with _opened(path) as archive, archive.zip.open(f"{name}.npy") as file:
        shape, by_column, dtype = _header(file)
        if by_column or dtype.hasobject:
            raise ValueError(f"{name}: an array in Fortran order or of objects; store it with np.ascontiguousarray")
        size = int(np.prod(shape[1:])) * dtype.itemsize
        for row in range(shape[0]):
            data = file.read(size)
            if len(data) != size:
                raise ValueError(f"{name}: {row} whole rows of {shape[0]}")
            yield np.frombuffer(data, dtype).reshape(shape[1:])


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open an archive; what goes wrong with it becomes a DataError naming it."""
    try:
        if not is_file(path):
            raise ValueError("no file")
        with np.load(path, allow_pickle=False) as archive:
            if not hasattr(archive, "zip"):
                raise ValueError("a single array")
            yield archive
    except DataError:
        raise
    except Exception as error:  # zipfile and zlib have errors of their own
        raise DataError(f"{path}: expected a NumPy archive, found {error!s:.160}") from None


def _is_video(shape: tuple[int, ...]) -> bool:
    """Return whether an array of this shape is a row of pictures."""
    return len(shape) == 4 and (shape[3] in (1, 3, 4) or shape[1] in (1, 3)) and max(shape[1:]) >= SMALLEST_SIDE
