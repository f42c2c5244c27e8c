"""Evidence of a world on real frames, per token: log-likelihood, surprise, and evidence against the action.

This is the scorer's only file that uses internals of the flow. Noise of level sigma is added to clean latents before
scoring and is known to the scorer: a perfect prediction of a frame has log-likelihood log N(x; clean, sigma^2). For a
frame with a predecessor the flow is affine in each dimension given the tokens before it, x = mean + scale z, so the
nats by which a prediction falls short have a closed form in expectation over the token's own noise,

    surprise = KL(N(clean, sigma^2) || N(mean, scale^2))
             = log(scale / sigma) + (sigma^2 + (clean - mean)^2) / (2 scale^2) - 1/2

summed over the dimensions: its mean equals that of the excess nats, without their sampling noise. A first frame passes
the shallow blocks, which have no closed form: its surprise is the excess nats themselves, on the same noise.

`against` is log p(x | history, no action) - log p(x | history, action), where only the present frame's action is
dropped. One pass computes both terms: a second stream of tokens holds the frames without their actions; its frame t
attends to the first stream's frames before t and to itself, as a single step after the cached history does.

Shapes: B batch elements, T frames, n tokens per frame, c channels, L text length, d deep width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from starflow_world.codec import frame_codec
from starflow_world.data.episodes import Episode, flat_actions
from starflow_world.flow import Affine, Flow, FrameMap, Tables
from starflow_world.flow.layers import Attention, Layer, attend, rotate
from starflow_world.flow.windows import Span, spans
from starflow_world.noise import make_key, normals
from starflow_world.world import World
from starflow_world.world.state import Transition, WorldState

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
    text = moves.encode_text([episode.text for episode in episodes])
    totals = torch.zeros(3, len(episodes), longest, moves.tokens, dtype=torch.float64)
    for seed in seeds:
        x = bare + _noise(world, seed, longest)
        carried = flow.carry.along(x, action, moves.tables.grid)
        for some in span_batches(lengths, world.config.window, world.config.context, batch):
            rows, spans = [episode for episode, _ in some], [span for _, span in some]
            count = spans[0].end - spans[0].begin
            clip = _Clip(*(
                torch.stack([_cut(part[episode], span.begin, count) for episode, span in some])
                for part in (x, bare, action, carried)
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
    """Windows: noisy latents x, clean latents (B, T, n, c), actions (B, T, d), memory slots `carried` (B, T, K).

    The slots read by a frame depend on earlier frames and actions only, not on the frame's own action.
    """

    x: Tensor
    clean: Tensor
    action: Tensor
    carried: Tensor


def _judge(flow: Flow, clip: _Clip, text: Tensor | None, tables: Tables, sigma: float, known: int) -> Tensor:
    """Return nats, surprise and against (3, B, T - known, n) of the frames of windows after the first `known`."""
    acted = _Mapped.of(flow.map_clip(clip.x, clip.action, tables, clip.carried), clip.x)
    free = _Mapped.of(flow.map_clip(clip.x, torch.zeros_like(clip.action), tables, clip.carried), clip.x).after(known)
    given, without = _two_streams(flow, acted, free, text, tables)
    nats, surprise = acted.nats(given)[:, known:], acted.surprise(given, clip.x, clip.clean, sigma)[:, known:]
    return torch.stack([part.sum(-1) for part in (nats, surprise, free.nats(without) - nats)])


@dataclass(frozen=True)
class _Mapped:
    """Inputs of the deep block: u and log|du/dx| (B, T, n, c), conditions `added` (B, T, n, d), and the frame map."""

    u: Tensor
    logdet: Tensor
    added: Tensor
    frame_map: FrameMap

    @staticmethod
    def of(frame_map: FrameMap, x: Tensor) -> "_Mapped":
        assert frame_map.added is not None
        return _Mapped(*frame_map.forward(x), frame_map.added, frame_map)

    def after(self, known: int) -> "_Mapped":
        """Return the frames after the first `known`; only `nats` may be called on the result."""
        return _Mapped(self.u[:, known:], self.logdet[:, known:], self.added[:, known:], self.frame_map)

    def nats(self, given: Affine) -> Tensor:
        """Return log p per dimension (B, T, n, c), given the deep block's prediction of u (B, T * n, c)."""
        return given.nats(self.u.flatten(1, 2)).unflatten(1, self.u.shape[1:3]) + self.logdet

    def surprise(self, given: Affine, x: Tensor, clean: Tensor, sigma: float) -> Tensor:
        """Return surprise per dimension (B, T, n, c): the nats by which the prediction falls short of a perfect one."""
        floor = Affine(clean, torch.full_like(clean, sigma), given.hidden)
        excess, later = floor.nats(x) - self.nats(given), self.frame_map.predictive(given)
        first = x.shape[1] - later.mean.shape[1]
        distance = (clean[:, first:] - later.mean) ** 2
        short = (later.scale / sigma).log() + (sigma**2 + distance) / (2 * later.scale**2) - 0.5
        return torch.cat((excess[:, :first], short), dim=1)


def _two_streams(
    flow: Flow, acted: _Mapped, free: _Mapped, text: Tensor | None, tables: Tables
) -> tuple[Affine, Affine]:
    """Predict all frames `acted`, and the last frames `free`, each without its own action, in one deep pass."""
    block, (frames, n) = flow.deep, acted.u.shape[1:3]
    known = frames - free.u.shape[1]
    before = block.shift(acted.u.flatten(1, 2)).unflatten(1, (frames, n))  # inputs: the tokens shifted by one
    apart = torch.cat((before[:, known:, :1], free.u[:, :, :-1]), dim=2)
    added = torch.cat((acted.added, free.added), dim=1).flatten(1, 2)
    hidden = block.project_in(torch.cat((before, apart), dim=1).flatten(1, 2)).to(block.head.weight.dtype) + added
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
    said = block.affine(hidden[:, length:])
    cut = frames * n
    first = Affine(said.mean[:, :cut], said.scale[:, :cut], said.hidden[:, :cut])
    return first, Affine(said.mean[:, cut:], said.scale[:, cut:], said.hidden[:, cut:])


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


def start_evidence(world: World, transition: Transition, clean: Tensor) -> Tensor:
    """Return nats, surprise and against (3, B, n) of first frames observed by `World.start`; clean latents (B, n, c).
    """
    sigma = world.config.noise_level
    floor = Affine(clean, torch.full_like(clean, sigma), clean).nats(transition.latents).sum(-1)
    nats = transition.token_nats
    return torch.stack((nats, floor - nats, torch.zeros_like(nats)))


@torch.inference_mode()
def next_evidence(
    world: World, state: WorldState, flat: Tensor, frames: Tensor, clean: Tensor
) -> tuple[WorldState, Tensor]:
    """Return nats, surprise and against (3, B, n) of the next frames (B, 1, H, W, 3) of episodes in progress.

    flat (B, 1 + flat): their actions; clean (B, n, c): their latents. The frames are not committed; the returned state
    has room for them in its cache.
    """
    moves, flow = world.dynamics, world.networks.flow
    state = moves.own(state, reuse=True)
    assert state.cache is not None
    x, judged = moves.frames.noisy(frames, state.key, state.step), []
    for action in (torch.zeros_like(flat), flat):
        coming = moves.next_frame(state, action)
        mapped = _Mapped.of(coming.frame_map, x)
        inputs = torch.cat((coming.before, mapped.u[:, 0, :-1]), dim=1)
        predict = flow.predictor(state.cache, mapped.added, moves.tokens, moves.tables, text=moves.text_length)
        judged.append((mapped, predict(inputs)))
    (free, without), (acted, given) = judged
    nats, surprise = acted.nats(given), acted.surprise(given, x, clean[:, None], world.config.noise_level)
    parts = (nats, surprise, free.nats(without) - nats)
    return state, torch.stack([part[:, 0].sum(-1) for part in parts])
