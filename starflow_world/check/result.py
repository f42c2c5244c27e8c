"""Results of the examiner: measured values with their limits, printed as one line each."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starflow_world.errors import StarflowError

if TYPE_CHECKING:
    from starflow_world.check.subject import Subject

PASSED, FAILED, NOT_APPLICABLE = "passed", "failed", "not applicable"


@dataclass(frozen=True)
class Measurement:
    """A measured value and its upper limit, or the `reason` why it cannot be measured."""

    what: str
    measured: float = math.nan
    limit: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Check:
    """A promise, in one sentence, and the function that measures whether a world keeps it."""

    id: str
    promise: str
    examine: "Callable[[Subject], Iterator[Measurement]]"


def promise(id: str, text: str) -> "Callable[[Callable[[Subject], Iterator[Measurement]]], Check]":
    """Return a decorator that turns a function into the `Check` of a promise."""
    return lambda examine: Check(id, text, examine)


@dataclass(frozen=True)
class Result:
    """One measurement of a promise. `status`: passed, failed, or not applicable; `reason`: why it is not applicable, or
    the error that ended a failed check."""

    id: str
    promise: str
    what: str
    measured: float
    limit: float
    status: str
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Return whether the value was measured and is within its limit."""
        return self.status == PASSED

    def __str__(self) -> str:
        figures = "" if self.reason else f"{self.measured:.2g} <= {self.limit:.2g}"
        figures = figures if self.status != FAILED else figures.replace("<=", "> ")
        words = f"{self.promise}: {self.what}" + (f" ({self.reason})" if self.reason else "")
        return f"{self.id:<4} {self.status:<14} {figures:>18}  {words}"


@dataclass(frozen=True)
class Report:
    """All results of an examination, ordered so that a cause comes before its consequences."""

    world: str
    results: tuple[Result, ...]
    seconds: float

    @property
    def broken(self) -> tuple[Result, ...]:
        """Return the failed results."""
        return tuple(result for result in self.results if result.status == FAILED)

    @property
    def passed(self) -> bool:
        """Return whether no result failed."""
        return not self.broken

    @property
    def summary(self) -> str:
        """Return the number of results by status and the duration, in a line."""
        counts = dict.fromkeys((PASSED, FAILED, NOT_APPLICABLE), 0)
        for result in self.results:
            counts[result.status] += 1
        words = ", ".join(f"{count} {status}" for status, count in counts.items())
        return f"world {self.world}: {words}, in {self.seconds:.1f} s"

    def __str__(self) -> str:
        return "\n".join([*map(str, self.results), self.summary])

    def raise_if_broken(self) -> None:
        """Raise StarflowError, naming the first broken promise and the ids of the others, if any promise is broken."""
        if self.passed:
            return
        first, ids = self.broken[0], list(dict.fromkeys(result.id for result in self.broken))
        value = first.reason or f"{first.measured:.2g} where at most {first.limit:.2g} is allowed"
        others = f"; also broken: {', '.join(ids[1:])}" if ids[1:] else ""
        raise StarflowError(
            f"world {self.world}: promise {first.id} is broken: {first.promise}: {first.what}: found {value}{others}"
        )
