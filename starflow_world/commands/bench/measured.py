"""What is measured, and what was: the values that pass from measuring to reporting."""

from dataclasses import dataclass, field

from starflow_world.commands.bench.measure import Rolled
from starflow_world.commands.bench.published import THRESHOLD
from starflow_world.commands.bench.settings import BenchSettings
from starflow_world.config.world import DecodeConfig, WorldConfig

LOOSE = DecodeConfig(tolerance=THRESHOLD**0.5)
"""The own decoder at the tolerance at which the published one stops."""

@dataclass
class Measured:
    """All that was measured. Runs by number of envs and decoder: `own` (rows of all ages); then, of one age, `own, one
    age`, `own, loose`, and the published `jacobi` and `sequential`, one for each repeat; errors as from `errors`, by
    decoder; memory in MB."""

    config: WorldConfig
    settings: BenchSettings
    runs: dict[int, dict[str, list[Rolled]]] = field(default_factory=dict)
    errors: dict[int, dict[str, tuple[float, float]]] = field(default_factory=dict)
    resident: dict[int, float] = field(default_factory=dict)
    state: float = 0.0
    scoring: list[float] = field(default_factory=list)
    growth: float = float("nan")
    long_run: list[float] = field(default_factory=list)
    machine: dict[str, float] = field(default_factory=dict)

    def own(self, rows: int) -> Rolled:
        """All repeats of the world's own decoder, rows of all ages."""
        first, *others = self.runs[rows]["own"]
        return sum(others, first)
