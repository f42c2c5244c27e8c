"""Episodes of an env: their state as a value, and the start and step of rows. Shared by the single and the vector env.

An env is an adapter over `World.step`. Its whole episode state is one `EnvState`: it can be copied at any time and
restored later, and the episodes then continue bit-identically.

Shapes: B rows, F pixel frames per latent frame.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from starflow_world.envs.options import StartCondition, check_render_mode, check_text
from starflow_world.envs.trust import Trust
from starflow_world.errors import ConfigError, DataError, StateError
from starflow_world.world import World
from starflow_world.world.state import TENSORS, Transition, WorldState

RewardFunction = Callable[[np.ndarray, Any, np.ndarray, dict[str, Any]], float | tuple[float, bool]]
"""Reward function: (observation, action, next observation, info) -> reward, or (reward, terminated)."""

Facts = dict[str, np.ndarray]
"""Content of `info` for B rows: an array (B, ...) per key."""

GREY_LEVELS = math.log2(127.5)
"""Log2 of the grey levels per unit of a latent in [-1, 1]; converts densities to bits per grey level."""


@dataclass(frozen=True)
class EnvState:
    """State of B running episodes, sufficient to continue exactly.

    world: their world state; frames (B, H, W, 3) u8: the last observations; begun (B,) int: world step at which the
    episode started; ended (B,) bool: terminated or truncated, to be reset before the next step.
    """

    world: WorldState
    frames: np.ndarray
    begun: np.ndarray
    ended: np.ndarray

    @property
    def steps(self) -> np.ndarray:
        """Return the number of steps since the episode started, (B,) int."""
        return self.world.step.numpy() - self.begun

    def __getitem__(self, rows: np.ndarray) -> "EnvState":
        """Return a copy of the given rows (k,) int."""
        return EnvState(self.world[torch.from_numpy(rows)], self.frames[rows], self.begun[rows], self.ended[rows])

    @staticmethod
    def stack(parts: "Sequence[EnvState]") -> "EnvState":
        """Return the rows of several states as one state."""
        arrays = [np.concatenate([getattr(part, name) for part in parts]) for name in ("frames", "begun", "ended")]
        return EnvState(WorldState.stack([part.world for part in parts]), *arrays)

    def clone(self) -> "EnvState":
        """Return a copy that shares no storage."""
        return EnvState(self.world.clone(), self.frames.copy(), self.begun.copy(), self.ended.copy())

    @torch.inference_mode()
    def insert(self, rows: np.ndarray, other: "EnvState") -> "EnvState":
        """Return the state with `rows` (k,) int replaced by the rows of `other`; overwrites the storage of this state.

        Like `WorldState.replace_rows`, but without copying the other rows, whose cache may take hundreds of megabytes.
        """
        index, old, new = torch.from_numpy(rows), self.world, other.world
        texts, streams = list(old.texts), list(old.streams)
        for place, row in enumerate(rows.tolist()):
            texts[row] = new.texts[place]
            streams[row] = new.streams[place]
        for name in (*TENSORS, "text"):
            if getattr(old, name) is not None:
                getattr(old, name)[index] = getattr(new, name)
        for name in ("frames", "begun", "ended"):
            getattr(self, name)[rows] = getattr(other, name)
        cache = None if old.cache is None or new.cache is None else old.cache.insert(index, new.cache)
        world = replace(old, texts=tuple(texts), cache=cache, streams=tuple(streams))
        return replace(self, world=world)


@dataclass(frozen=True)
class RowsStep:
    """Result of a step of B rows: next state, rewards (B,) float64, terminated, truncated (B,) bool, and `info` arrays.
    """

    after: EnvState
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    facts: Facts


class WorldEpisodes:
    """Base class of the single and the vector env: a world, the settings of its episodes, and their state.

    Pickles omit the viewer, and a world that was loaded from a path, which is loaded again.
    """

    metadata: ClassVar[dict[str, Any]]
    rows = 1
    world: World
    render_mode: str | None
    _source: str | None
    _now: EnvState | None

    def _open(
        self, world: World | str | Path | None, path: World | str | Path | None, *, text: str | None,
        render_mode: str | None, reward_fn: RewardFunction | None, max_episode_steps: int | None,
        frames_between: bool, trust: Trust | None,
    ) -> World:
        """Load the world and check the settings. Raises ConfigError."""
        self.render_mode = check_render_mode(render_mode, self.metadata["render_modes"])
        if (world is None) == (path is None):
            raise ConfigError("world: expected a World, a folder or a shipped world's name, as `world` or as `path`")
        given = path if world is None else world
        assert given is not None
        self._source = None if isinstance(given, World) else str(given)
        self.world = opened = given if isinstance(given, World) else World.load(given)
        if not opened.config.outcome.width and reward_fn is None and opened.config.reward != "none":
            name = opened.config.name
            raise ConfigError(f"world {name} predicts no rewards: pass reward_fn=..., or call World.step")
        if text is not None:
            opened.encode_text([check_text(text)])
        limit = opened.config.max_episode_steps if max_episode_steps is None else max_episode_steps
        if not isinstance(limit, int) or limit < 1:
            raise ConfigError(f"max_episode_steps: expected an integer >= 1, found {limit!r:.60}")
        self.text, self.reward_fn, self.frames_between, self.trust = text, reward_fn, frames_between, trust
        self.max_episode_steps: float = limit
        self._now = None
        return opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_viewer": None, **({} if self._source is None else {"world": None})}

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)
        if self._source is not None:
            self.world = World.load(self._source)

    def get_state(self) -> WorldState:
        """Return a copy of the world's state, for planning, branching or saving."""
        return self._begun("get_state").world.clone()

    def snapshot(self) -> EnvState:
        """Return a copy of everything that the episodes need to continue exactly: the world's state, the last
        observations, the starting steps of the episodes, and which have ended."""
        return self._begun("snapshot").clone()

    def set_state(self, state: WorldState | EnvState) -> None:
        """Continue from a copy of a state with as many rows as the env.

        A snapshot is restored exactly. A WorldState becomes the state of the current episode, which counts as not
        ended, and its frame is decoded again; reset(options={"state": state}) starts a new episode from it.
        """
        self._now = restore_state(self.world, state, self.rows, None if self._now is None else self._now.begun)

    def _begun(self, call: str) -> EnvState:
        if self._now is None:
            raise StateError(f"{call}: expected an episode under way, found none; call reset() first")
        return self._now

    def _start_rows(
        self, conditions: Iterable[StartCondition], generators: Iterable[np.random.Generator]
    ) -> tuple[EnvState, Facts]:
        """Return the state of rows at their starts, and the `info` arrays of their first frames.

        Each row is started separately, so its bits do not depend on which rows start with it.
        """
        pairs = zip(conditions, generators, strict=True)
        started = [start_row(self.world, condition, generator) for condition, generator in pairs]
        facts = [describe_step(self.world, t, state.texts, between=self.frames_between) for state, t in started]
        for part in facts if self.frames_between else ():  # the first latent frame of a stream has fewer frames
            most = max(other["frames"].shape[1] for other in facts)
            part["frames"] = part["frames"].repeat(most // part["frames"].shape[1], axis=1)
        parts = [
            EnvState(state, observations(t), state.step.numpy().copy(), np.zeros(1, bool)) for state, t in started
        ]
        return EnvState.stack(parts), {key: np.concatenate([part[key] for part in facts]) for key in facts[0]}

    def _step_rows(self, actions: list[Any]) -> RowsStep:
        """Step every row. Rows that have ended are computed too, but get no reward and do not end again."""
        now, trust = self._begun("step"), self.trust
        state, transition = self.world.step(now.world, actions, reuse=trust is None or trust.disagreement is None)
        facts = describe_step(self.world, transition, state.texts, between=self.frames_between)
        if trust is not None:
            facts |= trust.signals(self.world, now.world, actions, transition)
        frames = observations(transition)
        rewards, terminated = to_numpy(transition.reward.double()), to_numpy(transition.end)
        if self.reward_fn is not None:
            for row in np.flatnonzero(~now.ended).tolist():
                rewards[row], end = call_reward_fn(
                    self.reward_fn, now.frames[row], actions[row], frames[row], row_info(facts, row)
                )
                terminated[row] = terminated[row] if end is None else end
        doubted = facts["reason"] != "" if trust is not None else False
        truncated = ((now.steps + 1 >= self.max_episode_steps) | doubted) & ~now.ended
        terminated = terminated & ~now.ended
        after = EnvState(state, frames, now.begun.copy(), terminated | truncated)
        return RowsStep(after, np.where(now.ended, 0.0, rewards), terminated, truncated, facts)


# ---- starts and states -----------------------------------------------------------------------------------------------


def start_row(
    world: World, condition: StartCondition, generator: np.random.Generator
) -> tuple[WorldState, Transition]:
    """Start one episode. Uses the given frames; else samples a start with the given text from the start set; else
    samples the first frame from the text. The generator draws the noise seed and the index in the start set."""
    seed, text, frames = int(generator.integers(2**63)), condition.text, condition.frames
    places = [] if frames is not None or world.starts is None else world.starts.places(text)
    if text is None and frames is None and not places:
        raise DataError(f"reset: world {world.config.name} has no start set; pass options: text, frames or state")
    if places and world.starts is not None:
        index = places[int(generator.integers(len(places)))]
        frames, text = world.starts.frames[index : index + 1].numpy(), world.starts.texts[index]
    actions = None if condition.actions is None else [condition.actions]
    return world.start(None if frames is None else frames[None], actions, text=text or "", seed=[seed])


def restore_state(world: World, state: Any, rows: int, begun: np.ndarray | None = None) -> EnvState:
    """Return a copy of an EnvState, or an EnvState of a WorldState with its last frame decoded again. begun (rows,):
    world steps at which the episodes of a WorldState started; None: at this state."""
    inner = state.world if isinstance(state, EnvState) else state
    if not isinstance(inner, WorldState) or len(inner) != rows:
        given = f"{len(inner)} rows" if isinstance(inner, WorldState) else type(state).__name__
        raise StateError(f"state: expected an EnvState or WorldState of {rows} rows, found {given}")
    if inner.world_id != world.world_id:
        raise StateError(f"state: expected one of world {world.world_id[:12]}, found one of {inner.world_id[:12]}")
    tokens, moves = inner.tokens, world.dynamics
    if (tokens.dtype, tokens.device) != (moves.dtype, moves.device):
        raise StateError(f"state: expected {moves.dtype} on {moves.device}, found {tokens.dtype} on {tokens.device}")
    if bool((inner.step < 1).any()):
        raise StateError("state: expected rows with at least one frame, found an empty one; begin with World.start")
    if isinstance(state, EnvState):
        return state.clone()
    step = inner.step.numpy().copy()
    frames = last_frames(world, inner)
    return EnvState(inner.clone(), frames, step if begun is None else begun.copy(), np.zeros(rows, bool))


def last_frames(world: World, state: WorldState) -> np.ndarray:
    """Return the last frame of each row, (B, H, W, 3) u8, decoded again from the state."""
    return to_numpy(world.dynamics.frames.picture(state))[:, -1]


def observations(transition: Transition) -> np.ndarray:
    """Return the last pixel frame of each row of a transition, (B, H, W, 3) u8."""
    return to_numpy(transition.frames[:, -1])


# ---- rewards and infos -----------------------------------------------------------------------------------------------


def describe_step(world: World, transition: Transition, texts: tuple[str, ...], *, between: bool) -> Facts:
    """Return the `info` arrays of a transition.

    nats: log-probability of the noisy latent frame given the history; nats_per_dim: nats per number of it;
    bits_per_dim: bits per 8-bit colour value, if the codec is invertible; sweeps, residual (in noise units) and
    converged: decoding of the frame (0, 0 and True for an observed frame); end_probability: if the world predicts
    terminations; text; with `between`, frames (F, H, W, 3): all pixel frames of the step.
    """
    dims = math.prod(transition.latents.shape[1:])
    nats = to_numpy(transition.nats.double())
    facts = {
        "nats": nats, "nats_per_dim": nats / dims, "sweeps": to_numpy(transition.sweeps),
        "residual": to_numpy(transition.residual.double()), "converged": to_numpy(transition.converged),
        "text": np.array(texts, dtype=object),
    }
    if world.networks.codec.invertible:
        facts["bits_per_dim"] = GREY_LEVELS - facts["nats_per_dim"] / math.log(2)
    if world.config.outcome.width:
        facts["end_probability"] = to_numpy(transition.end_probability.double())
    if between:
        facts["frames"] = to_numpy(transition.frames)
    return facts


def row_info(facts: Facts, row: int) -> dict[str, Any]:
    """Return the `info` of one row: Python numbers, strings, and copied arrays."""
    values = {key: array[row] for key, array in facts.items()}
    return {
        key: value.item() if isinstance(value, np.generic) else value.copy() if isinstance(value, np.ndarray) else value
        for key, value in values.items()
    }


def call_reward_fn(
    reward_fn: RewardFunction, before: np.ndarray, action: Any, after: np.ndarray, info: dict[str, Any]
) -> tuple[float, bool | None]:
    """Return the reward of a step and whether it terminated (None: the function returned a reward only). Raises
    DataError that names a function which fails."""
    name = getattr(reward_fn, "__name__", type(reward_fn).__name__)
    try:
        result = reward_fn(before.copy(), action, after.copy(), info)
        reward, end = result if isinstance(result, tuple) else (result, None)
        reward, end = float(reward), None if end is None else bool(end)
    except Exception as error:
        raise DataError(f"reward_fn {name}: expected a number or (number, bool), but it raised {error!r:.200}; "
                        "the step was not taken") from error
    if not math.isfinite(reward):
        raise DataError(f"reward_fn {name}: expected a finite number, found {reward}; the step was not taken")
    return reward, end


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Return a tensor on any device as a NumPy array."""
    return tensor.cpu().numpy()
