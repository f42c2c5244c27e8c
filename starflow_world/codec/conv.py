"""Learned codec on patches of pixels: an autoencoder of two small networks, the same at every site.

Both are convolutions whose kernel and stride are a patch, as those of a vision transformer: a site's latent depends on
its own pixels alone, so that what does not change keeps its latent. It is fitted to the distinct patches of a data set,
each as often as any other: a ball of one pixel weighs as much as a wall. (Whole frames with 20 times the weight on
pixels that change left three times the error after as many steps.) Latents are bounded by LARGEST_LATENT, and noise of
the world's level is added to them in training, so that patches that look different lie apart.

The weights are buffers: they are fitted before a world's training begins, and no optimizer of the world moves them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from starflow_world.codec.patch import LARGEST_LATENT, PatchCodec
from starflow_world.config.world import CodecConfig

WIDTH, LAYERS = 128, 2
STEPS, BATCH, WARMUP = 2000, 1024, 50
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 1e-4
MOST_PATCHES = 1 << 17


class SiteMlp(nn.Module):
    """Residual two-layer network on normalised numbers of a site; the identity at initialization."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., width) to the same shape."""
        return x + self.down(F.gelu(self.up(F.layer_norm(x, x.shape[-1:]))))


class ConvCodec(PatchCodec):
    """Codec whose latents (B, T, n, c) are what a learned network makes of each patch, in [-2, 2].

    level: standard deviation of the noise of the world's latents. Buffers: `mean` (3 p^2,) of the distinct patches, and
    the weights of the networks `encoder` and `decoder`.
    """

    def __init__(self, config: CodecConfig, size: tuple[int, int], level: float) -> None:
        super().__init__(config, size)
        pixels, self.level = 3 * config.patch**2, level
        self.register_buffer("mean", torch.zeros(pixels))
        self.encoder, self.decoder = _network(pixels, config.components), _network(config.components, pixels)
        for part in (*self.encoder.modules(), *self.decoder.modules()):
            for name, weight in list(part.named_parameters(recurse=False)):
                delattr(part, name)
                part.register_buffer(name, weight.detach())

    def sites(self, patches: Tensor) -> Tensor:
        """Return the latents (..., k) of patches (..., 3 p^2) u8."""
        return self._encoded(patches.to(self.mean.dtype) / 127.5 - 1)

    def pixels(self, sites: Tensor) -> Tensor:
        """Return the patches (..., 3 p^2), grey levels as floats, of latents (..., k)."""
        return (self._decoded(sites.to(self.mean.dtype)) + 1) * 127.5

    def _encoded(self, pixels: Tensor) -> Tensor:
        return LARGEST_LATENT * torch.tanh(self.encoder(pixels - self.mean))

    def _decoded(self, sites: Tensor) -> Tensor:
        return self.decoder(sites) + self.mean

    @torch.enable_grad()
    def fit(self, frames: Tensor, most: int = MOST_PATCHES) -> None:
        """Fit the networks to at most `most` distinct patches of frames (N, H, W, 3) u8; the same patches give the same
        networks."""
        patches = self.distinct(frames, most).to(self.mean.dtype) / 127.5 - 1
        self.mean.copy_(patches.mean(0))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fresh = {"encoder": _network(patches.shape[1], self.config.components),
                     "decoder": _network(self.config.components, patches.shape[1])}
        weights = {f"{name}.{key}": value.to(patches).requires_grad_() for name, network in fresh.items()
                   for key, value in network.state_dict().items()}
        optimizer = torch.optim.AdamW(weights.values(), betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY)
        generator = torch.Generator().manual_seed(0)
        for step in tqdm(range(STEPS), desc="codec", unit="step", leave=False):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP, 1 - step / STEPS)
            some = torch.randint(len(patches), (min(BATCH, len(patches)),), generator=generator)
            noise = torch.randn(len(some), self.config.components, generator=generator).to(patches)
            real = patches[some.to(patches.device)]
            made = functional_call(self, weights, (real, self.level * noise))
            optimizer.zero_grad(set_to_none=True)
            (made - real).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
            optimizer.step()
        with torch.no_grad():
            for name, value in weights.items():
                self.get_buffer(name).copy_(value)

    def forward(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Return what the decoder makes of patches (N, 3 p^2) in [-1, 1] whose latents have noise (N, k) added."""
        return self._decoded(self._encoded(pixels) + noise)


def _network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, WIDTH), *(SiteMlp(WIDTH) for _ in range(LAYERS)), nn.Linear(WIDTH, outputs)
    )
