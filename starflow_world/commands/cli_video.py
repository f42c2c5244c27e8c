"""Verbs of the published video model: convert, generate, plan. They dispatch, as cli.py does."""

from pathlib import Path

import tyro


def convert(
    checkpoint: tyro.conf.Positional[Path], *, out: Path, config: str = "", dtype: str = "bfloat16",
    head_width: int = 64, text_length: int = 256, position_scale: float = 32.0,
) -> None:
    """Read a published STARFlow-V checkpoint, one tensor at a time, and write it as sharded safetensors.

    Args:
        checkpoint: a .pth or .safetensors file, or a folder that torch's distributed checkpoints wrote.
        out: new folder for the shards, their index and video.json.
        config: starflow-v-7b, or a YAML file: the tensors must be those that it says; empty: sizes come from shapes.
        dtype: of the weights: bfloat16, float16, float32, or source for that of the checkpoint.
        head_width: width of an attention head (without config).
        text_length: text tokens the model was trained with (without config).
        position_scale: pt_seq_len of the model (without config).
    """
    import torch

    from starflow_world.config.reading import to_dict
    from starflow_world.config.video import load_video_config
    from starflow_world.errors import ConfigError
    from starflow_world.video.convert import convert as run

    kinds = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "source": None}
    if dtype not in kinds:
        raise ConfigError(f"dtype: expected one of {', '.join(kinds)}, found {dtype!r}")
    known = load_video_config(config) if config else None
    found = run(checkpoint, out, known, dtype=kinds[dtype], head_width=head_width, text_length=text_length,
                position_scale=position_scale)
    print(f"{out}: {to_dict(found)}")


def generate(
    model: tyro.conf.Positional[Path], *, prompt: str, out: Path = Path("out/generated.mp4"), image: Path | None = None,
    video: Path | None = None, extend: bool = False, frames: int = 81, aspect: str = "16:9", fps: int = 0,
    guidance: float | None = None, seed: int = 0, text: str = "", vae: str = "", cache: Path | None = None,
    device: str = "auto", dtype: str = "auto",
) -> None:
    """Make a video from text, from an image or from a video, by a converted STARFlow-V.

    Args:
        model: folder that convert wrote.
        prompt: what to show.
        out: MP4 file, written as it is made (PNG for one frame).
        image: first frame.
        video: clip that is translated, or goes on (--extend).
        extend: go on with the video instead of translating it.
        frames: 1 + 4k, of the result: 81, 161, 481 ...; past the model's window it slides.
        aspect: 21:9, 16:9, 3:2, 5:4, 1:1, 4:5, 2:3, 9:16 or 9:21.
        fps: frames per second, which the model reads; 0: as it was trained.
        guidance: how far from what an empty prompt gives; 0: not at all; none: as the model says.
        seed: the same seed gives the same video.
        text: folder or hub name of the T5 encoder, if not the model's own.
        vae: folder or hub name of the Wan VAE, if not the model's own.
        cache: folder for the states of prompts; none: prompts/ in the model's folder.
        device: auto, cpu, cuda ...
        dtype: auto (bfloat16, float32 on a CPU), bfloat16 or float32.
    """
    from starflow_world.video.model import Request, VideoModel
    from starflow_world.video.model import generate as run

    request = Request(prompt, frames, aspect, fps, guidance, seed, image, video, extend)
    loaded = VideoModel.load(model, text=text, codec=vae, cache=cache or model / "prompts", device=device, dtype=dtype)
    print(run(loaded, request, out))


def plan(
    *, config: str = "starflow-v-7b", gpu: str = "h200", aspect: str = "16:9", frames: int = 81,
    guidance: float | None = None, measured: bool = False, device: str = "cuda",
) -> None:
    """Print what a video model needs: memory, and the time below which no GPU gets, from arithmetic.

    Args:
        config: starflow-v-7b, or a YAML file.
        gpu: h200, h100, a100 or rtx4090.
        aspect: of the pictures, as for generate.
        frames: of the video.
        guidance: 0: none; none given: as the model says.
        measured: also time deep sweeps with random weights on `device`.
        device: where sweeps are timed.
    """
    from starflow_world.config.video import load_video_config
    from starflow_world.video.requirements import measure
    from starflow_world.video.requirements import plan as run

    known = load_video_config(config)
    print(run(known, gpu, aspect=aspect, frames=frames, guidance=guidance))
    if measured:
        print(measure(known, gpu, aspect=aspect, guidance=guidance, device=device))
