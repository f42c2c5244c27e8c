"""The denoiser of flow-score matching (STARFlow-V, section 3.2).

`Denoiser` is a transformer d(x) trained by regression on the gradient of the flow's negative log-probability. A Tweedie
step turns noisy latents into clean ones: x - step * d(x), where step * d estimates sigma**2 times that gradient. In
each layer, frame f attends to frames f + look_ahead - window .. f + look_ahead; without look-ahead it is causal. Where
no layer is said to look ahead the text sees no frame, so that what a frame depends on does not grow with the clip.
"""

import torch
from torch import Tensor, nn

from starflow_world.config.world import FlowConfig
from starflow_world.flow.block import Tables
from starflow_world.flow.layers import FinalNorm, Layer


class Denoiser(nn.Module):
    """Transformer from noisy latents (B, T, n, c) to d (B, T, n, c); reads the text if `config.denoiser_text`."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        width = config.denoiser_width
        self.window = config.denoiser_window
        ahead = config.denoiser_look_ahead
        self.look_ahead = ahead or (0,) * config.denoiser_layers
        self.shown_to_text = bool(ahead) and not any(ahead)
        self.project_in = nn.Linear(config.channels, width)
        text_width = config.text_width if config.denoiser_text else 0
        self.project_text = nn.Linear(text_width, width) if text_width else None
        self.layers = nn.ModuleList(Layer(width, config.head_width) for _ in range(config.denoiser_layers))
        self.norm = FinalNorm(width)
        self.head = nn.Linear(width, config.channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def memory(self) -> int:
        """Return the number of earlier frames that the output for a frame depends on."""
        return sum(self.window - ahead for ahead in self.look_ahead)

    def mask(self, look_ahead: int, frames: int, tokens: int, text: int, *, window: int | None) -> Tensor:
        """Return a square mask over text + frames * tokens positions, True where a query (row) may attend.

        Text comes first; it attends to itself, and with a look-ahead also to the first `look_ahead` + 1 frames; without
        one, to the first frame if all layers are said to have none.
        """
        index = torch.arange(frames)
        ahead = index[None, :] - index[:, None]
        video = (ahead <= look_ahead) & (ahead >= look_ahead - (frames if window is None else window))
        seen_by_text = (index <= look_ahead) & (look_ahead > 0 or self.shown_to_text)
        mask = torch.ones(text + frames * tokens, text + frames * tokens, dtype=torch.bool)
        mask[text:, text:] = video.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
        mask[:text, text:] = seen_by_text.repeat_interleave(tokens)
        return mask

    def forward(self, x: Tensor, text: Tensor | None, tables: Tables, valid: Tensor | None = None) -> Tensor:
        """Estimate d (B, T, n, c) of noisy latents x (B, T, n, c); text (B, L, text width), if the denoiser reads it.

        `valid` (B, T) masks frames that do not exist; None: all exist.
        """
        frames, tokens = x.shape[1:3]
        hidden = self.project_in(x.flatten(1, 2))
        length = 0
        if self.project_text is not None:
            assert text is not None
            length = text.shape[1]
            hidden = torch.cat((self.project_text(text.to(hidden.dtype)), hidden), dim=1)
        rotary = tables.whole(frames, text=length > 0)
        keys = None
        if valid is not None and not bool(valid.all()):
            keys = torch.ones(len(x), 1, 1, hidden.shape[1], dtype=torch.bool, device=x.device)
            keys[:, 0, 0, length:] = valid.repeat_interleave(tokens, dim=1)
            keys = keys | torch.eye(hidden.shape[1], dtype=torch.bool, device=x.device)
        masks = {
            ahead: self.mask(ahead, frames, tokens, length, window=self.window).to(x.device)
            for ahead in set(self.look_ahead)
        }
        for layer, ahead in zip(self.layers, self.look_ahead, strict=True):
            hidden = layer(hidden, rotary, masks[ahead] if keys is None else masks[ahead] & keys)
        hidden = self.norm(hidden[:, length:])
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden).unflatten(1, (frames, tokens))
