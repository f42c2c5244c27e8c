"""The normalizing flow of STARFlow-V: torch tensors in, torch tensors out."""

from starflow_world.flow.block import Affine, Block
from starflow_world.flow.cache import KVCache
from starflow_world.flow.jacobi import Inverse, solve
from starflow_world.flow.model import Flow, Tables
from starflow_world.flow.sample import Sample, guide, sample_deep, sample_frames

__all__ = [
    "Affine", "Block", "Flow", "Inverse", "KVCache", "Sample", "Tables", "guide", "sample_deep", "sample_frames",
    "solve",
]
