"""What the driver of a pool promises: nothing lost, nothing twice. Actors are objects, and the clock is simulated."""

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from starflow_world.agents import pool
from starflow_world.agents.pool import Crew, Ledger, Pool
from starflow_world.envs import ray_runtime
from starflow_world.errors import ConfigError, DataError, WorkerError
from tests.fake_ray import FakeActor, FakeRay, Fate


class Squares:
    """Work whose tasks are numbers; `does` may raise in an actor's place."""

    def __init__(
        self, does: Callable[[int], None] = lambda task: None, opens: Callable[[], None] = lambda: None
    ) -> None:
        self.does, self.opens = does, opens
        self.ran: Counter[int] = Counter()

    def open(self) -> Callable[[int], int]:
        self.opens()
        return self.square

    def square(self, task: int) -> int:
        self.does(task)
        self.ran[task] += 1
        return task * task


def drive(
    patch: pytest.MonkeyPatch, work: Squares, tasks: int = 20, *, fate: Fate = lambda *_: 1.0, actors: int = 4,
    recover: Callable[[int], Any] | None = None,
) -> tuple[list[tuple[int, int]], FakeRay]:
    """Run all tasks; the results and the Ray they were run with."""
    ray = FakeRay(fate, eager=False).install(patch, pool)
    patch.setattr(pool, "time", SimpleNamespace(monotonic=ray.monotonic))
    with Pool(work, Crew(actors, time_limit=10.0)) as running:
        results = list(running.run(range(tasks), recover=recover, name=lambda task: f"task {task}"))
    assert all(actor.dead for actor in ray.actors)
    return results, ray


def whole(results: list[tuple[int, int]], tasks: int) -> bool:
    return sorted(results) == [(task, task * task) for task in range(tasks)]


def dies(times: dict[int, int]) -> Fate:
    """Actors die of the given tasks, so many times each."""
    left = Counter(times)

    def fate(actor: FakeActor, method: str, args: tuple[Any, ...]) -> float | str:
        if method == "do" and left[args[0]] > 0:
            left[args[0]] -= 1
            return "die"
        return 1.0

    return fate


def test_every_task_is_done_once_when_nothing_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Squares()
    results, ray = drive(monkeypatch, work)
    assert whole(results, 20)
    assert set(work.ran.values()) == {1}
    assert len(ray.actors) == 4


def test_no_more_actors_are_started_than_there_are_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    results, ray = drive(monkeypatch, Squares(), 2, actors=8)
    assert whole(results, 2)
    assert len(ray.actors) == 2
    assert drive(monkeypatch, Squares(), 0)[0] == []


def test_actors_that_die_are_replaced_and_their_tasks_done_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Squares()
    results, ray = drive(monkeypatch, work, 200, fate=dies({task: 1 + task % 2 for task in range(0, 200, 10)}))
    assert whole(results, 200)
    assert set(work.ran.values()) == {1}
    assert len(ray.actors) == 4 + 20


def test_a_poisoned_task_is_tried_three_times_and_named_while_all_others_are_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[int] = []

    def poison(task: int) -> None:
        if task in (3, 17):
            raise ValueError(f"bad\nluck {task}")

    ray = FakeRay(lambda *_: 1.0, eager=False).install(monkeypatch, pool)
    with Pool(Squares(poison), Crew(4)) as running:
        results = running.run(range(200), name=lambda task: f"episode {task}")
        with pytest.raises(WorkerError) as stopped:
            done.extend(task for task, _ in results)
    assert sorted(done) == [task for task in range(200) if task not in (3, 17)]
    assert "2 failed 3 times each: episode 3 (ValueError: bad luck 3); episode 17" in str(stopped.value)
    assert "\n" not in str(stopped.value)
    assert len(ray.actors) > 4


def test_neighbours_that_fail_alike_are_named_too_and_do_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Squares(lambda task: 1 // (not 50 <= task < 54))  # type: ignore[arg-type, return-value]
    with pytest.raises(WorkerError, match=r"4 failed 3 times each: task 50 \(ZeroDivisionError"):
        drive(monkeypatch, work, 100)
    assert sorted(work.ran) == [task for task in range(100) if not 50 <= task < 54]


def test_a_hanging_actor_is_ended_when_the_time_of_its_task_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    hung = []

    def fate(actor: FakeActor, method: str, args: tuple[Any, ...]) -> float | str:
        if method == "do" and args[0] == 5 and not hung:
            hung.append(actor)
            return "hang"
        return 1.0

    results, ray = drive(monkeypatch, Squares(), 8, fate=fate)
    assert whole(results, 8)
    assert hung[0].dead
    assert 10 <= ray.now <= 15
    with pytest.raises(WorkerError, match=r"task 5 \(it took longer than 10 s\)"):
        drive(monkeypatch, Squares(), 8, fate=lambda actor, method, args: "hang" if args[0] == 5 else 1.0)


def test_a_task_that_was_done_before_its_actor_died_is_not_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Squares()
    found = {4: 16, 9: 81}
    results, _ = drive(monkeypatch, work, fate=dies({4: 3, 9: 1, 11: 1}), recover=found.get)
    assert whole(results, 20)
    assert {task: work.ran[task] for task in (4, 9, 11)} == {4: 0, 9: 0, 11: 1}


def test_one_error_of_fresh_actors_over_and_over_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(task: int) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    with pytest.raises(WorkerError, match=r"3 different ones failed in a row.*with RuntimeError: CUDA"):
        drive(monkeypatch, Squares(broken), 200)


def test_a_full_disk_ends_the_run_with_its_own_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(task: int) -> None:
        if task == 7:
            raise WorkerError("episode-000007.h5: expected to write an episode, found no space; make room for it")

    with pytest.raises(WorkerError, match=r"^episode-000007.h5.*make room"):
        drive(monkeypatch, Squares(full))


def test_work_that_cannot_be_opened_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise DataError("no such world")

    with pytest.raises(DataError, match="no such world"):
        drive(monkeypatch, Squares(opens=missing))

    def crash() -> None:
        raise OSError("no device")

    with pytest.raises(WorkerError, match="12 in a row failed, the last with OSError: no device"):
        drive(monkeypatch, Squares(opens=crash))
    with pytest.raises(WorkerError, match="expected one to start within 300 s"):
        drive(monkeypatch, Squares(), fate=lambda *_: "hang")


def test_an_actor_without_a_place_does_not_stop_those_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def fate(actor: FakeActor, *_: Any) -> float | str:
        return "hang" if actor.number == 1 else 9.0

    results, ray = drive(monkeypatch, Squares(), 400, fate=fate, actors=2)
    assert whole(results, 400)
    assert ray.now > 2 * pool.START_LIMIT


def test_a_slow_actor_does_not_keep_the_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ray = drive(monkeypatch, Squares(), 310, fate=lambda actor, *_: 10.0 if actor.number == 0 else 1.0)
    assert ray.now <= 1.3 * 310 / 3.1


def test_results_can_be_had_in_the_order_of_their_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(lambda actor, *_: 1.0 + 5 * (actor.number == 0), eager=False).install(monkeypatch, pool)
    monkeypatch.setattr(pool, "time", SimpleNamespace(monotonic=ray.monotonic))
    assert list(pool.ordered(Squares(), range(30), Crew(3))) == [task * task for task in range(30)]
    broken = Squares(lambda task: 1 // (task - 7))  # type: ignore[arg-type]
    seen: list[int] = []
    with pytest.raises(WorkerError, match=r"1 failed 3 times each: 7 \(ZeroDivisionError"):
        seen.extend(pool.ordered(broken, range(30), Crew(3)))
    assert seen == [task * task for task in range(7)]


def test_failed_tasks_wait_behind_the_others_and_only_so_often() -> None:
    ledger = Ledger(3)
    assert [ledger.waiting.popleft() for _ in range(2)] == [0, 1]
    ledger.lost(0, "first")
    assert list(ledger.waiting) == [2, 0]
    ledger.lost(0, "second")
    ledger.lost(0, "third")
    assert (ledger.failed, ledger.open, list(ledger.waiting)) == ({0: "third"}, 2, [2, 0, 0])
    ledger.done(1)
    ledger.done(2)
    assert ledger.open == 0


def test_without_ray_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "starflow-world\[ray\]"'), Pool(Squares(), Crew(1)):
        pass


@pytest.mark.parametrize("wrong", [{"actors": 0}, {"gpus_per_actor": -1.0}, {"gpus_per_actor": float("nan")}])
def test_crews_that_cannot_be_meant_are_refused(wrong: dict[str, Any]) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match="expected actors >= 1"), Pool(Squares(), Crew(**wrong)):
        pass
    with pytest.raises(ConfigError, match="threads"):
        Crew(threads=0)
    with pytest.raises(ConfigError, match="time_limit"):
        Crew(time_limit=0.0)


def test_fewer_gpus_than_asked_are_named_with_both_numbers_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(ray_runtime, "_start_alone", lambda actors: pytest.fail("Ray was started"))
    monkeypatch.setattr(ray_runtime.torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"expected 6 free GPUs.*found 1"), Pool(Squares(), Crew(4, 1.5)):
        pass


def test_what_cannot_travel_is_refused(tmp_path: Any) -> None:
    pytest.importorskip("ray")
    with (tmp_path / "open").open("w") as file, pytest.raises(ConfigError, match="policy: expected something that can"):
        ray_runtime.check_portable("policy", {"log": file})
    ray_runtime.check_portable("policy", lambda observation: 0)
