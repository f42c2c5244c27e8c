"""The published model evaluated in float64 as it is described, one clip at a time: plain loops, and none of our code.

Weights have the names of a published checkpoint. Shapes: T frames of h x w = n tokens with c channels, S positions of a
sequence, width d, H heads of width e, text (L, width of the text).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """Sizes of a small model; `layers` of each block, the last is the deep one."""

    channels: int
    layers: tuple[int, ...]
    width: int
    deep_width: int
    head: int
    text: tuple[int, int]
    scale: int
    denoiser_layers: int
    ahead: int
    reach: int
    grid: tuple[int, int]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of a checkpoint, without the buffers that nothing reads."""
        c, last, shapes = self.channels, len(self.layers) - 1, {}
        for k, layers in enumerate(self.layers):
            width = self.deep_width if k == last else self.width
            shapes |= {f"blocks.{k}.sos_embed": (1, 1, c), **_network(f"blocks.{k}", width, layers, c, 2 * c)}
        shapes |= _linear(f"blocks.{last}.proj_txt", self.deep_width, self.text[1])
        name = "learnable_self_denoiser"
        return shapes | _network(name, self.width, self.denoiser_layers, c, c) | _linear(
            f"{name}.proj_txt", self.width, self.text[1])

    def checkpoint(self, seed: int = 0) -> dict[str, Tensor]:
        """A random checkpoint, no map of which is trivial, with the buffers that nothing reads."""
        generator, state = torch.Generator().manual_seed(seed), {}
        for name, shape in self.shapes().items():
            numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
            if name.endswith("weight") and len(shape) == 2:
                state[name] = numbers * (0.5 if "proj_out" in name else 1.0) * shape[1] ** -0.5
            else:
                state[name] = numbers * (1.0 if "sos" in name else 0.2) + float(name.endswith(".norm.weight"))
        square, zero = self.scale**2, torch.zeros(1, 1, dtype=torch.float64)
        rows = square + self.text[0]
        state |= {f"blocks.{k}.attn_mask": zero.expand(rows, rows) for k in range(len(self.layers))}
        state |= {f"feat_rope.freqs_{part}": zero.expand(rows, self.head) for part in ("cos", "sin")}
        return state | {"var": zero.expand(square, self.channels)}


def _linear(name: str, out: int, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def _network(name: str, width: int, layers: int, channels: int, out: int) -> dict[str, tuple[int, ...]]:
    shapes = {**_linear(f"{name}.proj_in", width, channels), **_linear(f"{name}.proj_out", out, width)}
    for layer in (f"{name}.attn_blocks.{index}" for index in range(layers)):
        for part in ("attention", "mlp"):
            shapes |= {f"{layer}.{part}.norm.{leaf}": (width,) for leaf in ("weight", "bias")}
        shapes |= _linear(f"{layer}.attention.qkv", 3 * width, width) | _linear(f"{layer}.attention.proj", width, width)
        shapes |= _linear(f"{layer}.mlp.main.0", 4 * width, width) | _linear(f"{layer}.mlp.main.2", width, 4 * width)
    return {**shapes, f"{name}.final_norm.weight": (width,)}


@dataclass(frozen=True, eq=False)
class Published:
    """The model of a checkpoint in float64."""

    weights: dict[str, Tensor]
    sizes: Sizes

    # ---- the transformer -----------------------------------------------------------------------------------------

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def standardised(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / spread * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    @lru_cache  # noqa: B019 (a few per test)
    def angles(self, frames: int, text: bool) -> Tensor:
        """Angles (S, e / 2) of the pairs of a head at the positions of a text, if there is one, and of frames."""
        (h, w), length, scale = self.sizes.grid, self.sizes.text[0] if text else 0, self.sizes.scale
        step = scale / math.sqrt(h * w)
        places = [(0.0, 0.0, k * scale / length) for k in range(length)]
        places += [(i * step, j * step, float(t)) for t in range(frames) for i in range(h) for j in range(w)]
        spatial = (self.sizes.head // 2 - 8) // 2
        fast, slow = ([10000.0 ** (-k / pairs) for k in range(pairs)] for pairs in (spatial, 8))
        turns = [[row * f for f in fast] + [col * f for f in fast] + [t * f for f in slow] for row, col, t in places]
        return torch.tensor(turns, dtype=torch.float64)

    def turned(self, x: Tensor, angles: Tensor) -> Tensor:
        """x (S, H, e) with each adjacent pair of channels rotated by its angle."""
        left, right, cos, sin = x[..., 0::2], x[..., 1::2], angles.cos()[:, None], angles.sin()[:, None]
        turned = torch.empty_like(x)
        turned[..., 0::2], turned[..., 1::2] = left * cos - right * sin, left * sin + right * cos
        return turned

    def layers(self, name: str, count: int, x: Tensor, angles: Tensor, mask: Tensor) -> Tensor:
        """The layers of block `name` on x (S, d); mask (S, S): 0 where a row may see a column, else -inf."""
        for layer in (f"{name}.attn_blocks.{index}" for index in range(count)):
            mixed = self.linear(f"{layer}.attention.qkv", self.standardised(f"{layer}.attention.norm", x))
            query, key, value = (part.reshape(len(x), -1, self.sizes.head) for part in mixed.split(x.shape[1], dim=1))
            query, key = self.turned(query, angles), self.turned(key, angles)
            seen = []
            for head in range(query.shape[1]):
                scores = query[:, head] @ key[:, head].T / math.sqrt(self.sizes.head) + mask
                chances = (scores - scores.max(1, keepdim=True).values).exp()
                seen.append(chances / chances.sum(1, keepdim=True) @ value[:, head])
            x = x + self.linear(f"{layer}.attention.proj", torch.cat(seen, dim=1))
            inner = self.linear(f"{layer}.mlp.main.0", self.standardised(f"{layer}.mlp.norm", x))
            x = x + self.linear(f"{layer}.mlp.main.2", 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2))))
        size = (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        return x / size * (1 + self.weights[f"{name}.final_norm.weight"])

    # ---- the flow ------------------------------------------------------------------------------------------------

    def affine(self, k: int, tokens: Tensor, frames: int, text: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scale and mean (S, c) that block k gives each of its tokens (S, c), from those before it."""
        name = f"blocks.{k}"
        before = torch.cat((self.weights[f"{name}.sos_embed"][0], tokens[:-1]))
        hidden, length = self.linear(f"{name}.proj_in", before), 0 if text is None else len(text)
        if text is not None:
            hidden = torch.cat((self.linear(f"{name}.proj_txt", text), hidden))
        mask = torch.full((len(hidden), len(hidden)), -math.inf, dtype=torch.float64).triu(1)
        angles = self.angles(frames, text is not None)
        hidden = self.layers(name, self.sizes.layers[k], hidden, angles, mask)[length:]
        out = 4 * torch.tanh(self.linear(f"{name}.proj_out", hidden) / 4)
        logits, mean = out[:, : tokens.shape[1]], out[:, tokens.shape[1] :]
        return torch.log1p((logits + math.log(math.e - 1)).exp()), mean

    def to_noise(self, x: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z, and -log scale summed over the shallow blocks, and of the deep one, all (T, n, c), for x (T, n, c)."""
        u, shallow = self.to_deep(x)
        scale, mean = self.affine(len(self.sizes.layers) - 1, u.flatten(0, 1), len(u), text)
        return ((u.flatten(0, 1) - mean) / scale).reshape(u.shape), shallow, -scale.log().reshape(u.shape)

    def to_deep(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the deep block reads, (T, n, c), and -log scale of the shallow blocks."""
        total = torch.zeros_like(x)
        for k in range(len(self.sizes.layers) - 1):
            for t in range(len(x)):
                frame = x[t].flip(0) if k % 2 == 0 else x[t]
                scale, mean = self.affine(k, frame, 1)
                new, log = (frame - mean) / scale, -scale.log()
                x = torch.cat((x[:t], (new.flip(0) if k % 2 == 0 else new)[None], x[t + 1 :]))
                total[t] += log.flip(0) if k % 2 == 0 else log
        return x, total

    def from_deep(self, u: Tensor) -> Tensor:
        """Noisy latents (T, n, c) from what the deep block gave, token by token."""
        for k in reversed(range(len(self.sizes.layers) - 1)):
            frames = []
            for z in u:
                z, x = z.flip(0) if k % 2 == 0 else z, torch.zeros_like(z)
                for i in range(len(z)):
                    scale, mean = self.affine(k, x, 1)
                    x[i] = z[i] * scale[i] + mean[i]
                frames.append(x.flip(0) if k % 2 == 0 else x)
            u = torch.stack(frames)
        return u

    def sample(
        self, z: Tensor, text: Tensor, null: Tensor | None = None, guidance: float = 0.0, given: Tensor | None = None,
        window: int = 1 << 20, keep: int = 0,
    ) -> Tensor:
        """What the deep block gives, (T, n, c), from z (T, n, c), token by token; given (P, n, c) are its first frames.
        """
        u = z.clone()
        done = 0 if given is None else len(given)
        if given is not None:
            u[:done] = given
        begin, n = 0, z.shape[1]
        while done < len(z):
            end = min(begin + window, len(z))
            part, noise = u[begin:end].flatten(0, 1), z[begin:end].flatten(0, 1)
            for i in range((done - begin) * n, (end - begin) * n):
                scale, mean = self.affine(len(self.sizes.layers) - 1, part, end - begin, text)
                if null is not None:
                    other, middle = self.affine(len(self.sizes.layers) - 1, part, end - begin, null)
                    ratio = (scale / other).clamp(max=1) ** 2
                    weight = 1 + guidance - guidance * ratio
                    mean = ((1 + guidance) * mean - guidance * ratio * middle) / weight
                    scale = scale / weight.sqrt()
                part[i] = noise[i] * scale[i] + mean[i]
            u[begin:end] = part.reshape(end - begin, n, -1)
            begin, done = end - keep, end
        return u

    # ---- the denoiser --------------------------------------------------------------------------------------------

    def denoiser(self, x: Tensor, text: Tensor, ahead: int | None = None, reach: int | None = None) -> Tensor:
        """Output (T, n, c) for x (T, n, c): a frame sees `ahead` later ones, and `reach` before the last of these."""
        ahead, reach = self.sizes.ahead if ahead is None else ahead, self.sizes.reach if reach is None else reach
        name, length, n = "learnable_self_denoiser", len(text), x.shape[1]
        hidden = torch.cat((self.linear(f"{name}.proj_txt", text), self.linear(f"{name}.proj_in", x.flatten(0, 1))))
        mask = torch.full((len(hidden), len(hidden)), -math.inf, dtype=torch.float64)
        for q in range(len(hidden)):
            for k in range(len(hidden)):
                frame = (k - length) // n
                mine = max(q - length, 0) // n
                if k < length or (frame <= mine + ahead and (q < length or frame >= mine + ahead - reach)):
                    mask[q, k] = 0
        hidden = self.layers(name, self.sizes.denoiser_layers, hidden, self.angles(len(x), True), mask)[length:]
        return self.linear(f"{name}.proj_out", hidden).reshape(x.shape)
