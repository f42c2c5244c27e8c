"""The real environment beside an imagined episode: it gets the same actions."""

from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np

from starflow_world.agents.environment import Environment
from starflow_world.envs.observation import mission, shown

APART, SHARE = 48, 0.001
"""Grey levels by which a pixel differs, and the share of such pixels above which a frame differs."""


@dataclass(frozen=True)
class RealFrame:
    """A frame (H, W, 3) u8 of the real environment, the reward that came with it, and whether its episode is over."""

    frame: np.ndarray
    reward: float
    ended: bool


class Reality:
    """One real environment. `now` is its last frame; after the end of an episode it stays."""

    def __init__(self, source: Environment) -> None:
        self.size, self.env = source.size, source.make()
        self.now: RealFrame | None = None

    def reset(self, seed: int) -> tuple[np.ndarray, str]:
        """Begin the episode of a seed; return its first frame and its text."""
        with redirect_stdout(StringIO()):  # BabyAI prints its rejected samples
            observation, info = self.env.reset(seed=seed)
        self.now = RealFrame(shown(self.env.render(), self.size), 0.0, False)
        return self.now.frame, mission(self.env, observation, info)

    def step(self, action: Any) -> RealFrame:
        """Take an action, unless the episode is over."""
        assert self.now is not None
        if not self.now.ended:
            _, reward, terminated, truncated, _ = self.env.step(action)
            self.now = RealFrame(shown(self.env.render(), self.size), float(reward), bool(terminated or truncated))
        return self.now

    def replay(self, seed: int, actions: Iterable[Any]) -> None:
        """Begin the episode of a seed and take these actions."""
        self.reset(seed)
        for action in actions:
            self.step(action)

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


def differs(imagined: np.ndarray, real: np.ndarray) -> bool:
    """Return whether more than SHARE of the pixels of two frames (H, W, 3) u8 differ by more than APART levels."""
    apart = np.abs(imagined.astype(np.int16) - real).max(-1) > APART
    return bool(apart.mean() > SHARE)
