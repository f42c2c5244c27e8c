"""The normalizing flow of STARFlow-V: torch tensors in, torch tensors out."""

from starflow_world.flow.block import Block, Tables
from starflow_world.flow.cache import KVCache
from starflow_world.flow.density import Affine, Density, Mixture
from starflow_world.flow.guidance import guide
from starflow_world.flow.jacobi import Inverse, solve
from starflow_world.flow.model import Flow
from starflow_world.flow.sample import sample_frames
from starflow_world.flow.shallow import ShallowBlocks

__all__ = [
    "Affine", "Block", "Density", "Flow", "Inverse", "KVCache", "Mixture", "ShallowBlocks", "Tables", "guide",
    "sample_frames", "solve",
]
