"""A policy that plans in a world: it conditions the world on the frames of the env and follows the best plan found.

A plan is followed while the frames equal its predictions; then, or when it has ended, a new plan is made. In a
`WorldEnv` of the same world plans start from the env's own state.
"""

from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from starflow_world.agents.policy import Policy
from starflow_world.agents.search import ActionPlan, Gallery, find_plan
from starflow_world.agents.search_settings import Search
from starflow_world.envs.episode import RewardFunction
from starflow_world.envs.observation import mission, shown
from starflow_world.envs.world_env import WorldEnv
from starflow_world.errors import ActionError
from starflow_world.world import World
from starflow_world.world.state import WorldState


@dataclass(frozen=True)
class Thought:
    """Record of one action: its index `place` in `plan`; `fresh`: the plan was made in this step."""

    plan: ActionPlan
    place: int
    fresh: bool


@dataclass
class Planner(Policy):
    """Policy that plans with `search` from the frames of the env; `commit`: most steps of a plan to follow (0: all).

    An observed frame did not end the episode, so a termination that the world predicts at such a frame is ignored for
    the rest of the episode, with the reward that may belong to it. reward_fn: replaces the world's reward head (default
    in a WorldEnv: the env's).
    `thoughts`: of the current episode, one per action.
    """

    world: World = field(repr=False)
    search: Search = field(default_factory=Search)
    commit: int = 0
    reward_fn: RewardFunction | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return f"planner, {self.search.method}"

    def recipe(self) -> dict[str, Any]:
        return super().recipe() | {"world": self.world.world_id}

    def check(self, env: gymnasium.Env) -> None:
        if env.action_space != self.world.action_space:
            raise ActionError(f"planner: expected an env with the actions of world {self.world.config.name}, "
                              f"{self.world.action_space}, found {env.action_space}")

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        self.check(env)
        self._env, self._seed = env, seed
        self._state: WorldState | None = None
        self._played: Any = None
        self._seen = Gallery(self.search.same)
        self.thoughts: list[Thought] = []

    def __call__(self, observation: Any) -> Any:
        size = self.world.config.height, self.world.config.width
        frame = shown(observation if isinstance(self._env.unwrapped, WorldEnv) else self._env.render(), size)
        self._state = self._observed(frame, observation)
        if self.thoughts:
            self._seen.add(frame[None])
        thought = self._next(frame) or Thought(self._planned(self._state), 0, True)
        self.thoughts.append(thought)
        self._played = thought.plan.actions[thought.place]
        return self._played

    def played(self, action: Any) -> None:
        self._played = action

    def _observed(self, frame: np.ndarray, observation: Any) -> WorldState:
        """Return the world's state after conditioning on all frames of this episode."""
        inner = self._env.unwrapped
        if isinstance(inner, WorldEnv) and inner.world.world_id == self.world.world_id:
            return inner.get_state()
        if self._state is None:
            text = inner.mission if isinstance(inner, WorldEnv) else mission(self._env, observation, {})
            text = text if self.world.networks.text is not None else ""
            return self.world.start(frame[None, None], text=text, seed=[self._seed])[0]
        return self.world.observe(self._state, [self._played], frame[None], reuse=True)[0]

    def _next(self, frame: np.ndarray) -> Thought | None:
        """Return the next step of the current plan, or None if it has ended or did not predict this frame."""
        if not self.thoughts:
            return None
        last = self.thoughts[-1]
        place, expected = last.place + 1, Gallery(self.search.same)
        expected.add(last.plan.frames[last.place : place])
        goes_on = place < len(last.plan) and place != self.commit and expected.knows(frame[None])[0]
        return Thought(last.plan, place, False) if goes_on else None

    def _planned(self, state: WorldState) -> ActionPlan:
        inner, judge = self._env.unwrapped, self.reward_fn
        if judge is None and isinstance(inner, WorldEnv):
            judge = inner.reward_fn
        seed = np.random.SeedSequence(self._seed, spawn_key=(len(self.thoughts),)).generate_state(1)[0]
        return find_plan(self.world, state, self.search, seed=int(seed), seen=self._seen, reward_fn=judge)
