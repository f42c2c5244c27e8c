"""Settings and fitted values of a scorer, checks of episodes, and the statistics of frames."""

import json
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from starflow_world.data.episodes import Episode
from starflow_world.errors import DataError, ScorerError
from starflow_world.score.background import complexity, novelty, residual
from starflow_world.score.calibration import Change, Ranks
from starflow_world.score.evidence import Evidence
from starflow_world.score.tails import Tails
from starflow_world.world import World

SHORTEST = 2
WORST = 2
"""Number of tokens summed for the statistic `peak`. A sum over all tokens would hide a single surprising token; two
tokens cover an event on the border between them."""


@dataclass(frozen=True)
class Settings:
    """Settings of a scorer: scores are averaged over noise seeds seed .. seed + draws - 1; `window` is in frames."""

    false_alarms: float = 0.01
    run_length: int = 1000
    draws: int = 1
    seed: int = 0
    window: int = 8

    def __post_init__(self) -> None:
        if not isinstance(self.false_alarms, float) or not 0 < self.false_alarms < 1:
            raise ScorerError(f"false alarms: expected a rate between 0 and 1, found {self.false_alarms!r:.40}")
        for name, smallest in {"run_length": 1, "draws": 1, "seed": 0, "window": 1}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
                raise ScorerError(f"{name}: expected an integer >= {smallest}, found {value!r:.40}")

    @property
    def seeds(self) -> list[int]:
        """Return the seeds of the noise draws."""
        return [self.seed + draw for draw in range(self.draws)]


@dataclass(frozen=True)
class Fitted:
    """Values fitted on normal episodes: known patches (K, k), statistics' tails, calibrated ranks of frames, the change
    detector, and sorted scores (E,) of E calibration episodes."""

    known: Tensor
    tails: Tails
    ranks: Ranks
    change: Change
    episodes: np.ndarray


def check_episode(world: World, episode: Episode) -> None:
    """Raise DataError unless the world can score this episode."""
    if not isinstance(episode, Episode):
        raise DataError(f"episode: expected an Episode, found {type(episode).__name__}; build or read one")
    episode.validate()
    size, flat = (world.config.height, world.config.width, 3), world.networks.action.project.in_features - 1
    if len(episode) < SHORTEST:
        raise DataError(f"episode: expected at least {SHORTEST} frames, found {len(episode)}; leave it out")
    if episode.frames.shape[1:] != size:
        raise DataError(f"frames: expected the world's size {size}, found {episode.frames.shape[1:]}; resize them")
    if episode.actions.shape[1] != flat:
        raise DataError(f"actions: expected {flat} numbers each, as world {world.config.name} has them, found "
                        f"{episode.actions.shape[1]}; take episodes of its own environment")
    if episode.space != "{}" and json.loads(episode.space) != json.loads(world.config.action_space):
        raise DataError(f"action space: expected {world.config.action_space:.80}, found {episode.space:.80}; take "
                        "episodes of the world's own environment")


def group_count(world: World) -> int:
    """Return the number of groups of frames that are scaled separately: first frames, then one per Discrete action."""
    space = json.loads(world.config.action_space)
    return 1 + (int(space["n"]) if space["type"] == "Discrete" else 1)


def group_of(world: World, actions: np.ndarray) -> np.ndarray:
    """Return the group (T,) of each frame of an episode from the actions (T, flat) that led to the frames."""
    group = 1 + actions.argmax(1) if group_count(world) > 2 else np.ones(len(actions), np.int64)
    group[0] = 0
    return group


def frame_statistics(
    world: World, frames: np.ndarray, evidence: Evidence, known: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Return statistics (T, K) of frames (T, H, W, 3) u8 in the order of scores.PARTS, and surprise (T, h, w)."""
    codec, (h, w) = world.networks.codec, world.config.grid
    latents, shown = torch.from_numpy(evidence.latents), torch.from_numpy(frames)
    strange = novelty(latents, known, world.config.codec.merge, world.config.noise_level)
    side = world.config.codec.patch * world.config.codec.merge
    lost = residual(codec, shown, latents.to(world.dynamics.device), side)
    surprise, peak = evidence.surprise.sum(1), np.sort(evidence.surprise, axis=1)[:, -WORST:].sum(1)
    statistics = (
        surprise, peak, evidence.against.sum(1), strange.amax(1).double().numpy(), lost.amax(1).double().numpy(),
        surprise - complexity(frames),
    )
    return np.stack(statistics, axis=1), evidence.surprise.reshape(-1, h, w)
