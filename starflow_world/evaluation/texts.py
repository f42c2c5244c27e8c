"""What another text does in the middle of an episode: it may change what is rewarded, and not what is seen."""

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from starflow_world.data.episodes import Episode
from starflow_world.evaluation.fidelity import actions_of
from starflow_world.evaluation.intervals import Share
from starflow_world.world import World

REWARDED, SAME = 0.5, 32
"""A reward above REWARDED counts; frames are the same if no pixel differs by more than SAME grey levels."""


@torch.inference_mode()
def changed_text(world: World, episodes: Sequence[Episode], *, most: int = 60, seed: int = 0) -> dict[str, Share]:
    """Imagine the last frame of episodes that end with a reward, with their text and with that of another episode.

    Returns shares: `own_text_reward` and `other_text_reward`, of frames with a reward above 0.5, and
    `other_text_same_frame`, of frames that look the same with either text. Empty for a world without texts.
    """
    ends = [e for e in episodes if len(e) > 1 and e.rewards[-1] > REWARDED][:most]
    texts = sorted({e.text for e in episodes})
    if world.networks.text is None or world.networks.outcome is None or len(texts) < 2 or not ends:
        return {}
    rng, own, other, same = np.random.default_rng(seed), 0, 0, 0
    for episode in tqdm(ends, desc="changed texts", unit="episode"):
        flat = actions_of([episode], len(episode))
        state, _ = world.start(episode.frames[None, :-1], flat[:, :-1], text=[episode.text], seed=seed)
        asked = world.with_text(state, str(rng.choice([text for text in texts if text != episode.text])))
        (_, kept), (_, changed) = (world.step(s, flat[:, -1]) for s in (state, asked))
        own += float(kept.reward[0]) > REWARDED
        other += float(changed.reward[0]) > REWARDED
        same += int((kept.frames.int() - changed.frames.int()).abs().max()) <= SAME
    return {"own_text_reward": Share(own, len(ends)), "other_text_reward": Share(other, len(ends)),
            "other_text_same_frame": Share(same, len(ends))}
