"""Joining folders of episodes that agree."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from starflow_world.data.dataset import COLLECTION, EpisodeDataset, origin
from starflow_world.data.episodes import HEADER, episode_path, read_header
from starflow_world.errors import DataError
from starflow_world.io.files import atomic, claim, not_written, recorded

OWN = ("source",)
"""Facts of a folder in which those that are joined may differ."""


def merge(folders: Sequence[Path | str], out: Path | str, *, progress: bool = True) -> Path:
    """Copy the episodes of folders, in this order, into the folder `out`, and return it.

    All have one frame size, one action space and one environment, recorded in one way (`origin`), and no two episodes
    are equal. An interrupted merge goes on where it stopped. Raises DataError naming what differs.
    """
    if len(folders) < 2:
        raise DataError(f"merge: expected two folders or more, found {len(folders)}")
    out, sets = Path(out), [EpisodeDataset(folder) for folder in folders]
    first, facts = sets[0], _facts(sets[0])
    for other in sets[1:]:
        _check_equal(first, facts, other)
    paths = [path for one in sets for path in one.paths]
    _check_different(paths)
    recipes = [_recipe(one) for one in sets]
    sources = [recipe["source"] for recipe in recipes if "source" in recipe]
    recipe = {**facts, **({"source": sources} if sources else {}), "merged": [
        {"folder": one.folder.resolve().name, "episodes": len(one), "recipe": recipe}
        for one, recipe in zip(sets, recipes, strict=True)
    ]}
    claim(out / COLLECTION, {"recipe": recipe, "episodes": len(paths), "packages": {}}, key="recipe")
    for index, path in enumerate(tqdm(paths, desc=out.name, unit="episode", disable=not progress)):
        target = episode_path(out, index)
        if not target.exists() or _seal(target) != _seal(path):
            try:
                with atomic(target) as temporary:
                    shutil.copyfile(path, temporary)
            except OSError as error:
                raise DataError(not_written(target, error)) from error
    return out


def _facts(episodes: EpisodeDataset) -> dict[str, Any]:
    return {key: value for key, value in origin(episodes.folder).items() if key not in OWN}


def _recipe(episodes: EpisodeDataset) -> dict[str, Any]:
    recipe = recorded(episodes.folder / COLLECTION).get("recipe")
    return recipe if isinstance(recipe, dict) else {}


def _check_equal(first: EpisodeDataset, facts: dict[str, Any], other: EpisodeDataset) -> None:
    """Raise DataError that lists the facts in which two folders differ."""
    size, theirs = (read_header(one.paths[0]).shape[1:3] for one in (first, other))
    found = _facts(other)
    wrong = [f"{key}: expected {facts.get(key, 'none')!s:.120}, found {found.get(key, 'none')!s:.120}"
             for key in sorted(facts | found) if facts.get(key) != found.get(key)]
    if size != theirs:
        wrong.append(f"frames (height, width): expected {size}, found {theirs}")
    if first.action_space_json != other.action_space_json:
        wrong.append(f"action space: expected {first.action_space_json:.200}, found {other.action_space_json:.200}")
    if wrong:
        raise DataError(f"{other.folder} does not fit {first.folder}: {'. '.join(wrong)}")


def _check_different(paths: Sequence[Path]) -> None:
    """Raise DataError where two files have the same content."""
    known: dict[bytes, int] = {}
    for index, path in enumerate(paths):
        if (twin := known.setdefault(_seal(path), index)) != index:
            raise DataError(f"{path}: expected an episode that is in no other folder, found the one of {paths[twin]}; "
                            "leave one of the folders out")


def _seal(path: Path) -> bytes:
    """Return the checksum at the beginning of an episode file."""
    with path.open("rb") as file:
        return file.read(HEADER)
