"""Detection of BabyAI frames that depend on an object picked up before the frames in a world's context."""

import numpy as np

from starflow_world.data.episodes import Episode

HANDS = (3, 4)
"""Numbers of the actions that pick up and drop."""


def needs_memory(episode: Episode, context: int, begin: int = 0) -> np.ndarray:
    """Return a mask (T - begin,) bool of the frames whose pick-up or drop depends on an object that was picked up
    before the last `context` frames; `begin` is the first frame in the context."""
    carrying, actions = episode.info.get("carrying"), episode.actions[begin:].argmax(1)
    needed = np.zeros(len(actions), bool)
    if carrying is None:
        return needed
    held = [item is not None for item in carrying[begin:]]
    since = context if held[0] else 0
    for t in range(1, len(actions)):
        since = since + 1 if held[t - 1] else 0
        needed[t] = int(actions[t]) in HANDS and since > context - 2
    return needed
