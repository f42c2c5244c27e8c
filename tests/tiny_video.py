"""Small models of exactly the published structure with random weights: a T5 encoder, a Wan VAE, a reference flow."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from starflow_world.config.video import VideoConfig, load_video_config
from starflow_world.config.world import DecodeConfig, FlowConfig
from starflow_world.flow import Flow
from starflow_world.io.media import VideoWriter, fitted, read_video
from starflow_world.video.convert import convert, reference_name
from starflow_world.world import World
from starflow_world.world.state import Transition, WorldState

PUBLISHED = load_video_config("starflow-v-7b")
TINY_VIDEO = replace(
    PUBLISHED, name="tiny", side=32, window=4, context=2, denoise_window=4, denoise_overlap=2,
    decode=DecodeConfig(tolerance=1e-5, chunk=0, max_sweeps=0),
    flow=FlowConfig(
        channels=6, shallow_blocks=5, shallow_layers=1, shallow_width=24, deep_layers=2, deep_width=48, head_width=24,
        text_length=80, text_width=24, denoiser_layers=2, denoiser_width=24, denoiser_window=2,
        denoiser_look_ahead=(1, 1),
    ),
)
TEXT, SEED = "a red dog.", 3
ALTERED = {"missing": "is missing", "unknown": "is unknown", "not finite": "1 that are NaN or infinite"}
"""What may be wrong with a tensor of a foreign model, and how it is said."""
PIECES = ["▁", *"abcdefghijklmnopqrstuvwxyzAINLV0123456789:()."]


def tiny_t5(folder: Path, seed: int = 0) -> Path:
    """A T5 encoder of width 24 with a vocabulary of letters, as a folder of the hub would be."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")] + [(piece, -3.0) for piece in PIECES]
    T5Tokenizer(vocab=[*pieces, ("▁video", -1.0)], extra_ids=0).save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = T5Config(
        vocab_size=64, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    T5EncoderModel(sizes).eval().save_pretrained(folder)
    return folder


def tiny_wan(folder: Path, seed: int = 0) -> Path:
    """A Wan2.2 VAE of 6 channels, 16 pixels per token; the latents of its pictures have means and deviations."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(seed)
    vae = AutoencoderKLWan(
        base_dim=4, decoder_base_dim=4, z_dim=6, dim_mult=[1, 2, 4, 4], num_res_blocks=1, attn_scales=[],
        temperal_downsample=[False, True, True], is_residual=True, in_channels=12, out_channels=12, patch_size=2,
        scale_factor_temporal=4, scale_factor_spatial=16,
        latents_mean=[-0.3, 0.1, 0.2, -0.1, 0.4, 0.0], latents_std=[0.5, 0.7, 1.1, 0.9, 1.3, 0.8],
    )
    vae.eval().save_pretrained(folder)
    return folder


def altered(folder: Path, name: str, how: str) -> Path:
    """A folder of a foreign model whose tensor `name` is one of ALTERED."""
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    if how == "missing":
        del tensors[name]
    elif how == "unknown":
        tensors[f"{name}.more" if name in tensors else name] = torch.zeros(2)
    else:
        tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, path, {"format": "pt"})
    return folder


def tiny_reference(path: Path, config: VideoConfig = TINY_VIDEO, gain: float = 0.3, seed: int = 0) -> Path:
    """A state dict with the names of a published checkpoint for `config`; no map of it is trivial."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    flow, state = Flow(config.flow), {}
    for name, tensor in flow.state_dict().items():
        if ".head." in name or name.endswith("head.weight"):
            scale = gain * (tensor.shape[-1] ** -0.5 if tensor.ndim > 1 else 0.2)
            tensor = scale * torch.randn(tensor.shape, generator=generator)
        if name.endswith(".start"):
            tensor = tensor.reshape(1, 1, -1)
        state[reference_name(name, config.flow.shallow_blocks)] = tensor.detach().clone()
    state |= unused_buffers(config.flow)
    torch.save(state, path)
    return path


def unused_buffers(flow: FlowConfig) -> dict[str, Tensor]:
    """The buffers of a published checkpoint that nothing reads, as files of a few bytes."""
    square, zero = int(flow.position_scale) ** 2, torch.zeros(1, 1)
    rows = square + flow.text_length
    tables = {f"feat_rope.freqs_{part}": zero.expand(rows, flow.head_width) for part in ("cos", "sin")}
    masks = {f"blocks.{k}.attn_mask": zero.expand(rows, rows) for k in range(flow.shallow_blocks + 1)}
    return {"var": zero.expand(square, flow.channels), **tables, **masks}


def tiny_video(folder: Path, config: VideoConfig = TINY_VIDEO, dtype: torch.dtype | None = None) -> Path:
    """The tiny flow after a conversion."""
    convert(tiny_reference(folder.with_suffix(".pth"), config), folder, config, dtype=dtype)
    return folder


def tiny_folders(root: Path, config: VideoConfig = TINY_VIDEO) -> dict[str, Path]:
    """All that the tiny model needs: its own folder, those of its text encoder and codec, and one for prompts."""
    return {"model": tiny_video(root / "tiny", config), "text": tiny_t5(root / "t5"), "vae": tiny_wan(root / "wan"),
            "cache": root / "prompts"}


def tiny_video_world(root: Path, **changes: object) -> Path:
    """The folder of a tiny model that names its own text encoder and codec, so that it opens as a world."""
    parts = {"text": str(tiny_t5(root / "t5")), "codec": str(tiny_wan(root / "wan"))}
    return tiny_video(root / "tiny", replace(TINY_VIDEO, **parts, **changes))  # type: ignore[arg-type]


def stepped(
    world: World, steps: int, state: WorldState, action: int | None = None
) -> tuple[WorldState, list[Transition]]:
    """Steps of all rows, and what happened in each."""
    seen = []
    for _ in range(steps):
        state, transition = world.step(state, [action] * len(state))
        seen.append(transition)
    return state, seen


def sized(world: World, clip: Path) -> Tensor:
    """The frames (1, T, H, W, 3) of a video file in the size of a world."""
    size = world.config.height, world.config.width
    return torch.from_numpy(np.stack([fitted(frame, size) for frame in read_video(clip, 99)]))[None]


def moving_spot(path: Path, frames: int) -> Path:
    """A video whose bright spot moves."""
    with VideoWriter(path, 16) as video:
        for t in range(frames):
            frame = np.full((40, 64, 3), 40, np.uint8)
            frame[8:24, 2 * t % 44 : 2 * t % 44 + 16] = (220, 200, 90)
            video.add(frame)
    return path
