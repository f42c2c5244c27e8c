"""Generation with a video flow, from noise and conditions to clean latents.

    noise --deep block, guided--> u --shallow blocks--> noisy latents --denoiser, in windows--> latents --> codec

A frame is emitted as soon as the windows of the denoiser allow. On a GPU the steps after the deep block run in a thread
and a CUDA stream of their own while the deep block decodes the next frame; the numbers are the same.

Shapes: B rows, P given frames, T new frames, n tokens per frame, c channels, L text length.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from starflow_world.config.world import DecodeConfig
from starflow_world.flow import Flow, Inverse, Tables, sample_frames
from starflow_world.flow.windows import denoise_spans

PREVIEWED = 3
"""Newest frames that a preview is made of."""
QUEUE = 4
"""Frames decoded by the deep block that may wait for the later steps."""


@dataclass(frozen=True)
class GenerationTask:
    """Inputs of a generation: noise (B, T, n, c) of new frames, text (B, L, w), noisy latents (B, P, n, c) of given
    ones; `solved` (B, K, n, c): u of the first K new frames, if an earlier run has solved them;
    `changes`: texts that replace the first from a frame on, counted with the given ones.

    `guidance` > 0 needs a null text. `window`: latent frames in the context of the deep block; `context`: those kept
    when the window slides.
    """

    noise: Tensor
    text: Tensor | None
    grid: tuple[int, int]
    window: int
    context: int
    null_text: Tensor | None = None
    guidance: float = 0.0
    given: Tensor | None = None
    denoise_window: int = 21
    denoise_overlap: int = 10
    solved: Tensor | None = None
    changes: Mapping[int, Tensor] = field(default_factory=dict)

    def text_at(self, frame: int) -> Tensor | None:
        """Return the text (B, L, w) that a frame, counted with the given ones, is generated with."""
        last = max((start for start in self.changes if start <= frame), default=None)
        return self.text if last is None else self.changes[last]

    @property
    def frames(self) -> int:
        """Return the number of given and new frames, P + T."""
        return self.noise.shape[1] + (0 if self.given is None else self.given.shape[1])


def synthesize(
    flow: Flow, task: GenerationTask, decode: DecodeConfig, emit: Callable[[Tensor], None], *,
    on_frame: Callable[[Inverse], None] = lambda solved: None, threaded: bool | None = None, preview: int = 0,
    peek: Callable[[Tensor, int], None] = lambda latents, start: None,
) -> None:
    """Run a task; `emit` receives clean latents (B, k, n, c) of all P + T frames, in order, as they are generated.

    A flow without a denoiser emits noisy latents. `on_frame` receives the decoding result of each new frame.
    `threaded`: run the steps after the deep block in a thread of their own (None: on a GPU only). Every `preview`
    frames (0: never) `peek` receives the newest ones (B, k, n, c), denoised without any others, and the number of the
    first of them.
    """
    device = flow.deep.start.device
    tables = flow.tables(task.grid, max(task.window, min(task.denoise_window, task.frames)))
    with torch.no_grad(), flow.products():
        prefix = None if task.given is None else flow.shallow(task.given, tables)[0]
    finish, count = _AfterDeepBlock(flow, task, tables, emit), 0
    with _Worker(device, device.type == "cuda" if threaded is None else threaded) as worker, flow.products():
        for solved in sample_frames(
            flow, task.noise, task.text, tables, decode, null_text=task.null_text, guidance=task.guidance,
            prefix=prefix, window=task.window, context=task.context, solved=task.solved,
            changes=task.changes,
        ):
            worker.do(finish, solved.tokens)
            if preview and (count := count + 1) % preview == 0:
                worker.do(lambda _: peek(*finish.newest()), solved.tokens)
            on_frame(solved)


class _AfterDeepBlock:
    """The steps after the deep block, frame by frame in order; given frames enter as noisy latents."""

    def __init__(self, flow: Flow, task: GenerationTask, tables: Tables, emit: Callable[[Tensor], None]) -> None:
        self.flow, self.task, self.tables, self.emit = flow, task, tables, emit
        self.x: list[Tensor] = [] if task.given is None else list(task.given.split(1, dim=1))
        self.windows = [(slice(k, k + 1), slice(0, 1)) for k in range(task.frames)]
        if flow.denoiser is not None:
            self.windows = list(denoise_spans(
                task.frames, window=task.denoise_window, overlap=task.denoise_overlap,
                look_ahead=sum(flow.denoiser.look_ahead),
            ))

    def __call__(self, u: Tensor) -> None:
        """Process one more frame u (B, n, c)."""
        with torch.no_grad(), self.flow.products():
            self.x.append(self.flow.shallow.inverse(u[:, None], self.tables)[0])
            while self.windows and self.windows[0][0].stop <= len(self.x):
                seen, kept = self.windows.pop(0)
                x = torch.cat(self.x[seen], dim=1)
                starts = [k for k in range(kept.start + 1, kept.stop) if seen.start + k in self.task.changes]
                parts = pairwise([kept.start, *starts, kept.stop])
                self.emit(torch.cat([self._clean(x, seen.start, slice(*part)) for part in parts], dim=1))

    def newest(self) -> tuple[Tensor, int]:
        """Return the last frames (B, k, n, c), denoised from them alone, and the number of the first of them."""
        held = self.tables.video.shape[1] // self.tables.frame.shape[1]
        start = max(len(self.x) - min(PREVIEWED, held), 0)
        x = torch.cat(self.x[start:], dim=1)
        with torch.no_grad(), self.flow.products():
            return self.flow.denoise(x, self.task.text_at(len(self.x) - 1), self.tables), start

    def _clean(self, x: Tensor, start: int, kept: slice) -> Tensor:
        """Denoise the frames `kept` of a window x that begins with frame `start`; they have one text."""
        return self.flow.denoise(x, self.task.text_at(start + kept.start), self.tables)[:, kept]


class _Worker:
    """Runs work in order: immediately, or in a thread, which has its own CUDA stream on a GPU."""

    def __init__(self, device: torch.device, threaded: bool) -> None:
        self.pool = ThreadPoolExecutor(1) if threaded else None
        self.stream = torch.cuda.Stream(device) if threaded and device.type == "cuda" else None
        self.waiting: list[Future[None]] = []

    def __enter__(self) -> "_Worker":
        return self

    def do(self, work: Callable[[Tensor], None], tensor: Tensor) -> None:
        """Call work(tensor) after all earlier work; raises the errors of earlier work."""
        if self.pool is None:
            work(tensor)
            return
        ready = torch.cuda.current_stream().record_event() if self.stream is not None else None
        self.waiting.append(self.pool.submit(self._run, work, tensor, ready))
        while len(self.waiting) > QUEUE or (self.waiting and self.waiting[0].done()):
            self.waiting.pop(0).result()

    def _run(self, work: Callable[[Tensor], None], tensor: Tensor, ready: Any) -> None:
        if self.stream is None:
            work(tensor)
            return
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(ready)
            tensor.record_stream(self.stream)
            work(tensor)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=kind is not None)
        for future in self.waiting if kind is None else ():
            future.result()
