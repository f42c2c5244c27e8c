"""Imports: what is written, what an interrupted one leaves, and that a world learns from it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from starflow_world import EpisodeDataset, train
from starflow_world.config.train import RecipeConfig, TrainConfig
from starflow_world.config.world import CodecConfig, FlowConfig, OutcomeConfig, WorldConfig
from starflow_world.data.dataset import origin
from starflow_world.errors import ConfigError, DataError
from starflow_world.recordings import importing, open_source
from starflow_world.recordings.importing import import_recordings
from starflow_world.recordings.source import Choice
from tests import written_recordings as written


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("episode-*.h5"))}


def bring(folder: Path, out: Path, **settings: object) -> Path:
    return import_recordings(open_source(folder), out, progress=False, **settings)


def test_an_import_says_where_its_episodes_come_from(tmp_path: Path) -> None:
    folder = written.videos(tmp_path / "tape")
    out = bring(folder, tmp_path / "out", frame_size=(16, 24))
    facts = {"format": "videos", "name": "tape", "camera": "video", "fps": float(written.FPS)}
    assert origin(out) == {"frame_size": [16, 24], "source": facts}
    episode = EpisodeDataset(out)[1]
    assert episode.frames.shape == (12, 16, 24, 3)
    assert episode.info == {"recording": str(folder / "clip1.mp4"), "first_frame": 0}
    assert json.loads((out / "collection.json").read_text())["episodes"] == 2


def test_frames_keep_their_size_where_it_is_0(tmp_path: Path) -> None:
    out = bring(written.archives(tmp_path / "made"), tmp_path / "out", frame_size=(0,))
    frames, _ = written.walk(9, 0)
    assert np.array_equal(EpisodeDataset(out)[0].frames, frames)
    assert origin(out)["frame_size"] == written.SIDE


def test_an_interrupted_import_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written.archives(tmp_path / "made", (9, 12, 7))
    whole = files(bring(folder, tmp_path / "whole"))
    written_so_far: list[Path] = []
    write = importing.write_episode

    def stopping(path: Path, episode: object) -> None:
        if len(written_so_far) == 2:
            raise KeyboardInterrupt
        written_so_far.append(path)
        write(path, episode)

    monkeypatch.setattr(importing, "write_episode", stopping)
    with pytest.raises(KeyboardInterrupt):
        bring(folder, tmp_path / "out")
    assert list(files(tmp_path / "out")) == ["episode-000000.h5", "episode-000001.h5"]
    damaged = tmp_path / "out/episode-000000.h5"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    again: list[str] = []
    monkeypatch.setattr(importing, "write_episode", lambda path, episode: (again.append(path.name),
                                                                           write(path, episode)))
    assert files(bring(folder, tmp_path / "out")) == whole
    assert again == ["episode-000000.h5", "episode-000002.h5"]


def test_a_folder_of_another_import_is_refused(tmp_path: Path) -> None:
    folder = written.archives(tmp_path / "made")
    bring(folder, tmp_path / "out")
    with pytest.raises(DataError, match="another run's; use a new folder"):
        bring(folder, tmp_path / "out", frame_size=(16,))


def test_an_import_that_wrote_nothing_may_begin_again_with_other_settings(tmp_path: Path) -> None:
    folder = written.archives(tmp_path / "made")
    with pytest.raises(DataError, match="expected an element of"):
        bring(folder, tmp_path / "out", space=spaces.Discrete(1))
    assert not files(tmp_path / "out")
    assert len(files(bring(folder, tmp_path / "out"))) == 2


def test_a_long_recording_becomes_episodes_that_share_a_frame(tmp_path: Path) -> None:
    folder = written.archives(tmp_path / "made", (12,))
    whole = EpisodeDataset(bring(folder, tmp_path / "whole", frame_size=(0,)))[0]
    parts = list(EpisodeDataset(bring(folder, tmp_path / "out", frame_size=(0,), longest=5)))
    assert [len(part) for part in parts] == [5, 5, 4]
    assert [part.info["first_frame"] for part in parts] == [0, 4, 8]
    for key in ("frames", "actions", "rewards"):
        assert np.array_equal(np.concatenate([getattr(part, key)[1:] for part in parts]), getattr(whole, key)[1:]), key
    assert all(part.truncated[-1] for part in parts)


def test_only_the_last_part_of_a_recording_terminates(tmp_path: Path) -> None:
    parts = list(EpisodeDataset(bring(written.videos(tmp_path / "made", (12,)), tmp_path / "out", longest=7)))
    assert [(bool(part.terminated[-1]), bool(part.truncated[-1])) for part in parts] == [(False, True), (True, False)]


def test_frames_are_asked_for_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(written.archives(tmp_path / "made", (12,)))
    recording = next(iter(source))
    asked: list[int] = []

    def counted():
        for number, frame in enumerate(written.walk(12)[0]):
            asked.append(number)
            yield frame

    pieces = importing.episodes_of(replace(recording, frames=counted), spaces.Discrete(3), (8, 8), 4)
    next(pieces)
    assert asked == [0, 1, 2, 3]


def test_episodes_are_scaled_and_keep_the_record_of_their_origin(tmp_path: Path) -> None:
    first = bring(written.videos(tmp_path / "tape"), tmp_path / "first", frame_size=(32,))
    second = bring(first, tmp_path / "second", frame_size=(8,))
    for one, other in zip(EpisodeDataset(first), EpisodeDataset(second), strict=True):
        assert other.frames.shape == (len(one), 8, 8, 3)
        assert replace(other, frames=one.frames, info={}).digest() == replace(one, info={}).digest()
    assert origin(second)["source"] == {"format": "episodes", "name": "first", "origin": origin(first)}


def test_a_space_that_is_given_replaces_the_one_of_the_actions(tmp_path: Path) -> None:
    out = bring(written.archives(tmp_path / "made"), tmp_path / "out", space=spaces.Discrete(5))
    assert EpisodeDataset(out)[0].actions.shape == (9, 5)


def test_settings_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    folder = written.archives(tmp_path / "made")
    for wrong in ({"frame_size": (1, 2, 3)}, {"frame_size": (9999,)}, {"longest": 1}):
        with pytest.raises(ConfigError, match="expected a frame size"):
            bring(folder, tmp_path / "out", **wrong)


def test_parts_are_left_out_where_none_is_asked_for(tmp_path: Path) -> None:
    source = open_source(written.videos(tmp_path / "made"), Choice(reward="none", end="none", text="none"))
    episode = EpisodeDataset(import_recordings(source, tmp_path / "out", progress=False))[0]
    assert not episode.rewards.any()
    assert not episode.terminated.any()
    assert episode.text == ""


def test_a_world_learns_from_imported_recordings(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    data = bring(written.lerobot_3(tmp_path / "robot"), tmp_path / "data", frame_size=(16,))
    flow = FlowConfig(channels=48, shallow_blocks=0, deep_layers=1, deep_width=20, head_width=20, components=4,
                      features_width=8)
    world = WorldConfig("mine", flow, height=16, width=16, codec=CodecConfig("patch", patch=4), noise_level=0.12,
                        window=8, context=2, outcome=OutcomeConfig(width=8, layers=1), reward="raw")
    settings = TrainConfig(steps=2, frames=16, lengths=(4,), starts=2, warmup=1)
    train(RecipeConfig(world, settings), data, tmp_path / "run")
    card = json.loads((tmp_path / "run/card.json").read_text())
    assert card["source"] == {"format": "lerobot", "name": "robot", "camera": written.CAMERAS[0],
                              "fps": float(written.FPS), "version": "v3.0"}
