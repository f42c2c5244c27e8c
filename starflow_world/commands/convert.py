"""`starflow-world convert`: a published STARFlow-V checkpoint as sharded safetensors."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class Convert:
    """Read a published STARFlow-V checkpoint, one tensor at a time, and write it as sharded safetensors."""

    checkpoint: Positional[Path]
    """A .pth or .safetensors file, or a folder that torch's distributed checkpoints wrote."""
    out: Path
    """New folder for the shards, their index and video.json."""
    config: str = ""
    """Model whose tensors the checkpoint must have: starflow-v-7b, a YAML file, or that of the published program
    (`arguments:`); empty: sizes come from the shapes in the checkpoint."""
    weights: str = ""
    """Which weights of several, such as ema; empty: those that are no moving average."""
    dtype: str = "bfloat16"
    """Type of the weights: bfloat16, float16, float32, or source for the widest of the checkpoint."""
    head_width: int | None = None
    """Width of an attention head; needed if neither --config nor the checkpoint's unused buffers say it."""
    text_length: int | None = None
    """Text tokens the model was trained with; needed as --head-width is."""
    position_scale: float | None = None
    """Pt_seq_len of the model; needed as --head-width is."""
    denoiser_window: int | None = None
    """Frames that a denoiser layer sees beside the last visible one; none: those of --config, or 10 as published."""
    denoiser_look_ahead: int | None = None
    """Future frames that each denoiser layer sees, temporal_causal - 1; none: those of --config, or 1 as published."""

    def run(self) -> None:
        """Convert, and print the config."""
        import torch

        from starflow_world.config.reading import to_dict
        from starflow_world.errors import ConfigError
        from starflow_world.video.convert import convert

        kinds = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "source": None}
        if self.dtype not in kinds:
            raise ConfigError(f"dtype: expected one of {', '.join(kinds)}, found {self.dtype!r:.60}")
        written = convert(
            self.checkpoint, self.out, self.config or None, dtype=kinds[self.dtype], weights=self.weights,
            head_width=self.head_width, text_length=self.text_length, position_scale=self.position_scale,
            denoiser_window=self.denoiser_window, denoiser_look_ahead=self.denoiser_look_ahead,
        )
        print(f"{self.out}: {to_dict(written)}")
