"""A request becomes a file: an MP4 or a PNG, written as frames arrive, and a JSON beside it.

Until it is complete it is a PartialResult. A run that is stopped leaves the frames that were decoded as a whole video,
and the latents that were solved, from which `resume` goes on.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from starflow_world.config.video import FRAMES
from starflow_world.errors import ConfigError
from starflow_world.flow import Inverse
from starflow_world.io.files import is_folder, write_tensors
from starflow_world.io.media import VideoWriter, write_png
from starflow_world.io.signals import Stop, stoppable
from starflow_world.video.model import VideoModel
from starflow_world.video.partial import PartialResult
from starflow_world.video.record import request_record, result_record
from starflow_world.video.request import Request
from starflow_world.video.sources import measure_given


@dataclass
class GenerationProgress:
    """Progress bar over the frames of the latent frames that are solved; it shows the sweeps per latent frame."""

    bar: tqdm
    total: int
    begun: float = field(default_factory=time.monotonic)
    frames: int = 0
    sweeps: int = 0
    open: int = 0

    def __call__(self, solved: Inverse) -> None:
        """Count one more latent frame."""
        self.frames += 1
        self.sweeps += int(solved.sweeps.max())
        self.open += int(not solved.converged.all())
        self.bar.set_postfix_str(f"{self.sweeps / self.frames:.1f} sweeps per latent frame", refresh=False)
        self.bar.update(min(FRAMES, self.total - self.bar.n))

    def figures(self) -> dict[str, float]:
        """Return what the run took."""
        return {"latent_frames": self.frames, "sweeps_per_latent_frame": round(self.sweeps / max(self.frames, 1), 3),
                "not_converged": self.open, "seconds": round(time.monotonic() - self.begun, 3)}


def result_path(out: Path, request: Request) -> Path:
    """Return the name of a result: .mp4, or .png for one frame. Raises ConfigError for a name of another kind."""
    suffix = ".png" if request.frames == 1 else ".mp4"
    if out.suffix not in ("", ".mp4", suffix) or is_folder(out) or not out.name:
        found = "a folder" if is_folder(out) else repr(out.name)
        raise ConfigError(f"out: expected a file name ending in {suffix}, found {found}")
    return out.with_suffix(suffix)


def generate(
    model: VideoModel, request: Request, out: Path, *, resume: bool = False, latents: Path | None = None,
    preview: int = 0,
) -> Path:
    """Write a video (MP4), or a picture (PNG) for one frame, and its record; return its path. An existing file is kept
    until the new one is complete.

    `latents`: a file for the clean latents (1, T, n, c). `preview`: each time that so many more frames are sampled,
    NAME-preview.png shows the newest one, roughly, until the video is there. `resume`: go on from what an interrupted
    run of the same request left, to the bytes that it would have written. Where a run is stopped by an error, Ctrl-C or
    SIGTERM, what was decoded is a whole video NAME-partial.mp4; then the error is raised.
    """
    result = PartialResult(result_path(out, request))
    clean: list[Tensor] = []
    with stoppable() as stop:
        solved = result.begin(request_record(request, model.origin), resume=resume)
        given = measure_given(request, model.config).count
        total = request.frames - (given if request.extend or request.image is not None else 0)
        with tqdm(total=total, unit="frame", file=sys.stderr, desc=result.out.name) as bar:
            progress = GenerationProgress(bar, total)

            def keep(solution: Inverse) -> None:
                with stop.held():
                    result.keep(progress.frames, solution.tokens)
                    progress(solution)

            def work(show: Callable[[np.ndarray], None]) -> None:
                kept = clean.append if latents is not None else lambda _: None
                model.run(request, show, keep, solved=solved, on_latents=kept, preview=-(-preview // FRAMES),
                          on_preview=result.show)

            try:
                _write(result, request, model.config.fps, work, stop)
            except BaseException:
                result.stopped()
                raise
        if latents is not None:
            write_tensors(latents, {"latents": torch.cat(clean, dim=1)})
        figures = progress.figures() | {"resumed": 0 if solved is None else solved.shape[1]}
        result.finish(result_record(request, model.origin, figures))
    if stop.asked:  # too late to interrupt this one
        raise KeyboardInterrupt
    if progress.open:
        print(f"{progress.open} of {progress.frames} latent frames did not converge within "
              f"{model.config.decode.max_sweeps} sweeps per chunk", file=sys.stderr)
    return result.out


def _write(
    result: PartialResult, request: Request, fps: int, work: Callable[[Callable[[np.ndarray], None]], None], stop: Stop
) -> None:
    """Write the frames that `work` shows to `result.made`; after an error, those that there are to `result.file`."""
    stopped: BaseException | None = None
    if result.out.suffix == ".png":
        with stop.interruptible():
            work(lambda frame: write_png(result.made, frame))
        return
    with VideoWriter(result.made, request.fps or fps, codec=request.codec, quality=request.quality) as video:

        def show(frame: np.ndarray) -> None:
            with stop.held():
                if request.png:
                    write_png(result.frames / f"{video.frames:05}.png", frame)
                video.add(frame)

        try:
            with stop.interruptible():
                work(show)
        except BaseException as error:
            if not video.frames:
                raise
            stopped = error
    if stopped is not None:
        result.made.replace(result.file)
        print(f"{result.file}: the {video.frames} frames that were complete", file=sys.stderr)
        raise stopped
