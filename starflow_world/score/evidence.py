"""What a world says of real frames, token by token; the only file of the scorer that looks into the flow.

Noise of level sigma is added to clean latents before they are scored, and the scorer knows that noise: a perfect
prediction of a frame costs exactly log N(x; clean, sigma^2). Behind a frame the flow is affine in each dimension given
the tokens before it, x = mean + scale z, so the nats by which a prediction falls short have a closed form in
expectation over the token's own noise,

    surprise = KL(N(clean, sigma^2) || N(mean, scale^2))
             = log(scale / sigma) + (sigma^2 + (clean - mean)^2) / (2 scale^2) - 1/2

summed over the dimensions: the same mean as the excess nats, without their sampling noise. A first frame goes through
the shallow blocks, where there is no such form: there surprise is the excess itself, paired on the same noise.

`against` asks for another action: log p(x | history, no action) - log p(x | history, action), where only the present
frame's action is dropped. In parallel a second stream of tokens carries the frames without their actions; frame t of it
attends to the first stream's frames before t and to itself, which is what one step against an uncommitted cache sees.

Shapes: B rows, T frames, n tokens per frame, c channels, L text length, d deep width.
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
from starflow_world.flow import Affine, Flow, Tables
from starflow_world.flow.layers import Attention, Layer, attend, rotate
from starflow_world.noise import make_key, normals
from starflow_world.world import World
from starflow_world.world.ahead import Ahead
from starflow_world.world.state import Transition, WorldState

AT_ONCE = 6
"""Frames of the second stream that attend together."""


@dataclass(frozen=True)
class Evidence:
    """nats, surprise, against: (T, n) float64, per token of T frames; latents (T, n, c) float32: clean ones."""

    nats: np.ndarray
    surprise: np.ndarray
    against: np.ndarray
    latents: np.ndarray


@dataclass(frozen=True)
class Window:
    """Frames begin : end of an episode, as a window of the world holds them; those from `known` on are new in it."""

    episode: int
    begin: int
    known: int
    end: int


def windows(lengths: Sequence[int], window: int, context: int) -> list[Window]:
    """The windows that a world goes through when it observes episodes of these lengths, ordered by how many of their
    frames are known already, longest first."""
    found = []
    for episode, count in enumerate(lengths):
        begin, known = 0, 0
        while known < count:
            end = min(begin + window, count)
            found.append(Window(episode, begin, known, end))
            begin, known = end - context, end
    return sorted(found, key=lambda one: (one.known - one.begin, one.begin - one.end))


def batches(plan: list[Window], batch: int) -> Iterator[list[Window]]:
    """At most `batch` windows each, which have as many known frames."""
    for _, alike in groupby(plan, key=lambda one: one.known - one.begin):
        some = list(alike)
        yield from (some[start : start + batch] for start in range(0, len(some), batch))


@torch.inference_mode()
def gather(world: World, episodes: Sequence[Episode], *, seeds: Sequence[int], batch: int) -> list[Evidence]:
    """Evidence on whole episodes, teacher-forced, `batch` windows at a time, averaged over noise draws `seeds`."""
    moves, flow, sigma = world.dynamics, world.networks.flow, world.config.noise_level
    lengths = [len(episode) for episode in episodes]
    longest = max(lengths)
    codec = frame_codec(world.networks.codec)
    clean = [codec.encode(torch.from_numpy(e.frames)[None].to(moves.device))[0][0] for e in episodes]
    bare = _stacked([latents.to(moves.dtype) for latents in clean], longest)
    action = world.networks.action(_stacked([flat_actions(e).to(bare) for e in episodes], longest))
    text = moves.encode_text([episode.text for episode in episodes])
    totals = torch.zeros(3, len(episodes), longest, moves.tokens, dtype=torch.float64)
    plan = windows(lengths, world.config.window, world.config.context)
    for seed in seeds:
        x = bare + _noise(world, seed, longest)
        carried = flow.remember(x, action, moves.tables.grid)
        for some in batches(plan, batch):
            rows, count = [one.episode for one in some], some[0].end - some[0].begin  # the longest of them
            here = _Here(*(
                torch.stack([_cut(part[one.episode], one.begin, count) for one in some])
                for part in (x, bare, action, carried)
            ))
            states, known = None if text is None else text[rows], some[0].known - some[0].begin
            found = _judge(flow, here, states, moves.tables, sigma, known).double().cpu()
            for row, one in enumerate(some):
                totals[:, one.episode, one.known : one.end] += found[:, row, : one.end - one.known]
    mean = (totals / len(seeds)).numpy()
    return [
        Evidence(mean[0, e, :count], mean[1, e, :count], mean[2, e, :count], clean[e].float().cpu().numpy())
        for e, count in enumerate(lengths)
    ]


def _stacked(parts: Sequence[Tensor], count: int) -> Tensor:
    """Parts (T, ...) of different lengths as one (B, count, ...), filled up by zeros, which no frame before sees."""
    return torch.stack([_cut(part, 0, count) for part in parts])


def _cut(part: Tensor, begin: int, count: int) -> Tensor:
    """`count` entries from `begin` on, zeros behind the end."""
    found = part[begin : begin + count]
    return torch.cat((found, found.new_zeros(count - len(found), *part.shape[1:])))


def _noise(world: World, seed: int, count: int) -> Tensor:
    """sigma times the noise of steps 0 .. count - 1 that `World.observe` draws for this seed, (count, n, c)."""
    moves = world.dynamics
    keys = torch.full((count,), make_key(seed), dtype=torch.int64)
    drawn = normals(keys, torch.arange(count), "observation", (moves.tokens, world.config.channels))
    return world.config.noise_level * drawn.to(moves.device, moves.dtype)


class _Here(NamedTuple):
    """What is known of windows: noisy latents x and clean ones (B, T, n, c), actions (B, T, d), what is carried
    (B, T, K). The latter follows from frames and actions before a frame: it is the same without the frame's own."""

    x: Tensor
    clean: Tensor
    action: Tensor
    carried: Tensor


def _judge(flow: Flow, here: _Here, text: Tensor | None, tables: Tables, sigma: float, known: int) -> Tensor:
    """nats, surprise and against (3, B, T - known, n) of the frames of windows that are not known yet."""
    acted = _Front.of(flow, here.x, here.action, here.carried, tables)
    free = _Front.of(flow, here.x, torch.zeros_like(here.action), here.carried, tables).behind(known)
    said, unled = _two_streams(flow, acted, free, text, tables)
    nats, surprise = acted.nats(said)[:, known:], acted.surprise(said, here.x, here.clean, sigma)[:, known:]
    return torch.stack([part.sum(-1) for part in (nats, surprise, free.nats(unled) - nats)])


@dataclass(frozen=True)
class _Front:
    """Frames in front of the deep block: u and log|du/dx| (B, T, n, c), the motion of those with a frame before them,
    and what is added to the deep block's inputs (B, T, n, d)."""

    u: Tensor
    logdet: Tensor
    motion: Affine | None
    added: Tensor

    @staticmethod
    def of(flow: Flow, x: Tensor, action: Tensor, carried: Tensor, tables: Tables) -> "_Front":
        motion, added = flow.condition(x, None, action, tables.grid, carried[:, :-1])
        assert added is not None
        if motion is None:
            return _Front(*flow.shallow_forward(x, tables), None, added)
        start, start_logdet = flow.shallow_forward(x[:, :1], tables)  # a window's first frame follows none in it
        u, logdet = motion.to_noise(x[:, 1:])
        return _Front(torch.cat((start, u), dim=1), torch.cat((start_logdet, logdet), dim=1), motion, added)

    def behind(self, known: int) -> "_Front":
        """Without the first `known` frames; what is left of the motion is not asked for."""
        return _Front(self.u[:, known:], self.logdet[:, known:], None, self.added[:, known:])

    def nats(self, said: Affine) -> Tensor:
        """log p per dimension (B, T, n, c), given what the deep block said of u (B, T * n, c)."""
        return said.nats(self.u.flatten(1, 2)).unflatten(1, self.u.shape[1:3]) + self.logdet

    def surprise(self, said: Affine, x: Tensor, clean: Tensor, sigma: float) -> Tensor:
        """Nats per dimension (B, T, n, c) by which the prediction falls short of a perfect one."""
        floor = Affine(clean, torch.full_like(clean, sigma), said.hidden)
        excess = floor.nats(x) - self.nats(said)
        if self.motion is None:
            return excess
        shape = self.u.shape[1:3]
        first = shape[0] - self.motion.mean.shape[1]
        mean, scale = (part.unflatten(1, shape)[:, first:] for part in (said.mean, said.scale))
        mean, scale = self.motion.mean + self.motion.scale * mean, self.motion.scale * scale
        short = (scale / sigma).log() + (sigma**2 + (clean[:, first:] - mean) ** 2) / (2 * scale**2) - 0.5
        return torch.cat((excess[:, :first], short), dim=1)


def _two_streams(
    flow: Flow, acted: _Front, free: _Front, text: Tensor | None, tables: Tables
) -> tuple[Affine, Affine]:
    """What the deep block says of all frames, and of the last ones, each without its own action, in one pass."""
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
    """Tokens begin : end of the second stream see the first `seen` positions of the first and, of the second, these
    tokens; each as far as `mask` (1, 1, end - begin, seen + end - begin) says."""

    begin: int
    end: int
    seen: int
    mask: Tensor


def _views(length: int, frames: int, known: int, n: int, device: torch.device) -> list[_View]:
    """The second stream a few frames at a time: none looks at positions that are masked for all of them."""
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
    """Attention over both streams: `first` positions of text and the first one, causal, then the second."""
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


def first(world: World, transition: Transition, clean: Tensor) -> Tensor:
    """nats, surprise and against (3, B, n) of first frames that `World.start` was told; clean latents (B, n, c)."""
    sigma = world.config.noise_level
    floor = Affine(clean, torch.full_like(clean, sigma), clean).nats(transition.latents).sum(-1)
    nats = transition.token_nats
    return torch.stack((nats, floor - nats, torch.zeros_like(nats)))


@torch.inference_mode()
def peek(world: World, state: WorldState, flat: Tensor, frames: Tensor, clean: Tensor) -> tuple[WorldState, Tensor]:
    """nats, surprise and against (3, B, n) of the next frames (B, 1, H, W, 3) of rows that have begun, under actions
    flat (B, 1 + flat), and the state, which has room for them; nothing is committed. clean (B, n, c): their latents."""
    moves, flow = world.dynamics, world.networks.flow
    state = moves.own(state, reuse=True)
    assert state.cache is not None
    x = moves.noisy(frames, state.key, state.step)
    found = []
    for given in (torch.zeros_like(flat), flat):
        ahead = Ahead.of(state, world.networks.action(given), flow, moves.tables)
        front = _Front(*ahead.forth(x), ahead.motion, ahead.added[:, None])
        inputs = torch.cat((ahead.before, front.u[:, 0, :-1]), dim=1)
        predict = flow.predictor(state.cache, ahead.added, moves.tokens, moves.tables, text=moves.text_length)
        found.append((front, predict(inputs)))
    (free, unled), (acted, said) = found
    nats, surprise = acted.nats(said), acted.surprise(said, x, clean[:, None], world.config.noise_level)
    parts = (nats, surprise, free.nats(unled) - nats)
    return state, torch.stack([part[:, 0].sum(-1) for part in parts])
