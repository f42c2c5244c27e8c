"""Many episodes of one world as a Gymnasium vector environment: one batched forward pass for all rows.

The rows are one stacked state with different episode lengths. A step computes all rows at full batch size, including
rows that wait for their reset, and each row is started separately: a row's results do not depend on the others.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from starflow_world.envs.episode import EnvState, RewardFunction, WorldEpisodes, restore_state, row_info
from starflow_world.envs.infos import spread_rows, with_text_arrays
from starflow_world.envs.options import (
    OPTIONS,
    StartCondition,
    check_condition,
    check_options,
    masked_rows,
    read_seeds,
    split_options,
)
from starflow_world.envs.trust import Trust
from starflow_world.errors import ActionError, ConfigError, StateError
from starflow_world.world import World
from starflow_world.world.state import WorldState

VECTOR_OPTIONS = (*OPTIONS, "reset_mask")
VectorStep = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]


class WorldVectorEnv(WorldEpisodes, VectorEnv[np.ndarray, Any, np.ndarray]):
    """Vector env of `num_envs` rows (N): observations (N, H, W, 3) u8, rewards (N,) float64, flags (N,) bool.

    Each row equals a `WorldEnv`: row k reset with seed s behaves as a WorldEnv reset with seed s + k. autoreset_mode:
    next_step (the step after an episode's end resets the row; it ignores the row's action and gives no reward),
    same_step (the step that ends an episode also resets the row; `final_obs` and `final_info` in the infos) or disabled
    (reset(options={"reset_mask": mask})). trust: limits above which a row is truncated.

    In the infos, texts are a TextArray: `infos["text"][row]` is a string, and wrappers that turn arrays into tensors
    get its UTF-8 bytes.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}  # type: ignore[misc]

    def __init__(
        self, world: World | str | Path | None = None, num_envs: int = 1, *, path: World | str | Path | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP, text: str | None = None,
        render_mode: str | None = None, reward_fn: RewardFunction | None = None, max_episode_steps: int | None = None,
        frames_between: bool = False, trust: Trust | None = None,
    ) -> None:
        if not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ConfigError(f"num_envs: expected an integer >= 1, found {num_envs!r:.60}")
        self.num_envs = self.rows = int(num_envs)
        self.autoreset_mode = _check_mode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}  # type: ignore[misc]
        opened = self._open(
            world, path, text=text, render_mode=render_mode, reward_fn=reward_fn, max_episode_steps=max_episode_steps,
            frames_between=frames_between, trust=trust,
        )
        if self.autoreset_mode is not AutoresetMode.DISABLED and text is None and not len(opened.starts or ()):
            raise ConfigError(f"autoreset: world {opened.config.name} has no start set to begin from; pass text=..., "
                              "or autoreset_mode='disabled' and give every reset its frames or text")
        size = (opened.config.height, opened.config.width, 3)
        self.single_observation_space = spaces.Box(0, 255, size, np.uint8)
        self.single_action_space = copy.deepcopy(opened.action_space)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._generators = [seeding.np_random()[0] for _ in range(self.num_envs)]

    @property
    def np_random(self) -> np.random.Generator:
        """Return the generator of the env. Setting it gives every row a generator spawned from it."""
        return super().np_random

    @np_random.setter
    def np_random(self, value: np.random.Generator) -> None:
        self._np_random, self._np_random_seed = value, -1
        self._generators = value.spawn(self.num_envs)

    # ---- reset ---------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start episodes; return all observations and the infos of the rows that were reset.

        seed: s for the seeds s, s + 1, ... of the rows, or a seed per row (None: the row keeps its generator). options,
        as for WorldEnv.reset: `text`, one string or N; `frames` (N, H, W, 3) or (N, T, H, W, 3) with `actions`, N
        lists; `state` of N rows; and `reset_mask` (N,) bool: rows to reset, all others continue.
        """
        given = check_options(options, VECTOR_OPTIONS)
        rows = masked_rows(given.pop("reset_mask", None), self.num_envs)
        seeds = read_seeds(seed, self.num_envs)
        if self._now is None and len(rows) < self.num_envs:
            raise StateError("reset_mask: expected episodes under way, found none; reset all rows first")
        generators = [
            copy.deepcopy(self._generators[row]) if seeds[row] is None else seeding.np_random(seeds[row])[0]
            for row in rows
        ]
        if "state" in given:
            fresh = restore_state(self.world, given["state"], self.num_envs)[rows]
            facts = {"text": np.array(fresh.world.texts, dtype=object)}
        else:
            conditions = self._conditions(given)
            fresh, facts = self._start_rows([conditions[row] for row in rows], generators)
        if self._now is None or len(rows) == self.num_envs:
            self._now = fresh
        else:
            self._now = self._now.insert(rows, fresh)
        for row, generator in zip(rows.tolist(), generators, strict=True):
            self._generators[row] = generator
        super().reset(seed=seed if isinstance(seed, int) else None)
        self.closed = False
        infos: dict[str, Any] = {}
        spread_rows(infos, facts, rows, self.num_envs)
        return self._now.frames.copy(), self._with_texts(infos)

    def _conditions(self, options: dict[str, Any]) -> list[StartCondition]:
        """Return the start condition of every row."""
        given = {"text": [self.text] * self.num_envs} | options
        return [
            check_condition(self.world, row["text"], row.get("frames"), row.get("actions"))
            for row in split_options(given, self.num_envs)
        ]

    # ---- step ----------------------------------------------------------------------------------------------------

    def step(self, actions: Any) -> VectorStep:
        """Sample the next frame of every row; return observations, rewards, terminations, truncations, infos."""
        return self._advance(read_actions(self, actions, self._begun("step").ended))

    def _advance(self, actions: list[Any]) -> VectorStep:
        """Step with one action per row, None for rows that wait for their reset."""
        waiting, at_once = self._begun("step").ended, self.autoreset_mode is AutoresetMode.SAME_STEP
        step = self._step_rows(actions)
        after, ended, infos = step.after, step.after.ended, dict[str, Any]()
        again = ended if at_once else waiting
        kept = np.flatnonzero(~again)
        spread_rows(infos, {key: values[kept] for key, values in step.facts.items()}, kept, self.num_envs)
        for row in np.flatnonzero(ended).tolist() if at_once else ():
            final = {"final_obs": after.frames[row].copy(), "final_info": row_info(step.facts, row)}
            infos = self._add_info(infos, final, row)
        self._now = self._restart(after, np.flatnonzero(again), infos) if again.any() else after
        observations = self._now.frames.copy()
        return observations, step.rewards, step.terminated, step.truncated, self._with_texts(infos)

    def _restart(self, after: EnvState, rows: np.ndarray, infos: dict[str, Any]) -> EnvState:
        """Reset rows: replace them in `after` and in `infos`, and return the new state."""
        fresh, facts = self._start_rows(
            [StartCondition(self.text)] * len(rows), [self._generators[row] for row in rows]
        )
        spread_rows(infos, facts, rows, self.num_envs)
        return after.insert(rows, fresh)

    def _with_texts(self, infos: dict[str, Any]) -> dict[str, Any]:
        return with_text_arrays(infos, max(64, self.world.config.text.length))

    # ---- the rest ------------------------------------------------------------------------------------------------

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return the current frames, N of (H, W, 3) u8, in mode rgb_array."""
        return render_rows(self, self._begun("render").frames)

    def close_extras(self, **_: Any) -> None:
        """Drop the episodes."""
        self._now = None

    def set_state(self, state: WorldState | EnvState) -> None:
        """Continue from a copy of a state of N rows, as WorldEnv.set_state does."""
        super().set_state(state)
        self.closed = False


def _check_mode(mode: AutoresetMode | str) -> AutoresetMode:
    name = mode.value if isinstance(mode, AutoresetMode) else str(mode)
    for known in AutoresetMode:
        if name.lower().replace("_", "").replace("-", "") == known.value.lower():
            return known
    modes = ", ".join(known.name.lower() for known in AutoresetMode)
    raise ConfigError(f"autoreset_mode: expected one of {modes}, found {mode!r:.60}")


def render_rows(env: VectorEnv[Any, Any, Any], frames: np.ndarray) -> tuple[np.ndarray, ...] | None:
    """Return copies of the current frames (N, H, W, 3), or None with a warning if the env has no render mode."""
    if env.render_mode is None:
        gymnasium.logger.warn("render: the env was made without a render_mode, so nothing is rendered")
        return None
    return tuple(frame.copy() for frame in frames)


def read_actions(env: VectorEnv[Any, Any, Any], actions: Any, waiting: np.ndarray) -> list[Any]:
    """Return one action per row; None for rows of `waiting` (N,) bool, whose episodes have ended (mode next_step)."""
    if env.metadata["autoreset_mode"] is not AutoresetMode.NEXT_STEP and waiting.any():
        raise StateError(f"step: rows {np.flatnonzero(waiting).tolist()} have ended; reset them with "
                         'reset(options={"reset_mask": mask})')
    try:
        listed = list(iterate(env.action_space, actions))
    except Exception as error:
        given = f"{actions!r:.120}: {error}"
        raise ActionError(f"actions: expected an element of {env.action_space}, found {given}") from None
    if len(listed) != env.num_envs:
        raise ActionError(f"actions: expected one for each of {env.num_envs} rows, found {len(listed)}")
    for row, action in enumerate(listed):
        if action is None:
            raise ActionError(f"actions: row {row}: expected an element of {env.single_action_space}, found None")
    return [None if waits else action for action, waits in zip(listed, waiting.tolist(), strict=True)]
