"""What is shown again after it was gone: the frames from which a world learns to use its history.

Only earlier frames tell what a thing looks like that is put down again, or seen again. Such frames are few: drawn
evenly they are too few for the history to be learned, so the sampler (batches.py) draws more of them.
"""

from dataclasses import dataclass

import numpy as np

from starflow_world.data.dataset import Windows

CONTENTS = 1000
"""Contents that reappear are drawn equally often, but none more often than if there were so many of them."""


@dataclass(frozen=True)
class Reappearances:
    """Contents of patches that are shown again: `contents` (R,) uint64 is shown in `frames` (R,), not in the frame
    before, and was last shown `gaps` (R,) > 1 frames earlier in the same episode."""

    frames: np.ndarray
    gaps: np.ndarray
    contents: np.ndarray


NOTHING = Reappearances(np.zeros(0, int), np.zeros(0, int), np.zeros(0, np.uint64))


def reappearances(windows: Windows, patch: int, most: int = 500_000, chunk: int = 8192) -> Reappearances:
    """Find what reappears in the first `most` frames (whole episodes), as patches of `patch` x `patch` pixels, equal to
    the bit, at any place. Noise hides them. Frames are read in chunks of about `chunk`."""
    rng, found = np.random.default_rng(0), list[Reappearances]()
    ends = (windows.offsets + windows.lengths)[windows.offsets < most]
    patch = min(patch, *windows.frames.shape[1:3])
    height, width = (size // patch * patch for size in windows.frames.shape[1:3])
    words = -(-patch * patch * 3 // 8)
    factors = rng.integers(1 << 63, size=words, dtype=np.uint64) * 2 + 1
    begin = 0
    while begin < ends[-1]:
        next_end, last_end = np.searchsorted(ends, (begin, begin + chunk), side="right")
        end = int(ends[max(next_end, last_end - 1)])  # whole episodes
        frames = np.asarray(windows.frames[begin:end, :height, :width])
        cells = frames.reshape(-1, height // patch, patch, width // patch, patch, 3).swapaxes(2, 3)
        flat = cells.reshape(len(frames), -1, patch * patch * 3)
        padded = np.zeros((*flat.shape[:2], words * 8), np.uint8)
        padded[..., : flat.shape[2]] = flat
        contents = (padded.view(np.uint64) * factors).sum(-1)
        episode = np.searchsorted(windows.offsets, np.arange(begin, end), side="right").astype(np.uint64)
        key = (contents ^ (episode * np.uint64(0x9E3779B97F4A7C15))[:, None]).ravel()
        order = key.argsort(kind="stable")
        frame, same = order // contents.shape[1], key[order][1:] == key[order][:-1]
        gap = np.diff(frame)
        again = np.flatnonzero(same & (gap > 1))
        found.append(Reappearances(begin + frame[again + 1], gap[again], contents.ravel()[order[again + 1]]))
        begin = end
    return Reappearances(*(np.concatenate([getattr(part, name) for part in found]) for name in vars(found[0])))
