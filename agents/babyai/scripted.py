"""A scripted policy for BabyAI that reads frames only, so it can act in a world and in the real environment."""

from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from starflow_world.agents.babyai.bot import FORWARD, LEFT, RIGHT, towards
from starflow_world.agents.babyai.tiles import KINDS, named_object, read_tiles, tiles
from starflow_world.agents.policy import Policy


@dataclass
class ScriptedPolicy(Policy):
    """Policy that walks the shortest path to the object that `text` names, in frames (H, W, 3) u8; moves at random with
    probability `noise`, and if the frame shows no agent, no such object or no path."""

    text: str
    noise: float = 0.0
    name: str = "scripted"
    known: dict[str, np.ndarray] = field(default_factory=tiles, repr=False)

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        self._rng = np.random.default_rng(seed)

    def __call__(self, observation: Any) -> int:
        action = None if self._rng.random() < self.noise else self._way(read_tiles(observation, self.known))
        return int(self._rng.choice((LEFT, RIGHT, FORWARD))) if action is None else action

    def _way(self, names: np.ndarray) -> int | None:
        agents = [(y, x) for y, x in np.ndindex(*names.shape) if str(names[y, x]).startswith("agent")]
        goals = np.argwhere(names == named_object(self.text))
        if not agents or not len(goals):
            return None
        y, x = agents[0]
        seen = _Seen(names, (x, y), int(str(names[y, x]).split()[1]))
        nearest = goals[np.abs(goals - agents[0]).sum(1).argmin()]
        return towards(seen, (int(nearest[1]), int(nearest[0])))


@dataclass(frozen=True)
class _Cell:
    type: str

    def can_overlap(self) -> bool:
        return False


class _Seen:
    """Tiles of a frame with the part of MiniGrid's interface that `towards` uses."""

    def __init__(self, names: np.ndarray, agent_pos: tuple[int, int], agent_dir: int) -> None:
        self.height, self.width = names.shape
        self.grid, self._names, self.agent_pos, self.agent_dir = self, names, agent_pos, agent_dir

    def get(self, x: int, y: int) -> _Cell | None:
        name = str(self._names[y, x])
        return _Cell(name) if name == "wall" or name.endswith(KINDS) else None
