"""Anomaly statistics of single frames, which use neither history nor flow.

Likelihood models rate simple images as more likely than the training data (Nalisnick et al. 2019), and an empty frame
after an empty frame is easy to predict. Three statistics compensate: the distance of patches to those of normal frames
(novelty, as in PatchCore, Roth et al. 2022), the compressed size (complexity, Serra et al. 2020), and the codec's
reconstruction error (residual).

Shapes: T frames, n tokens of c channels; a token is m x m patches of c / m^2 numbers.
"""

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from starflow_world.codec import Codec

PROTOTYPES, LARGEST_SAMPLE = 512, 50_000
DETAIL = 64
"""Quantization steps per unit of a latent; patches that quantize to the same values count as equal."""


def distinct_patches(latents: Sequence[np.ndarray], side: int) -> Tensor:
    """Return the distinct patches (N, k) in latents (T, n, c) of several episodes, in deterministic order."""
    distinct: set[bytes] = set()
    for frames in latents:
        patches = np.rint(_patches(torch.from_numpy(frames), side).flatten(0, 2).numpy() * DETAIL).astype(np.int16)
        distinct.update(row.tobytes() for row in np.unique(patches, axis=0))
    rows = np.stack([np.frombuffer(row, np.int16) for row in sorted(distinct)])
    keep = np.linspace(0, len(rows) - 1, min(len(rows), LARGEST_SAMPLE)).astype(int)
    return torch.from_numpy(rows[keep].astype(np.float32) / DETAIL)


def prototypes(patches: Tensor, most: int = PROTOTYPES) -> Tensor:
    """Select K <= most patches (K, k) that cover `patches` (N, k): repeatedly add the patch that is farthest from those
    selected (Gonzalez 1985)."""
    chosen = [0]
    distance = (patches - patches[0]).square().sum(-1)
    while len(chosen) < min(most, len(patches)):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (patches - patches[chosen[-1]]).square().sum(-1))
    return patches[chosen]


def novelty(latents: Tensor, known: Tensor, side: int, sigma: float) -> Tensor:
    """Return novelty (T, n) in nats: d^2 / (2 sigma^2) for the largest distance d of a token's patches to `known`."""
    patches = _patches(latents.float(), side)
    nearest = torch.stack([torch.cdist(frame.flatten(0, 1), known).amin(-1) for frame in patches])
    rounding = known.shape[1] ** 0.5 / (2 * DETAIL)
    far = (nearest.unflatten(1, patches.shape[1:3]) - rounding).clamp_min(0)
    return far.amax(-1).square() / (2 * sigma**2)


def residual(codec: Codec, frames: Tensor, latents: Tensor, side: int) -> Tensor:
    """Return the root mean square error (T, n), in grey levels, of decoded latents against frames (T, H, W, 3) u8; each
    token has side x side pixels, fewer at the bottom and right of a frame that is padded."""
    back = codec.decode(latents[None])[0][0].to(frames.device)
    wrong = (back.float() - frames.float()).square().mean(-1)
    return F.avg_pool2d(wrong, side, ceil_mode=True).sqrt().flatten(1)


def complexity(frames: np.ndarray) -> np.ndarray:
    """Return the zlib-compressed size (T,), in nats, of each of frames (T, H, W, 3) u8."""
    return np.array([8 * math.log(2) * len(zlib.compress(frame.tobytes(), 6)) for frame in frames])


def _patches(latents: Tensor, side: int) -> Tensor:
    """Split tokens into patches, (T, n, c) -> (T, n, side^2, c / side^2)."""
    return latents.unflatten(-1, (side**2, -1))
