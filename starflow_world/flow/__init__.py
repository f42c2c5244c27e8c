"""The normalizing flow of STARFlow-V: torch tensors in, torch tensors out."""

from .block import Affine, Block
from .cache import KVCache
from .inverse import Inverse, solve
from .model import Flow, Tables
from .sample import Sample, guide, sample_deep, sample_frames

__all__ = [
    "Affine", "Block", "Flow", "Inverse", "KVCache", "Sample", "Tables", "guide", "sample_deep", "sample_frames",
    "solve",
]
