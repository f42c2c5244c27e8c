"""Sampling of videos: the deep block maps noise to u frame by frame (STARFlow-V, section 3.3).

    u_t = mean(u_<=t) + scale(u_<=t) * noise_t        solved by Jacobi sweeps from a guess

The guess of a frame is the last one with noise of its own, u_{t-1} + scale_{t-1} (noise_t - noise_{t-1}), exact where
mean and scale stay. Behind a given frame, and where tokens are mixtures, it is u_{t-1}.

Shapes: B batch elements, P given frames, T new frames, n tokens per frame, c channels, d deep width, L text length.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from starflow_world.config.world import DecodeConfig
from starflow_world.errors import ConfigError
from starflow_world.flow.block import Tables
from starflow_world.flow.jacobi import Inverse
from starflow_world.flow.model import Flow
from starflow_world.flow.windows import spans


@torch.no_grad()
def sample_frames(
    flow: Flow, noise: Tensor, text: Tensor | None, tables: Tables, decode: DecodeConfig, *,
    null_text: Tensor | None = None, guidance: float = 0.0, prefix: Tensor | None = None,
    window: int | None = None, context: int | None = None, action: Tensor | None = None, solved: Tensor | None = None,
    changes: Mapping[int, Tensor] | None = None,
) -> Iterator[Inverse]:
    """Solve T new frames after P given, from noise (B, T, n, c + g) and text; yield each `Inverse`, tokens u (B, n, c).

    text (B, L, text width); prefix (B, P, n, c): u of the given frames; action (B, P + T, d). `guidance` w > 0 steers
    away from `null_text`. The deep block holds `window` frames (None: all that the tables cover) and keeps the last
    `context` of a full window. solved (B, K, n, c): u of the first K new frames from an earlier run on this machine,
    which take one sweep each and give the same bits. changes: texts that replace `text` from a frame on, counted with
    the given ones; the frames of the window are then encoded again behind the new one. Raises ConfigError.
    """
    count, given = noise.shape[2], 0 if prefix is None else prefix.shape[1]
    total, held = given + noise.shape[1], tables.video.shape[1] // count
    window = held if window is None else window
    keep = _checked_context(total, held, window, context)
    texts = {-1: text, **(changes or {})}
    if guidance:
        texts = {frame: _both_texts(one, null_text, guidance) for frame, one in texts.items()}
    text = texts[-1]
    tables = replace(tables, video=tables.video[:, : window * count])
    length = 0 if text is None else text.shape[1]
    cache = flow.start_cache(text, len(noise) * (2 if guidance else 1), tables)
    u = noise[..., : flow.config.channels].clone()
    u = u if prefix is None else torch.cat((prefix, u), dim=1)
    noise = noise if prefix is None else torch.cat((noise[:, :1].expand(-1, given, -1, -1), noise), dim=1)

    if action is None and not flow.features.silent:
        action = noise.new_zeros(len(noise), total, flow.config.deep_width)

    found: Inverse | None = None
    for begin, seen, end in spans(total, window, keep, texts):
        begun = slice(begin, max(seen, given))
        cache = cache.rollback(length)
        if (changed := texts.get(seen)) is not None:
            text, cache = changed, flow.deep.write_text(changed, tables.text, cache.rollback(0))
        if begin < begun.stop < end:
            inputs, told = flow.deep.shift(u[:, begun].flatten(1, 2)), None if action is None else action[:, begun]
            cache = flow.fill(cache, inputs, flow.conditions(u[:, begun], text, told, tables.grid), tables, text=length)
        for frame in range(begun.stop, end):
            last = u[:, max(frame - 1, 0)]
            present = torch.full((len(u), 1, 1), frame > begin, device=u.device)
            added = None if action is None else flow.next_conditions(last, present, text, action[:, frame], tables.grid)
            before = torch.where(present, last[:, -1:], flow.deep.start)
            guess, settings = flow.guess(last, present, noise[:, frame]), decode
            if found is not None and not flow.deep.head.sites:
                guess = last + found.scale * (noise[:, frame] - noise[:, frame - 1])
            if solved is not None and frame - given < solved.shape[1]:
                guess, settings = solved[:, frame - given], replace(decode, max_sweeps=1)
            cache, found = flow.decode(
                cache, before, noise[:, frame], guess, added, tables, text=length, guidance=guidance, settings=settings
            )
            u[:, frame] = found.tokens
            yield found


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
