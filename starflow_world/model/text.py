"""Text of worlds that are trained here: bytes through a small T5 encoder."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from starflow_world.config.world import TextConfig
from starflow_world.errors import DataError


def text_tokens(text: str, length: int) -> list[int]:
    """ByT5's tokens: the UTF-8 bytes plus 3, then the end token 1. DataError for more than `length` of them."""
    try:
        tokens = [byte + 3 for byte in text.encode()] + [1]
    except (AttributeError, UnicodeEncodeError):
        raise DataError(f"text: expected a string that UTF-8 can hold, found {text!r:.60}") from None
    if len(tokens) > length:
        raise DataError(f"text: expected at most {length - 1} bytes, found {len(tokens) - 1} in {text:.60}; shorten it")
    return tokens


class TextEncoder(nn.Module):
    """Strings -> (B, L, width) by a T5 encoder over bytes (ByT5's tokens), trained with the world.

    Padding rows are zero vectors. Text that does not fit in L tokens is refused, never cut.
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
        """Texts (B) -> states (B, L, width)."""
        length = self.config.length
        tokens = [text_tokens(text, length) for text in texts]
        device = self.model.device
        ids = torch.tensor([row + [0] * (length - len(row)) for row in tokens], device=device)
        present = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in tokens], device=device)
        states = self.model(input_ids=ids, attention_mask=present).last_hidden_state
        return states * present[:, :, None]
