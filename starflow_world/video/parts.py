"""Parts of a model that are in memory only while they work."""

import gc
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Part(Generic[T]):
    """A part of a model: `read` at its first use, and again at the first use after `release`."""

    def __init__(self, read: Callable[[], T]) -> None:
        self.read = read
        self.held: T | None = None

    def __call__(self) -> T:
        """Return the part."""
        if self.held is None:
            self.held = self.read()
        return self.held

    def release(self) -> None:
        """Give its memory back, where nothing else holds it."""
        self.held = None
        gc.collect()  # modules of other packages may refer to themselves
