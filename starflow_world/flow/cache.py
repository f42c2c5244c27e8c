"""Key-value cache of attention: keys and values of committed tokens, with a length per batch element.

A `KVCache` is storage plus the number of valid positions of each batch element. `write` stores the keys of tokens in
progress after the valid positions and changes no length: they are scratch until `commit` returns a cache with larger
lengths. Keys are stored after the rotary rotation. Several caches may share storage; `clone` copies it.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Visible:
    """Causal mask of `count` new tokens after `length` (B,) cached keys, built lazily for each attention kernel. It is
    added to the attention scores: 0 where a query may attend, -inf elsewhere. `capacity`: positions in the cache."""

    length: Tensor
    count: int
    capacity: int
    dtype: torch.dtype
    device: torch.device

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Return the number of keys that each batch element attends to."""
        return tuple((self.length + self.count).tolist())

    @cached_property
    def own(self) -> Tensor:
        """Return the mask (1, 1, count, keys) of the longest batch element; the shorter ones use its last columns."""
        new = torch.full((self.count, self.count), -torch.inf, dtype=self.dtype, device=self.device).triu(1)
        return torch.cat((new.new_zeros(self.count, max(self.ends) - self.count), new), dim=1)[None, None]

    @cached_property
    def whole(self) -> Tensor:
        """Return the mask (B, 1, count, capacity), whose shape does not depend on the lengths."""
        last = self.length[:, None] + torch.arange(self.count)
        hidden = torch.arange(self.capacity) > last[:, :, None]
        return torch.zeros(hidden.shape, dtype=self.dtype).masked_fill_(hidden, -torch.inf)[:, None].to(self.device)


@dataclass(frozen=True)
class KVCache:
    """Cached keys and values (layers, B, H, capacity, e), contiguous per head as attention reads them.

    `length` (B,), on the CPU, is the number of valid positions of each batch element."""

    keys: Tensor
    values: Tensor
    length: Tensor

    @staticmethod
    def empty(
        layers: int, rows: int, capacity: int, heads: int, head_width: int, *, dtype: torch.dtype, device: torch.device
    ) -> "KVCache":
        """Allocate an empty cache for `rows` batch elements; zeros, since masked positions must hold finite numbers."""
        shape = (layers, rows, heads, capacity, head_width)
        keys = torch.zeros(shape, dtype=dtype, device=device)
        return KVCache(keys, torch.zeros_like(keys), torch.zeros(rows, dtype=torch.long))

    @cached_property
    def common(self) -> int | None:
        """Return the number of valid positions if it is the same for all batch elements."""
        first = int(self.length[0]) if len(self.length) else 0
        return first if bool((self.length == first).all()) else None

    @property
    def rows(self) -> int:
        """Return the number of batch elements, B."""
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        """Return the number of positions that each batch element can hold."""
        return self.keys.shape[3]

    def visible(self, count: int, dtype: torch.dtype) -> Visible:
        """Return the causal mask of `count` new tokens after the valid positions, for queries of `dtype`."""
        return Visible(self.length, count, self.capacity, dtype, self.keys.device)

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store key and value (B, S, H, e) after the valid positions; return both storages, (B, H, capacity, e)."""
        keys, values, count = self.keys[layer], self.values[layer], key.shape[1]
        if self.common is not None:
            place = slice(self.common, self.common + count)
            keys[:, :, place], values[:, :, place] = key.transpose(1, 2), value.transpose(1, 2)
            return keys, values
        row = torch.arange(self.rows)[:, None].to(keys.device)
        position = (self.length[:, None] + torch.arange(count)).to(keys.device)
        keys[row, :, position] = key.to(keys.dtype)
        values[row, :, position] = value.to(values.dtype)
        return keys, values

    def commit(self, count: int | Tensor) -> "KVCache":
        """Return the cache with the `count` positions written last marked as valid."""
        return replace(self, length=self.length + count)

    def rollback(self, length: int | Tensor) -> "KVCache":
        """Return the cache with only the first `length` positions of each batch element valid."""
        return replace(self, length=torch.zeros_like(self.length) + length)

    def select(self, rows: Tensor, capacity: int | None = None) -> "KVCache":
        """Return a copy of the batch elements `rows`, cut to their first `capacity` positions if that is given."""
        where = rows.to(self.keys.device)
        return KVCache(self.keys[:, where, :, :capacity], self.values[:, where, :, :capacity], self.length[rows])

    def folded(self) -> "KVCache":
        """Return a view of 2B batch elements [a; b], both halves of equal lengths, as B elements with twice the layers,
        so that each operation on an element applies to both halves."""
        layers, rows, *rest = self.keys.shape
        keys, values = (part.view(2 * layers, rows // 2, *rest) for part in (self.keys, self.values))
        return KVCache(keys, values, self.length[: rows // 2])

    def unfolded(self) -> "KVCache":
        """Return a view that undoes `folded`."""
        layers, rows, *rest = self.keys.shape
        keys, values = (part.view(layers // 2, 2 * rows, *rest) for part in (self.keys, self.values))
        return KVCache(keys, values, self.length.repeat(2))

    def insert(self, rows: Tensor, other: "KVCache") -> "KVCache":
        """Overwrite the batch elements `rows` with those of `other`, in place, and return the cache with their lengths.
        `other` may have a smaller capacity."""
        where = rows.to(self.keys.device)
        self.keys[:, where, :, : other.capacity] = other.keys
        self.values[:, where, :, : other.capacity] = other.values
        return replace(self, length=self.length.index_copy(0, rows, other.length))

    @staticmethod
    def stack(caches: "list[KVCache]") -> "KVCache":
        """Concatenate caches of equal capacity along the batch, as a copy."""
        return KVCache(
            torch.cat([cache.keys for cache in caches], dim=1),
            torch.cat([cache.values for cache in caches], dim=1),
            torch.cat([cache.length for cache in caches]),
        )

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors of a snapshot, with keys and values in file layout, (layers, B, capacity, H, e)."""
        return {"keys": self.keys.transpose(2, 3), "values": self.values.transpose(2, 3), "length": self.length}

    @staticmethod
    def restored(keys: Tensor, values: Tensor, length: Tensor) -> "KVCache":
        """Build a cache from the tensors that `stored` returned."""
        return KVCache(keys.transpose(2, 3).contiguous(), values.transpose(2, 3).contiguous(), length)

    def clone(self) -> "KVCache":
        """Return a copy that shares no storage."""
        return KVCache(self.keys.clone(), self.values.clone(), self.length.clone())
