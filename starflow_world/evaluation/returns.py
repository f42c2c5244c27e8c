"""What a world remembers: frames that return to a picture seen before, with the history and without it.

In a partial view (first person) a picture that comes back after others were seen can be known from history alone. Both
measurements compare the world's window of frames with the last frame by itself.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from starflow_world.data.episodes import Episode, flat_actions
from starflow_world.evaluation.ablations import one_frame_excess
from starflow_world.evaluation.fidelity import frame_excess, frames_right, standard_error
from starflow_world.evaluation.intervals import Share
from starflow_world.noise import make_key
from starflow_world.world import World

ROWS = 64


def returning(episode: Episode, context: int) -> np.ndarray:
    """Return a mask (T,) of frames that are equal to one of the `context` frames before them but not to the last."""
    frames, found = episode.frames, np.zeros(len(episode), bool)
    for t in range(2, len(episode)):
        before = frames[max(0, t - context) : t]
        same = (before == frames[t]).all((1, 2, 3))
        found[t] = same.any() and not same[-1]
    return found


@torch.inference_mode()
def return_figures(world: World, episodes: Sequence[Episode], seed: int = 0, most: int = 512) -> dict[str, Any]:
    """Return the excess nats of returning frames with history and with the last frame alone, the difference, which is
    what memory is worth, and the shares of exact frames imagined from both; {} if no frame returns."""
    masks = [returning(episode, world.config.context) for episode in episodes]
    if not any(mask.any() for mask in masks):
        return {}
    known = [e[m] for e, m in zip(frame_excess(world, episodes, seed=seed), masks, strict=True) if m.any()]
    alone = [e[m] for e, m in zip(one_frame_excess(world, episodes, seed), masks, strict=True) if m.any()]
    worth = [without - within for without, within in zip(alone, known, strict=True)]
    places = [(e, t) for e, mask in zip(episodes, masks, strict=True) for t in np.flatnonzero(mask).tolist()]
    chosen = np.random.default_rng(seed).permutation(len(places))[:most].tolist()
    some = [places[place] for place in sorted(chosen)]
    return {
        "return_frames": sum(map(len, known)), "return_nats": float(np.concatenate(known).mean()),
        "return_nats_alone": float(np.concatenate(alone).mean()), "memory_nats": float(np.concatenate(worth).mean()),
        "memory_nats_error": standard_error(worth),
        "return_exact": _exact(world, some, world.config.context, seed),
        "return_exact_alone": _exact(world, some, 1, seed),
    }


def _exact(world: World, places: Sequence[tuple[Episode, int]], history: int, seed: int) -> Share:
    """Return the share of exact frames imagined from at most `history` real frames before them."""
    right = Share(0, 0)
    lengths = sorted({min(t, history) for _, t in places})
    for length in lengths:
        group = [(e, t) for e, t in places if min(t, history) == length]
        for begin in range(0, len(group), ROWS):
            part = group[begin : begin + ROWS]
            frames = np.stack([e.frames[t - length : t] for e, t in part])
            flat = torch.stack([flat_actions(e)[t - length : t + 1] for e, t in part])
            state, _ = world.start(frames, flat[:, :-1], text=world.texts_for([e.text for e, _ in part]), seed=0)
            state = state.with_keys([make_key([seed, begin + row]) for row in range(len(part))])
            _, made = world.step(state, flat[:, -1], reuse=True)
            real = np.stack([e.frames[t] for e, t in part])
            same = frames_right(world, made.frames[:, 0].cpu().numpy(), real)
            right += Share(int(same.sum()), len(part))
    return right
