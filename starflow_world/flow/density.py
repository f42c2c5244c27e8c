"""The density of a token given everything before it, at the end of a block: one normal, or a mixture around a codebook.

`AffineHead` is STARFlow-V's (section 3.1): mean and scale of each channel. `MixtureHead` gives what may happen in
several ways its ways: a token of g sites with k = c / g channels each is drawn site after site,

    log p(u_j | before) = logsumexp_m [ log pi_m + sum_c log N(u_jc; mean_mc, scale_mc) ]
    mean_m = code_m + spread_m * offset;   scale_m = spread_m * factor

where pi, offset and factor come from the hidden state and the sites before j in the token, and codes and spreads from a
codebook: clusters of site contents. FARMER (arXiv 2510.23588) ends an autoregressive flow in a mixture likewise.

The noise of a token is c + g standard normals: z of each channel, and one v per site that chooses the component, the
inverse of the cumulated pi at Phi(v). Given its noise a token is a deterministic function of what is before it, so the
Jacobi iteration (jacobi.py) solves mixtures and normals alike.

Shapes: B batch elements, S tokens, c channels, g sites per token, k channels per site, M components, d width.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SOFT_CLIP = 4.0
UNIT_SCALE = math.log(math.e - 1)
LEAST_CHANCE, EDGE = 1e-5, 1e-4
"""Components below LEAST_CHANCE are not taken for the one that an observed site came from; the choosing number of a
site stays EDGE away from where another component begins, so that rounding does not choose that one."""
MOST_CONTENTS, NEVER = 1 << 15, -30.0
HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


class Density(Protocol):
    """Distribution of tokens (B, S, c), each given the tokens before it."""

    @property
    def hidden(self) -> Tensor:
        """Return the hidden states (B, S, d) of the block."""

    def draw(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens of noise (B, S, c + g), and the scales of their normals, both (B, S, c)."""

    def nats(self, u: Tensor, *, around: Tensor | None = None, spread: float = 0.0) -> Tensor:
        """Return log p (B, S) of tokens u (B, S, c).

        With `around` (B, S, c): instead the expectation over normal noise of size `spread` on `around`, with u as what
        was before; exact for one component, and a lower bound (Jensen) for several, tight where they are far apart.
        """

    def noise(self, u: Tensor, luck: Tensor) -> Tensor:
        """Return noise (B, S, c + g) from which `draw` gives u.

        luck (B, S, 2g): uniforms that choose among the noise that explains u; not read by one normal.
        """

    def clean(self, u: Tensor, level: float) -> Tensor:
        """Return u without its noise of size `level` by one Tweedie step: u + level**2 d log p / du, (B, S, c)."""

    def rows(self, rows: slice) -> Self:
        """Return the distributions of the batch elements `rows`."""

    def join(self, others: "list[Self]") -> Self:
        """Return the distributions of this and the `others`' tokens, in this order."""


class _Joined:
    """Selection and concatenation of dataclasses whose tensors are (B, S, ...)."""

    def rows(self, rows: slice) -> Self:
        """Return the distributions of the batch elements `rows`."""
        return self._with({name: value[rows] for name, value in self._tensors().items()})

    def join(self, others: list[Self]) -> Self:
        """Return the distributions of this and the `others`' tokens, in this order."""
        if not others:
            return self
        every = [self._tensors(), *(other._tensors() for other in others)]
        return self._with({name: torch.cat([one[name] for one in every], dim=1) for name in every[0]})

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def _with(self, tensors: dict[str, Any]) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return type(self)(**{**values, **tensors})


@dataclass(frozen=True)
class Affine(_Joined):
    """One normal per channel: mean and scale (B, S, c), and the hidden states (B, S, d) they come from."""

    mean: Tensor
    scale: Tensor
    hidden: Tensor

    def draw(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens mean + scale * noise and the scales."""
        return self.mean + self.scale * noise, self.scale

    def to_noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z = (x - mean) / scale and log|dz/dx| per dimension, both (B, S, c)."""
        return (x - self.mean) / self.scale, -self.scale.log()

    def nats(self, u: Tensor, *, around: Tensor | None = None, spread: float = 0.0) -> Tensor:
        """Return log p (B, S) of tokens u (B, S, c); `around` and `spread` as for `Density`."""
        z, logdet = self.to_noise(u if around is None else around)
        return (logdet - 0.5 * (z * z + (spread / self.scale) ** 2) - HALF_LOG_TAU).sum(-1)

    def noise(self, u: Tensor, luck: Tensor) -> Tensor:
        """Return the only noise (B, S, c) from which `draw` gives u."""
        return self.to_noise(u)[0]

    def clean(self, u: Tensor, level: float) -> Tensor:
        """Return u (B, S, c) without its noise of size `level`."""
        return u + (level / self.scale).square().clamp(max=1) * (self.mean - u)


class AffineHead(nn.Linear):
    """Head of one normal per channel, the standard normal at initialization."""

    sites = 0
    """g, the noise numbers of a token beyond its channels."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__(width, 2 * channels)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Affine:  # type: ignore[override]
        """Return means and scales from hidden states (B, S, d), in the dtype of the head."""
        with torch.autocast(hidden.device.type, enabled=False):
            out = F.linear(hidden, self.weight, self.bias)
        scale, mean = (SOFT_CLIP * torch.tanh(out / SOFT_CLIP)).chunk(2, dim=-1)
        return Affine(mean, F.softplus(scale + UNIT_SCALE), hidden)


class Codebook(nn.Module):
    """Clusters of site contents. Buffers: code, spread (M, k): their means and scales; chance (M,): log-frequencies."""

    code: Tensor
    spread: Tensor
    chance: Tensor

    def __init__(self, components: int, size: int) -> None:
        super().__init__()
        self.components, self.size = components, size
        self.register_buffer("code", torch.zeros(components, size))
        self.register_buffer("spread", torch.ones(components, size))
        self.register_buffer("chance", torch.full((components,), -math.log(components)))

    @torch.no_grad()
    def fit(self, sites: Tensor, level: float, *, rounds: int = 20, seed: int = 0) -> None:
        """Fit the clusters to sites (N, k) without noise, by k-means from far-apart beginnings (Arthur and
        Vassilvitskii 2007), each distinct content counting by the root of its frequency, so that rare ones have codes.

        level: the noise that the flow's tokens have. If there are fewer distinct contents than components, the rest is
        never drawn.
        """
        distinct, times = torch.unique((sites.double() / level * 4).round(), dim=0, return_counts=True)
        distinct, weight = distinct * level / 4, times.double().sqrt()
        if len(distinct) > MOST_CONTENTS:
            kept = torch.multinomial(weight.cpu(), MOST_CONTENTS, generator=torch.Generator().manual_seed(seed))
            distinct, weight, times = distinct[kept], weight[kept], times[kept]
        generator = torch.Generator().manual_seed(seed)
        chosen = distinct[:1]
        for _ in range(min(self.components, len(distinct)) - 1):
            far = torch.cdist(distinct, chosen).amin(1).square()
            if not bool(far.any()):
                break
            pick = torch.multinomial((far * weight).cpu(), 1, generator=generator)
            chosen = torch.cat((chosen, distinct[pick.to(distinct.device)]))
        for _ in range(rounds):
            nearest = F.one_hot(torch.cdist(distinct, chosen).argmin(1), len(chosen)).double()
            inside = (nearest * weight[:, None]).sum(0).clamp_min(1e-9)
            chosen = (nearest * weight[:, None]).T @ distinct / inside[:, None]
        second = (nearest * weight[:, None]).T @ distinct.square() / inside[:, None]
        variance = (second - chosen.square()).clamp_min(0)
        share = (nearest * times[:, None]).sum(0) / times.sum()
        count = len(chosen)
        self.code.zero_()[:count] = chosen.to(self.code)
        self.spread.fill_(level)[:count] = (variance + level**2).sqrt().to(self.spread)
        self.chance.fill_(NEVER)[:count] = (share + 1e-6).log().to(self.chance)

    def quadratic(self) -> tuple[Tensor, Tensor]:
        """Return weights (M, 2 k) and bias (M,) that map the squares of a site's channels, and the channels, to the
        logarithms of the posterior, up to a constant."""
        precise = self.spread.square().reciprocal()
        constant = (self.code.square() * precise).sum(-1) + 2 * self.spread.log().sum(-1)
        return torch.cat((-0.5 * precise, self.code * precise), dim=-1), self.chance - 0.5 * constant

    def posterior(self, sites: Tensor, quadratic: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return the probability (..., M) of each cluster given noisy sites (..., k); `quadratic`: what the method of
        this name gives, if it is known."""
        return F.linear(torch.cat((sites.square(), sites), dim=-1), *(quadratic or self.quadratic())).softmax(-1)

    def describe(self, tokens: Tensor, quadratic: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return tokens (..., g k) with the posteriors of their sites beside each site's channels, (..., g (k + M))."""
        sites = tokens.unflatten(-1, (-1, self.size))
        return torch.cat((sites, self.posterior(sites, quadratic)), dim=-1).flatten(-2)


class MixtureHead(nn.Module):
    """Head of a mixture per site, the codebook's own clusters at initialization."""

    before: Tensor

    def __init__(self, width: int, channels: int, sites: int, components: int, inner: int) -> None:
        super().__init__()
        self.sites, self.inner = sites, inner
        size = channels // sites
        self.codebook = Codebook(components, size)
        self.base = nn.Linear(width, sites * inner)
        self.within = nn.Linear(sites * (size + components), sites * inner, bias=False) if sites > 1 else None
        self.mix = nn.Linear(inner, inner)
        self.out = nn.Linear(inner, components + 2 * size)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        earlier = torch.ones(sites, sites, device="cpu").tril(-1)
        mask = earlier.repeat_interleave(inner, 0).repeat_interleave(size + components, 1)
        self.register_buffer("before", mask, persistent=False)

    def forward(self, hidden: Tensor) -> "Mixture":
        """Return the mixtures of tokens from hidden states (B, S, d)."""
        with torch.autocast(hidden.device.type, enabled=False):
            base = F.linear(hidden, self.base.weight, self.base.bias).unflatten(-1, (self.sites, -1))
        return Mixture(base, hidden, self)

    def parts(self, inner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log pi (..., M), offset and factor (..., k) of sites from inner features (..., inner)."""
        book = self.codebook
        with torch.autocast(inner.device.type, enabled=False):
            inner = F.gelu(inner)
            out = self.out(inner + F.gelu(self.mix(inner)))
        chance, numbers = out.split((book.components, 2 * book.size), dim=-1)
        scale, offset = (SOFT_CLIP * torch.tanh(numbers / SOFT_CLIP)).chunk(2, dim=-1)
        return (chance + book.chance).log_softmax(-1), offset, F.softplus(scale + UNIT_SCALE)

    def context(self, tokens: Tensor) -> Tensor | float:
        """Return what the sites of tokens (..., c) add to the inner features (..., g, inner) of later sites."""
        if self.within is None:
            return 0.0
        with torch.autocast(tokens.device.type, enabled=False):
            described = self.codebook.describe(tokens.to(self.within.weight.dtype))
            return F.linear(described, self.within.weight * self.before).unflatten(-1, (self.sites, -1))


@dataclass(frozen=True)
class Mixture(_Joined):
    """A mixture per site: inner features before the token's own sites are seen (B, S, g, inner), hidden (B, S, d).

    With `null` (as `base`, without the text) and `guidance` w > 0, `draw` follows pi**(1 + w) / pi_null**w, normalised.
    """

    base: Tensor
    hidden: Tensor
    head: MixtureHead
    null: Tensor | None = None
    guidance: float = 0.0

    def draw(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens of noise (B, S, c + g), and the scales of the chosen components, both (B, S, c)."""
        g, book = self.head.sites, self.head.codebook
        z, chooser = noise[..., :-g].unflatten(-1, (g, -1)), torch.special.ndtr(noise[..., -g:].double())
        width, within = book.size + book.components, self.head.within
        columns = None if within is None else within.weight.unflatten(1, (g, width))
        quadratic, contents = book.quadratic(), torch.cat((book.code, book.spread), dim=-1)
        inner, null, drawn, scales = self.base, self.null, [], []
        for site in range(g):
            chance, offset, factor = self.head.parts(inner[..., 0, :])
            if null is not None:
                other = self.head.parts(null[..., 0, :])[0]
                chance = ((1 + self.guidance) * chance - self.guidance * other).log_softmax(-1)
            below = chance.double().exp().cumsum(-1)
            which = (chooser[..., site, None] * below[..., -1:] > below).sum(-1).clamp(max=book.components - 1)
            code, spread = contents[which].chunk(2, dim=-1)
            drawn.append(code + spread * (offset + factor * z[..., site, :]))
            scales.append(spread * factor)
            if columns is not None and site + 1 < g:
                with torch.autocast(noise.device.type, enabled=False):
                    described = book.describe(drawn[-1].to(columns.dtype), quadratic)
                    said = F.linear(described, columns[(site + 1) * self.head.inner :, site])
                said = said.unflatten(-1, (-1, self.head.inner))
                inner = inner[..., 1:, :] + said
                null = None if null is None else null[..., 1:, :] + said
        return torch.cat(drawn, dim=-1), torch.cat(scales, dim=-1)

    def joint(
        self, u: Tensor, around: Tensor | None = None, spread: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return log pi + log N of each component (B, S, g, M), log pi, and offset and factor (B, S, g, k)."""
        book = self.head.codebook
        chance, offset, factor = self.head.parts(self.base + self.head.context(u))
        sites = (u if around is None else around).unflatten(-1, (self.head.sites, 1, -1))
        inverse = factor.reciprocal()
        z = ((sites - book.code) * book.spread.reciprocal() - offset[..., None, :]) * inverse[..., None, :]
        squares = z.square().sum(-1)
        if spread:
            squares = squares + inverse.square() @ (spread / book.spread).square().T
        size = factor.log().sum(-1, keepdim=True) + book.spread.log().sum(-1) + book.size * HALF_LOG_TAU
        return chance - 0.5 * squares - size, chance, offset, factor

    def nats(self, u: Tensor, *, around: Tensor | None = None, spread: float = 0.0) -> Tensor:
        """Return log p (B, S) of tokens u (B, S, c); `around` and `spread` as for `Density`."""
        return self.joint(u, around, spread)[0].logsumexp(-1).sum(-1)

    def noise(self, u: Tensor, luck: Tensor) -> Tensor:
        """Return noise (B, S, c + g) from which `draw` gives u; luck (B, S, 2g) chooses component and place in it."""
        book, g = self.head.codebook, self.head.sites
        joint, chance, offset, factor = self.joint(u)
        chance = chance.double().exp()
        which, place = luck.double().unflatten(-1, (2, -1)).unbind(-2)
        found = joint.masked_fill(chance < LEAST_CHANCE, -math.inf).double().softmax(-1).cumsum(-1)
        which = (which[..., None] * found[..., -1:] > found).sum(-1).clamp(max=book.components - 1)
        above, index = chance.cumsum(-1), which[..., None]
        top, own = above.gather(-1, index), chance.gather(-1, index)
        edge = (EDGE / own).clamp(max=0.25)
        chooser = torch.special.ndtri((top - own * (edge + (1 - 2 * edge) * place[..., None])) / above[..., -1:])
        z = ((u.unflatten(-1, (g, -1)) - book.code[which]) / book.spread[which] - offset) / factor
        return torch.cat((z.flatten(-2), chooser.squeeze(-1).to(z)), dim=-1)

    def clean(self, u: Tensor, level: float) -> Tensor:
        """Return u (B, S, c) without its noise of size `level`."""
        book = self.head.codebook
        joint, _, offset, factor = self.joint(u)
        scale = book.spread * factor[..., None, :]
        mean = book.code + book.spread * offset[..., None, :]
        pull = (level / scale).square().clamp(max=1) * (mean - u.unflatten(-1, (self.head.sites, 1, -1)))
        return u + (joint.softmax(-1)[..., None] * pull).sum(-2).flatten(-2)
