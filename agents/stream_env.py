"""The env of a long rollout, and policies that know how far it has come: actions that are given in a file."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from starflow_world.agents.policy import Policy
from starflow_world.data.episodes import read_episode
from starflow_world.envs.episode import EnvState
from starflow_world.envs.world_env import WorldEnv
from starflow_world.errors import ActionError, DataError
from starflow_world.world import World


class StreamEnv(WorldEnv):
    """World env of a stream of steps, in which an episode can be taken back by a step, and go on after an end."""

    position = 0
    """Steps of the stream so far, those of earlier episodes included."""

    @property
    def now(self) -> EnvState:
        """Return the state, not a copy."""
        return self._begun("now")

    @property
    def latents(self) -> np.ndarray:
        """Return what the last frame was decoded from, (n, c)."""
        state = self.now.world
        shown = state.latents[0, -1] if state.latents.shape[1] else state.tokens[0, int(state.length[0]) - 1]
        return shown.cpu().numpy()


@dataclass
class Listed(Policy):
    """Policy that plays given actions: element t leads to frame t + 1 of a `StreamEnv`."""

    digest: str
    """SHA-256 of the actions, for the record of a run."""
    actions: Sequence[Any] = field(repr=False, default=())
    name: str = "listed actions"

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        assert isinstance(env, StreamEnv)
        self._next = env.position

    def __call__(self, observation: Any) -> Any:
        self._next += 1
        return self.actions[self._next - 1]


def listed_actions(path: Path, world: World) -> Listed:
    """Return a policy of the actions in a JSON list or an episode file. Raises ActionError and DataError."""
    space: Any = world.action_space
    if path.suffix == ".h5":
        episode = read_episode(path)
        if json.loads(episode.space) != json.loads(world.config.action_space):
            raise DataError(f"{path}: expected actions of {world.config.action_space}, found {episode.space}")
        actions = [spaces.unflatten(space, row) for row in episode.actions[1:]]
    else:
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ActionError(f"{path}: expected a JSON list of actions, or an episode, found {error}") from None
        actions = [np.asarray(a, space.dtype) if isinstance(a, list) else a for a in _list(given)]
    if not actions:
        raise ActionError(f"{path}: expected a JSON list of one action or more, or an episode, found none")
    flat = world.flatten(actions).cpu().numpy()
    return Listed(hashlib.sha256(flat.astype(np.float32).tobytes()).hexdigest(), actions)


def _list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else []
