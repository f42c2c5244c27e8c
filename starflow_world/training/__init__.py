"""Training of worlds and of video models."""

from starflow_world.training.world import train

__all__ = ["train"]
