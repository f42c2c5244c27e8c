"""A deterministic next-frame predictor of about the size of the world; its squared error is an anomaly score.

A small convolutional network, whose channels are patches of 8 x 8 pixels, predicts the change to the next frame from
two frames and the action. Training is deterministic given its seed.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from starflow_world.commands.anomaly.baselines import with_start
from starflow_world.data.episodes import Episode

PATCH, LAYERS, RATE = 8, 4, 2e-3


class NextFramePredictor(nn.Module):
    """Predictor of the next frame from two frames and an action; called with an episode, it returns its errors."""

    def __init__(self, actions: int, width: int) -> None:
        super().__init__()
        pixels = 3 * PATCH**2
        self.into = nn.Conv2d(2 * pixels, width, 1)
        self.action = nn.Linear(actions, width)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(LAYERS))
        self.out = nn.Conv2d(width, pixels, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, frames: Tensor, actions: Tensor) -> Tensor:
        """Map the last two frames (B, 2, H, W, 3) u8, in order, and actions (B, a) to patches (B, 192, h, w)."""
        before, last = patches(frames[:, 0]), patches(frames[:, 1])
        hidden = self.into(torch.cat((before, last), 1)) + self.action(actions)[:, :, None, None]
        for layer in self.layers:
            hidden = hidden + layer(functional.gelu(hidden))
        return last + self.out(functional.gelu(hidden))

    @torch.inference_mode()
    def __call__(self, episode: Episode) -> np.ndarray:
        """Return the mean squared error at each frame of an episode, (T,)."""
        frames, actions = torch.from_numpy(episode.frames), torch.from_numpy(episode.actions)
        pairs = torch.stack((torch.cat((frames[:1], frames[:-2])), frames[:-1]), 1)
        guess = self.forward(pairs, actions[1:])
        return with_start((guess - patches(frames[1:])).square().mean((1, 2, 3)).numpy())


def patches(frames: Tensor) -> Tensor:
    """Cut frames (B, H, W, 3) u8 into patches (B, 3 p^2, H / p, W / p) with values from -1 to 1."""
    return functional.pixel_unshuffle(frames.movedim(-1, 1).float() / 127.5 - 1, PATCH)


def width_for(parameters: int, actions: int) -> int:
    """Return the width at which the predictor has about `parameters` parameters."""
    def size(width: int) -> int:
        return 9 * LAYERS * width**2 + width * (9 * PATCH**2 + actions + LAYERS + 2)

    return min(range(8, 1024, 4), key=lambda width: abs(size(width) - parameters))


def fit_predictor(
    normal: Sequence[Episode], seed: int, *, parameters: int, steps: int = 600, rows: int = 24, progress: bool = True
) -> NextFramePredictor:
    """Train on transitions of normal episodes with a squared-error loss."""
    actions = normal[0].actions.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        predictor = NextFramePredictor(actions, width_for(parameters, actions))
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=RATE, weight_decay=1e-4)
    places = np.array([(e, t) for e, episode in enumerate(normal) for t in range(1, len(episode))])
    rng = np.random.default_rng((seed, 5))
    for step in tqdm(range(steps), desc="next-frame predictor", unit="step", leave=False, disable=not progress):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50, (steps - step) / steps)
        chosen = [(normal[e], t) for e, t in places[rng.integers(len(places), size=rows)]]
        pairs = np.stack([episode.frames[[max(t - 2, 0), t - 1]] for episode, t in chosen])
        led = np.stack([episode.actions[t] for episode, t in chosen])
        target = patches(torch.from_numpy(np.stack([episode.frames[t] for episode, t in chosen])))
        loss = (predictor.forward(torch.from_numpy(pairs), torch.from_numpy(led)) - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(predictor.parameters(), 1.0)
        optimizer.step()
    return predictor.eval()
