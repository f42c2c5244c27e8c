"""Text-, image- and video-to-video generation with a converted STARFlow-V; frames are written as they are generated.

As published: the prompt states the noise level, which is added to given frames; the unconditional half of guidance
reads an empty caption; long videos slide a window over u. Given frames are encoded once; their latents are not
resampled.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from starflow_world.codec.wan import VAE_FILES, WanCodec
from starflow_world.config.video import FRAMES, PIXELS, VideoConfig, latent_frames
from starflow_world.errors import ConfigError
from starflow_world.flow import Flow, Inverse
from starflow_world.io.media import VideoWriter, fitted, read_picture, read_video, write_png
from starflow_world.model.checkpoint import load_flow, load_video
from starflow_world.model.devices import read_device
from starflow_world.model.t5 import T5Text, local_folder
from starflow_world.noise import make_key, normals
from starflow_world.video.pipeline import GenerationTask, synthesize
from starflow_world.video.request import Request

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ENCODED = 4
"""Latent frames per call of the codec's encoder."""


class VideoModel:
    """A video flow with its text encoder and codec."""

    def __init__(self, config: VideoConfig, flow: Flow, text: T5Text, codec: WanCodec) -> None:
        codec.check(config.flow.channels, PIXELS)
        self.config, self.flow, self.text, self.codec = config, flow, text, codec
        self.device = flow.deep.start.device

    @staticmethod
    def load(
        folder: Path | str, *, text: str = "", codec: str = "", cache: Path | None = None, device: str = "auto",
        dtype: str = "auto",
    ) -> "VideoModel":
        """Load the model in a folder that `starflow-world convert` wrote. `text`, `codec`: folders or hub names that
        replace those of its config; `cache`: folder for the states of prompts. Raises CheckpointError, ConfigError."""
        place = read_device(device)
        if dtype == "auto":
            dtype = "float32" if place.type == "cpu" else "bfloat16"
        if dtype not in DTYPES:
            raise ConfigError(f"dtype: expected auto, {' or '.join(DTYPES)}, found {dtype!r}")
        config, _ = load_video(folder)
        kind = DTYPES[dtype]
        encoder = T5Text(text or config.text, config.flow.text_length, cache=cache, device=place, dtype=kind)
        files = local_folder(codec or config.codec, VAE_FILES)
        vae = WanCodec.load(files, device=place, dtype=kind, later=config.later)
        return VideoModel(config, load_flow(folder, device=place, dtype=kind), encoder, vae)

    def task(self, request: Request) -> tuple[GenerationTask, int]:
        """Return the task of the flow, and the number of its first frames to drop from the result (those of a
        translated source)."""
        config, key = self.config, make_key(request.seed)
        given = self._given(request, key)
        known = 0 if given is None else given.shape[1]
        translated = request.video is not None and not request.extend
        total = latent_frames(request.frames) + (known if translated else 0)
        if total <= known:
            count = 1 + FRAMES * (known - 1)
            raise ConfigError(f"frames: expected more than the {count} given, found {request.frames}")
        fps = 0 if request.frames == 1 else request.fps or config.fps
        words = config.prompt(request.prompt, fps=fps, aspect=request.aspect, task="v2v" if translated else "")
        text, null_text = self.text.encode([words, config.prompt("", fps=fps, aspect=request.aspect)]).split(1)
        h, w = config.grid(request.aspect)
        steps = torch.arange(known, total)
        noise = normals(torch.full_like(steps, key), steps, "prior", (h * w, config.flow.channels))[None]
        window = min(max(config.window, total if translated else 0), total)
        guidance = config.guidance if request.guidance is None else request.guidance
        return GenerationTask(
            noise.to(self.device), text, (h, w), window=window, context=min(config.context, max(window - 1, 1)),
            null_text=null_text, guidance=guidance, given=given,
            denoise_window=config.denoise_window, denoise_overlap=config.denoise_overlap,
        ), known if translated else 0

    def _given(self, request: Request, key: int) -> Tensor | None:
        """Return the noisy latents (1, P, n, c) of the frames that the user gave."""
        size = self.config.size(request.aspect)
        if request.image is not None:
            frames: Iterable[np.ndarray] = [read_picture(request.image)]
        elif request.video is not None:
            frames = read_video(request.video, most=request.frames)
        else:
            return None
        return torch.cat(list(self.noisy(frames, size, torch.tensor([key]))), dim=1)

    def noisy(self, frames: Iterable[np.ndarray], size: tuple[int, int], keys: Tensor) -> Iterator[Tensor]:
        """Yield noisy latents (K, t, n, c) of a clip piece by piece while its frames (H, W, 3) u8 arrive: K samples of
        the posterior and the noise, by keys (K,). Frames after the last 1 + 4k are ignored."""
        stream, place, done, count = iter(frames), self.codec.begin(1), 0, 1
        while piece := list(islice(stream, count)):
            whole = len(piece) // FRAMES * FRAMES if done else 1
            if not whole:
                break
            clip = torch.from_numpy(np.stack([fitted(frame, size) for frame in piece[:whole]]))[None]
            x, place = self.codec.encode(clip, place, keys=keys)
            steps = torch.arange(done, done + x.shape[1])
            noise = [normals(keys, t.expand_as(keys), "observation", x.shape[2:]) for t in steps]
            yield x.to(self.device) + self.config.noise_level * torch.stack(noise, dim=1).to(self.device)
            done, count = done + x.shape[1], ENCODED * FRAMES

    def run(
        self, request: Request, show: Callable[[np.ndarray], None], on_frame: Callable[[Inverse], None] = lambda _: None
    ) -> None:
        """Generate; `show` receives the frames (H, W, 3) u8 of the result one by one, `on_frame` the decoding result of
        each latent frame."""
        task, hidden = self.task(request)
        codec = self.codec.on_grid(task.grid)
        done, place = 0, codec.begin(1)

        def emit(latents: Tensor) -> None:
            nonlocal done, place
            done, latents = done + latents.shape[1], latents[:, max(hidden - done, 0) :]
            if latents.shape[1]:
                frames, place = codec.decode(latents, place)
                for frame in frames[0].cpu().numpy():
                    show(frame)

        synthesize(self.flow, task, self.config.decode, emit, on_frame=on_frame)


@dataclass
class GenerationProgress:
    """Progress bar over latent frames; it shows the number of sweeps per latent frame."""

    bar: tqdm
    frames: int = 0
    sweeps: int = 0
    open: int = 0

    def __call__(self, solved: Inverse) -> None:
        """Count one more latent frame."""
        self.frames += 1
        self.sweeps += int(solved.sweeps.max())
        self.open += int(not solved.converged.all())
        self.bar.set_postfix_str(f"{self.sweeps / self.frames:.1f} sweeps per latent frame", refresh=False)
        self.bar.update(FRAMES if self.bar.total is None else min(FRAMES, self.bar.total - self.bar.n))


def generate(model: VideoModel, request: Request, out: Path) -> Path:
    """Write a video (MP4), or a picture (PNG) for one frame; return its path. An existing file is kept until the new
    one is complete."""
    still = request.frames == 1
    out = out.with_suffix(".png" if still else ".mp4")
    fps = request.fps or model.config.fps
    with ExitStack() as stack:
        total = None if request.extend else request.frames - int(request.image is not None)
        bar = stack.enter_context(tqdm(total=total, unit="frame", file=sys.stderr, desc=out.name))
        progress = GenerationProgress(bar)
        if still:
            model.run(request, lambda frame: write_png(out, frame), progress)
        else:
            video = stack.enter_context(VideoWriter(out, fps))
            model.run(request, video.add, progress)
    if progress.open:
        print(f"{progress.open} of {progress.frames} latent frames did not converge within "
              f"{model.config.decode.max_sweeps} sweeps per chunk", file=sys.stderr)
    return out
