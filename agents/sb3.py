"""Adapter from a Gymnasium vector env, such as `WorldVectorEnv`, to a VecEnv of Stable-Baselines3.

Arrays are passed through; infos become one dict per sub-environment, with Gymnasium's final_obs as SB3's
`terminal_observation`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnv

from starflow_world.errors import ActionError, ConfigError


class SB3VecEnv(VecEnv):
    """A Gymnasium vector env in mode same_step as a VecEnv of SB3.

    actions: offer only the first `actions` actions of a Discrete space. The info of a row whose episode ended is that
    of its last step, with `terminal_observation` and `TimeLimit.truncated`; the info of its reset is in `reset_infos`.
    `seed(s)` gives row k the seed s + k at the next reset; `set_options` sets the options of that reset.
    """

    def __init__(self, env: VectorEnv, *, actions: int | None = None) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ConfigError(f"env: expected autoreset_mode same_step, as SB3 has it, found {mode}; make it so")
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, first_actions(env.single_action_space, actions))

    def reset(self) -> np.ndarray:
        """Start all episodes; return observations (N, ...)."""
        options = [row or {} for row in self._options]
        names = dict.fromkeys(name for row in options for name in row)
        given = {name: [row.get(name) for row in options] for name in names}
        observations, infos = self.env.reset(seed=self._seeds, options=given or None)
        self.reset_infos = [row_of(infos, row) for row in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Store the actions (N, ...) until `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Return observations (N, ...), rewards (N,) float32, dones (N,) bool, and one info per row."""
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        each = [row_of(infos, row) for row in range(self.num_envs)]
        ended = terminated | truncated
        for row in np.flatnonzero(ended).tolist():
            last = each[row].pop("final_info", {})
            final = {"terminal_observation": each[row].pop("final_obs")}
            self.reset_infos[row] = each[row]
            each[row] = {**last, **final, "TimeLimit.truncated": bool(truncated[row] and not terminated[row])}
        return observations, rewards.astype(np.float32), ended, each

    def close(self) -> None:
        """Close the env."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Return the frame of each row, (H, W, 3) u8."""
        frames: Any = self.env.render()
        return [None] * self.num_envs if frames is None else list(frames)

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """Return an attribute of the env, once per row, since all rows share it."""
        return [getattr(self.env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Set an attribute of the env for all rows at once."""
        self._check_all(indices)
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: int | Iterable[int] | None = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the env once, and return its result once per row."""
        self._check_all(indices)
        return [getattr(self.env, method_name)(*method_args, **method_kwargs)] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type, indices: int | Iterable[int] | None = None) -> list[bool]:
        """Return False for every row: rows are not separate envs that could be wrapped."""
        return [False] * len(list(self._get_indices(indices)))

    def _check_all(self, indices: int | Iterable[int] | None) -> None:
        if sorted(self._get_indices(indices)) != list(range(self.num_envs)):
            raise ConfigError(f"indices: expected all {self.num_envs} rows, which share one env, found {indices}")


def first_actions(space: spaces.Space, count: int | None) -> spaces.Space:
    """Return the space of the first `count` actions of a Discrete space that begins at 0; None: the space itself."""
    if count is None:
        return space
    if not isinstance(space, spaces.Discrete) or space.start != 0 or not 1 <= count <= space.n:
        raise ActionError(f"actions: expected 1 to n of a Discrete(n) space, found {count} of {space}")
    return spaces.Discrete(count)


def row_of(infos: dict[str, Any], row: int) -> dict[str, Any]:
    """Return one row of Gymnasium's vector infos: the keys whose mask `_key` is set for it."""
    return {
        key: row_of(values, row) if isinstance(values, dict) else values[row]
        for key, values in infos.items()
        if not key.startswith("_") and infos[f"_{key}"][row]
    }
