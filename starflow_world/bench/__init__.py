"""How fast a world is, against the hardware it runs on and against decoding as it was published."""

from .plan import Plan
from .run import bench

__all__ = ["Plan", "bench"]
