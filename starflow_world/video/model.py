"""Text-, image- and video-to-video generation with a converted STARFlow-V; frames are given out as they are generated.

As published: the prompt states the noise level, which is added to given frames; the unconditional half of guidance
reads an empty caption; long videos slide a window over u. Given frames are encoded once; their latents are not
resampled.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from starflow_world.codec.stream import Streams
from starflow_world.codec.wan import VAE_FILES, WanCodec
from starflow_world.config.video import FRAMES, PIXELS, VideoConfig, latent_frames
from starflow_world.errors import ConfigError, DataError
from starflow_world.flow import Flow, Inverse
from starflow_world.io.files import is_folder
from starflow_world.io.media import fitted, write_png
from starflow_world.model.checkpoint import load_flow, load_video
from starflow_world.model.devices import read_device
from starflow_world.model.t5 import T5Text, identity, local_folder
from starflow_world.noise import make_key, normals
from starflow_world.video.parts import Part
from starflow_world.video.pipeline import GenerationTask, synthesize
from starflow_world.video.request import Request
from starflow_world.video.sources import measure_given

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ENCODED = 4
"""Latent frames per call of the codec's encoder."""


@dataclass(frozen=True)
class ModelOrigin:
    """Where the parts of a video model come from, and what is in them: folders or hub names, and digests."""

    model: str = ""
    text: str = ""
    vae: str = ""
    weights: str = ""
    text_digest: str = ""
    vae_digest: str = ""
    device: str = ""
    dtype: str = ""


@dataclass(frozen=True)
class GeneratedVideos:
    """Videos of a prompt: `frames` (N, F, H, W, 3) u8, and the seed that each alone is made of."""

    frames: np.ndarray
    seeds: tuple[int, ...]


class VideoModel:
    """A video flow with its text encoder and codec. With `offload` flow and codec are in memory only while they work.
    """

    def __init__(
        self, config: VideoConfig, flow: Flow | Part[Flow], text: T5Text, codec: WanCodec | Part[WanCodec],
        origin: ModelOrigin | None = None, *, offload: bool = False,
    ) -> None:
        self.config, self.text, self.origin, self.offload = config, text, origin or ModelOrigin(), offload
        self._flow = flow if isinstance(flow, Part) else Part(lambda: flow)
        self._codec = codec if isinstance(codec, Part) else Part(lambda: codec)
        self.device = text.device
        self.codec.check(config.flow.channels, PIXELS)
        if offload:
            self._codec.release()
        else:
            self._flow()

    @property
    def flow(self) -> Flow:
        """Return the flow."""
        return self._flow()

    @property
    def codec(self) -> WanCodec:
        """Return the codec."""
        return self._codec()

    @staticmethod
    def from_pretrained(
        folder: Path | str, *, text: str = "", codec: str = "", cache: Path | None = None, device: str = "auto",
        dtype: str = "auto", prompts: Sequence[str] = (), offload: bool = False,
    ) -> "VideoModel":
        """Load the model in a folder that `starflow-world convert` wrote. `text`, `codec`: folders or hub names that
        replace those of its config; `cache`: folder for the states of prompts; `prompts`: what the text encoder will
        read, checked, and with a cache encoded, before other weights are loaded; `offload`: flow and VAE are loaded
        when they work, and released behind it. Raises CheckpointError, ConfigError, DataError."""
        place = read_device(device)
        if dtype == "auto":
            dtype = "float32" if place.type == "cpu" else "bfloat16"
        if dtype not in DTYPES:
            raise ConfigError(f"dtype: expected auto, {' or '.join(DTYPES)}, found {dtype!r}")
        config, weights = load_video(folder)
        kind = DTYPES[dtype]
        encoder = T5Text(text or config.text, config.flow.text_length, cache=cache, device=place, dtype=kind)
        for prompt in prompts:
            encoder.check(prompt)
        if cache is not None and prompts:  # so that the encoder's memory is free again before the rest is loaded
            encoder.encode(prompts)
            encoder.release()
        files = local_folder(codec or config.codec, VAE_FILES)
        vae = Part(partial(WanCodec.load, files, device=place, dtype=kind, later=config.later))
        flow = Part(partial(load_flow, folder, device=place, dtype=kind))
        origin = ModelOrigin(
            str(folder), text or config.text, codec or config.codec, weights, identity(encoder.folder),
            identity(files / "vae" if is_folder(files / "vae") else files), str(place), dtype,
        )
        return VideoModel(config, flow, encoder, vae, origin, offload=offload)

    def generate(
        self, prompt: str, *, negative_prompt: str = "", image: Any = None, video: Path | str | None = None,
        extend: bool = False, num_frames: int = 81, aspect: str = "16:9", fps: int = 0,
        guidance_scale: float | None = None, num_videos_per_prompt: int = 1, seed: int = 0,
        generator: torch.Generator | None = None, callback: Callable[[int, int], None] = lambda video, step: None,
    ) -> GeneratedVideos:
        """Return videos of a prompt, with seeds `seed`, `seed` + 1 ..., or seeds that are drawn from `generator`.

        The other arguments are flags of `starflow-world generate`: num_frames is --frames, guidance_scale --guidance.
        image: a file, a PIL picture, or (H, W, 3) u8; video: a file. `callback` is called with the number of the video
        and of its latent frames that are solved; what it raises ends the call. Raises ConfigError, DataError.
        """
        seeds = list(range(seed, seed + num_videos_per_prompt))
        if generator is not None:
            seeds = torch.randint(1 << 62, (len(seeds),), generator=generator, device=generator.device).tolist()
        if not seeds:
            raise ConfigError(f"num_videos_per_prompt: expected a number >= 1, found {num_videos_per_prompt}")
        shown: list[np.ndarray] = []

        def told(number: int) -> Callable[[Inverse], None]:
            steps = count(1)
            return lambda _: callback(number, next(steps))

        with _as_file(image) as picture:
            for number, one in enumerate(seeds):
                self.run(Request(
                    prompt, negative_prompt, num_frames, aspect, fps, guidance_scale, one, picture,
                    Path(video) if video else None, extend,
                ), shown.append, told(number))
        return GeneratedVideos(np.stack(shown).reshape(len(seeds), -1, *shown[0].shape), tuple(seeds))

    def task(self, request: Request, solved: Tensor | None = None) -> tuple[GenerationTask, int]:
        """Return the task of the flow, and the number of its first frames to drop from the result (those of a
        translated source). `solved`: u of its first new frames, if they are known."""
        config, key = self.config, make_key(request.seed)
        *texts, null_text = self.text.encode(prompts_of(request, config)).split(1)
        self.text.release()
        given = self._given(request, key)
        known = 0 if given is None else given.shape[1]
        translated = request.video is not None and not request.extend
        total = latent_frames(request.frames) + (known if translated else 0)
        hidden = known if translated else 0
        starts = [hidden + -(-frame // FRAMES) for frame, _ in request.prompts]
        h, w = config.grid(request.aspect)
        steps = torch.arange(known, total)
        noise = normals(torch.full_like(steps, key), steps, "prior", (h * w, config.flow.channels))[None]
        window = min(max(config.window, total if translated else 0), total)
        guidance = config.guidance if request.guidance is None else request.guidance
        return GenerationTask(
            noise.to(self.device), texts[0], (h, w), window=window, context=min(config.context, max(window - 1, 1)),
            null_text=null_text, guidance=guidance, given=given,
            denoise_window=config.denoise_window, denoise_overlap=config.denoise_overlap,
            solved=None if solved is None else solved.to(self.device),
            changes=dict(zip(starts[1:], texts[1:], strict=True)),
        ), hidden

    def _given(self, request: Request, key: int) -> Tensor | None:
        """Return the noisy latents (1, P, n, c) of the frames that the user gave."""
        given, size = measure_given(request, self.config), self.config.size(request.aspect)
        if not given.count:
            return None
        return torch.cat(list(self.noisy(given.read(request), size, torch.tensor([key]))), dim=1)

    def noisy(self, frames: Iterable[np.ndarray], size: tuple[int, int], keys: Tensor) -> Iterator[Tensor]:
        """Yield noisy latents (K, t, n, c) of a clip piece by piece while its frames (H, W, 3) u8 arrive: K samples of
        the posterior and the noise, by keys (K,). Frames after the last 1 + 4k are ignored."""
        stream, place, done, wanted = iter(frames), self.codec.begin(1), 0, 1
        while piece := list(islice(stream, wanted)):
            whole = len(piece) // FRAMES * FRAMES if done else 1
            if not whole:
                break
            clip = torch.from_numpy(np.stack([fitted(frame, size) for frame in piece[:whole]]))[None]
            x, place = self.codec.encode(clip, place, keys=keys)
            steps = torch.arange(done, done + x.shape[1])
            noise = [normals(keys, t.expand_as(keys), "observation", x.shape[2:]) for t in steps]
            yield x.to(self.device) + self.config.noise_level * torch.stack(noise, dim=1).to(self.device)
            done, wanted = done + x.shape[1], ENCODED * FRAMES

    def run(
        self, request: Request, show: Callable[[np.ndarray], None],
        on_frame: Callable[[Inverse], None] = lambda _: None, *, solved: Tensor | None = None,
        on_latents: Callable[[Tensor], None] = lambda _: None, preview: int = 0,
        on_preview: Callable[[np.ndarray], None] = lambda _: None,
    ) -> None:
        """Generate; `show` receives the frames (H, W, 3) u8 of the result one by one, `on_latents` the clean latents
        (1, k, n, c) that they are decoded from, `on_frame` the decoding result of each new latent frame. `solved`: u
        (1, K, n, c) of the first new frames, from an interrupted run of the same request. `on_preview` receives a frame
        (H, W, 3) u8 each time that `preview` more latent frames are solved. Raises ConfigError, DataError."""
        if preview and self.offload:
            raise ConfigError("preview: expected without offload, which releases the VAE while frames are sampled")
        task, hidden = self.task(request, solved)
        done, place = 0, cast(Streams, ())
        waiting: list[Tensor] = []

        def emit(latents: Tensor) -> None:
            nonlocal done, place
            done, latents = done + latents.shape[1], latents[:, max(hidden - done, 0) :]
            if latents.shape[1]:
                on_latents(latents)
                frames, place = self.codec.on_grid(task.grid).decode(latents, place)
                for frame in frames[0].cpu().numpy():
                    show(frame)

        def peek(latents: Tensor, start: int) -> None:
            latents = latents[:, max(hidden - start, 0) :]
            if start > hidden:  # decoded as the first frame of a clip
                latents = torch.cat((latents[:, :1] / self.config.later, latents[:, 1:]), dim=1)
            on_preview(self.codec.on_grid(task.grid).decode(latents)[0][0, -1].cpu().numpy())

        if self.offload:
            self._codec.release()
        synthesize(self.flow, task, self.config.decode, waiting.append if self.offload else emit, on_frame=on_frame,
                   preview=preview, peek=peek)
        if self.offload:
            self._flow.release()
            for latents in waiting:
                emit(latents)
            self._codec.release()


def prompts_of(request: Request, config: VideoConfig) -> list[str]:
    """Return what the text encoder reads for a request: its prompts, and what guidance moves away from."""
    fps = 0 if request.frames == 1 else request.fps or config.fps
    task = "v2v" if request.video is not None and not request.extend else ""
    texts = [config.prompt(text, fps=fps, aspect=request.aspect, task=task) for _, text in request.prompts]
    return [*texts, config.prompt(request.negative_prompt, fps=fps, aspect=request.aspect)]


@contextmanager
def _as_file(image: Any) -> Iterator[Path | None]:
    """Give a picture that is in memory the name of a file, without loss, for as long as it is needed."""
    if image is None or isinstance(image, str | Path):
        yield None if image is None else Path(image)
        return
    pixels = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        expected = "a file, a PIL picture or an array (H, W, 3) of uint8"
        raise DataError(f"image: expected {expected}, found {pixels.dtype} {pixels.shape}")
    with TemporaryDirectory() as folder:
        write_png(Path(folder) / "image.png", pixels)
        yield Path(folder) / "image.png"
