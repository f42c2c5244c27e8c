"""Pictures of recordings: a contact sheet, and a video with actions and rewards written below the frames."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from starflow_world.data.episodes import Episode
from starflow_world.errors import ConfigError
from starflow_world.io.media import VideoWriter, caption, contact_sheet, enlarge, write_png
from starflow_world.recordings.importing import episodes_of, source_size
from starflow_world.recordings.source import Source, action_space

COLUMNS = 8
LEAST_WIDTH = 320
MOST_NUMBERS = 6


def preview(source: Source, out: Path | str, *, recordings: int = 4, frames: int = 300,
            size: tuple[int, int] | None = None, space: spaces.Space | None = None, fps: int = 0) -> tuple[Path, Path]:
    """Write preview.png, COLUMNS frames of each of the first recordings, and preview.mp4, their first `frames` frames
    with actions and rewards, into the folder `out`; return both paths.

    size: height and width of the frames; None: as they are. fps: of the video; 0: those of the source, else 8. Raises
    ConfigError and DataError.
    """
    if recordings < 1 or frames < 2:
        raise ConfigError(f"expected recordings >= 1 and frames >= 2, found {recordings} and {frames}")
    space = action_space(source) if space is None else space
    size = source_size(source) if size is None else size
    sheet, video = Path(out) / "preview.png", Path(out) / "preview.mp4"
    pictures: list[np.ndarray] = []
    with VideoWriter(video, fps or max(1, round(source.fps or 8))) as writer:
        for number, recording in enumerate(islice(source, recordings)):
            episode = next(episodes_of(recording, space, size, frames))
            factor = max(1, -(-LEAST_WIDTH // size[1]))
            for t in range(len(episode)):
                writer.add(caption(enlarge(episode.frames[t], factor), described(episode, space, number, t), 0.4))
            shown = np.linspace(0, len(episode) - 1, COLUMNS).round().astype(int)
            pictures += [caption(enlarge(episode.frames[t], max(1, factor // 2)), [f"{number}: {t}"], 0.35)
                         for t in shown]
    write_png(sheet, contact_sheet(pictures, COLUMNS))
    return sheet, video


def described(episode: Episode, space: spaces.Space, number: int, t: int) -> list[str]:
    """Return the lines below a frame: which frame it is, the action that led to it, its reward, and an end."""
    action = "none" if t == 0 else action_text(spaces.unflatten(space, episode.actions[t]))
    end = "terminated" if episode.terminated[t] else "last" if t == len(episode) - 1 else ""
    lines = [f"recording {number}, frame {t} {end}", f"action {action}", f"reward {episode.rewards[t]:g}"]
    return [*lines, episode.text[:60]] if episode.text else lines


def action_text(action: Any) -> str:
    """Return an action in a few characters."""
    if isinstance(action, dict):
        return " ".join(f"{key} {action_text(part)}" for key, part in action.items())
    if isinstance(action, tuple):
        return " ".join(map(action_text, action))
    numbers = np.asarray(action).ravel()
    return " ".join(f"{number:.3g}" for number in numbers[:MOST_NUMBERS]) + (" ..." * (len(numbers) > MOST_NUMBERS))
