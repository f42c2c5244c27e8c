"""The state of a world: a value. Every field has a leading row axis B; methods return new values.

`tokens`, `latents`, `actions`, `text` (with its strings), `length`, `step` and `key` are canonical; `cache` is derived
from them and can be left out of a snapshot, or be given away (`take_cache`): the world then rebuilds it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import StateError
from .files import read_tensors, write_tensors
from .flow import KVCache

FORMAT = "1"
TENSORS = ("tokens", "latents", "actions", "length", "step", "key")


class Shapes(Protocol):
    """What a snapshot is checked against: a World."""

    @property
    def world_id(self) -> str:
        """Digest of the checkpoint."""

    def field_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each canonical tensor field behind the row axis."""

    def encode_text(self, texts: Sequence[str]) -> Tensor | None:
        """States (B, L, d) of one string per row."""


@dataclass(frozen=True)
class WorldState:
    """B rows, each an independent world.

    tokens (B, W, n, c) f32: u of the frames in the window; latents (B, W', n, c): noisy latents that the denoiser looks
    back on; actions (B, W, 1 + flat); text (B, L, d) or None, with `texts`; length (B,): valid frames in the window;
    step (B,): frames since the start; key (B,) int64: noise key; cache: keys and values of the window, or None.
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

    def __len__(self) -> int:
        return len(self.length)

    def __getitem__(self, rows: int | Sequence[int] | Tensor) -> "WorldState":
        """The given rows, copied: state[2], state[[0, 0, 0]] (three branches), state[mask]."""
        index = torch.as_tensor([rows] if isinstance(rows, int) else rows)
        index = index.nonzero()[:, 0] if index.dtype == torch.bool else index
        if len(index) == 0 or int(index.min()) < -len(self) or int(index.max()) >= len(self):
            raise StateError(f"rows: expected at least one index below {len(self)}, found {rows!r:.80}")
        index = index % len(self)
        fields = {name: getattr(self, name)[index.to(getattr(self, name).device)] for name in TENSORS}
        return replace(
            self, **fields, texts=tuple(self.texts[i] for i in index.tolist()),
            text=None if self.text is None else self.text[index.to(self.text.device)],
            cache=None if self.cache is None else self.cache.select(index),
        )

    @staticmethod
    def stack(states: "Sequence[WorldState]") -> "WorldState":
        """The rows of several states of one world as one state."""
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
        )

    def clone(self) -> "WorldState":
        """A copy that shares no storage."""
        fields = {name: getattr(self, name).clone() for name in TENSORS}
        return replace(
            self, **fields, text=None if self.text is None else self.text.clone(),
            cache=None if self.cache is None else self.cache.clone(),
        )

    def with_keys(self, keys: Sequence[int] | Tensor) -> "WorldState":
        """The same rows with other noise keys, (B,): other futures from here on."""
        key = torch.as_tensor(keys, dtype=torch.int64)
        if key.shape != self.key.shape:
            raise StateError(f"keys: expected {len(self)} integers, found shape {tuple(key.shape)}")
        return replace(self, key=key)

    def replace_rows(self, rows: Tensor, other: "WorldState") -> "WorldState":
        """The state in which `rows` are replaced by the rows of `other`."""
        index = torch.arange(len(self))
        index[rows] = len(self) + torch.arange(len(other))
        return WorldState.stack([self, other])[index]

    def take_cache(self) -> KVCache | None:
        """Give the cache away: its storage may be written by the taker, and this state goes on without one."""
        cache = self.cache
        object.__setattr__(self, "cache", None)
        return cache

    def digest(self) -> str:
        """SHA-256 over all fields, valid cache positions included."""
        found = hashlib.sha256(repr((self.texts, self.world_id)).encode())
        for name in (*TENSORS, "text"):
            value = getattr(self, name)
            found.update(b"-" if value is None else value.cpu().contiguous().numpy().tobytes())
        if self.cache is not None:
            for row, length in enumerate(self.cache.length.tolist()):
                for part in (self.cache.keys, self.cache.values):
                    found.update(part[:, row, :length].float().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    # ---- snapshots -----------------------------------------------------------------------------------------------

    def save(self, path: Path | str, *, exact: bool = True) -> None:
        """Write a snapshot. Exact: with the cache, resumes bit-identically on the same software, device and width.

        Compact (exact=False): canonical fields only, some hundred times smaller; the cache is rebuilt when needed.
        """
        tensors = {name: getattr(self, name) for name in TENSORS}
        if exact and self.cache is not None:
            tensors |= {f"cache.{f.name}": getattr(self.cache, f.name) for f in dataclasses.fields(self.cache)}
        if exact and self.text is not None:
            tensors["text"] = self.text
        metadata = {"format": FORMAT, "world_id": self.world_id, "texts": json.dumps(self.texts)}
        write_tensors(path, tensors, metadata)

    @staticmethod
    def load(path: Path | str, world: Shapes) -> "WorldState":
        """Read a snapshot of `world`; StateError names what does not fit."""
        tensors, metadata = read_tensors(path, StateError)
        texts = _check_metadata(path, metadata, world.world_id)
        rows = len(texts)
        for name, shape in world.field_shapes().items():
            expected = (rows, *shape)
            if name not in tensors or tuple(tensors[name].shape) != expected:
                found = tuple(tensors[name].shape) if name in tensors else "nothing"
                raise StateError(f"{path}: {name}: expected shape {expected}, found {found}")
        _check_numbers(path, tensors, world)
        caches = {name.removeprefix("cache."): t for name, t in tensors.items() if name.startswith("cache.")}
        cache = KVCache(**caches) if set(caches) == {"keys", "values", "length"} else None
        text = tensors.get("text")
        return WorldState(
            **{name: tensors[name] for name in TENSORS}, text=world.encode_text(texts) if text is None else text,
            texts=texts, cache=cache, world_id=world.world_id,
        )


@dataclass(frozen=True)
class Transition:
    """What happened to each of B rows in one step.

    frames (B, F, H, W, 3) u8; latents (B, n, c): noisy; noise (B, n, c): z; reward, end_probability (B,) float, NaN
    without an outcome head; end (B,) bool; nats (B,): log-probability of the noisy latents given all before, and
    token_nats (B, n); sweeps (B,): deep Jacobi sweeps (0 when observed); residual (B,) in noise units; converged (B,).
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
        raise StateError(f"{path}: expected a state of world {world_id[:12]}, found one of {metadata.get('world_id', '')[:12]}")
    try:
        texts = json.loads(metadata.get("texts", ""))
    except ValueError:
        texts = None
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise StateError(f"{path}: texts: expected a list of strings, found damage")
    return tuple(texts)


def _check_numbers(path: Path | str, tensors: dict[str, Tensor], world: Shapes) -> None:
    window = world.field_shapes()["tokens"][0]
    length, step, key = tensors["length"], tensors["step"], tensors["key"]
    sane = all(t.dtype == torch.int64 for t in (length, step, key)) and tensors["tokens"].dtype == torch.float32
    if not sane or bool(((length < 0) | (length > window) | (step < length) | (key < 0)).any()):
        raise StateError(f"{path}: expected 0 <= length <= {window} <= step and keys >= 0, found other numbers: damaged")
    rows = len(length)
    expected = {"cache.keys", "cache.values", "cache.length"}
    found = {name for name in tensors if name.startswith("cache.")}
    if found and (
        found != expected or tensors["cache.keys"].ndim != 5 or tensors["cache.keys"].shape != tensors["cache.values"].shape
        or tensors["cache.keys"].shape[1] != rows or tensors["cache.length"].shape != (rows,)
        or tensors["cache.length"].dtype != torch.int64
        or bool((tensors["cache.length"] > tensors["cache.keys"].shape[2]).any())
    ):
        raise StateError(f"{path}: cache: expected keys, values and lengths of {rows} rows, found other shapes: damaged")
