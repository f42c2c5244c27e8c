"""Worlds that are broken on purpose, each in one way: what the examiner must catch.

A sabotage is a kind of Dynamics, Flow, ActionEncoder or WorldState in place of the real one, so that it is also in the
copies that the examiner makes. Those that could be hidden from a comparison of two ways are done in both of them.
"""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from starflow_world.flow import Density, Flow, Inverse, KVCache, ShallowBlocks, Tables, guide
from starflow_world.model.actions import ActionEncoder
from starflow_world.model.networks import Networks
from starflow_world.world import Starts, World
from starflow_world.world.dynamics import Dynamics, NextFrame
from starflow_world.world.state import Transition, WorldState
from tests.flow.sampling import sample_deep
from tests.worlds import PUBLISHED, tiny_world

# ---- the flow --------------------------------------------------------------------------------------------------------


class WrongSign(Flow):
    """Adds log|det| of the shallow blocks where it should be taken away."""

    class blocks(ShallowBlocks):
        def forward(self, x: Tensor, tables: Tables) -> tuple[Tensor, Tensor]:
            u, logdet = super().forward(x, tables)
            return u, -logdet

        def inverse(self, u: Tensor, tables: Tables, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
            x, logdet, sweeps = super().inverse(u, tables, **options)
            return x, -logdet, sweeps


class MissingBlock(Flow):
    """Leaves the first shallow block out of log|det|."""

    class blocks(ShallowBlocks):
        def forward(self, x: Tensor, tables: Tables) -> tuple[Tensor, Tensor]:
            u, logdet = super().forward(x, tables)
            return u, logdet - self.first(x, tables)

        def inverse(self, u: Tensor, tables: Tables, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
            x, logdet, sweeps = super().inverse(u, tables, **options)
            return x, logdet - self.first(x, tables), sweeps

        def first(self, x: Tensor, tables: Tables) -> Tensor:
            block = next(iter(self.blocks()))
            inputs = block.in_order(x.flatten(0, 1))
            _, logdet = block.predict(block.shift(inputs), tables.frame).to_noise(inputs)
            return block.in_order(logdet).reshape(x.shape)


class NextFrameLeaks(Flow):
    """Scores a frame knowing a little of the next one."""

    def deep_forward(self, u: Tensor, text: Tensor | None, added: Tensor | None, tables: Tables) -> Density:
        later = torch.cat((u[:, 1:], u[:, -1:]), dim=1).mean((2, 3), keepdim=True)
        return super().deep_forward(u, text, 1e-3 * later + (0 if added is None else added), tables)


class ParallelDiffers(Flow):
    def nats(self, *given: Any, **options: Any) -> tuple[Tensor, Tensor]:
        nats, hidden = super().nats(*given, **options)
        return 1.001 * nats, hidden


class TextInFirstFrameOnly(Flow):
    def nats(self, x: Tensor, text: Tensor, action: Tensor, tables: Tables) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        first = super().nats(x[:, :1], text, action[:, :1], tables)
        later = super().nats(x, 0 * text, action, tables)
        return torch.cat((first[0], later[0][:, 1:]), dim=1), later[1]


# ---- the moves -------------------------------------------------------------------------------------------------------


FORGOTTEN = "(a text of zeros)"


class TextForgotten(Dynamics):
    """As TextInFirstFrameOnly, frame by frame."""

    def rebuilt(self, state: WorldState) -> WorldState:
        texts = [FORGOTTEN if length else text for text, length in zip(state.texts, state.length.tolist(), strict=True)]
        return replace(super().rebuilt(replace(state, texts=tuple(texts))), texts=state.texts)

    def _encode(self, cache: KVCache, u: Tensor, text: Tensor | None, actions: Tensor) -> KVCache:
        return super()._encode(cache, u, None if text is None else 0 * text, actions)

    def next_frame(self, state: WorldState, flat: Tensor) -> NextFrame:
        first = (state.length == 0)[:, None, None]
        return super().next_frame(replace(state, text=None if state.text is None else state.text * first), flat)

    def _prompt(self, text: str) -> tuple[Tensor, KVCache]:
        if text != FORGOTTEN:
            return super()._prompt(text)
        states = 0 * super()._prompt("")[0]
        cache = self.networks.flow.start_cache(states, 1, self.tables)
        return states, cache.select(torch.tensor([0]), self.text_length)

    def observe(
        self, state: WorldState, flat: Tensor, x: Tensor, frames: Tensor | None
    ) -> tuple[WorldState, Transition]:
        for t in range(x.shape[1]):
            shown = None if frames is None else frames[:, t : t + 1]
            state, seen = super().observe(state, flat[:, t : t + 1], x[:, t : t + 1], shown)
        return state, seen

    def _commit(self, *given: Any, **options: Any) -> tuple[WorldState, Transition]:
        state, seen = super()._commit(*given, **options)
        return self.rebuilt(state), seen


class LateActions(ActionEncoder):
    """The action of the frame before, in whole clips."""

    def forward(self, actions: Tensor) -> Tensor:
        if actions.ndim == 3:
            actions = torch.cat((torch.zeros_like(actions[:, :1]), actions[:, :-1]), dim=1)
        return super().forward(actions)


class LateSteps(Dynamics):
    """The action of the frame before, frame by frame."""

    def next_frame(self, state: WorldState, flat: Tensor) -> NextFrame:
        last = state.actions[torch.arange(len(state)), (state.length - 1).clamp_min(0)]
        return super().next_frame(state, last * (state.length > 0)[:, None])


class LaggingCache(Dynamics):
    """Emits the next iterate: the cache holds the one before."""

    def _solve(self, cache: KVCache, coming: NextFrame, noise: Tensor, guidance: float) -> Inverse:
        solved = super()._solve(cache, coming, noise, guidance)
        return replace(solved, tokens=solved.density.draw(noise)[0])


class RowsLeak(Dynamics):
    """All rows stop when their mean residual is small."""

    def _solve(self, cache: KVCache, coming: NextFrame, noise: Tensor, guidance: float) -> Inverse:
        predict = self.networks.flow.predictor(cache, coming.added, self.tokens, self.tables, text=self.text_length)
        sweeps, tokens = torch.zeros(len(noise), dtype=torch.long), coming.last
        while True:
            density, sweeps = predict(torch.cat((coming.before, tokens[:, :-1]), dim=1)), sweeps + 1
            update, scale = density.draw(noise)
            tokens = torch.cat((tokens[:, :-1], update[:, -1:]), dim=1)
            residual = ((update - tokens) / scale).square().mean((1, 2)).sqrt()
            if residual.mean() <= self.decode.tolerance or sweeps[0] > self.tokens:
                return Inverse(tokens, density, sweeps, residual, sweeps > 0, scale)
            tokens = update


class GlobalNoise(Dynamics):
    def prior(self, state: WorldState, ahead: int = 0, purpose: str = "prior") -> Tensor:
        return torch.randn(len(state), *self.noise_shape, dtype=self.dtype)


class NoiseByPosition(Dynamics):
    def prior(self, state: WorldState, ahead: int = 0, purpose: str = "prior") -> Tensor:
        return super().prior(replace(state, key=state.key + torch.arange(len(state))), ahead, purpose)


class CacheNotCleared(Dynamics):
    """A new episode begins in the cache of the first one of its width, whose text is still there."""

    def __init__(self, networks: Networks, world_id: str) -> None:
        super().__init__(networks, world_id)
        self.used: dict[int, KVCache] = {}

    def empty(self, texts: Any, keys: Any) -> WorldState:
        state = super().empty(texts, keys)
        assert state.cache is not None
        return replace(state, cache=self.used.setdefault(len(texts), state.cache.clone()).clone())


class Ghosts(Dynamics):
    """Behind a slide the keys of the oldest frames stay where those of the kept ones should be."""

    def slide(self, state: WorldState, rows: Tensor) -> WorldState:
        assert state.cache is not None
        before = state.cache.clone()
        slid = super().slide(state, rows)
        assert slid.cache is not None
        return replace(slid, cache=replace(before, length=slid.cache.length))


class CleanHistory(Dynamics):
    """Continues from the clean frame, and says it was the noisy one."""

    def imagine(self, state: WorldState, flat: Tensor, noise: Tensor | None) -> tuple[WorldState, Transition]:
        grown, said = super().imagine(state, flat, noise)
        return self.observe(state, flat[:, None], grown.latents[:, -1:], None)[0], said


class StaleFeatures(Dynamics):
    """Tells the deep block of the frame before the last, frame by frame."""

    def next_frame(self, state: WorldState, flat: Tensor) -> NextFrame:
        coming = super().next_frame(state, flat)
        older = super().next_frame(replace(state, length=(state.length - 1).clamp_min(0)), flat)
        return replace(coming, added=older.added)


class OtherComponent(Dynamics):
    """Finds noise that chooses the middle component, whichever a site came from."""

    def _noise_of(self, *given: Any) -> Tensor:
        noise, c = super()._noise_of(*given), self.config.channels
        return torch.cat((noise[..., :c], 0 * noise[..., c:]), dim=-1)


class NaNLater(Dynamics):
    late: Tensor | float = 0.0

    def _commit(self, state: WorldState, flat: Tensor, u: Tensor, *others: Any) -> tuple[WorldState, Transition]:
        return super()._commit(state, flat, u + self.late, *others)

    def imagine(self, state: WorldState, flat: Tensor, noise: Tensor | None) -> tuple[WorldState, Transition]:
        self.late = torch.where(state.step > 100, torch.nan, 0.0).to(self.dtype)[:, None, None, None]
        moved = super().imagine(state, flat, noise)
        self.late = 0.0
        return moved


class AlwaysConverged(Dynamics):
    def _solve(self, *given: Any) -> Inverse:
        solved = super()._solve(*given)
        return replace(solved, converged=torch.ones_like(solved.converged))


class StopsEarly(Dynamics):
    """Emits what two sweeps give."""

    def _solve(self, *given: Any) -> Inverse:
        asked, self.decode = self.decode, replace(self.decode, max_sweeps=2)
        solved = super()._solve(*given)
        self.decode = asked
        return replace(solved, converged=torch.ones_like(solved.converged))


class WidthCounts(Dynamics):
    def _commit(self, *given: Any, **options: Any) -> tuple[WorldState, Transition]:
        state, seen = super()._commit(*given, **options)
        return state, replace(seen, nats=seen.nats + 0.1 * (len(state) % 2))


class GlobalTouched(Dynamics):
    def observe(self, *given: Any) -> tuple[WorldState, Transition]:
        torch.rand(1)
        return super().observe(*given)


class GuidedNats(Dynamics):
    """Nats of a guided first frame under the guided model."""

    def imagine_start(self, state: WorldState, guidance: float) -> tuple[WorldState, Transition]:
        flow, null = self.networks.flow, self.encode_text([""] * len(state))
        sampled = sample_deep(
            flow, self.prior(state)[:, None], state.text, self.tables, null_text=null, guidance=guidance
        )
        x, logdet, _ = flow.shallow.inverse(sampled.u, self.tables)
        models = [flow.deep_forward(sampled.u, text, None, self.tables) for text in (state.text, null)]
        nats = guide(models[0], models[1], guidance).nats(sampled.u[:, 0]) + logdet[:, 0].sum(-1)
        grown, seen = self.observe(state, torch.zeros_like(state.actions[:, :1]), x, None)
        return grown, replace(seen, nats=nats.sum(1), token_nats=nats)


# ---- states ----------------------------------------------------------------------------------------------------------


class OtherStates(Dynamics):
    kind = WorldState

    def empty(self, texts: Any, keys: Any) -> WorldState:
        state = super().empty(texts, keys)
        return self.kind(**{field.name: getattr(state, field.name) for field in fields(state)})


class SharedClones(OtherStates):
    class kind(WorldState):
        def clone(self) -> WorldState:
            return replace(self)


class KeylessSnapshots(OtherStates):
    class kind(WorldState):
        def save(self, path: Path | str, *, exact: bool = True) -> None:
            WorldState.save(replace(self, key=0 * self.key), path, exact=exact)


class StubbornRows(OtherStates):
    class kind(WorldState):
        def replace_rows(self, rows: Tensor, other: WorldState) -> WorldState:
            return self.clone()


class KeptKeys(OtherStates):
    class kind(WorldState):
        def with_keys(self, keys: Any) -> WorldState:
            return self.clone()


# ---- the worlds ------------------------------------------------------------------------------------------------------

SABOTAGES: dict[str, tuple[str, type[Dynamics], type[Flow], type[ActionEncoder]]] = {
    "log-det sign": ("N6", Dynamics, WrongSign, ActionEncoder),
    "log-det missing one block": ("N6", Dynamics, MissingBlock, ActionEncoder),
    "off-by-one action": ("N23", LateSteps, Flow, LateActions),
    "off-by-one action in steps only": ("N17", LateSteps, Flow, ActionEncoder),
    "cache lagging one sweep": ("N18", LaggingCache, Flow, ActionEncoder),
    "leak from the next frame": ("N7", Dynamics, NextFrameLeaks, ActionEncoder),
    "leak between rows": ("N15", RowsLeak, Flow, ActionEncoder),
    "global RNG used": ("S6", GlobalNoise, Flow, ActionEncoder),
    "noise depends on row position": ("S6", NoiseByPosition, Flow, ActionEncoder),
    "clone shares storage": ("S2", SharedClones, Flow, ActionEncoder),
    "cache not cleared on reset": ("N17", CacheNotCleared, Flow, ActionEncoder),
    "slide keeps ghosts": ("N20", Ghosts, Flow, ActionEncoder),
    "text ignored after the first frame": ("N23", TextForgotten, TextInFirstFrameOnly, ActionEncoder),
    "clean frame fed back into history": ("N21", CleanHistory, Flow, ActionEncoder),
    "features of an older frame": ("N17", StaleFeatures, Flow, ActionEncoder),
    "noise of another component": ("N2", OtherComponent, Flow, ActionEncoder),
    "NaN after 100 steps": ("S1", NaNLater, Flow, ActionEncoder),
    "converged always true": ("N14", AlwaysConverged, Flow, ActionEncoder),
    "nats of the guided model": ("N24", GuidedNats, Flow, ActionEncoder),
    "global RNG touched": ("E15", GlobalTouched, Flow, ActionEncoder),
    "decoding that stops early": ("N2", StopsEarly, Flow, ActionEncoder),
    "nats depend on width": ("N16", WidthCounts, Flow, ActionEncoder),
    "replaced rows stay": ("N19", StubbornRows, Flow, ActionEncoder),
    "parallel nats differ": ("N22", Dynamics, ParallelDiffers, ActionEncoder),
    "snapshot without keys": ("S3", KeylessSnapshots, Flow, ActionEncoder),
    "branches keep their key": ("S4", KeptKeys, Flow, ActionEncoder),
}
"""Each kind with the check that must name it before any other, and what is not as it should be."""

AS_PUBLISHED = {"log-det sign", "log-det missing one block", "nats of the guided model"}
"""Kinds that need shallow blocks or one normal per channel."""

SIDES = {"leak between rows": 12}
"""Sides of the frames in pixels, 4 where none is given: a frame of few tokens is solved before a row can leak."""


def sabotaged_world(kind: str) -> World:
    """A tiny world with this fault, and no other."""
    _, moves, flow, action = SABOTAGES[kind]

    class Sabotaged(World):
        def __init__(self, networks: Networks, world_id: str | None = None, starts: Starts | None = None) -> None:
            super().__init__(networks, world_id, starts)
            self.dynamics = moves(networks, self.world_id)
            self.empty, self.encode_text = self.dynamics.empty, self.dynamics.encode_text

    side = SIDES.get(kind, 4)
    changes = PUBLISHED if kind in AS_PUBLISHED else {}
    networks = tiny_world(height=side, width=side, window=4, context=1, **changes).networks
    networks.flow.__class__, networks.action.__class__ = flow, action
    networks.flow.shallow.__class__ = getattr(flow, "blocks", ShallowBlocks)
    return Sabotaged(networks)
