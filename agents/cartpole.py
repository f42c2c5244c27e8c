"""A policy that balances CartPole: a linear controller with correlated noise, so that it visits many states."""

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from starflow_world.agents.policy import Policy
from starflow_world.envs.cartpole_pixels import CartPolePixels
from starflow_world.errors import ConfigError

GAINS = (0.1, 0.25, 3.0, 0.8)


@dataclass
class BalancePolicy(Policy):
    """Policy that pushes to the side given by the sign of position, speed, angle and angular speed times `gains`, plus
    noise.

    The noise is correlated in time (`wander`: per step); its deviation is drawn for each episode from the range
    `noise`. The policy reads the simulator's state, not the frame.
    """

    gains: tuple[float, ...] = GAINS
    noise: tuple[float, float] = (0.1, 0.5)
    wander: float = 0.7
    name: str = "balance"

    def check(self, env: gymnasium.Env) -> None:
        if not isinstance(env.unwrapped, CartPolePixels):
            raise ConfigError(f"policy: expected one that can play {env}, found {self.name}, which is made for "
                              "CartPolePixels-v0; choose random, or that environment")

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        self.check(env)
        self._world: Any = env.unwrapped
        self._rng = np.random.default_rng(seed)
        self._level = self._rng.uniform(*self.noise)
        self._drift = 0.0

    def __call__(self, observation: Any) -> int:
        self._drift *= self.wander
        self._drift += (1 - self.wander**2) ** 0.5 * float(self._rng.standard_normal())
        push = float(np.dot(self.gains, self._world.moved.state)) + self._level * self._drift
        return int(push > 0)
