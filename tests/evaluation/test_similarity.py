"""Similarity of frames is what the definitions say."""

import numpy as np
import pytest

from starflow_world.evaluation.similarity import MOST_DB, psnr, ssim


def pictures(count: int = 3, height: int = 20, width: int = 15) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 246, (count, height, width, 3), dtype=np.uint8)


def test_equal_frames_have_the_largest_similarity_and_others_less() -> None:
    frames = pictures()
    assert psnr(frames, frames).tolist() == [MOST_DB] * 3
    assert ssim(frames, frames) == pytest.approx(np.ones(3))
    assert (ssim(frames, frames[::-1])[::2] < 0.2).all()


def test_psnr_is_that_of_the_mean_squared_error() -> None:
    frames = pictures()
    assert psnr(frames, frames + np.uint8(10)) == pytest.approx(np.full(3, 10 * np.log10(255**2 / 100)))


def test_ssim_is_that_of_the_published_formula_place_by_place() -> None:
    """A loop over the places and colours, as Wang et al. write it."""
    a, b = pictures(2, 13, 12)
    weights = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    weights = np.outer(weights, weights) / np.outer(weights, weights).sum()
    found = []
    for y in range(3):
        for x in range(2):
            for colour in range(3):
                one, two = (f[y : y + 11, x : x + 11, colour].astype(float) for f in (a, b))
                m, n = (weights * one).sum(), (weights * two).sum()
                v, w = (weights * (one - m) ** 2).sum(), (weights * (two - n) ** 2).sum()
                both = (weights * (one - m) * (two - n)).sum()
                c, d = 6.5025, 58.5225
                found.append((2 * m * n + c) * (2 * both + d) / ((m * m + n * n + c) * (v + w + d)))
    assert ssim(a[None], b[None])[0] == pytest.approx(np.mean(found))


@pytest.mark.parametrize("side", [1, 2, 10])
def test_small_frames_take_the_largest_window_that_fits(side: int) -> None:
    frames = pictures(2, side, side)
    assert ssim(frames, frames) == pytest.approx(np.ones(2))
