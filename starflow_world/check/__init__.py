"""The examiner: measures in about a minute whether a world from any checkpoint keeps the promises of the README.

It calls the world's public methods, so that it covers all components. A promise that cannot be measured on a world is
reported as not applicable, with the reason. The checks concern correctness, not how well the world was trained.
"""

import time
from collections.abc import Callable, Iterator

from starflow_world.check import density, memory, value
from starflow_world.check.result import FAILED, NOT_APPLICABLE, PASSED, Check, Report, Result
from starflow_world.check.subject import Subject
from starflow_world.codec import frame_codec
from starflow_world.world import World

__all__ = ["CHECKS", "Report", "Result", "check_world", "examine"]

CHECKS: tuple[Check, ...] = (
    density.noise_is_a_function, density.global_generators, density.log_determinants, density.causality,
    density.round_trip, memory.rows_are_alone, memory.widths_agree, density.convergence, memory.caches_are_recomputed,
    memory.commit_is_exact, memory.states_are_lists, memory.slides_leave_nothing, memory.imagined_is_observed,
    memory.streamed_is_parallel, value.conditions_count, value.guidance_keeps_the_density, value.clones_share_nothing,
    value.clones_continue, value.snapshots_continue, value.branches_are_rows,
)
"""All checks, ordered so that the cause of a failure comes before its consequences."""


def check_world(world: World, *, seed: int = 0, said: Callable[[Result], object] | None = None) -> Report:
    """Examine a world. `seed`: seed of actions and noise; `said`: callback, called with each result when it is ready.

    The world is not changed. A check that raises is reported as failed, and its error is not propagated. Raises
    ConfigError for a published video model, for which the checks cannot generate frames.
    """
    begin, results = time.perf_counter(), []
    for result in examine(world, seed):
        results.append(result)
        if said is not None:
            said(result)
    return Report(world.config.name, tuple(results), time.perf_counter() - begin)


def examine(world: World, seed: int = 0) -> Iterator[Result]:
    """Yield the results of `check_world` lazily, so that a caller can stop at the first broken promise."""
    frame_codec(world.networks.codec)
    subject = Subject(world, seed)
    for check in CHECKS:
        yield from _results(check, subject)


def _results(check: Check, subject: Subject) -> Iterator[Result]:
    try:
        for m in check.examine(subject):
            status = NOT_APPLICABLE if m.reason else PASSED if m.measured <= m.limit else FAILED
            yield Result(check.id, check.promise, m.what, m.measured, m.limit, status, m.reason)
    except Exception as error:  # an error raised by the world is a failed check; continue with the next check
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        yield Result(check.id, check.promise, "the check could not be finished", float("nan"), 0.0, FAILED, words)
