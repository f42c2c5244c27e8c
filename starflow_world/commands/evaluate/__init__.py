"""`starflow-world evaluate`: the figures of a world's card, measured on held-out episodes."""

import json
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class Evaluate:
    """Measure a world on held-out episodes: excess nats, exact frames, rewards, text starts, speed, operations."""

    data: Path
    """Folder of episodes with a long time limit that do not end early (collect --no-end)."""
    world: Positional[str] = "babyai-gotolocal"
    """Folder or name of a shipped world."""
    outcomes: Path | None = None
    """Folder of episodes that end, for rewards and ends; None: these are not measured."""
    out: Path = Path("out/evaluate")
    """Folder for evaluation.json and pictures."""
    episodes: int = 120
    """Most episodes that are read."""
    card: bool = False
    """Also write the figures into the card.json of the world."""

    def run(self) -> None:
        """Measure, print the figures and write them."""
        from starflow_world.commands.evaluate.measure import figure_text, first_episodes, json_figures, measure_world
        from starflow_world.io.files import write_text
        from starflow_world.model.checkpoint import CARD, read_json
        from starflow_world.world import World, find_world

        ending = None if self.outcomes is None else first_episodes(self.outcomes, 4 * self.episodes)
        figures = measure_world(World.load(self.world), first_episodes(self.data, self.episodes), ending, self.out)
        write_text(self.out / "evaluation.json", json.dumps(json_figures(figures), indent=1) + "\n")
        for key, value in figures.items():
            print(f"{key:<28} {figure_text(value)}")
        if self.card:
            path = find_world(self.world) / CARD
            write_text(path, json.dumps(read_json(path) | {"figures": json_figures(figures)}, indent=1) + "\n")
