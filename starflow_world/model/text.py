"""Text encoder of worlds: bytes through a small T5 encoder that is trained with the world."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from starflow_world.config.world import TextConfig
from starflow_world.errors import DataError


def text_tokens(text: str, length: int) -> list[int]:
    """Return ByT5's tokens: the UTF-8 bytes plus 3, then the end token 1. Raises DataError for more than `length`."""
    try:
        tokens = [byte + 3 for byte in text.encode()] + [1]
    except (AttributeError, UnicodeEncodeError):
        raise DataError(f"text: expected a string that UTF-8 can hold, found {text!r:.60}") from None
    if len(tokens) > length:
        raise DataError(f"text: expected at most {length - 1} bytes, found {len(tokens) - 1} in {text:.60}; shorten it")
    return tokens


class TextEncoder(nn.Module):
    """A T5 encoder over bytes (ByT5's tokens), trained with the world: strings -> (B, L, width).

    Padding rows are zero vectors. Text of more than L tokens raises DataError; it is never truncated.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        from transformers import T5Config, T5EncoderModel

        self.config = config
        sizes = T5Config(
            vocab_size=3 + 256, d_model=config.width, d_kv=config.width // config.heads,
            d_ff=4 * config.width, num_layers=config.layers, num_heads=config.heads, dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
        self.model = T5EncoderModel(sizes).encoder

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Encode texts (B) as states (B, L, width)."""
        length = self.config.length
        tokens = [text_tokens(text, length) for text in texts]
        device = self.model.device
        ids = torch.tensor([row + [0] * (length - len(row)) for row in tokens], device=device)
        present = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in tokens], device=device)
        states = self.model(input_ids=ids, attention_mask=present).last_hidden_state
        return states * present[:, :, None]
