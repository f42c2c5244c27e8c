"""Who balances CartPole: a linear controller with a wandering hand, so that its episodes see many states."""

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

GAINS = (0.1, 0.25, 3.0, 0.8)


@dataclass
class BalancePolicy:
    """Pushes to the side that position, speed, angle and angular speed times `gains` say, plus noise that wanders
    slowly; how much noise is drawn for each episode from `noise`. It reads the simulator's state, not the picture."""

    gains: tuple[float, ...] = GAINS
    noise: tuple[float, float] = (0.1, 0.5)
    wander: float = 0.7
    name: str = "balance"

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        self._world: Any = env.unwrapped
        self._rng = np.random.default_rng(seed)
        self._level = self._rng.uniform(*self.noise)
        self._drift = 0.0

    def __call__(self, observation: Any) -> int:
        self._drift *= self.wander
        self._drift += (1 - self.wander**2) ** 0.5 * float(self._rng.standard_normal())
        push = float(np.dot(self.gains, self._world.moved.state)) + self._level * self._drift
        return int(push > 0)

    def played(self, action: Any) -> None:
        pass
