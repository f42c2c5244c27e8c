"""All trained parts of a world in one module: its state dict is the checkpoint."""

from torch import Tensor, nn

from .codec import make_codec
from .conditioning import ActionEncoder, TextEncoder, space_from_json
from .config import WorldConfig
from .flow import Flow
from .flow.diffusion import Diffusion
from .outcome import OutcomeHead


class Networks(nn.Module):
    """codec, flow, action encoder, and text encoder, start diffusion and outcome head where the config has them."""

    def __init__(self, config: WorldConfig) -> None:
        super().__init__()
        self.config = config
        self.codec = make_codec(config)
        self.flow = Flow(config.flow)
        self.action = ActionEncoder(space_from_json(config.action_space), config.flow.deep_width)
        self.text = TextEncoder(config.text) if config.text.kind != "none" else None
        self.start = Diffusion(config.start, config.flow) if config.start.width else None
        self.outcome = None
        if config.outcome.width:
            self.outcome = OutcomeHead(config.outcome, config.flow)

    def encode_text(self, texts: list[str]) -> Tensor | None:
        """States (B, L, width) of one string per row, each distinct string encoded once; None without text."""
        if self.text is None:
            return None
        distinct = sorted(set(texts))
        return self.text(distinct)[[distinct.index(text) for text in texts]]
