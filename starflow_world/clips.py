"""What video models learn from: a folder of clips and pictures, each with its caption in a .txt file of its name.

Steps are of clips or of pictures, never of both. What a row of a step shows follows from (seed, step, row), whichever
process has the row.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .distributed import Processes
from .errors import DataError
from .media import fitted, measure_video, read_picture, read_video
from .noise import make_key
from .recipe import VideoRecipe

VIDEOS, PICTURES = (".mp4", ".mov", ".mkv", ".webm", ".avi"), (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Item:
    """A clip, or a picture (one frame, 0 frames per second)."""

    path: Path
    caption: str
    frames: int = 1
    fps: int = 0


@dataclass(frozen=True)
class ClipBatch:
    """frames (B, F, H, W, 3) u8, what the text encoder reads, noise keys (B,); `extend`: without the first latent
    frame, as a window of a longer video."""

    frames: Tensor
    prompts: list[str]
    keys: Tensor
    extend: bool


def find_items(folder: Path | str, *, fps: int) -> list[Item]:
    """The clips and pictures of a folder, by name; `fps` of clips that do not say. Raises DataError."""
    found = []
    for path in sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []:
        words = path.with_suffix(".txt")
        caption = words.read_text(encoding="utf-8").strip() if words.is_file() else ""
        if path.suffix.lower() in VIDEOS:
            frames, rate = measure_video(path)
            found.append(Item(path, caption, frames, max(round(rate), 1) if rate else fps))
        elif path.suffix.lower() in PICTURES:
            found.append(Item(path, caption))
    if not found:
        raise DataError(f"{folder}: expected clips or pictures ({', '.join(VIDEOS + PICTURES)}), found none")
    return found


class ClipSampler:
    """Draws steps: the rows of this process, of a step that all draw alike."""

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
        """What training step `step` shows."""
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

    def _frames(self, item: Item, count: int, place: float) -> np.ndarray:
        """`count` frames (count, H, W, 3) of an item, from anywhere in it (`place` in [0, 1))."""
        size = self.config.size(self.train.aspect)
        if not item.fps:
            return fitted(read_picture(item.path), size)[None]
        start = int(place * (item.frames - count + 1))
        found = [fitted(frame, size) for frame in read_video(item.path, count, start)]
        if len(found) < count:
            raise DataError(f"{item.path}: expected {item.frames} frames, found {start + len(found)}; it is damaged")
        return np.stack(found)
