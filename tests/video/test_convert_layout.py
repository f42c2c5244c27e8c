"""configs/starflow_v_7b.yaml is the published model: its parameters have the names and shapes of the checkpoint.

The expected layout is written out here from the published table, without our names or modules.
"""

import torch
from torch import Tensor

from starflow_world.config.video import load_video_config
from starflow_world.flow import Flow
from starflow_world.video.convert import misfits, reference_name, reference_shapes
from starflow_world.video.convert.buffers import unused_names

Shapes = dict[str, tuple[int, ...]]
NOT_READ = unused_names(6)


def linear(name: str, out: int, width: int) -> Shapes:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def layer(name: str, width: int) -> Shapes:
    norms = {f"{name}.{part}.norm.{leaf}": (width,) for part in ("attention", "mlp") for leaf in ("weight", "bias")}
    return {
        **norms,
        **linear(f"{name}.attention.qkv", 3 * width, width),
        **linear(f"{name}.attention.proj", width, width),
        **linear(f"{name}.mlp.main.0", 4 * width, width),
        **linear(f"{name}.mlp.main.2", width, 4 * width),
    }


def block(name: str, width: int, layers: int, out: int) -> Shapes:
    shapes = {**linear(f"{name}.proj_in", width, 48), f"{name}.final_norm.weight": (width,)}
    for index in range(layers):
        shapes |= layer(f"{name}.attn_blocks.{index}", width)
    return {**shapes, **linear(f"{name}.proj_out", out, width)}


def published() -> Shapes:
    """All 558 entries of the state dict of the published 7B model."""
    shapes: Shapes = {}
    for index in range(5):
        shapes |= {f"blocks.{index}.sos_embed": (1, 1, 48), **block(f"blocks.{index}", 3072, 2, 96)}
    shapes |= {"blocks.5.sos_embed": (1, 1, 48), **block("blocks.5", 4096, 24, 96)}
    shapes |= linear("blocks.5.proj_txt", 4096, 2048)
    shapes |= block("learnable_self_denoiser", 3072, 8, 48) | linear("learnable_self_denoiser.proj_txt", 3072, 2048)
    shapes |= {f"blocks.{index}.attn_mask": (1280, 1280) for index in range(6)}
    return shapes | {"var": (1024, 48), "feat_rope.freqs_cos": (1280, 64), "feat_rope.freqs_sin": (1280, 64)}


def build() -> tuple[Flow, dict[str, Tensor]]:
    with torch.device("meta"):
        flow = Flow(load_video_config("starflow-v-7b").flow)
    return flow, dict(flow.named_parameters())


def test_the_published_config_has_549_parameters_of_the_published_names_and_shapes():
    flow, ours = build()
    expected = published()
    assert len(expected) == 558
    assert len(ours) == len(flow.state_dict()) == 549
    assert set(expected) - set(reference_shapes(flow)) == NOT_READ
    for name in NOT_READ:
        del expected[name]
    assert reference_shapes(flow) == expected
    assert misfits(expected, reference_shapes(flow)) == []


def test_the_published_config_has_as_many_parameters_as_the_paper_says():
    _, ours = build()
    counts = {"shallow": 0, "deep": 0, "denoiser": 0}
    for name, tensor in ours.items():
        counts[name.split(".")[0]] += tensor.numel()
    assert round(sum(counts.values()) / 1e9, 3) == 6.890
    assert round((counts["shallow"] + counts["deep"]) / 1e9, 3) == 5.977
    assert {part: round(count / 1e9, 3) for part, count in counts.items()} == {
        "shallow": 1.135, "deep": 4.842, "denoiser": 0.913,
    }


def test_every_parameter_has_a_name_of_its_own_in_the_reference():
    _, ours = build()
    assert len({reference_name(name, 5) for name in ours}) == len(ours)


def test_what_does_not_fit_the_published_layout_is_named():
    flow, _ = build()
    found = published()
    for name in NOT_READ:
        del found[name]
    del found["blocks.5.attn_blocks.23.mlp.main.2.bias"]
    found["blocks.2.proj_out.weight"] = (48, 3072)
    found["blocks.6.sos_embed"] = (1, 1, 48)
    assert misfits(found, reference_shapes(flow)) == [
        "blocks.5.attn_blocks.23.mlp.main.2.bias is missing",
        "blocks.6.sos_embed is unknown",
        "blocks.2.proj_out.weight has shape (48, 3072) instead of (96, 3072)",
    ]
