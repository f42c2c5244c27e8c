"""CartPole in pixels: a policy that balances it, and the positions of cart and pole in its frames.

The policy is a linear controller with correlated noise, so that it visits many states.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from starflow_world.agents.policy import Policy
from starflow_world.envs.cartpole_pixels import HIGH, LOW, CartPolePixels
from starflow_world.errors import ConfigError

GAINS = (0.1, 0.25, 3.0, 0.8)
CART, ABOVE = slice(51, 55), slice(0, 48)
SMALLEST = 8.0


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


def locate_cart_and_pole(frames: np.ndarray) -> dict[str, np.ndarray]:
    """Return the centres (B, 2), x and y in pixels, of the cart and of the pole in frames (B, 64, 64, 3) u8, from the
    bright pixels in the cart's rows and above it; NaN where there are fewer than `SMALLEST`."""
    light = (frames[..., ::2].mean(-1, dtype=np.float32) / 255 - LOW) / (HIGH - LOW)  # red and blue show the present
    light = np.where(light > 0.25, light, 0.0)
    return {"cart": _centre(light, CART), "pole": _centre(light, ABOVE)}


def _centre(light: np.ndarray, rows: slice) -> np.ndarray:
    """Return the centre of mass (B, 2) of some rows of light (B, H, W)."""
    part = np.zeros_like(light)
    part[:, rows] = light[:, rows]
    mass = part.sum((1, 2))
    y, x = np.mgrid[0 : light.shape[1], 0 : light.shape[2]] + 0.5
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.stack([(part * x).sum((1, 2)) / mass, (part * y).sum((1, 2)) / mass], axis=1)
    return np.where(mass[:, None] < SMALLEST, np.nan, centre)
