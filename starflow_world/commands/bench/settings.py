"""The flags of the verb bench."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from starflow_world.errors import ConfigError

MANY = 64
MOST_ENVS = 4096


@dataclass(frozen=True)
class BenchSettings:
    """Settings of bench."""

    world: tyro.conf.Positional[str] = "babyai-gotolocal"
    """Folder or name of a shipped world."""
    out: Path = Path("out/bench")
    """Folder for bench.json, bench.md and bench.png."""
    envs: tuple[int, ...] = (1, 4, 16, 64, 256)
    """Numbers of envs that are stepped together."""
    repeats: int = 3
    """Turns of each decoder; medians are reported."""
    steps: int = 2000
    """Steps of the long run that watches memory."""
    full: bool = False
    """Take 10,000 steps for the long run."""
    profile: bool = False
    """Only print where the time of a step goes; write nothing."""

    def __post_init__(self) -> None:
        if not self.envs or not all(1 <= rows <= MOST_ENVS for rows in self.envs):
            raise ConfigError(f"envs: expected numbers from 1 to {MOST_ENVS}, found {self.envs!s:.80}")
        for name, least in (("repeats", 1), ("steps", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected a number >= {least}, found {getattr(self, name)}")

    @property
    def long_steps(self) -> int:
        """Return the number of steps of the long run."""
        return 10_000 if self.full else self.steps

    @property
    def fewest(self) -> int:
        """Return the smallest number of envs."""
        return min(self.envs)

    @property
    def many(self) -> int:
        """Return 64, or the largest number of envs below 64."""
        return max((rows for rows in self.envs if rows <= MANY), default=self.fewest)
