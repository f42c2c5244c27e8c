"""A part of the rows of a larger vector env, which says from what each row can be computed again.

A row is its base and the actions since: noise is a function of (key, step), so any process repeats it bit for bit at
the same width and number of threads. The base is the beginning of the row's episode, or a snapshot without cache taken
when its window was full: the step that follows encodes the window anew from just what the snapshot holds.

Shapes: B rows of the shard, N rows of the whole env.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from torch import Tensor

from starflow_world.envs.episode import EnvState, Given, RewardFunction, begin_rows, pictures
from starflow_world.envs.trust import Trust
from starflow_world.envs.vector_env import WorldVectorEnv
from starflow_world.errors import ConfigError, StateError
from starflow_world.world import World
from starflow_world.world.state import WorldState


@dataclass(frozen=True)
class ShardSettings:
    """What a shard is made of: the world's folder or name, where it runs, and the settings of WorldVectorEnv."""

    world: str
    device: str
    threads: int
    autoreset_mode: AutoresetMode | str
    text: str | None
    render_mode: str | None
    reward_fn: RewardFunction | None
    max_episode_steps: int | None
    frames_between: bool
    trust: Trust | None


@dataclass(frozen=True)
class ShardFacts:
    """What the whole env must know of its shards."""

    pid: int
    observation_space: Space
    action_space: Space
    max_episode_steps: int
    autoreset_mode: AutoresetMode


@dataclass(frozen=True)
class Base:
    """From where a row is computed again: a state, or what its episode was begun from; and its generator then."""

    generator: dict[str, Any]
    begun_from: Given | None = None
    state: EnvState | None = None


@dataclass(frozen=True)
class Answer:
    """What a call returned, the new bases that it gave rise to, and which rows (B,) wait for their reset after it."""

    result: Any
    bases: dict[int, Base]
    ended: np.ndarray


class Course:
    """What each of N rows can be computed again from, as the driver keeps it: bases, actions since, and which ended."""

    def __init__(self, rows: int) -> None:
        self._bases: list[Base | None] = [None] * rows
        self._actions: list[list[Any]] = [[] for _ in range(rows)]
        self.ended = np.zeros(rows, bool)

    @property
    def begun(self) -> bool:
        """Whether all rows have an episode."""
        return None not in self._bases

    def note(self, rows: np.ndarray, answer: Answer, actions: Sequence[Any] | None = None) -> None:
        """Remember what a shard of these rows (B,) answered, to `actions` if they were stepped."""
        for place, row in enumerate(rows.tolist()):
            if place in answer.bases:
                self._bases[row], self._actions[row] = answer.bases[place], []
            elif actions is not None:
                self._actions[row].append(actions[place])
        self.ended[rows] = answer.ended

    def of(self, rows: np.ndarray) -> tuple[list[Base | None], list[list[Any]], np.ndarray]:
        """The arguments of `Shard.restore` for these rows (B,)."""
        places = rows.tolist()
        return [self._bases[row] for row in places], [self._actions[row] for row in places], self.ended[rows]


class Shard(WorldVectorEnv):
    """B rows in the process of an actor, which reports their bases as they come."""

    def __init__(self, settings: ShardSettings, num_envs: int) -> None:
        torch.set_num_threads(settings.threads)
        super().__init__(
            World.load(settings.world, device=settings.device), num_envs, autoreset_mode=settings.autoreset_mode,
            text=settings.text, render_mode=settings.render_mode, reward_fn=settings.reward_fn,
            max_episode_steps=settings.max_episode_steps, frames_between=settings.frames_between,
            trust=settings.trust,
        )
        self._bases: dict[int, Base] = {}

    def facts(self) -> ShardFacts:
        """Spaces and settings, and the process that holds the shard."""
        return ShardFacts(os.getpid(), self.single_observation_space, self.single_action_space,
                          self.max_episode_steps, self.autoreset_mode)

    # ---- calls that change rows ----------------------------------------------------------------------------------

    def begin(self, seeds: list[int | None], options: dict[str, Any]) -> Answer:
        """reset(); result: observations and infos."""
        before = [self._generator(row) if seed is None else dict(seeding.np_random(seed)[0].bit_generator.state)
                  for row, seed in enumerate(seeds)]
        restored = options.get("state") is not None
        if restored:
            options = {**options, "state": fitted(options["state"], self.world)}
        result = self.reset(seed=seeds, options=options)
        given = self._read_given({key: options[key] for key in ("text", "frames", "actions") if key in options})
        mask = options.get("reset_mask")
        for row in range(self.num_envs) if mask is None else np.flatnonzero(mask).tolist():
            self._bases[row] = self._snapshot(row) if restored else Base(before[row], given[row])
        return self._answer(result)

    def advance(self, actions: Sequence[Any]) -> Answer:
        """step() with one action per row, None for rows that wait for their reset; result: what it returns."""
        result = self._advance(list(actions))
        now = self._begun("step")
        for row in np.flatnonzero((now.world.length >= self.world.config.window).numpy() & ~now.ended).tolist():
            if row not in self._bases:
                self._bases[row] = self._snapshot(row, compact=True)
        return self._answer(result)

    def put(self, state: WorldState | EnvState) -> Answer:
        """set_state(); result: the frames."""
        self.set_state(fitted(state, self.world))
        for row in range(self.num_envs):
            self._bases[row] = self._snapshot(row)
        return self._answer(self._begun("put").frames.copy())

    def get(self) -> EnvState:
        """snapshot(), on the CPU."""
        return on_cpu(self.snapshot())

    def _answer(self, result: Any) -> Answer:
        bases, self._bases = self._bases, {}
        return Answer(result, bases, self._begun("answer").ended.copy())

    def _begin_anew(self, after: EnvState, rows: np.ndarray, infos: dict[str, Any]) -> EnvState:
        for row in rows.tolist():
            self._bases[row] = Base(self._generator(row), Given(self.text))
        return super()._begin_anew(after, rows, infos)

    def _generator(self, row: int) -> dict[str, Any]:
        return dict(self._generators[row].bit_generator.state)

    def _snapshot(self, row: int, *, compact: bool = False) -> Base:
        now = self._begun("snapshot")
        world = replace(now.world, cache=None) if compact else now.world
        return Base(self._generator(row), state=on_cpu(replace(now, world=world)[np.array([row])]))

    # ---- computing rows again ------------------------------------------------------------------------------------

    @torch.inference_mode()
    def restore(self, bases: Sequence[Base], actions: Sequence[Sequence[Any]], ended: np.ndarray) -> None:
        """Bring every row where it was: from its base, through the actions since; ended (B,) bool.

        All rows arrive with the last step, so a row with few actions is put in place late; what is computed in its
        place until then is of no consequence.
        """
        rows = [self._from_base(row, base) for row, base in enumerate(bases)]
        now, longest = stacked(rows), max(len(since) for since in actions)
        for step in range(longest + 1):
            for row, since in enumerate(actions):
                if step and len(since) == longest - step:
                    now = now.insert(np.array([row]), rows[row])
            if step < longest:
                places = [step - (longest - len(since)) for since in actions]
                chosen = [since[place] if place >= 0 else None for since, place in zip(actions, places, strict=True)]
                world, transition = self.world.step(now.world, chosen, reuse=True)
                now = EnvState(world, pictures(transition), now.begun.copy(), now.ended)
        self._now, self._bases = replace(now, ended=ended.copy()), {}

    def _from_base(self, row: int, base: Base) -> EnvState:
        """A row at its base, (1, ...), with a cache; its generator is set to where it was."""
        self._generators[row].bit_generator.state = base.generator
        if base.state is None:
            assert base.begun_from is not None
            return begin_rows(self.world, [base.begun_from], [self._generators[row]], between=False)[0]
        state = fitted(base.state, self.world)
        return replace(state, world=self.world.dynamics.own(state.world, reuse=False))


class ShardHost:
    """What an actor is: the shard is opened by a call, so that its errors come back as those of any other call."""

    def open(self, settings: ShardSettings, num_envs: int) -> ShardFacts:
        """Load the world."""
        self._shard = Shard(settings, num_envs)
        return self._shard.facts()

    def call(self, name: str, *args: Any) -> Any:
        """Call a method of the shard."""
        return getattr(self._shard, name)(*args)


# ---- states on their way between processes ---------------------------------------------------------------------------


def on_cpu(value: Any) -> Any:
    """A state with all its tensors on the CPU."""
    return _each_tensor(value, lambda tensor, _: tensor.cpu(), None)


def fitted(state: Any, world: World) -> Any:
    """A state with its tensors where the world has its own; what is no state of this world is left for it to refuse."""
    inner = state.world if isinstance(state, EnvState) else state
    if not isinstance(inner, WorldState) or inner.world_id != world.world_id:
        return state
    moved = _each_tensor(inner, lambda tensor, like: tensor.to(like.device), world.empty(inner.texts, [0] * len(inner)))
    return replace(state, world=moved) if isinstance(state, EnvState) else moved


def _each_tensor(value: Any, move: Any, like: Any) -> Any:
    """The same nested dataclass, `move(tensor, the one in its place in like)` in place of each tensor."""
    if isinstance(value, Tensor):
        return move(value, like)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    pairs = {field.name: (getattr(value, field.name), getattr(like, field.name, None)) for field in fields(value)}
    return replace(value, **{name: _each_tensor(mine, move, its) for name, (mine, its) in pairs.items()})


def stacked(parts: Sequence[EnvState]) -> EnvState:
    """The rows of several states as one."""
    arrays = [np.concatenate([getattr(part, name) for part in parts]) for name in ("frames", "begun", "ended")]
    return EnvState(WorldState.stack([part.world for part in parts]), *arrays)


def joined(infos: Sequence[dict[str, Any]], widths: Sequence[int]) -> dict[str, Any]:
    """Infos of shards of these widths as one, in Gymnasium's form; a key that a shard lacks is blank in its rows."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for info in infos for key in info):
        parts = [info.get(key) for info in infos]
        example = next(part for part in parts if part is not None)
        if isinstance(example, dict):
            found[key] = joined([part or {} for part in parts], widths)
        else:
            found[key] = np.concatenate([
                np.full((width, *example.shape[1:]), None if example.dtype == object else 0, example.dtype)
                if part is None else part for part, width in zip(parts, widths, strict=True)
            ])
    return found


def part_of(options: dict[str, Any], rows: np.ndarray, num_envs: int) -> dict[str, Any]:
    """The reset options of some of `num_envs` rows."""
    part: dict[str, Any] = {}
    for key, value in options.items():
        inner = value.world if isinstance(value, EnvState) else value
        if key == "text" and isinstance(value, str):
            part[key] = value
        elif not hasattr(inner, "__len__") or len(inner) != num_envs:
            error = StateError if key == "state" else ConfigError
            raise error(f"options: {key}: expected one for each of {num_envs} rows, found {value!r:.80}")
        else:
            part[key] = value[rows] if key == "state" else [value[row] for row in rows.tolist()]
    return part


def own_threads(actors: int) -> int:
    """Threads for each of so many actors on the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has none
    return max(1, cores // actors)
