"""What decoding by a Wan2.2 VAE takes, from arithmetic over the layers of its decoder.

Per latent frame: a convolution in, a middle block with attention, one up block per entry of `mult` (each with residual
blocks, all but the last with an upsampler), a convolution out. The first up blocks double the time, but not for the
first latent frame of a video.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

POINT, TIME, SQUARE, CUBE = 1, 3, 9, 27
"""Sizes of kernels: 1 x 1 x 1, 3 x 1 x 1, 1 x 3 x 3, 3 x 3 x 3."""
HELD = 2
"""Frames of its input that a causal convolution keeps for the next latent frame."""
ALIVE = 4
"""Tensors of the size of the largest activation that are in memory at a time, about."""


@dataclass(frozen=True)
class Decoder:
    """Sizes of a decoder; the defaults are those of the published Wan2.2 VAE."""

    channels: int = 48
    base: int = 256
    mult: tuple[int, ...] = (4, 4, 2, 1)
    residual: int = 2
    doubles: tuple[bool, ...] = (True, True, False)
    out: int = 12

    def _layers(self, h: int, w: int, *, first: bool) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield the convolutions over a latent frame of h x w: places, frames, inputs, outputs, size of the kernel."""
        dims, places, frames = [self.base * m for m in (self.mult[0], *self.mult)], h * w, 1
        yield places, frames, self.channels, self.channels, POINT
        yield places, frames, self.channels, dims[0], CUBE
        yield from [(places, frames, dims[0], dims[0], CUBE)] * 4
        yield from ((places, frames, dims[0], 3 * dims[0], POINT), (places, frames, dims[0], dims[0], POINT))
        for level, (inputs, outputs) in enumerate(pairwise(dims)):
            yield places, frames, inputs, outputs, CUBE
            if inputs != outputs:
                yield places, frames, inputs, outputs, POINT
            yield from [(places, frames, outputs, outputs, CUBE)] * (2 * self.residual + 1)
            if level < len(self.doubles):
                if self.doubles[level] and not first:
                    yield places, frames, outputs, 2 * outputs, TIME
                    frames *= 2
                places *= 4
                yield places, frames, outputs, outputs, SQUARE
        yield places, frames, dims[-1], self.out, CUBE

    def operations(self, h: int, w: int, *, first: bool = False) -> float:
        """Count the operations of one latent frame of h x w."""
        layers = self._layers(h, w, first=first)
        convolutions = sum(2 * places * frames * a * b * kernel for places, frames, a, b, kernel in layers)
        return convolutions + 4.0 * (h * w) ** 2 * self.base * self.mult[0]  # and attention in the middle

    def weight_bytes(self) -> int:
        """Return the bytes of its matrices in bfloat16."""
        return 2 * sum(a * b * kernel for _, _, a, b, kernel in self._layers(1, 1, first=False))

    def held_bytes(self, h: int, w: int) -> int:
        """Return the bytes that it keeps of a video in bfloat16: the last inputs of convolutions over time."""
        layers = self._layers(h, w, first=False)
        return sum(2 * HELD * places * a for places, _, a, _, kernel in layers if kernel in (CUBE, TIME))

    def activation_bytes(self, h: int, w: int) -> int:
        """Estimate the bytes that are alive at a time while a latent frame is decoded, in bfloat16."""
        layers = self._layers(h, w, first=False)
        return ALIVE * max(2 * places * frames * max(a, b) for places, frames, a, b, _ in layers)
