"""What the episode store promises: exact round trips, whole files or none, and a DataError for damage of any kind."""

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from starflow_world.data.dataset import EpisodeDataset
from starflow_world.data.episodes import HEADER, MAGIC, Episode, episode_path, read_episode, read_header, write_episode
from starflow_world.errors import DataError
from starflow_world.io.files import remove_leftovers

SPACE = json.dumps({"type": "Discrete", "n": 7, "start": 0})


def example(seed: int = 0, frames: int = 11, side: int = 16, text: str = "go to the red ball") -> Episode:
    """An episode of noise, (frames, side, side, 3)."""
    rng = np.random.default_rng(seed)
    actions = np.eye(7, dtype=np.float32)[rng.integers(7, size=frames)]
    rewards = rng.normal(size=frames).astype(np.float32)
    actions[0], rewards[0] = 0, 0
    return Episode(
        frames=rng.integers(256, size=(frames, side, side, 3), dtype=np.uint8), actions=actions, rewards=rewards,
        terminated=np.arange(frames) == frames - 1, truncated=np.zeros(frames, bool), text=text, space=SPACE,
        info={"seed": seed, "carrying": [None] * frames})


def fill(folder: Path, lengths: tuple[int, ...] = (11, 1, 9, 20)) -> list[Episode]:
    """Write one episode of each length and return them."""
    episodes = [example(seed, frames) for seed, frames in enumerate(lengths)]
    for index, episode in enumerate(episodes):
        write_episode(episode_path(folder, index), episode)
    return episodes


def sealed(path: Path) -> None:
    """Give a file written by h5py with a user block the checksum that fits it."""
    content = path.read_bytes()
    line = MAGIC + hashlib.sha256(content[HEADER:]).hexdigest().encode() + b"\n"
    path.write_bytes(line.ljust(HEADER, b"\0") + content[HEADER:])


@pytest.mark.parametrize("frames", [1, 2, 8, 9, 40])
def test_an_episode_comes_back_as_it_was_written(tmp_path: Path, frames: int) -> None:
    written = example(frames=frames, text="geh zum Ball – 球 🙂")
    write_episode(tmp_path / "e.h5", written)
    read = read_episode(tmp_path / "e.h5")
    assert read.digest() == written.digest()
    for field in dataclasses.fields(Episode):
        np.testing.assert_array_equal(getattr(read, field.name), getattr(written, field.name))
    assert (read.frames.dtype, read.actions.dtype, read.terminated.dtype) == (np.uint8, np.float32, np.bool_)


def test_an_info_of_any_length_fits(tmp_path: Path) -> None:
    long = dataclasses.replace(example(), info={"carrying": ["purple ball"] * 100_000}, text="x" * 100_000)
    write_episode(tmp_path / "e.h5", long)
    assert read_episode(tmp_path / "e.h5").digest() == long.digest()


def test_equal_episodes_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_episode(tmp_path / name, example(seed))
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_every_reader_of_hdf5_can_read_an_episode(tmp_path: Path) -> None:
    write_episode(tmp_path / "e.h5", example())
    with h5py.File(tmp_path / "e.h5") as file:
        np.testing.assert_array_equal(file["frames"][:], example().frames)
        assert (file["frames"].chunks, file["frames"].compression, file["frames"].compression_opts) == (
            (8, 16, 16, 3), "gzip", 4)
        assert file.attrs["text"] == example().text


E = example()
BROKEN = {
    "frames of floats": {"frames": E.frames.astype(np.float32)},
    "frames without colour": {"frames": E.frames[..., 0]},
    "frames with an alpha channel": {"frames": np.repeat(E.frames[..., :1], 4, axis=3)},
    "no frames": {key: getattr(E, key)[:0] for key in ("frames", "actions", "rewards", "terminated", "truncated")},
    "too few actions": {"actions": E.actions[:-1]},
    "too many rewards": {"rewards": np.append(E.rewards, E.rewards[:1])},
    "actions of doubles": {"actions": E.actions.astype(np.float64)},
    "actions not flat": {"actions": E.actions[..., None]},
    "actions of nothing": {"actions": E.actions[:, :0]},
    "an action that is not a number": {"actions": np.where(E.actions == 1, np.float32("nan"), E.actions)},
    "an infinite reward": {"rewards": np.where(E.rewards > 0, np.float32("inf"), E.rewards)},
    "an action before the first frame": {"actions": E.actions + 1},
    "a reward for the first frame": {"rewards": E.rewards + 1},
    "an end in the middle": {"terminated": np.arange(len(E)) == 3},
    "a cut in the middle": {"truncated": np.arange(len(E)) == 3},
    "ends as numbers": {"terminated": E.terminated.astype(np.uint8)},
    "a text with NUL": {"text": "a\0b"},
    "a text with a lone surrogate": {"text": "\ud800"},
    "a text of bytes": {"text": b"go"},
    "a space that is not JSON": {"space": "Discrete(7)"},
    "an info that is a list": {"info": [1]},
    "an info JSON cannot hold": {"info": {"a": object()}},
    "an info with NaN": {"info": {"a": float("nan")}},
}


@pytest.mark.parametrize("changes", BROKEN.values(), ids=BROKEN)
def test_a_broken_episode_is_refused_before_anything_is_written(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(DataError, match="expected"):
        write_episode(tmp_path / "e.h5", dataclasses.replace(E, **changes))
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys, numpy
from starflow_world.data.episodes import read_episode, write_episode
one, two = read_episode(sys.argv[1]), read_episode(sys.argv[2])
print("ready", flush=True)
while True:
    write_episode(sys.argv[3], one), write_episode(sys.argv[3], two)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_episode_or_none(tmp_path: Path) -> None:
    sources = [tmp_path / "one.h5", tmp_path / "two.h5"]
    for seed, source in enumerate(sources):
        write_episode(source, example(seed, frames=60, side=32))
    target = tmp_path / "out" / "episode-000000.h5"
    whole = {source.read_bytes() for source in sources}
    for delay in (0, 0.003, 0.011, 0.02, 0.05, 0.1):
        command = [sys.executable, "-c", WRITER, *map(str, sources), str(target)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(delay)
            writer.send_signal(signal.SIGKILL)
        assert not target.exists() or target.read_bytes() in whole
    remove_leftovers(target.parent)
    assert {path.name for path in target.parent.iterdir()} <= {target.name}


def test_a_write_that_fails_leaves_the_old_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "e.h5"
    write_episode(path, example(1))
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"e\.h5.*No space left"):
        write_episode(path, example(2))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_episode_that_is_too_large_to_be_read_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_episode(tmp_path / "e.h5", E)
    size = (tmp_path / "e.h5").stat().st_size
    monkeypatch.setattr("starflow_world.data.episodes.MAX_FILE_BYTES", size)
    write_episode(tmp_path / "e.h5", E)
    assert read_episode(tmp_path / "e.h5").digest() == E.digest()
    monkeypatch.setattr("starflow_world.data.episodes.MAX_FILE_BYTES", size - 1)
    with pytest.raises(DataError, match=rf"f\.h5: expected .* at most {size - 1} bytes, found {size}; store short"):
        write_episode(tmp_path / "f.h5", E)
    assert [path.name for path in tmp_path.iterdir()] == ["e.h5"]


def test_errors_of_episodes_show_what_was_found_and_name_no_option_that_a_command_lacks(tmp_path: Path) -> None:
    late = dataclasses.replace(E, terminated=np.arange(len(E)) == 3)
    with pytest.raises(DataError, match=r"expected an end at the last frame, 10, only, found one at 3"):
        late.validate()
    with pytest.raises(DataError, match=r"expected zeros, .*, found \[1\.0, .* and 1\.0"):
        dataclasses.replace(E, actions=E.actions + 1, rewards=E.rewards + 1).validate()
    (tmp_path / "episode-000000.h5").write_bytes(b"no")
    with pytest.raises(DataError, match="record it again") as error:
        EpisodeDataset(tmp_path)
    assert "skip_bad" not in str(error.value)


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip a bit, cut, drop, double or blank a stretch."""
    place, length = int(rng.integers(len(content))), int(rng.integers(1, 64))
    match rng.integers(5):
        case 0:
            return content[:place] + bytes([content[place] ^ (1 << rng.integers(8))]) + content[place + 1:]
        case 1:
            return content[:place]
        case 2:
            return content[:place] + content[place + length:]
        case 3:
            return content[:place + length] + content[place:]
        case _:
            return content[:place] + bytes(min(length, len(content) - place)) + content[place + length:]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_damaged_files_are_named_by_an_error(tmp_path: Path, count: int) -> None:
    path, rng = tmp_path / "episode-000007.h5", np.random.default_rng(0)
    write_episode(path, E)
    content, damaged = path.read_bytes(), 0
    while damaged < count:
        path.write_bytes(changed := mutate(content, rng))
        damaged += changed != content
        for read in (read_header, read_episode):
            if changed == content:  # it blanked zeros
                read(path)
                continue
            with pytest.raises(DataError, match=r"episode-000007\.h5"):
                read(path)


@pytest.mark.timeout(30)  # a pipe without a writer would be waited for until then
def test_links_and_special_files_are_refused_at_once(tmp_path: Path) -> None:
    write_episode(tmp_path / "real.h5", E)
    (tmp_path / "link.h5").symlink_to(tmp_path / "real.h5")
    (tmp_path / "dangling.h5").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.h5").mkdir()
    os.mkfifo(tmp_path / "fifo.h5")
    (tmp_path / "empty.h5").touch()
    (tmp_path / "device.h5").symlink_to("/dev/zero")
    for name in ("link", "dangling", "folder", "fifo", "empty", "device", "missing"):
        with pytest.raises(DataError, match=f"{name}.h5"):
            read_episode(tmp_path / f"{name}.h5")


def test_a_pipe_is_refused_even_if_an_episode_comes_through_it(tmp_path: Path) -> None:
    write_episode(tmp_path / "real.h5", E)
    os.mkfifo(tmp_path / "pipe.h5")
    pipe = os.open(tmp_path / "pipe.h5", os.O_RDWR | os.O_NONBLOCK)
    os.write(pipe, (tmp_path / "real.h5").read_bytes())
    with pytest.raises(DataError, match=r"pipe\.h5.*plain file"):
        read_episode(tmp_path / "pipe.h5")
    os.close(pipe)


def test_an_episode_cannot_draw_in_other_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(1000))
    write_episode(tmp_path / "other.h5", E)
    for trick in ("external storage", "external link", "virtual", "soft link"):
        path = tmp_path / f"{trick}.h5"
        with h5py.File(path, "w", userblock_size=HEADER) as file:
            for key in ("frames", "actions", "rewards", "terminated", "truncated"):
                file[key] = getattr(E, key)
            file.attrs.update(format=1, text="", space="{}", info="{}")
            del file["rewards"]
            match trick:
                case "external storage":
                    file.create_dataset("rewards", (11,), "f4", external=[(str(tmp_path / "secret"), 0, 44)])
                case "external link":
                    file["rewards"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "rewards")
                case "virtual":
                    layout = h5py.VirtualLayout((11,), "f4")
                    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "rewards", (11,))
                    file.create_virtual_dataset("rewards", layout)
                case _:
                    file["rewards"] = h5py.SoftLink("/truncated")
        sealed(path)
        with pytest.raises(DataError, match=f"{trick}.h5.*rewards"):
            read_episode(path)


@pytest.mark.parametrize("shape", [(10**9, 64, 64, 3), (11, 10**5, 64, 3), (11, 16, 16, 10**9)])
def test_a_small_file_that_promises_huge_arrays_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "bomb.h5"
    with h5py.File(path, "w", userblock_size=HEADER) as file:
        file.create_dataset("frames", shape, "u1", chunks=(1, 16, 16, 3), compression=4)
        for key, dtype in (("actions", "f4"), ("rewards", "f4"), ("terminated", "?"), ("truncated", "?")):
            file.create_dataset(key, shape[:1] + (7,) * (key == "actions"), dtype, chunks=True, compression=4)
        file.attrs.update(format=1, text="", space="{}", info="{}")
    sealed(path)
    with pytest.raises(DataError, match=r"bomb\.h5"):
        read_episode(path)


@pytest.mark.parametrize("missing", [field.name for field in dataclasses.fields(Episode)])
def test_a_file_without_one_of_its_parts_is_refused(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "e.h5"
    write_episode(path, E)
    with h5py.File(path, "r+") as file:
        del (file if missing in file else file.attrs)[missing]
    sealed(path)
    with pytest.raises(DataError, match=rf"e\.h5.*{missing}"):
        read_episode(path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    write_episode(tmp_path / "e.h5", E)
    with h5py.File(tmp_path / "e.h5", "r+") as file:
        file.attrs["format"] = 2
    sealed(tmp_path / "e.h5")
    with pytest.raises(DataError, match="format 1"):
        read_episode(tmp_path / "e.h5")


def test_a_dataset_is_its_episodes_in_the_order_of_their_indices(tmp_path: Path) -> None:
    episodes = fill(tmp_path, tuple(range(1, 13)))
    (tmp_path / "collection.json").write_text("{}")
    (tmp_path / ".writing-abc.h5").write_bytes(b"half")
    dataset = EpisodeDataset(tmp_path)
    assert [episode.digest() for episode in dataset] == [episode.digest() for episode in episodes]
    assert dataset.lengths.tolist() == list(range(1, 13))
    assert (len(dataset), dataset.action_space_json, set(dataset.texts), dataset.bad) == (12, SPACE, {E.text}, {})


def test_a_bad_episode_stops_a_dataset_or_is_left_out_and_listed(tmp_path: Path) -> None:
    fill(tmp_path, (5, 6, 7, 8, 9, 10))
    episode_path(tmp_path, 1).write_bytes(b"no episode")
    episode_path(tmp_path, 3).unlink()
    write_episode(episode_path(tmp_path, 4), example(frames=4, side=24))
    with pytest.raises(DataError, match="episode-000001"):
        EpisodeDataset(tmp_path)
    dataset = EpisodeDataset(tmp_path, skip_bad=True)
    assert sorted(dataset.bad) == [f"episode-00000{i}.h5" for i in (1, 3, 4)]
    assert dataset.lengths.tolist() == [5, 7, 10]
    assert dataset.memory_map().lengths.tolist() == [5, 7, 10]


def test_two_files_of_one_index_and_folders_without_episodes_are_refused(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError, match="collect"):
            EpisodeDataset(folder, skip_bad=True)
    fill(tmp_path, (3,))
    write_episode(tmp_path / "episode-0.h5", E)
    with pytest.raises(DataError, match=r"episode-0\.h5 and episode-000000\.h5"):
        EpisodeDataset(tmp_path)
    (tmp_path / "episode-0.h5").rename(tmp_path / "episode-999999999999.h5")
    with pytest.raises(DataError, match="gaps"):
        EpisodeDataset(tmp_path, skip_bad=True)


def test_every_window_of_the_memory_map_is_what_the_episode_says(tmp_path: Path) -> None:
    episodes = fill(tmp_path)
    windows = EpisodeDataset(tmp_path).memory_map()
    assert windows.offsets.tolist() == [0, 11, 12, 21]
    assert windows.texts == (E.text,) * 4
    assert windows.action_space_json == SPACE
    for index, episode in enumerate(episodes):
        for start in range(len(episode)):
            for length in {1, len(episode) - start}:
                window = windows.window(index, start, length)
                for key, array in window.items():
                    np.testing.assert_array_equal(array, getattr(episode, key)[start:start + length])
                    assert array.flags.writeable


@pytest.mark.parametrize("ask", [(0, 0, 12), (0, 11, 1), (0, -1, 3), (4, 0, 1), (-1, 0, 1), (1, 0, 0), (2, 5, 5)])
def test_a_window_beyond_its_episode_is_refused(tmp_path: Path, ask: tuple[int, int, int]) -> None:
    fill(tmp_path)
    with pytest.raises(DataError, match="window inside"):
        EpisodeDataset(tmp_path).memory_map().window(*ask)


def test_the_memory_map_is_read_only(tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        EpisodeDataset(tmp_path).memory_map().frames[0] = 0


def copies(cache: Path) -> dict[str, int]:
    """The copies in a cache folder and when they were made."""
    return {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}


def test_the_copy_is_built_once_and_anew_when_an_episode_changes(tmp_path: Path) -> None:
    fill(tmp_path)
    EpisodeDataset(tmp_path).memory_map()
    first = copies(tmp_path / ".cache")
    EpisodeDataset(tmp_path).memory_map()
    assert copies(tmp_path / ".cache") == first
    write_episode(episode_path(tmp_path, 1), example(77, frames=6))
    windows = EpisodeDataset(tmp_path).memory_map()
    np.testing.assert_array_equal(windows.window(1, 0, 6)["frames"], example(77, frames=6).frames)
    assert len(copies(tmp_path / ".cache")) == 1
    assert copies(tmp_path / ".cache").keys() != first.keys()


def test_a_copy_that_is_not_whole_is_built_anew(tmp_path: Path) -> None:
    episodes = fill(tmp_path)
    cache = tmp_path / "elsewhere"
    EpisodeDataset(tmp_path).memory_map(cache)
    (copy,) = cache.iterdir()
    objects = np.array([print] * 41, dtype=object)
    for damage in (
        lambda: (copy / "index.json").unlink(),
        lambda: (copy / "index.json").write_text("{"),
        lambda: (copy / "frames.npy").write_bytes((copy / "frames.npy").read_bytes()[:-100]),
        lambda: (copy / "rewards.npy").unlink(),
        lambda: np.save(copy / "rewards.npy", np.zeros(3, np.float32)),
        lambda: np.save(copy / "rewards.npy", objects, allow_pickle=True),
    ):
        damage()
        windows = EpisodeDataset(tmp_path).memory_map(cache)
        np.testing.assert_array_equal(windows.window(3, 0, 20)["frames"], episodes[3].frames)
        np.testing.assert_array_equal(windows.window(3, 0, 20)["rewards"], episodes[3].rewards)
    assert [path.name for path in cache.iterdir()] == [copy.name]


def test_a_copy_whose_building_failed_leaves_nothing(tmp_path: Path) -> None:
    fill(tmp_path)
    dataset = EpisodeDataset(tmp_path)
    episode_path(tmp_path, 2).write_bytes(b"damaged since")
    with pytest.raises(DataError, match="episode-000002"):
        dataset.memory_map()
    assert list((tmp_path / ".cache").iterdir()) == []


def test_a_cache_folder_that_cannot_be_written_is_one_error_that_names_the_option(tmp_path: Path) -> None:
    episodes = fill(tmp_path)
    (tmp_path / ".cache").write_text("a file, where the folder would be")
    with pytest.raises(DataError, match=r"\.cache: expected to write the uncompressed frames here .*train --cache"):
        EpisodeDataset(tmp_path).memory_map()
    windows = EpisodeDataset(tmp_path).memory_map(tmp_path / "elsewhere" / "cache")
    np.testing.assert_array_equal(windows.window(0, 0, 11)["frames"], episodes[0].frames)


def test_many_may_build_the_copy_at_once(tmp_path: Path) -> None:
    episodes = fill(tmp_path)
    found, cache = [], tmp_path / "cache"

    def build() -> None:
        found.append(EpisodeDataset(tmp_path).memory_map(cache))

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(list(cache.iterdir())) == 1
    for windows in found:
        np.testing.assert_array_equal(windows.window(3, 2, 9)["frames"], episodes[3].frames[2:11])
