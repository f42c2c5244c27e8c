"""A Ray within this process, with a clock of its own: actors are plain objects, and a test decides what befalls a call.

`fate(actor, method, args)` says what happens: a number of seconds after which the call succeeds, "die", "hang".
"""

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

Fate = Callable[["FakeActor", str, tuple[Any, ...]], float | str]


class RayError(Exception):
    """Root of Ray's own errors."""


class RayTaskError(RayError):
    """What a call raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class ActorDiedError(RayError):
    """The actor is gone."""


class GetTimeoutError(RayError):
    """No answer in time."""


class Reference:
    """What a call will give: `run` at the time `ready`, or never (None)."""

    def __init__(self, run: Callable[[], Any], ready: float | None) -> None:
        self.run, self.ready = run, ready


class FakeActor:
    """An object whose calls give references. A dead one answers nothing any more."""

    def __init__(self, ray: "FakeRay", plain: Any, number: int) -> None:
        self.ray, self.plain, self.number, self.dead = ray, plain, number, False

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *args: self._call(method, args))

    def _call(self, method: str, args: tuple[Any, ...]) -> Reference:
        fate = "die" if self.dead else self.ray.fate(self, method, args)
        if fate == "hang":
            return Reference(lambda: None, None)
        if fate == "die":
            self.dead = True
            return Reference(self._gone, self.ray.now)
        assert isinstance(fate, float)
        done = [self._outcome(method, args)] if self.ray.eager else []
        return Reference(lambda: self._raised(done[0] if done else self._outcome(method, args)), self.ray.now + fate)

    def _gone(self) -> Any:
        raise ActorDiedError(f"actor {self.number} died")

    def _outcome(self, method: str, args: tuple[Any, ...]) -> Any:
        if self.dead:
            return ActorDiedError(f"actor {self.number} died")
        try:
            return getattr(self.plain, method)(*args)
        except Exception as error:
            return RayTaskError(error)

    @staticmethod
    def _raised(outcome: Any) -> Any:
        if isinstance(outcome, RayError):
            raise outcome
        return outcome


class FakeRay(ModuleType):
    """Stands in for the module `ray` and for the functions of `envs.ray_vector_env`."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, fate: Fate, *, eager: bool) -> None:
        super().__init__("ray")
        self.fate, self.eager, self.now = fate, eager, 0.0
        self.actors: list[FakeActor] = []

    def install(self, patch: pytest.MonkeyPatch, module: ModuleType) -> "FakeRay":
        """Put it in the place of Ray in `module`."""
        patch.setitem(sys.modules, "ray", self)
        patch.setattr(module, "new_actor", self.new_actor)
        patch.setattr(module, "end_actor", self.end_actor)
        patch.setattr(module, "connect", lambda *_: False)
        patch.setattr(module, "check_portable", lambda *_: None)
        return self

    def new_actor(self, plain: type, *args: Any, gpus: float, threads: int) -> FakeActor:
        self.actors.append(FakeActor(self, plain(*args), len(self.actors)))
        return self.actors[-1]

    def end_actor(self, actor: FakeActor | None) -> None:
        if actor is not None:
            actor.dead = True

    def monotonic(self) -> float:
        return self.now

    def wait(self, references: list[Reference], *, num_returns: int, timeout: float) -> tuple[list, list]:
        times = [reference.ready for reference in references if reference.ready is not None]
        self.now = min([self.now + timeout, *(max(self.now, time) for time in times)])
        ready = [one for one in references if one.ready is not None and one.ready <= self.now][:num_returns]
        return ready, [one for one in references if one not in ready]

    def get(self, reference: Reference, timeout: float | None = None) -> Any:
        if reference.ready is None:
            raise GetTimeoutError("no answer")
        return reference.run()
