"""Live window for frames, used by the render mode `human`."""

import importlib.util
from typing import Any

import numpy as np

from starflow_world.errors import ConfigError

LONGEST_SIDE = 512


def require_pygame() -> None:
    """Raise ConfigError if pygame is missing."""
    if importlib.util.find_spec("pygame") is None:
        raise ConfigError("render_mode human: expected pygame, found none; pip install 'starflow-world[envs]'")


class Viewer:
    """A window that shows frames, enlarged by a whole number; it opens at the first frame."""

    def __init__(self, title: str, fps: float) -> None:
        self.title, self.fps = title, fps
        self._surface: Any = None
        self._clock: Any = None

    def show(self, frame: np.ndarray) -> None:
        """Show a frame (H, W, 3) u8, at least 1 / fps after the previous one."""
        import pygame

        scale = max(1, LONGEST_SIDE // max(frame.shape[:2]))
        if self._surface is None or not pygame.display.get_init():
            pygame.display.init()
            pygame.display.set_caption(self.title)
            self._surface = pygame.display.set_mode((frame.shape[1] * scale, frame.shape[0] * scale))
            self._clock = pygame.time.Clock()
        large = frame.repeat(scale, axis=0).repeat(scale, axis=1)
        pygame.surfarray.blit_array(self._surface, large.swapaxes(0, 1))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self.fps)

    def close(self) -> None:
        """Close the window; the next frame opens it again."""
        if self._surface is not None:
            import pygame

            pygame.display.quit()
            self._surface = None
