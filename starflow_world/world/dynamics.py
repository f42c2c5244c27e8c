"""Transitions of world states: sample or observe a frame, then commit it; window slides; cache rebuilds.

The returned tokens are exactly those whose keys are in the cache; the means and scales of the pass that wrote these
keys give their exact log-probability. The result of a row depends on no other row.

Shapes: B rows, T frames, n tokens per frame, c channels, W window, d deep width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from starflow_world.config.world import DecodeConfig
from starflow_world.errors import ConfigError, DataError, StateError
from starflow_world.flow import Affine, FrameMap, Inverse, KVCache, Past
from starflow_world.model.networks import Networks
from starflow_world.noise import normals, uniforms
from starflow_world.world.frames import FrameCoder
from starflow_world.world.state import Transition, WorldState

PROMPT_BYTES = 64 << 20
"""Limit on the memory for cached keys of texts, in bytes."""
P = ParamSpec("P")
R = TypeVar("R")


def running(method: "Callable[Concatenate[Dynamics, P], R]") -> "Callable[Concatenate[Dynamics, P], R]":
    """Run a method in the precision of the flow's weights."""

    @wraps(method)
    def run(self: "Dynamics", /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.networks.flow.products():
            return method(self, *args, **kwargs)

    return run


@dataclass(frozen=True)
class NextFrame:
    """Inputs to sample the next frame of B rows: history, encoded action (B, 1, d), map from tokens u to the frame.

    before (B, 1, c): the deep block's token u just before those of the frame.
    """

    past: Past
    action: Tensor
    before: Tensor
    frame_map: FrameMap


class Dynamics:
    """Transition functions of one world: each maps a state to the next state and a Transition."""

    def __init__(self, networks: Networks, world_id: str) -> None:
        self.networks, self.config, self.frames = networks, networks.config, FrameCoder(networks)
        self.tables, self.tokens = self.frames.tables, self.frames.tokens
        self.frame_shape = (self.tokens, self.config.channels)
        self.world_id, self.decode = world_id, networks.config.decode
        self.text_length = 0 if networks.text is None else self.config.flow.text_length
        self._prompts: dict[str, tuple[Tensor, KVCache]] = {}
        self.guidance = 0.0 if self.config.published is None else self.config.published.guidance

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.networks.flow.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of latents, tokens and nats."""
        return self.networks.flow.dtype

    def field_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the canonical fields of a state, without the row axis."""
        n, c, window = self.tokens, self.config.channels, self.config.window
        carried, flat = self.networks.flow.carry.numbers, self.networks.action.project.in_features
        return {
            "tokens": (window, n, c), "latents": (self.frames.memory, n, c), "carried": (window, carried),
            "actions": (window, flat), "length": (), "step": (), "key": (),
        }

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Tensor | None:
        """Encode one string per row as (B, L, d), or return None for a world without text. Raises DataError.

        Each string is encoded on its own, so the bits of a row depend on no other row's text.
        """
        if not texts or not all(isinstance(text, str) for text in texts):
            raise DataError(f"text: expected one string or more, found {texts!r:.60}")
        if self.networks.text is None:
            if any(texts):
                text = next(filter(None, texts))
                raise DataError(f"text: expected none, as world {self.config.name} takes no text, found {text!r:.60}")
            return None
        return torch.cat([self._prompt(text)[0] for text in texts])

    def _prompt(self, text: str) -> tuple[Tensor, KVCache]:
        """Return the states (1, L, d) of a text and its keys in the deep block; the latest texts are cached."""
        prompt = self._prompts.pop(text, None)
        if prompt is None:
            assert self.networks.text is not None
            with self.networks.flow.products():
                states = self.networks.text([text])
                cache = self.networks.flow.start_cache(states, 1, self.tables)
            first = cache.select(torch.tensor([0]), self.text_length)
            most = max(1, PROMPT_BYTES // (2 * first.keys.nbytes))
            while len(self._prompts) >= most:
                self._prompts.pop(next(iter(self._prompts)), None)
            prompt = states, first
        self._prompts[text] = prompt  # the latest comes last
        return prompt

    # ---- states --------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    @running
    def empty(self, texts: Sequence[str], keys: Sequence[int]) -> WorldState:
        """Return the state of rows before their first frame, with these texts and noise keys."""
        rows, shapes = len(texts), self.field_shapes()
        names, like = ("tokens", "latents", "carried", "actions"), self.networks.flow.deep.start
        tokens, latents, carried, actions = (like.new_zeros((rows, *shapes[name])) for name in names)
        text, length, step = self.encode_text(texts), torch.zeros(rows).long(), torch.zeros(rows).long()
        return WorldState(
            tokens, latents, carried, actions, text, tuple(texts), length, step, torch.tensor(keys, dtype=torch.int64),
            self._start_cache(texts), self.world_id, self.networks.codec.begin(rows),
        )

    def _start_cache(self, texts: Sequence[str]) -> KVCache:
        """Return a cache with the text of each row; with guidance, as many further layers hold the empty text."""
        texts = (*texts, *([""] * len(texts) if self.guidance else ()))
        cache = self.networks.flow.deep.empty_cache(len(texts), self.text_length + self.tables.video.shape[1])
        if self.networks.text is not None:
            for row, text in enumerate(texts):
                cache = cache.insert(torch.tensor([row]), self._prompt(text)[1])
        return cache.folded() if self.guidance else cache

    @running
    def own(self, state: WorldState, *, reuse: bool) -> WorldState:
        """Return the state with an unshared cache that has room for one more frame in every row. Raises StateError."""
        self.check(state)
        cache = state.take_cache() if reuse else state.cache
        state = self.rebuilt(state) if cache is None else replace(state, cache=cache if reuse else cache.clone())
        full = (state.length >= self.config.window).nonzero()[:, 0]
        return self.slide(state, full) if len(full) else state

    def check(self, state: WorldState) -> None:
        """Raise StateError for a state of another world, dtype or device."""
        if state.world_id != self.world_id:
            raise StateError(f"state: expected one of world {self.world_id[:12]}, found one of {state.world_id[:12]}")
        if (state.tokens.dtype, state.tokens.device) != (self.dtype, self.device):
            place = f"{state.tokens.dtype} on {state.tokens.device}; save it and load it with this world"
            raise StateError(f"state: expected {self.dtype} on {self.device}, found {place}")

    @running
    def rebuilt(self, state: WorldState) -> WorldState:
        """Return the state with its cache recomputed from the canonical fields, row by row."""
        caches = []
        for row in range(len(state)):
            one, count = slice(row, row + 1), int(state.length[row])
            cache = self._start_cache(state.texts[one])
            if count:
                u, carried, actions = (part[one, :count] for part in (state.tokens, state.carried, state.actions))
                x = self.networks.flow.motion.history(u, state.latents[one])
                cache = self._encode(cache, u, x, carried, actions)
            caches.append(cache)
        return replace(state, cache=KVCache.stack(caches))

    def slide(self, state: WorldState, rows: Tensor) -> WorldState:
        """Keep the last `context` frames of the given rows and encode them again at the start of a window.

        Rows are encoded one by one: in a batch the bits of a row depend on its place, so on which other rows slide.
        """
        keep, window, cache, flow = self.config.context, self.config.window, state.cache, self.networks.flow
        assert cache is not None
        tokens, actions, length = state.tokens.clone(), state.actions.clone(), state.length.clone()
        carried = state.carried.clone()
        for some in rows.split(1):
            for field, old in ((tokens, state.tokens), (carried, state.carried), (actions, state.actions)):
                field[some, :keep], field[some, keep:] = old[some, window - keep :], 0
            x = flow.motion.history(tokens[some, :keep], state.latents[some])
            tokens[some, :keep] = flow.motion.restart(tokens[some, :keep], x, flow.shallow, self.tables)
            fresh = cache.select(some, self.text_length + keep * self.tokens).rollback(self.text_length)
            fresh = self._encode(fresh, tokens[some, :keep], x, carried[some, :keep], actions[some, :keep])
            cache = cache.insert(some, fresh)
        length[rows] = keep
        return replace(state, tokens=tokens, carried=carried, actions=actions, length=length, cache=cache)

    def _encode(self, cache: KVCache, u: Tensor, x: Tensor, carried: Tensor, actions: Tensor) -> KVCache:
        """Encode frames u (B, T, n, c) at the start of a window; x: their noisy latents, if the motion reads them."""
        flow = self.networks.flow
        added = flow.map_clip(x, self.networks.action(actions), self.tables, carried).added
        written = cache.unfolded() if self.guidance else cache
        flow.fill(written, flow.deep.shift(u.flatten(1, 2)), added, self.tables, text=self.text_length)
        return cache.commit(u.shape[1] * u.shape[2])

    # ---- transitions ---------------------------------------------------------------------------------------------

    @running
    def imagine(self, state: WorldState, flat: Tensor, noise: Tensor | None) -> tuple[WorldState, Transition]:
        """Sample the next frame of a state from `own`; flat (B, 1 + flat), noise (B, n, c); None: keyed noise."""
        flow = self.networks.flow
        noise = self.prior(state) if noise is None else noise.to(self.device, self.dtype)
        coming = self.next_frame(state, flat)
        solved = self._solve(state, coming, noise)
        u = solved.tokens[:, None]
        x, logdet = coming.frame_map.inverse(u, chunk=int(self.decode.chunk == 1))
        carried = flow.carry.after(coming.past, x, coming.action, self.tables.grid)
        return self._commit(state, flat[:, None], u, x, carried, logdet, solved.affine, solved)

    @running
    def imagine_start(self, state: WorldState, guidance: float) -> tuple[WorldState, Transition]:
        """Sample the first frame of empty rows by diffusion, or by the flow with classifier-free guidance.

        The nats are those of the unguided flow.
        """
        networks, flow = self.networks, self.networks.flow
        null = self.encode_text([""] * len(state)) if guidance else None
        flat = torch.zeros(len(state), self.field_shapes()["actions"][1], device=self.device, dtype=self.dtype)
        if networks.start is not None:
            x = networks.start.sample(
                lambda k: self.prior(state, k, "start"), self.config.noise_level, state.text, self.tables.grid,
                null_text=null, guidance=guidance,
            )
            state, transition = self.observe(state, flat[:, None], x[:, None], None)
            return state, replace(transition, sweeps=torch.full_like(transition.sweeps, self.config.start.steps))
        if null is None or state.text is None:
            raise ConfigError("guidance: expected a text and a null text of the same length, found none")
        noise = self.prior(state)
        cache = flow.start_cache(torch.cat((state.text, null)), 2 * len(state), self.tables)
        _, solved = flow.decode(
            cache, flow.deep.shift(noise[:, :1]), noise, noise, None, self.tables, text=self.text_length,
            guidance=guidance, settings=DecodeConfig(tolerance=self.config.decode.tolerance),
        )
        x, _, _ = flow.shallow.inverse(solved.tokens[:, None], self.tables)
        state, transition = self.observe(state, flat[:, None], x, None)
        return state, replace(
            transition, sweeps=solved.sweeps, residual=solved.residual, converged=solved.converged
        )

    @running
    def observe(
        self, state: WorldState, flat: Tensor, x: Tensor, frames: Tensor | None
    ) -> tuple[WorldState, Transition]:
        """Condition a state from `own` on T frames of noisy latents x (B, T, n, c); flat (B, T, 1 + flat).

        T > 1 only for empty rows. The transition shows the last of `frames`, if given, instead of decoded frames.
        """
        flow = self.networks.flow
        assert state.cache is not None
        if x.shape[1] == 1:
            coming = self.next_frame(state, flat[:, 0])
            frame_map, before = coming.frame_map, coming.before
            carried = flow.carry.after(coming.past, x, coming.action, self.tables.grid)
        else:
            action = self.networks.action(flat)
            carried = flow.carry.along(x, action, self.tables.grid)
            frame_map = flow.map_clip(x, action, self.tables, carried)
            before = flow.deep.start.expand(len(x), 1, -1)
        u, logdet = frame_map.forward(x)
        inputs = torch.cat((before, u.flatten(1, 2)[:, :-1]), dim=1)
        cache = state.cache.unfolded() if self.guidance else state.cache
        _, affine = flow.extend(cache, inputs, frame_map.added, self.tables, text=self.text_length)
        return self._commit(state, flat, u, x, carried, logdet, affine.rows(slice(len(x))), None, frames)

    def prior(self, state: WorldState, ahead: int = 0, purpose: str = "prior") -> Tensor:
        """Return the keyed noise (B, n, c) of the next frame, or of the frame `ahead` after it."""
        noise = normals(state.key, state.step + ahead, purpose, self.frame_shape)
        return noise.to(self.device, self.dtype)

    def next_frame(self, state: WorldState, flat: Tensor) -> NextFrame:
        """Prepare the next frame of every row under actions flat (B, 1 + flat)."""
        flow, action, device = self.networks.flow, self.networks.action(flat)[:, None], self.device
        newest = torch.arange(len(state)), (state.length - 1).clamp_min(0)
        alone = (state.length == 0).nonzero()[:, 0].to(device)
        past = Past(state.tokens[newest], state.latents, state.carried[newest], alone)
        before = torch.where(past.present, past.tokens[:, -1:], flow.deep.start)
        return NextFrame(past, action, before, flow.map_next(past, action, self.tables))

    def _solve(self, state: WorldState, coming: NextFrame, noise: Tensor) -> Inverse:
        """Decode the next frame u from noise (B, n, c)."""
        flow, added = self.networks.flow, coming.frame_map.added
        assert state.cache is not None
        assert added is not None
        _, solved = flow.decode(
            state.cache.unfolded() if self.guidance else state.cache, coming.before, noise,
            flow.motion.guess(coming.past, noise), added[:, 0], self.tables, text=self.text_length,
            guidance=self.guidance, settings=self.decode,
        )
        return solved

    def _commit(
        self, state: WorldState, flat: Tensor, u: Tensor, x: Tensor, carried: Tensor, logdet: Tensor, affine: Affine,
        solved: Inverse | None, frames: Tensor | None = None,
    ) -> tuple[WorldState, Transition]:
        """Append T frames to a state and return the transition; used for sampled and observed frames.

        u, x, logdet (B, T, n, c); carried (B, T, K): after each frame; affine: the deep block's prediction of u.
        """
        count, rows = u.shape[1], len(state)
        row = torch.arange(rows)[:, None]
        place = state.length[:, None] + torch.arange(count)
        tokens, held, actions = state.tokens.clone(), state.carried.clone(), state.actions.clone()
        tokens[row, place], held[row, place], actions[row, place] = u, carried, flat
        seen = torch.cat((state.latents, x), dim=1)
        cache = state.cache
        assert cache is not None
        grown = replace(
            state, tokens=tokens, carried=held, actions=actions, latents=seen[:, count:],
            length=state.length + count, step=state.step + count, cache=cache.commit(count * self.tokens),
        )
        nats = affine.nats(u.flatten(1, 2)).unflatten(1, u.shape[1:3])[:, -1] + logdet[:, -1]
        z, _ = affine.to_noise(u.flatten(1, 2))
        reward, probability, end = self._outcome(grown, affine.hidden[:, -self.tokens :], x[:, -1])
        zeros = torch.zeros(rows, device=self.device)
        grown, shown = self.frames.shown(grown, seen, count, frames)
        return grown, Transition(
            frames=shown,
            latents=x[:, -1], noise=z[:, -self.tokens :], reward=reward, end_probability=probability, end=end,
            nats=nats.sum((-1, -2)), token_nats=nats.sum(-1),
            sweeps=solved.sweeps if solved else zeros.long(), residual=solved.residual if solved else zeros,
            converged=solved.converged if solved else zeros == 0,
        )

    def _outcome(self, state: WorldState, hidden: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return expected reward, p(end), and the end flag (sampled or thresholded, see config), (B,) each."""
        head = self.networks.outcome
        if head is None:
            none = self.config.reward == "none"
            unknown = torch.full((len(state),), 0.0 if none else torch.nan, device=self.device)
            return unknown, unknown, torch.zeros(len(state), dtype=torch.bool, device=self.device)
        outcome = head(hidden, x, state.text, self.tables.grid)
        probability = outcome.end_logit.sigmoid()
        if self.config.outcome.end == "sample":
            end = uniforms(state.key, state.step, "end").to(self.device) < probability
        else:
            end = probability >= 0.5
        return head.reward(outcome), probability, end
