"""Requirements of a video model, from arithmetic: parameters, memory, operations, and the least time on a GPU.

Weights are counted as `load_flow` holds them to run in bfloat16, the cache as `KVCache` allocates it: keys and values
in bfloat16, one row per half of guidance, text included. A pass over tokens takes at least the time to read its weights
and keys, and at least the time of its products. The text encoder is not counted: it is released before sampling begins.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from starflow_world.config.video import VideoConfig
from starflow_world.config.world import FlowConfig
from starflow_world.flow import Flow, ShallowBlocks
from starflow_world.flow.precision import running_dtypes
from starflow_world.model.devices import read_device

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """Specification of a GPU: memory in bytes as torch reports it, bytes per second, and dense bfloat16 operations per
    second."""

    memory: float
    bandwidth: float
    operations: float


GPUS = {
    "h200": Gpu(139.8 * GIB, 4.8e12, 989e12),  # sold as 141 GB
    "h100": Gpu(79.1 * GIB, 3.35e12, 989e12),
    "a100": Gpu(79.2 * GIB, 2.039e12, 312e12),
    "rtx4090": Gpu(23.6 * GIB, 1.008e12, 165e12),
}


@dataclass(frozen=True)
class Needs:
    """Calculator of the requirements of the flow of `config` for frames of `tokens` tokens."""

    config: FlowConfig
    tokens: int

    @cached_property
    def weights(self) -> dict[str, list[tuple[int, torch.dtype]]]:
        """Return sizes and dtypes of each part's tensors: matrices bfloat16; norms, start tokens, heads float32."""
        flow = _empty_flow(self.config)
        dtypes, parts = running_dtypes(flow, torch.bfloat16), dict[str, list[tuple[int, torch.dtype]]]()
        for name, tensor in flow.state_dict().items():
            parts.setdefault(name.split(".")[0], []).append((tensor.numel(), dtypes[name]))
        return parts

    def parameters(self) -> dict[str, int]:
        """Return the number of parameters of each part."""
        return {part: sum(count for count, _ in tensors) for part, tensors in self.weights.items()}

    def weight_bytes(self) -> dict[str, int]:
        """Return the bytes of each part."""
        return {part: sum(n * dtype.itemsize for n, dtype in tensors) for part, tensors in self.weights.items()}

    def cache_bytes(self, frames: int, *, guided: bool) -> int:
        """Return the bytes of keys and values of the text and a window of `frames` latent frames."""
        positions = self.config.text_length + frames * self.tokens
        return 2 * 2 * self.config.deep_layers * (1 + guided) * positions * self.config.deep_width

    def sweep_operations(self, chunk: int, length: int, *, guided: bool, dense: bool = False) -> float:
        """Count one pass of the deep block over `chunk` tokens after `length` positions; `dense`: masked keys too."""
        flow, d = self.config, self.config.deep_width
        keys = length + (chunk if dense else (chunk + 1) / 2)
        per_token = 6 * flow.channels * d + flow.deep_layers * (24 * d**2 + 4 * d * keys)
        shared = 2 * flow.channels * d + 6 * d**2  # both halves are equal until the first layer attends to the text
        return chunk * ((1 + guided) * per_token - guided * shared)

    def sweep_bytes(self, chunk: int, length: int, *, guided: bool) -> float:
        """Return the bytes of weights, keys and values that one pass of the deep block reads."""
        flow = self.config
        weights = self.weight_bytes()["deep"] - 2 * (flow.text_width + 1) * flow.deep_width
        return weights + (1 + guided) * (length + chunk) * 4 * flow.deep_layers * flow.deep_width

    def sweep_seconds(self, gpu: Gpu, chunk: int, length: int, *, guided: bool) -> float:
        """Return the least time of such a pass, in seconds."""
        return max(
            self.sweep_bytes(chunk, length, guided=guided) / gpu.bandwidth,
            self.sweep_operations(chunk, length, guided=guided) / gpu.operations,
        )

    def deep_seconds(self, gpu: Gpu, frames: int, chunk: int, *, guided: bool) -> float:
        """Return the least time, in seconds, of one sweep over each chunk of a window."""
        starts = [(t * self.tokens + k, min(chunk, self.tokens - k))
                  for t in range(frames) for k in range(0, self.tokens, chunk)]
        text = self.config.text_length
        return sum(self.sweep_seconds(gpu, size, text + start, guided=guided) for start, size in starts)

    def shallow_operations(self) -> float:
        """Count one sweep of all shallow blocks over a frame."""
        flow, n, d = self.config, self.tokens, self.config.shallow_width
        layers = sum(flow.shallow_depths) * (24 * d**2 + 4 * d * (n + 1) / 2)
        return n * (flow.shallow_blocks * 6 * flow.channels * d + layers)

    def denoiser_operations(self, frames: int) -> float:
        """Count one window of the denoiser; only the visible keys of its band of frames count."""
        flow, d = self.config, self.config.denoiser_width
        text = flow.text_length if flow.denoiser_text else 0
        seen = text + min(flow.denoiser_window + 1, frames) * self.tokens
        per_token = flow.denoiser_layers * (24 * d**2 + 4 * d * seen) + 4 * flow.channels * d
        return (frames * self.tokens) * per_token + text * flow.denoiser_layers * 24 * d**2

    def activation_bytes(self, chunk: int, frames: int, *, guided: bool) -> float:
        """Estimate the residuals, projections and mask of one pass of the deep block over `chunk` tokens."""
        rows, positions = 1 + guided, self.config.text_length + frames * self.tokens
        return rows * chunk * (self.config.deep_width * (2 * 4 + 4 * 2 + 2 * 8) + 3 * positions)

    def denoiser_bytes(self, frames: int) -> float:
        """Estimate the activations of the denoiser for a window; its mask is as large as its sequence squared."""
        text = self.config.text_length if self.config.denoiser_text else 0
        positions = text + frames * self.tokens
        return positions * (self.config.denoiser_width * (2 * 4 + 4 * 2 + 2 * 8) + 3 * positions)


@torch.no_grad()
def sweep_timings(
    config: VideoConfig, gpu: str, *, aspect: str = "16:9", guidance: float | None = None, device: str = "cuda",
    chunks: Sequence[int] = (32, 128, 512, 1590), frames: Sequence[int] = (1, 5, 10, 20), repeats: int = 5,
) -> str:
    """Time deep sweeps with random weights: report the median ms of `repeats` and its ratio to the least time. Raises
    ConfigError."""
    place = read_device(device)
    guided, h_w = bool(config.guidance if guidance is None else guidance), config.grid(aspect)
    needs = Needs(config.flow, h_w[0] * h_w[1])
    kind = torch.bfloat16 if place.type == "cuda" else torch.float32
    flow = _random_deep(config.flow, place, kind)
    tables, lines = flow.tables(h_w, max(frames) + 1), ["ms per deep sweep, and times its floor"]
    text = config.flow.text_length
    for count in frames:
        cache = flow.deep.empty_cache(1 + guided, text + (count + 1) * needs.tokens)
        cells = []
        for chunk in (min(chunk, needs.tokens) for chunk in chunks):
            length = text + count * needs.tokens
            inputs = torch.randn(1 + guided, chunk, config.flow.channels, device=place)
            with flow.products():
                predict = flow.predictor(cache.rollback(length), None, chunk, tables, text=text)
                seconds = _median(partial(predict, inputs), place, repeats)
            floor = needs.sweep_seconds(GPUS[gpu], chunk, length, guided=guided)
            cells.append(f"{chunk} tokens: {1e3 * seconds:.2f} ({seconds / floor:.2f}x)")
        lines.append(f"  behind {text + count * needs.tokens} positions: " + ", ".join(cells))
    return "\n".join(lines)


def _empty_flow(config: FlowConfig) -> Flow:
    with torch.device("meta"):
        return Flow(config)


def _random_deep(config: FlowConfig, device: torch.device, dtype: torch.dtype) -> Flow:
    flow = _empty_flow(config)
    flow.shallow, flow.denoiser = ShallowBlocks(), None
    kinds = running_dtypes(flow, dtype)
    generator = torch.Generator(device).manual_seed(0)
    tensors = {
        name: torch.randn(t.shape, generator=generator, device=device, dtype=kinds[name]) * 0.02
        for name, t in flow.state_dict().items()
    }
    flow.load_state_dict(tensors, strict=True, assign=True)
    return flow.eval()


def _median(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):  # the first is a warm-up
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[1:])[repeats // 2]
