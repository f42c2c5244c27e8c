"""What visitors save: states and videos in one folder, under names that the server makes."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from starflow_world.errors import DataError
from starflow_world.io.media import VideoWriter, caption, enlarge

NAME = re.compile(r"(state|play)-\d{4}\.(safetensors|mp4)")
TALLEST = 384
"""Pixels to which a recorded frame is enlarged at most, by a whole number."""


class Shelf:
    """The folder of saved files; it is made when something is saved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self, suffix: str = "") -> list[str]:
        """Return the names of saved files, the newest last."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir()
                      if NAME.fullmatch(path.name) and path.name.endswith(suffix) and not path.is_symlink())

    def path(self, name: str) -> Path:
        """Return the path of a saved file. Raises DataError for every name that is not among `names`."""
        if name not in self.names():
            raise DataError(f"saved file: expected one of {len(self.names())} names, found {name!r:.60}")
        return self.folder / name

    def free(self, kind: str, suffix: str) -> Path:
        """Return the path of the next file of a kind: state-0001.safetensors, play-0001.mp4."""
        last = [int(name.split("-")[1].split(".")[0]) for name in self.names() if name.startswith(kind)]
        return self.folder / f"{kind}-{max(last, default=0) + 1:04d}{suffix}"


class Recorder:
    """A video that grows by a frame a step; `close` gives it its name."""

    def __init__(self, path: Path, fps: int, *, overlay: bool) -> None:
        self.path, self.overlay, self.panes = path, overlay, 0
        self._writer = VideoWriter(path, fps).__enter__()

    def add(self, frames: list[np.ndarray], facts: dict[str, Any]) -> None:
        """Append frames (H, W, 3) side by side, as many as at first: later ones are left out, missing ones are black.
        With overlay, step, nats and reward stand below."""
        self.panes = self.panes or len(frames)
        missing = [np.zeros_like(frames[0])] * (self.panes - len(frames))
        picture = np.concatenate([*frames[: self.panes], *missing], axis=1)
        picture = enlarge(picture, max(1, TALLEST // picture.shape[0]))
        if self.overlay:
            words = f"step {facts['step']}" + ("" if facts["nats"] is None else f"  nats {facts['nats']:.1f}")
            words += "" if facts["reward"] is None else f"  reward {facts['reward']:.2f}"
            picture = caption(picture, [words])
        self._writer.add(picture)

    @property
    def frames(self) -> int:
        """Return the number of frames so far."""
        return self._writer.frames

    def close(self) -> str:
        """Finish the file and return its name."""
        self._writer.__exit__(None, None, None)
        return self.path.name
