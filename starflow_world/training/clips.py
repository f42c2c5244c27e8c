"""Training data of video models: episodes, or clips and pictures, each with a caption in a .txt file of the same name.

A step trains on clips or on pictures, never both. Windows of episodes are treated as clips: each action must be held
for the 4 frames of a latent frame and conditions that latent frame. The content of a batch element is a function of
(seed, step, element), independent of the process.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from starflow_world.config.train import VideoRecipe
from starflow_world.config.video import FRAMES, latent_frames
from starflow_world.data.dataset import EpisodeDataset, Windows
from starflow_world.data.episodes import NAME
from starflow_world.errors import DataError
from starflow_world.io.media import fitted, measure_video, read_picture, read_video
from starflow_world.noise import make_key
from starflow_world.training.distributed import Processes

VIDEOS, PICTURES = (".mp4", ".mov", ".mkv", ".webm", ".avi"), (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Item:
    """A clip, or a picture (`frames` 1 and `fps` 0), with its caption."""

    path: Path
    caption: str
    frames: int = 1
    fps: int = 0


@dataclass(frozen=True)
class ClipBatch:
    """Training batch: frames (B, F, H, W, 3) u8, B prompts for the text encoder, noise keys (B,). `extend`: drop the
    first latent frame, as in a window of a longer video. actions (B, T, 1 + flat): those of the T remaining latent
    frames; None for clips."""

    frames: Tensor
    prompts: list[str]
    keys: Tensor
    extend: bool
    actions: Tensor | None = None


def find_items(folder: Path | str, *, fps: int) -> list[Item]:
    """List the clips and pictures of a folder, sorted by name; `fps` is the default frame rate. Raises DataError."""
    items = []
    for path in sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []:
        words = path.with_suffix(".txt")
        caption = words.read_text(encoding="utf-8").strip() if words.is_file() else ""
        if path.suffix.lower() in VIDEOS:
            frames, rate = measure_video(path)
            items.append(Item(path, caption, frames, max(round(rate), 1) if rate else fps))
        elif path.suffix.lower() in PICTURES:
            items.append(Item(path, caption))
    if not items:
        kinds = ", ".join(VIDEOS + PICTURES)
        raise DataError(f"{folder}: expected clips or pictures ({kinds}), or episodes, found none")
    return items


class ClipSampler:
    """Sampler of this process's share of each step's clips or pictures."""

    def __init__(self, folder: Path | str, recipe: VideoRecipe, processes: Processes) -> None:
        self.config, self.train, self.processes = recipe.video, recipe.train, processes
        items = find_items(folder, fps=self.config.fps)
        self.clips = [item for item in items if item.fps]
        self.pictures = [item for item in items if not item.fps] or self.clips
        short = [item for item in self.clips if item.frames < self.train.frames]
        if short:
            expected = f"clips of at least train.frames = {self.train.frames} frames"
            raise DataError(f"{short[0].path}: expected {expected}, found {short[0].frames}; cut or remove it")
        if not self.clips and self.train.picture_rate < 1:
            raise DataError(f"{folder}: expected clips, found pictures only; set train.picture_rate to 1")

    def batch(self, step: int) -> ClipBatch:
        """Draw the clips or pictures of training step `step`."""
        train = self.train
        rng = np.random.default_rng((train.seed, step))
        picture, extend = rng.random(2) < (train.picture_rate, train.image_dropout)
        source, rows = (self.pictures, train.pictures) if picture else (self.clips, train.clips)
        index, place = rng.integers(len(source), size=rows), rng.random(rows)
        silent = rng.random(rows) < train.caption_dropout
        task = "extend" if extend and not picture else ""
        frames, prompts, keys = [], [], []
        for row in range(rows)[self.processes.part(rows)]:
            item = source[index[row]]
            frames.append(self._frames(item, 1 if picture else train.frames, float(place[row])))
            caption, fps = "" if silent[row] else item.caption, 0 if picture else item.fps
            prompts.append(self.config.prompt(caption, fps=fps, aspect=train.aspect, task=task))
            keys.append(make_key((train.seed, row)))
        return ClipBatch(torch.from_numpy(np.stack(frames)), prompts, torch.tensor(keys), bool(task))

    def prompts(self) -> Iterator[tuple[Path, str]]:
        """Yield each file with the longest prompt that a training step can use for it."""
        task = "extend" if self.train.image_dropout else ""
        for item in {item.path: item for item in (*self.clips, *self.pictures)}.values():
            yield item.path, self.config.prompt(
                item.caption, fps=item.fps, aspect=self.train.aspect, task=task if item.fps else ""
            )

    def _frames(self, item: Item, count: int, place: float) -> np.ndarray:
        """Read `count` frames (count, H, W, 3) of an item, from the relative position `place` in [0, 1)."""
        size = self.config.size(self.train.aspect)
        if not item.fps:
            return fitted(read_picture(item.path), size)[None]
        start = int(place * (item.frames - count + 1))
        frames = [fitted(frame, size) for frame in read_video(item.path, count, start)]
        if len(frames) < count:
            raise DataError(f"{item.path}: expected {item.frames} frames, found {start + len(frames)}; it is damaged")
        return np.stack(frames)


def are_episodes(folder: Path | str) -> bool:
    """Return whether a folder holds episode files as written by `collect` and `write_episode`."""
    return Path(folder).is_dir() and any(NAME.fullmatch(path.name) for path in Path(folder).iterdir())


class EpisodeSampler:
    """Sampler of this process's share of each step's windows of episodes, with their texts as prompts. A window begins
    where an action begins. Episodes shorter than a window are skipped; raises DataError if all are."""

    def __init__(self, episodes: EpisodeDataset, windows: Windows, recipe: VideoRecipe, processes: Processes) -> None:
        self.config, self.train, self.processes = recipe.video, recipe.train, processes
        self.windows, self.paths = windows, episodes.paths
        room = np.maximum((self.windows.lengths - self.train.frames) // FRAMES + 1, 0)
        if not room.any():
            expected = f"an episode of at least train.frames = {self.train.frames} frames"
            raise DataError(f"{episodes.folder}: expected {expected}, the longest has {self.windows.lengths.max()}")
        for episode in np.flatnonzero(room):
            begin = self.windows.offsets[episode]
            _check_held(self.paths[episode], self.windows.actions[begin : begin + self.windows.lengths[episode]])
        self.ends = np.cumsum(room)

    def batch(self, step: int) -> ClipBatch:
        """Draw the windows of training step `step`."""
        train = self.train
        rng = np.random.default_rng((train.seed, step))
        rows, first = train.clips, int(rng.random() < train.image_dropout)
        place = rng.integers(self.ends[-1], size=rows)
        episode = np.searchsorted(self.ends, place, side="right")
        start = FRAMES * (self.ends[episode] - 1 - place)
        start = np.where(rng.random(rows) < train.start_rate, 0, start)
        silent = rng.random(rows) < train.caption_dropout
        present = rng.random((rows, latent_frames(train.frames))) >= train.action_dropout
        present[:, first] = True  # a missing first action marks an episode start, as in batches.py
        present[:, 0] &= start > 0
        frames, prompts, actions, keys = [], [], [], []
        for row in range(rows)[self.processes.part(rows)]:
            window = self.windows.window(int(episode[row]), int(start[row]), train.frames)
            frames.append([fitted(frame, self.config.size(train.aspect)) for frame in window["frames"]])
            actions.append(np.insert(window["actions"][::FRAMES], 0, 1, axis=1) * present[row][:, None])
            text = "" if silent[row] else self.windows.texts[episode[row]]
            prompts.append(self.config.prompt(text, fps=self.config.fps, aspect=train.aspect))
            keys.append(make_key((train.seed, row)))
        shown, led = torch.from_numpy(np.array(frames)), torch.from_numpy(np.stack(actions)[:, first:])
        return ClipBatch(shown, prompts, torch.tensor(keys), bool(first), led)

    def prompts(self) -> Iterator[tuple[Path, str]]:
        """Yield the path and the prompt of each episode."""
        for path, text in zip(self.paths, self.windows.texts, strict=True):
            yield path, self.config.prompt(text, fps=self.config.fps, aspect=self.train.aspect)


def _check_held(path: Path, actions: np.ndarray) -> None:
    """Raise DataError unless the actions (T, A) of an episode are constant over the frames of each latent frame."""
    blocks = actions[1 : 1 + (len(actions) - 1) // FRAMES * FRAMES].reshape(-1, FRAMES, actions.shape[1])
    changing = (blocks != blocks[:, :1]).any(axis=(1, 2))
    if changing.any():
        at = 1 + FRAMES * int(changing.argmax())
        expected = f"one action held for the {FRAMES} frames of a latent frame, {at} to {at + FRAMES - 1}"
        raise DataError(f"{path}: expected {expected}, found several; collect with --hold {FRAMES}")
