"""A world as a Gymnasium environment: one row, imagined step by step."""

import copy
import math
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding

from starflow_world.envs.episode import (
    EnvState,
    FromPath,
    RewardFunction,
    begin_rows,
    check_keys,
    check_render_mode,
    check_setup,
    info_of,
    judge,
    pictures,
    read_given,
    restored,
)
from starflow_world.envs.trust import Trust, imagine
from starflow_world.envs.viewer import Window, require_pygame
from starflow_world.errors import ActionError, StateError
from starflow_world.world import World
from starflow_world.world.state import WorldState

OPTIONS = ("text", "frames", "actions", "state")


class WorldEnv(FromPath, gymnasium.Env[np.ndarray, Any]):
    """Observations (H, W, 3) u8; actions of the world's action space.

    world (or path): a World, a folder, or the name of a shipped world. text: the prompt of every episode that is not
    given one; without frames, the first frame is imagined from it. reward_fn(obs, action, next_obs, info) gives the
    reward, or (reward, terminated), in place of the world's outcome head. max_episode_steps: truncate after so many
    steps (by default the world's own number). frames_between: put all pixel frames of a step into `info`. trust:
    limits above which the episode is truncated.

    `info` has the keys that `envs.episode.facts` lists. Calls in the wrong order raise StateError; a call
    that is refused leaves the env as it was. close() forgets the episode; reset() begins anew.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["human", "rgb_array"], "render_fps": 10}  # type: ignore[misc]
    own_limit: ClassVar[bool] = True

    def __init__(
        self, world: World | str | Path | None = None, *, path: World | str | Path | None = None,
        text: str | None = None, render_mode: str | None = None, reward_fn: RewardFunction | None = None,
        max_episode_steps: int | None = None, frames_between: bool = False, trust: Trust | None = None,
    ) -> None:
        self.render_mode = check_render_mode(render_mode, self.metadata["render_modes"])
        if render_mode == "human":
            require_pygame()
        opened = self._open(world, path)
        limit = check_setup(opened, reward_fn, max_episode_steps, text)
        self.max_episode_steps = limit if self.own_limit or max_episode_steps is not None else math.inf
        self.text, self.reward_fn, self.frames_between, self.trust = text, reward_fn, frames_between, trust
        self.observation_space = spaces.Box(0, 255, (opened.config.height, opened.config.width, 3), np.uint8)
        self.action_space = copy.deepcopy(opened.action_space)
        self._now: EnvState | None = None
        self._window: Window | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; returns the first observation and its info.

        options: `text` alone draws a start with that text from the world's start set, and where that has none imagines
        the first frame from it; `frames` (H, W, 3) or (T, H, W, 3) u8, with or without `text` and the T `actions` that
        led to them, are observed; `state` is a snapshot or WorldState to go on from (info then has the text only).
        Without options: the env's text, else any start of the set.
        """
        found = check_keys(options, OPTIONS)
        generator = copy.deepcopy(self.np_random) if seed is None else seeding.np_random(seed)[0]
        if "state" in found:
            now = restored(self.world, found["state"], 1)
            info: dict[str, Any] = {"text": now.world.texts[0]}
        else:
            given = read_given(self.world, found.get("text", self.text), found.get("frames"), found.get("actions"))
            now, begun = begin_rows(self.world, [given], [generator], between=self.frames_between)
            info = info_of(begun, 0)
        super().reset(seed=seed)
        self._np_random, self._now = generator, now
        self._show()
        return now.frames[0].copy(), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Imagine the next frame: observation, reward, terminated, truncated, info."""
        now = self._begun("step")
        if now.ended[0]:
            raise StateError("step: expected an episode under way, but it has ended; call reset()")
        if action is None:
            raise ActionError(f"action: expected an element of {self.action_space}, found None")
        world, transition, found = imagine(self.world, now.world, [action], self.trust, between=self.frames_between)
        frames, info = pictures(transition), info_of(found, 0)
        reward, terminated = float(transition.reward[0]), bool(transition.end[0])
        if self.reward_fn is not None:
            reward, end = judge(self.reward_fn, now.frames[0], action, frames[0], info)
            terminated = terminated if end is None else end
        truncated = bool(now.steps[0] + 1 >= self.max_episode_steps or info.get("reason"))
        self._now = EnvState(world, frames, now.begun, np.array([terminated or truncated]))
        self._show()
        return frames[0].copy(), reward, terminated, truncated, info

    def render(self) -> np.ndarray | None:
        """The present frame (H, W, 3) u8 in mode rgb_array; in mode human it is shown in a window."""
        now = self._begun("render")
        if self.render_mode == "rgb_array":
            return now.frames[0].copy()
        if self.render_mode is None:
            gymnasium.logger.warn("render: the env was made without a render_mode, so nothing is rendered")
        self._show()
        return None

    def close(self) -> None:
        """Close the window and forget the episode; may be called at any time."""
        if self._window is not None:
            self._window.close()
        self._window = self._now = None

    @property
    def mission(self) -> str:
        """The text of the present episode, under the name that MiniGrid has for it."""
        return self._begun("mission").world.texts[0]

    def get_state(self) -> WorldState:
        """A copy of the world's state, one row: to plan from, to branch, to save."""
        return self._begun("get_state").world.clone()

    def snapshot(self) -> EnvState:
        """A copy of all that the episode needs to go on exactly: the state, what was shown, how long it has lasted."""
        return self._begun("snapshot").clone()

    def set_state(self, state: WorldState | EnvState) -> None:
        """Go on from a copy of a state of one row.

        A snapshot is restored exactly. A WorldState is taken as a moment of the present episode, which has not ended,
        and its frame is decoded anew; with reset(options={"state": state}) a new episode begins with it.
        """
        self._now = restored(self.world, state, 1, None if self._now is None else self._now.begun)

    def _begun(self, call: str) -> EnvState:
        if self._now is None:
            raise StateError(f"{call}: expected an episode under way, found none; call reset() first")
        return self._now

    def _show(self) -> None:
        if self.render_mode == "human" and self._now is not None:
            if self._window is None:
                self._window = Window(self.world.config.name, self.metadata["render_fps"])
            self._window.show(self._now.frames[0])


class ShippedWorldEnv(WorldEnv):
    """As `gymnasium.make` builds the registered worlds: truncation is left to Gymnasium's TimeLimit, so that the spec
    states the limit, make's max_episode_steps sets it, and it is applied once."""

    own_limit: ClassVar[bool] = False
