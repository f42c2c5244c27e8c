"""`starflow-world rollout`: record imagined episodes of a world."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Rollout:
    """Imagine episodes of a world into a folder; an interrupted run goes on where it stopped."""

    out: Path
    """Folder for the episodes."""
    world: str = "babyai-gotolocal"
    """Folder or name of a shipped world."""
    episodes: int = 100
    """Number of episodes."""
    policy: str = "random"
    """Policy: random, or package.module:Class; those of collect that read a simulator cannot play in a dream."""
    seed: int = 0
    """Seed; every episode follows from it and its index."""
    text: str = ""
    """Text that episodes start with; empty: any of the world's start set."""
    max_steps: int = 0
    """Time limit in steps; 0: the world's own."""
    actors: int = 0
    """Ray actors; 0: this process."""
    gpus_per_actor: float = 0.0
    """GPUs for each actor, such as 1 or 0.25; 0: on the CPU."""
    threads: int = 1
    """Threads of each process; the numbers depend on it."""
    time_limit: float = 300.0
    """Seconds that an actor may take for an episode."""
    address: str = ""
    """Address of a Ray cluster; empty: a new local one."""

    def run(self) -> None:
        """Imagine the episodes."""
        from starflow_world.agents.collect import rollout
        from starflow_world.agents.registry import make_policy

        rollout(self.world, self.out, episodes=self.episodes, policy=make_policy(self.policy), seed=self.seed,
                text=self.text or None, max_steps=self.max_steps or None, actors=self.actors,
                gpus_per_actor=self.gpus_per_actor, threads=self.threads, time_limit=self.time_limit,
                address=self.address or None)
        print(self.out)
