"""`starflow-world collect`: play a real environment into a folder of episodes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starflow_world.commands.flags import read_wrappers


@dataclass(frozen=True)
class Collect:
    """Play a real Gymnasium environment into a folder of episodes; an interrupted run goes on where it stopped."""

    env: str
    """Gymnasium id of an environment that renders RGB, or module:Id of one that the module registers."""
    out: Path
    """Folder for the episodes."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment, as a JSON object."""
    wrappers: tuple[str, ...] = ()
    """Wrappers in this order: names such as gymnasium.wrappers.ClipAction, or JSON pairs of name and arguments."""
    episodes: int = 1000
    """Number of episodes."""
    policy: str = "auto"
    """Policy: random; careful (random, avoiding most ends); bot or mixed (for BabyAI), tinker (for MiniGrid), balance
    (for CartPolePixels-v0), arcade (for MinAtar); package.module:Class, one of your own; sb3:FOLDER, an agent of
    train-agent; auto: the one made for the environment, else random."""
    seed: int = 0
    """Seed; every episode follows from it and its index."""
    max_steps: int = 0
    """Time limit in steps; 0: the environment's own."""
    frame_size: tuple[int, ...] = (64,)
    """Height and width of the frames in pixels, or one number for both."""
    view: str = "render"
    """What is recorded: the frames of render(), or observation: the image in the observation."""
    reward: str = "auto"
    """Stored reward: event (1 where it is positive, else 0), raw, or auto: event for MiniGrid and where there is one
    positive value, else raw."""
    no_end: bool = False
    """Draw actions that would end an episode again (for open-loop evaluation)."""
    hold: int = 1
    """Steps for which every action is repeated (4 for video models, which see four frames at a time)."""
    actors: int = 0
    """Ray actors that play; 0: this process."""
    time_limit: float = 300.0
    """Seconds that an actor may take for an episode."""
    address: str = ""
    """Address of a Ray cluster; empty: a new local one."""

    def run(self) -> None:
        """Play the episodes."""
        from starflow_world.agents.collect import collect
        from starflow_world.agents.registry import make_policy

        policy = None if self.policy == "auto" else make_policy(self.policy)
        collect(self.env, self.out, episodes=self.episodes, policy=policy, seed=self.seed, env_kwargs=self.env_kwargs,
                wrappers=read_wrappers(self.wrappers), max_steps=self.max_steps or None, frame_size=self.frame_size,
                view=self.view, reward=self.reward, ends=not self.no_end, hold=self.hold, actors=self.actors,
                time_limit=self.time_limit, address=self.address or None)
        print(self.out)
