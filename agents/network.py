"""Network of agents: features of frames of any size, for every algorithm the same."""

import math

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

LARGEST_TILE, TILES = 8, 7


class Places(BaseFeaturesExtractor):
    """Feature extractor for what lies where, and for relative positions: frames (B, 3, H, W) -> features (B, width).

    A convolution maps tiles of up to 8 x 8 pixels (at least 7 tiles a side) to `pairs` pairs of maps. The maps
    themselves say what lies where. Each pair is also correlated over all shifts, as FlowNet (Dosovitskiy et al. 2015)
    correlates patches, but in Fourier space, where a correlation is a product: "the ball is two tiles to the left" is
    one feature at any position.
    """

    def __init__(
        self, observation_space: spaces.Box, pairs: int = 16, frequencies: int = 4, width: int = 64
    ) -> None:
        super().__init__(observation_space, width)
        channels, *sides = observation_space.shape
        tile = min(LARGEST_TILE, max(1, min(sides) // TILES))
        grid = -(-sides[0] // tile), -(-sides[1] // tile)
        self.fill = (0, grid[1] * tile - sides[1], 0, grid[0] * tile - sides[0])
        self.tiles = nn.Conv2d(channels, 2 * pairs, tile, tile)
        waves = _waves(grid, frequencies)
        self.register_buffer("waves", waves, persistent=False)
        self.norm = nn.LayerNorm(pairs * waves.shape[1])
        self.maps_norm = nn.LayerNorm(2 * pairs * grid[0] * grid[1])
        self.read = nn.Linear(pairs * waves.shape[1], width)
        self.read_maps = nn.Linear(2 * pairs * grid[0] * grid[1], width)

    def forward(self, pictures: Tensor) -> Tensor:
        maps = torch.relu(self.tiles(nn.functional.pad(pictures, self.fill) - 0.2)).flatten(2)
        where = self.read_maps(self.maps_norm(maps.flatten(1)))
        maps = maps - maps.mean(2, keepdim=True)
        first, second = (maps @ self.waves).chunk(2, dim=1)
        (real, imaginary), (other_real, other_imaginary) = first.chunk(2, dim=-1), second.chunk(2, dim=-1)
        same = real * other_real + imaginary * other_imaginary
        cross = real * other_imaginary - imaginary * other_real
        return torch.relu(where + self.read(self.norm(torch.cat((same, cross), dim=-1).flatten(1))))


def _waves(grid: tuple[int, int], frequencies: int) -> Tensor:
    """Return cosines, then sines, over the tiles: (h w, 2 m). The period is twice the side, so shifts do not wrap."""
    rows, columns = torch.arange(grid[0]), torch.arange(grid[1])
    down, right = torch.arange(-frequencies, frequencies + 1), torch.arange(frequencies + 1)
    turns = down[:, None, None, None] * rows[:, None] / grid[0] + right[:, None, None] * columns / grid[1]
    angles = math.pi * turns.reshape(-1, grid[0] * grid[1])
    return torch.cat((angles.cos(), angles.sin())).T.contiguous()
