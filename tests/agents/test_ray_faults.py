"""Real actors: when they are killed, hang, fail or run out of disk, nothing is lost, nothing is there twice or differs.

One Ray of two CPUs serves all tests of this file; only processes that it started are killed.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from starflow_world.agents.collect import Dream, RealScene, Rollouts, collect, rollout
from starflow_world.agents.policy import NoEnd, RandomPolicy
from starflow_world.agents.pool import Crew, EpisodeSpec, Pool
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.envs.ray_runtime import connect
from starflow_world.envs.ray_vector_env import RayVectorEnv
from starflow_world.envs.vector_env import WorldVectorEnv
from starflow_world.errors import ConfigError, WorkerError
from tests.ray_work import Faulty, Introspection, contents, gone, play_here, shared_memory, specs

ray = pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
LIMIT = 60.0


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    connect(2)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def expected(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, bytes]]:
    """Episode files that were made without actors."""
    out = tmp_path_factory.mktemp("expected")
    made: dict[str, bytes] = {}

    def first(count: int) -> dict[str, bytes]:
        if len(made) < count:
            play_here(saved, out, count)
            made.update(contents(out))
        return dict(sorted(made.items())[:count])

    return first


def faulty(world: Path, tmp: Path, faults: dict[int, tuple[str, int]]) -> Faulty:
    for name in ("out", "marks"):
        (tmp / name).mkdir()
    return Faulty(Dream(str(world), "cpu"), tmp / "out", faults, tmp / "marks")


def drive(work: Faulty, count: int, actors: int = 2, limit: float = LIMIT) -> list[int]:
    """Play all; the indices of the receipts."""
    with Pool(work, Crew(actors, time_limit=limit)) as pool:
        return [receipt.index for _, receipt in pool.run(specs(count), recover=work.find)]


@pytest.mark.slow
def test_a_killed_actor_is_replaced_and_its_rows_go_on_with_the_same_frames(saved: Path, one_thread: None) -> None:
    env = RayVectorEnv(saved, 3, 2, threads=1, max_episode_steps=20)
    parts = [WorldVectorEnv(saved, rows.stop - rows.start, max_episode_steps=20) for rows in (slice(0, 2), slice(2, 3))]
    np.testing.assert_array_equal(
        env.reset(seed=1)[0], np.concatenate([parts[0].reset(seed=1)[0], parts[1].reset(seed=3)[0]])
    )
    first = env.pids
    rng = np.random.default_rng(0)
    for step in range(26):
        if step == 12:
            os.kill(first[0], signal.SIGKILL)
        actions = rng.integers(0, 4, 3)
        found, local = env.step(actions), [parts[0].step(actions[:2]), parts[1].step(actions[2:])]
        for place in range(4):
            np.testing.assert_array_equal(found[place], np.concatenate([part[place] for part in local]))
    assert env.pids[0] != first[0]
    assert env.pids[1] == first[1]
    env.close()
    assert gone([*env.pids])


def test_episodes_played_by_actors_are_those_played_without(
    saved: Path, tmp_path: Path, expected: Callable[[int], dict[str, bytes]]
) -> None:
    work = faulty(saved, tmp_path, {})
    assert sorted(drive(work, 6)) == list(range(6))
    assert contents(work.out) == expected(6)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_200_episodes_survive_20_kills(
    saved: Path, tmp_path: Path, expected: Callable[[int], dict[str, bytes]]
) -> None:
    work, rng, killed, seen = faulty(saved, tmp_path, {}), random.Random(0), 0, []
    with Pool(work, Crew(4, time_limit=LIMIT)) as pool:
        for _, receipt in pool.run(specs(200), recover=work.find):
            seen.append(receipt.index)
            assert len(ray.cloudpickle.dumps(receipt)) <= 4096
            if killed < 20 and len(seen) >= 8 * killed:
                os.kill(rng.choice(pool.pids), signal.SIGKILL)
                killed += 1
    assert killed == 20
    assert sorted(seen) == list(range(200))
    found = contents(work.out)
    assert {name: data for name, data in found.items() if name.startswith("episode")} == expected(200)


def stored() -> float:
    """Megabytes that Ray's object store holds; told with a delay."""
    time.sleep(1.0)
    whole, free = (of()["object_store_memory"] for of in (ray.cluster_resources, ray.available_resources))
    return (whole - free) / 2**20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_200_episodes_do_not_stay_in_rays_object_store(
    tmp_path: Path, at_most: Callable[[str, float, float], None]
) -> None:
    pytest.importorskip("minigrid")
    work = Rollouts(RealScene("BabyAI-GoToLocalS8N4-v0", {}, 20, "event", 64), tmp_path)
    before, policy = stored(), NoEnd(RandomPolicy())
    with Pool(work, Crew(2, time_limit=LIMIT)) as pool:
        receipts = [receipt for _, receipt in pool.run([EpisodeSpec(i, 3, policy) for i in range(200)])]
        at_most("growth of the object store in MB", stored() - before, 10)
    assert sum(receipt.length for receipt in receipts) * 64 * 64 * 3 > 40 * 2**20, "what passed by is much more"


@pytest.mark.slow
def test_an_actor_killed_between_file_and_receipt_is_not_run_twice(
    saved: Path, tmp_path: Path, expected: Callable[[int], dict[str, bytes]]
) -> None:
    work = faulty(saved, tmp_path, {1: ("after", 3), 4: ("after", 1)})
    assert sorted(drive(work, 8)) == list(range(8))
    assert contents(work.out) == expected(8)
    assert len(list(work.marks.iterdir())) == 2


@pytest.mark.slow
def test_poison_is_tried_three_times_and_named_and_all_others_are_there(
    saved: Path, tmp_path: Path, expected: Callable[[int], dict[str, bytes]]
) -> None:
    work = faulty(saved, tmp_path, {3: ("die", 9), 7: ("raise", 9)})
    with pytest.raises(WorkerError, match=r"2 failed 3 times each: 3 \(ActorDied.*; 7 \(ValueError: an episode that"):
        drive(work, 20)
    assert contents(work.out) == {
        name: data for name, data in expected(20).items() if name not in ("episode-000003.h5", "episode-000007.h5")
    }
    assert len(list(work.marks.iterdir())) == 6


@pytest.mark.slow
def test_an_actor_that_hangs_is_ended_and_replaced(
    saved: Path, tmp_path: Path, expected: Callable[[int], dict[str, bytes]]
) -> None:
    work = faulty(saved, tmp_path, {2: ("hang", 1)})
    assert sorted(drive(work, 6, limit=8.0)) == list(range(6))
    assert contents(work.out) == expected(6)
    assert gone([int(mark.name.split("-")[2]) for mark in work.marks.iterdir()])


@pytest.mark.slow
def test_a_device_error_ends_its_process_and_the_same_one_everywhere_ends_the_run(
    saved: Path, tmp_path: Path, expected: Callable[[int], dict[str, bytes]]
) -> None:
    work = faulty(saved, tmp_path, {3: ("device", 1)})
    assert sorted(drive(work, 6)) == list(range(6))
    assert contents(work.out) == expected(6)
    (tmp_path / "all").mkdir()
    broken = faulty(saved, tmp_path / "all", dict.fromkeys(range(20), ("device", 9)))
    with pytest.raises(WorkerError, match=r"3 different ones failed in a row.*AcceleratorError: CUDA error"):
        drive(broken, 20)
    for used in (work, broken):
        assert gone([int(mark.name.split("-")[2]) for mark in used.marks.iterdir()])


@pytest.mark.slow
def test_a_full_disk_gives_one_clear_error_and_loses_nothing(
    saved: Path, tmp_path: Path, expected: Callable[[int], dict[str, bytes]]
) -> None:
    work = faulty(saved, tmp_path, {5: ("full", 1)})
    with pytest.raises(WorkerError, match=r"episode-000005\.h5: expected to write.*make room for it") as full:
        drive(work, 12)
    assert "\n" not in str(full.value)
    found = contents(work.out)
    done = {name for name in found if name.startswith("episode")}
    assert len(done) >= 4
    assert {name: found[name] for name in done} == {name: expected(12)[name] for name in done}


@pytest.mark.slow
def test_collect_and_rollout_end_in_the_same_bytes_with_actors_and_without(saved: Path, tmp_path: Path) -> None:
    for actors in (0, 2):
        rollout(saved, tmp_path / f"dream{actors}", episodes=6, policy=RandomPolicy(), seed=1, text="b", max_steps=12,
                actors=actors, progress=False)
        collect("BabyAI-GoToLocalS8N4-v0", tmp_path / f"room{actors}", episodes=6, policy=RandomPolicy(), seed=1,
                max_steps=12, actors=actors, progress=False)
    for name in ("dream", "room"):
        assert contents(tmp_path / f"{name}0") == contents(tmp_path / f"{name}2")
        assert len(EpisodeDataset(tmp_path / f"{name}2")) == 6


@pytest.mark.slow
def test_an_actor_has_as_many_threads_as_it_is_given() -> None:
    for count in (1, 2):
        with Pool(Introspection(), Crew(2, threads=count)) as pool:
            found = {result[1:] for _, result in pool.run(range(6))}
        assert found == {(str(count), count)}


@pytest.mark.slow
@pytest.mark.timeout(60)  # an actor without its GPU would be waited for until then
def test_gpus_that_are_not_there_are_named_within_seconds() -> None:
    there = torch.cuda.device_count()
    said = f"expected {there + 2} free GPUs for all actors, found {there}"
    with pytest.raises(ConfigError, match=said), Pool(Introspection(), Crew(there + 2, 1.0)):
        pass


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pools_that_come_and_go_leave_nothing_behind() -> None:
    ended = [os.getpid()]

    def here() -> tuple[int, set[str]]:
        return len(os.listdir("/proc/self/fd")), shared_memory(ended)

    def cycle() -> None:
        with Pool(Introspection(), Crew(2)) as pool:
            ended.extend(result[0] for _, result in pool.run(range(4)))

    cycle()
    before: Any = here()
    for _ in range(8):
        cycle()
    assert gone(ended[1:])
    after = here()
    assert after[0] <= before[0] + 4
    assert after[1] <= before[1]
