"""How a state moves: imagine or be told a frame, then one common commit; slides; rebuilt caches.

The emitted tokens are exactly those whose keys are in the cache, and the means and scales of the pass that wrote them
give their exact log-probability. A row's result depends on no other row.

Shapes: B rows, T frames, n tokens per frame, c channels, W window, d deep width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from starflow_world.errors import DataError, StateError
from starflow_world.flow import Affine, Inverse, KVCache
from starflow_world.flow.sample import sample_deep, solve_guided
from starflow_world.model.networks import Networks
from starflow_world.noise import normals, uniforms
from starflow_world.world.ahead import Ahead
from starflow_world.world.frames import Pictures
from starflow_world.world.state import Transition, WorldState

PROMPT_BYTES = 64 << 20
"""Most memory for the keys of texts that are kept."""
SLIDES_AT_ONCE = 4
P = ParamSpec("P")
R = TypeVar("R")


def running(move: "Callable[Concatenate[Dynamics, P], R]") -> "Callable[Concatenate[Dynamics, P], R]":
    """The move, made in the precision of the flow's weights."""

    @wraps(move)
    def run(self: "Dynamics", /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.networks.flow.products():
            return move(self, *args, **kwargs)

    return run


class Dynamics(Pictures):
    """The moves of one world's states."""

    def __init__(self, networks: Networks, world_id: str) -> None:
        super().__init__(networks)
        self.world_id, self.decode = world_id, networks.config.decode
        self.text_length = 0 if networks.text is None else self.config.flow.text_length
        self._prompts: dict[str, tuple[Tensor, KVCache]] = {}
        self.guidance = 0.0 if self.config.published is None else self.config.published.guidance

    def field_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the canonical fields of a state behind the row axis."""
        n, c, window = self.tokens, self.config.channels, self.config.window
        flat = self.networks.action.project.in_features
        shapes: dict[str, tuple[int, ...]] = {"tokens": (window, n, c), "latents": (self.memory, n, c)}
        carried = self.networks.flow.carried
        return shapes | {"carried": (window, carried), "actions": (window, flat), "length": (), "step": (), "key": ()}

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Tensor | None:
        """States (B, L, d) of one string per row, each string on its own: a row's bits depend on no other row's text.
        None for a world without text."""
        if not texts or not all(isinstance(text, str) for text in texts):
            raise DataError(f"text: expected one string or more, found {texts!r:.60}")
        if self.networks.text is None:
            if any(texts):
                found = next(filter(None, texts))
                raise DataError(f"text: expected none, as world {self.config.name} takes no text, found {found!r:.60}")
            return None
        return torch.cat([self._prompt(text)[0] for text in texts])

    def _prompt(self, text: str) -> tuple[Tensor, KVCache]:
        """States (1, L, d) of a text and its keys in the deep block, kept for the texts that were used last."""
        if text not in self._prompts:
            assert self.networks.text is not None
            with self.networks.flow.products():
                states = self.networks.text([text])
                cache = self.networks.flow.start_cache(states, 1, self.tables)
            first = cache.select(torch.tensor([0]), self.text_length)
            most = max(1, PROMPT_BYTES // (2 * first.keys.nbytes))
            while len(self._prompts) >= most:
                del self._prompts[next(iter(self._prompts))]
            self._prompts[text] = states, first
        else:
            self._prompts[text] = self._prompts.pop(text)
        return self._prompts[text]

    # ---- states --------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    @running
    def empty(self, texts: Sequence[str], keys: Sequence[int]) -> WorldState:
        """Rows before their first frame."""
        rows, shapes = len(texts), self.field_shapes()
        names, like = ("tokens", "latents", "carried", "actions"), self.networks.flow.deep.start
        tokens, latents, carried, actions = (like.new_zeros((rows, *shapes[name])) for name in names)
        text, length, step = self.encode_text(texts), torch.zeros(rows).long(), torch.zeros(rows).long()
        return WorldState(
            tokens, latents, carried, actions, text, tuple(texts), length, step, torch.tensor(keys, dtype=torch.int64),
            self._start_cache(texts), self.world_id, self.networks.codec.begin(rows),
        )

    def _start_cache(self, texts: Sequence[str]) -> KVCache:
        """A cache that holds each row's text; with guidance also the empty text, as a second half of the layers."""
        texts = (*texts, *([""] * len(texts) if self.guidance else ()))
        cache = self.networks.flow.deep.empty_cache(len(texts), self.text_length + self.tables.video.shape[1])
        if self.networks.text is not None:
            for row, text in enumerate(texts):
                cache = cache.insert(torch.tensor([row]), self._prompt(text)[1])
        return cache.folded() if self.guidance else cache

    @running
    def own(self, state: WorldState, *, reuse: bool) -> WorldState:
        """The state with a cache that nobody else holds, and room for a frame in every row."""
        self.check(state)
        cache = state.take_cache() if reuse else state.cache
        state = self.rebuilt(state) if cache is None else replace(state, cache=cache if reuse else cache.clone())
        full = (state.length >= self.config.window).nonzero()[:, 0]
        return self.slide(state, full) if len(full) else state

    def check(self, state: WorldState) -> None:
        """StateError for a state of another world, or elsewhere."""
        if state.world_id != self.world_id:
            raise StateError(f"state: expected one of world {self.world_id[:12]}, found one of {state.world_id[:12]}")
        if (state.tokens.dtype, state.tokens.device) != (self.dtype, self.device):
            found = f"{state.tokens.dtype} on {state.tokens.device}; save it and load it with this world"
            raise StateError(f"state: expected {self.dtype} on {self.device}, found {found}")

    @running
    def rebuilt(self, state: WorldState) -> WorldState:
        """The state with a cache made from its canonical fields, row by row."""
        caches = []
        for row in range(len(state)):
            one, count = slice(row, row + 1), int(state.length[row])
            cache = self._start_cache(state.texts[one])
            if count:
                u, carried, actions = (part[one, :count] for part in (state.tokens, state.carried, state.actions))
                cache = self._encode(cache, u, self._past(state, torch.tensor([row]), count), carried, actions)
            caches.append(cache)
        return replace(state, cache=KVCache.stack(caches))

    def slide(self, state: WorldState, rows: Tensor) -> WorldState:
        """Keep the last `context` frames of the given rows, encoded as the beginning of a window.

        Rows are encoded in groups of one size, filled up by repetition: the bits of a row do not depend on which other
        rows slide.
        """
        keep, window, cache = self.config.context, self.config.window, state.cache
        assert cache is not None
        tokens, actions, length = state.tokens.clone(), state.actions.clone(), state.length.clone()
        carried = state.carried.clone()
        for some in _groups(rows, min(SLIDES_AT_ONCE, len(state))):
            past = self._past(state, some, keep)
            for field, old in ((tokens, state.tokens), (carried, state.carried), (actions, state.actions)):
                field[some, :keep], field[some, keep:] = old[some, window - keep :], 0
            if past is not None:  # the first frame of a window follows none
                tokens[some, :1], _ = self.networks.flow.shallow_forward(past[:, :1], self.tables)
            fresh = cache.select(some, self.text_length + keep * self.tokens).rollback(self.text_length)
            fresh = self._encode(fresh, tokens[some, :keep], past, carried[some, :keep], actions[some, :keep])
            cache = cache.insert(some, fresh)
        length[rows] = keep
        return replace(state, tokens=tokens, carried=carried, actions=actions, length=length, cache=cache)

    def _past(self, state: WorldState, rows: Tensor, count: int) -> Tensor | None:
        """The last `count` frames of noisy latents (B, count, n, c) of some rows, where the flow has a motion."""
        return None if self.networks.flow.motion is None else state.latents[rows, state.latents.shape[1] - count :]

    def _encode(self, cache: KVCache, u: Tensor, x: Tensor | None, carried: Tensor, actions: Tensor) -> KVCache:
        """Commit whole frames u (B, T, n, c) at the start of a window; x: their noisy latents, for the motion."""
        flow, x = self.networks.flow, u if x is None else x
        _, added = flow.condition(x, None, self.networks.action(actions), self.tables.grid, carried[:, :-1])
        written = cache.unfolded() if self.guidance else cache
        flow.fill(written, flow.deep.shift(u.flatten(1, 2)), added, self.tables, text=self.text_length)
        return cache.commit(u.shape[1] * u.shape[2])

    def _extend(self, cache: KVCache, inputs: Tensor, added: Tensor | None) -> Affine:
        """Write what follows from `inputs` (B, S, c) behind the cache; what the model says of it under the text."""
        cache = cache.unfolded() if self.guidance else cache
        _, affine = self.networks.flow.extend(cache, inputs, added, self.tables, text=self.text_length)
        return affine.rows(slice(len(inputs)))

    # ---- moves ---------------------------------------------------------------------------------------------------

    @running
    def advance(self, state: WorldState, flat: Tensor, noise: Tensor | None) -> tuple[WorldState, Transition]:
        """Imagine one frame behind an owned state; flat (B, 1 + flat), noise (B, n, c) or None for the keyed one."""
        flow = self.networks.flow
        noise = self.prior(state) if noise is None else noise.to(self.device, self.dtype)
        ahead = self._ahead(state, flat)
        guess = noise if flow.motion is not None else torch.where(ahead.present, ahead.previous, noise)
        solved = self._solve(state, ahead, noise, guess)
        x, logdet = ahead.back(solved.tokens[:, None], chunk=int(self.decode.chunk == 1))
        carried = ahead.remember(x)
        return self._commit(state, flat[:, None], solved.tokens[:, None], x, carried, logdet, solved.affine, solved)

    @running
    def imagined_start(self, state: WorldState, guidance: float) -> tuple[WorldState, Transition]:
        """Imagine the first frame of empty rows otherwise than as a step: by diffusion, or guided from no text to their
        text; nats are the unguided flow's."""
        networks, flow = self.networks, self.networks.flow
        null = self.encode_text([""] * len(state)) if guidance else None
        flat = torch.zeros(len(state), self.field_shapes()["actions"][1], device=self.device, dtype=self.dtype)
        if networks.start is not None:
            x = networks.start.sample(
                lambda k: self.prior(state, k, "start"), self.config.noise_level, state.text, self.tables.grid,
                null_text=null, guidance=guidance,
            )
            state, transition = self.told(state, flat[:, None], x[:, None], None)
            return state, replace(transition, sweeps=torch.full_like(transition.sweeps, self.config.start.steps))
        sampled = sample_deep(
            flow, self.prior(state)[:, None], state.text, self.tables, null_text=null, guidance=guidance,
            tolerance=self.config.decode.tolerance,
        )
        x, _, _ = flow.shallow_inverse(sampled.u, self.tables)
        state, transition = self.told(state, flat[:, None], x, None)
        return state, replace(
            transition, sweeps=sampled.sweeps[:, 0], residual=sampled.residual[:, 0], converged=sampled.converged[:, 0]
        )

    @running
    def told(
        self, state: WorldState, flat: Tensor, x: Tensor, frames: Tensor | None
    ) -> tuple[WorldState, Transition]:
        """Observe T frames of noisy latents x (B, T, n, c) behind an owned state with room for them.

        More than one frame only behind empty rows. Of `frames`, where given, the last are returned in place of decoded
        ones.
        """
        flow = self.networks.flow
        assert state.cache is not None
        if x.shape[1] == 1:
            ahead = self._ahead(state, flat[:, 0])
            u, logdet = ahead.forth(x)
            added: Tensor | None = ahead.added
            carried = ahead.remember(x)
            inputs = torch.cat((ahead.before, u[:, 0, :-1]), dim=1)
        else:
            action = self.networks.action(flat)
            carried = flow.remember(x, action, self.tables.grid)
            u, logdet, added = flow.front(x, None, action, self.tables, carried[:, :-1])
            inputs = flow.deep.shift(u.flatten(1, 2))
        affine = self._extend(state.cache, inputs, added)
        return self._commit(state, flat, u, x, carried, logdet, affine, None, frames)

    def prior(self, state: WorldState, ahead: int = 0, purpose: str = "prior") -> Tensor:
        """The keyed noise (B, n, c) of the frame `ahead` of the next one."""
        noise = normals(state.key, state.step + ahead, purpose, (self.tokens, self.config.channels))
        return noise.to(self.device, self.dtype)

    def _ahead(self, state: WorldState, flat: Tensor) -> Ahead:
        return Ahead.of(state, self.networks.action(flat), self.networks.flow, self.tables)

    def _solve(self, state: WorldState, ahead: Ahead, noise: Tensor, guess: Tensor) -> Inverse:
        """Jacobi over the chunks of a frame, each committed before the next."""
        flow, parts, size = self.networks.flow, [], self.decode.chunk or self.tokens
        assert state.cache is not None
        cache, before = state.cache.unfolded() if self.guidance else state.cache, ahead.before
        for first in range(0, self.tokens, size):
            part = slice(first, first + size)
            count = noise[:, part].shape[1]
            solved = solve_guided(
                flow.predictor(cache, ahead.added[:, part], count, self.tables, text=self.text_length), before,
                noise[:, part], guess[:, part], guidance=self.guidance, tolerance=self.decode.tolerance,
                max_sweeps=self.decode.max_sweeps,
            )
            cache, before = cache.commit(count), solved.tokens[:, -1:]
            parts.append(solved)
        return Inverse.join(parts)

    def _commit(
        self, state: WorldState, flat: Tensor, u: Tensor, x: Tensor, carried: Tensor, logdet: Tensor, affine: Affine,
        solved: Inverse | None, frames: Tensor | None = None,
    ) -> tuple[WorldState, Transition]:
        """The one way a state grows: T frames u, x, logdet (B, T, n, c), what is carried behind them, (B, T, K), and
        what the deep block said about them."""
        count, rows = u.shape[1], len(state)
        row = torch.arange(rows)[:, None]
        place = state.length[:, None] + torch.arange(count)
        tokens, held, actions = state.tokens.clone(), state.carried.clone(), state.actions.clone()
        tokens[row, place], held[row, place], actions[row, place] = u, carried, flat
        seen = torch.cat((state.latents, x), dim=1)
        cache = state.cache
        assert cache is not None
        grown = replace(
            state, tokens=tokens, carried=held, actions=actions, latents=seen[:, seen.shape[1] - self.memory :],
            length=state.length + count, step=state.step + count, cache=cache.commit(count * self.tokens),
        )
        nats = affine.nats(u.flatten(1, 2)).unflatten(1, u.shape[1:3])[:, -1] + logdet[:, -1]
        z, _ = affine.to_noise(u.flatten(1, 2))
        reward, probability, end = self._outcome(grown, affine.hidden[:, -self.tokens :], x[:, -1])
        zeros = torch.zeros(rows, device=self.device)
        grown, shown = self.shown(grown, seen, count, frames)
        return grown, Transition(
            frames=shown,
            latents=x[:, -1], noise=z[:, -self.tokens :], reward=reward, end_probability=probability, end=end,
            nats=nats.sum((-1, -2)), token_nats=nats.sum(-1),
            sweeps=solved.sweeps if solved else zeros.long(), residual=solved.residual if solved else zeros,
            converged=solved.converged if solved else zeros == 0,
        )

    def _outcome(self, state: WorldState, hidden: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Expected reward, p(end) and the end that is drawn or thresholded, (B,) each."""
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


def _groups(rows: Tensor, size: int) -> Iterator[Tensor]:
    """The rows (k,) in groups of `size`; the last row is repeated to fill the last group."""
    for some in rows.split(size):
        yield torch.cat((some, some[-1:].expand(size - len(some))))
