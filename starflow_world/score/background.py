"""Statistics of single frames, which use neither history nor flow.

Likelihoods rate simple pictures as more likely than the training data (Nalisnick et al. 2019), and an empty frame after
an empty frame is easy to predict. So a frame is also compared with the patches of normal frames (novelty, as in
PatchCore, Roth et al. 2022), with its compressed size (Serra et al. 2020), and with its reconstruction by the codec
(residual).

Shapes: T frames, n tokens of c channels; a token is m x m patches of c / m^2 numbers.
"""

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from starflow_world.codec import Codec

PROTOTYPES, LARGEST_SAMPLE = 512, 50_000
DETAIL = 64
"""Patches whose numbers agree within 1 / DETAIL count as equal."""


def distinct_patches(latents: Sequence[np.ndarray], side: int) -> Tensor:
    """Return the distinct patches (N, k) in latents (T, n, c), in an order that depends on the data alone."""
    distinct: set[bytes] = set()
    for frames in latents:
        patches = np.rint(_patches(torch.from_numpy(frames), side).flatten(0, 2).numpy() * DETAIL).astype(np.int16)
        distinct.update(row.tobytes() for row in np.unique(patches, axis=0))
    rows = np.stack([np.frombuffer(row, np.int16) for row in sorted(distinct)])
    keep = np.linspace(0, len(rows) - 1, min(len(rows), LARGEST_SAMPLE)).astype(int)
    return torch.from_numpy(rows[keep].astype(np.float32) / DETAIL)


def prototypes(patches: Tensor, most: int = PROTOTYPES) -> Tensor:
    """Select K <= most patches (K, k) so that none of `patches` is far from all of them, by adding the farthest patch
    repeatedly (Gonzalez 1985)."""
    chosen = [0]
    distance = (patches - patches[0]).square().sum(-1)
    while len(chosen) < min(most, len(patches)):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (patches - patches[chosen[-1]]).square().sum(-1))
    return patches[chosen]


def novelty(latents: Tensor, known: Tensor, side: int, sigma: float) -> Tensor:
    """Return (T, n) nats: the distance of a token's strangest patch to the nearest known one under noise of sigma."""
    patches = _patches(latents.float(), side)
    nearest = torch.stack([torch.cdist(frame.flatten(0, 1), known).amin(-1) for frame in patches])
    rounding = known.shape[1] ** 0.5 / (2 * DETAIL)
    far = (nearest.unflatten(1, patches.shape[1:3]) - rounding).clamp_min(0)
    return far.amax(-1).square() / (2 * sigma**2)


def residual(codec: Codec, frames: Tensor, latents: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return (T, n): the root mean square error, in grey levels, of frames (T, H, W, 3) u8 decoded from latents."""
    back = codec.decode(latents[None])[0][0].to(frames.device)
    wrong = (back.float() - frames.float()).square().mean(-1)
    (h, w), (height, width) = grid, wrong.shape[1:]
    return wrong.unflatten(2, (w, width // w)).unflatten(1, (h, height // h)).mean((2, 4)).sqrt().flatten(1)


def complexity(frames: np.ndarray) -> np.ndarray:
    """Return (T,) nats: the compressed size of each of frames (T, H, W, 3) u8."""
    return np.array([8 * math.log(2) * len(zlib.compress(frame.tobytes(), 6)) for frame in frames])


def _patches(latents: Tensor, side: int) -> Tensor:
    """Split tokens into patches, (T, n, c) -> (T, n, side^2, c / side^2)."""
    return latents.unflatten(-1, (side**2, -1))
