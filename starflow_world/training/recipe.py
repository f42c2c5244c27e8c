"""Completion of a recipe from its data, and checks that recipe, data and initial checkpoint agree.

Keys of `world` that a recipe leaves out (`RecipeConfig.follow`) are filled in from the episodes; then the episodes, the
held-out episodes and the initial checkpoint are compared with the recipe. An error lists all mismatches.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from starflow_world.config.train import RecipeConfig
from starflow_world.config.video import VideoConfig
from starflow_world.config.world import NO_ACTIONS, ActionScale, WorldConfig
from starflow_world.data.dataset import EpisodeDataset, Windows, origin
from starflow_world.errors import DataError
from starflow_world.model.actions import action_scale, same_space, space_from_json

LEAST_STEPS, LARGEST = 64, "outcome.largest_reward"


@dataclass(frozen=True)
class DataFacts:
    """Properties of a folder of episodes that a recipe has to match.

    size: (H, W) of frames. longest: UTF-8 bytes of the longest text, in the episode `longest_in`. rewards: lowest and
    highest. kind: "event" if all rewards are 0 or 1, else "raw"; `recorded`: the collection's metadata states it.
    limit: the step limit in the metadata, else the longest episode that did not terminate, or LEAST_STEPS.
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
    """Compute the properties of a dataset from all of its episodes and the collection's metadata."""
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
    """Fill in the keys that a recipe takes from its data: those in `follow`, the action space and the action scale. A
    resumed run takes them, and its precision, from the recipe it began with (`begun`); a run from a checkpoint (`init`)
    keeps the checkpoint's action scale, and its reward bins if they cover the data."""
    world, train, (first, space) = recipe.world, recipe.train, (begun or recipe, facts.action_space)
    if begun is not None:
        known, scale = {**vars(begun.world), LARGEST: begun.world.outcome.largest_reward}, begun.world.action_scale
        train = replace(train, precision=begun.train.precision if train.precision == "auto" else train.precision)
    else:
        largest = max(map(abs, facts.rewards)) if facts.kind == "raw" else 1.0
        if init is not None and init.reward == facts.kind and init.outcome.largest_reward >= largest:
            largest = init.outcome.largest_reward
        known = {"name": facts.name, "max_episode_steps": facts.limit, "reward": facts.kind, "height": facts.size[0],
                 "width": facts.size[1], LARGEST: largest or 1.0}
        scale = scale_of_actions(windows, init)
    values = {key: known[key] for key in recipe.follow}
    outcome = replace(world.outcome, largest_reward=values.pop(LARGEST, world.outcome.largest_reward))
    values["action_scale"] = world.action_scale or scale
    values["action_space"] = space if same_space(first.world.action_space, NO_ACTIONS) else first.world.action_space
    return RecipeConfig(replace(world, outcome=outcome, **values), train)


def scale_of_actions(windows: Windows, known: WorldConfig | VideoConfig | None) -> ActionScale | None:
    """Return the action scale of the model `known` if it has the same action space, else compute it from the data."""
    if known is not None and same_space(known.action_space, windows.action_space_json):
        return known.action_scale
    return action_scale(space_from_json(windows.action_space_json), windows.actions, windows.offsets)


def check_data(world: WorldConfig, facts: DataFacts, source: str) -> None:
    """Raise DataError that lists every mismatch of episodes and a world; `source` names the world's origin."""
    size, text, outcome, (low, high) = (world.height, world.width), world.text, world.outcome, facts.rewards
    kinds = facts.kind == world.reward or world.reward == "none" or (facts.kind == "event" and not facts.recorded)
    longest = (f"{facts.longest} in {facts.longest_in}; set world.text.length and world.flow.text_length to "
               f"{facts.longest + 1}, or shorten it")
    covered = world.reward != "raw" or max(-low, high) <= outcome.largest_reward * (1 + 1e-6)
    _refuse(f"{facts.folder} does not fit {source}", (
        (same_space(world.action_space, facts.action_space), "action space", world.action_space, facts.action_space),
        (size == facts.size, "frames (height, width)", size, facts.size),
        (text.kind != "t5" or facts.longest > 0, "texts (world.text.kind t5)", "some", "none"),
        (text.kind != "t5" or facts.longest < text.length, "bytes of a text", f"at most {text.length - 1}", longest),
        (not outcome.width or kinds, "kind of rewards (world.reward)", world.reward,
         f"{facts.kind}, {low:g} to {high:g}"),
        (not outcome.width or covered, "rewards",
         f"at most {outcome.largest_reward:g} in size (world.outcome.largest_reward)", f"{low:g} to {high:g}"),
    ))


def check_init(world: WorldConfig, init: WorldConfig, folder: Path | str, data: Path) -> None:
    """Raise DataError that lists every mismatch of an initial checkpoint and a completed recipe."""
    size, other = (world.height, world.width), (init.height, init.width)
    _refuse(f"init {folder} does not fit the recipe and {data}", (
        (same_space(world.action_space, init.action_space), "action space", world.action_space, init.action_space),
        (size == other, "frames (height, width)", size, other),
        (world.text.kind == init.text.kind, "text.kind", world.text.kind, init.text.kind),
        (world.reward == init.reward, "reward", world.reward, init.reward),
    ))


def _refuse(what: str, comparisons: Iterable[tuple[bool, str, object, object]]) -> None:
    """Raise DataError that lists the comparisons (fits, name, expected, found) with `fits` false, if any."""
    wrong = [f"{name}: expected {expected!s:.200}, found {found!s:.200}" for fits, name, expected, found in comparisons
             if not fits]
    if wrong:
        raise DataError(f"{what}: {'. '.join(wrong)}")


def print_facts(world: WorldConfig, facts: DataFacts) -> None:
    """Print to stderr which rewards, texts and action scale of the data the world will learn from or ignore."""
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
