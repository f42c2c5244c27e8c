"""A world that counts, for tests of what an env does with ends and resets: nothing in it is learned.

A frame's red is the frame's age, its green the action that led to it (0 at the start), its blue the place of its start
in the start set. The reward and the nats are the age. Row k ends at age ends[k].
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from starflow_world.world import Starts, World
from starflow_world.world.state import Transition, WorldState
from tests.worlds import tiny_config

SIZE = 4


class CountingWorld(World):
    """A World in what an env can see of it. A state's tokens hold the last frame's three colours."""

    def __init__(self, ends: Sequence[int]) -> None:
        self.ends = torch.tensor(ends)
        self.config = tiny_config(height=SIZE, width=SIZE)
        self.action_space = spaces.Discrete(4)
        self.world_id = "counting"
        self.networks = SimpleNamespace(codec=SimpleNamespace(invertible=True))  # type: ignore[assignment]
        frames = torch.zeros(10, SIZE, SIZE, 3, dtype=torch.uint8)
        frames[..., 2] = torch.arange(10)[:, None, None]
        self.starts = Starts(frames, tuple("0123456789"))
        self.calls: list[int] = []

    def start(self, frames: Any = None, actions: Any = None, *, text: Any = "", seed: Any = 0, guidance: float = 0.0):
        """One row at age 0."""
        colours = torch.tensor(frames[:, -1, 0, 0]).float()
        one = torch.ones(1, dtype=torch.int64)
        empty = torch.zeros(1, 1)
        tokens = colours[:, None]
        key = torch.tensor(seed) >> 1
        state = WorldState(tokens, empty, empty, None, (text,), one, one, key, None, self.world_id, (None,))
        return state, self._transition(state, torch.zeros(1, dtype=torch.bool))

    def step(self, state: WorldState, action: Any, *, noise: Tensor | None = None, reuse: bool = False):
        """All rows one frame older."""
        self.calls.append(len(state))
        tokens = state.tokens.clone()
        tokens[:, 0, 0] += 1
        tokens[:, 0, 1] = torch.tensor([0.0 if one is None else float(one) for one in action])
        state = WorldState(
            tokens, state.latents, state.actions, None, state.texts, state.length, state.step + 1, state.key, None,
            self.world_id, state.streams,
        )
        return state, self._transition(state, tokens[:, 0, 0] == self.ends)

    def _transition(self, state: WorldState, end: Tensor) -> Transition:
        rows, age = len(state), state.tokens[:, 0, 0]
        frames = state.tokens[:, 0].to(torch.uint8)[:, None, None, None].expand(rows, 1, SIZE, SIZE, 3)
        latents, zeros = torch.zeros(rows, 1, 1), torch.zeros(rows)
        return Transition(
            frames, latents, latents, reward=age.clone(), end_probability=zeros, end=end, nats=age.clone(),
            token_nats=zeros[:, None], sweeps=zeros.long(), residual=zeros, converged=zeros == 0,
        )
