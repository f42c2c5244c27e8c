"""`starflow-world evaluate`: the figures of a world's card, measured on held-out episodes.

Where the transition law of the episodes' environment is known (agents/laws), chance is measured against it.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

ABLATED = 40


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
    ablations: bool = True
    """Measure what each part of the world is worth, on the first 40 episodes."""
    draws: int = 2000
    """Draws of the next frame from real states, where the law is known; 20000 for figures that are published."""
    rollouts: int = 64
    """Rollouts in open loop, where the law is known."""
    card: bool = False
    """Also write the figures into the card.json of the world."""
    report: Path | None = None
    """Folder for a report card: report.html, which opens from disk and needs no network, report.md and report.json."""
    curve: Path | None = None
    """Data-size curve for the report: curves.json of python -m tests.benchmarks.curves; None: the one in the card."""

    def run(self) -> None:
        """Measure, print the figures and write them."""
        from starflow_world.commands.evaluate.measure import (
            figure_text,
            first_episodes,
            json_figures,
            known_law,
            measure_chance,
            measure_world,
        )
        from starflow_world.commands.evaluate.report import assembled, measure_report, provenance, read_curve
        from starflow_world.commands.evaluate.writing import write_report
        from starflow_world.evaluation.ablations import ablation_table, ablations
        from starflow_world.evaluation.chance import ChanceSizes
        from starflow_world.io.files import write_text
        from starflow_world.model.checkpoint import CARD, read_json
        from starflow_world.world import World, find_world

        begun, curve = time.perf_counter(), None if self.curve is None else read_curve(self.curve)
        world = World.load(self.world)
        episodes = first_episodes(self.data, self.episodes)
        ending = None if self.outcomes is None else first_episodes(self.outcomes, 4 * self.episodes)
        figures = measure_world(world, episodes, ending, self.out)
        law = known_law(self.data)
        if law is not None:
            sizes = ChanceSizes(draws=self.draws, rollouts=self.rollouts)
            figures["chance"] = measure_chance(world, episodes, law, sizes)
        if self.ablations:
            figures["ablations"] = ablations(world, episodes[:ABLATED])
        write_text(self.out / "evaluation.json", json.dumps(json_figures(figures), indent=1) + "\n")
        print("\n".join(figure_text(key, value) for key, value in figures.items() if key != "ablations"))
        if self.ablations:
            print(ablation_table(figures["ablations"]))
        if self.report is not None:
            measured, rollouts = measure_report(world, episodes, ending, law)
            facts = provenance(world, find_world(self.world).resolve().name, self.data, time.perf_counter() - begun)
            print(write_report(assembled(measured, facts, figures, curve), rollouts, self.report))
        if self.card:
            path = find_world(self.world) / CARD
            write_text(path, json.dumps(read_json(path) | {"figures": json_figures(figures)}, indent=1) + "\n")
