"""Shards: some rows of a larger vector env, with a log from which each row can be recomputed.

A row is determined by its base and the actions since: noise is a function of (key, step), so any process repeats the
row bit for bit with the same batch size and number of threads. The base is the start of the row's episode, or a
snapshot without cache taken when its window was full: the next step encodes the window again from the content of the
snapshot.

Shapes: B rows of the shard, N rows of the whole env.
"""

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from torch import Tensor

from starflow_world.envs.episode import EnvState, observations
from starflow_world.envs.options import StartCondition
from starflow_world.envs.vector_env import WorldVectorEnv
from starflow_world.world import World
from starflow_world.world.state import WorldState


@dataclass(frozen=True)
class ShardSettings:
    """Settings of a shard: folder or name of the world, device, threads, and keyword arguments of WorldVectorEnv."""

    world: str
    device: str
    threads: int
    env: dict[str, Any]


@dataclass(frozen=True)
class ShardFacts:
    """Properties of the shards that the whole env needs: spaces, settings, process id."""

    pid: int
    observation_space: Space
    action_space: Space
    max_episode_steps: float
    autoreset_mode: AutoresetMode


@dataclass(frozen=True)
class ReplayBase:
    """Base from which a row is recomputed: a state or a start condition, and the row's generator at that time."""

    generator: dict[str, Any]
    condition: StartCondition | None = None
    state: EnvState | None = None


@dataclass(frozen=True)
class ShardAnswer:
    """Result of a call, the new bases that it created, and the rows (B,) bool that wait for their reset after it."""

    result: Any
    bases: dict[int, ReplayBase]
    ended: np.ndarray


class ReplayLog:
    """The driver's log to restore N rows: the `ReplayBase` of each, its actions since, and whether it has ended."""

    def __init__(self, rows: int) -> None:
        self._bases: list[ReplayBase | None] = [None] * rows
        self._actions: list[list[Any]] = [[] for _ in range(rows)]
        self.ended = np.zeros(rows, bool)

    @property
    def begun(self) -> bool:
        """Return whether all rows have an episode."""
        return None not in self._bases

    def note(self, rows: np.ndarray, answer: ShardAnswer, actions: Sequence[Any] | None = None) -> None:
        """Record the answer of a shard for rows (B,); `actions`: those of the step, None for other calls."""
        for place, row in enumerate(rows.tolist()):
            if place in answer.bases:
                self._bases[row], self._actions[row] = answer.bases[place], []
            elif actions is not None:
                self._actions[row].append(copy.deepcopy(actions[place]))  # the caller may reuse its array
        self.ended[rows] = answer.ended

    def of(self, rows: np.ndarray) -> tuple[list[ReplayBase | None], list[list[Any]], np.ndarray]:
        """Return the arguments of `Shard.restore` for these rows (B,)."""
        places = rows.tolist()
        return [self._bases[row] for row in places], [self._actions[row] for row in places], self.ended[rows]


class Shard(WorldVectorEnv):
    """A WorldVectorEnv of B rows in the process of an actor, which returns new bases with each answer."""

    def __init__(self, settings: ShardSettings, num_envs: int) -> None:
        torch.set_num_threads(settings.threads)
        super().__init__(World.load(settings.world, device=settings.device), num_envs, **settings.env)
        self._bases: dict[int, ReplayBase] = {}

    def facts(self) -> ShardFacts:
        """Return spaces and settings, and the process id of the shard."""
        return ShardFacts(os.getpid(), self.single_observation_space, self.single_action_space,
                          self.max_episode_steps, self.autoreset_mode)

    # ---- calls that change rows ----------------------------------------------------------------------------------

    def begin(self, seeds: list[int | None], options: dict[str, Any]) -> ShardAnswer:
        """Call reset(); the answer's result is observations and infos."""
        before = [self._generator(row) if seed is None else dict(seeding.np_random(seed)[0].bit_generator.state)
                  for row, seed in enumerate(seeds)]
        restored = options.get("state") is not None
        if restored:
            options = {**options, "state": moved_to(self.world, options["state"])}
        result = self.reset(seed=seeds, options=options)
        conditions = self._conditions({key: options[key] for key in ("text", "frames", "actions") if key in options})
        mask = options.get("reset_mask")
        for row in range(self.num_envs) if mask is None else np.flatnonzero(mask).tolist():
            self._bases[row] = self._base(row) if restored else ReplayBase(before[row], conditions[row])
        return self._answer(result)

    def advance(self, actions: Sequence[Any]) -> ShardAnswer:
        """Call step() with one action per row, None for rows that wait for their reset; the result is step()'s."""
        result = self._advance(list(actions))
        now = self._begun("step")
        for row in np.flatnonzero((now.world.length >= self.world.config.window).numpy() & ~now.ended).tolist():
            if row not in self._bases:
                self._bases[row] = self._base(row, compact=True)
        return self._answer(result)

    def put(self, state: WorldState | EnvState) -> ShardAnswer:
        """Call set_state(); the answer's result is the frames."""
        self.set_state(moved_to(self.world, state))
        for row in range(self.num_envs):
            self._bases[row] = self._base(row)
        return self._answer(self._begun("put").frames.copy())

    def get(self) -> EnvState:
        """Return a snapshot on the CPU."""
        return on_cpu(self.snapshot())

    def _answer(self, result: Any) -> ShardAnswer:
        bases, self._bases = self._bases, {}
        return ShardAnswer(result, bases, self._begun("answer").ended.copy())

    def _restart(self, after: EnvState, rows: np.ndarray, infos: dict[str, Any]) -> EnvState:
        for row in rows.tolist():
            self._bases[row] = ReplayBase(self._generator(row), StartCondition(self.text))
        return super()._restart(after, rows, infos)

    def _generator(self, row: int) -> dict[str, Any]:
        return dict(self._generators[row].bit_generator.state)

    def _base(self, row: int, *, compact: bool = False) -> ReplayBase:
        now = self._begun("snapshot")
        world = replace(now.world, cache=None) if compact else now.world
        return ReplayBase(self._generator(row), state=on_cpu(replace(now, world=world)[np.array([row])]))

    # ---- computing rows again ------------------------------------------------------------------------------------

    @torch.inference_mode()
    def restore(self, bases: Sequence[ReplayBase], actions: Sequence[Sequence[Any]], ended: np.ndarray) -> None:
        """Restore every row from its base by repeating the actions since; ended (B,) bool.

        Rows with fewer actions join the batch later, so that all finish together; what their slots compute until then
        is discarded.
        """
        rows = [self._from_base(row, base) for row, base in enumerate(bases)]
        now, longest = EnvState.stack(rows), max(len(since) for since in actions)
        for step in range(longest + 1):
            for row, since in enumerate(actions):
                if step and len(since) == longest - step:
                    now = now.insert(np.array([row]), rows[row])
            if step < longest:
                places = [step - (longest - len(since)) for since in actions]
                chosen = [since[place] if place >= 0 else None for since, place in zip(actions, places, strict=True)]
                world, transition = self.world.step(now.world, chosen, reuse=True)
                now = EnvState(world, observations(transition), now.begun.copy(), now.ended)
        self._now, self._bases = replace(now, ended=ended.copy()), {}

    def _from_base(self, row: int, base: ReplayBase) -> EnvState:
        """Return the state (1, ...) of a row at its base, with a cache; restore the row's generator."""
        self._generators[row].bit_generator.state = base.generator
        if base.state is None:
            assert base.condition is not None
            return self._start_rows([base.condition], [self._generators[row]])[0]
        state = moved_to(self.world, base.state)
        return replace(state, world=self.world.dynamics.own(state.world, reuse=False))


class ShardHost:
    """Actor class of a shard. A call opens the shard, so that errors are returned like those of any other call."""

    def open(self, settings: ShardSettings, num_envs: int) -> ShardFacts:
        """Load the world and return the facts of the shard."""
        self._shard = Shard(settings, num_envs)
        return self._shard.facts()

    def call(self, name: str, *args: Any) -> Any:
        """Call a method of the shard."""
        return getattr(self._shard, name)(*args)


# ---- states on their way between processes ---------------------------------------------------------------------------


def on_cpu(state: Any) -> Any:
    """Return a state with all its tensors on the CPU."""
    return _map_tensors(state, lambda tensor, _: tensor.cpu(), None)


def moved_to(world: World, state: Any) -> Any:
    """Return a state with its tensors on the world's devices; return anything else unchanged, so that the world raises
    the error."""
    inner = state.world if isinstance(state, EnvState) else state
    if not isinstance(inner, WorldState) or inner.world_id != world.world_id:
        return state
    empty = world.empty(inner.texts, [0] * len(inner))
    moved = _map_tensors(inner, lambda tensor, like: tensor.to(like.device), empty)
    return replace(state, world=moved) if isinstance(state, EnvState) else moved


def _map_tensors(value: Any, move: Callable[[Tensor, Any], Tensor], like: Any) -> Any:
    """Return the same nested dataclass with each tensor replaced by `move(tensor, corresponding tensor of like)`."""
    if isinstance(value, Tensor):
        return move(value, like)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    pairs = {field.name: (getattr(value, field.name), getattr(like, field.name, None)) for field in fields(value)}
    return replace(value, **{name: _map_tensors(own, move, other) for name, (own, other) in pairs.items()})


def own_threads(actors: int) -> int:
    """Return the number of threads of each of `actors` actors on the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return max(1, (len(affinity(0)) if affinity else os.cpu_count() or 1) // actors)
