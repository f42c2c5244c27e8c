"""A world as an environment of LeRobot's EnvHub: `make_env`, as LeRobot calls it.

A repository of the EnvHub has a file `env.py`; for a world it is three lines:

    from functools import partial
    from starflow_world import lerobot_env
    make_env = partial(lerobot_env.make_env, world="user/repository")

LeRobot runs this file only if its caller trusts it. The world itself is read as World.from_pretrained reads it.
"""

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorWrapper
from gymnasium.vector.utils import batch_space

from starflow_world.envs.vector_env import WorldVectorEnv
from starflow_world.errors import ActionError
from starflow_world.world import World

NEW_ROLLOUT = "lerobot_new_rollout"
"""Key that LeRobot sets in the options of each of its own resets; every reset starts episodes here."""
SUCCESS = 0.5


def make_suites(
    n_envs: int = 1, use_async_envs: bool = False, cfg: Any = None, *, world: World | Path | str,
    revision: str | None = None, text: str | None = None,
) -> dict[str, dict[int, "LeRobotVectorEnv"]]:
    """Return {name of the world: {0: vector env of n_envs rows}}: LeRobot's suites and tasks.

    world: a World, a folder, the name of a shipped world, or a repository user/name at `revision`. text: of all
    episodes; None: those of the start set. use_async_envs and cfg change nothing: one forward pass steps all rows.
    """
    opened = world if isinstance(world, World) else World.from_pretrained(world, revision=revision)
    rows = WorldVectorEnv(opened, n_envs, autoreset_mode="same_step", text=text, render_mode="rgb_array")
    return {opened.config.name: {0: LeRobotVectorEnv(rows)}}


make_env = make_suites
"""The name by which LeRobot calls it."""


class LeRobotVectorEnv(VectorWrapper):
    """A WorldVectorEnv whose N rows LeRobot's evaluation can step and ask.

    Observations are {"pixels": (N, H, W, 3) u8}. Actions may be rows of floats (N, d), as policies there give them: the
    index for Discrete spaces (d = 1), flattened and clipped for Box. `is_success` in `final_info` says whether the last
    step terminated the episode with a reward above 0.5.
    """

    env: WorldVectorEnv

    def __init__(self, env: WorldVectorEnv) -> None:
        super().__init__(env)
        self.single_observation_space = spaces.Dict({"pixels": env.single_observation_space})
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start all episodes, as WorldVectorEnv does."""
        given = {key: value for key, value in (options or {}).items() if key != NEW_ROLLOUT}
        frames, infos = self.env.reset(seed=seed, options=given)
        return {"pixels": frames}, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Sample the next frame of every row."""
        frames, rewards, terminated, truncated, infos = self.env.step(self._read(actions))
        if "final_info" in infos:
            for row in np.flatnonzero(infos["_final_obs"]).tolist():
                infos["final_obs"][row] = {"pixels": infos["final_obs"][row]}
            success = {"is_success": terminated & (rewards > SUCCESS), "_is_success": terminated | truncated}
            infos["final_info"] |= success
        return {"pixels": frames}, rewards, terminated, truncated, infos

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return an attribute of every row, or what its method returns: `task` and `task_description` (the texts),
        `_max_episode_steps`, `render`. Raises AttributeError for others, as SyncVectorEnv.call does."""
        if name == "render":
            return tuple(self.env.render() or ())
        if name == "_max_episode_steps":
            return (int(self.env.max_episode_steps),) * self.num_envs
        if name in ("task", "task_description"):
            return tuple(self.env.get_state().texts)
        raise AttributeError(f"{name}: expected task, task_description, _max_episode_steps or render, as rows have")

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of every row, as `call` does."""
        return self.call(name)

    def _read(self, actions: Any) -> Any:
        """Return actions of the world's space for rows of floats (N, d); others as they are."""
        space, rows = self.single_action_space, np.asarray(actions)
        if rows.ndim != 2 or rows.dtype.kind != "f":
            return actions
        if isinstance(space, spaces.Box):
            return np.clip(rows.reshape(len(rows), *space.shape), space.low, space.high).astype(space.dtype)
        if isinstance(space, spaces.Discrete) and rows.shape[1] == 1 and bool(np.isfinite(rows).all()):
            return np.rint(rows[:, 0]).astype(np.int64)
        raise ActionError(f"actions: expected rows of one number for {space}, found {rows.shape}")
