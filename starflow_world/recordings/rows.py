"""Recordings from tables with a row per frame: which columns mean what, and which row leads to which frame."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from starflow_world.errors import DataError
from starflow_world.recordings.source import NONE, Choice, Recording
from starflow_world.recordings.table import Table

USUAL = {
    "action": ("action", "actions"),
    "reward": ("reward", "rewards", "next.reward"),
    "end": ("terminated", "terminations", "terminal", "is_terminal", "next.success", "done", "dones", "next.done"),
    "text": ("text", "task", "mission", "instruction", "language_instruction"),
    "time": ("timestamp", "time"),
    "frame": ("frame_index", "frame"),
}
"""Names of columns, in the order in which they are looked for."""


def usual_column(part: str, wanted: str, names: Sequence[str], where: str) -> str | None:
    """Return the name of the column of a part: the wanted one, else the first usual one; None if there is none or
    "none" is wanted. Raises DataError for a wanted one that is missing."""
    if wanted == NONE:
        return None
    if wanted and wanted not in names:
        raise DataError(f"{where}: expected a column {wanted!r:.80} (--{part}), found {', '.join(names):.400}")
    return wanted or next((name for name in USUAL[part] if name in names), None)


def action_columns(wanted: str, names: Sequence[str], where: str) -> list[str]:
    """Return the columns of the actions: the wanted ones (separated by commas), else the usual one, else all whose
    names begin with "action." or "action_". Raises DataError if there are none."""
    if wanted and wanted != NONE:
        columns = [name.strip() for name in wanted.split(",")]
        if missing := [name for name in columns if name not in names]:
            raise DataError(f"{where}: expected a column {missing[0]!r:.80} (--action), found {', '.join(names):.400}")
        return columns
    usual = [name for name in USUAL["action"] if name in names][:1]
    columns = usual or [name for name in names if name.startswith(("action.", "action_", "actions."))]
    if not columns:
        raise DataError(f"{where}: expected a column of actions, found {', '.join(names):.400}; name it with --action")
    return columns


def wanted_columns(choice: Choice, names: Sequence[str], where: str) -> list[str]:
    """Return all columns that `recording_of_rows` reads, of those that there are."""
    parts = [(part, getattr(choice, part, "")) for part in ("reward", "end", "text", "time", "frame")]
    others = [usual_column(part, wanted, names, where) for part, wanted in parts]
    return [*action_columns(choice.action, names, where), *(name for name in others if name is not None)]


def recording_of_rows(
    table: Table, name: str, length: int, frames: Callable[[], Iterator[np.ndarray]], choice: Choice,
    *, text: str = "", fps: float | None = None,
) -> Recording:
    """Return the recording of `length` frames whose actions, rewards and ends are the rows of a table.

    There are as many rows as frames, or one less: then row t leads from frame t to t + 1. Of as many rows, with
    `choice.align` "next", the last one leads to a frame that was not recorded: its action is left out, its reward is
    added to that of the last frame, so that the return stays right, and its end is that of the recording. With "same"
    the first row, which led to the first frame, is left out. A text column replaces `text`. fps: frames per second;
    a column of times must agree with them. Raises DataError naming file and row.
    """
    names, where = list(table.columns), str(table.path)
    if length < 1 or len(table) not in (length, length - 1):
        raise DataError(f"{where}: expected {length} rows for the {length} frames of {name}, or one less, found "
                        f"{len(table)}")
    _check_times(table, names, fps)
    full = len(table) == length
    first, steps = int(full and choice.align == "same"), length - 1
    parts = [table.numbers(column) for column in action_columns(choice.action, names, where)]
    actions = parts[0] if len(parts) == 1 else np.concatenate([part.reshape(len(table), -1) for part in parts], axis=1)
    rewards = np.zeros(len(table))
    if (column := usual_column("reward", choice.reward, names, where)) is not None:
        rewards = _single(table, column).astype(np.float64)
    earned = rewards[first : first + steps].copy()
    last = full and choice.align == "next"
    if last and steps:
        earned[-1] += rewards[-1]
    over = _ends(table, usual_column("end", choice.end, names, where), 2 if last else 1)
    column = usual_column("text", choice.text, names, where)
    return Recording(
        name, length, frames, actions[first : first + steps], earned, over, not over,
        text if column is None else _text(table, column), lambda step: table.where(first + step),
    )


def _single(table: Table, name: str) -> np.ndarray:
    """Return a column with one number per row, (N,)."""
    numbers = table.numbers(name)
    if numbers.size != len(table):
        raise DataError(f"{table.path}: {name}: expected one number per row, found {numbers.shape[1:]}")
    return numbers.reshape(len(table))


def _ends(table: Table, name: str | None, last: int) -> bool:
    """Return whether a recording ends in a termination, which only its `last` rows may say."""
    if name is None or not len(table):
        return False
    ends = _single(table, name)
    strange = np.flatnonzero((ends != 0) & (ends != 1))
    if len(strange):
        raise DataError(f"{table.where(int(strange[0]))}: {name}: expected true or false, found {ends[strange[0]]}")
    early = np.flatnonzero(ends[:-last])
    if len(early):
        raise DataError(f"{table.where(int(early[0]))}: {name}: expected an end in the last row of a recording, "
                        f"{len(table) - 1 - int(early[0])} rows later; name another column with --end, or none")
    return bool(ends[-last:].any())


def _text(table: Table, name: str) -> str:
    """Return the one text of a recording."""
    cells = [str(cell) for cell in table.column(name)]
    other = next((row for row, cell in enumerate(cells) if cell != cells[0]), None)
    if other is not None:
        raise DataError(f"{table.where(other)}: {name}: expected one text for the whole recording, {cells[0]!r:.60}, "
                        f"found {cells[other]!r:.60}; leave it out with --text none")
    return cells[0] if cells else ""


def _check_times(table: Table, names: Sequence[str], fps: float | None) -> None:
    """Raise DataError where frame numbers are not 0, 1, 2 ..., or times not those of the frames."""
    if (column := usual_column("frame", "", names, "")) is not None:
        numbers = _single(table, column)
        wrong = np.flatnonzero(numbers != np.arange(len(table)))
        if len(wrong):
            raise DataError(f"{table.where(int(wrong[0]))}: {column}: expected frame {wrong[0]}, found "
                            f"{numbers[wrong[0]]}; rows are in the order of the frames and none is missing")
    if fps and (column := usual_column("time", "", names, "")) is not None and len(table):
        if table.columns[column].dtype.kind not in "iuf":
            return  # dates
        times = _single(table, column).astype(np.float64)
        wrong = np.flatnonzero(np.abs(times - times[0] - np.arange(len(table)) / fps) > 0.5 / fps)
        if len(wrong):
            row = int(wrong[0])
            raise DataError(f"{table.where(row)}: {column}: expected {row / fps:.4g} s after row 0, the time of frame "
                            f"{row} at {fps:g} frames per second, found {times[row] - times[0]:.4g}; the actions have "
                            "another rate than the frames: give a row per frame")
