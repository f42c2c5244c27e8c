"""Noise as a function of (key, step, purpose): no generator has a state.

Philox (Salmon et al. 2011) is counter-based: the noise of a batch element has the same bits at any batch size, order,
process and device.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

PURPOSES = {"prior": 0, "observation": 1, "end": 2, "posterior": 4, "luck": 5}
KEY_BITS = 63
_SECOND_KEY = 0x5742_4C46_5354_4152


def _generator(key: int, step: int, purpose: str) -> np.random.Generator:
    counter = [0, 0, step, PURPOSES[purpose]]
    return np.random.Generator(np.random.Philox(key=[key, _SECOND_KEY], counter=counter))


def normals(keys: Tensor, steps: Tensor, purpose: str, shape: Sequence[int]) -> Tensor:
    """Return standard normals (B, *shape) float32 for keys and steps (B,) int64."""
    rows = [
        _generator(key, step, purpose).standard_normal(tuple(shape))
        for key, step in zip(keys.tolist(), steps.tolist(), strict=True)
    ]
    return torch.from_numpy(np.stack(rows)).float()


def uniforms(keys: Tensor, steps: Tensor, purpose: str) -> Tensor:
    """Return one uniform number in [0, 1) per batch element, (B,) float64."""
    rows = [_generator(key, step, purpose).random() for key, step in zip(keys.tolist(), steps.tolist(), strict=True)]
    return torch.tensor(rows, dtype=torch.float64)


def make_key(seed: int | Sequence[int]) -> int:
    """Return the noise key of a user's seed (0 <= seed), or of several numbers."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]) >> (64 - KEY_BITS)
