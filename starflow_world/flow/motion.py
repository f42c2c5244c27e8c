"""Networks that predict a frame from its predecessor (`Motion`), and memory slots carried across frames (`Carry`).

    u_t = (x_t - mean(x_{t-1}, action_t)) / scale(x_{t-1}, action_t)          log|du/dx| = -log scale

An autoregressive flow across time (Marino et al. 2020, "Improving sequential latent variable models with autoregressive
flows"): a small convolutional network predicts each frame from the previous one and the action in one pass, and the map
is inverted without iteration. The residual u is near white noise; the deep block, which sees the whole history, shifts
and scales it further.

A flow may carry hidden state of K numbers from frame to frame: memory slots, each with the content of one site.

    slot <- slot + gate (site - slot)          site: read from the previous frame where attention detects a removal

This is a recurrence of gated copies (forget gate: Gers et al. 2000; copying: Vinyals et al. 2015). It stores how a
removed object looked, so that the motion can show it again. Attention and gates of all frames are computed in parallel;
only the recurrence is sequential. Slots outlive the window of the deep block.

Flows without them use `NoMotion` and `NoCarry`, which have no parameters.
Shapes: B batch elements, T frames, n tokens per frame, c channels, d deep width, K carried numbers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starflow_world.config.world import FlowConfig
from starflow_world.flow.block import SOFT_CLIP, UNIT_SCALE, Affine, Tables
from starflow_world.flow.frame_map import FrameMap, MotionMap, Past, ShallowBlocks, ShallowMap
from starflow_world.flow.sites import SiteConv, SiteHead, SiteNet, to_sites, to_tokens

EAGER = 20.0
SHUT = -2.0
WIDEST = 5.0


class NoMotion(nn.Module):
    """Flow without motion: the shallow blocks transform each frame alone; only the deep block uses the history."""

    looks_back = False
    """Whether the map from x to u of a frame depends on the previous frame."""

    def clip(
        self, shallow: ShallowBlocks, carry: "NoCarry", x: Tensor, action: Tensor | None, tables: Tables,
        carried: Tensor | None,
    ) -> FrameMap:
        """Return the map of clips x (B, T, n, c) whose first frames have no predecessor.

        action (B, T, d) or None; carried (B, T, K): the slots after each frame (None: computed from x).
        """
        return ShallowMap(shallow, tables, None if action is None else _spread(action, x.shape[2]))

    def next(self, shallow: ShallowBlocks, past: Past, action: Tensor, tables: Tables) -> FrameMap:
        """Return the map of each batch element's next frame, given its past and its action (B, 1, d)."""
        return ShallowMap(shallow, tables, _spread(action, past.tokens.shape[1]))

    def guess(self, past: Past, noise: Tensor) -> Tensor:
        """Return the initial Jacobi iterate (B, n, c) of the next u: the previous u, or `noise` for first frames."""
        return torch.where(past.present, past.tokens, noise)

    def history(self, u: Tensor, latents: Tensor) -> Tensor:
        """Return the input (B, T, n, c) of `clip` for the last T frames: u here, the newest of latents (B, W', n, c)
        with motion."""
        return u

    def restart(self, u: Tensor, x: Tensor, shallow: ShallowBlocks, tables: Tables) -> Tensor:
        """Return u (B, T, n, c) of frames that start a new window, given their noisy latents x (B, T, n, c)."""
        return u


class Motion(NoMotion):
    """Network that predicts an affine map from the previous frame; first frames pass the shallow blocks instead."""

    looks_back = True

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        width, side = config.motion_width, config.sites
        per_site = config.channels // side**2
        self.net = SiteNet(config.channels, width, config.motion_layers, side, config.deep_width)
        self.head = SiteHead(width, 2 * per_site, per_site, config.codes)
        self.tell = nn.Linear(width * side**2, config.deep_width, bias=False)
        nn.init.zeros_(self.tell.weight)

    def forward(self, previous: Tensor, action: Tensor, grid: tuple[int, int], carried: Tensor) -> Affine:
        """Predict mean and scale (N, n, c) of N frames from previous (N, n, c), action (N, d) and carried (N, K).

        The result's `hidden` (N, n, d) is added to the inputs of the deep block.
        """
        side = self.net.side
        with torch.autocast(previous.device.type, enabled=False):
            features = self.net(previous, grid, self.condition(action.to(previous.dtype), carried))
            out = self.restored(self.head(features), features, carried)
            out = SOFT_CLIP * torch.tanh(out / SOFT_CLIP)
            scale, mean = out.chunk(2, dim=-1)
            added = self.tell(to_tokens(features, side))
        return Affine(to_tokens(mean, side), F.softplus(to_tokens(scale, side) + UNIT_SCALE), added)

    def condition(self, action: Tensor, carried: Tensor) -> Tensor:
        """Return the condition (N, d) of the convolutional network, given action (N, d) and slots carried (N, K)."""
        return action

    def restored(self, out: Tensor, features: Tensor, carried: Tensor) -> Tensor:
        """Return the head's output (N, H, W, 2 c / side**2), with the content of slots added in `CarryingMotion`."""
        return out

    def clip(
        self, shallow: ShallowBlocks, carry: "NoCarry", x: Tensor, action: Tensor | None, tables: Tables,
        carried: Tensor | None,
    ) -> FrameMap:
        """Return the map of clips x (B, T, n, c): first frames by the shallow blocks, later frames by motion."""
        shape = (len(x), x.shape[1] - 1)
        if not shape[1]:
            return super().clip(shallow, carry, x, action, tables, carried)
        known = action if action is not None else x.new_zeros(*x.shape[:2], self.tell.out_features)
        carried = carry.along(x, known, tables.grid) if carried is None else carried
        flat = self(
            x[:, :-1].flatten(0, 1), known[:, 1:].flatten(0, 1), tables.grid, carried[:, :-1].flatten(0, 1)
        )
        motion = Affine(*(part.unflatten(0, shape) for part in (flat.mean, flat.scale, flat.hidden)))
        added = F.pad(motion.hidden, (0, 0, 0, 0, 1, 0))
        if action is not None:
            added = added + _spread(action, x.shape[2])
        return MotionMap(shallow, tables, added, motion, torch.empty(0, dtype=torch.long, device=x.device))

    def next(self, shallow: ShallowBlocks, past: Past, action: Tensor, tables: Tables) -> FrameMap:
        """Return the map of each next frame: by the shallow blocks without a previous frame, else by motion."""
        alone, count = past.alone, past.tokens.shape[1]
        if len(alone) == len(action):
            return super().next(shallow, past, action, tables)
        flat = self(past.latents[:, -1], action[:, 0], tables.grid, past.carried)
        motion = Affine(*(part[:, None] for part in (flat.mean, flat.scale, flat.hidden)))
        added = motion.hidden + _spread(action, count)
        if len(alone):
            added = added.index_copy(0, alone, _spread(action[alone], count))
        return MotionMap(shallow, tables, added, motion, alone)

    def guess(self, past: Past, noise: Tensor) -> Tensor:
        """Return the noise, since the u of consecutive frames are nearly independent."""
        return noise

    def history(self, u: Tensor, latents: Tensor) -> Tensor:
        """Return the newest T of latents (B, W', n, c), which `clip` reads for u (B, T, n, c)."""
        return latents[:, latents.shape[1] - u.shape[1] :]

    def restart(self, u: Tensor, x: Tensor, shallow: ShallowBlocks, tables: Tables) -> Tensor:
        """Return u with the first frame mapped by the shallow blocks, as it has no predecessor in the window."""
        return torch.cat((shallow(x[:, :1], tables)[0], u[:, 1:]), dim=1)


class CarryingMotion(Motion):
    """Motion that is conditioned on the carried slots and can copy their content into any site of the frame."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__(config)
        slots, per_site = config.carry_slots, config.channels // config.sites**2
        self.recall = nn.Linear(slots * per_site, config.deep_width, bias=False)
        self.place = SiteConv(config.motion_width, slots)
        for parameter in (self.recall.weight, self.place.weight, self.place.bias):
            nn.init.zeros_(parameter)

    def condition(self, action: Tensor, carried: Tensor) -> Tensor:
        """Return the condition (N, d): action (N, d) plus a projection of the slots carried (N, K)."""
        return action + self.recall(carried)

    def restored(self, out: Tensor, features: Tensor, carried: Tensor) -> Tensor:
        """Add the slots' content to the mean in the head's output (N, H, W, 2 c / side**2), weighted per site."""
        place = self.place(features)
        shown = place @ carried.unflatten(1, (1, place.shape[-1], -1))
        return out + F.pad(shown, (out.shape[-1] - shown.shape[-1], 0))


class NoCarry(nn.Module):
    """Carry of flows without memory slots: K = 0."""

    numbers = 0
    """K, the number of carried values per batch element."""

    def along(self, x: Tensor, action: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """Return the slots (B, T, K) after each frame of clips x (B, T, n, c) that begin without a predecessor.

        action (B, T, d), or None for zeros.
        """
        return x.new_zeros(*x.shape[:2], 0)

    def after(self, past: Past, x: Tensor, action: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the slots (B, 1, K) after the next frames x (B, 1, n, c) with action (B, 1, d)."""
        return x.new_zeros(len(x), 1, 0)


class Carry(NoCarry):
    """Memory slots filled by gated copies of sites; K = carry_slots * channels per site."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        width, slots, self.side = config.carry_width, config.carry_slots, config.sites
        self.slots, self.size = slots, config.channels // config.sites**2
        self.numbers = slots * self.size
        self.net = SiteNet(2 * config.channels, width, 1, self.side, config.deep_width)
        self.look = nn.Linear(width + 1, slots)
        self.gate = nn.Linear(width + slots * self.size, slots)
        self.expect, self.correct = nn.Linear(self.size, width), nn.Linear(width, self.size)
        self.start = nn.Parameter(torch.zeros(slots * self.size))
        self.begun = nn.Linear(config.deep_width, slots * self.size, bias=False)
        with torch.no_grad():
            self.look.weight[:, -1] = EAGER
            self.gate.bias.fill_(SHUT)
            for parameter in (self.begun.weight, self.correct.weight, self.correct.bias):
                parameter.zero_()

    def begin(self, action: Tensor) -> Tensor:
        """Return the slots (B, K) after a frame without predecessor; action (B, d) is zero at an episode's start."""
        return self.start + self.begun(action.to(self.start.dtype))

    def along(self, x: Tensor, action: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """Return the slots (B, T, K) after each frame of clips x (B, T, n, c) with action (B, T, d) or None."""
        if action is None:
            action = x.new_zeros(*x.shape[:2], self.begun.in_features)
        first = self.begin(action[:, 0])
        if x.shape[1] == 1:
            return first[:, None]
        return torch.cat((first[:, None], self(first, x[:, :-1], x[:, 1:], action[:, 1:], grid)), dim=1)

    def after(self, past: Past, x: Tensor, action: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the slots (B, 1, K) after the next frames x (B, 1, n, c) with action (B, 1, d)."""
        if len(past.alone) == len(x):
            return self.begin(action[:, 0])[:, None]
        carried = self(past.carried, past.latents[:, -1:], x, action, grid)
        if not len(past.alone):
            return carried
        return carried.index_copy(0, past.alone, self.begin(action[past.alone, 0])[:, None])

    def forward(self, last: Tensor, previous: Tensor, x: Tensor, action: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the slots (B, T, K) after frames x (B, T, n, c), given their predecessors (B, T, n, c) and actions.

        action (B, T, d); last (B, K): the slots after previous[:, 0].
        """
        with torch.autocast(x.device.type, enabled=False):
            sites, gate = self._events(previous.flatten(0, 1), x.flatten(0, 1), action.flatten(0, 1), grid)
            sites, gate = sites.unflatten(0, x.shape[:2]), gate.unflatten(0, x.shape[:2])
            slots, filled = last.unflatten(1, (self.slots, self.size)), []
            for t in range(x.shape[1]):
                slots = slots + gate[:, t, :, None] * (sites[:, t] - slots)
                filled.append(slots)
            return torch.stack(filled, dim=1).flatten(2)

    def _events(self, previous: Tensor, x: Tensor, action: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the attention readout (N, slots, size) of each slot from previous (N, n, c), and gates (N, slots)."""
        parts = (previous, x - previous)
        both = torch.cat([part.unflatten(2, (self.side**2, -1)) for part in parts], dim=-1).flatten(2)
        features = self.net(both, grid, action.to(x.dtype)).flatten(1, 2)
        features = F.layer_norm(features, features.shape[-1:])
        old, new = (to_sites(part, grid, self.side).flatten(1, 2) for part in parts)
        change = new.square().mean(-1, keepdim=True).clamp_max(0.3)
        share = self.look(torch.cat((features, change), dim=-1)).softmax(1)
        sites = share.mT @ old
        sites = sites + self.correct(F.gelu(self.expect(sites)))  # learned denoising of the readout
        logits = self.gate(torch.cat((features.mean(1), sites.flatten(1)), dim=-1))
        return sites, (WIDEST * torch.tanh(logits / WIDEST)).sigmoid()


def make_motion(config: FlowConfig) -> NoMotion:
    """Build the module that predicts a frame from its predecessor, or `NoMotion`, from the flow's config."""
    if not config.motion_width:
        return NoMotion()
    return CarryingMotion(config) if config.carry_slots else Motion(config)


def make_carry(config: FlowConfig) -> NoCarry:
    """Build the module of memory slots carried from frame to frame, or `NoCarry`, from the flow's config."""
    return Carry(config) if config.motion_width and config.carry_slots else NoCarry()


def _spread(action: Tensor, tokens: int) -> Tensor:
    """Expand action embeddings (B, T, d) to every token of their frame, (B, T, n, d)."""
    return action[:, :, None].expand(-1, -1, tokens, -1)
