"""The sizes that the shapes of a checkpoint's unused buffers state; no other tensor does.

    var                                   (s**2, c)              s: position scale (pt_seq_len), c: channels
    feat_rope.freqs_cos, freqs_sin        (L + s**2, e)          L: text length, e: head width
    blocks.k.attn_mask                    (L + s**2, L + s**2)
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from starflow_world.io.shards import refuse

VAR, FREQUENCIES, MASK = "var", ("feat_rope.freqs_cos", "feat_rope.freqs_sin"), "attn_mask"
UNUSED = re.compile(rf"{VAR}|feat_rope\.freqs_(cos|sin)|blocks\.\d+\.{MASK}")
STATED_BY = {"position_scale": VAR, "head_width": FREQUENCIES[0], "text_length": f"{VAR} and blocks.0.{MASK}"}
"""Names of the buffers that state each size."""


def unused_names(blocks: int) -> set[str]:
    """Return the names of all buffers of a checkpoint of so many blocks that nothing reads."""
    return {VAR, *FREQUENCIES, *(f"blocks.{k}.{MASK}" for k in range(blocks))}


def stated_sizes(path: Path, shapes: Mapping[str, tuple[int, ...]], blocks: int, channels: int) -> dict[str, int]:
    """Return position_scale, head_width and text_length as far as the buffers among `shapes` state them.

    Raises CheckpointError for buffers that contradict each other or the channels.
    """
    found = {name: shapes[name] for name in sorted(unused_names(blocks)) if name in shapes}
    sizes: dict[str, int] = {}
    if flat := [name for name, shape in found.items() if len(shape) != 2]:
        refuse(path, [f"{name} has shape {found[name]} instead of two axes" for name in flat])
    if VAR in found:
        sizes["position_scale"] = math.isqrt(found[VAR][0])
    square = sizes.get("position_scale", 0) ** 2
    rows = [shape[0] for name, shape in found.items() if name != VAR]
    if rows and square:
        sizes["text_length"] = max(rows[0] - square, 0)
    if widths := [found[name][1] for name in FREQUENCIES if name in found]:
        sizes["head_width"] = widths[0]
    expected = {
        name: (square if square else shape[0], channels) if name == VAR
        else (rows[0], sizes["head_width"] if name in FREQUENCIES else rows[0]) for name, shape in found.items()
    }
    refuse(path, [f"{name} has shape {shape} instead of {expected[name]}, as the other buffers say"
                  for name, shape in found.items() if shape != expected[name]])
    if square and rows and rows[0] <= square:
        refuse(path, [f"{name} has {rows[0]} rows, none of them for a text" for name in found if name != VAR])
    return sizes
