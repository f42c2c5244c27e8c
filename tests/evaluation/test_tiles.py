"""Tiles of grid worlds: what is recognised, and what comes into view."""

import numpy as np

from starflow_world.evaluation.tiles import nearest_tiles, tile_figures


def painted(kinds: np.ndarray) -> np.ndarray:
    """Return frames (..., 4 * rows, 4 * columns, 3) of tiles of one grey level per kind."""
    grey = (40 * kinds).astype(np.uint8).repeat(4, axis=-2).repeat(4, axis=-1)
    return np.repeat(grey[..., None], 3, axis=-1)


def test_a_tile_is_known_within_four_grey_levels() -> None:
    tiles = painted(np.array([[[1]], [[2]]]))
    frame = painted(np.array([[[1, 2], [2, 1]]]))
    frame[0, :4, 4:] += 4
    frame[0, 4:, :4] += 5
    assert nearest_tiles(frame, tiles).tolist() == [[[0, 1], [-1, 0]]]


def test_new_tiles_are_compared_kind_by_kind() -> None:
    real = np.ones((2, 3, 2, 2), np.int64)
    real[:, 1, 0, 0], real[:, 2, 0, 0] = 2, 3
    same = tile_figures(4, painted(real), painted(real[:, 1:]))
    assert same == {"tiles_known_1": 1.0, "new_tiles_variation_1": 0.0, "new_tiles_variation_real": 0.0}
    other = real[:, 1:].copy()
    other[:, 1, 0, 0] = 2  # once more what was there: nothing has come into view
    assert tile_figures(4, painted(real), painted(other))["new_tiles_variation_1"] == 0.5
    smeared = painted(real[:, 1:])
    smeared[0, 0, :4, :4] += 20
    assert tile_figures(4, painted(real), smeared)["tiles_known_1"] == 15 / 16


def test_rows_that_see_other_things_show_what_chance_is() -> None:
    real = np.ones((2, 2, 2, 2), np.int64)
    real[0, 1, 0, 0], real[1, 1, 0, 0] = 2, 3
    assert tile_figures(4, painted(real), painted(real[:, 1:]))["new_tiles_variation_real"] == 1.0


def test_pictures_without_tiles_have_no_figures() -> None:
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (2, 3, 32, 32, 3), dtype=np.uint8)
    assert tile_figures(4, real, real[:, 1:]) == {}
