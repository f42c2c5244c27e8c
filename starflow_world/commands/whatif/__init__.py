"""`starflow-world whatif`: replay an episode with the same noise under other actions."""

from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from starflow_world.commands.flags import RealEnvironment


@dataclass(frozen=True)
class WhatIf:
    """Replay an episode with the same noise under other actions, and show both side by side."""

    world: Positional[str] = "babyai-gotolocal"
    """Folder or name of a shipped world."""
    episode: Path | None = None
    """File of an episode that was collected; None: one is played now."""
    environment: OmitArgPrefixes[RealEnvironment] = field(default_factory=RealEnvironment)
    """The environment to play"""
    played: str = "auto"
    """Policy that plays it, as for collect; auto: the expert of the environment, else its default policy."""
    seed: int = 0
    """Seed of that episode, and of the world's noise; the first episode that is long enough is taken."""
    steps: int | None = None
    """Time limit of that episode in steps; 0: the environment's own; None: the one in the world's card."""
    at: int = 1
    """First step to change; 1 is the first step of the episode."""
    actions: tuple[str, ...] = ()
    """Actions from that step on, in place of as many; those of a Box as JSON, such as "[0.5, -1]"."""
    policy: str = ""
    """In place of actions: the policy that chooses from there on (random, best-first, cem, sb3:FOLDER)."""
    out: Path = Path("out/whatif")
    """Folder for whatif.mp4, whatif.png and whatif.json."""

    def run(self) -> None:
        """Replay the episode under its own actions and under the given ones, and write both."""
        from starflow_world.commands.whatif.imagine import what_if
        from starflow_world.commands.whatif.report import write_alternative
        from starflow_world.commands.whatif.sources import named_policy, play_long_enough, read_action
        from starflow_world.data.episodes import read_episode
        from starflow_world.world import World

        world = World.load(self.world)
        actions = [read_action(text) for text in self.actions]
        other = named_policy(self.policy, world) if self.policy else None
        if self.episode is not None:
            episode = read_episode(self.episode)
        else:
            source, last = self.environment.source(world, self.steps), self.at + max(len(actions), 1) - 1
            episode = play_long_enough(source, self.played, self.seed, steps=last)
        write_alternative(what_if(world, episode, at=self.at, actions=actions, policy=other, seed=self.seed), self.out)
