"""Positions of objects in imagined frames beside the real ones, in open loop with the real actions."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from starflow_world.data.episodes import Episode
from starflow_world.evaluation.fidelity import rolled
from starflow_world.evaluation.intervals import Share
from starflow_world.world import World

Locator = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Function of frames (B, H, W, 3) u8 that returns the position (B, 2), x and y in pixels, of each object that it knows
by its name; NaN where the object is not seen."""


@torch.inference_mode()
def position_figures(
    world: World, episodes: Sequence[Episode], locate: Locator, horizons: Sequence[int] = (1, 16), seed: int = 0
) -> dict[str, dict[str, float | Share]]:
    """Return, for each object and horizon, the mean distance in pixels between its imagined and its real position where
    both are seen, the 95 % quantile, and the share of the frames that should show the object in which it is seen.

    Rollouts begin after `context` real frames of each episode, and again a horizon later until episodes are too short.
    """
    longest, given = max(horizons), world.config.context
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    begin = given - 1
    while some := [episode for episode in episodes if len(episode) > begin + longest]:
        for t, imagined, real in rolled(world, some, begin, longest, given=given, seed=seed):
            if t in horizons:
                there, here = locate(real), locate(imagined)
                for name in there:
                    pairs.setdefault(f"{name}_{t}", []).append((here[name], there[name]))
        begin += longest
    return {name: _figures(*map(np.concatenate, zip(*found, strict=True))) for name, found in sorted(pairs.items())}


def _figures(here: np.ndarray, there: np.ndarray) -> dict[str, float | Share]:
    due = ~np.isnan(there).any(1)
    seen = due & ~np.isnan(here).any(1)
    error = np.linalg.norm(here[seen] - there[seen], axis=1)
    wide = {"pixels": float(error.mean()), "pixels_95": float(np.quantile(error, 0.95))} if len(error) else {}
    return {**wide, "seen": Share(int(seen.sum()), int(due.sum()))}
