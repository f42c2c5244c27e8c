"""What there is of a video until it is complete: a folder NAME-partial beside it, NAME-preview.png where it is asked
for, and NAME-partial.mp4 after a stop.

    NAME-partial/request.json            what was asked of which model; a run goes on only with the same
    NAME-partial/00000.safetensors ...   u of each new latent frame, written as it is solved
    NAME-partial/frames/00000.png ...    frames, where they are asked for; they become NAME-frames/
"""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starflow_world.errors import ConfigError
from starflow_world.io.files import is_file, read_tensors, recorded, remove_leftovers, write_tensors, write_text
from starflow_world.io.media import write_png

PREVIEW_SIDE = 480
"""Most pixels of a side of a preview."""
NUMBERED = "[0-9][0-9][0-9][0-9][0-9].png"


class PartialResult:
    """The folder of a result at `out` that is not complete yet."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.with_name(f"{out.stem}-partial")
        self.file = out.with_name(f"{out.stem}-partial{out.suffix}")
        self.made = self.folder / f"made{out.suffix}"
        self.preview = out.with_name(f"{out.stem}-preview.png")
        self.frames = self.folder / "frames"

    def begin(self, record: Mapping[str, Any], *, resume: bool) -> Tensor | None:
        """Make the folder ready and remove what a killed run left half-written. Return u (B, K, n, c) of the frames of
        an interrupted run, None without `resume` or where there are none. Raises ConfigError if that run had another
        record."""
        path, wanted = self.folder / "request.json", json.loads(json.dumps(record))
        if self.folder.exists():
            remove_leftovers(self.folder)
        old = recorded(path)
        if resume and old:
            for key in sorted(old.keys() | wanted.keys()):
                if old.get(key) != wanted.get(key):
                    raise ConfigError(f"resume: {path}: {key}: expected {old.get(key)!r:.80} as before, found "
                                      f"{wanted.get(key)!r:.80}; say the same, or leave out --resume")
            return self._solved()
        if old:
            print(f"{self.folder}: what an interrupted run left is removed; --resume would have gone on with it",
                  file=sys.stderr)
        self.remove()
        write_text(path, json.dumps(wanted, indent=1) + "\n")
        return None

    def _solved(self) -> Tensor | None:
        frames: list[Tensor] = []
        while is_file(path := self._path(len(frames))):
            frames.append(read_tensors(path, sealed=True)[0]["u"])
        return torch.stack(frames, dim=1) if frames else None

    def _path(self, frame: int) -> Path:
        return self.folder / f"{frame:05}.safetensors"

    def keep(self, frame: int, u: Tensor) -> None:
        """Write u (B, n, c) of a new latent frame, unless it is there."""
        if not is_file(self._path(frame)):
            write_tensors(self._path(frame), {"u": u}, sealed=True)

    def show(self, frame: np.ndarray) -> None:
        """Replace the preview by a frame (H, W, 3) u8, made smaller by leaving out pixels."""
        step = -(-max(frame.shape) // PREVIEW_SIDE)
        write_png(self.folder / "preview.png", frame[::step, ::step])
        (self.folder / "preview.png").replace(self.preview)

    def stopped(self) -> None:
        """Say what is kept of a run that was stopped; remove the folder where there is nothing in it."""
        if count := len(list(self.folder.glob("*.safetensors"))):
            print(f"{self.folder}: {count} latent frames; the same command with --resume goes on with them",
                  file=sys.stderr)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def finish(self, record: str) -> None:
        """Give what was made its final name, and write its record beside it."""
        write_text(self.folder / "record.json", record)
        self.made.replace(self.out)
        if self.frames.exists():
            self._move_frames(self.out.with_name(f"{self.out.stem}-frames"))
        (self.folder / "record.json").replace(self.out.with_suffix(".json"))
        self.remove()

    def remove(self) -> None:
        """Remove the folder and what a stop left beside it."""
        self.file.unlink(missing_ok=True)
        self.preview.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _move_frames(self, folder: Path) -> None:
        """Replace the numbered pictures in a folder, and no other file there, by those of this result."""
        folder.mkdir(exist_ok=True)
        for old in folder.glob(NUMBERED):
            old.unlink()
        for frame in self.frames.glob(NUMBERED):
            frame.replace(folder / frame.name)
