"""Arithmetic operations of a world's parts, from its config: two per multiply-add of products and convolutions.

Only keys that a query may attend to are counted, so a share of the roofline includes no masked work. `dense` counts all
keys, as a counter of executed products does; the tests compare with one. All counts are for one row.
"""

from dataclasses import dataclass

from gymnasium import spaces

from starflow_world.codec.conv import LAYERS, WIDTH
from starflow_world.config.world import WorldConfig
from starflow_world.model.actions import space_from_json


@dataclass(frozen=True)
class Operations:
    """Counter of arithmetic operations for the world of `config`."""

    config: WorldConfig
    dense: bool = False

    @property
    def tokens(self) -> int:
        """Return the number of tokens per frame, n."""
        return self.config.grid[0] * self.config.grid[1]

    @property
    def sites(self) -> int:
        """Return the number of sites per frame, the positions of site networks."""
        return self.tokens * self.config.flow.sites**2

    def keys(self, past: float, new: float) -> float:
        """Return the mean number of keys that each of `new` queries attends to, after `past` older keys."""
        return past + (new if self.dense else (new + 1) / 2)

    def layers(self, count: int, width: int, tokens: float, keys: float) -> float:
        """Return the operations of transformer layers, `keys` keys per token: projections 24 d^2, attention 4 d keys.
        """
        return count * tokens * (24 * width**2 + 4 * width * keys)

    def deep(self, tokens: float, past: float) -> float:
        """Return the operations of a pass of the deep block over `tokens` new tokens after `past` keys."""
        flow, g = self.config.flow, self.config.flow.sites**2
        out = 4 * flow.channels if flow.components == 1 else 2 * g * flow.head_inner
        layers = self.layers(flow.deep_layers, flow.deep_width, tokens, self.keys(past, tokens))
        return tokens * (self._read() + out * flow.deep_width) + layers

    def kept(self, tokens: float, past: float) -> float:
        """Return the operations of a pass that only fills the cache; its last layer stops at keys and values."""
        flow, width = self.config.flow, self.config.flow.deep_width
        before = self.layers(flow.deep_layers - 1, width, tokens, self.keys(past, tokens))
        return tokens * (self._read() + 6 * width**2) + before

    def shallow(self) -> float:
        """Return the operations of a pass of one shallow block over a frame, the mean over the blocks."""
        flow, n = self.config.flow, self.tokens
        ends = 2 * flow.channels * flow.shallow_width * 3
        every = self.layers(sum(flow.shallow_depths), flow.shallow_width, n, self.keys(0, n))
        return n * ends + every / max(flow.shallow_blocks, 1)

    def action(self) -> float:
        """Return the operations of the action encoder per frame."""
        flat = 1 + spaces.flatdim(space_from_json(self.config.action_space))
        return 2.0 * flat * self.config.flow.deep_width

    def drawn(self) -> float:
        """Return the operations of drawing a token from its mixture, site after site; 0 with one normal."""
        g = self.config.flow.sites**2
        return self._sites((g - 1) / 2) + self._posterior() * (g - 1) / g

    def judged(self) -> float:
        """Return the operations of the log-probability of a given token under its mixture; 0 with one normal."""
        g = self.config.flow.sites**2
        return self._sites((g if self.dense else (g - 1) / 2) if g > 1 else 0) + self._posterior() * (g > 1)

    def features(self) -> float:
        """Return the operations of the features of the last frame; 0 without."""
        flow, width = self.config.flow, self.config.flow.features_width
        inputs = self.sites * width + self.tokens * (flow.channels + self._described())
        told = 2.0 * inputs * flow.deep_width + self.tokens * self._posterior()
        return self._net(width, flow.features_layers, flow.deep_width) + told if width else 0.0

    def outcome(self) -> float:
        """Return the operations of the reward and end head per frame; 0 without it."""
        head, flow, width = self.config.outcome, self.config.flow, self.config.outcome.width
        if not width:
            return 0.0
        conditioned = 2 * self.sites * flow.deep_width * width
        read = 2 * self.sites * width**2 + 2 * width * (head.bins + 1) + self.tokens * self._posterior()
        return conditioned + self._net(width, head.layers, flow.text_width) + read

    def denoiser(self) -> float:
        """Return the operations of denoising a frame, including the earlier frames that the denoiser reads."""
        flow, width, layers = self.config.flow, self.config.flow.denoiser_width, self.config.flow.denoiser_layers
        if not layers:
            return 0.0
        ahead = flow.denoiser_look_ahead or (0,) * layers
        memory = min(sum(flow.denoiser_window - a for a in ahead), self.config.window - 1)
        video = (memory + 1) * self.tokens
        text = flow.text_length if flow.denoiser_text else 0
        ends = 2 * width * (2 * flow.channels * video + flow.text_width * text)
        return ends + self.layers(layers, width, video + text, video + text)

    def codec(self) -> float:
        """Return the operations of decoding a frame; encoding takes as many."""
        codec = self.config.codec
        patches = self.tokens * codec.merge**2
        if codec.kind == "conv":
            ends = WIDTH * (codec.components + 3 * codec.patch**2)
            return 2.0 * patches * (ends + 4 * LAYERS * WIDTH**2)
        return 2.0 * patches * codec.components * 3 * codec.patch**2 if codec.kind == "pca" else 0.0

    @property
    def _per_site(self) -> int:
        return self.config.flow.channels // self.config.flow.sites**2

    def _described(self) -> int:
        """Return how many numbers the codebook adds to a token."""
        flow = self.config.flow
        return flow.components * flow.sites**2 if flow.components > 1 else 0

    def _posterior(self) -> float:
        """Return the operations of the codebook's posteriors per token."""
        return 4.0 * self._per_site * self._described()

    def _read(self) -> float:
        """Return the operations of reading an input token of the deep block."""
        return 2.0 * (self.config.flow.channels + self._described()) * self.config.flow.deep_width + self._posterior()

    def _sites(self, before: float) -> float:
        """Return the operations of a mixture's sites per token; each reads `before` sites of the token on average."""
        flow, g = self.config.flow, self.config.flow.sites**2
        if flow.components == 1:
            return 0.0
        read = before * (self._per_site + flow.components)
        return 2.0 * g * flow.head_inner * (read + flow.head_inner + flow.components + 2 * self._per_site)

    def _net(self, width: int, layers: int, condition: int) -> float:
        per_site = self._per_site + self._described() // self.config.flow.sites**2
        looks = per_site * width + width**2 + layers * 10 * width**2  # 3 x 3, then 1 x 1
        return 2.0 * self.sites * looks + layers * 4 * condition * width

    def step(self, length: float, deep: float, shallow: float = 0.0) -> dict[str, float]:
        """Return the operations, by part, of an env step of a row with `length` frames: `deep` passes over a chunk
        each, `shallow` passes over a frame each, everything else once."""
        chunk = self.config.decode.chunk or self.tokens
        flow = self.config.flow
        past = flow.text_length + length * self.tokens + (self.tokens - chunk) / 2
        judged = 1 if flow.shallow_blocks or flow.denoiser_layers else 2  # the nats, and the step that cleans the frame
        return {
            "deep sweeps": deep * (self.deep(chunk, past) + chunk * self.drawn()),
            "shallow sweeps": shallow * self.shallow(), "features": self.features() + self.action(),
            "heads": self.outcome() + judged * self.tokens * self.judged(), "denoiser": self.denoiser(),
            "decode": self.codec(),
        }

    def slide(self) -> float:
        """Return the operations of re-encoding the frames that a slide keeps, per row."""
        kept, flow = self.config.context, self.config.flow
        return kept * self.action() + (kept - 1) * self.features() + self.kept(kept * self.tokens, flow.text_length)

    def score(self, frames: int) -> float:
        """Return the operations of the log-probability of at most a window of noisy latents, with encoded text."""
        flow = self.config.flow
        video, text = frames * self.tokens, flow.text_length
        total = frames * (self.action() + flow.shallow_blocks * self.shallow()) + (frames - 1) * self.features()
        prefix = 2.0 * text * flow.text_width * flow.deep_width
        prefix += self.layers(flow.deep_layers, flow.deep_width, text, self.keys(video if self.dense else 0, text))
        return total + prefix + self.deep(video, text) + video * self.judged()
