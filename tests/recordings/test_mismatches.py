"""What does not fit is named with its file and row."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from starflow_world.errors import DataError
from starflow_world.recordings import open_source
from starflow_world.recordings.importing import import_recordings
from starflow_world.recordings.source import Choice
from tests import written_recordings as written
from tests.written_recordings import FPS

pytest.importorskip("pyarrow")
pytest.importorskip("minari")

NINE = {"timestamp": np.arange(9) / FPS, "action": [0] * 9, "reward": [0.0] * 9}


def table(**changed: Any) -> Callable[[Path], None]:
    """Write a CSV of nine rows for a video of nine frames; None leaves a column out."""
    columns = {key: value for key, value in {**NINE, **changed}.items() if value is not None}

    def write(folder: Path) -> None:
        written.videos(folder, (9,))
        written.write_csv(folder / "clip0.csv", columns)

    return write


def raw_csv(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        written.videos(folder, (9,))
        (folder / "clip0.csv").write_text(text)

    return write


def at(row: int, value: Any, usual: Any = 0) -> list[Any]:
    return [value if number == row else usual for number in range(9)]


def archive(**arrays: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir()
        np.savez(folder / "a.npz", **{"frames": written.walk(9)[0], "actions": np.zeros(8), **arrays})

    return write


def lerobot(version: int, file: str, **changed: Any) -> Callable[[Path], None]:
    """Write a folder, and replace columns (None: leave them out) of one of its Parquet files."""

    def write(folder: Path) -> None:
        import pyarrow.parquet as pq

        (written.lerobot_2 if version == 2 else written.lerobot_3)(folder, (9, 12))
        columns = pq.read_table(folder / file).to_pydict()
        columns = {key: value for key, value in {**columns, **changed}.items() if value is not None}
        written.write_parquet(folder / file, columns)

    return write


def info(**changed: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = written.lerobot_3(folder) / "meta/info.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))

    return write


def without_table(folder: Path) -> None:
    (written.videos(folder) / "clip1.csv").unlink()


def two_shapes(folder: Path) -> None:
    written.write_csv(written.videos(folder) / "clip1.csv", {"action.x": [0] * 12, "action.y": [1] * 12})


def short_video(folder: Path) -> None:
    written.lerobot_2(folder)
    written.write_video(folder / f"videos/chunk-000/{written.CAMERAS[0]}/episode_000001.mp4", written.walk(10)[0])


def long_video(folder: Path) -> None:
    written.lerobot_2(folder)
    written.write_video(folder / f"videos/chunk-000/{written.CAMERAS[0]}/episode_000001.mp4", written.walk(14)[0])


def slow_video(folder: Path) -> None:
    written.lerobot_3(folder)
    path = folder / f"videos/{written.CAMERAS[0]}/chunk-000/file-000.mp4"
    written.write_video(path, np.concatenate([written.walk(9)[0], written.walk(12)[0]]), fps=15)


def two_tasks(folder: Path) -> None:
    path = written.lerobot_2(folder) / "meta/episodes.jsonl"
    path.write_text(path.read_text().replace('["go right"]', '["go right", "turn"]'))


ONE, TWO, FILE = "data/chunk-000/episode_000001.parquet", "meta/episodes/chunk-000/file-000.parquet", "file-000.parquet"
TOP, FAST = Choice(camera=written.CAMERAS[0]), Choice(fps=30)
VECTORS = [[0.0, 1.0]] * 12
MISMATCHES = {
    "a row too few": (table(timestamp=[0] * 7, action=[0] * 7, reward=[0] * 7), Choice(),
                      r"clip0.csv: expected 9 rows for the 9 frames of .*clip0.mp4, or one less, found 7"),
    "no actions": (table(action=None), Choice(), r"clip0.csv: expected a column of actions, found timestamp, reward"),
    "a column that was asked for": (table(), Choice(reward="points"), r"expected a column 'points' \(--reward\)"),
    "a word among rewards": (table(reward=at(4, "many")), Choice(),
                             r"clip0.csv: row 4 \(line 6\): reward: expected a number, found 'many'"),
    "a reward that is not finite": (table(reward=at(3, "nan", 0.5)), Choice(), r"row 3 \(line 5\): reward: .* nan"),
    "an early end": (table(done=at(3, "true", "false")), Choice(), r"row 3 \(line 5\): done: expected an end in the "
                     "last row"),
    "an end of two": (table(done=at(8, 2)), Choice(), r"row 8 \(line 10\): done: expected true or false, found 2"),
    "two texts": (table(text=at(5, "left", "right")), Choice(), r"row 5 \(line 7\): text: expected one text"),
    "times of another rate": (table(timestamp=np.arange(9) / 5), Choice(),
                              r"row 1 \(line 3\): timestamp: expected 0.1 s after row 0, .*10 frames per second, found "
                              r"0.2; the actions have another rate"),
    "a frame that is missing": (table(frame=[0, 1, 2, 4, 5, 6, 7, 8, 9]), Choice(),
                                r"row 3 \(line 5\): frame: expected frame 3, found 4"),
    "another rate": (table(), FAST, r"clip0.mp4: expected 30 frames per second, the rate of the actions"),
    "a table too few": (without_table, Choice(), r"clip1.mp4: expected a table clip1.csv or .parquet beside it"),
    "a cell too few": (raw_csv("action,reward\n0,0\n1\n"), Choice(), r"row 1 \(line 3\): expected 2 cells"),
    "a name twice": (raw_csv("action,action\n0,0\n"), Choice(), "expected a header of different names"),
    "an archive's rewards": (archive(rewards=np.zeros(5)), Choice(), r"a.npz: rewards: expected 8 entries, .* found 5"),
    "an archive's actions": (archive(actions=np.zeros(5)), Choice(), r"a.npz: expected 9 rows for the 9 frames"),
    "an archive's frames": (archive(frames=np.zeros((9, 4))), Choice(), r"a.npz: expected one camera, found none"),
    "frames out of range": (archive(frames=np.full((9, 16, 16, 3), 2.0)), Choice(), r"a.npz: frame 0: frame: expected"),
    "an action of another space": (archive(actions=at(2, 7)[:8]), Choice(),
                                   r"a.npz: row 2: action: expected an element of Discrete\(3\), found"),
    "actions of two sizes": (lerobot(2, ONE, action=[*VECTORS[:4], [0.0], *VECTORS[5:]]), TOP,
                             r"episode_000001.parquet: row 4: action: expected 2 numbers as in row 0, found 1"),
    "actions of two shapes": (lerobot(2, ONE, action=[[0.0]] * 12), TOP,
                              r"episode_000001.parquet: row 0: action: expected an element of Box.*\(2,\), float32\)"),
    "integers of two shapes": (two_shapes, Choice(), r"clip1.csv: row 0 \(line 2\): expected actions of shape \(\) as "
                               r"in the recordings before, found \(2,\)"),
    "an action without value": (lerobot(2, ONE, action=[None, *VECTORS[1:]]), TOP, r"row 0: action: expected a value"),
    "a column that the description has": (lerobot(2, ONE, action=None), TOP,
                                          r"episode_000001.parquet: expected a column 'action', found observation"),
    "times of rows": (lerobot(2, ONE, timestamp=[t / 5 for t in range(12)]), TOP, r"000001.parquet: row 1: timestamp:"),
    "an episode's length": (lerobot(3, TWO, length=[9, 13]), Choice(), "expected 13 rows of episode 1, as its entry"),
    "frames of an episode": (short_video, TOP, r"episode_000001.mp4: expected 12 frames from frame 0 on, .* found 10"),
    "frames too many": (long_video, TOP, r"episode_000001.mp4: expected 12 frames from frame 0 on, .* found 14"),
    "a rate of a video": (slow_video, Choice(), r"file-000.mp4: expected 10 frames per second, .* found 15"),
    "a rate that was said": (written.lerobot_3, FAST, r"info.json: expected 30 frames per second \(--fps\), found 10"),
    "two tasks": (two_tasks, TOP, r"expected one task in episode 0, found 2: go right, turn"),
    "a version": (info(codebase_version="v1.6"), Choice(), r"info.json: .*version v1.6, expected 2.x or 3.x"),
    "a path outside": (info(data_path="../../{chunk_index}.parquet"), Choice(), r"info.json: data_path: expected the "
                       "pattern of a path in the folder"),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_a_mismatch_is_named_with_file_and_row_and_nothing_of_it_is_written(name: str, tmp_path: Path) -> None:
    write, choice, said = MISMATCHES[name]
    write(tmp_path / "made")
    space = spaces.Discrete(3) if name == "an action of another space" else None
    with pytest.raises(DataError, match=said):
        import_recordings(open_source(tmp_path / "made", choice), tmp_path / "out", space=space, progress=False)
    left = sorted(path.name for path in tmp_path.glob("out/*"))
    assert [file for file in left if file.startswith("episode")] in ([], ["episode-000000.h5"]), left
    assert not any(file.startswith(".") for file in left)
