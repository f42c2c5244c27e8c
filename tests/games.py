"""Small real games that can be learned: a red column has to be moved onto the green one.

16 x 16 pixels show 4 columns; start and goal follow from the seed. The reward is 1 in every step that ends on the goal,
and nothing but a time limit ends an episode. Importing this module registers the ids, with Discrete and Box actions.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

DISCRETE, BOX = "tests.games:Columns-v0", "tests.games:ColumnsBox-v0"


class Columns(gymnasium.Env):
    """Left, stay, right; or, in a Box, the distance in columns."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (as Gymnasium has it)

    def __init__(self, *, box: bool = False, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (16, 16, 3), np.uint8)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32) if box else spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place, self.goal = (int(number) for number in self.np_random.integers(4, size=2))
        return self.render(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        move = round(float(action[0])) if isinstance(self.action_space, spaces.Box) else int(action) - 1
        self.place = min(3, max(0, self.place + move))
        return self.render(), float(self.place == self.goal), False, False, {}

    def render(self) -> np.ndarray:
        frame = np.zeros((16, 16, 3), np.uint8)
        for column, color in ((self.goal, 1), (self.place, 0)):
            frame[:, 4 * column : 4 * column + 4, color] = 250
        return frame


gymnasium.register("Columns-v0", "tests.games:Columns", max_episode_steps=8)
gymnasium.register("ColumnsBox-v0", "tests.games:Columns", max_episode_steps=8, kwargs={"box": True})
