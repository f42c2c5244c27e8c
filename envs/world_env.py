"""A world as a Gymnasium environment: one batch element, sampled step by step."""

import copy
import math
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding

from starflow_world.envs.episode import RewardFunction, WorldEpisodes, restore_state, row_info
from starflow_world.envs.options import OPTIONS, check_condition, check_options
from starflow_world.envs.trust import Trust
from starflow_world.envs.viewer import Viewer, require_pygame
from starflow_world.errors import ActionError, StateError
from starflow_world.world import World


class WorldEnv(WorldEpisodes, gymnasium.Env[np.ndarray, Any]):
    """Gymnasium env of a world: observations (H, W, 3) u8; actions of the world's action space.

    world (or path): a World, a folder, or the name of a shipped world. text: default prompt of an episode; without
    start frames, the first frame is sampled from it. reward_fn(obs, action, next_obs, info) returns the reward, or
    (reward, terminated), and replaces the world's outcome head. max_episode_steps: truncate after this many steps
    (None: the world's own limit). frames_between: put all pixel frames of a step into `info`. trust: limits above which
    the episode is truncated.

    `info` has the keys that `envs.episode.describe_step` lists. Calls in the wrong order raise StateError; a call that
    raises leaves the env unchanged. close() drops the episode; reset() starts another.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["human", "rgb_array"], "render_fps": 10}  # type: ignore[misc]
    own_limit: ClassVar[bool] = True

    def __init__(
        self, world: World | str | Path | None = None, *, path: World | str | Path | None = None,
        text: str | None = None, render_mode: str | None = None, reward_fn: RewardFunction | None = None,
        max_episode_steps: int | None = None, frames_between: bool = False, trust: Trust | None = None,
    ) -> None:
        if render_mode == "human":
            require_pygame()
        opened = self._open(
            world, path, text=text, render_mode=render_mode, reward_fn=reward_fn, max_episode_steps=max_episode_steps,
            frames_between=frames_between, trust=trust,
        )
        if max_episode_steps is None and not self.own_limit:
            self.max_episode_steps = math.inf
        self.observation_space = spaces.Box(0, 255, (opened.config.height, opened.config.width, 3), np.uint8)
        self.action_space = copy.deepcopy(opened.action_space)
        self._viewer: Viewer | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; return the first observation and its info.

        options: `text` samples a start with that text from the world's start set, or, if there is none, the first frame
        from the text; `frames` (H, W, 3) or (T, H, W, 3) u8, with or without `text` and the T `actions` that led to
        them, are conditioned on; `state` is a snapshot or WorldState to continue from (info then has the text only).
        Without options: the env's text, else any start of the set.
        """
        given = check_options(options, OPTIONS)
        generator = copy.deepcopy(self.np_random) if seed is None else seeding.np_random(seed)[0]
        if "state" in given:
            now = restore_state(self.world, given["state"], 1)
            info: dict[str, Any] = {"text": now.world.texts[0]}
        else:
            text = given.get("text", self.text)
            condition = check_condition(self.world, text, given.get("frames"), given.get("actions"))
            now, facts = self._start_rows([condition], [generator])
            info = row_info(facts, 0)
        super().reset(seed=seed)
        self._np_random, self._now = generator, now
        self._show()
        return now.frames[0].copy(), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Sample the next frame; return observation, reward, terminated, truncated, info."""
        if self._begun("step").ended[0]:
            raise StateError("step: expected an episode under way, but it has ended; call reset()")
        if action is None:
            raise ActionError(f"action: expected an element of {self.action_space}, found None")
        step = self._step_rows([action])
        self._now = step.after
        self._show()
        flags = bool(step.terminated[0]), bool(step.truncated[0])
        return step.after.frames[0].copy(), float(step.rewards[0]), *flags, row_info(step.facts, 0)

    def render(self) -> np.ndarray | None:
        """Return the current frame (H, W, 3) u8 in mode rgb_array; show it in a window in mode human."""
        now = self._begun("render")
        if self.render_mode == "rgb_array":
            return now.frames[0].copy()
        if self.render_mode is None:
            gymnasium.logger.warn("render: the env was made without a render_mode, so nothing is rendered")
        self._show()
        return None

    def close(self) -> None:
        """Close the window and drop the episode; allowed at any time."""
        if self._viewer is not None:
            self._viewer.close()
        self._viewer = self._now = None

    @property
    def mission(self) -> str:
        """Return the text of the current episode; MiniGrid uses the same name."""
        return self._begun("mission").world.texts[0]

    def _show(self) -> None:
        if self.render_mode == "human" and self._now is not None:
            if self._viewer is None:
                self._viewer = Viewer(self.world.config.name, self.metadata["render_fps"])
            self._viewer.show(self._now.frames[0])


class ShippedWorldEnv(WorldEnv):
    """WorldEnv as `gymnasium.make` builds the registered worlds. Gymnasium's TimeLimit truncates the episodes: the spec
    states the limit, and make's max_episode_steps overrides it."""

    own_limit: ClassVar[bool] = False
