"""`starflow-world rollout`: record imagined episodes of a world, or one long stream of steps and its drift."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from starflow_world.errors import ConfigError

if TYPE_CHECKING:
    from starflow_world.evaluation.law import Law
    from starflow_world.world import World


@dataclass(frozen=True)
class Rollout:
    """Imagine episodes of a world, or with --steps one long stream, into a folder; an interrupted run goes on where it
    stopped. About a stream drift.json and drift.png say how the pictures change with time."""

    out: Path
    """Folder for the episodes."""
    world: str = "babyai-gotolocal"
    """Folder or name of a shipped world."""
    episodes: int = 100
    """Number of episodes."""
    steps: int = 0
    """Steps of one stream, in place of episodes, such as 10000; where the world says that the episode ends, the next
    start follows. 0 with --actions: all of them."""
    policy: str = "random"
    """Policy: random, package.module:Class, or sb3:FOLDER; those of collect that read a simulator cannot play in a
    dream."""
    actions: Path | None = None
    """Actions of the stream, in place of a policy: a JSON list, or an episode file."""
    no_end: bool = False
    """In a stream, draw actions again that would end the episode, and ignore ends that cannot be avoided."""
    video: bool = False
    """Also write rollout.mp4 of the stream, which plays while it grows."""
    seed: int = 0
    """Seed; every episode follows from it and its index."""
    text: str = ""
    """Text that episodes start with; empty: any of the world's start set. In a stream "0: go to a red ball 200: go to a
    blue key" changes it at step 200."""
    max_steps: int = 0
    """Time limit in steps; 0: the world's own, and none in a stream."""
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
        """Imagine the episodes or the stream."""
        if self.steps or self.actions is not None:
            self._stream()
            return
        from starflow_world.agents.collect import rollout
        from starflow_world.agents.registry import make_policy

        if self.video or self.no_end:
            raise ConfigError("video, no-end: expected them with --steps or --actions, found neither")
        rollout(self.world, self.out, episodes=self.episodes, policy=make_policy(self.policy), seed=self.seed,
                text=self.text or None, max_steps=self.max_steps or None, actors=self.actors,
                gpus_per_actor=self.gpus_per_actor, threads=self.threads, time_limit=self.time_limit,
                address=self.address or None)
        print(self.out)

    def _stream(self) -> None:
        """Imagine the stream, and write and print its drift."""
        from starflow_world.agents.long_rollout import long_rollout, speed_figures, stream_files
        from starflow_world.agents.registry import make_policy
        from starflow_world.config.prompts import timed_prompts
        from starflow_world.evaluation.drift import drift_lines, measure_drift
        from starflow_world.io.files import write_text
        from starflow_world.io.plots import write_drift
        from starflow_world.world import World

        if self.actors or self.gpus_per_actor:
            raise ConfigError(f"actors, gpus-per-actor: expected 0 for a stream (--steps, --actions), which is one "
                              f"state, found {self.actors} and {self.gpus_per_actor}")
        chosen = self.actions is None or self.policy != "random"
        long_rollout(self.world, self.out, steps=self.steps, policy=make_policy(self.policy) if chosen else None,
                     actions=self.actions, seed=self.seed, prompts=timed_prompts(self.text) if self.text else None,
                     max_steps=self.max_steps or None, ends=not self.no_end, video=self.video, threads=self.threads)
        world = World.load(self.world, device="cpu")
        drift = measure_drift(stream_files(self.out), world.config.window, world.config.context, law_of_world(world))
        figures, speed = drift.figures(), speed_figures(self.out)
        write_text(self.out / "drift.json", json.dumps(figures, indent=1) + "\n")
        write_drift(drift.rows, self.out / "drift.png")
        for line in drift_lines(figures):
            print(line, file=sys.stderr if line.startswith("WARNING") else sys.stdout)
        print(f"steps per processor second, last 1,000 over first: {speed['last_over_first']:.3f}; memory after the "
              f"first 1,000 steps: {speed['growth_mb']:+.1f} MB")
        print(self.out)


def law_of_world(world: "World") -> "Law | None":
    """Return the transition law of the environment that a world was learned from; None if it is not known."""
    from starflow_world.agents.environment import source_environment
    from starflow_world.agents.laws import law_of

    try:
        return law_of(source_environment(world))
    except ConfigError:  # no environment in the card, or no package for it
        return None
