"""The past is learned: what only frames before the last one tell is predicted after a short training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from starflow_world.config.train import TrainConfig
from starflow_world.config.world import OutcomeConfig
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.data.episodes import Episode, episode_path, write_episode
from starflow_world.model.actions import space_to_json
from starflow_world.training.batches import Sampler
from starflow_world.training.world import WorldTrainer
from tests.squares import SMALL
from tests.worlds import no_text

PALETTE = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [240, 240, 240]], np.uint8)
FRAMES, PATCHES = 8, 16


def alternating(folder: Path, episodes: int, seed: int) -> EpisodeDataset:
    """Write episodes in which two random pictures of 16 patches take turns, so that each tells nothing of the other."""
    rng = np.random.default_rng(seed)
    for index in range(episodes):
        two = PALETTE[rng.integers(4, size=(2, 4, 4))].repeat(2, axis=1).repeat(2, axis=2)
        frames = two[np.arange(FRAMES) % 2]
        none, zeros = np.zeros(FRAMES, bool), np.zeros(FRAMES, np.float32)
        actions = np.eye(2, dtype=np.float32)[np.zeros(FRAMES, int)]
        actions[0] = 0
        space = space_to_json(spaces.Discrete(2))
        write_episode(episode_path(folder, index), Episode(frames, actions, zeros, none, none, "", space))
    return EpisodeDataset(folder)


@pytest.mark.timeout(300)
def test_what_was_shown_two_frames_before_is_learned(tmp_path: Path) -> None:
    """A picture of 16 random patches of four colours costs 22 nats, and less than 2 when it has been seen before."""
    flow = replace(SMALL.flow, deep_width=64, head_width=32, deep_layers=2, components=4, features_width=16)
    changes = no_text(flow) | {"outcome": OutcomeConfig(width=0)}
    world = replace(SMALL, action_space=space_to_json(spaces.Discrete(2)), **changes)
    config = TrainConfig(steps=150, frames=96, lengths=(4,), starts=0, events=0, warmup=20, precision="f32",
                         learning_rate=4e-3, site_learning_rate=1e-2)
    made = WorldTrainer(world, config, alternating(tmp_path / "train", 300, seed=0).memory_map())
    made.fit_codec()
    for _ in range(config.steps):
        made.advance()
    held_out = alternating(tmp_path / "valid", 30, seed=1).memory_map()
    unknown, all_three = (
        made.validate(Sampler(held_out, replace(config, lengths=(length,), action_dropout=0.0)))["valid_excess"]
        for length in (2, 4)
    )
    assert unknown == pytest.approx(PATCHES * np.log(4), rel=0.1)
    assert 3 * all_three - unknown < 2 * 2.0, "nats of the third and the fourth frame, which the first two tell"
