"""`starflow-world demo`: the shipped world beside the real environment."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class Demo:
    """Play the shipped world beside the real environment; write a video and a contact sheet."""

    out: Positional[Path] = Path("out/demo")
    """Folder for demo.mp4 and demo.png."""
    steps: int = 64
    """Steps before the expert bot finishes the mission."""
    seed: int = 100_003
    """Seed of the environment and the policy."""

    def run(self) -> None:
        """Play, and print a line for each step."""
        from starflow_world.commands.demo.side_by_side import play_demo

        play_demo(self.out, steps=self.steps, seed=self.seed)
