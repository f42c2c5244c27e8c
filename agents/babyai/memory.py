"""BabyAI frames that depend on an object which the agent picked up before the frames that a world remembers."""

import numpy as np

from starflow_world.data.episodes import Episode

HANDS = (3, 4)
"""The actions that pick up and drop."""


def needs_memory(episode: Episode, context: int, begin: int = 0) -> np.ndarray:
    """Return the frames (T - begin,) bool whose pick-up or drop depends on an object that was picked up before the last
    `context` frames, where frame `begin` is the first that is seen."""
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
