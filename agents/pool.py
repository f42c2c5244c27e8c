"""A pool of Ray actors, and the driver that distributes tasks to them and retries failed ones.

Each actor opens the same work and receives one task after another. An actor that dies, fails or hangs is replaced and
its task is queued again: a task may run more than once, so it must be deterministic and idempotent.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import torch

from starflow_world.agents.policy import Policy
from starflow_world.envs.ray_runtime import check_portable, connect, end_actor, failure, new_actor
from starflow_world.errors import ConfigError, StarflowError, WorkerError

ATTEMPTS = 3
START_LIMIT = 300.0  # seconds in which an actor must have opened its work
REASON = 200  # characters of a task's last error in the report


@dataclass(frozen=True)
class EpisodeSpec:
    """Inputs of one episode: its index, the collection's seed, the policy; in a world also the index of its start
    frame, the text (None: drawn) and the time limit (None: the world's own)."""

    index: int
    seed: int
    policy: Policy
    start: int | None = None
    text: str | None = None
    max_steps: int | None = None


@dataclass(frozen=True)
class Receipt:
    """Result of a spec: name and number of frames of the written file; `lost`: lowest and highest reward of the env if
    negative rewards were stored as 0."""

    index: int
    file: str
    length: int
    lost: tuple[float, float] | None = None


class Work(Protocol):
    """Interface of the work of a pool; it is sent to each actor."""

    def open(self) -> Callable[[Any], Any]:
        """Prepare this process and return the function that runs one task. Raises WorkerError if no task can run."""


@dataclass(frozen=True)
class Crew:
    """Settings of a pool. actors: number of processes; gpus_per_actor: GPUs or a share of one for each; threads: of
    each; time_limit: seconds for one task; address: of a Ray cluster (None: a new local one)."""

    actors: int = 1
    gpus_per_actor: float = 0.0
    threads: int = 1
    time_limit: float = 300.0
    address: str | None = None

    def __post_init__(self) -> None:
        if self.threads < 1 or not self.time_limit > 0:
            raise ConfigError(f"expected threads >= 1 and time_limit > 0, found {self.threads} and {self.time_limit}")


class Ledger:
    """The driver's record of waiting, finished and failed tasks; it does not use Ray."""

    def __init__(self, count: int, attempts: int = ATTEMPTS) -> None:
        self.attempts = attempts
        self.waiting = deque(range(count))
        self.failed: dict[int, str] = {}
        self.open = count
        self._tries = [0] * count
        self._streak: list[tuple[int, str]] = []  # failures on fresh actors since the last success

    def done(self, task: int) -> None:
        """Mark a task as finished."""
        self.open -= 1
        self._streak = []

    def lost(self, task: int, reason: str, *, fresh: bool = False) -> None:
        """Record a failed attempt of a task: queue it again after the others, or mark it as failed after `attempts`.

        fresh: it was the first task of its actor. Raises WorkerError if fresh actors fail in a row with the same error
        on different tasks while others are untried: the cause is then not the tasks.
        """
        self._tries[task] += 1
        if self._tries[task] >= self.attempts:
            self.failed[task], self.open = reason, self.open - 1
        else:
            self.waiting.append(task)
        self._streak += [(task, reason)] if fresh else []
        last = self._streak[-ATTEMPTS:]
        untried = any(self._tries[other] == 0 for other in self.waiting)
        if untried and len({other for other, _ in last}) == ATTEMPTS and len({text for _, text in last}) == 1:
            raise WorkerError(f"actors: expected tasks to succeed, but {ATTEMPTS} different ones failed in a row, each "
                              f"the first of its actor, with {reason}")

    def close(self, name: Callable[[int], str]) -> None:
        """Raise WorkerError that lists the failed tasks, if any."""
        if self.failed:
            listed = [f"{name(task)} ({reason})" for task, reason in sorted(self.failed.items())]
            more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
            raise WorkerError(f"actors: expected every task to be done, but {len(listed)} failed {self.attempts} times "
                              f"each: {'; '.join(listed[:5])}{more}; all others are done")


class Actor:
    """The class that runs in an actor's process; the driver kills the process after any exception."""

    def open(self, work: Work, threads: int) -> int:
        """Open the work; return the process id."""
        torch.set_num_threads(threads)
        self._do = work.open()
        return os.getpid()

    def do(self, task: Any) -> Any:
        """Run one task and return its result."""
        return self._do(task)


@dataclass
class Member:
    """An actor of the pool; `proven`: it has finished a task."""

    actor: Any
    pid: int = 0
    proven: bool = False


@dataclass
class Job:
    """A call in progress on an actor: a task, or None for opening the work; `until`: its deadline."""

    member: Member
    task: int | None
    until: float


class Lost(Exception):
    """Raised for a job that ended without a result; `reported`: its actor raised an exception."""

    def __init__(self, reason: str, *, reported: bool = False) -> None:
        super().__init__(reason)
        self.reported = reported


class Pool:
    """Actors that run tasks of one kind of work; a context manager that kills their processes at the end."""

    def __init__(self, work: Work, crew: Crew) -> None:
        self.work, self.crew = work, crew
        self._jobs: dict[Any, Job] = {}
        self._idle: list[Member] = []
        self._unopened = 0  # actors in a row that did not open their work

    @property
    def pids(self) -> list[int]:
        """Return the process ids of actors that are idle or run a task."""
        return [member.pid for member in self._members() if member.pid]

    def _members(self) -> list[Member]:
        return [*self._idle, *(job.member for job in self._jobs.values())]

    def __enter__(self) -> "Pool":
        self._own = connect(self.crew.actors, self.crew.gpus_per_actor, self.crew.address)
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for member in self._members():
            end_actor(member.actor)
        self._jobs, self._idle = {}, []
        if self._own:
            ray.shutdown()

    def run(
        self, tasks: Sequence[Any], *, recover: Callable[[Any], Any] | None = None, name: Callable[[int], str] = str
    ) -> Iterator[tuple[int, Any]]:
        """Yield (index, result) of each task as it finishes. Raises WorkerError at the end if some tasks failed.

        recover: returns the result of a task that finished although its actor died before returning it, else None.
        name: the name of a task, by index, for errors. A WorkerError of a task and any StarflowError while opening end
        the run.
        """
        import ray

        check_portable("work", self.work)
        check_portable("tasks", tasks)
        ledger = Ledger(len(tasks))
        while ledger.open:
            self._hand_out(tasks, ledger)
            patience = max(0.0, min(job.until for job in self._jobs.values()) - time.monotonic())
            ready, _ = ray.wait(list(self._jobs), num_returns=1, timeout=patience)
            for reference in ready or self._late():
                job = self._jobs.pop(reference)
                try:
                    result = self._fetch(reference, job) if ready else self._give_up(job)
                except Lost as lost:
                    if job.task is None:
                        continue
                    result = None if recover is None else recover(tasks[job.task])
                    if result is None:
                        ledger.lost(job.task, str(lost), fresh=lost.reported and not job.member.proven)
                        continue
                if job.task is not None:
                    job.member.proven = True
                    ledger.done(job.task)
                    yield job.task, result
        ledger.close(name)

    def _hand_out(self, tasks: Sequence[Any], ledger: Ledger) -> None:
        """Assign tasks to idle actors, and start missing actors."""
        now = time.monotonic()
        while self._idle and ledger.waiting:
            member, task = self._idle.pop(), ledger.waiting.popleft()
            reference = member.actor.do.remote(tasks[task])
            self._jobs[reference] = Job(member, task, now + self.crew.time_limit)
        while len(self._members()) < min(self.crew.actors, ledger.open):
            actor = new_actor(Actor, gpus=self.crew.gpus_per_actor, threads=self.crew.threads)
            self._jobs[actor.open.remote(self.work, self.crew.threads)] = Job(Member(actor), None, now + START_LIMIT)

    def _fetch(self, reference: Any, job: Job) -> Any:
        """Return the result of a finished job and set its actor idle. If it failed, kill the actor and raise Lost."""
        import ray

        try:
            result = ray.get(reference)
        except ray.exceptions.RayError as error:
            end_actor(job.member.actor)
            cause = failure(error)
            if isinstance(cause, WorkerError) or (job.task is None and isinstance(cause, StarflowError)):
                raise cause from None
            reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:REASON]
            self._unopened += job.task is None
            if self._unopened >= ATTEMPTS * self.crew.actors:
                raise WorkerError(f"actors: expected them to open their work, but {self._unopened} in a row failed, "
                                  f"the last with {reason}") from None
            raise Lost(reason, reported=isinstance(error, ray.exceptions.RayTaskError)) from None
        self._idle.append(job.member)
        if job.task is None:
            job.member.pid, self._unopened = result, 0
        return result

    def _late(self) -> list[Any]:
        """Return the jobs past their deadline; one that waits for resources gets more time while other actors work."""
        now, working = time.monotonic(), any(member.pid for member in self._members())
        late = [reference for reference, job in self._jobs.items() if job.until <= now]
        for reference in late:
            if self._jobs[reference].task is None and working:
                self._jobs[reference].until = now + START_LIMIT
        return [reference for reference in late if self._jobs[reference].until <= now]

    def _give_up(self, job: Job) -> NoReturn:
        """Kill an actor past its deadline, and raise Lost or WorkerError."""
        end_actor(job.member.actor)
        if job.task is None:
            raise WorkerError(f"actors: expected one to start within {START_LIMIT:g} s, found none; each needs a node "
                              f"with a CPU and {self.crew.gpus_per_actor:g} free GPUs")
        raise Lost(f"it took longer than {self.crew.time_limit:g} s")


def ordered(work: Work, tasks: Sequence[Any], crew: Crew, *, name: Callable[[int], str] = str) -> Iterator[Any]:
    """Yield the results of tasks in order, each as soon as all earlier ones are available; otherwise like Pool.run."""
    with Pool(work, crew) as pool:
        early: dict[int, Any] = {}
        due = 0
        for index, result in pool.run(tasks, name=name):
            early[index] = result
            while due in early:
                yield early.pop(due)
                due += 1
