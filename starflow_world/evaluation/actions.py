"""What actions are worth: nats by which the true action explains a real frame better than other actions.

With a discrete action space (of at most MOST_ACTIONS), every action is tried at every frame; `action_nats` is the true
one against the mean over the actions that were taken elsewhere in the episodes, which is what shuffling gives on
average. With other spaces it is against the actions in another order.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from starflow_world.data.episodes import Episode, flat_actions
from starflow_world.evaluation.horizons import long_enough
from starflow_world.model.actions import every_action
from starflow_world.world import World

MOST_ACTIONS, MOST_ROWS, MOST_STEPS = 18, 16, 32
"""Limits of what is tried, as every action at every frame takes a pass."""


@torch.inference_mode()
def action_information(
    world: World, episodes: Sequence[Episode], *, rows: int = MOST_ROWS, steps: int = MOST_STEPS, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return values (E, T) of the T frames after `context` real ones, each given the real frames before it: `nats` of
    the frame, `action_nats` (module), and for discrete spaces `action_first`: 1 where no other action gives the frame a
    higher likelihood. NaN after the end of an episode."""
    given, some = world.config.context, long_enough(world, episodes, rows)
    steps = min(steps, len(some[0]) - given)
    flat = pad_sequence([flat_actions(episode) for episode in some], batch_first=True)
    taken = np.array([[len(episode) > given + t for t in range(steps)] for episode in some])
    tried, weights = _candidates(world, flat[:, given : given + steps], taken, seed)
    figures = {name: np.full(taken.shape, math.nan) for name in ("nats", "action_nats", "action_first")}
    known = np.stack([episode.frames[:given] for episode in some])
    texts = world.texts_for([episode.text for episode in some])
    state, _ = world.start(known, flat[:, :given], text=texts, seed=seed)
    for t in tqdm(range(steps), desc="what actions are worth", unit="frame"):
        frames = np.stack([episode.frames[min(given + t, len(episode) - 1)] for episode in some])
        others = [world.observe(state, one, frames)[1].nats for one in tried[:, :, t]]
        state, seen = world.observe(state, flat[:, given + t], frames, reuse=True)
        nats, other = seen.nats.double().cpu().numpy(), torch.stack(others, 1).double().cpu().numpy()
        found = {"nats": nats, "action_nats": nats - (other * weights).sum(1),
                 "action_first": (nats >= other.max(1) - 1e-4).astype(float)}  # the true one is tried too: rounding
        for name, values in found.items():
            figures[name][taken[:, t], t] = values[taken[:, t]]
    if len(weights) == 1:
        figures.pop("action_first")
    return figures


def _candidates(world: World, flat: Tensor, taken: np.ndarray, seed: int) -> tuple[Tensor, np.ndarray]:
    """Return the actions (K, E, T, 1 + A) to try and how often (K,) each was taken in `flat`, where `taken` (E, T): all
    of a discrete space, or those of `flat` in another order."""
    mask = torch.from_numpy(taken)
    if every := every_action(world.action_space, MOST_ACTIONS):
        counts = flat[mask][:, 1:].sum(0).double().numpy()
        tried = world.flatten(every)[:, None, None].expand(-1, *flat.shape[:2], -1)
        return tried, counts / max(1.0, counts.sum())
    other, order = flat.clone(), np.random.default_rng(seed).permutation(int(taken.sum()))
    other[mask] = flat[mask][torch.from_numpy(order)]
    return other[None], np.ones(1)
