"""Sampling: noise to u, frame by frame through the deep block; then all frames to noisy latents (STARFlow-V, 3.3).

    u_t = mean(u_<=t) + scale(u_<=t) * noise_t        solved by Jacobi sweeps that start from u_{t-1}

The window holds W frames. When it is full its last C frames become the first of a new one (STARFlow-V, long videos):
they are encoded again behind the text, with a start token and positions from 0. What frame t sees depends on t alone.

Shapes: B rows, P given frames, T new frames, n tokens per frame, c channels, d deep width, L text length.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from starflow_world.errors import ConfigError
from starflow_world.flow.block import Affine
from starflow_world.flow.cache import KVCache
from starflow_world.flow.jacobi import Inverse, solve
from starflow_world.flow.model import Flow, Tables


@dataclass(frozen=True)
class Sample:
    """T sampled frames u (B, T, n, c), exactly those whose keys the cache held; affine (B, T, n, ...): what the
    *unguided* model says of them: affine.nats(u) are its nats; sweeps, residual, converged (B, T) as in `Inverse`."""

    u: Tensor
    affine: Affine
    sweeps: Tensor
    residual: Tensor
    converged: Tensor

    @staticmethod
    def of(frames: list[Inverse]) -> "Sample":
        """One solved frame after the other."""
        affine = Affine(*(torch.stack([getattr(f.affine, k) for f in frames], 1) for k in ("mean", "scale", "hidden")))
        names = ("sweeps", "residual", "converged")
        return Sample(
            torch.stack([f.tokens for f in frames], 1), affine,
            *(torch.stack([getattr(f, name) for f in frames], 1) for name in names),
        )


@dataclass(frozen=True)
class Guided(Affine):
    """Guided means and scales, and the conditional model's own."""

    conditional: Affine


def guide(conditional: Affine, unconditional: Affine, guidance: float) -> Guided:
    """The Gaussian proportional to conditional**(1 + w) / unconditional**w (STARFlow, proposition 2), scalar by scalar:

        r = min(scale_c / scale_u, 1)**2;   d = 1 + w - w r
        mean = ((1 + w) mean_c - w r mean_u) / d;   scale = scale_c / sqrt(d)
    """
    ratio = (conditional.scale / unconditional.scale).clamp(max=1).square()
    denominator = 1 + guidance - guidance * ratio
    mean = ((1 + guidance) * conditional.mean - guidance * ratio * unconditional.mean) / denominator
    return Guided(mean, conditional.scale / denominator.sqrt(), conditional.hidden, conditional)


def solve_guided(
    predict: Callable[[Tensor], Affine], before: Tensor, noise: Tensor, guess: Tensor, *,
    guidance: float, tolerance: float, max_sweeps: int = 0,
) -> Inverse:
    """As `solve`. With guidance > 0 `predict` says something of 2B rows, [under the text; under the null text]; what is
    returned is what the model says of the tokens under the text."""
    rows = len(noise)

    def guided(inputs: Tensor) -> Affine:
        both = predict(inputs)
        return guide(both.rows(slice(rows)), both.rows(slice(rows, None)), guidance)

    solved = solve(
        guided if guidance else predict, before, noise, guess, tolerance=tolerance, max_sweeps=max_sweeps
    )
    return replace(solved, affine=solved.affine.conditional) if isinstance(solved.affine, Guided) else solved


def window_start(frame: int, window: int, context: int) -> int:
    """The first frame of the window in which frame number `frame` is sampled."""
    if frame < window:
        return 0
    hop = window - context
    return ((frame - window) // hop + 1) * hop


def sample_deep(
    flow: Flow, noise: Tensor, text: Tensor | None, tables: Tables, *,
    null_text: Tensor | None = None, guidance: float = 0.0, prefix: Tensor | None = None,
    window: int | None = None, context: int | None = None, action: Tensor | None = None,
    chunk: int = 0, tolerance: float = 1e-3, max_sweeps: int = 0,
) -> Sample:
    """All frames of `sample_frames`, whose arguments these are."""
    return Sample.of(list(sample_frames(
        flow, noise, text, tables, null_text=null_text, guidance=guidance, prefix=prefix, window=window,
        context=context, action=action, chunk=chunk, tolerance=tolerance, max_sweeps=max_sweeps,
    )))


@torch.no_grad()
def sample_frames(
    flow: Flow, noise: Tensor, text: Tensor | None, tables: Tables, *,
    null_text: Tensor | None = None, guidance: float = 0.0, prefix: Tensor | None = None,
    window: int | None = None, context: int | None = None, action: Tensor | None = None,
    chunk: int = 0, tolerance: float = 1e-3, max_sweeps: int = 0,
) -> Iterator[Inverse]:
    """u of T new frames, one after the other, from noise (B, T, n, c), behind text (B, L, text width) and P given
    frames of u (B, P, n, c).

    `guidance` w > 0 steers away from `null_text`. `window` (none: what the tables hold) and `context` are W and C.
    action (B, P + T, d): one vector per frame, those of the prefix first. Tokens are solved `chunk` at a time within a
    frame: 0 is the whole frame, 1 is sequential decoding; `tolerance` and `max_sweeps` as for `solve`.
    """
    count, given = noise.shape[2], 0 if prefix is None else prefix.shape[1]
    total, held = given + noise.shape[1], tables.video.shape[1] // count
    window = held if window is None else window
    if flow.motion is not None and total > 1:
        raise ConfigError(f"sample: a flow with motion is stepped by a world, expected one frame, found {total}")
    keep = _checked_context(total, held, window, context)
    text = _both_texts(text, null_text, guidance) if guidance else text
    tables = replace(tables, video=tables.video[:, : window * count])
    length = 0 if text is None else text.shape[1]
    decoder = _Decoder(flow, tables, length, guidance, chunk or count, tolerance, max_sweeps)
    cache = flow.start_cache(text, len(noise) * (2 if guidance else 1), tables)
    u = noise.clone() if prefix is None else torch.cat((prefix, noise), dim=1)
    first = -1
    for frame in range(given, total):
        if first != (start := window_start(frame, window, keep)):
            first = start
            cache = decoder.encode(cache, u[:, first:frame], None if action is None else action[:, first:frame])
        previous = u[:, frame - 1] if frame > first else None
        here = None if action is None else action[:, frame : frame + 1]
        cache, solved = decoder.next_frame(cache, previous, u[:, frame], here)
        u[:, frame] = solved.tokens
        yield solved


def sample(
    flow: Flow, noise: Tensor, text: Tensor | None, tables: Tables, *,
    null_text: Tensor | None = None, guidance: float = 0.0, prefix: Tensor | None = None,
    window: int | None = None, context: int | None = None, action: Tensor | None = None,
    chunk: int = 0, tolerance: float = 1e-3, max_sweeps: int = 0,
) -> tuple[Tensor, Tensor, Sample]:
    """Noisy latents x (B, T, n, c) of the new frames, their nats per token (B, T, n) under the unguided model given the
    window, and the `Sample` behind them; arguments as for `sample_deep`. The shallow blocks are never guided."""
    deep = sample_deep(
        flow, noise, text, tables, null_text=null_text, guidance=guidance, prefix=prefix, window=window,
        context=context, action=action, chunk=chunk, tolerance=tolerance, max_sweeps=max_sweeps,
    )
    with torch.no_grad():
        x, logdet, _ = flow.shallow_inverse(deep.u, tables)
    return x, (deep.affine.nats(deep.u) + logdet).sum(-1), deep


@dataclass(frozen=True)
class _Decoder:
    """What is the same for all frames. With guidance the cache has 2B rows, [text; null text], with equal tokens."""

    flow: Flow
    tables: Tables
    text: int
    guidance: float
    chunk: int
    tolerance: float
    max_sweeps: int

    def encode(self, cache: KVCache, u: Tensor, action: Tensor | None) -> KVCache:
        """The cache of a window that begins with the frames u (B, m, n, c); keys of the text are kept."""
        cache = cache.rollback(self.text)
        if not u.shape[1]:
            return cache
        _, added = self.flow.condition(u, None, action, self.tables.grid)
        return self.flow.fill(cache, self.flow.deep.shift(u.flatten(1, 2)), added, self.tables, text=self.text)

    def next_frame(
        self, cache: KVCache, previous: Tensor | None, noise: Tensor, action: Tensor | None
    ) -> tuple[KVCache, Inverse]:
        """One frame from noise (B, n, c), committed; previous (B, n, c): the frame before it in its window."""
        _, added = self.flow.condition(noise[:, None], None, action, self.tables.grid)
        before = self.flow.deep.shift(noise[:, :1]) if previous is None else previous[:, -1:]
        guess = noise if previous is None else previous
        parts: list[Inverse] = []
        for start in range(0, noise.shape[1], self.chunk):
            part = slice(start, start + self.chunk)
            z, here = noise[:, part], None if added is None else added[:, 0, part]
            solved = solve_guided(
                self.flow.predictor(cache, here, z.shape[1], self.tables, text=self.text), before, z, guess[:, part],
                guidance=self.guidance, tolerance=self.tolerance, max_sweeps=self.max_sweeps,
            )
            cache, before, parts = cache.commit(z.shape[1]), solved.tokens[:, -1:], [*parts, solved]
        return cache, Inverse.join(parts)


def _checked_context(total: int, held: int, window: int, context: int | None) -> int:
    if not 1 <= window <= held:
        raise ConfigError(f"window: expected 1 to {held} frames, as many as the tables hold, found {window}")
    if context is None and total > window:
        raise ConfigError(f"context: {total} frames do not fit into a window of {window}; say how many a slide keeps")
    if context is not None and not 1 <= context < window and total > window:
        raise ConfigError(f"context: expected 1 <= context < window {window}, found {context}")
    return context or 0


def _both_texts(text: Tensor | None, null_text: Tensor | None, guidance: float) -> Tensor:
    if guidance < 0:
        raise ConfigError(f"guidance: expected a number >= 0, found {guidance}")
    if text is None or null_text is None:
        raise ConfigError("guidance: expected a text and a null text of the same length, found none")
    return torch.cat((text, null_text.expand_as(text)))
