"""The online loop: collect with the agent in the real environment, train the world further, train the agent in it.

Round 0 trains the agent in the world as it is. Every round has a folder with its episodes, world and agent; what is
complete in it is not done again, so an interrupted loop goes on where it stopped.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from starflow_world.agents.collect import collect
from starflow_world.agents.policy import Policy, RandomPolicy
from starflow_world.agents.task import AgentTask
from starflow_world.commands.train_agent.learner import Curve, train_one
from starflow_world.commands.train_agent.settings import AgentSettings
from starflow_world.config.train import RecipeConfig, load_recipe
from starflow_world.config.video import CONFIGS
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.errors import ConfigError
from starflow_world.evaluation.fidelity import frame_excess
from starflow_world.io.files import atomic, write_text
from starflow_world.model.checkpoint import TRAINING
from starflow_world.recordings.merging import merge
from starflow_world.world import World, find_world

EPISODES, DATA, WORLD, LEARNER, DONE = "episodes", "data", "world", "agent", "round.json"
MEASURED = 20
"""Most new episodes on which a world is measured before and after it learned them."""


@dataclass(frozen=True)
class Loop:
    """The online loop of one seed in the folder `home`."""

    task: AgentTask
    settings: AgentSettings
    seed: int
    recipe: RecipeConfig
    home: Path

    def folder(self, index: int) -> Path:
        """Return the folder of a round."""
        return self.home / f"round-{index}"

    def world(self, index: int) -> Path:
        """Return the folder of the world in which the agent of a round learns."""
        return self.folder(index) / WORLD if index else find_world(self.settings.world)

    def play(self, index: int) -> dict[str, Any]:
        """Do what a round lacks, and return its record: the real steps that it took, the world's excess nats per frame
        of the new episodes before and after it learned them, and the agent's scores."""
        path = self.folder(index) / DONE
        if path.exists():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        record: dict[str, Any] = {"round": index, "steps": 0}
        if index:
            self._collect(index)
            new = EpisodeDataset(self.folder(index) / EPISODES)
            before = self._excess(index - 1, new)
            self._train_world(index)
            record |= {"steps": int((new.lengths - 1).sum()), "excess_before": before,
                       "excess_after": self._excess(index, new)}
        record["curve"] = self._train_agent(index)
        write_text(path, json.dumps(record, indent=1))
        return record

    def _collect(self, index: int) -> None:
        source, settings = self.task.source, self.settings
        policy: Policy = RandomPolicy()
        if settings.collector == "agent":
            from starflow_world.agents.learning import load_agent

            policy = load_agent(self.folder(index - 1) / LEARNER)
        collect(source.env, self.folder(index) / EPISODES, episodes=settings.collected, policy=policy,
                seed=1000 * self.seed + index, env_kwargs=source.env_kwargs, wrappers=source.wrappers,
                max_steps=source.max_steps, reward=source.reward, frame_size=source.size, view=source.view)

    def _excess(self, index: int, episodes: EpisodeDataset) -> float:
        some = [episodes[number] for number in range(min(MEASURED, len(episodes)))]
        return float(np.concatenate(frame_excess(World.load(self.world(index)), some, seed=0)).mean())

    def _train_world(self, index: int) -> None:
        """Train the world of the round before on its data and the new episodes of all rounds."""
        from starflow_world.training import train

        own, copies = self.folder(index), self.folder(index) / DATA
        folders = [*([self.settings.data] if self.settings.data else []),
                   *(self.folder(number) / EPISODES for number in range(1, index + 1))]
        data = merge(folders, copies) if len(folders) > 1 else folders[0]
        train(self.recipe, data, own / WORLD, init=self.world(index - 1), resume=(own / WORLD / TRAINING).exists(),
              command=f"train-agent, round {index}", cache=own / "cache")
        for made in (copies, own / "cache"):  # the episodes themselves stay in their folders
            shutil.rmtree(made, ignore_errors=True)

    def _train_agent(self, index: int) -> Curve:
        """Train the agent of the round before on in the world of this one; return the curve of all rounds."""
        from starflow_world.agents.learning import AGENT

        own = self.folder(index) / LEARNER
        if index and not (own / AGENT).exists():
            _copy(self.folder(index - 1) / LEARNER, own)
        task = replace(self.task, world=World.load(self.world(index)))
        steps = (index + 1) * self.settings.dream_steps
        return train_one(task, "dream", self.settings, own, steps, self.seed, f"seed {self.seed}, round {index}")


def online_loop(task: AgentTask, settings: AgentSettings, seed: int, known: dict[str, Any]) -> list[dict[str, Any]]:
    """Play all rounds of a seed, and return their records with the real steps so far (`real_steps`), the data of the
    world at the beginning among them."""
    loop = Loop(task, settings, seed, loop_recipe(settings, task.world), settings.out / f"loop-{seed}")
    records, total = [], int(known["steps"] or 0)
    for index in range(settings.rounds + 1):
        record = loop.play(index)
        total += record["steps"]
        records.append({**record, "real_steps": total})
    return records


def loop_recipe(settings: AgentSettings, world: World) -> RecipeConfig:
    """Return the recipe with which a world is trained further. Raises ConfigError if there is none."""
    shipped = CONFIGS / f"{world.config.name}.yaml"
    path = settings.recipe or shipped
    if settings.recipe is None and not shipped.is_file():
        raise ConfigError(f"recipe: expected the recipe of world {world.config.name} to train it further, found none "
                          "that ships under its name; pass --recipe")
    recipe = load_recipe(path, (f"train.steps={settings.world_steps}",))
    if not isinstance(recipe, RecipeConfig):
        raise ConfigError(f"recipe: {path}: expected the recipe of a world, found that of a video model")
    return recipe


def _copy(before: Path, after: Path) -> None:
    """Copy an agent and its memory into a new folder, the agent last, so that a copy is whole where it is there."""
    for file in sorted(before.glob("*.safetensors"), key=lambda path: path.name == "agent.safetensors"):
        with atomic(after / file.name) as temporary:
            shutil.copyfile(file, temporary)
