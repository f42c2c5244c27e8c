"""What frames look like by themselves: scores that know no history and trust no flow.

Likelihoods rate simple pictures as more likely than what a model was trained on (Nalisnick et al. 2019), and an empty
frame behind an empty frame is easy to predict. So a frame is also held against the patches that normal frames are made
of (novelty, in the manner of PatchCore, Roth et al. 2022), against its own compressed size (Serra et al. 2020), and
against what the codec can say of it (residual).

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
"""Patches whose numbers agree within 1 / DETAIL are taken as one."""


def distinct_patches(latents: Sequence[np.ndarray], side: int) -> Tensor:
    """The distinct patches (N, k) in latents (T, n, c), in an order that the data decide alone."""
    found: set[bytes] = set()
    for frames in latents:
        patches = np.rint(_patches(torch.from_numpy(frames), side).flatten(0, 2).numpy() * DETAIL).astype(np.int16)
        found.update(row.tobytes() for row in np.unique(patches, axis=0))
    rows = np.stack([np.frombuffer(row, np.int16) for row in sorted(found)])
    keep = np.linspace(0, len(rows) - 1, min(len(rows), LARGEST_SAMPLE)).astype(int)
    return torch.from_numpy(rows[keep].astype(np.float32) / DETAIL)


def prototypes(patches: Tensor, most: int = PROTOTYPES) -> Tensor:
    """Patches (K, k), K <= most, such that no patch is far from all of them: the farthest one is added, again and
    again (Gonzalez 1985)."""
    chosen = [0]
    distance = (patches - patches[0]).square().sum(-1)
    while len(chosen) < min(most, len(patches)):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (patches - patches[chosen[-1]]).square().sum(-1))
    return patches[chosen]


def novelty(latents: Tensor, known: Tensor, side: int, sigma: float) -> Tensor:
    """(T, n): nats between a token's strangest patch and the nearest known one, seen through noise of sigma."""
    patches = _patches(latents.float(), side)
    nearest = torch.stack([torch.cdist(frame.flatten(0, 1), known).amin(-1) for frame in patches])
    rounding = known.shape[1] ** 0.5 / (2 * DETAIL)
    far = (nearest.unflatten(1, patches.shape[1:3]) - rounding).clamp_min(0)
    return far.amax(-1).square() / (2 * sigma**2)


def residual(codec: Codec, frames: Tensor, latents: Tensor, grid: tuple[int, int]) -> Tensor:
    """(T, n): root mean square error in grey levels of frames (T, H, W, 3) u8 that the codec made latents of."""
    back = codec.decode(latents[None])[0][0].to(frames.device)
    wrong = (back.float() - frames.float()).square().mean(-1)
    (h, w), (height, width) = grid, wrong.shape[1:]
    return wrong.unflatten(2, (w, width // w)).unflatten(1, (h, height // h)).mean((2, 4)).sqrt().flatten(1)


def complexity(frames: np.ndarray) -> np.ndarray:
    """(T,) nats: how long each of frames (T, H, W, 3) u8 is when it is compressed."""
    return np.array([8 * math.log(2) * len(zlib.compress(frame.tobytes(), 6)) for frame in frames])


def _patches(latents: Tensor, side: int) -> Tensor:
    """(T, n, c) -> (T, n, side^2, c / side^2)."""
    return latents.unflatten(-1, (side**2, -1))
