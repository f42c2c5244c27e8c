"""The reference's names of our parameters, and the sizes of a flow from the shapes of a reference state dict.

    reference                                    ours
    blocks.k, blocks.{last}                      shallow.k, deep            block 0 is nearest the data in both
    learnable_self_denoiser                      denoiser
    sos_embed (1, 1, c)                          start (c,)
    proj_in, proj_txt, final_norm, proj_out      project_in, project_text, norm, head
    attn_blocks.l.attention.{norm,qkv,proj}      layers.l.attention.{norm,qkv,out}
    attn_blocks.l.mlp.{norm,main.0,main.2}       layers.l.feed_forward.{norm,up,down}
"""

import re
from collections.abc import Mapping

from starflow_world.config.world import FlowConfig
from starflow_world.errors import ConfigError
from starflow_world.flow import Flow

Shapes = Mapping[str, tuple[int, ...]]

DENOISER = "learnable_self_denoiser"
PARTS = {
    "start": "sos_embed",
    "project_in": "proj_in",
    "project_text": "proj_txt",
    "norm": "final_norm",
    "head": "proj_out",
    "attention.norm": "attention.norm",
    "attention.qkv": "attention.qkv",
    "attention.out": "attention.proj",
    "feed_forward.norm": "mlp.norm",
    "feed_forward.up": "mlp.main.0",
    "feed_forward.down": "mlp.main.2",
}


def reference_name(name: str, shallow_blocks: int) -> str:
    """Return the reference's name of our parameter `name`."""
    room, rest = name.split(".", 1)
    if room == "shallow":
        index, rest = rest.split(".", 1)
        room = f"blocks.{index}"
    else:
        room = DENOISER if room == "denoiser" else f"blocks.{shallow_blocks}"
    if rest.startswith("layers."):
        _, index, rest = rest.split(".", 2)
        room = f"{room}.attn_blocks.{index}"
    part, leaf = (rest, "") if rest == "start" else rest.rsplit(".", 1)
    return ".".join(word for word in (room, PARTS[part], leaf) if word)


def reference_shapes(flow: Flow) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a reference state dict for this flow, without the entries that the model does not use."""
    count = flow.config.shallow_blocks
    return {
        reference_name(name, count): (1, 1, *t.shape) if name.endswith(".start") else tuple(t.shape)
        for name, t in flow.state_dict().items()
    }


def block_layers(shapes: Shapes) -> tuple[list[int], int]:
    """Return the number of transformer layers of each block, and that of the denoiser. Raises ConfigError."""
    layers: dict[str, int] = {}
    for name in shapes:
        if found := re.match(rf"(blocks\.\d{{1,3}}|{DENOISER})\.attn_blocks\.(\d{{1,3}})\.", name):
            layers[found[1]] = max(layers.get(found[1], 0), int(found[2]) + 1)
    denoiser = layers.pop(DENOISER, 0)
    blocks = [layers.get(f"blocks.{k}", 0) for k in range(max((int(room[7:]) + 1 for room in layers), default=0))]
    if not blocks:
        raise ConfigError("expected a STARFlow state dict with tensors named blocks.0.attn_blocks.0 ..., found "
                          f"{', '.join(sorted(shapes)[:3]) or 'no tensors'}")
    if len(blocks) + sum(blocks) + denoiser > len(shapes):
        raise ConfigError(f"expected several tensors per layer, found {len(shapes)} in all")
    if len(blocks) % 2:
        raise ConfigError(f"blocks: expected an even number, found {len(blocks)}, blocks.0 to .{len(blocks) - 1}; of "
                          "an odd number the deep one reads frames in reverse, which is not supported")
    return blocks, denoiser


def infer_config(
    shapes: Shapes, head_width: int, text_length: int, position_scale: float, window: int, look_ahead: int
) -> FlowConfig:
    """Infer sizes from shapes. A missing tensor counts as one head wide; the later strict comparison reports it."""
    (*shallow, deep_layers), layers = block_layers(shapes)
    deep = f"blocks.{len(shallow)}"
    shallow_width = axis(shapes, "blocks.0.proj_in.weight", 0, head_width)
    return FlowConfig(
        channels=axis(shapes, f"{deep}.proj_in.weight", 1, 1),
        shallow_blocks=len(shallow),
        shallow_layers=tuple(shallow) if len(set(shallow)) > 1 else shallow[0],
        shallow_width=shallow_width,
        deep_layers=deep_layers,
        deep_width=axis(shapes, f"{deep}.proj_in.weight", 0, head_width),
        head_width=head_width,
        text_length=text_length,
        text_width=axis(shapes, f"{deep}.proj_txt.weight", 1, 1),
        position_scale=position_scale,
        denoiser_layers=layers,
        denoiser_width=axis(shapes, f"{DENOISER}.proj_in.weight", 0, shallow_width),
        denoiser_window=window,
        denoiser_look_ahead=(look_ahead,) * layers,
        denoiser_text=f"{DENOISER}.proj_txt.weight" in shapes,
    )


def axis(shapes: Shapes, name: str, number: int, otherwise: int) -> int:
    """Return the size of an axis of a tensor; `otherwise` if there is none."""
    shape = shapes.get(name, ())
    return shape[number] if len(shape) > number else otherwise
