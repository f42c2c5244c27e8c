"""Tiles of grid worlds: recognition, and how often each kind comes into view in imagined and in real frames."""

import numpy as np

RIGHT = 4.0
"""Largest root mean square error, in grey levels, of a cell that is right."""
UNREADABLE = -1
MOST_KINDS = 127


def nearest_tiles(frames: np.ndarray, tiles: np.ndarray) -> np.ndarray:
    """Return the index (B, rows, columns) int8 of the nearest of the tiles (K, h, w, 3) in each cell of frames
    (B, H, W, 3) u8; UNREADABLE where its root mean square error is above RIGHT grey levels."""
    cells = _cells(frames, *tiles.shape[1:3])
    flat = tiles.reshape(len(tiles), -1).astype(np.float32)
    pixels = cells.reshape(-1, flat.shape[1]).astype(np.float32)
    index = ((flat**2).sum(1) - 2 * pixels @ flat.T).argmin(1)
    error = np.sqrt(((pixels - flat[index]) ** 2).mean(1))
    return np.where(error <= RIGHT, index, UNREADABLE).astype(np.int8).reshape(cells.shape[:3])


def tile_figures(size: int, real: np.ndarray, imagined: np.ndarray) -> dict[str, float]:
    """Compare imagined frames (B, T, H, W, 3) u8 with the real ones (B, 1 + T, H, W, 3), of which the first is given.

    Returns the share of the imagined cells of `size` pixels that show a tile of the real frames, the total variation
    between the kinds of tile that come into view in imagined and in real frames (kinds of which a frame has more than
    the real frame before it), and the same between two halves of the rows. {} where the real frames have more than
    `MOST_KINDS` kinds of tile: no grid world.
    """
    tiles = tile_kinds(size, real.reshape(-1, *real.shape[2:]))
    if not len(tiles):
        return {}
    before, after, made = (
        count_tiles(nearest_tiles(frames.reshape(-1, *real.shape[2:]), tiles), len(tiles))
        for frames in (real[:, :-1], real[:, 1:], imagined)
    )
    known = made.sum() / (len(made) * after[0].sum())
    gained, drawn = (np.maximum(0, counts - before) for counts in (after, made))
    halves = gained.reshape(len(real), -1, len(tiles)).sum(1)
    return {
        "tiles_known_1": float(known), "new_tiles_variation_1": _variation(drawn.sum(0), gained.sum(0)),
        "new_tiles_variation_real": _variation(halves[::2].sum(0), halves[1::2].sum(0)),
    }


def tile_kinds(size: int, frames: np.ndarray) -> np.ndarray:
    """Return the kinds of tile (K, size, size, 3) u8 of frames (B, H, W, 3); none (K = 0) where there are more than
    `MOST_KINDS`: no grid world."""
    kinds = np.unique(_cells(frames, size, size).reshape(-1, size * size * 3), axis=0)
    return kinds.reshape(-1, size, size, 3)[: len(kinds) if len(kinds) <= MOST_KINDS else 0]


def _cells(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the cells (B, rows, columns, h, w, 3) of frames (B, H, W, 3); what is left over at the edges is cut."""
    rows, columns = frames.shape[1] // height, frames.shape[2] // width
    cells = frames[:, : rows * height, : columns * width].reshape(-1, rows, height, columns, width, 3)
    return cells.swapaxes(2, 3)


def count_tiles(index: np.ndarray, kinds: int) -> np.ndarray:
    """Return how many cells (B, kinds) of index (B, rows, columns) show each kind."""
    flat = index.reshape(len(index), -1)
    return np.stack([np.bincount(row[row >= 0], minlength=kinds) for row in flat])


def _variation(some: np.ndarray, others: np.ndarray) -> float:
    """Return the total variation between two distributions given as counts (kinds,)."""
    return float(np.abs(some / max(1, some.sum()) - others / max(1, others.sum())).sum() / 2)
