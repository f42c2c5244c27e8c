"""How fast a world is, against the hardware it runs on and against decoding as it was published."""

from starflow_world.commands.bench.plan import Plan
from starflow_world.commands.bench.run import bench

__all__ = ["Plan", "bench"]
