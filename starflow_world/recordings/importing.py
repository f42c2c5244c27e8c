"""The import: recordings of any source become a folder of episodes, as `collect` writes them.

Frames are decoded and scaled one by one, and an episode is written when it is whole, so memory holds one episode.
`collection.json` says where the episodes come from; an interrupted import goes on where it stopped.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gymnasium import spaces
from tqdm import tqdm

from starflow_world.data.dataset import COLLECTION, installed_versions
from starflow_world.data.episodes import MAX_SIDE, Episode, episode_path, read_header, write_episode
from starflow_world.envs.observation import shown
from starflow_world.errors import ConfigError, DataError
from starflow_world.io.files import claim
from starflow_world.model.actions import space_to_json
from starflow_world.recordings.source import Recording, Source, action_space, flat_actions_of

PACKAGES = ("av", "h5py", "minari", "numpy", "opencv-python-headless", "pyarrow")


def import_recordings(
    source: Source, out: Path | str, *, frame_size: tuple[int, ...] = (64,), space: spaces.Space | None = None,
    longest: int = 5000, progress: bool = True,
) -> Path:
    """Write all recordings of a source as episodes into the folder `out`, and return it.

    frame_size: height and width of the frames, or one number for both; 0: as they are. space: the action space; None:
    that of the source (`action_space`). longest: frames of an episode; longer recordings become several episodes, the
    first frame of each of which is the last one of the episode before. Raises ConfigError, and DataError naming file
    and row of what does not fit, or where `out` holds another collection.
    """
    if len(frame_size) not in (1, 2) or not all(0 <= side <= MAX_SIDE for side in frame_size) or longest < 2:
        raise ConfigError(f"expected a frame size of one or two numbers up to {MAX_SIDE} and longest >= 2, found "
                          f"{frame_size} and {longest}")
    out, space = Path(out), action_space(source) if space is None else space
    size = source_size(source) if 0 in frame_size else (frame_size[0], frame_size[-1])
    recipe = {"source": source.facts(), "frame_size": size[0] if size[0] == size[1] else list(size),
              "space": space_to_json(space), "longest": longest}
    versions = installed_versions(PACKAGES)
    if not any(out.glob("episode-*.h5")):  # an import that wrote nothing holds no folder
        (out / COLLECTION).unlink(missing_ok=True)
    claim(out / COLLECTION, {"recipe": recipe, "episodes": len(source), "packages": versions}, key="recipe")
    index = 0
    with tqdm(total=len(source), desc=out.name, unit="recording", disable=not progress) as bar:
        for recording in source:
            paths = [episode_path(out, index + piece) for piece in range(pieces(recording.length, longest))]
            if not all(map(_is_whole, paths)):
                for path, episode in zip(paths, episodes_of(recording, space, size, longest), strict=True):
                    _write(path, episode, recording)
            index += len(paths)
            bar.update()
    claim(out / COLLECTION, {"recipe": recipe, "episodes": index, "packages": versions}, key="recipe")
    return out


def pieces(length: int, longest: int) -> int:
    """Return the number of episodes that a recording of `length` frames becomes."""
    return max(1, -(-(length - 1) // (longest - 1)))


def episodes_of(recording: Recording, space: spaces.Space, size: tuple[int, int], longest: int) -> Iterator[Episode]:
    """Decode a recording, and yield its episodes of at most `longest` frames of `size` (height, width)."""
    actions, text = flat_actions_of(recording, space), space_to_json(space)
    rewards = np.concatenate(([0.0], recording.rewards)).astype(np.float32)
    pictures, last = _scaled(recording, size), None
    for first in range(0, max(recording.length - 1, 1), longest - 1):
        stop = min(first + longest, recording.length)
        frames = np.empty((stop - first, *size, 3), np.uint8)
        for row in range(stop - first):
            frames[row] = last if row == 0 and last is not None else next(pictures)
        last, over = frames[-1].copy(), np.arange(first, stop) == recording.length - 1
        begun = np.arange(first, stop) == first
        whole = stop == recording.length
        yield Episode(
            frames, np.where(begun[:, None], 0, actions[first:stop]), np.where(begun, 0, rewards[first:stop]),
            over & recording.terminated, (over & recording.truncated) if whole else np.arange(first, stop) == stop - 1,
            recording.text, text, {"recording": recording.name, "first_frame": first},
        )


def source_size(source: Source) -> tuple[int, int]:
    """Return height and width of the first frame of a source."""
    for recording in source:
        return next(_scaled(recording, None)).shape[:2]
    raise DataError(f"{source.folder}: expected recordings, found none")


def _scaled(recording: Recording, size: tuple[int, int] | None) -> Iterator[np.ndarray]:
    """Yield all frames of a recording, (H, W, 3) u8. Raises DataError naming a frame that is missing or no picture."""
    count = 0
    for frame in recording.frames():
        try:
            yield shown(frame, size)
        except DataError as error:
            raise DataError(f"{recording.name}: frame {count}: {error}") from None
        count += 1
    raise DataError(f"{recording.name}: expected {recording.length} frames, as many as its rows say, found {count}")


def _write(path: Path, episode: Episode, recording: Recording) -> None:
    try:
        write_episode(path, episode)
    except DataError as error:
        raise DataError(f"{recording.name}: {error}") from error


def _is_whole(path: Path) -> bool:
    try:
        return path.exists() and bool(read_header(path).shape)
    except DataError:
        return False
