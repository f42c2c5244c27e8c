"""Settings of the planner's search. Light to import: the fields are flags of `starflow-world planner`."""

from dataclasses import dataclass

from starflow_world.errors import ConfigError

METHODS = ("best-first", "cem", "random")


@dataclass(frozen=True)
class Search:
    """Settings of a search."""

    method: str = "best-first"
    """Search method: best-first, cem or random."""
    branches: int = 64
    """Futures that are imagined at once."""
    draws: int = 2
    """Futures of one action sequence with different noise, over which its return is averaged."""
    horizon: int = 12
    """Steps that random and cem look ahead."""
    rounds: int = 4
    """Rounds in which cem refits its proposal to the best sequences."""
    budget: int = 2048
    """Most steps that a best-first search imagines."""
    discount: float = 0.97
    """Discount of rewards, per step."""
    actions: tuple[int, ...] = ()
    """Actions to consider; none given: all of the space."""
    same: float = 8.0
    """Grey levels, averaged over patches of 1/16 of the shorter side, up to which two frames count as the same."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"method: expected one of {', '.join(METHODS)}, found {self.method!r:.60}")
        for name in ("branches", "draws", "horizon", "rounds", "budget"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected a number >= 1, found {getattr(self, name)}")
        if not (0 < self.discount <= 1 and self.same >= 0):
            raise ConfigError(f"expected 0 < discount <= 1 and same >= 0, found {self.discount} and {self.same}")
