"""Monitors of real environments: they score each frame as it arrives and put the scores into `info`.

A monitor leaves observations, rewards, terminations and spaces unchanged. At each step the world conditions on the
frame, given its history and the action taken; nothing is sampled. `info["surprise"]` has the fields of
`starflow_world.score.stream.Verdict`: score, p, alarm, cusum, change, windowed, typicality, nats_per_dim, action_ratio,
parts and heat. The frame is the observation if that is an image of the world's size, else the rendered frame, resized.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import iterate

from starflow_world.envs.observation import mission, shown
from starflow_world.errors import ConfigError, DataError
from starflow_world.model.actions import space_to_json
from starflow_world.score import Scorer, ScoreStream, Verdict

KEY = "surprise"


class SurpriseMonitor(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """A monitor of one env; `info["surprise"]` of reset and of every step is a dictionary.

    text: the task in words; None: the text that `envs.observation.mission` reads. Raises ConfigError if the env has
    another action space than the world, or no frames.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], scorer: Scorer, *, text: str | None = None) -> None:
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, scorer=scorer, text=text)
        gymnasium.Wrapper.__init__(self, env)
        self.scorer, self.text = scorer, text
        _check(scorer, env.action_space, env.observation_space, env.render_mode)
        self._stream = ScoreStream(scorer)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the env; its first frame starts a new episode of the world."""
        observation, info = self.env.reset(seed=seed, options=options)
        text = _text(self.scorer, self.text, self.env, observation, info)
        verdict = self._stream.begin(self._frame(observation), [text])[0]
        return observation, {**info, KEY: asdict(verdict)}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the env and score its frame; return what the env returns, with the verdict in the info."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        verdict = self._stream.see([action], self._frame(observation))[0]
        return observation, reward, terminated, truncated, {**info, KEY: asdict(verdict)}

    def _frame(self, observation: Any) -> np.ndarray:
        frame = observation if is_frame(self.scorer, observation) else self.env.render()
        return shown(frame, _size(self.scorer)[:2])[None]


class SurpriseVectorMonitor(VectorWrapper[Any, Any, Any, Any, Any]):
    """A monitor of a vector env, one forward pass for its N rows; `infos["surprise"]` is a dictionary of arrays (N,
    ...).

    text: one for all rows or one per row. A row that the env resets by itself starts a new episode of the world. In
    autoreset mode same_step the last frame of an episode is not an observation, so it is not scored.
    """

    def __init__(
        self, env: VectorEnv[Any, Any, Any], scorer: Scorer, *, text: str | Sequence[str] | None = None
    ) -> None:
        super().__init__(env)
        self.scorer = scorer
        self._texts = [text] * env.num_envs if text is None or isinstance(text, str) else list(text)
        if len(self._texts) != env.num_envs:
            raise ConfigError(f"text: expected one, or one for each of {env.num_envs} rows, found {len(self._texts)}")
        _check(scorer, env.single_action_space, env.single_observation_space, env.render_mode)
        self._mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        self._stream = ScoreStream(scorer, env.num_envs)
        self._ended = np.zeros(env.num_envs, bool)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the envs; rows outside `options["reset_mask"]` continue, and their verdicts are zeros."""
        rows = np.flatnonzero((options or {}).get("reset_mask", np.ones(self.env.num_envs, bool)))
        observations, infos = self.env.reset(seed=seed, options=options)
        verdicts = self._begin(rows, observations, infos, self._frames(observations))
        self._ended[rows] = False
        return observations, self._with_verdicts(infos, verdicts)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the envs and score their frames; return what the envs return, with the verdicts in the infos."""
        chosen = list(iterate(self.env.action_space, actions))
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        ended, frames = np.asarray(terminated) | np.asarray(truncated), self._frames(observations)
        reset = {AutoresetMode.SAME_STEP: ended, AutoresetMode.NEXT_STEP: self._ended}.get(self._mode)
        verdicts = dict(enumerate(self._stream.see(chosen, frames)))
        if reset is not None and reset.any():
            verdicts |= self._begin(np.flatnonzero(reset), observations, infos, frames)
        self._ended = ended if self._mode is AutoresetMode.NEXT_STEP else np.zeros_like(ended)
        return observations, rewards, terminated, truncated, self._with_verdicts(infos, verdicts)

    def _begin(
        self, rows: np.ndarray, observations: Any, infos: dict[str, Any], frames: np.ndarray
    ) -> dict[int, Verdict]:
        texts = []
        for row in rows.tolist():
            observation, info = _row_of(observations, "mission", row), _row_of(infos, "text", row)
            texts.append(_text(self.scorer, self._texts[row], None, observation, info))
        return dict(zip(rows.tolist(), self._stream.begin(frames[rows], texts, rows.tolist()), strict=True))

    def _frames(self, observations: Any) -> np.ndarray:
        if isinstance(observations, np.ndarray) and is_frame(self.scorer, observations[0]):
            return observations
        drawn = self.env.render()
        if drawn is None or len(drawn) != self.env.num_envs:
            count = "None" if drawn is None else f"{len(drawn)} frames"
            raise DataError(f"render: expected a frame of each of {self.env.num_envs} envs, found {count}")
        return np.stack([shown(frame, _size(self.scorer)[:2]) for frame in drawn])

    def _with_verdicts(self, infos: dict[str, Any], verdicts: dict[int, Verdict]) -> dict[str, Any]:
        """Return infos with the verdicts of rows as arrays (N, ...), and the mask of those rows."""
        rows = [asdict(verdicts[row]) if row in verdicts else None for row in range(self.env.num_envs)]
        return {**infos, KEY: _stacked(rows), f"_{KEY}": np.array([row is not None for row in rows])}


def _stacked(rows: list[Any]) -> Any:
    """Stack dictionaries of numbers, one per row, to a dictionary of arrays; rows without a dictionary get zeros."""
    example = next(row for row in rows if row is not None)
    if isinstance(example, dict):
        return {key: _stacked([None if row is None else row[key] for row in rows]) for key in example}
    return np.stack([np.zeros_like(example) if row is None else np.asarray(row) for row in rows])


def is_frame(scorer: Scorer, observation: Any) -> bool:
    """Return whether an observation is an image of the world's size."""
    return isinstance(observation, np.ndarray) and (observation.dtype, observation.shape) == (np.uint8, _size(scorer))


def _size(scorer: Scorer) -> tuple[int, int, int]:
    return scorer.world.config.height, scorer.world.config.width, 3


def _text(scorer: Scorer, given: str | None, env: Any, observation: Any, info: dict[str, Any]) -> str:
    """Return the text of the task: `given`, or else the text that the env states."""
    if scorer.world.networks.text is None:
        return given or ""  # the world raises an error for a non-empty text
    return mission(env, observation, info) if given is None else given


def _row_of(batch: Any, key: str, row: int) -> dict[str, Any]:
    """Return {key: value} of one row of batched observations or infos, empty if the row has no such key."""
    there = isinstance(batch, dict) and key in batch and (f"_{key}" not in batch or batch[f"_{key}"][row])
    return {key: batch[key][row]} if there else {}


def _check(scorer: Scorer, actions: spaces.Space[Any], seen: spaces.Space[Any], render_mode: str | None) -> None:
    own, expected = space_to_json(actions), space_to_json(scorer.world.action_space)
    if own != expected:
        raise ConfigError(f"action space: expected the world's own, {expected:.80}, found {own:.80}")
    size = _size(scorer)
    if render_mode != "rgb_array" and not (isinstance(seen, spaces.Box) and seen.shape == size):
        raise ConfigError(f"env: expected render_mode='rgb_array' or observations {size}, found {render_mode!r} and "
                          f"{seen}; make the env with render_mode='rgb_array'")
