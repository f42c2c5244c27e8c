"""The flags of the verb anomaly-bench."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from starflow_world.errors import ConfigError


@dataclass(frozen=True)
class AnomalySettings:
    """Settings of anomaly-bench."""

    part: tyro.conf.Positional[str] = "babyai"
    """Environment that is played: babyai or cartpole."""
    world: str = ""
    """Folder or name of a world of that environment; empty: the shipped one."""
    out: Path = Path("docs/anomaly")
    """Folder for the report, its pictures and figures."""
    work: Path = Path("out/anomaly")
    """Folder for the results of each seed; an interrupted run continues with the next seed."""
    episodes: int = 20
    """Episodes of each kind of anomaly, in each seed."""
    seeds: int = 3
    """Repetitions with new episodes; all detectors but the next-frame predictor are fitted again."""
    predictor_steps: int = 400
    """Training steps of the next-frame predictor, a baseline."""

    def __post_init__(self) -> None:
        amounts = self.episodes, self.seeds, self.predictor_steps
        if min(amounts) < 1:
            raise ConfigError(f"anomaly-bench: expected episodes, seeds and predictor steps >= 1, found {amounts}")

    @property
    def seed_key(self) -> str:
        """Return everything that determines the result of a seed; a stored result with another key is not reused."""
        return f"{self.episodes} episodes, {self.predictor_steps} predictor steps"
