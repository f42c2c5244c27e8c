"""The report of `starflow-world plan`: tables of what a video needs, and whether it fits onto a GPU."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from starflow_world.config.video import VideoConfig, latent_frames
from starflow_world.errors import ConfigError
from starflow_world.video.decoding import Decoder
from starflow_world.video.requirements import GIB, GPUS, Gpu, Needs


def requirements_report(
    config: VideoConfig, gpu: str, *, aspect: str = "16:9", frames: int = 81, guidance: float | None = None,
    sweeps: Sequence[int] = (2, 4, 8, 16),
) -> str:
    """Report the requirements of a video of `frames` frames on one of GPUS. Raises ConfigError."""
    if gpu not in GPUS:
        raise ConfigError(f"gpu: expected one of {', '.join(GPUS)}, found {gpu!r}")
    machine, guided = GPUS[gpu], bool(config.guidance if guidance is None else guidance)
    height, width = config.size(aspect)
    h, w = config.grid(aspect)
    needs, total = Needs(config.flow, h * w), latent_frames(frames)
    head = (f"{config.name} on {gpu}: {frames} frames of {height} x {width} = {total} latent frames of {h} x {w} "
            f"tokens, {'with' if guided else 'without'} guidance, window {config.window}")
    parts = [head, *_weights(needs), *_caches(config, needs), *_sweeps(config, needs, machine, guided)]
    clip = _Clip(config, needs, (h, w), total, min(total, config.window), guided)
    return "\n".join([*parts, *_whole_video(clip, machine, sweeps)])


def _weights(needs: Needs) -> list[str]:
    counts, sizes = needs.parameters(), needs.weight_bytes()
    rows = [f"  {part:10}{count / 1e9:12.3f} B{sizes[part] / GIB:12.2f} GiB" for part, count in counts.items()]
    whole = f"  {'all':10}{sum(counts.values()) / 1e9:12.3f} B{sum(sizes.values()) / GIB:12.2f} GiB"
    return ["", "weights        parameters    in bfloat16", *rows, whole]


def _caches(config: VideoConfig, needs: Needs) -> list[str]:
    lengths = sorted({1, 6, 11, 16, config.window, 2 * config.window})
    rows = []
    for frames in lengths:
        alone, both = (needs.cache_bytes(frames, guided=guided) / GIB for guided in (False, True))
        positions = needs.config.text_length + frames * needs.tokens
        rows.append(f"  {frames:3} latent frames {positions:9} positions{alone:10.2f} GiB{both:10.2f} GiB")
    return ["", "keys and values, bfloat16                 unguided        guided", *rows]


def _sweeps(config: VideoConfig, needs: Needs, gpu: Gpu, guided: bool) -> list[str]:
    lengths = [needs.config.text_length + frames * needs.tokens for frames in (1, 5, 10, config.window - 1)]
    rows = []
    for chunk in sorted({32, 128, config.decode.chunk or needs.tokens, needs.tokens}):
        cells = []
        for length in lengths:
            seconds = needs.sweep_seconds(gpu, chunk, length, guided=guided)
            read = needs.sweep_bytes(chunk, length, guided=guided) / gpu.bandwidth
            cells.append(f"{1e3 * seconds:9.2f} {'read' if read >= seconds else 'math'}")
        rows.append(f"  {chunk:5} tokens{''.join(cells)}")
    head = "".join(f"{length:9} pos" + " " for length in lengths)
    title = "least ms per deep sweep, by reading or by products, behind so many positions"
    return ["", title, f"  {'':12}{head}", *rows]


@dataclass(frozen=True)
class _Memory:
    """Bytes of what is in memory at a time, by name."""

    parts: dict[str, float]

    def verdict(self, gpu: Gpu) -> str:
        """Say whether it fits onto a GPU, and if not, because of what."""
        whole = sum(self.parts.values())
        figures = " + ".join(f"{name} {size / GIB:.1f}" for name, size in self.parts.items())
        if whole <= gpu.memory:
            result = f"fits, {(gpu.memory - whole) / GIB:.1f} GiB are left"
        else:
            largest = max(self.parts, key=lambda name: self.parts[name])
            result = f"does not fit, because {(whole - gpu.memory) / GIB:.1f} GiB are missing; most is {largest}"
        return f"{figures} = {whole / GIB:.1f} GiB of {gpu.memory / GIB:.1f} GiB: {result}"

    def fits(self, gpu: Gpu) -> bool:
        return sum(self.parts.values()) <= gpu.memory


@dataclass(frozen=True)
class _Clip:
    """A video of `frames` latent frames in a window of `window`."""

    config: VideoConfig
    needs: Needs
    grid: tuple[int, int]
    frames: int
    window: int
    guided: bool
    offload: bool = False

    @property
    def chunk(self) -> int:
        return self.config.decode.chunk or self.needs.tokens

    def memory(self) -> _Memory:
        """Return what is in memory while the last frames of a window are sampled; the VAE alone needs less."""
        decoder, config = Decoder(self.config.flow.channels), self.config
        encoded = config.context * self.needs.tokens if self.frames > self.window else self.chunk
        work = max(
            self.needs.activation_bytes(encoded, self.window, guided=self.guided),
            self.needs.denoiser_bytes(min(self.frames, config.denoise_window)) if config.flow.denoiser_layers else 0.0,
            0.0 if self.offload else decoder.activation_bytes(*self.grid),
        )
        vae = 0.0 if self.offload else decoder.weight_bytes() + decoder.held_bytes(*self.grid)
        return _Memory({
            "weights": sum(self.needs.weight_bytes().values()),
            "cache": self.needs.cache_bytes(self.window, guided=self.guided),
            "activations": work, "VAE": vae,
        })

    @property
    def slides(self) -> int:
        hop = self.window - self.config.context
        return -(-(self.frames - self.window) // hop) if self.frames > self.window else 0

    def seconds(self, gpu: Gpu, sweeps: int) -> dict[str, float]:
        """Return the least seconds of each part, with so many sweeps per chunk and shallow block."""
        needs, deep = self.needs, self.needs.deep_seconds(gpu, self.window, self.chunk, guided=self.guided)
        if self.slides:  # a slide encodes the context again, then samples the next hop
            late = deep - needs.deep_seconds(gpu, self.config.context, self.chunk, guided=self.guided)
            deep += (self.frames - self.window) / (self.window - self.config.context) * late
        text, context = needs.config.text_length, self.config.context * needs.tokens
        again = self.slides * needs.sweep_operations(context, text, guided=self.guided) / gpu.operations
        clean = needs.denoiser_operations(self.frames) if self.config.flow.denoiser_layers else 0.0
        decoder = Decoder(self.config.flow.channels)
        decoded = decoder.operations(*self.grid, first=True) + (self.frames - 1) * decoder.operations(*self.grid)
        shallow = sweeps * self.frames * needs.shallow_operations()
        return {"deep": sweeps * deep + again, "shallow": shallow / gpu.operations,
                "denoiser": clean / gpu.operations, "VAE": decoded / gpu.operations}


def _whole_video(clip: _Clip, gpu: Gpu, sweeps: Sequence[int]) -> list[str]:
    memory, advice = clip.memory(), []
    if not memory.fits(gpu):
        advice = [f"  {what}: {other.memory().verdict(gpu).partition(': ')[2]}" for what, other in _smaller(clip)]
    both = replace(clip, window=2 * clip.frames, frames=2 * clip.frames)
    lines = [
        "", f"memory, about: {memory.verdict(gpu)}", *advice,
        f"memory of video-to-video, about, source and result in one window: {both.memory().verdict(gpu)}",
        "", f"least seconds for the whole video, chunks of {clip.chunk} tokens, k sweeps per chunk and shallow block"
        + (f", {clip.slides} slides" if clip.slides else ""),
    ]
    for k in sweeps:
        parts = clip.seconds(gpu, k)
        cells = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items())
        lines.append(f"  k = {k}: {sum(parts.values()):8.1f}   ({cells})")
    return lines


def _smaller(clip: _Clip) -> list[tuple[str, _Clip]]:
    """Return what would need less memory, by the flag that does it."""
    cases = [("--frames 1", replace(clip, frames=1, window=1))] if clip.frames > 1 else []
    cases = [("--offload", replace(clip, offload=True)), *cases]
    return [("--guidance 0", replace(clip, guided=False)), *cases] if clip.guided else cases
