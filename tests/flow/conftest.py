"""Flows and clips for the tests of the flow, in float64 unless a test asks for another dtype.

`init` is a fresh flow, `tiny` is random with output gain 0.5 (contractive), `wild` random with gain 2. All have text,
actions, a causal denoiser, two shallow blocks in opposite orders and 16 tokens x 4 channels per frame. `mixed` is
random with gain 0.5, without shallow blocks: its tokens end in mixtures, behind features of the last frame.
`golden` holds the numbers of a trusted implementation and the flow with its weights.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from starflow_world.config.world import FlowConfig
from starflow_world.flow import Flow, Tables
from starflow_world.flow.density import MixtureHead

SMALL = FlowConfig(
    channels=4, shallow_blocks=2, shallow_layers=1, shallow_width=40, deep_layers=2, deep_width=40, head_width=20,
    text_length=3, text_width=6, position_scale=4.0,
    denoiser_layers=2, denoiser_width=20, denoiser_window=1, denoiser_text=False,
)
MIXED = {
    "shallow_blocks": 0, "sites": 2, "components": 3, "head_inner": 8, "features_width": 4, "features_layers": 1,
    "denoiser_layers": 0,
}


@dataclass(frozen=True)
class Clip:
    """A flow and random inputs for it: noise (B, T, n, c + g), latents (B, T, n, c), texts (B or 1, L, w) and actions
    (B, T, d)."""

    flow: Flow
    tables: Tables
    noise: Tensor
    x: Tensor
    text: Tensor | None
    null_text: Tensor | None
    action: Tensor

    def to(self, dtype: torch.dtype) -> "Clip":
        """The same numbers in another dtype; the flow is a copy."""
        flow = Flow(self.flow.config).to(dtype).eval().requires_grad_(False)
        flow.load_state_dict(self.flow.state_dict())
        tables = flow.tables(self.tables.grid, self.tables.video.shape[1] // self.noise.shape[2])
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        cast = {name: value.to(dtype) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, flow=flow, tables=tables, **cast)

    def rows(self, rows: list[int]) -> "Clip":
        """The given rows."""
        return replace(
            self, noise=self.noise[rows], x=self.x[rows], action=self.action[rows],
            text=None if self.text is None else self.text[rows],
        )


def build(
    *, gain: float = 0.5, rows: int = 2, frames: int = 4, grid: tuple[int, int] = (4, 4), seed: int = 0,
    mixed: bool = False, **changes: Any,
) -> Clip:
    """A random flow of SMALL (`mixed`: with those of MIXED) with `changes`, and inputs. `gain` is about the standard
    deviation of what its heads give; 0 leaves the flow as it was initialized."""
    config = replace(SMALL, **{**(MIXED if mixed else {}), **changes})
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)

    def normals(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    flow = Flow(config).double().eval().requires_grad_(False)
    for name, value in flow.named_parameters() if gain else ():
        scale = gain if "head" in name else 1.0
        if value.ndim > 1:
            value.copy_(normals(*value.shape) * scale / value[0].numel() ** 0.5)
        else:
            value.add_(normals(*value.shape) * 0.2 * scale)
    if isinstance(flow.deep.head, MixtureHead):
        book = flow.deep.head.codebook
        book.code.copy_(normals(*book.code.shape))
        book.spread.fill_(0.5)
        book.chance.copy_(normals(book.components).log_softmax(0))
    tokens, texts = grid[0] * grid[1], config.text_width > 0
    return Clip(
        flow, flow.tables(grid, frames),
        noise=normals(rows, frames, tokens, flow.noise_channels),
        x=normals(rows, frames, tokens, config.channels),
        text=normals(rows, config.text_length, config.text_width) if texts else None,
        null_text=normals(1, config.text_length, config.text_width) if texts else None,
        action=0.5 * normals(rows, frames, config.deep_width),
    )


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., Clip]:
    """`build`, for tests that need another shape."""
    return build


@pytest.fixture(scope="session")
def init() -> Clip:
    """A fresh flow."""
    return build(gain=0)


@pytest.fixture(scope="session")
def tiny() -> Clip:
    """A random, contractive flow."""
    return build(gain=0.5)


@pytest.fixture(scope="session")
def wild() -> Clip:
    """A random flow whose outputs are large, and more frames."""
    return build(gain=2.0, frames=8)


@pytest.fixture(scope="session")
def mixed() -> Clip:
    """A random flow of mixtures."""
    return build(mixed=True)


class Golden:
    """The files of tests/golden, read when asked for, and the flow with their weights in float32 and float64.

    The weights take the way of a published checkpoint: saved as .pth, converted, loaded.
    """

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, dict[str, Tensor]] = {}
        self.source = folder / "reference.pth"
        state = {**self["forward"], **self["denoiser"]}
        torch.save({name: t for name, t in state.items() if name.startswith("model.")}, self.source)
        self.flow = self.converted(folder / "converted", denoiser_window=2)
        self.flow64 = copy.deepcopy(self.flow).double()

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        if name not in self.files:
            self.files[name] = load_file(Path(__file__).parent.parent / "golden" / f"{name}.safetensors")
        return self.files[name]

    def converted(self, folder: Path, *, denoiser_window: int) -> Flow:
        """The flow after a conversion to `folder`."""
        from starflow_world.model.checkpoint import load_flow  # the other tests of the flow do without files
        from starflow_world.video.convert import convert

        convert(
            self.source, folder, head_width=32, text_length=6, position_scale=5.0, denoiser_window=denoiser_window
        )
        return load_flow(folder).requires_grad_(False)

    @staticmethod
    def tokens(x: Tensor) -> Tensor:
        """(B, T, c, h, w) or an image (B, c, h, w) -> (B, T, n, c)."""
        x = x[:, None] if x.ndim == 4 else x
        return x.flatten(-2).transpose(-1, -2)

    @staticmethod
    def error(found: Tensor, expected: Tensor) -> float:
        """The largest absolute difference."""
        assert found.shape == expected.shape
        return float((found.double() - expected.double()).abs().max())


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """The golden numbers."""
    return Golden(tmp_path_factory.mktemp("golden"))
