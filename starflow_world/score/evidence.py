"""Evidence of a world on real frames, per token: log-likelihood, surprise, and evidence against the action.

This is the scorer's only file that uses internals of the flow. Noise of level sigma is added to clean latents before
scoring and is known to the scorer: a perfect prediction of a frame has log-likelihood log N(x; clean, sigma^2).

    surprise = E log N(x; clean, sigma^2) - E log p(x | history),   x = clean + sigma * noise

is the nats by which a prediction falls short of that, in expectation over the token's own noise; what was before it is
given with its noise. With one normal per token it is the closed form KL(N(clean, sigma^2) || N(mean, scale^2)), with a
mixture a bound by Jensen (flow/density.py). Against means of 256 draws of the token's noise it is 0.00, 0.01 and 0.03
nats a token too high in the worlds dynamic-obstacles, babyai-gotolocal and cartpole-pixels, with standard errors of
0.01 to 0.02. With shallow blocks there is no closed form, and it is the excess on the drawn noise.

`against` is log p(x | history, no action) - log p(x | history, action), where only the present frame's action is
dropped. One pass computes both terms: a second stream of tokens holds the frames without their actions; its frame t
attends to the first stream's frames before t and to itself, as a single step after the cached history does.

Shapes: B batch elements, T frames, n tokens per frame, c channels, L text length, d deep width.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from starflow_world.codec import frame_codec
from starflow_world.data.episodes import Episode, flat_actions
from starflow_world.flow import Density, Flow, Tables
from starflow_world.flow.layers import Attention, Layer, attend, rotate
from starflow_world.flow.windows import Span, spans
from starflow_world.noise import make_key, normals
from starflow_world.world import World
from starflow_world.world.state import WorldState

AT_ONCE = 6
"""Number of frames of the second stream (without actions) whose attention is computed together."""


@dataclass(frozen=True)
class Evidence:
    """Evidence per token of T frames: nats, surprise, against (T, n) float64; clean latents (T, n, c) float32."""

    nats: np.ndarray
    surprise: np.ndarray
    against: np.ndarray
    latents: np.ndarray


class EpisodeSpan(NamedTuple):
    """Window `span` of the episode with index `episode`."""

    episode: int
    span: Span


def span_batches(lengths: Sequence[int], window: int, context: int, batch: int) -> Iterator[list[EpisodeSpan]]:
    """Yield batches of the windows in which a world observes episodes of these lengths, at most `batch` per batch.

    The windows of a batch have equally many frames from an earlier window; the longest comes first.
    """

    def known(one: EpisodeSpan) -> int:
        return one.span.known - one.span.begin

    every = [EpisodeSpan(e, span) for e, count in enumerate(lengths) for span in spans(count, window, context)]
    every.sort(key=lambda one: (known(one), one.span.begin - one.span.end))
    for _, some in groupby(every, key=known):
        group = list(some)
        yield from (group[start : start + batch] for start in range(0, len(group), batch))


@torch.inference_mode()
def episode_evidence(world: World, episodes: Sequence[Episode], *, seeds: Sequence[int], batch: int) -> list[Evidence]:
    """Return teacher-forced evidence on whole episodes, averaged over a noise draw per seed; `batch` windows per pass.
    """
    moves, flow, sigma = world.dynamics, world.networks.flow, world.config.noise_level
    lengths = [len(episode) for episode in episodes]
    longest = max(lengths)
    codec = frame_codec(world.networks.codec)
    clean = [codec.encode(torch.from_numpy(e.frames)[None].to(moves.device))[0][0] for e in episodes]
    bare = _stacked([latents.to(moves.dtype) for latents in clean], longest)
    action = world.networks.action(_stacked([flat_actions(e).to(bare) for e in episodes], longest))
    text = moves.encode_text(world.texts_for([episode.text for episode in episodes]))
    totals = torch.zeros(3, len(episodes), longest, moves.tokens, dtype=torch.float64)
    for seed in seeds:
        x = bare + _noise(world, seed, longest)
        for some in span_batches(lengths, world.config.window, world.config.context, batch):
            rows, spans = [episode for episode, _ in some], [span for _, span in some]
            count = spans[0].end - spans[0].begin
            clip = _Clip(*(
                torch.stack([_cut(part[episode], span.begin, count) for episode, span in some])
                for part in (x, bare, action)
            ))
            states, known = None if text is None else text[rows], spans[0].known - spans[0].begin
            judged = _judge(flow, clip, states, moves.tables, sigma, known).double().cpu()
            for row, (episode, span) in enumerate(some):
                totals[:, episode, span.known : span.end] += judged[:, row, : span.end - span.known]
    mean = (totals / len(seeds)).numpy()
    return [
        Evidence(mean[0, e, :count], mean[1, e, :count], mean[2, e, :count], clean[e].float().cpu().numpy())
        for e, count in enumerate(lengths)
    ]


def _stacked(parts: Sequence[Tensor], count: int) -> Tensor:
    """Stack parts (T, ...) of different lengths as (B, count, ...), zero-padded at the end."""
    return torch.stack([_cut(part, 0, count) for part in parts])


def _cut(part: Tensor, begin: int, count: int) -> Tensor:
    """Return part[begin : begin + count], zero-padded to `count` entries."""
    entries = part[begin : begin + count]
    return torch.cat((entries, entries.new_zeros(count - len(entries), *part.shape[1:])))


def _noise(world: World, seed: int, count: int) -> Tensor:
    """Return the noise (count, n, c) of level sigma that `World.observe` adds in the first `count` steps of a seed."""
    moves = world.dynamics
    keys = torch.full((count,), make_key(seed), dtype=torch.int64)
    drawn = normals(keys, torch.arange(count), "observation", (moves.tokens, world.config.channels))
    return world.config.noise_level * drawn.to(moves.device, moves.dtype)


class _Clip(NamedTuple):
    """Windows: noisy latents x and clean latents (B, T, n, c), actions (B, T, d)."""

    x: Tensor
    clean: Tensor
    action: Tensor


def _judge(flow: Flow, clip: _Clip, text: Tensor | None, tables: Tables, sigma: float, known: int) -> Tensor:
    """Return nats, surprise and against (3, B, T - known, n) of the frames of windows after the first `known`."""
    (u, logdet), n = flow.shallow(clip.x, tables), clip.x.shape[2]
    added = [flow.conditions(u, text, action, tables.grid) for action in (clip.action, torch.zeros_like(clip.action))]
    assert added[0] is not None
    assert added[1] is not None
    given, without = _two_streams(flow, u, added[0], added[1][:, known:], text, tables)
    judged = _Frames(u, logdet, clip.x, clip.clean, sigma)
    nats, surprise = judged.nats(given), judged.surprise(given, flow.closed_form)
    free = without.nats(u[:, known:].flatten(1, 2)).unflatten(1, (-1, n)) + logdet[:, known:].sum(-1)
    return torch.stack((nats[:, known:], surprise[:, known:], free - nats[:, known:]))


@dataclass(frozen=True)
class _Frames:
    """Frames to judge: tokens u, log|du/dx|, noisy and clean latents (B, T, n, c), and the noise level sigma."""

    u: Tensor
    logdet: Tensor
    x: Tensor
    clean: Tensor
    sigma: float

    def nats(self, given: Density) -> Tensor:
        """Return log p per token (B, T, n), given the deep block's density of all tokens."""
        return given.nats(self.u.flatten(1, 2)).unflatten(1, self.u.shape[1:3]) + self.logdet.sum(-1)

    def surprise(self, given: Density, closed_form: bool) -> Tensor:
        """Return surprise per token (B, T, n): the nats by which the density falls short of a perfect prediction."""
        floor = -math.log(self.sigma) - 0.5 * math.log(2 * math.pi)
        if not closed_form:
            exact = floor - 0.5 * ((self.x - self.clean) / self.sigma).square()
            return exact.sum(-1) - self.nats(given)
        expected = given.nats(self.u.flatten(1, 2), around=self.clean.flatten(1, 2), spread=self.sigma)
        return self.x.shape[3] * (floor - 0.5) - expected.unflatten(1, self.u.shape[1:3])


def _two_streams(
    flow: Flow, u: Tensor, added: Tensor, free: Tensor, text: Tensor | None, tables: Tables
) -> tuple[Density, Density]:
    """Predict all frames u (B, T, n, c) under conditions `added` (B, T, n, d), and each of the last frames under its
    condition in `free` instead, in one deep pass."""
    block, (frames, n) = flow.deep, u.shape[1:3]
    known = frames - free.shape[1]
    before = block.shift(u.flatten(1, 2)).unflatten(1, (frames, n))  # inputs: the tokens shifted by one
    inputs = torch.cat((before, before[:, known:]), dim=1).flatten(1, 2)
    hidden = block.projected(inputs, torch.cat((added, free), dim=1).flatten(1, 2))
    video, length = tables.whole(frames, text=False), 0
    rotary = torch.cat((video, video[:, known * n :]), dim=1)
    if text is not None:
        assert block.project_text is not None
        length = text.shape[1]
        hidden = torch.cat((block.project_text(text), hidden), dim=1)
        rotary = torch.cat((tables.text, rotary), dim=1)
    views = _views(length, frames, known, n, hidden.device)
    for layer in block.layers:
        assert isinstance(layer, Layer)
        hidden = hidden + _attended(layer.attention, hidden, rotary, length + frames * n, views)
        hidden = hidden + layer.feed_forward(hidden)
    hidden, cut = block.norm(hidden[:, length:]), frames * n
    return block.head(hidden[:, :cut]), block.head(hidden[:, cut:])


@dataclass(frozen=True)
class _View:
    """Attention of tokens begin : end of the second stream: to the first `seen` positions of the first stream and to
    each other, where `mask` (1, 1, end - begin, seen + end - begin) is true."""

    begin: int
    end: int
    seen: int
    mask: Tensor


def _views(length: int, frames: int, known: int, n: int, device: torch.device) -> list[_View]:
    """Split the second stream into groups of AT_ONCE frames, each with the keys that it needs and its mask."""
    found = []
    for start in range(known, frames, AT_ONCE):
        end = min(start + AT_ONCE, frames)
        seen, frame = length + (end - 1) * n, torch.arange(start * n, end * n) // n
        history = torch.cat((torch.full((length,), -1), torch.arange((end - 1) * n) // n))
        own = (frame[:, None] == frame[None]) & torch.ones(len(frame), len(frame), dtype=torch.bool).tril()
        mask = torch.cat((frame[:, None] > history[None], own), dim=1)[None, None]
        found.append(_View((start - known) * n, (end - known) * n, seen, mask.to(device)))
    return found


def _attended(attention: Attention, x: Tensor, rotary: Tensor, first: int, views: list[_View]) -> Tensor:
    """Compute attention of both streams: causal for the first `first` positions (text, first stream), then by view."""
    qkv = attention.qkv(attention.norm(x)).unflatten(-1, (3, attention.heads, -1))
    query, key = (part.transpose(1, 2) for part in rotate(qkv[:, :, :2], rotary).unbind(2))
    value = qkv[:, :, 2].transpose(1, 2)
    parts = [attend(query[:, :, :first], key[:, :, :first], value[:, :, :first], None, causal=True)]
    for view in views:
        own = slice(first + view.begin, first + view.end)
        keys, values = (torch.cat((part[:, :, : view.seen], part[:, :, own]), dim=2) for part in (key, value))
        parts.append(attend(query[:, :, own], keys, values, view.mask, causal=False))
    return attention.out(torch.cat(parts, dim=2).transpose(1, 2).flatten(-2))


# ---- streaming -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def next_evidence(
    world: World, state: WorldState, flat: Tensor, frames: Tensor, clean: Tensor
) -> tuple[WorldState, Tensor]:
    """Return nats, surprise and against (3, B, n) of the next frames (B, 1, H, W, 3) of episodes in progress.

    flat (B, 1 + flat): their actions, zeros for first frames; clean (B, n, c): their latents. The frames are not
    committed; the returned state has room for them in its cache.
    """
    moves, flow = world.dynamics, world.networks.flow
    state = moves.own(state, reuse=True)
    assert state.cache is not None
    x, said = moves.frames.noisy(frames, state.key, state.step), []
    u, logdet = flow.shallow(x, moves.tables)
    judged = _Frames(u, logdet, x, clean[:, None], world.config.noise_level)
    for action in (torch.zeros_like(flat), flat):
        coming = moves.next_frame(state, action)
        inputs = torch.cat((coming.before, u[:, 0, :-1]), dim=1)
        predict = flow.predictor(state.cache, coming.added, moves.tokens, moves.tables, text=moves.text_length)
        said.append(predict(inputs))
    free, nats = judged.nats(said[0]), judged.nats(said[1])
    surprise = judged.surprise(said[1], flow.closed_form)
    return state, torch.stack((nats, surprise, free - nats))[:, :, 0]
