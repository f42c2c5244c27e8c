"""Stable-Baselines3's view of a vector env whose rows are computed together, such as `WorldVectorEnv`.

SB3 takes envs one by one, or its own VecEnv. This one passes arrays through as they are; per row it only sorts the
infos: what Gymnasium calls final_obs and final_info, SB3 finds as `terminal_observation` among the row's own.
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

    actions: offer the agent only the first so many actions of a Discrete space. The info of a row that ended is that of
    its end, with `terminal_observation` and `TimeLimit.truncated`; that of its new start is in `reset_infos`. `seed(s)`
    gives row k the seed s + k at the next reset, `set_options` its reset options.
    """

    def __init__(self, env: VectorEnv, *, actions: int | None = None) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ConfigError(f"env: expected autoreset_mode same_step, as SB3 has it, found {mode}; make it so")
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, first_actions(env.single_action_space, actions))

    def reset(self) -> np.ndarray:
        """Begin all episodes: observations (N, ...)."""
        options = [row or {} for row in self._options]
        names = dict.fromkeys(name for row in options for name in row)
        given = {name: [row.get(name) for row in options] for name in names}
        observations, infos = self.env.reset(seed=self._seeds, options=given or None)
        self.reset_infos = [row_of(infos, row) for row in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions (N, ...) until `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Observations (N, ...), rewards (N,) float32, dones (N,) bool, and one info per row."""
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        found = [row_of(infos, row) for row in range(self.num_envs)]
        ended = terminated | truncated
        for row in np.flatnonzero(ended).tolist():
            last = found[row].pop("final_info", {})
            final = {"terminal_observation": found[row].pop("final_obs")}
            self.reset_infos[row] = found[row]
            found[row] = {**last, **final, "TimeLimit.truncated": bool(truncated[row] and not terminated[row])}
        return observations, rewards.astype(np.float32), ended, found

    def close(self) -> None:
        """Close the env."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """What each row shows, (H, W, 3) u8."""
        shown: Any = self.env.render()
        return [None] * self.num_envs if shown is None else list(shown)

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """An attribute of the env, once per row: the rows share it."""
        return [getattr(self.env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Set an attribute of the env, for all rows at once."""
        self._check_all(indices)
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: int | Iterable[int] | None = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the env, for all rows at once; its one result, once per row."""
        self._check_all(indices)
        return [getattr(self.env, method_name)(*method_args, **method_kwargs)] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type, indices: int | Iterable[int] | None = None) -> list[bool]:
        """Never: the rows are no envs that could be wrapped."""
        return [False] * len(list(self._get_indices(indices)))

    def _check_all(self, indices: int | Iterable[int] | None) -> None:
        if sorted(self._get_indices(indices)) != list(range(self.num_envs)):
            raise ConfigError(f"indices: expected all {self.num_envs} rows, which share one env, found {indices}")


def first_actions(space: spaces.Space, count: int | None) -> spaces.Space:
    """The first `count` actions of a Discrete space that begins at 0, so that they need no translation."""
    if count is None:
        return space
    if not isinstance(space, spaces.Discrete) or space.start != 0 or not 1 <= count <= space.n:
        raise ActionError(f"actions: expected 1 to n of a Discrete(n) space, found {count} of {space}")
    return spaces.Discrete(count)


def row_of(infos: dict[str, Any], row: int) -> dict[str, Any]:
    """One row of Gymnasium's vector infos: what its masks `_key` say the row has."""
    return {
        key: row_of(values, row) if isinstance(values, dict) else values[row]
        for key, values in infos.items()
        if not key.startswith("_") and infos[f"_{key}"][row]
    }
