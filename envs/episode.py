"""What the single and the vector env share: how rows begin, are kept, restored and described.

An env is an adapter over `World.step`. All it remembers of its episodes is one `EnvState`, a value: it can be copied
out at any moment and put back, and what follows is the same to the bit.

Shapes: B rows, T frames of a start, F pixel frames per latent frame.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starflow_world.errors import ActionError, ConfigError, DataError, StateError
from starflow_world.world import World
from starflow_world.world.state import TENSORS, Transition, WorldState

RewardFunction = Callable[[np.ndarray, Any, np.ndarray, dict[str, Any]], float | tuple[float, bool]]
"""(observation, action, next observation, info) -> reward, or (reward, terminated)."""

GREY_LEVELS = math.log2(127.5)
"""Bits between the density of latents in [-1, 1] and the probability of a grey level, which is 2 / 255 wide there."""


@dataclass(frozen=True)
class EnvState:
    """B episodes under way, enough to go on exactly.

    world: their world state; frames (B, H, W, 3) u8: what was shown last; begun (B,) int: the world's step at which the
    episode began; ended (B,) bool: terminated or truncated, to be reset before the next step.
    """

    world: WorldState
    frames: np.ndarray
    begun: np.ndarray
    ended: np.ndarray

    @property
    def steps(self) -> np.ndarray:
        """Steps taken since the episode began, (B,) int."""
        return self.world.step.numpy() - self.begun

    def __getitem__(self, rows: np.ndarray) -> "EnvState":
        """The given rows (k,) int, copied."""
        return EnvState(self.world[torch.from_numpy(rows)], self.frames[rows], self.begun[rows], self.ended[rows])

    def clone(self) -> "EnvState":
        """A copy that shares no storage."""
        return EnvState(self.world.clone(), self.frames.copy(), self.begun.copy(), self.ended.copy())

    @torch.inference_mode()
    def insert(self, rows: np.ndarray, other: "EnvState") -> "EnvState":
        """The state in which `rows` (k,) int are replaced by the rows of `other`; the storage is written.

        As `WorldState.replace_rows` without copying the other rows, whose cache may be hundreds of megabytes.
        """
        index, old, new = torch.from_numpy(rows), self.world, other.world
        texts, streams = list(old.texts), list(old.streams)
        for place, row in enumerate(rows.tolist()):
            texts[row] = new.texts[place]
            streams[row] = new.streams[place]
        for name in (*TENSORS, "text"):
            if getattr(old, name) is not None:
                getattr(old, name)[index] = getattr(new, name)
        for name in ("frames", "begun", "ended"):
            getattr(self, name)[rows] = getattr(other, name)
        cache = None if old.cache is None or new.cache is None else old.cache.insert(index, new.cache)
        known = replace(old, texts=tuple(texts), cache=cache, streams=tuple(streams))
        return replace(self, world=known)


# ---- the world -------------------------------------------------------------------------------------------------------


class FromPath:
    """Pickles an env without its window, and without its world where that came from a path: it is loaded again."""

    world: World
    _source: str | None

    def _open(self, world: World | str | Path | None, path: World | str | Path | None) -> World:
        if (world is None) == (path is None):
            raise ConfigError("world: expected a World, a folder or a shipped world's name, as `world` or as `path`")
        given = path if world is None else world
        assert given is not None
        self._source = None if isinstance(given, World) else str(given)
        self.world = given if isinstance(given, World) else World.load(given)
        return self.world

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_window": None, **({} if self._source is None else {"world": None})}

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)
        if self._source is not None:
            self.world = World.load(self._source)


def check_setup(world: World, reward_fn: RewardFunction | None, limit: int | None, text: str | None) -> int:
    """Refuse what cannot be an env; returns the number of steps after which episodes are truncated."""
    if not world.config.outcome.width and reward_fn is None and world.config.reward != "none":
        raise ConfigError(f"world {world.config.name} predicts no rewards: pass reward_fn=..., or call World.step")
    if text is not None:
        world.encode_text([check_text(text)])
    limit = world.config.max_episode_steps if limit is None else limit
    if not isinstance(limit, int) or limit < 1:
        raise ConfigError(f"max_episode_steps: expected an integer >= 1, found {limit!r:.60}")
    return limit


def check_render_mode(render_mode: str | None, known: Sequence[str]) -> str | None:
    """The render mode, or ConfigError."""
    if render_mode is not None and render_mode not in known:
        raise ConfigError(f"render_mode: expected None or one of {', '.join(known)}, found {render_mode!r:.60}")
    return render_mode


# ---- reset options ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """What a caller asked one row to begin from: nothing (the start set), text alone, or frames (T, H, W, 3) u8 with or
    without their actions (T, the first usually None) and text."""

    text: str | None = None
    frames: np.ndarray | None = None
    actions: list[Any] | None = None


def check_keys(options: Mapping[str, Any] | None, known: Sequence[str]) -> dict[str, Any]:
    """The options that are not None; ConfigError names the nearest known key for an unknown one."""
    options = {} if options is None else options
    if not isinstance(options, Mapping):
        raise ConfigError(f"options: expected a dict with keys of {', '.join(known)}, found {type(options).__name__}")
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise ConfigError(f"options: unknown key {key!r:.60}; {hint}")
    found = {key: value for key, value in options.items() if value is not None}
    if "state" in found and found.keys() & {"text", "frames", "actions"}:
        raise ConfigError("options: expected `state` alone, because a state has its text and frames; found more")
    return found


def read_given(world: World, text: Any, frames: Any, actions: Any) -> Given:
    """Checked options of one row; frames (H, W, 3) or (T, H, W, 3) u8."""
    if text is not None:
        check_text(text)
    if frames is None:
        if actions is not None:
            raise ConfigError("options: expected `actions` with the `frames` that they led to, found no frames")
        return Given(text)
    shown = _read_frames(frames, (world.config.height, world.config.width, 3))
    if actions is None:
        return Given(text, shown)
    count = world.dynamics.count(len(shown))
    if not isinstance(actions, Sequence | np.ndarray) or isinstance(actions, str) or len(actions) != count:
        expected = f"a list of {count}, one per latent frame (the first may be None)"
        raise ActionError(f"options: actions: expected {expected}, found {actions!r:.80}")
    return Given(text, shown, list(actions))


def _read_frames(frames: Any, size: tuple[int, int, int]) -> np.ndarray:
    try:
        shown = frames.numpy(force=True).copy() if isinstance(frames, Tensor) else np.array(frames)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"frames: expected one uint8 array, found something else: {error}") from None
    clip = shown[None] if shown.ndim == 3 else shown
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[1:] != size or not len(clip):
        raise DataError(f"frames: expected uint8 {size} or (T, {str(size)[1:]}, found {shown.dtype} {shown.shape}; "
                        "convert and resize them to the world's size")
    return clip


def check_text(text: Any) -> str:
    """The text, or DataError."""
    if not isinstance(text, str):
        raise DataError(f"text: expected a string, found {type(text).__name__}")
    return text


# ---- beginning and restoring -----------------------------------------------------------------------------------------


def has_start(world: World, text: str | None) -> bool:
    """Whether an episode can begin when nothing is given."""
    return text is not None or (world.starts is not None and len(world.starts) > 0)


def begin(world: World, given: Given, generator: np.random.Generator) -> tuple[WorldState, Transition]:
    """A row at its start. The generator gives the seed of its noise, and the place in the start set where that is used:
    where no frames are given and the set has a start, with the wished text if there is one. Else the text is imagined.

    Each row is begun in a computation of its own, so that it has the same bits whichever rows begin with it.
    """
    seed, text, frames = int(generator.integers(2**63)), given.text, given.frames
    places = [] if frames is not None or world.starts is None else world.starts.places(text)
    if text is None and frames is None and not places:
        raise DataError(f"reset: world {world.config.name} has no start set; pass options: text, frames or state")
    if places and world.starts is not None:
        index = places[int(generator.integers(len(places)))]
        frames, text = world.starts.frames[index : index + 1].numpy(), world.starts.texts[index]
    actions = None if given.actions is None else [given.actions]
    return world.start(None if frames is None else frames[None], actions, text=text or "", seed=[seed])


def begin_rows(
    world: World, wishes: Iterable[Given], generators: Iterable[np.random.Generator], *, between: bool
) -> tuple[EnvState, dict[str, np.ndarray]]:
    """Rows at their starts, and the facts about their first frames."""
    begun = [begin(world, given, generator) for given, generator in zip(wishes, generators, strict=True)]
    states, transitions = [state for state, _ in begun], [transition for _, transition in begun]
    found = [facts(world, t, s.texts, between=between) for s, t in begun]
    state = states[0] if len(states) == 1 else WorldState.stack(states)
    frames = np.concatenate([pictures(transition) for transition in transitions])
    for part in found if between else ():  # one frame at a stream's first latent frame, and several later
        most = max(other["frames"].shape[1] for other in found)
        part["frames"] = part["frames"].repeat(most // part["frames"].shape[1], axis=1)
    joined = {key: np.concatenate([part[key] for part in found]) for key in found[0]}
    return EnvState(state, frames, state.step.numpy().copy(), np.zeros(len(begun), bool)), joined


def restored(world: World, state: Any, rows: int, begun: np.ndarray | None = None) -> EnvState:
    """A copy of an EnvState; or of a WorldState, its last frame decoded anew, in an episode that began at the world's
    steps `begun` (rows,), or begins with it."""
    inner = state.world if isinstance(state, EnvState) else state
    if not isinstance(inner, WorldState) or len(inner) != rows:
        found = f"{len(inner)} rows" if isinstance(inner, WorldState) else type(state).__name__
        raise StateError(f"state: expected an EnvState or WorldState of {rows} rows, found {found}")
    if inner.world_id != world.world_id:
        raise StateError(f"state: expected one of world {world.world_id[:12]}, found one of {inner.world_id[:12]}")
    tokens, moves = inner.tokens, world.dynamics
    if (tokens.dtype, tokens.device) != (moves.dtype, moves.device):
        raise StateError(f"state: expected {moves.dtype} on {moves.device}, found {tokens.dtype} on {tokens.device}")
    if bool((inner.step < 1).any()):
        raise StateError("state: expected rows with at least one frame, found an empty one; begin with World.start")
    if isinstance(state, EnvState):
        return state.clone()
    step = inner.step.numpy().copy()
    return EnvState(inner.clone(), picture(world, inner), step if begun is None else begun.copy(), np.zeros(rows, bool))


def picture(world: World, state: WorldState) -> np.ndarray:
    """The newest frame of each row, (B, H, W, 3) u8, denoised and decoded anew."""
    return as_numpy(world.dynamics.picture(state))[:, -1]


# ---- describing ------------------------------------------------------------------------------------------------------


def pictures(transition: Transition) -> np.ndarray:
    """The observations of a transition, (B, H, W, 3) u8; given frames may be views of the start set."""
    return as_numpy(transition.frames[:, -1])


def facts(world: World, transition: Transition, texts: tuple[str, ...], *, between: bool) -> dict[str, np.ndarray]:
    """What `info` says about each row, one array (B, ...) per key.

    nats: log-probability of the noisy latent frame given all before; nats_per_dim: that per number; bits_per_dim: of
    8-bit colour values, where the codec keeps every pixel; sweeps, residual (in noise units) and converged: how the
    frame was decoded (0, 0 and True for a frame that was given); end_probability: where the world predicts ends; text;
    and frames (F, H, W, 3): all pixel frames of the step, where asked for.
    """
    dims = math.prod(transition.latents.shape[1:])
    nats = as_numpy(transition.nats.double())
    found = {
        "nats": nats, "nats_per_dim": nats / dims, "sweeps": as_numpy(transition.sweeps),
        "residual": as_numpy(transition.residual.double()), "converged": as_numpy(transition.converged),
        "text": np.array(texts, dtype=object),
    }
    if world.networks.codec.invertible:
        found["bits_per_dim"] = GREY_LEVELS - found["nats_per_dim"] / math.log(2)
    if world.config.outcome.width:
        found["end_probability"] = as_numpy(transition.end_probability.double())
    if between:
        found["frames"] = as_numpy(transition.frames)
    return found


def info_of(found: dict[str, np.ndarray], row: int) -> dict[str, Any]:
    """The `info` of one row: Python numbers, strings, and copied arrays."""
    values = {key: array[row] for key, array in found.items()}
    return {
        key: value.item() if isinstance(value, np.generic) else value.copy() if isinstance(value, np.ndarray) else value
        for key, value in values.items()
    }


def judge(
    reward_fn: RewardFunction, before: np.ndarray, action: Any, after: np.ndarray, info: dict[str, Any]
) -> tuple[float, bool | None]:
    """What a user's function says about a step: the reward, and whether it ended (None: it did not say)."""
    name = getattr(reward_fn, "__name__", type(reward_fn).__name__)
    try:
        result = reward_fn(before.copy(), action, after.copy(), info)
        reward, end = result if isinstance(result, tuple) else (result, None)
        reward, end = float(reward), None if end is None else bool(end)
    except Exception as error:
        raise DataError(f"reward_fn {name}: expected a number or (number, bool), but it raised {error!r:.200}; "
                        "the step was not taken") from error
    if not math.isfinite(reward):
        raise DataError(f"reward_fn {name}: expected a finite number, found {reward}; the step was not taken")
    return reward, end


def as_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor of any device as an array."""
    return tensor.cpu().numpy()
