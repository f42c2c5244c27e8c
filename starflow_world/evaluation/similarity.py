"""Similarity of imagined and real frames, per frame: PSNR in dB and SSIM (Wang et al. 2004)."""

import numpy as np

MOST_DB = 60.0
"""PSNR of equal frames, which would be infinite, and the largest that is returned."""
SIDE, DEVIATION = 11, 1.5
STEADY = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(imagined: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Return the peak signal-to-noise ratio (B,) in dB of frames (B, H, W, 3) u8, at most MOST_DB."""
    error = ((imagined.astype(np.float64) - real) ** 2).mean((1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.asarray(np.minimum(MOST_DB, 20 * np.log10(255) - 10 * np.log10(error)))


def ssim(imagined: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Return the structural similarity (B,) of frames (B, H, W, 3) u8, averaged over places and colours: 1 is equal.

    The window is a Gaussian of 11 x 11 pixels with a deviation of 1.5, or the largest odd square that fits.
    """
    a, b = (np.moveaxis(frames.astype(np.float64), -1, 1) for frames in (imagined, real))
    rows, columns = (_weights(side) for side in a.shape[2:])

    def local(values: np.ndarray) -> np.ndarray:
        return np.asarray(rows @ values @ columns.T)

    mean_a, mean_b = local(a), local(b)
    squares, product = local(a * a) + local(b * b) - mean_a**2 - mean_b**2, local(a * b) - mean_a * mean_b
    light = (2 * mean_a * mean_b + STEADY[0]) / (mean_a**2 + mean_b**2 + STEADY[0])
    return np.asarray((light * (2 * product + STEADY[1]) / (squares + STEADY[1])).mean((1, 2, 3)))


def _weights(side: int) -> np.ndarray:
    """Return the matrix (places, side) that takes the weighted means of a line of pixels."""
    size = min(SIDE, side - 1 + side % 2)
    bell = np.exp(-0.5 * ((np.arange(size) - size // 2) / DEVIATION) ** 2)
    weights = np.zeros((side - size + 1, side))
    for place in range(len(weights)):
        weights[place, place : place + size] = bell / bell.sum()
    return weights
