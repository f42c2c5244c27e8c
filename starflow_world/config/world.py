"""Config of a world: everything but its weights, as frozen dataclasses, stored as JSON beside the weights.

Unknown keys, wrong types and values out of range raise `ConfigError`; nothing is interpolated or evaluated.
"""

import math
from dataclasses import dataclass, field

from starflow_world.config.reading import between, one_of, positive
from starflow_world.errors import ConfigError

MOST_LAYERS, LARGEST_SIZE, MOST_TOKENS = 1 << 10, 1 << 20, 1 << 20
NO_ACTIONS = '{"n": 1, "start": 0, "type": "Discrete"}'
"""Action space of a world without actions."""


@dataclass(frozen=True)
class FlowConfig:
    """Sizes of the flow (STARFlow-V, sections 3.1 and 3.2); defaults are as published."""

    channels: int
    shallow_blocks: int = 5
    shallow_layers: int | tuple[int, ...] = 2
    """Layers of each shallow block, or a list with a number per block, the first nearest the data."""
    shallow_width: int = 3072
    deep_layers: int = 24
    deep_width: int = 4096
    head_width: int = 64
    text_length: int = 0
    text_width: int = 0
    position_scale: float = 32.0
    sites: int = 1
    """Side of the square of sites that forms a token; equals the codec's `merge`."""
    components: int = 1
    """Normals in the mixture of each site, around a codebook; 1: one normal per channel, as published."""
    head_inner: int = 128
    """Width of the mixture's features of a site; not read with one component."""
    features_width: int = 0
    """Width of the network that tells the deep block about the last frame and the action; 0: none, as published."""
    features_layers: int = 2
    denoiser_layers: int = 0
    denoiser_width: int = 3072
    denoiser_window: int = 10
    """Frames before the latest visible one that a denoiser token attends to; 0: its own frame alone."""
    denoiser_look_ahead: tuple[int, ...] = ()
    """Future frames that each denoiser layer may see; empty: none in any layer. In a layer that may see L > 0 of them
    the text sees the first L + 1 frames; where all are 0 (published models with `temporal_causal: 1`) it sees the first
    frame; else none."""
    denoiser_text: bool = True
    """Whether the denoiser reads the text."""
    denoiser_step: float = 0.3
    """Step size: clean latents are the noisy latents minus this times the denoiser's output."""

    def __post_init__(self) -> None:
        between(self, 1, LARGEST_SIZE, "channels", "shallow_width", "deep_width", "denoiser_width", "head_width",
                "components", "head_inner")
        between(self, 0, LARGEST_SIZE, "text_length", "text_width", "features_width", "denoiser_window")
        between(self, 0, MOST_LAYERS, "shallow_blocks", "denoiser_layers", "features_layers")
        between(self, 1, MOST_LAYERS, "deep_layers", "sites")
        positive(self, "position_scale")
        layers, blocks = self.shallow_layers, self.shallow_blocks
        numbers = layers if isinstance(layers, tuple) else (layers,)
        if len(self.shallow_depths) != blocks or not all(0 <= number <= MOST_LAYERS for number in numbers):
            expected = f"a number from 0 to {MOST_LAYERS}, or a list of {blocks}, one per shallow block"
            raise ConfigError(f"shallow_layers: expected {expected}, found {layers}")
        shallow, denoiser = self.shallow_blocks and self.shallow_width, self.denoiser_layers and self.denoiser_width
        for width in (shallow, self.deep_width, denoiser):
            if width % self.head_width:
                raise ConfigError(f"widths: expected multiples of head_width {self.head_width}, found {width}")
        if self.head_width < 20 or self.head_width % 4:
            raise ConfigError(f"head_width: expected 20 + 4k (rotary pairs for three axes), found {self.head_width}")
        if self.channels % self.sites**2:
            raise ConfigError(f"sites: expected sites**2 to divide channels {self.channels}, found {self.sites}")
        ahead, layers = self.denoiser_look_ahead, self.denoiser_layers
        if ahead and (len(ahead) != layers or not 0 <= min(ahead) <= max(ahead) <= self.denoiser_window):
            expected = f"{layers} numbers from 0 to denoiser_window {self.denoiser_window}"
            raise ConfigError(f"denoiser_look_ahead: expected {expected}, found {ahead}")

    @property
    def shallow_depths(self) -> tuple[int, ...]:
        """Return the number of layers of each shallow block."""
        layers = self.shallow_layers
        return layers if isinstance(layers, tuple) else (layers,) * self.shallow_blocks


@dataclass(frozen=True)
class CodecConfig:
    """Config of the codec `kind` (pca, patch, conv, or wan, that of published video models): `patch` x `patch` pixels
    make one site with `components` numbers."""

    kind: str = "pca"
    patch: int = 8
    components: int = 16
    merge: int = 1
    """Sites of merge x merge form one token, so a token has components * merge**2 channels."""

    def __post_init__(self) -> None:
        one_of(self, "kind", ("pca", "patch", "conv", "wan"))
        between(self, 1, 1 << 10, "patch", "components", "merge")
        if self.kind in ("pca", "conv"):
            between(self, 1, 3 * self.patch**2, "components")


@dataclass(frozen=True)
class TextConfig:
    """Config of the text encoder. `kind` none: no text; t5: a T5 encoder over bytes of these sizes, trained with the
    world; published: that of a published video model, for which only `length` and `width` are read."""

    kind: str = "none"
    length: int = 32
    width: int = 64
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        one_of(self, "kind", ("none", "t5", "published"))
        between(self, 1, LARGEST_SIZE, "length", "width")
        between(self, 1, MOST_LAYERS, "layers", "heads")
        if self.width % self.heads:
            raise ConfigError(f"width: expected a multiple of heads {self.heads}, found {self.width}")


@dataclass(frozen=True)
class OutcomeConfig:
    """Config of the reward and end head. `width` 0: no head; an env of the world then needs a `reward_fn`."""

    width: int = 0
    layers: int = 1
    bins: int = 41
    largest_reward: float = 1.0
    end: str = "sample"
    """How `terminated` is derived from p(end): sample (keyed) or threshold (p >= 0.5)."""

    def __post_init__(self) -> None:
        between(self, 0, LARGEST_SIZE, "width", "layers")
        between(self, 2, LARGEST_SIZE, "bins")
        positive(self, "largest_reward")
        one_of(self, "end", ("sample", "threshold"))


@dataclass(frozen=True)
class DecodeConfig:
    """Jacobi decoding: `tolerance` is the RMS residual in noise units, `chunk` the tokens decoded at once (0: all)."""

    tolerance: float = 1e-3
    chunk: int = 0
    max_sweeps: int = 0
    """Limit on sweeps per chunk; 0: as many as guarantee the exact result (tokens + 1)."""

    def __post_init__(self) -> None:
        between(self, 0, math.inf, "chunk", "max_sweeps", "tolerance")


@dataclass(frozen=True)
class ActionScale:
    """Scaling of flattened actions: (action - offset) / scale, with an offset and a scale per number."""

    offset: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(0 < scale < math.inf for scale in self.scale):
            raise ConfigError(f"action_scale.scale: expected positive numbers, found {self.scale}")


@dataclass(frozen=True)
class PublishedConfig:
    """Parts of a published video model that its checkpoint lacks: `text` and `codec` are folders or hub names of its T5
    encoder and its Wan VAE."""

    text: str
    codec: str
    template: str
    """Prompt template of the text encoder; {} stands for the text."""
    later: float
    """Factor on all latents of a stream except the first."""
    guidance: float
    """Weight of classifier-free guidance in each step; 0: none."""

    def __post_init__(self) -> None:
        positive(self, "later")
        between(self, 0, math.inf, "guidance")
        if self.template.count("{}") != 1:
            raise ConfigError(f"template: expected one {{}} in it, found {self.template!r:.80}")


@dataclass(frozen=True)
class WorldConfig:
    """Config of a world: everything but its weights, stored as JSON beside them."""

    name: str
    flow: FlowConfig
    height: int = 64
    width: int = 64
    codec: CodecConfig = field(default_factory=CodecConfig)
    text: TextConfig = field(default_factory=TextConfig)
    outcome: OutcomeConfig = field(default_factory=OutcomeConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    noise_level: float = 0.3
    guidance: float = 0.0
    """Weight of classifier-free guidance by the text in first frames sampled from it."""
    window: int = 32
    context: int = 8
    action_space: str = NO_ACTIONS
    action_scale: ActionScale | None = None
    """Scaling of actions; None: none, as in worlds older than this key and for spaces from -1 to 1."""
    max_episode_steps: int = 64
    reward: str = "event"
    """Meaning of the reward: event (1 at success, else 0), raw (as the source env gave it), or none (no task: rewards
    are 0 and no episode terminates)."""
    published: PublishedConfig | None = None
    """Parts that are loaded separately, for the codec kind wan and the text kind published."""

    def __post_init__(self) -> None:
        between(self, 1, 1 << 14, "height", "width")
        between(self, 2, 1 << 14, "window")
        between(self, 1, 1 << 14, "context")
        between(self, 1, math.inf, "max_episode_steps")
        one_of(self, "reward", ("event", "raw", "none"))
        kinds = self.codec.kind == "wan", self.text.kind == "published"
        if kinds != (self.published is not None,) * 2:
            raise ConfigError(f"published: expected it with codec.kind wan and text.kind published, found {kinds}")
        if self.context >= self.window:
            raise ConfigError(f"context: expected less than window {self.window}, found {self.context}")
        positive(self, "noise_level")
        between(self, 0, math.inf, "guidance")
        if (tokens := self.grid[0] * self.grid[1] * self.window) > MOST_TOKENS:
            expected = f"frames of at most {MOST_TOKENS} tokens in a window"
            raise ConfigError(f"height, width: expected {expected}, found {tokens} for {self.height} x {self.width}")
        text = (0, 0) if self.text.kind == "none" else (self.text.length, self.text.width)
        sizes = (self.flow.channels, self.flow.text_length, self.flow.text_width)
        if sizes != (self.channels, *text):
            expected = f"{(self.channels, *text)}, as codec and text have"
            raise ConfigError(f"flow.channels, text_length, text_width: expected {expected}, found {sizes}")
        if self.flow.sites not in (1, self.codec.merge):
            expected = f"1 or the codec's merge {self.codec.merge}"
            raise ConfigError(f"flow.sites: expected {expected}, found {self.flow.sites}")

    @property
    def channels(self) -> int:
        """Return the number of channels of a token, c."""
        per_site = 3 * self.codec.patch**2 if self.codec.kind == "patch" else self.codec.components
        return per_site * self.codec.merge**2

    @property
    def grid(self) -> tuple[int, int]:
        """Return the number of tokens per column and per row of a frame, (h, w); the last ones may be padded."""
        scale = self.codec.patch * self.codec.merge
        return -(-self.height // scale), -(-self.width // scale)
