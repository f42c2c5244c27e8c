"""`infos` of vector envs in Gymnasium's form: for each key an array (N, ...) of N rows and a mask `_key` (N,) bool."""

from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

import numpy as np

PAD = 255
"""Padding byte; it never occurs in UTF-8 text."""


class TextArray(np.ndarray[Any, Any]):
    """Array of N texts for frameworks without strings: `texts[row]` is a string; the numbers are the UTF-8 bytes of
    each text, (N, width) uint8, padded with 255.

    Gymnasium's NumpyToTorch and other wrappers convert every array in `infos` to a tensor, which fails for arrays of
    Python strings.
    """

    def __new__(cls, texts: Iterable[str | None], width: int) -> "TextArray":
        """Encode texts as an array of at least this width; None counts as the empty text."""
        encoded = [(text or "").encode() for text in texts]
        codes = np.full((len(encoded), max([width, 1, *map(len, encoded)])), PAD, np.uint8)
        for row, text in zip(codes, encoded, strict=True):
            row[: len(text)] = list(text)
        return codes.view(cls)

    def __getitem__(self, index: Any) -> Any:
        part = np.asarray(self)[index]
        if isinstance(index, SupportsIndex):
            return bytes(part[part != PAD].tolist()).decode()
        return part.view(TextArray) if part.ndim == 2 else part

    def __array_wrap__(self, array: np.ndarray, *_: Any) -> Any:
        return np.asarray(array)[()]  # the result of arithmetic on the bytes is not text

    def __iter__(self) -> Any:
        return (self[row] for row in range(len(self)))

    def tolist(self) -> list[Any]:
        """Return the texts as a list of strings."""
        return list(self)

    def __repr__(self) -> str:
        return f"TextArray({self.tolist()})"

    __str__ = __repr__


def spread_rows(infos: dict[str, Any], facts: dict[str, np.ndarray], rows: np.ndarray, num_envs: int) -> None:
    """Write per-row values (k, ...) of `rows` (k,) into `infos`; all other rows have zeros or None."""
    for key, values in facts.items():
        if key not in infos:
            infos[key] = _blank(num_envs, values)
            infos[f"_{key}"] = np.zeros(num_envs, bool)
        infos[key][rows] = values
        infos[f"_{key}"][rows] = True


def merge_infos(parts: Sequence[dict[str, Any]], widths: Sequence[int]) -> dict[str, Any]:
    """Merge the infos of shards with these numbers of rows into new arrays; a key that a shard lacks is zero or None in
    its rows."""
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        given = [part.get(key) for part in parts]
        example = next(value for value in given if value is not None)
        if isinstance(example, dict):
            merged[key] = merge_infos([value or {} for value in given], widths)
            continue
        pairs = zip(given, widths, strict=True)
        values = [_blank(width, example) if value is None else value for value, width in pairs]
        if isinstance(example, TextArray):
            texts = [value.tolist() if isinstance(value, TextArray) else [None] * len(value) for value in values]
            merged[key] = TextArray([text for part in texts for text in part], example.shape[1])
        else:
            merged[key] = np.concatenate(values)
        if merged[key].dtype == object:  # Ray's arrays are read-only
            merged[key][:] = [value.copy() if isinstance(value, np.ndarray) else value for value in merged[key]]
    return merged


def with_text_arrays(infos: dict[str, Any], width: int) -> dict[str, Any]:
    """Return infos whose arrays of strings are TextArrays of at least this width."""
    return {
        key: with_text_arrays(value, width) if isinstance(value, dict)
        else TextArray(value, width) if value.dtype == object and key != "final_obs" else value
        for key, value in infos.items()
    }


def _blank(rows: int, like: np.ndarray) -> np.ndarray:
    return np.full((rows, *like.shape[1:]), None if like.dtype == object else 0, like.dtype)
