"""The state of a world: an immutable value whose fields have a leading row axis B; methods return new states.

`tokens`, `latents`, `actions`, `text` (encoded from `texts`), `length`, `step` and `key` are canonical.
`cache` is derived from them: a snapshot may omit it, `take_cache` removes it, and the world rebuilds it when needed.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from starflow_world.codec.stream import Streams, pack_streams
from starflow_world.errors import StarflowError, StateError
from starflow_world.flow import KVCache
from starflow_world.io.files import read_tensors, write_tensors
from starflow_world.model.networks import Networks

FORMAT = "2"
CACHE = ("keys", "values", "length")
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
TENSORS = ("tokens", "latents", "actions", "length", "step", "key")


class Home(Protocol):
    """The part of a World that is needed to check and load a snapshot."""

    @property
    def world_id(self) -> str:
        """Return the digest of the checkpoint."""

    @property
    def networks(self) -> Networks:
        """Return the networks of the world."""

    def empty(self, texts: Sequence[str], keys: Sequence[int]) -> "WorldState":
        """Return the state of rows before their first frame."""


@dataclass(frozen=True)
class WorldState:
    """State of B independent rows.

    tokens (B, W, n, c) f32: deep-block tokens u of the frames in the window; latents (B, W', n, c): what the newest
    frame is decoded from (`FrameCoder.memory`); actions (B, W, 1 + flat); text (B, L, d): encoded `texts`, or None;
    length (B,): frames in the window; step (B,): frames since the start; key (B,) int64: noise key; cache: keys and
    values of the window, or None; streams (B): memory of a stateful codec for each row, None for other codecs.
    """

    tokens: Tensor
    latents: Tensor
    actions: Tensor
    text: Tensor | None
    texts: tuple[str, ...]
    length: Tensor
    step: Tensor
    key: Tensor
    cache: KVCache | None
    world_id: str
    streams: Streams = ()

    def __len__(self) -> int:
        return len(self.length)

    def __getitem__(self, rows: int | Sequence[int] | Tensor) -> "WorldState":
        """Return copies of the given rows: state[2], state[[0, 0, 0]] (three branches), state[mask]."""
        try:
            index = torch.as_tensor(rows)
        except (TypeError, ValueError, RuntimeError):
            index = torch.empty(0)
        if index.dtype == torch.bool and index.shape == self.length.shape:
            index = index.nonzero()[:, 0]
        index = index.cpu().reshape(-1) if index.ndim < 2 and index.dtype in INTEGERS else torch.empty(0)
        if len(index) == 0 or int(index.min()) < -len(self) or int(index.max()) >= len(self):
            raise StateError(f"rows: expected at least one index below {len(self)} or a mask, found {rows!r:.80}")
        index = index.long() % len(self)
        fields = {name: getattr(self, name)[index.to(getattr(self, name).device)] for name in TENSORS}
        return replace(
            self, **fields, texts=tuple(self.texts[i] for i in index.tolist()),
            text=None if self.text is None else self.text[index.to(self.text.device)],
            cache=None if self.cache is None else self.cache.select(index),
            streams=tuple(self.streams[i] for i in index.tolist()),
        )

    @staticmethod
    def stack(states: "Sequence[WorldState]") -> "WorldState":
        """Return one state with the rows of several states of the same world."""
        if not states or len({state.world_id for state in states}) > 1:
            raise StateError("stack: expected one or more states of one world, found none or several worlds")
        first = states[0]
        fields: dict[str, Any] = {name: torch.cat([getattr(s, name) for s in states]) for name in TENSORS}
        texts = [s.text for s in states if s.text is not None]
        caches = [s.cache for s in states if s.cache is not None]
        return replace(
            first, **fields, texts=tuple(text for s in states for text in s.texts),
            text=torch.cat(texts) if texts else None,
            cache=KVCache.stack(caches) if len(caches) == len(states) else None,
            streams=tuple(stream for s in states for stream in s.streams),
        )

    def clone(self) -> "WorldState":
        """Return a copy that shares no storage that any method overwrites."""
        fields = {name: getattr(self, name).clone() for name in TENSORS}
        return replace(
            self, **fields, text=None if self.text is None else self.text.clone(),
            cache=None if self.cache is None else self.cache.clone(),
        )

    def with_keys(self, keys: Sequence[int] | Tensor) -> "WorldState":
        """Return the same rows with other noise keys (B,), so that later samples differ."""
        key = torch.tensor([int(key) for key in keys], dtype=torch.int64)
        if key.shape != self.key.shape or bool((key < 0).any()):
            raise StateError(f"keys: expected {len(self)} integers >= 0, found {keys!r:.80}")
        return replace(self.clone(), key=key)

    def replace_rows(self, rows: Tensor, other: "WorldState") -> "WorldState":
        """Return the state with `rows` replaced by the rows of `other`."""
        index = torch.arange(len(self))
        if len(index[rows]) != len(other):
            raise StateError(f"rows: expected one row for each of {len(index[rows])}, found {len(other)}")
        index[rows] = len(self) + torch.arange(len(other))
        return WorldState.stack([self, other])[index]

    def take_cache(self) -> KVCache | None:
        """Return the cache and drop it from this state; the caller may overwrite its storage."""
        cache = self.cache
        object.__setattr__(self, "cache", None)
        return cache

    def digest(self) -> str:
        """Return the SHA-256 of all fields, valid cache positions included."""
        found = hashlib.sha256(repr((self.texts, self.world_id)).encode())
        parts = [getattr(self, name) for name in (*TENSORS, "text")]
        remembered, seen = pack_streams(self.streams)
        if seen is not None:
            parts += [*remembered.values()]
            found.update(repr(seen).encode())
        if self.cache is not None:
            for row, length in enumerate(self.cache.length.tolist()):
                parts += [part[:, row, :, :length].transpose(1, 2) for part in (self.cache.keys, self.cache.values)]
        for part in parts:
            found.update(b"-" if part is None else part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()

    # ---- snapshots -----------------------------------------------------------------------------------------------

    def save(self, path: Path | str, *, exact: bool = True) -> None:
        """Write a snapshot. exact=True keeps the cache: it resumes bit-identically on the same software, device and
        batch size.

        With exact=False, or after `take_cache`, only canonical fields are written (about 100 times smaller); the cache
        is rebuilt when needed.
        """
        found = _tensors(self)
        kept = {name: tensor for name, tensor in found.items() if exact or name in TENSORS}
        metadata = {"format": FORMAT, "world_id": self.world_id, "texts": json.dumps(self.texts)}
        remembered, seen = pack_streams(self.streams)
        if seen is not None:
            kept, metadata = kept | remembered, metadata | {"streams": json.dumps(seen)}
        write_tensors(path, kept, metadata, sealed=True, error=StateError)

    @staticmethod
    def load(path: Path | str, world: Home) -> "WorldState":
        """Read a snapshot of `world`. Raises StateError that names the field which does not fit."""
        tensors, metadata = read_tensors(path, StateError, sealed=True)
        texts = _check_metadata(path, metadata, world.world_id)
        if "length" not in tensors or tensors["length"].shape != (len(texts),):
            raise StateError(f"{path}: length: expected one for each of {len(texts)} rows, found other: damaged")
        try:
            empty = world.empty(texts, [0] * len(texts))
        except StarflowError as error:
            raise StateError(f"{path}: {error}") from None
        like = _tensors(empty)
        streams = _streams(path, tensors, metadata, world)
        _check_tensors(path, tensors, like)
        fitting: dict[str, Any] = {name: t.to(like[name].device, like[name].dtype) for name, t in tensors.items()}
        cache = {name: fitting.pop(f"cache.{name}") for name in CACHE if f"cache.{name}" in fitting}
        state = replace(empty, **fitting, cache=KVCache.restored(**cache) if cache else None, streams=streams)
        _check_numbers(path, state, empty)
        return state


def _tensors(state: WorldState) -> dict[str, Tensor]:
    """Return all tensors of a state by name, those of the cache included."""
    tensors = {name: getattr(state, name) for name in (*TENSORS, "text")}
    if state.cache is not None:
        tensors |= {f"cache.{name}": tensor for name, tensor in state.cache.stored().items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


@dataclass(frozen=True)
class Transition:
    """Result of one step of B rows.

    frames (B, F, H, W, 3) u8; latents (B, n, c): noisy; noise (B, n, c + g): noise that gives them; reward,
    end_probability (B,): NaN without an outcome head; end (B,) bool; nats (B,): log-probability of the noisy latents
    given the history; token_nats (B, n): the same per token; sweeps (B,): Jacobi sweeps of the deep block (0 if
    observed); residual (B,): in noise units; converged (B,) bool.
    """

    frames: Tensor
    latents: Tensor
    noise: Tensor
    reward: Tensor
    end_probability: Tensor
    end: Tensor
    nats: Tensor
    token_nats: Tensor
    sweeps: Tensor
    residual: Tensor
    converged: Tensor


def _check_metadata(path: Path | str, metadata: dict[str, str], world_id: str) -> tuple[str, ...]:
    if metadata.get("format") != FORMAT:
        raise StateError(f"{path}: expected a snapshot of format {FORMAT}, found {metadata.get('format')!r}")
    if metadata.get("world_id") != world_id:
        found = metadata.get("world_id", "")[:12]
        raise StateError(f"{path}: expected a state of world {world_id[:12]}, found one of {found}")
    try:
        texts = json.loads(metadata.get("texts", ""))
    except (ValueError, RecursionError):
        texts = None
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise StateError(f"{path}: texts: expected a list of strings, found damage")
    return tuple(texts)


def _streams(path: Path | str, tensors: dict[str, Tensor], metadata: dict[str, str], world: Home) -> Streams:
    """Remove the codec streams from `tensors` and return one per row. Raises StateError."""
    kept = {name: tensors.pop(name) for name in list(tensors) if name.startswith("streams.")}
    try:
        seen = json.loads(metadata.get("streams", "null"))
        return world.networks.codec.unpack(kept, seen, tensors["step"].tolist())
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise StateError(f"{path}: expected what the world's codec remembers, found {error!s:.200}: damaged") from None


def _check_tensors(path: Path | str, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise StateError unless names, shapes and dtypes fit `expected` and the cache is complete or absent."""
    cached = {f"cache.{name}" for name in CACHE}
    needed = set(TENSORS) | (cached if cached & set(tensors) else set())
    for name in sorted(needed | set(tensors)):
        if name not in tensors or name not in expected:
            problem = "expected it, found nothing" if name in needed else "unknown"
            raise StateError(f"{path}: {name}: {problem}: damaged")
        found, fits = tensors[name], expected[name]
        same = found.is_floating_point() if fits.is_floating_point() else found.dtype == fits.dtype
        if not same or found.shape != fits.shape:
            form = f"{tuple(found.shape)} {found.dtype}"
            raise StateError(f"{path}: {name}: expected {tuple(fits.shape)} {fits.dtype}, found {form}: damaged")


def _check_numbers(path: Path | str, state: WorldState, empty: WorldState) -> None:
    length, window, count = state.length, state.tokens.shape[1], state.tokens.shape[2]
    if bool(((length < 0) | (length > window) | (state.step < length) | (state.key < 0)).any()):
        raise StateError(f"{path}: expected 0 <= length <= {window}, length <= step, keys >= 0, found others: damaged")
    if state.cache is None or empty.cache is None:
        return
    if bool((state.cache.length != empty.cache.length + length * count).any()):
        raise StateError(f"{path}: cache: expected the tokens of {length.tolist()} frames, found others: damaged")
