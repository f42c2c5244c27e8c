"""Tables of numbers and words, CSV or Parquet, whose errors name the file and the row."""

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from starflow_world.errors import DataError
from starflow_world.io.files import DAMAGE, is_file

TABLES = (".csv", ".parquet")
WORDS = {"true": True, "false": False}


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of N rows: (N,) or (N, A) numbers, or (N,) strings (dtype object); rows (N,): their numbers in the file,
    from 0, without the header."""

    path: Path
    columns: dict[str, np.ndarray]
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, row: int) -> str:
        """Return the name of the file and of row `row` of this table, for a CSV also of its line."""
        number = int(self.rows[row]) if row < len(self.rows) else row
        return f"{self.path}: row {number}" + (f" (line {number + 2})" if self.path.suffix == ".csv" else "")

    def take(self, mask: np.ndarray) -> "Table":
        """Return the rows where `mask` (N,) is true."""
        return Table(self.path, {name: column[mask] for name, column in self.columns.items()}, self.rows[mask])

    def column(self, name: str) -> np.ndarray:
        """Return a column. Raises DataError naming those that there are."""
        if name not in self.columns:
            raise DataError(f"{self.path}: expected a column {name!r:.80}, found {', '.join(self.columns):.400}")
        return self.columns[name]

    def numbers(self, name: str) -> np.ndarray:
        """Return a column of finite numbers or truth values. Raises DataError naming the row of anything else."""
        column = self.column(name)
        if column.dtype.kind not in "biuf":
            wrong = next((row for row, cell in enumerate(column) if _parsed(str(cell)) is None), 0)
            raise DataError(f"{self.where(wrong)}: {name}: expected a number, found {column[wrong]!r:.80}")
        finite = np.isfinite(column).reshape(len(column), -1).all(axis=1)
        if not finite.all():
            wrong = int(np.flatnonzero(~finite)[0])
            raise DataError(f"{self.where(wrong)}: {name}: expected finite numbers, found {column[wrong]!s:.80}")
        return column


def read_table(path: Path, names: Iterable[str] | None = None) -> Table:
    """Read a CSV with a header, or columns of a Parquet file (None: all but pictures). Raises DataError."""
    _check_file(path)
    columns = _read_csv(path) if path.suffix == ".csv" else _read_parquet(path, names)
    rows = len(next(iter(columns.values()), ()))
    return Table(path, columns, np.arange(rows))


def column_names(path: Path) -> list[str]:
    """Return the names of the columns of a Parquet file. Raises DataError."""
    import pyarrow.parquet as pq

    _check_file(path)
    try:
        return list(pq.read_schema(path).names)
    except DAMAGE as error:
        raise DataError(f"{path}: expected a Parquet file, found {_said(error)}; fetch it again") from None


def read_dictionaries(path: Path, wanted: Callable[[str], bool]) -> list[dict[str, Any]]:
    """Return the rows of a Parquet file as dictionaries of the wanted columns. Raises DataError."""
    import pyarrow.parquet as pq

    names = [name for name in column_names(path) if wanted(name)]
    try:
        return list(pq.read_table(path, columns=names).to_pylist())
    except DAMAGE as error:
        raise DataError(f"{path}: expected a Parquet file, found {_said(error)}; fetch it again") from None


def read_pictures(path: Path, column: str, first: int, count: int) -> Iterator[bytes]:
    """Yield the encoded pictures in `count` rows of a Parquet file from row `first` on; row groups without them
    are not read. Raises DataError naming the row."""
    import pyarrow.parquet as pq

    _check_file(path)
    row, stop = 0, first + count
    try:
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if row + size <= first or row >= stop:
                row += size
                continue
            for batch in file.iter_batches(16, row_groups=[group], columns=[column]):
                for cell in batch.column(0):
                    if first <= row < stop:
                        yield _picture(cell.as_py(), f"{path}: row {row}: {column}")
                    row += 1
    except DAMAGE as error:
        raise DataError(f"{path}: expected a Parquet file, found {_said(error)}; fetch it again") from None


def _picture(cell: Any, where: str) -> bytes:
    """Return the bytes of a picture, which LeRobot keeps in a structure with its path."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise DataError(f"{where}: expected the bytes of a picture, found {cell!r:.80}")
    return data


def _read_csv(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a CSV, of the narrowest type that holds all cells: truth values, integers, floats, text."""
    cells: list[list[str]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            names = [name.strip() for name in next(reader, [])]
            for row, line in enumerate(reader):
                if len(line) != len(names):
                    raise DataError(f"{path}: row {row} (line {row + 2}): expected {len(names)} cells, as in the "
                                    f"header, found {len(line)}")
                cells.append(line)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: expected a CSV with a header, found {_said(error)}") from None
    if len(set(names)) != len(names) or not names or not all(names):
        raise DataError(f"{path}: expected a header of different names, found {names!s:.120}")
    columns = zip(*cells, strict=True) if cells else ((),) * len(names)
    return {name: _typed(column) for name, column in zip(names, columns, strict=True)}


def _typed(cells: tuple[str, ...]) -> np.ndarray:
    values = [_parsed(cell) for cell in cells]
    if any(value is None for value in values):
        return np.array(cells, dtype=object)
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return np.array(values, dtype=bool)
    return np.array(values, dtype=np.int64 if kinds <= {int, bool} and kinds else np.float64)


def _parsed(cell: str) -> bool | int | float | None:
    """Return a truth value, an integer of 64 bits or a float; None for other text."""
    word = cell.strip().lower()
    if word in WORDS:
        return WORDS[word]
    try:
        number = int(word)
        return number if -(2**63) <= number < 2**63 else float(number)
    except ValueError:
        pass
    try:
        return float(word)
    except ValueError:
        return None


def _read_parquet(path: Path, names: Iterable[str] | None) -> dict[str, np.ndarray]:
    import pyarrow.parquet as pq

    known = column_names(path)
    wanted = known if names is None else list(dict.fromkeys(names))
    if missing := [name for name in wanted if name not in known]:
        raise DataError(f"{path}: expected a column {missing[0]!r:.80}, found {', '.join(known):.400}")
    try:
        table = pq.read_table(path, columns=wanted)
    except DAMAGE as error:
        raise DataError(f"{path}: expected a Parquet file, found {_said(error)}; fetch it again") from None
    columns = {name: _column(path, name, table.column(name)) for name in wanted}
    return {name: column for name, column in columns.items() if column is not None}


def _column(path: Path, name: str, chunks: Any) -> np.ndarray | None:
    """Return a column as an array; None for pictures and other structures."""
    import pyarrow as pa

    array = pa.concat_arrays(chunks.chunks) if chunks.num_chunks else pa.array([], chunks.type)
    kind, plain = array.type, pa.types
    if plain.is_struct(kind) or plain.is_binary(kind) or plain.is_large_binary(kind):
        return None
    if array.null_count:
        raise DataError(f"{path}: row {array.is_null().to_pylist().index(True)}: {name}: expected a value, found none")
    if plain.is_list(kind) or plain.is_large_list(kind) or plain.is_fixed_size_list(kind):
        cells = array.to_pylist() if plain.is_nested(kind.value_type) else None
        if cells is not None:
            return np.array(cells, dtype=object)
        lengths = array.value_lengths().to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero(lengths != lengths[0]) if len(lengths) else np.zeros(0, np.int64)
        if len(wrong):
            raise DataError(f"{path}: row {wrong[0]}: {name}: expected {lengths[0]} numbers as in row 0, found "
                            f"{lengths[wrong[0]]}")
        flat = array.flatten()
        if flat.null_count:
            row = flat.is_null().to_pylist().index(True) // int(lengths[0])
            raise DataError(f"{path}: row {row}: {name}: expected numbers, found none")
        numbers = flat.to_numpy(zero_copy_only=False)
        return numbers.reshape(len(array), -1) if len(array) else numbers.reshape(0, 0)
    if plain.is_integer(kind) or plain.is_floating(kind) or plain.is_boolean(kind):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    return np.array(array.to_pylist(), dtype=object)


def _check_file(path: Path) -> None:
    if not is_file(path):
        raise DataError(f"{path}: expected a file, found none; fetch it again")


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
