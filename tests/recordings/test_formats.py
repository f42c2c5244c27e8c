"""Every format gives the same recordings: frames, the actions that led to them, rewards, ends and texts."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from starflow_world.data.episodes import Episode
from starflow_world.errors import DataError
from starflow_world.recordings import open_source
from starflow_world.recordings.importing import episodes_of
from starflow_world.recordings.source import Choice, Source, action_space
from tests import written_recordings as written
from tests.written_recordings import SIDE

pytest.importorskip("pyarrow")
pytest.importorskip("minari")

TOP = Choice(camera=written.CAMERAS[0])
FORMATS = {
    "videos": (written.videos, Choice()), "archives": (written.archives, Choice()),
    "minari": (written.minari_set, Choice()), "lerobot 2.1": (written.lerobot_2, TOP),
    "lerobot 3.0": (written.lerobot_3, Choice()),
    "lerobot 3.0, pictures": (lambda folder: written.lerobot_3(folder, pictures=True), Choice()),
}


def episodes(source: Source) -> list[Episode]:
    space = action_space(source)
    return [episode.validate() for recording in source for episode in episodes_of(recording, space, (SIDE, SIDE), 5000)]


def places(frames: np.ndarray) -> list[int]:
    """The left side of the square in each frame."""
    bright = frames[:, 15, :, 0] > 110
    return bright.argmax(axis=1).tolist()


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_gives_frames_and_the_actions_that_led_to_them(name: str, tmp_path: Path) -> None:
    write, choice = FORMATS[name]
    found = episodes(open_source(write(tmp_path / "made"), choice))
    assert [len(episode) for episode in found] == [9, 12]
    for index, episode in enumerate(found):
        frames, taken = written.walk(len(episode), index)
        assert np.abs(episode.frames.astype(int) - frames).mean() < 4  # H.264 loses a little
        assert places(episode.frames) == places(frames)
        moves = episode.actions.argmax(axis=1) if episode.actions.shape[1] == 3 else episode.actions[:, 0]
        assert moves[1:].tolist() == taken[:-1].tolist()
        assert not episode.actions[0].any()
        assert episode.text == "go right"
        assert episode.terminated[-1] == (name != "archives")
        assert episode.truncated[-1] == (name == "archives")


@pytest.mark.parametrize("name", ["videos", "archives", "minari"])
def test_a_reward_comes_with_the_frame_that_its_action_led_to(name: str, tmp_path: Path) -> None:
    write, choice = FORMATS[name]
    for episode in episodes(open_source(write(tmp_path / "made"), choice)):
        assert np.flatnonzero(episode.rewards).tolist() == [len(episode) - 1]


def test_the_reward_of_the_frame_that_was_not_recorded_is_added_to_the_last_one(tmp_path: Path) -> None:
    for episode in episodes(open_source(written.lerobot_3(tmp_path / "made"))):
        assert episode.rewards[1:-1].tolist() == [0.5] * (len(episode) - 2)
        assert episode.rewards[-1] == 1.0
        assert episode.rewards.sum() == 0.5 * len(episode)


def test_rows_whose_actions_led_to_their_frames_are_read_with_align_same(tmp_path: Path) -> None:
    folder = written.videos(tmp_path / "made", reward=None)
    after, same = (episodes(open_source(folder, Choice(align=align))) for align in ("next", "same"))
    for one, other in zip(after, same, strict=True):
        assert other.actions[1:-1].tolist() == one.actions[2:].tolist()


@pytest.mark.parametrize("row", [7, 8])
def test_an_end_may_stand_in_the_row_that_leads_to_the_last_frame_or_in_that_of_the_frame(
    row: int, tmp_path: Path
) -> None:
    folder = written.videos(tmp_path / "made", (9,), terminated=[t == row for t in range(9)])
    (episode,) = episodes(open_source(folder))
    assert episode.terminated[-1]
    assert not episode.truncated[-1]


def test_a_camera_is_chosen_by_its_name_and_gives_its_own_frames(tmp_path: Path) -> None:
    folder = written.lerobot_2(tmp_path / "made")
    with pytest.raises(DataError, match=r"expected one camera, found .*top, .*wrist; choose one with --camera"):
        open_source(folder)
    with pytest.raises(DataError, match=r"expected a camera 'left' \(--camera\), found"):
        open_source(folder, Choice(camera="left"))
    wrist = episodes(open_source(folder, Choice(camera=written.CAMERAS[1])))[0]
    assert wrist.frames[:, 15, :, 0].max() < 60  # the square lies 8 rows lower
    assert wrist.frames[:, 23, :, 0].max() > 110


def test_one_table_may_name_the_videos(tmp_path: Path) -> None:
    folder = written.videos(tmp_path / "made")
    alone = episodes(open_source(folder))
    rows: dict[str, list[object]] = {"video": [], "action": [], "reward": [], "terminated": [], "text": []}
    for index, length in enumerate((9, 12)):
        (folder / f"clip{index}.csv").unlink()
        rows["video"] += [f"clip{index}.mp4"] * length
        rows["action"] += written.walk(length, index)[1].tolist()
        rows["reward"] += [float(t == length - 2) for t in range(length)]
        rows["terminated"] += [t == length - 1 for t in range(length)]
        rows["text"] += ["go right"] * length
    written.write_parquet(folder / "steps.parquet", rows)
    shared = episodes(open_source(folder))
    assert [replace(episode, info={}).digest() for episode in shared] == \
        [replace(episode, info={}).digest() for episode in alone]
    rows["video"][4] = "other.mp4"
    written.write_parquet(folder / "steps.parquet", rows)
    with pytest.raises(DataError, match=r"steps.parquet: row 4: video: expected the name of a file"):
        open_source(folder)


def spaces_of(folder: Path, **columns: object) -> spaces.Space:
    return action_space(open_source(written.videos(folder, (4,), **{"action": None, **columns})))


def test_the_action_space_follows_from_the_columns(tmp_path: Path) -> None:
    assert spaces_of(tmp_path / "a", action=[0, 2, 1, 0]) == spaces.Discrete(3)
    assert spaces_of(tmp_path / "b", action=[0, -1, 1, 0]) == spaces.Discrete(3, start=-1)
    assert spaces_of(tmp_path / "c", action=["true", "false", "true", "true"]) == spaces.Discrete(2)
    assert spaces_of(tmp_path / "d", action_x=[0, 1, 1, 0], action_y=[2, 0, 0, 0]) == spaces.MultiDiscrete([2, 3])
    wide = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    assert spaces_of(tmp_path / "e", action_x=[0.5, 1, 1, 0], action_y=[2, 0, 0, 0]) == wide
    assert spaces_of(tmp_path / "f", action=[0, 4000, 1, 0]) == spaces.Box(-np.inf, np.inf, (1,), np.float32)
    keys = {f"action.{key}": ["true", "false", "false", "true"] for key in "wasd"}
    assert spaces_of(tmp_path / "g", **keys) == spaces.MultiBinary(4)


def test_a_minari_dataset_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    written.minari_set(tmp_path / "walk" / "right-v0")
    assert len(open_source("walk/right-v0")) == 2
    with pytest.raises(DataError, match="walk/left-v0: expected a folder, or the name of a Minari dataset"):
        open_source("walk/left-v0")


def test_a_minari_dataset_of_pictures_alone_with_actions_of_parts(tmp_path: Path) -> None:
    source = open_source(written.minari_set(tmp_path / "made", (9,), plain=True))
    assert source.cameras == ("observation",)
    (episode,) = episodes(source)
    frames, taken = written.walk(9, 0)
    assert np.array_equal(episode.frames, frames)
    assert episode.actions[1:, :1].tolist() == [[0.5]] * 8
    assert episode.actions[1:, 1:].argmax(axis=1).tolist() == taken[:-1].tolist()
    assert episode.text == ""


def test_a_minari_dataset_that_only_its_environment_could_describe_is_refused(tmp_path: Path) -> None:
    folder = written.minari_set(tmp_path / "made")
    path = folder / "data" / "metadata.json"
    path.write_text(path.read_text().replace('"action_space"', '"action_space_of_old"'))
    with pytest.raises(DataError, match=r"metadata.json: expected observation_space and action_space, found"):
        open_source(folder)


def damaged_archive(folder: Path) -> Path:
    path = next(iter(sorted(written.archives(folder).glob("*.npz"))))
    path.write_bytes(path.read_bytes()[:400])
    return folder


def pickled_archive(folder: Path) -> Path:
    folder.mkdir()
    frames = written.walk(4)[0]
    np.savez(folder / "a.npz", frames=frames, actions=np.array([{}, 1, 2, 3], dtype=object))
    return folder


@pytest.mark.parametrize("write", [damaged_archive, pickled_archive])
def test_an_archive_that_is_damaged_or_holds_objects_is_refused(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"\.npz: expected a NumPy archive, found"):
        list(open_source(write(tmp_path / "made")))


def test_without_the_package_a_name_is_no_folder_and_a_folder_needs_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written.minari_set(tmp_path / "made")
    monkeypatch.setitem(sys.modules, "minari", None)
    monkeypatch.delitem(sys.modules, "starflow_world.recordings.minari", raising=False)
    with pytest.raises(DataError, match=r"walk/left-v0: expected a folder of recordings .*starflow-world\[data\]"):
        open_source("walk/left-v0")
    with pytest.raises(ModuleNotFoundError):
        open_source(folder)


def test_what_is_no_recording_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match=r"expected recordings: meta/info.json .* found notes.txt"):
        open_source(tmp_path)
    with pytest.raises(DataError, match="expected a folder of recordings"):
        open_source(tmp_path / "notes.txt")
