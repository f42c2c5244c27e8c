"""A player of MinAtar's games (Young and Tian 2019) whose skill differs between episodes, so that much is seen."""

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from starflow_world.agents.policy import Policy
from starflow_world.errors import ConfigError

BOTTOM = 4
"""First of the ten rows in which Breakout's falling ball counts as near."""


@dataclass
class ArcadePolicy(Policy):
    """Policy that plays Breakout (it follows the ball), Freeway (it goes up) and Space Invaders (it fires), and acts at
    random elsewhere and in a share of all steps, which is drawn for each episode from the range `noise`. In Breakout
    it is `attention` times smaller where the ball is about to reach the bottom, so that games last.

    The policy reads the simulator's state, not the frame.
    """

    noise: tuple[float, float] = (0.0, 1.0)
    attention: float = 8.0
    name: str = "arcade"

    def check(self, env: gymnasium.Env) -> None:
        if type(env.unwrapped).__module__ != "minatar.gym":
            raise ConfigError(f"policy: expected one that can play {env}, found {self.name}, which is made for "
                              "MinAtar; choose random, or one of its games")

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        self.check(env)
        self._env: Any = env.unwrapped
        self._rng = np.random.default_rng(seed)
        self._noise = self._rng.uniform(*self.noise)

    def __call__(self, observation: Any) -> int:
        count, wanted = len(self._env.action_set), self._wanted()
        noise = self._noise / (self.attention if self._near() else 1.0)
        if wanted is None or self._rng.random() < noise:
            return int(self._rng.integers(count))
        game, letters = self._env.game.env, self._env.action_set
        return next((index for index in range(count) if game.action_map[letters[index]] == wanted), 0)

    def _near(self) -> bool:
        game = self._env.game.env
        return self._env.game.env_name == "breakout" and bool(game.ball_y >= BOTTOM and game.ball_dir >= 2)

    def _wanted(self) -> str | None:
        """Return the letter of the action that a player would choose, None for any."""
        game, name = self._env.game.env, self._env.game.env_name
        if name == "breakout":
            return "l" if game.ball_x < game.pos else "r" if game.ball_x > game.pos else "n"
        if name == "freeway":
            return "u"
        return "f" if name == "space_invaders" and self._rng.random() < 0.4 else None
