"""Online scoring of episodes in progress: each new frame is observed once through the world's cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starflow_world.codec import frame_codec
from starflow_world.errors import DataError, StateError
from starflow_world.noise import make_key
from starflow_world.score.calibration import Memory
from starflow_world.score.evidence import Evidence, next_evidence
from starflow_world.score.normal import frame_statistics, group_of
from starflow_world.score.scorer import Scorer
from starflow_world.score.scores import COLUMNS
from starflow_world.world.state import WorldState


@dataclass(frozen=True)
class Verdict:
    """The scores of a single frame: the fields of `Scores` at one index t; heat (h, w)."""

    score: float
    p: float
    alarm: bool
    windowed: float
    typicality: float
    cusum: float
    change: bool
    nats_per_dim: float
    action_ratio: float
    parts: dict[str, float]
    heat: np.ndarray


class ScoreStream:
    """Online scorer of `rows` episodes in progress, equal to `Scorer.score` on the whole episodes."""

    def __init__(self, scorer: Scorer, rows: int = 1) -> None:
        self.scorer, self.rows = scorer, rows
        self._state: WorldState | None = None
        self._memory = [Memory()] * rows
        self._age = np.zeros(rows, np.int64)

    @torch.inference_mode()
    def begin(self, frames: np.ndarray, texts: Sequence[str], rows: Sequence[int] | None = None) -> list[Verdict]:
        """Start episodes at the batch indices `rows` (None: all) from first frames (k, H, W, 3) u8; return verdicts."""
        chosen = list(range(self.rows)) if rows is None else list(rows)
        if self._state is None and len(chosen) != self.rows:
            raise StateError(f"stream: expected all {self.rows} rows to begin first, found rows {chosen}")
        world, seeds = self.scorer.world, self.scorer.settings.seeds
        shown = self._frames(frames, len(chosen))
        drawn = shown.repeat_interleave(len(seeds), dim=0)
        wide, keys = [text for text in texts for _ in seeds], [make_key(seed) for seed in seeds] * len(chosen)
        state, none, clean = world.empty(wide, keys), world.flatten([None] * len(drawn)), self._clean(drawn)
        state, evidence = next_evidence(world, state, none, drawn.to(world.dynamics.device), clean)
        state, _ = world.observe(state, none, drawn[:, 0])
        if self._state is None or len(chosen) == self.rows:
            self._state = state
        else:
            places = torch.tensor([row * len(seeds) + draw for row in chosen for draw in range(len(seeds))])
            self._state = self._state.replace_rows(places, state)
        for row in chosen:
            self._memory[row], self._age[row] = Memory(), 0
        return self._verdicts(chosen, shown, evidence, clean, np.zeros(len(chosen), np.int64))

    @torch.inference_mode()
    def see(self, actions: Sequence[Any], frames: np.ndarray) -> list[Verdict]:
        """Observe the next frames (rows, H, W, 3) u8 after one action per row; return their verdicts."""
        if self._state is None:
            raise StateError("stream: expected episodes that have begun, found none; call begin() first")
        world, draws = self.scorer.world, self.scorer.settings.draws
        flat = world.flatten(list(actions), self.rows)
        shown = self._frames(frames, self.rows)
        drawn, wide = shown.repeat_interleave(draws, dim=0), flat.repeat_interleave(draws, dim=0)
        clean = self._clean(drawn)
        state, evidence = next_evidence(world, self._state, wide, drawn.to(world.dynamics.device), clean)
        self._state, _ = world.observe(state, wide, drawn, reuse=True)
        self._age += 1
        group = np.array([group_of(world, np.stack((one, one)))[1] for one in flat[:, 1:].cpu().numpy()])
        return self._verdicts(list(range(self.rows)), shown, evidence, clean, group)

    def _frames(self, frames: np.ndarray, rows: int) -> Tensor:
        size = (rows, self.scorer.world.config.height, self.scorer.world.config.width, 3)
        array = np.asarray(frames)
        if array.dtype != np.uint8 or array.shape != size:
            raise DataError(f"frames: expected uint8 {size}, found {array.dtype} {array.shape}; resize them")
        return torch.from_numpy(array.copy())[:, None]

    def _clean(self, frames: Tensor) -> Tensor:
        moves = self.scorer.world.dynamics
        latents, _ = frame_codec(moves.networks.codec).encode(frames.to(moves.device))
        return latents[:, 0].to(moves.dtype)

    def _verdicts(
        self, rows: list[int], shown: Tensor, drawn: Tensor, clean: Tensor, group: np.ndarray
    ) -> list[Verdict]:
        """Average the evidence `drawn` (3, k * draws, n) over noise draws and score each of the k frames."""
        draws = self.scorer.settings.draws
        mean = drawn.double().cpu().unflatten(1, (-1, draws)).mean(2).numpy()
        nats, surprise, against = mean
        evidence = Evidence(nats, surprise, against, clean[::draws].float().cpu().numpy())
        values, heat = frame_statistics(self.scorer.world, shown[:, 0].numpy(), evidence, self.scorer.fitted.known)
        per_dim, verdicts = self.scorer.nats_per_dim(evidence), []
        for index, row in enumerate(rows):
            at, age = slice(index, index + 1), self._age[row : row + 1]
            scores, self._memory[row] = self.scorer.judge(
                values[at], heat[at], per_dim[at], group[at], age, self._memory[row]
            )
            columns = {name: getattr(scores, name).item() for name in COLUMNS}
            parts = {name: part.item() for name, part in scores.parts.items()}
            verdicts.append(Verdict(**columns, parts=parts, heat=heat[index]))
        return verdicts
