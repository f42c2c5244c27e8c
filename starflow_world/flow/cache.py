"""Keys and values of committed tokens, as a value with a length per row.

A `KVCache` is storage plus the number of valid positions of each row. `write` puts the keys of the positions that are
being computed behind the valid ones and changes no length: until `commit` returns a longer value they are scratch.
Keys are stored rotated, once. Several values may share storage; `clone` ends that.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Visible:
    """Where `count` new positions may look behind the first length (B,) keys of `capacity`; each way to attend makes of
    it what it needs. Masks are added to the scores: 0 where a query may look and -inf elsewhere."""

    length: Tensor
    count: int
    capacity: int
    dtype: torch.dtype
    device: torch.device

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Keys that each row looks at."""
        return tuple((self.length + self.count).tolist())

    @cached_property
    def own(self) -> Tensor:
        """(1, 1, count, keys) for the row that looks at most keys; for others the last columns of it."""
        new = torch.full((self.count, self.count), -torch.inf, dtype=self.dtype, device=self.device).triu(1)
        return torch.cat((new.new_zeros(self.count, max(self.ends) - self.count), new), dim=1)[None, None]

    @cached_property
    def whole(self) -> Tensor:
        """(B, 1, count, capacity), of a shape that no length changes."""
        last = self.length[:, None] + torch.arange(self.count)
        hidden = torch.arange(self.capacity) > last[:, :, None]
        return torch.zeros(hidden.shape, dtype=self.dtype).masked_fill_(hidden, -torch.inf)[:, None].to(self.device)


@dataclass(frozen=True)
class KVCache:
    """keys, values (layers, B, H, capacity, e): the keys of a head are contiguous, as attention reads them; length (B,)
    on the CPU: valid positions of each row."""

    keys: Tensor
    values: Tensor
    length: Tensor

    @staticmethod
    def empty(
        layers: int, rows: int, capacity: int, heads: int, head_width: int, *, dtype: torch.dtype, device: torch.device
    ) -> "KVCache":
        """A cache of `rows` rows with nothing valid; zeros, because masked positions must still be finite numbers."""
        shape = (layers, rows, heads, capacity, head_width)
        keys = torch.zeros(shape, dtype=dtype, device=device)
        return KVCache(keys, torch.zeros_like(keys), torch.zeros(rows, dtype=torch.long))

    @property
    def rows(self) -> int:
        """Number of rows, B."""
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        """Positions that a row can hold."""
        return self.keys.shape[3]

    def visible(self, count: int, dtype: torch.dtype) -> Visible:
        """What `count` new positions behind the valid ones see, for queries of `dtype`."""
        return Visible(self.length, count, self.capacity, dtype, self.keys.device)

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store key and value (B, S, H, e) after the valid positions; return all that is there, (B, H, capacity, e)."""
        keys, values, row = self.keys[layer], self.values[layer], torch.arange(self.rows)[:, None]
        position = (self.length[:, None] + torch.arange(key.shape[1])).to(keys.device)
        row = row.to(keys.device)
        keys[row, :, position] = key.to(keys.dtype)
        values[row, :, position] = value.to(values.dtype)
        return keys, values

    def commit(self, count: int | Tensor) -> "KVCache":
        """The value in which the `count` positions written last are valid too."""
        return replace(self, length=self.length + count)

    def rollback(self, length: int | Tensor) -> "KVCache":
        """The value with only the first `length` positions of each row valid."""
        return replace(self, length=torch.zeros_like(self.length) + length)

    def select(self, rows: Tensor, capacity: int | None = None) -> "KVCache":
        """The given rows, copied; their first `capacity` positions, if it is given."""
        where = rows.to(self.keys.device)
        return KVCache(self.keys[:, where, :, :capacity], self.values[:, where, :, :capacity], self.length[rows])

    def folded(self) -> "KVCache":
        """The halves [a; b] of 2B rows, of equal lengths, as B rows of twice the layers: what is done to a row is then
        done to both. A view, as `unfolded` is."""
        layers, rows, *rest = self.keys.shape
        keys, values = (part.view(2 * layers, rows // 2, *rest) for part in (self.keys, self.values))
        return KVCache(keys, values, self.length[: rows // 2])

    def unfolded(self) -> "KVCache":
        """The inverse of `folded`."""
        layers, rows, *rest = self.keys.shape
        keys, values = (part.view(layers // 2, 2 * rows, *rest) for part in (self.keys, self.values))
        return KVCache(keys, values, self.length.repeat(2))

    def insert(self, rows: Tensor, other: "KVCache") -> "KVCache":
        """The value in which `rows` are replaced by the rows of `other`, as far as those reach; the storage is written.
        """
        where = rows.to(self.keys.device)
        self.keys[:, where, :, : other.capacity] = other.keys
        self.values[:, where, :, : other.capacity] = other.values
        return replace(self, length=self.length.index_copy(0, rows, other.length))

    @staticmethod
    def stack(caches: "list[KVCache]") -> "KVCache":
        """All rows of several caches of one capacity, copied."""
        return KVCache(
            torch.cat([cache.keys for cache in caches], dim=1),
            torch.cat([cache.values for cache in caches], dim=1),
            torch.cat([cache.length for cache in caches]),
        )

    def stored(self) -> dict[str, Tensor]:
        """The tensors of a snapshot; keys and values in the layout of its files, (layers, B, capacity, H, e)."""
        return {"keys": self.keys.transpose(2, 3), "values": self.values.transpose(2, 3), "length": self.length}

    @staticmethod
    def restored(keys: Tensor, values: Tensor, length: Tensor) -> "KVCache":
        """The inverse of `stored`."""
        return KVCache(keys.transpose(2, 3).contiguous(), values.transpose(2, 3).contiguous(), length)

    def clone(self) -> "KVCache":
        """A copy that shares no storage."""
        return KVCache(self.keys.clone(), self.values.clone(), self.length.clone())
