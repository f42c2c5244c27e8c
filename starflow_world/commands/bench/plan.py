"""What is measured, and what was: the values that pass from measuring to reporting."""

from dataclasses import dataclass, field

from starflow_world.commands.bench.measure import Rolled
from starflow_world.commands.bench.published import THRESHOLD
from starflow_world.config.world import DecodeConfig, WorldConfig
from starflow_world.errors import ConfigError

MANY = 64
LOOSE = DecodeConfig(tolerance=THRESHOLD**0.5)
"""The own decoder at the tolerance at which the published one stops."""
MOST_ENVS = 4096


@dataclass(frozen=True)
class Plan:
    """What is measured: numbers of envs, how often each decoder has its turn, steps of the long run."""

    envs: tuple[int, ...] = (1, 4, 16, 64, 256)
    repeats: int = 3
    steps: int = 2000

    def __post_init__(self) -> None:
        if not self.envs or not all(1 <= rows <= MOST_ENVS for rows in self.envs):
            raise ConfigError(f"envs: expected numbers from 1 to {MOST_ENVS}, found {self.envs!s:.80}")
        for name, least in (("repeats", 1), ("steps", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected a number >= {least}, found {getattr(self, name)}")

    @property
    def one(self) -> int:
        """The fewest envs."""
        return min(self.envs)

    @property
    def many(self) -> int:
        """64 envs, or the number that comes closest from below."""
        return max((rows for rows in self.envs if rows <= MANY), default=self.one)


@dataclass
class Measured:
    """All that was measured. Runs by number of envs and decoder: `own` (rows of all ages); then, of one age, `own, one
    age`, `own, loose`, and the published `jacobi` and `sequential`, one for each repeat; errors as from `errors`, by
    decoder; memory in MB."""

    config: WorldConfig
    plan: Plan
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
