"""`starflow-world check`: check the guarantees of a world."""

from dataclasses import dataclass

from tyro.conf import Positional


@dataclass(frozen=True)
class CheckWorld:
    """Examine whether a world keeps its promises; takes about a minute, and exits with 1 if one is broken."""

    world: Positional[str] = "babyai-gotolocal"
    """Folder or name of a shipped world."""
    seed: int = 0
    """Seed of the actions and the noise of the examination."""

    def run(self) -> None:
        """Check the world, and print a line for each guarantee."""
        from starflow_world.check import check_world
        from starflow_world.world import World

        report = check_world(World.load(self.world), seed=self.seed, said=lambda result: print(result, flush=True))
        print(report.summary)
        report.raise_if_broken()
