"""Small worlds with random weights, made on the spot: the fixtures of the state, env and scoring tests.

There are two kinds: mixtures, as worlds are that this project trains, and one normal per channel, as published.
"""

from dataclasses import replace
from pathlib import Path

import torch
from gymnasium import spaces

from starflow_world.check.golden import CONFIG
from starflow_world.config.world import NO_ACTIONS, CodecConfig, FlowConfig, TextConfig, WorldConfig
from starflow_world.flow.density import MixtureHead
from starflow_world.model.actions import space_to_json
from starflow_world.model.checkpoint import save_checkpoint, save_starts
from starflow_world.model.networks import Networks
from starflow_world.world import Starts, World

_FLOW = replace(CONFIG.flow, channels=12)
TINY = replace(
    CONFIG, height=16, width=16, action_space=NO_ACTIONS, codec=CodecConfig("patch", patch=1, merge=2),
    flow=replace(_FLOW, shallow_blocks=0, denoiser_layers=0),
)
"""A mixture per site of tokens of 2 x 2 pixels, behind features of the last frame and no shallow block."""
PUBLISHED: dict[str, object] = {
    "codec": CodecConfig("patch", patch=2),
    "flow": replace(_FLOW, shallow_blocks=2, sites=1, components=1, features_width=0),
}
"""Changes that make of it a world as published: one normal per channel behind shallow blocks, and a denoiser."""
KINDS: dict[str, dict[str, object]] = {"mixtures": {}, "as published": PUBLISHED}


def tiny_config(space: spaces.Space | None = None, **changes: object) -> WorldConfig:
    """The config of a tiny world with 16x16 frames of 64 tokens and a window of 6 frames."""
    described = space_to_json(space or spaces.Discrete(4))
    return replace(TINY, action_space=described, **changes)  # type: ignore[arg-type]


def randomise(networks: Networks, gain: float = 0.5, seed: int = 0) -> Networks:
    """Random weights for every part that starts at zero, small enough that the flow is contractive, and a codebook."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in networks.named_parameters():
        closed = ("head.weight", "head.bias", "head.out.weight", "head.out.bias", "project.weight", "norm.weight")
        if name.endswith(closed):
            scale = gain * (parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1)
            parameter.data = scale * torch.randn(parameter.shape, generator=generator).to(parameter)
    if isinstance(networks.flow.deep.head, MixtureHead):
        book = networks.flow.deep.head.codebook
        book.code.copy_(gain * torch.randn(book.code.shape, generator=generator))
        book.chance.copy_((gain * torch.randn(book.components, generator=generator)).log_softmax(0))
    return networks


def tiny_world(
    space: spaces.Space | None = None, *, dtype: torch.dtype = torch.float32, gain: float = 0.5, **changes: object
) -> World:
    """A world with random weights; the same arguments give the same world."""
    torch.manual_seed(0)
    networks = Networks(tiny_config(space, **changes))
    return World(randomise(networks, gain).to(dtype))


def no_text(flow: FlowConfig = TINY.flow) -> dict[str, object]:
    """Changes that make a tiny world without text."""
    return {"text": TextConfig(), "flow": replace(flow, text_length=0, text_width=0)}


def env_world(
    space: spaces.Space | None = None, *, dtype: torch.dtype = torch.float32, size: int = 8, **changes: object
) -> World:
    """A tiny world of 16 tokens with a start set, whose episodes seldom end by themselves: what the env tests step."""
    torch.manual_seed(0)
    networks = randomise(Networks(tiny_config(space, **{"height": size, "width": size} | changes)))
    if networks.outcome is not None:
        networks.outcome.read.bias.data[-1] -= 9.0
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (8, size, size, 3), dtype=torch.uint8, generator=generator)
    networks.codec.fit(frames.repeat(8, 1, 1, 1))
    texts = tuple("abcdefgh") if networks.text is not None else ("",) * 8
    return World(networks.to(dtype), starts=Starts(frames, texts))


def save_world(world: World, folder: Path) -> Path:
    """Write a world and its start set as a checkpoint folder."""
    save_checkpoint(folder, world.networks, {"name": world.config.name})
    if world.starts is not None:
        save_starts(folder, world.starts.frames, world.starts.texts)
    return folder
