"""How a recipe and its data come together before the first step.

Keys of `world` that a recipe leaves out (`RecipeConfig.follow`) are filled in from the episodes; then the episodes, the
held-out episodes and the checkpoint to start from are compared with the recipe, and one error lists all differences.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from starflow_world.config.train import RecipeConfig
from starflow_world.config.world import NO_ACTIONS, WorldConfig
from starflow_world.data.dataset import EpisodeDataset, Windows, origin
from starflow_world.errors import DataError
from starflow_world.model.actions import action_scale, same_space, space_from_json

LEAST_STEPS = 64


@dataclass(frozen=True)
class DataFacts:
    """What a folder of episodes holds, as far as a recipe has to agree with it.

    size: (H, W) of frames. longest: UTF-8 bytes of the longest text, in the episode `longest_in`. rewards: lowest and
    highest. kind: "event" if all are 0 or 1, else "raw"; `recorded`: the collection's record says so. limit: the step
    limit of the collection's record; without one, the longest episode that did not terminate, or LEAST_STEPS.
    """

    folder: Path
    name: str
    action_space: str
    size: tuple[int, int]
    longest: int
    longest_in: str
    rewards: tuple[float, float]
    kind: str
    recorded: bool
    limit: int


def data_facts(episodes: EpisodeDataset, windows: Windows) -> DataFacts:
    """Read the facts off a dataset; every reward and every text counts."""
    source, rewards = origin(episodes.folder), windows.rewards
    sizes = [len(text.encode()) for text in windows.texts]
    longest = int(np.argmax(sizes))
    events = source.get("reward") != "raw" and bool(np.isin(rewards, (0.0, 1.0)).all())
    steps, ends = windows.lengths - 1, windows.terminated[windows.offsets + windows.lengths - 1]
    limit = source.get("max_steps") or (steps[~ends].max() if not ends.all() else max(steps.max(), LEAST_STEPS))
    name = str(source.get("env", episodes.folder.resolve().name)).rpartition(":")[2].lower()
    return DataFacts(
        episodes.folder, name, windows.action_space_json, windows.frames.shape[1:3], sizes[longest],
        episodes.paths[longest].name, (float(rewards.min()), float(rewards.max())), "event" if events else "raw",
        "reward" in source, max(int(limit), 1),
    )


def complete_recipe(
    recipe: RecipeConfig, facts: DataFacts, windows: Windows, *, init: WorldConfig | None, begun: RecipeConfig | None
) -> RecipeConfig:
    """Fill in what the recipe leaves to its data: the keys in `follow`, the action space and the scale of actions.

    A resumed run takes them, and its precision, from the recipe it began with (`begun`); a run from a checkpoint
    (`init`) keeps the scale of its actions, and its reward bins if they cover the data.
    """
    world, train = recipe.world, recipe.train
    if begun is not None:
        values = {key: _get(begun.world, key) for key in recipe.follow}
        scale = begun.world.action_scale
        train = replace(train, precision=begun.train.precision if train.precision == "auto" else train.precision)
    else:
        largest = max(map(abs, facts.rewards)) if facts.kind == "raw" else 1.0
        if init is not None and init.reward == facts.kind and init.outcome.largest_reward >= largest:
            largest = init.outcome.largest_reward
        known = {"name": facts.name, "max_episode_steps": facts.limit, "reward": facts.kind, "height": facts.size[0],
                 "width": facts.size[1], "outcome.largest_reward": largest or 1.0}
        values = {key: known[key] for key in recipe.follow}
        if init is not None and same_space(init.action_space, facts.action_space):
            scale = init.action_scale
        else:
            scale = action_scale(space_from_json(facts.action_space), windows.actions, windows.offsets)
    if world.action_scale is None:
        values["action_scale"] = scale
    if same_space(world.action_space, NO_ACTIONS):
        values["action_space"] = facts.action_space
    return RecipeConfig(_replaced(world, values), train)


def _get(world: WorldConfig, key: str) -> Any:
    return world.outcome.largest_reward if key == "outcome.largest_reward" else getattr(world, key)


def _replaced(world: WorldConfig, values: dict[str, Any]) -> WorldConfig:
    if "outcome.largest_reward" in values:
        largest = values.pop("outcome.largest_reward")
        values["outcome"] = replace(world.outcome, largest_reward=largest)
    return replace(world, **values)


def check_data(world: WorldConfig, facts: DataFacts, source: str) -> None:
    """Raise DataError with every way in which episodes do not fit a world, whose form comes from `source`."""
    wrong, size, (low, high) = [], (world.height, world.width), facts.rewards
    if not same_space(world.action_space, facts.action_space):
        wrong.append(("action space", f"{world.action_space:.200}", f"{facts.action_space:.200}"))
    if size != facts.size:
        wrong.append(("frames (height, width)", f"{size}", f"{facts.size}"))
    if world.text.kind == "t5" and not facts.longest:
        wrong.append(("texts (world.text.kind t5)", "some", "none"))
    if world.text.kind == "t5" and facts.longest >= world.text.length:
        needed = f"set world.text.length and world.flow.text_length to {facts.longest + 1}"
        found = f"{facts.longest} in {facts.longest_in}; {needed}, or shorten it"
        wrong.append(("bytes of a text", f"at most {world.text.length - 1}", found))
    if world.outcome.width and facts.kind != world.reward != "none" and (facts.kind == "raw" or facts.recorded):
        wrong.append(("kind of rewards (world.reward)", world.reward, f"{facts.kind}, {low:g} to {high:g}"))
    if world.outcome.width and world.reward == "raw" and max(-low, high) > world.outcome.largest_reward * (1 + 1e-6):
        expected = f"at most {world.outcome.largest_reward:g} in size (world.outcome.largest_reward)"
        wrong.append(("rewards", expected, f"{low:g} to {high:g}"))
    if wrong:
        listed = ". ".join(f"{name}: expected {expected}, found {found}" for name, expected, found in wrong)
        raise DataError(f"{facts.folder} does not fit {source}: {listed}")


def check_init(world: WorldConfig, init: WorldConfig, folder: Path | str, data: Path) -> None:
    """Raise DataError with every way in which a checkpoint to start from does not fit a completed recipe."""
    wrong = [
        (name, expected, found) for name, expected, found, same in (
            ("action space", world.action_space, init.action_space, same_space(world.action_space, init.action_space)),
            ("frames (height, width)", (world.height, world.width), (init.height, init.width), None),
            ("text.kind", world.text.kind, init.text.kind, None),
            ("reward", world.reward, init.reward, None),
        ) if not (expected == found if same is None else same)
    ]
    if wrong:
        listed = ". ".join(f"{name}: expected {want!s:.200}, found {found!s:.200}" for name, want, found in wrong)
        raise DataError(f"init {folder} does not fit the recipe and {data}: {listed}")


def print_facts(world: WorldConfig, facts: DataFacts) -> None:
    """Print what the world will learn of rewards and texts, and what it cannot."""
    low, high = facts.rewards
    said = f"{facts.folder}: rewards {low:g} to {high:g}"
    if not world.outcome.width or world.reward == "none":
        said += ", which this recipe does not learn (world.outcome.width, world.reward)"
    else:
        said += f", learned as {world.reward} up to {world.outcome.largest_reward:g} in size"
    if world.reward != "none" and low == high == 0:
        said += "; no reward ever: negative ones are recorded by collect --reward raw only"
    if world.text.kind == "none" and facts.longest:
        said += "; its texts are not read (world.text.kind none)"
    if world.action_scale is not None:
        said += "; actions are read as (action - offset) / scale, see world.action_scale in config.json"
    print(f"train: {said}", file=sys.stderr)
