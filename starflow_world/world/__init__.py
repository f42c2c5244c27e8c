"""A learned world: a pure function over an explicit state.

`step` samples the next frame of every row, `observe` conditions on a given one. Both return its exact log-probability;
observing the latents of an imagined frame gives the same state and nats.

Shapes: B rows, W frames in the window, n tokens per frame, c channels. actions[:, t] is the action that led to
frames[:, t].
"""

import difflib
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starflow_world.config.reading import to_dict
from starflow_world.config.world import DecodeConfig
from starflow_world.errors import ActionError, CheckpointError, ConfigError, DataError
from starflow_world.flow.compiled import compile_networks
from starflow_world.flow.windows import spans
from starflow_world.io.files import is_file
from starflow_world.model.actions import flatten_actions, space_from_json
from starflow_world.model.checkpoint import CARD, CONFIG, PROMPTS, load_networks, load_starts, read_json
from starflow_world.model.devices import read_device
from starflow_world.model.networks import Networks
from starflow_world.noise import make_key
from starflow_world.world.dynamics import Dynamics
from starflow_world.world.sharing import Shared, pretrained_folder, push_shared, save_shared
from starflow_world.world.state import Transition, WorldState

SHIPPED = Path(__file__).parent.parent / "worlds"
Clip = Sequence[Any] | Tensor | None


class World:
    """A learned world: its networks, their digest, and the start frames that were saved with it."""

    def __init__(
        self, networks: Networks, world_id: str | None = None, starts: "Starts | None" = None,
        folder: Path | None = None,
    ) -> None:
        self.folder = folder
        self.networks, self.config, self.starts = networks.eval(), networks.config, starts
        self.world_id = world_id or _digest(networks)
        self.dynamics = Dynamics(networks, self.world_id)
        self.action_space = space_from_json(networks.config.action_space)
        self.empty, self.encode_text = self.dynamics.empty, self.dynamics.encode_text

    @staticmethod
    def load(
        path_or_name: str | Path, *, device: str = "auto", dtype: torch.dtype | str | None = None,
        compiled: bool = False,
    ) -> "World":
        """Load a world from a checkpoint folder (also one that `convert` wrote), or a shipped world by name.

        dtype: float64, float32, or bfloat16 for matrix products inside transformers and float32 elsewhere
        (flow/precision.py). None: float32 (bfloat16 for a published model on a GPU). "auto": bfloat16 if it is measured
        to be clearly faster on this world's layers (model/rates.py), else float32. compiled: run the networks through
        torch.compile, for GPUs; where that fails, warn and run them uncompiled (flow/compiled.py)."""
        folder, place = find_world(path_or_name), read_device(device)
        networks, digest = load_networks(folder)
        starts, size = load_starts(folder), (networks.config.height, networks.config.width, 3)
        if starts is not None and tuple(starts[0].shape[1:]) != size:
            raise CheckpointError(f"{folder}: expected starts of the world's size {size}, found {starts[0].shape[1:]}")
        networks.prepare(place, dtype, folder / PROMPTS)
        if compiled:
            compile_networks(networks.flow, networks.outcome)
        config = json.dumps(to_dict(networks.config), sort_keys=True)
        world_id = hashlib.sha256((digest + config).encode()).hexdigest()
        return World(networks, world_id, None if starts is None else Starts(*starts), folder)

    @staticmethod
    def from_pretrained(source: str | Path, *, revision: str | None = None, **loading: Any) -> "World":
        """Load a world from a folder (without network), or from a repository user/name of the Hugging Face hub, at a
        branch, tag or commit `revision`. loading: arguments of `load`. Raises CheckpointError."""
        return World.load(pretrained_folder(source, revision), **loading)

    def save_pretrained(self, folder: str | Path, *, license: str = "") -> Path:
        """Write the world as it was loaded, its starts, card.json and a model card, README.md; return the folder.
        license: its name on the hub, such as apache-2.0; empty: that in the card. Raises CheckpointError."""
        return save_shared(self._shared(license), folder)

    def push_to_hub(
        self, repository: str, *, license: str = "", message: str = "", revision: str | None = None,
        private: bool | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes to a repository user/name of the hub, which is made if there is none;
        return the address of the commit. revision: a branch; None: main. Raises CheckpointError."""
        return push_shared(self._shared(license), repository, message, revision, private)

    def _shared(self, license: str) -> Shared:
        starts = None if self.starts is None else (self.starts.frames, self.starts.texts)
        card = {**self.card, **({"license": license} if license else {})}
        return Shared(self.networks, starts, card, self.folder)

    @property
    def card(self) -> dict[str, Any]:
        """Return the content of card.json (data, environment, command, figures); {} if there is no such file."""
        path = None if self.folder is None else self.folder / CARD
        values = read_json(path) if path is not None and is_file(path) else {}
        return values if isinstance(values, dict) else {}

    def decoded(self, decode: DecodeConfig) -> "World":
        """Return this world with other decoding settings: tolerance, chunk size (1: sequential), sweep limit."""
        other = World(self.networks, self.world_id, self.starts, self.folder)
        other.dynamics.decode = decode
        return other

    # ---- operations ----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def start(
        self, frames: Any = None, actions: Clip = None, *, text: str | Sequence[str] = "",
        seed: int | Sequence[int] = 0, guidance: float | None = None,
    ) -> tuple[WorldState, Transition]:
        """Start B rows from frames, or from text alone; return the state and the last transition.

        frames (B, T, H, W, 3) u8: an image (T = 1) or a clip to condition on; `actions`: B rows of T, the first usually
        None. Without frames, sample the first frame from the text, with guidance weight `guidance` (None: that of the
        config). text, seed: one for all rows, or one per row.
        """
        frames = None if frames is None else self._check_frames(frames)
        rows = len(frames) if frames is not None else _count(text, seed)
        moves, coder = self.dynamics, self.dynamics.frames
        flat = None if frames is None else self._flat_clip(actions, rows, coder.count(frames.shape[1]))
        state = moves.empty(_texts(text, rows), _keys(seed, rows))
        if frames is None or flat is None:
            guidance = self.config.guidance if guidance is None else guidance
            if not guidance >= 0:
                raise ConfigError(f"guidance: expected a number >= 0, found {guidance}")
            if guidance > 0:
                return moves.imagine_start(state, guidance)
            return moves.imagine(state, self.flatten([None] * rows), None)
        state, x = coder.read(state, frames)
        within = min(x.shape[1], self.config.window)
        shown = frames[:, : coder.frames_of(within)]
        state, transition = moves.observe(state, flat[:, :within], x[:, :within], shown)
        for t in range(within, x.shape[1]):
            one, shown = slice(t, t + 1), frames[:, : coder.frames_of(t + 1)]
            state, transition = moves.observe(moves.own(state, reuse=True), flat[:, one], x[:, one], shown)
        return state, transition

    @torch.inference_mode()
    def step(
        self, state: WorldState, action: Any, *, noise: Tensor | None = None, reuse: bool = False
    ) -> tuple[WorldState, Transition]:
        """Sample the next frame of every row.

        action: one per row, each an element of `action_space` or None, or a Tensor (B, 1 + flat). noise (B, n, c + g):
        used instead of the keyed noise. reuse: the new state may overwrite the cache of the given state, which stays
        valid and rebuilds its cache when it is used again.
        """
        flat = self.flatten(action, len(state))
        if noise is not None:
            self._check_latents("noise", noise, self.dynamics.noise_shape, len(state))
        return self.dynamics.imagine(self.dynamics.own(state, reuse=reuse), flat, noise)

    @torch.inference_mode()
    def observe(
        self, state: WorldState, action: Any, frames: Any = None, *, latents: Tensor | None = None, reuse: bool = False
    ) -> tuple[WorldState, Transition]:
        """Condition every row on its next frame, given as frames (B, H, W, 3) u8 or as noisy latents (B, n, c).

        With a stateful codec, frames are (B, F, H, W, 3): the F pixel frames of the next latent frame."""
        flat = self.flatten(action, len(state))
        shown = None
        if (frames is None) == (latents is None):
            raise DataError("observe: expected frames or latents, found both or neither")
        if frames is not None:
            frames = _tensor(frames)
            shown = self._check_frames(frames[:, None] if frames.ndim == 4 else frames)
            state, latents = self._read_next(state, shown)
        assert latents is not None
        self._check_latents("latents", latents, (self.dynamics.tokens, self.config.channels), len(state))
        x = latents.to(self.dynamics.device, self.dynamics.dtype)[:, None]
        return self.dynamics.observe(self.dynamics.own(state, reuse=reuse), flat[:, None], x, shown)

    @torch.inference_mode()
    def with_text(self, state: WorldState, text: str | Sequence[str]) -> WorldState:
        """Return the state with another text; its window is encoded again with that text."""
        texts = tuple(_texts(text, len(state)))
        return self.dynamics.rebuilt(replace(state, texts=texts, text=self.encode_text(texts), cache=None))

    @torch.inference_mode()
    def log_prob(
        self, frames: Any, actions: Clip = None, *, text: str | Sequence[str] = "", seed: int = 0
    ) -> Tensor:
        """Return the nats per latent frame (B, T) of clips (B, T, H, W, 3), computed in parallel by teacher forcing.

        Equals the nats of `start` and `observe`, frame by frame; clips longer than the window are split where it
        slides.
        """
        frames = self._check_frames(frames)
        rows, count = len(frames), self.dynamics.frames.count(frames.shape[1])
        keys = torch.tensor(_keys(seed, rows))
        flat, states = self._flat_clip(actions, rows, count), self.encode_text(_texts(text, rows))
        x = self.dynamics.frames.noisy(frames, keys, torch.zeros_like(keys))
        config, flow = self.config, self.networks.flow
        parts = []
        for begin, known, end in spans(count, config.window, config.context):
            part, action = slice(begin, end), self.networks.action(flat[:, begin:end])
            with flow.products():
                nats, _ = flow.nats(x[:, part], states, action, self.dynamics.tables)
            parts.append(nats.sum(-1)[:, known - begin :])
        return torch.cat(parts, dim=1)

    def _read_next(self, state: WorldState, frames: Tensor) -> tuple[WorldState, Tensor]:
        """Encode the next frames of every row; return the state with new codec streams, and noisy latents (B, n, c)."""
        self.dynamics.check(state)
        counts = {self.dynamics.frames.frames_at(step) for step in state.step.tolist()}
        if len(frames) != len(state) or counts != {frames.shape[1]}:
            expected = f"{' or '.join(map(str, sorted(counts)))} for each of {len(state)} rows"
            raise DataError(f"frames: expected {expected}, found {tuple(frames.shape[:2])}")
        state, latents = self.dynamics.frames.read(state, frames)
        return state, latents[:, 0]

    # ---- inputs --------------------------------------------------------------------------------------------------

    def flatten(self, action: Any, rows: int | None = None) -> Tensor:
        """Flatten actions to (B, 1 + flat). Raises ActionError for an action outside the action space."""
        size = self.networks.action.project.in_features
        if isinstance(action, Tensor) and action.is_floating_point():
            flat = action
        elif not _items(action):
            raise ActionError(f"action: expected one action per row, found {action!r:.80}")
        else:
            flat = flatten_actions(self.action_space, _items(action))
        if rows is None:
            rows = len(flat) if flat.ndim else 1
        if flat.ndim != 2 or flat.shape != (rows, size) or not bool(flat.isfinite().all()):
            expected = f"{rows or 'one or more'} rows of {size} finite numbers"
            raise ActionError(f"action: expected {expected}, found shape {tuple(flat.shape)}")
        return flat.to(self.dynamics.device, self.dynamics.dtype)

    def _flat_clip(self, actions: Clip, rows: int, count: int) -> Tensor:
        actions = [[None] * count for _ in range(rows)] if actions is None else actions
        if isinstance(actions, Tensor) and actions.is_floating_point():
            lengths = [actions.shape[1]] * len(actions) if actions.ndim == 3 else []
        else:
            lengths = [len(_items(row)) for row in _items(actions)]
        if lengths != [count] * rows:
            expected = f"{rows} rows of {count}, one per frame (the first may be None)"
            raise ActionError(f"actions: expected {expected}, found lengths {lengths!s:.80}")
        return torch.stack([self.flatten(row, count) for row in actions])

    def texts_for(self, texts: Sequence[str]) -> list[str]:
        """Return the texts of recordings, or empty ones for a world that takes no text."""
        return list(texts) if self.networks.text is not None else [""] * len(texts)

    def _check_frames(self, frames: Any) -> Tensor:
        frames = _tensor(frames)
        size = (self.config.height, self.config.width, 3)
        if frames.dtype != torch.uint8 or frames.ndim != 5 or tuple(frames.shape[2:]) != size or 0 in frames.shape:
            raise DataError(
                f"frames: expected uint8 (rows, frames, {size[0]}, {size[1]}, 3), found {frames.dtype} "
                f"{tuple(frames.shape)}; convert and resize them to the world's size"
            )
        return frames.to(self.dynamics.device)

    def _check_latents(self, name: str, latents: Tensor, shape: tuple[int, int], rows: int) -> None:
        expected = (rows, *shape)
        if not isinstance(latents, Tensor) or not latents.is_floating_point():
            raise DataError(f"{name}: expected a Tensor of floats, found {type(latents).__name__}")
        if tuple(latents.shape) != expected or not bool(latents.isfinite().all()):
            raise DataError(f"{name}: expected finite numbers of shape {expected}, found shape {tuple(latents.shape)}")


@dataclass(frozen=True)
class Starts:
    """First frames (N, H, W, 3) u8 with their texts, from which episodes begin."""

    frames: Tensor
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.frames)

    def places(self, text: str | None) -> list[int]:
        """Return the indices of the starts with this text; None: all indices."""
        return [index for index, own in enumerate(self.texts) if text in (None, own)]


def find_world(path_or_name: str | Path) -> Path:
    """Return the folder of a world, given that folder or the name of a shipped world, of which a folder with other
    things, such as rollouts, may have the name."""
    folders = sorted(SHIPPED.iterdir()) if SHIPPED.is_dir() else []
    shipped = {folder.name: folder for folder in folders if folder.is_dir()}
    with suppress(OSError, ValueError):  # no folder can have this name
        if Path(path_or_name).is_dir() and (str(path_or_name) not in shipped or Path(path_or_name, CONFIG).exists()):
            return Path(path_or_name)
    if str(path_or_name) in shipped:
        return shipped[str(path_or_name)]
    near = difflib.get_close_matches(str(path_or_name)[:80], shipped, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"shipped worlds: {', '.join(shipped) or 'none'}"
    found = f"{str(path_or_name)!r:.120}; {hint}"
    raise CheckpointError(f"world: expected a folder or the name of a shipped world, found {found}")


def _tensor(frames: Any) -> Tensor:
    """Return a copy of the frames as a tensor, so that later writes to the input do not change a state."""
    try:
        return frames.clone() if isinstance(frames, Tensor) else torch.from_numpy(np.array(frames))
    except (TypeError, ValueError):
        raise DataError(f"frames: expected an array, found {type(frames).__name__}") from None


def _items(many: Any) -> list[Any]:
    """Return the elements of a list, tuple or array as a list; [] for any other value."""
    plural = hasattr(many, "__len__") and not isinstance(many, str | bytes | dict) and getattr(many, "ndim", 1) > 0
    return list(many) if plural else []


def _count(text: Any, seed: Any) -> int:
    return len(_items(seed)) or 1 if isinstance(text, str) else len(_items(text))


def _texts(text: str | Sequence[str], rows: int) -> list[str]:
    texts = [text] * rows if isinstance(text, str) else _items(text)
    if len(texts) != rows:
        raise DataError(f"text: expected one, or one for each of {rows} rows, found {text!r:.80}")
    return texts


def _keys(seed: int | Sequence[int], rows: int) -> list[int]:
    """Return a noise key for each row: seed, seed + 1, ... for a single seed, else the given seeds."""
    seeds = [seed + row for row in range(rows)] if isinstance(seed, int | np.integer) else _items(seed)
    if len(seeds) != rows or not all(isinstance(s, int | np.integer) and s >= 0 for s in seeds):
        raise DataError(f"seed: expected a number >= 0, or one for each of {rows} rows, found {seed!r:.80}")
    return [make_key(int(s)) for s in seeds]


def _digest(networks: Networks) -> str:
    found = hashlib.sha256(json.dumps(to_dict(networks.config), sort_keys=True).encode())
    for name, tensor in sorted(networks.state_dict().items()):
        found.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
