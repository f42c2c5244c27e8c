"""The trained parts of a world as one module, whose state dict is the checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from starflow_world.codec import Codec, make_codec
from starflow_world.codec.wan import VAE_FILES, WanCodec
from starflow_world.config.world import WorldConfig
from starflow_world.errors import ConfigError
from starflow_world.flow import Flow
from starflow_world.flow.precision import run_in
from starflow_world.model.actions import ActionEncoder, space_from_json
from starflow_world.model.rates import inference_precision
from starflow_world.model.reward_head import OutcomeHead
from starflow_world.model.t5 import T5Text, local_folder
from starflow_world.model.text import TextEncoder


@dataclass(frozen=True)
class PublishedText:
    """Text encoder of a published model: fills its prompt template; returns states (B, L, width)."""

    encoder: T5Text
    template: str

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Encode each distinct text once, or read its states from the encoder's folder."""
        return self.encoder.encode([self.template.replace("{}", text) for text in texts])


class Networks(nn.Module):
    """The networks of a world: codec, flow, action encoder; text encoder and outcome head if
    configured.

    The text encoder and codec of a published video model are not in a checkpoint; `attach` loads them.
    """

    def __init__(self, config: WorldConfig) -> None:
        super().__init__()
        self.config = config
        self.codec: Codec = make_codec(config)
        self.flow = Flow(config.flow)
        space = space_from_json(config.action_space)
        self.action = ActionEncoder(space, config.flow.deep_width, config.action_scale)
        self.text: TextEncoder | PublishedText | None = TextEncoder(config.text) if config.text.kind == "t5" else None
        self.outcome = None
        if config.outcome.width:
            self.outcome = OutcomeHead(config.outcome, config.flow)

    def prepare(self, device: torch.device, dtype: torch.dtype | str | None, prompts: Path) -> None:
        """Move to a device: the flow to run in `dtype` (flow/precision.py), the rest in at least float32. Load the
        separate parts of a published model. None: float32, or bfloat16 for a published model on a GPU; "auto": measured
        by `inference_precision`. Raises ConfigError, CheckpointError."""
        if dtype is None:
            large = self.config.published is not None and device.type != "cpu"
            dtype = torch.bfloat16 if large else torch.float32
        elif dtype == "auto":
            dtype = inference_precision(self.to(device).flow, device)
        if dtype not in (torch.float64, torch.float32, torch.bfloat16) or isinstance(dtype, str):
            raise ConfigError(f"dtype: expected auto, float64, float32 or bfloat16, found {dtype}")
        self.to(device)
        for part in self.children():
            if part is not self.flow:  # float32 copies of its weights would double the memory
                part.to(torch.promote_types(dtype, torch.float32))
        run_in(self.flow, dtype)
        if self.config.published is not None:
            self.attach(prompts, device, dtype)

    def attach(self, prompts: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Load what the config lists in `published`; `prompts`: folder for states of texts. Raises CheckpointError."""
        parts = self.config.published
        assert parts is not None
        if dtype == torch.float64:
            raise ConfigError(f"dtype: expected float32 or bfloat16, as published models run in, found {dtype}")
        encoder = T5Text(parts.text, self.config.text.length, cache=prompts, device=device, dtype=dtype)
        self.text = PublishedText(encoder, parts.template)
        folder = local_folder(parts.codec, VAE_FILES)
        codec = WanCodec.load(folder, device=device, dtype=dtype, later=parts.later, grid=self.config.grid)
        codec.check(self.config.channels, self.config.codec.patch)
        self.codec = codec

    def encode_text(self, texts: list[str]) -> Tensor | None:
        """Return states (B, L, width) of a string per row, encoding each distinct one once; None without text."""
        if self.text is None:
            return None
        distinct = sorted(set(texts))
        return self.text(distinct)[[distinct.index(text) for text in texts]]
