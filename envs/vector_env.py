"""Many episodes of one world as a Gymnasium vector environment: one batched forward for all rows.

The rows are one stacked state, of different ages. A step computes all of them at the full width, those that wait for
their reset too, and each row begins in a computation of its own: so a row's results do not depend on the others.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from starflow_world.envs.episode import (
    EnvState,
    FromPath,
    Given,
    RewardFunction,
    begin_rows,
    check_keys,
    check_render_mode,
    check_setup,
    has_start,
    info_of,
    judge,
    pictures,
    read_given,
    restored,
)
from starflow_world.envs.trust import Trust, imagine
from starflow_world.errors import ActionError, ConfigError, StateError
from starflow_world.world import World
from starflow_world.world.state import Transition, WorldState

OPTIONS = ("text", "frames", "actions", "state", "reset_mask")
Stepped = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]


class WorldVectorEnv(FromPath, VectorEnv[np.ndarray, Any, np.ndarray]):
    """`num_envs` rows (N): observations (N, H, W, 3) u8, rewards (N,) float64, flags (N,) bool, batched actions.

    As `WorldEnv` row by row: row k reset with seed s behaves as a WorldEnv reset with seed s + k. autoreset_mode:
    next_step (a row that ended is begun anew by the next step, which ignores its action and rewards nothing), same_step
    (begun anew at once; `final_obs` and `final_info` in the infos) or disabled (reset(options={"reset_mask": mask})).
    trust: limits above which a row is truncated.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}  # type: ignore[misc]

    def __init__(
        self, world: World | str | Path | None = None, num_envs: int = 1, *, path: World | str | Path | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP, text: str | None = None,
        render_mode: str | None = None, reward_fn: RewardFunction | None = None, max_episode_steps: int | None = None,
        frames_between: bool = False, trust: Trust | None = None,
    ) -> None:
        if not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ConfigError(f"num_envs: expected an integer >= 1, found {num_envs!r:.60}")
        self.autoreset_mode = _check_mode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}  # type: ignore[misc]
        self.render_mode = check_render_mode(render_mode, self.metadata["render_modes"])
        opened = self._open(world, path)
        self.max_episode_steps = check_setup(opened, reward_fn, max_episode_steps, text)
        if self.autoreset_mode is not AutoresetMode.DISABLED and not has_start(opened, text):
            raise ConfigError(f"autoreset: world {opened.config.name} has no start set to begin from; pass text=..., "
                              "or autoreset_mode='disabled' and give every reset its frames or text")
        self.num_envs, self.text, self.reward_fn, self.frames_between = int(num_envs), text, reward_fn, frames_between
        self.trust = trust
        size = (opened.config.height, opened.config.width, 3)
        self.single_observation_space = spaces.Box(0, 255, size, np.uint8)
        self.single_action_space = copy.deepcopy(opened.action_space)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._generators = [seeding.np_random()[0] for _ in range(self.num_envs)]
        self._now: EnvState | None = None

    # ---- reset ---------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin episodes; returns all observations and the infos of the rows that were reset.

        seed: s for the seeds s, s + 1, ... of the rows, or one (or None: go on with its generator) for each row.
        options, as WorldEnv.reset has them: `text`, one string or N; `frames` (N, H, W, 3) or (N, T, H, W, 3) with
        `actions`, N lists; `state` of N rows; and `reset_mask` (N,) bool: the rows to reset, others stay as they are.
        """
        found = check_keys(options, OPTIONS)
        rows = read_mask(found.pop("reset_mask", None), self.num_envs)
        seeds = read_seeds(seed, self.num_envs)
        if self._now is None and len(rows) < self.num_envs:
            raise StateError("reset_mask: expected episodes under way, found none; reset all rows first")
        generators = [
            copy.deepcopy(self._generators[row]) if seeds[row] is None else seeding.np_random(seeds[row])[0]
            for row in rows
        ]
        if "state" in found:
            fresh = restored(self.world, found["state"], self.num_envs)[rows]
            begun = {"text": np.array(fresh.world.texts, dtype=object)}
        else:
            given = self._read_given(found)
            wishes = [given[row] for row in rows]
            fresh, begun = begin_rows(self.world, wishes, generators, between=self.frames_between)
        if self._now is None or len(rows) == self.num_envs:
            self._now = fresh
        else:
            self._now = self._now.insert(rows, fresh)
        for row, generator in zip(rows.tolist(), generators, strict=True):
            self._generators[row] = generator
        self.closed = False
        return self._now.frames.copy(), self._spread({}, begun, rows)

    def _read_given(self, found: dict[str, Any]) -> list[Given]:
        """The reset options of every row."""
        text, count = found.get("text", self.text), self.num_envs
        parts: dict[str, Any] = {key: found.get(key, [None] * count) for key in ("text", "frames", "actions")}
        parts["text"] = [text] * count if text is None or isinstance(text, str) else text
        for key, part in parts.items():
            if not hasattr(part, "__len__") or len(part) != count:
                raise ConfigError(f"options: {key}: expected one for each of {count} rows, found {part!r:.80}")
        return [read_given(self.world, *row) for row in zip(*parts.values(), strict=True)]

    # ---- step ----------------------------------------------------------------------------------------------------

    def step(self, actions: Any) -> Stepped:
        """Imagine the next frame of every row: observations, rewards, terminations, truncations, infos."""
        return self._advance(read_actions(self, actions, self._begun("step").ended))

    def _advance(self, chosen: list[Any]) -> Stepped:
        """A step with one action per row, None for rows that wait for their reset."""
        now, mode = self._begun("step"), self.autoreset_mode
        waiting = now.ended
        world, transition, found = imagine(self.world, now.world, chosen, self.trust, between=self.frames_between)
        frames = pictures(transition)
        rewards, terminated = self._judge(now, transition, chosen, frames, found)
        late, doubted = now.steps + 1 >= self.max_episode_steps, found.get("reason", np.full(self.num_envs, "")) != ""
        truncated = (late | doubted) & ~waiting
        ended = terminated | truncated
        anew = ended if mode is AutoresetMode.SAME_STEP else waiting
        kept = np.flatnonzero(~anew)
        infos = self._spread({}, {key: values[kept] for key, values in found.items()}, kept)
        for row in np.flatnonzero(ended).tolist() if mode is AutoresetMode.SAME_STEP else ():
            final = {"final_obs": frames[row].copy(), "final_info": info_of(found, row)}
            infos = self._add_info(infos, final, row)
        after = EnvState(world, frames, now.begun.copy(), ended)
        self._now = self._begin_anew(after, np.flatnonzero(anew), infos) if anew.any() else after
        return self._now.frames.copy(), rewards, terminated, truncated, infos

    def _begin_anew(self, after: EnvState, rows: np.ndarray, infos: dict[str, Any]) -> EnvState:
        """Replace rows by new starts, in `after` and in `infos`."""
        wishes, generators = [Given(self.text)] * len(rows), [self._generators[row] for row in rows]
        fresh, begun = begin_rows(self.world, wishes, generators, between=self.frames_between)
        self._spread(infos, begun, rows)
        return after.insert(rows, fresh)

    def _judge(
        self, now: EnvState, transition: Transition, actions: list[Any], frames: np.ndarray,
        found: dict[str, np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rewards (N,) and terminations (N,): none in rows that wait for their reset."""
        rewards, terminated = transition.reward.double().cpu().numpy(), transition.end.cpu().numpy()
        for row in range(self.num_envs) if self.reward_fn is not None else ():
            if not now.ended[row]:
                assert self.reward_fn is not None
                info = info_of(found, row)
                rewards[row], end = judge(self.reward_fn, now.frames[row], actions[row], frames[row], info)
                terminated[row] = terminated[row] if end is None else end
        return np.where(now.ended, 0.0, rewards), terminated & ~now.ended

    def _spread(self, infos: dict[str, Any], found: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, Any]:
        """Write facts (k, ...) of `rows` into Gymnasium's form: an array (N, ...) and a mask `_key` (N,) per key."""
        for key, values in found.items():
            if key not in infos:
                blank = None if values.dtype == object else 0
                infos[key] = np.full((self.num_envs, *values.shape[1:]), blank, values.dtype)
                infos[f"_{key}"] = np.zeros(self.num_envs, bool)
            infos[key][rows] = values
            infos[f"_{key}"][rows] = True
        return infos

    # ---- the rest ------------------------------------------------------------------------------------------------

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The present frames, N of (H, W, 3) u8, in mode rgb_array."""
        now = self._begun("render")
        return None if self.render_mode is None else tuple(frame.copy() for frame in now.frames)

    def close_extras(self, **_: Any) -> None:
        """Forget the episodes."""
        self._now = None

    def get_state(self) -> WorldState:
        """A copy of the world's state, N rows."""
        return self._begun("get_state").world.clone()

    def snapshot(self) -> EnvState:
        """A copy of all that the episodes need to go on exactly, N rows."""
        return self._begun("snapshot").clone()

    def set_state(self, state: WorldState | EnvState) -> None:
        """Go on from a copy of a snapshot or a state of N rows, as WorldEnv.set_state does."""
        self._now = restored(self.world, state, self.num_envs, None if self._now is None else self._now.begun)
        self.closed = False

    def _begun(self, call: str) -> EnvState:
        if self._now is None:
            raise StateError(f"{call}: expected episodes under way, found none; call reset() first")
        return self._now


def _check_mode(mode: AutoresetMode | str) -> AutoresetMode:
    name = mode.value if isinstance(mode, AutoresetMode) else str(mode)
    for known in AutoresetMode:
        if name.lower().replace("_", "").replace("-", "") == known.value.lower():
            return known
    modes = ", ".join(known.name.lower() for known in AutoresetMode)
    raise ConfigError(f"autoreset_mode: expected one of {modes}, found {mode!r:.60}")


def read_mask(mask: Any, num_envs: int) -> np.ndarray:
    """The rows to reset, (k,) int64."""
    if mask is None:
        return np.arange(num_envs)
    right = isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (num_envs,)
    if not right or not mask.any():
        expected = f"a bool array ({num_envs},) with at least one True"
        raise ConfigError(f"reset_mask: expected {expected}, found {mask!r:.120}")
    return np.flatnonzero(mask)


def read_seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    """The seed of each row; None: it goes on with its generator."""
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int | np.integer):
        return [int(seed) + row for row in range(num_envs)]
    if not hasattr(seed, "__len__") or len(seed) != num_envs:
        raise ConfigError(f"seed: expected an integer or {num_envs}, one per row, found {seed!r:.80}")
    return [None if one is None else int(one) for one in seed]


def read_actions(env: VectorEnv[Any, Any, Any], actions: Any, waiting: np.ndarray) -> list[Any]:
    """One action per row of an env of ours; None for rows that wait (N,) bool for their reset, which only the mode
    next_step steps."""
    if env.metadata["autoreset_mode"] is not AutoresetMode.NEXT_STEP and waiting.any():
        raise StateError(f"step: rows {np.flatnonzero(waiting).tolist()} have ended; reset them with "
                         'reset(options={"reset_mask": mask})')
    try:
        listed = list(iterate(env.action_space, actions))
    except Exception as error:
        found = f"{actions!r:.120}: {error}"
        raise ActionError(f"actions: expected an element of {env.action_space}, found {found}") from None
    if len(listed) != env.num_envs:
        raise ActionError(f"actions: expected one for each of {env.num_envs} rows, found {len(listed)}")
    for row, action in enumerate(listed):
        if action is None:
            raise ActionError(f"actions: row {row}: expected an element of {env.single_action_space}, found None")
    return [None if waits else action for action, waits in zip(listed, waiting.tolist(), strict=True)]
