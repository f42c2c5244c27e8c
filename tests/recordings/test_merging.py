"""Folders that agree are joined; others are refused with all in which they differ."""

from dataclasses import replace
from pathlib import Path

import pytest

from starflow_world import EpisodeDataset, collect
from starflow_world.data.dataset import origin
from starflow_world.data.episodes import episode_path, read_episode, write_episode
from starflow_world.errors import DataError
from starflow_world.io.files import write_text
from starflow_world.recordings import open_source
from starflow_world.recordings.importing import import_recordings
from starflow_world.recordings.merging import merge
from tests import written_recordings as written


def brought(folder: Path, lengths: tuple[int, ...], size: int = 16) -> Path:
    made = written.archives(folder / "made", lengths)
    return import_recordings(open_source(made), folder / "out", frame_size=(size,), progress=False)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return brought(tmp_path / "a", (9, 12)), brought(tmp_path / "b", (7,))


def test_folders_are_joined_in_their_order_byte_by_byte(two: tuple[Path, Path], tmp_path: Path) -> None:
    out = merge(two, tmp_path / "all", progress=False)
    assert EpisodeDataset(out).lengths.tolist() == [9, 12, 7]
    parts = [path for folder in two for path in EpisodeDataset(folder).paths]
    assert [path.read_bytes() for path in EpisodeDataset(out).paths] == [path.read_bytes() for path in parts]
    assert origin(out) == {"frame_size": 16, "source": [origin(folder)["source"] for folder in two]}


def test_an_interrupted_merge_goes_on(two: tuple[Path, Path], tmp_path: Path) -> None:
    out = merge(two, tmp_path / "all", progress=False)
    whole = [path.read_bytes() for path in EpisodeDataset(out).paths]
    before = episode_path(out, 0).stat().st_mtime_ns
    episode_path(out, 1).unlink()
    merge(two, out, progress=False)
    assert [path.read_bytes() for path in EpisodeDataset(out).paths] == whole
    assert episode_path(out, 0).stat().st_mtime_ns == before


def test_folders_that_differ_are_refused_with_every_difference(two: tuple[Path, Path], tmp_path: Path) -> None:
    other = collect("CartPolePixels-v0", tmp_path / "cart", episodes=1, seed=0, frame_size=32, max_steps=3,
                    progress=False)
    with pytest.raises(DataError, match=r"cart does not fit .*out: env: expected none, found CartPolePixels-v0\. "
                                        r".*frame_size: expected 16, found 32\..*frames \(height, width\): expected "
                                        r"\(16, 16\), found \(32, 32\)\. action space"):
        merge([two[0], other], tmp_path / "all", progress=False)
    assert not (tmp_path / "all").exists()


def test_an_episode_that_is_in_two_folders_is_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"episode-000000.h5: expected an episode that is in no other folder"):
        merge([two[0], two[1], two[0]], tmp_path / "all", progress=False)


def test_own_recordings_without_a_record_are_joined(tmp_path: Path, two: tuple[Path, Path]) -> None:
    folders = []
    for index, source in enumerate(two):
        episode = read_episode(episode_path(source, 0))
        write_episode(episode_path(tmp_path / f"own{index}", 0), replace(episode, info={}))
        folders.append(tmp_path / f"own{index}")
    assert len(EpisodeDataset(merge(folders, tmp_path / "all", progress=False))) == 2
    with pytest.raises(DataError, match="expected two folders or more, found 1"):
        merge(folders[:1], tmp_path / "one")


def test_a_damaged_record_is_named(two: tuple[Path, Path], tmp_path: Path) -> None:
    write_text(two[1] / "collection.json", "{")
    with pytest.raises(DataError, match=r"collection.json: expected the record of a collection"):
        merge(two, tmp_path / "all", progress=False)
