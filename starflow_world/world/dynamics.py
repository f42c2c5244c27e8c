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

from starflow_world.errors import ConfigError, DataError, StateError
from starflow_world.flow import Density, Inverse, KVCache
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
    """What the next frame of B rows is sampled or scored from.

    last (B, n, c): tokens u of the previous frame; present (B, 1, 1): whether there is one; before (B, 1, c): the token
    just before the frame's; added (B, n, d): conditions of the deep block.
    """

    last: Tensor
    present: Tensor
    before: Tensor
    added: Tensor


class Dynamics:
    """Transition functions of one world: each maps a state to the next state and a Transition."""

    def __init__(self, networks: Networks, world_id: str) -> None:
        self.networks, self.config, self.frames = networks, networks.config, FrameCoder(networks)
        self.tables, self.tokens = self.frames.tables, self.frames.tokens
        self.noise_shape = (self.tokens, networks.flow.noise_channels)
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
        return {
            "tokens": (window, n, c), "latents": (self.frames.memory, n, c),
            "actions": (window, self.networks.action.project.in_features), "length": (), "step": (), "key": (),
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
        names, like = ("tokens", "latents", "actions"), self.networks.flow.deep.start
        tokens, latents, actions = (like.new_zeros((rows, *shapes[name])) for name in names)
        text, length, step = self.encode_text(texts), torch.zeros(rows).long(), torch.zeros(rows).long()
        return WorldState(
            tokens, latents, actions, text, tuple(texts), length, step, torch.tensor(keys, dtype=torch.int64),
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
                text = None if state.text is None else state.text[one]
                cache = self._encode(cache, state.tokens[one, :count], text, state.actions[one, :count])
            caches.append(cache)
        return replace(state, cache=KVCache.stack(caches))

    def slide(self, state: WorldState, rows: Tensor) -> WorldState:
        """Keep the last `context` frames of the given rows and encode them again at the start of a window.

        Rows are encoded one by one: in a batch the bits of a row depend on its place, so on which other rows slide.
        """
        keep, window, cache = self.config.context, self.config.window, state.cache
        assert cache is not None
        tokens, actions, length = state.tokens.clone(), state.actions.clone(), state.length.clone()
        for some in rows.split(1):
            for field, old in ((tokens, state.tokens), (actions, state.actions)):
                field[some, :keep], field[some, keep:] = old[some, window - keep :], 0
            fresh = cache.select(some, self.text_length + keep * self.tokens).rollback(self.text_length)
            text = None if state.text is None else state.text[some]
            cache = cache.insert(some, self._encode(fresh, tokens[some, :keep], text, actions[some, :keep]))
        length[rows] = keep
        return replace(state, tokens=tokens, actions=actions, length=length, cache=cache)

    def _encode(self, cache: KVCache, u: Tensor, text: Tensor | None, actions: Tensor) -> KVCache:
        """Encode frames u (B, T, n, c) with text (B, L, d) and actions (B, T, 1 + flat) at the start of a window."""
        flow = self.networks.flow
        added = flow.conditions(u, text, self.networks.action(actions), self.tables.grid)
        written = cache.unfolded() if self.guidance else cache
        flow.fill(written, flow.deep.shift(u.flatten(1, 2)), added, self.tables, text=self.text_length)
        return cache.commit(u.shape[1] * u.shape[2])

    # ---- transitions ---------------------------------------------------------------------------------------------

    @running
    def imagine(self, state: WorldState, flat: Tensor, noise: Tensor | None) -> tuple[WorldState, Transition]:
        """Sample the next frame of a state from `own`; flat (B, 1 + flat), noise (B, n, c + g); None: keyed noise."""
        noise = self.prior(state) if noise is None else noise.to(self.device, self.dtype)
        coming, cache = self.next_frame(state, flat), state.cache
        assert cache is not None
        solved = self._solve(cache.unfolded() if self.guidance else cache, coming, noise, self.guidance)
        return self._commit(state, flat[:, None], solved.tokens[:, None], None, solved.density, (solved, noise))

    @running
    def imagine_start(self, state: WorldState, guidance: float) -> tuple[WorldState, Transition]:
        """Sample the first frame of empty rows with classifier-free guidance; the nats are the unguided flow's."""
        if state.text is None:
            raise ConfigError("guidance: expected a world that reads texts, found one that does not")
        null = self.encode_text([""] * len(state))
        assert null is not None
        cache = self.networks.flow.start_cache(torch.cat((state.text, null)), 2 * len(state), self.tables)
        flat = torch.zeros(len(state), self.field_shapes()["actions"][1], device=self.device, dtype=self.dtype)
        noise, coming = self.prior(state), self.next_frame(state, flat)
        free = self.next_frame(replace(state, text=null), flat)
        coming = replace(coming, added=torch.cat((coming.added, free.added)))
        solved = self._solve(cache, coming, noise, guidance)
        x, _, _ = self.networks.flow.shallow.inverse(solved.tokens[:, None], self.tables)
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
        u, logdet = flow.shallow(x, self.tables)
        added: Tensor | None
        if x.shape[1] == 1:
            coming = self.next_frame(state, flat[:, 0])
            added, before = coming.added, coming.before
        else:
            added = flow.conditions(u, state.text, self.networks.action(flat), self.tables.grid)
            before = flow.deep.start.expand(len(x), 1, -1)
        inputs = torch.cat((before, u.flatten(1, 2)[:, :-1]), dim=1)
        cache = state.cache.unfolded() if self.guidance else state.cache
        _, density = flow.extend(cache, inputs, added, self.tables, text=self.text_length)
        return self._commit(state, flat, u, (x, logdet), density.rows(slice(len(x))), None, frames)

    def prior(self, state: WorldState, ahead: int = 0, purpose: str = "prior") -> Tensor:
        """Return the keyed noise (B, n, c + g) of the next frame, or of the frame `ahead` after it."""
        noise = normals(state.key, state.step + ahead, purpose, self.noise_shape)
        return noise.to(self.device, self.dtype)

    def next_frame(self, state: WorldState, flat: Tensor) -> NextFrame:
        """Prepare the next frame of every row under actions flat (B, 1 + flat)."""
        flow, action = self.networks.flow, self.networks.action(flat)
        last = state.tokens[torch.arange(len(state)), (state.length - 1).clamp_min(0)]
        present = (state.length > 0).to(self.device)[:, None, None]
        before = torch.where(present, last[:, -1:], flow.deep.start)
        added = flow.next_conditions(last, present, state.text, action, self.tables.grid)
        return NextFrame(last, present, before, added)

    def _solve(self, cache: KVCache, coming: NextFrame, noise: Tensor, guidance: float) -> Inverse:
        """Decode the next frame u from noise (B, n, c + g)."""
        flow = self.networks.flow
        _, solved = flow.decode(
            cache, coming.before, noise, flow.guess(coming.last, coming.present, noise), coming.added, self.tables,
            text=self.text_length, guidance=guidance, settings=self.decode,
        )
        return solved

    def _commit(
        self, state: WorldState, flat: Tensor, u: Tensor, given: tuple[Tensor, Tensor] | None, density: Density,
        drawn: tuple[Inverse, Tensor] | None, frames: Tensor | None = None,
    ) -> tuple[WorldState, Transition]:
        """Append T frames u (B, T, n, c) of this density to a state and return the transition.

        given: noisy latents and log|du/dx| (B, T, n, c) of observed frames; drawn: how u was solved from which noise.
        """
        count, rows, flow, n = u.shape[1], len(state), self.networks.flow, self.tokens
        x, logdet = given or flow.shallow.inverse(u, self.tables, chunk=int(self.decode.chunk == 1))[:2]
        row = torch.arange(rows)[:, None]
        place = state.length[:, None] + torch.arange(count)
        tokens, actions, cache = state.tokens.clone(), state.actions.clone(), state.cache
        tokens[row, place], actions[row, place] = u, flat
        assert cache is not None
        flat_u = u.flatten(1, 2)
        nats = density.nats(flat_u)[:, -n:] + logdet[:, -1].sum(-1)
        noise = self._noise_of(state, density, flat_u)[:, -n:] if drawn is None else drawn[1]
        reward, probability, end = self._outcome(
            replace(state, step=state.step + count), density.hidden[:, -n:], x[:, -1]
        )
        seen = torch.cat((state.latents, self.frames.kept(x, density, flat_u)), dim=1)
        grown = replace(
            state, tokens=tokens, actions=actions, latents=seen[:, count:],
            length=state.length + count, step=state.step + count, cache=cache.commit(count * n),
        )
        grown, shown = self.frames.shown(grown, seen, count, frames)
        zeros = torch.zeros(rows, device=self.device)
        solved = None if drawn is None else drawn[0]
        return grown, Transition(
            frames=shown, latents=x[:, -1], noise=noise, reward=reward, end_probability=probability, end=end,
            nats=nats.sum(-1), token_nats=nats,
            sweeps=solved.sweeps if solved else zeros.long(), residual=solved.residual if solved else zeros,
            converged=solved.converged if solved else zeros == 0,
        )

    def _noise_of(self, state: WorldState, density: Density, u: Tensor) -> Tensor:
        """Return noise (B, T * n, c + g) that gives the tokens u (B, T * n, c); keyed luck chooses among several."""
        shape = (self.tokens, 2 * self.networks.flow.deep.head.sites)
        if not shape[1]:
            return density.noise(u, u)
        steps = [state.step + t for t in range(u.shape[1] // self.tokens)]
        luck = torch.cat([torch.special.ndtr(normals(state.key, step, "luck", shape)) for step in steps], dim=1)
        return density.noise(u, luck.to(u.device))

    def _outcome(self, state: WorldState, hidden: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return expected reward, p(end), and the end flag (sampled or thresholded, see config), (B,) each."""
        head = self.networks.outcome
        if head is None:
            none = self.config.reward == "none"
            unknown = torch.full((len(state),), 0.0 if none else torch.nan, device=self.device)
            return unknown, unknown, torch.zeros(len(state), dtype=torch.bool, device=self.device)
        outcome = head(hidden, self.networks.flow.describe(x), state.text, self.tables.grid)
        probability = outcome.end_logit.sigmoid()
        if self.config.outcome.end == "sample":
            end = uniforms(state.key, state.step, "end").to(self.device) < probability
        else:
            end = probability >= 0.5
        return head.reward(outcome), probability, end
