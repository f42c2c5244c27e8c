"""The normalizing flow of STARFlow-V: torch tensors in, torch tensors out."""

from starflow_world.flow.block import Affine, Block, Tables
from starflow_world.flow.cache import KVCache
from starflow_world.flow.frame_map import FrameMap, Past, ShallowBlocks
from starflow_world.flow.guidance import guide
from starflow_world.flow.jacobi import Inverse, solve
from starflow_world.flow.model import Flow
from starflow_world.flow.sample import sample_frames

__all__ = [
    "Affine", "Block", "Flow", "FrameMap", "Inverse", "KVCache", "Past", "ShallowBlocks", "Tables", "guide",
    "sample_frames", "solve",
]
