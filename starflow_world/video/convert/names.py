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
from collections.abc import Iterable, Mapping

from starflow_world.config.world import FlowConfig
from starflow_world.errors import ConfigError
from starflow_world.flow import Flow

Shapes = Mapping[str, tuple[int, ...]]

NOT_READ = {*(f"blocks.{k}.attn_mask" for k in range(6)), "var", "feat_rope.freqs_cos", "feat_rope.freqs_sin"}
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


def infer_config(
    shapes: Shapes, head_width: int, text_length: int, position_scale: float, window: int, look_ahead: int
) -> FlowConfig:
    """Infer sizes from shapes. A missing tensor counts as one head wide; the later strict comparison reports it."""

    def size(name: str, axis: int, otherwise: int) -> int:
        shape = shapes.get(name, ())
        return shape[axis] if len(shape) > axis else otherwise

    shallow = _count(shapes, r"blocks\.(\d{1,3})\.attn_blocks\.") - 1
    deep = f"blocks.{shallow}"
    if shallow < 0:
        raise ConfigError("expected a STARFlow state dict with tensors named blocks.0.attn_blocks.0 ..., found "
                          f"{', '.join(sorted(shapes)[:3]) or 'no tensors'}")
    layers, deep_layers, shallow_layers = (
        _count(shapes, rf"{room}\.attn_blocks\.(\d{{1,3}})\.") for room in (DENOISER, deep, "blocks.0")
    )
    if shallow * shallow_layers + deep_layers + layers > len(shapes):
        raise ConfigError(f"expected several tensors per layer, found {len(shapes)} in all")
    text_width = size(f"{deep}.proj_txt.weight", 1, 0)
    shallow_width = size("blocks.0.proj_in.weight", 0, head_width)
    return FlowConfig(
        channels=size(f"{deep}.proj_in.weight", 1, 1),
        shallow_blocks=shallow,
        shallow_layers=shallow_layers if shallow else 0,
        shallow_width=shallow_width,
        deep_layers=deep_layers,
        deep_width=size(f"{deep}.proj_in.weight", 0, head_width),
        head_width=head_width,
        text_length=text_length if text_width else 0,
        text_width=text_width,
        position_scale=position_scale,
        denoiser_layers=layers,
        denoiser_width=size(f"{DENOISER}.proj_in.weight", 0, shallow_width),
        denoiser_window=window,
        denoiser_look_ahead=(look_ahead,) * layers,
        denoiser_text=f"{DENOISER}.proj_txt.weight" in shapes,
    )


def _count(names: Iterable[str], pattern: str) -> int:
    """Return one more than the largest number that `pattern` matches in the names."""
    matches = (re.match(pattern, name) for name in names)
    return max((int(match[1]) + 1 for match in matches if match), default=0)
