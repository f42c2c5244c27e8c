"""`starflow-world planner`: evaluate planning in a world by acting in the real environment."""

from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from starflow_world.agents.search_settings import Search
from starflow_world.commands.flags import RealEnvironment


@dataclass(frozen=True)
class RunPlanner:
    """Let a planner act in a real environment, beside a random policy; an interrupted run goes on where it stopped."""

    world: Positional[str] = "babyai-gotolocal"
    """Folder or name of a shipped world, in which it plans."""
    environment: OmitArgPrefixes[RealEnvironment] = field(default_factory=RealEnvironment)
    """The real environment"""
    out: Path = Path("out/planner")
    """Folder for planner.json, planner.mp4 and the episodes' records."""
    search: OmitArgPrefixes[Search] = field(default_factory=Search)
    """How it searches"""
    commit: int = 0
    """Steps of a plan to take before the next search; 0: all, while the real frames agree with the plan."""
    episodes: int = 50
    """Number of episodes."""
    seed: int = 100
    """Seed; every episode follows from it and its index."""
    max_steps: int | None = None
    """Time limit in steps; 0: the environment's own; None: the one in the world's card."""

    def run(self) -> None:
        """Play, print a table and write the records."""
        from starflow_world.agents.planner import Planner
        from starflow_world.commands.planner.trial import try_planner
        from starflow_world.world import World

        world = World.load(self.world)
        try_planner(Planner(world, self.search, self.commit), self.environment.source(world, self.max_steps), self.out,
                    episodes=self.episodes, seed=self.seed)
        print(self.out)
