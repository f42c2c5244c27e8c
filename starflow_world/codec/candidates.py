"""Choice of a codec: for each patch size the fewest components that keep the pixels that change, or a learned codec.

Components are counted by what they leave of pixels that differ from the frame before, since walls and floors would hide
the loss of a ball of one pixel; and by the largest error of one such pixel, since frequent changes would hide it too.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from starflow_world.codec.conv import ConvCodec
from starflow_world.codec.patch import PatchCodec
from starflow_world.config.world import CodecConfig

LARGEST_ERROR, LARGEST_PIXEL_ERROR = 0.5, 16.0
"""Root mean square and largest error, in grey levels, that a codec may leave on pixels that change."""
MOST_COMPONENTS, MOST_TOKENS = 32, 100
LEARNED_COMPONENTS, LEARNED_LEVEL = 16, 0.06
"""Components of a learned codec, and the noise that it is fitted with."""
MOST_FRAMES, MOST_CONTENTS = 512, 2048


@dataclass(frozen=True)
class Candidate:
    """A codec and what it makes of some frames.

    error, worst: root mean square and largest error, in grey levels, on pixels that change. tokens: per frame.
    contents: distinct sites. nearest: smallest distance, in latent units, between two of them that look different (by
    one grey level in root mean square); inf where all look alike.
    """

    codec: CodecConfig
    error: float
    worst: float
    tokens: int
    contents: int
    nearest: float

    @property
    def good(self) -> bool:
        """Return whether the codec keeps what changes, in few enough tokens."""
        return self.error < LARGEST_ERROR and self.worst <= LARGEST_PIXEL_ERROR and self.tokens <= MOST_TOKENS


def codec_candidates(episodes: Sequence[np.ndarray], patches: Iterable[int]) -> list[Candidate]:
    """Return codecs of each patch size, up to the first good one, for frames (T, H, W, 3) u8 of several episodes."""
    pairs = [(e[1:], (e[1:] != e[:-1]).any(-1)) for e in episodes if len(e) > 1]
    frames, changed = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*pairs, strict=True))
    moving = changed.flatten(1).any(1).nonzero()[:, 0] if changed.any() else torch.arange(1)
    if len(moving) > MOST_FRAMES:
        moving = moving[torch.linspace(0, len(moving) - 1, MOST_FRAMES).long()]
    every, candidates = torch.from_numpy(np.concatenate(episodes)), list[Candidate]()
    for patch in patches:
        if candidates and _tokens(every.shape[1:3], 2 * patch) > MOST_TOKENS:
            continue
        for candidate in _of_patch(every, frames[moving], changed[moving], patch):
            candidates.append(candidate)
            if candidate.good:
                return candidates
    return candidates


def best_candidate(candidates: Sequence[Candidate]) -> Candidate:
    """Return the first good candidate, else the one with the smallest error among those with few enough tokens."""
    good = [candidate for candidate in candidates if candidate.good]
    few = [candidate for candidate in candidates if candidate.tokens <= MOST_TOKENS] or list(candidates)
    return good[0] if good else min(few, key=lambda candidate: candidate.error)


def _of_patch(every: Tensor, frames: Tensor, changed: Tensor, patch: int) -> Iterator[Candidate]:
    """Yield the codecs of a patch size, fitted to `every` frame, judged by those that change: principal components, and
    a learned codec."""
    size = int(frames.shape[1]), int(frames.shape[2])
    merge = 2 if _tokens(size, 2 * patch) >= 4 else 1
    most = min(MOST_COMPONENTS, 3 * patch**2)
    codec = PatchCodec(CodecConfig("patch" if patch == 1 else "pca", patch, most, merge), size)
    codec.fit(every)
    latents = codec.encode(frames[None])[0].unflatten(-1, (merge**2, -1))

    def left(count: int) -> tuple[float, float]:
        kept = latents * (torch.arange(latents.shape[-1]) < count)
        return error_on_changes(codec.decode(kept.flatten(-2))[0][0], frames, changed)

    few, many = 1, most
    while few < many:  # the error falls with the components
        middle = (few + many) // 2
        error, worst = left(middle)
        few, many = (few, middle) if error < LARGEST_ERROR and worst <= LARGEST_PIXEL_ERROR else (middle + 1, many)
    lossless = few == 3 * patch**2
    error, worst = (0.0, 0.0) if lossless else left(few)
    codec = PatchCodec(CodecConfig("patch" if lossless else "pca", patch, few, merge), size)
    codec.fit(every)
    yield Candidate(codec.config, error, worst, _tokens(size, patch * merge), *_contents(codec, every))
    if 3 * patch**2 > LEARNED_COMPONENTS:
        learned = ConvCodec(CodecConfig("conv", patch, LEARNED_COMPONENTS, merge), size, LEARNED_LEVEL)
        learned.fit(every)
        error, worst = error_on_changes(learned.decode(learned.encode(frames[None])[0])[0][0], frames, changed)
        yield Candidate(learned.config, error, worst, _tokens(size, patch * merge), *_contents(learned, every))


def error_on_changes(made: Tensor, frames: Tensor, changed: Tensor) -> tuple[float, float]:
    """Return the root mean square and the largest error, in grey levels, of frames (N, H, W, 3) on pixels that change,
    changed (N, H, W)."""
    wrong = (made.float() - frames.float())[changed]
    return (float(wrong.square().mean().sqrt()), float(wrong.abs().max())) if len(wrong) else (0.0, 0.0)


def _contents(codec: PatchCodec, frames: Tensor) -> tuple[int, float]:
    """Return the number of distinct sites of frames, and the smallest distance between two that look different."""
    distinct = codec.distinct(frames)
    some = distinct[torch.linspace(0, len(distinct) - 1, min(MOST_CONTENTS, len(distinct))).long()]
    apart = torch.pdist(codec.sites(some))[torch.pdist(some.float()) >= some.shape[1] ** 0.5]
    return len(distinct), float(apart.min()) if len(apart) else math.inf


def _tokens(size: Sequence[int], side: int) -> int:
    return -(-size[0] // side) * -(-size[1] // side)
