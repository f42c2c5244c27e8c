"""The public examiner: does a world keep what its README promises? For any checkpoint, in about a minute.

It looks at a world through its verbs and its states, so that a fault shows wherever it lies. What cannot be measured on
a world is reported as not applicable, with the reason. It examines the machinery, not what the world has learned.
"""

import time
from collections.abc import Callable, Iterator

from starflow_world.check.density import DECODING, DENSITY, NOISE
from starflow_world.check.memory import CACHES, ROWS, TOGETHER
from starflow_world.check.result import FAILED, NOT_APPLICABLE, PASSED, Check, Figure, Report, Result
from starflow_world.check.subject import Subject
from starflow_world.check.value import CONDITIONS, VALUE
from starflow_world.codec import frame_codec
from starflow_world.world import World

__all__ = ["CHECKS", "Report", "Result", "check_world", "examine"]

CHECKS: tuple[Check, ...] = (*NOISE, *DENSITY, *ROWS, *DECODING, *CACHES, *TOGETHER, *CONDITIONS, *VALUE)
"""In an order in which what is at fault comes before what suffers from it."""


def check_world(world: World, *, seed: int = 0, said: Callable[[Result], object] | None = None) -> Report:
    """Examine a world. `seed`: of its actions and noise; `said` is called with every result as soon as it is there.

    Nothing of the world is changed. A check that raises has failed; no error of the world comes through. ConfigError
    for a published video model, whose frames the checks cannot make.
    """
    begin, results = time.perf_counter(), []
    for result in examine(world, seed):
        results.append(result)
        if said is not None:
            said(result)
    return Report(world.config.name, tuple(results), time.perf_counter() - begin)


def examine(world: World, seed: int = 0) -> Iterator[Result]:
    """The results of `check_world`, one by one: who wants the first broken promise only can stop there."""
    frame_codec(world.networks.codec)
    subject = Subject(world, seed)
    for check in CHECKS:
        yield from _results(check, subject)


def _results(check: Check, subject: Subject) -> Iterator[Result]:
    try:
        for figure in check.examine(subject):
            yield _result(check, figure)
    except Exception as error:  # whatever a broken world raises is its fault, and the examination goes on
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        yield Result(check.id, check.promise, "the check could not be finished", float("nan"), 0.0, FAILED, words)


def _result(check: Check, figure: Figure) -> Result:
    status = NOT_APPLICABLE if figure.reason else PASSED if figure.measured <= figure.limit else FAILED
    return Result(check.id, check.promise, figure.what, figure.measured, figure.limit, status, figure.reason)
