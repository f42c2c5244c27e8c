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
    """Model whose tensors the checkpoint must have, starflow-v-7b or a YAML file; empty: sizes come from shapes."""
    dtype: str = "bfloat16"
    """Type of the weights: bfloat16, float16, float32, or source for that of the checkpoint."""
    head_width: int = 64
    """Width of an attention head (without --config)."""
    text_length: int = 256
    """Text tokens the model was trained with (without --config)."""
    position_scale: float = 32.0
    """Pt_seq_len of the model (without --config)."""

    def run(self) -> None:
        """Convert, and print the config."""
        import torch

        from starflow_world.config.reading import to_dict
        from starflow_world.config.video import load_video_config
        from starflow_world.errors import ConfigError
        from starflow_world.video.convert import convert

        kinds = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "source": None}
        if self.dtype not in kinds:
            raise ConfigError(f"dtype: expected one of {', '.join(kinds)}, found {self.dtype!r:.60}")
        known = load_video_config(self.config) if self.config else None
        written = convert(self.checkpoint, self.out, known, dtype=kinds[self.dtype], head_width=self.head_width,
                          text_length=self.text_length, position_scale=self.position_scale)
        print(f"{self.out}: {to_dict(written)}")
