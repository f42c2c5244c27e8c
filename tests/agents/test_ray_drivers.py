"""Drivers as processes of their own: killed and run again, interrupted, looked at, on a cluster that loses a node."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from starflow_world.io.files import remove_leftovers
from tests.ray_work import contents, gone, play_here, shared_memory

pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
KILLS, DASHBOARD = 5, 8265
ROLLOUT = """
import sys
from starflow_world.agents.policy import RandomPolicy
from starflow_world.agents.collect import rollout
rollout(sys.argv[1], sys.argv[2], episodes=int(sys.argv[3]), policy=RandomPolicy(), seed=3, max_steps=8, actors=2)
"""


def launch(script: str, *arguments: object) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if fields[0] not in "ZX":
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, ahead = [], [pid]
    while ahead:
        below = parents.get(ahead.pop(), [])
        found += below
        ahead += below
    return found


def command_line(pid: int) -> str:
    """What a process was started as; nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def until_there(run: "subprocess.Popen[str]", folder: Path, count: int) -> None:
    """Wait for so many episodes."""
    while run.poll() is None and len(list(folder.glob("episode-*"))) < count:
        time.sleep(0.02)


def test_a_driver_killed_again_and_again_ends_in_a_complete_set_and_repeats_nothing(
    saved: Path, tmp_path: Path
) -> None:
    total = 8 * (KILLS + 1)
    out, stamps = tmp_path / "out", dict[str, int]()
    for kill in range(KILLS):
        with launch(ROLLOUT, saved, out, total) as run:
            until_there(run, out, 6 * (kill + 1))
            below = descendants(run.pid)
            actors = [pid for pid in below if "ray::Actor" in command_line(pid)]
            run.kill()
        assert len(actors) == 2
        assert gone(actors, 20), "actors outlive their driver"
        now = {path.name: path.stat().st_mtime_ns for path in out.glob("episode-*")}
        assert stamps.items() <= now.items(), "an episode was written again"
        stamps = now
    assert 6 * KILLS <= len(stamps) < total
    assert gone(below, 150), "processes outlive their driver"  # two of Ray's own wait a minute for the others
    with launch(ROLLOUT, saved, out, total) as run:
        _, errors = run.communicate(timeout=600)
        assert run.returncode == 0, errors
    found = contents(out)
    (tmp_path / "expected").mkdir()
    play_here(saved, tmp_path / "expected", total)
    assert found.pop("collection.json")
    assert found == contents(tmp_path / "expected")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_driver_that_is_asked_to_stop_stops_soon_and_cleans_up(
    saved: Path, tmp_path: Path, how: signal.Signals
) -> None:
    store = shared_memory([])
    with launch(ROLLOUT, saved, tmp_path / "out", 400) as run:
        until_there(run, tmp_path / "out", 4)
        below = descendants(run.pid)
        assert len(below) >= 4
        begun = time.monotonic()
        run.send_signal(how)
        run.communicate(timeout=120)
        took = time.monotonic() - begun
    assert run.returncode != 0
    assert gone(below, 10)
    assert not list((tmp_path / "out").glob(".writing-*"))
    assert shared_memory([run.pid, *below]) <= store
    print(f"stopped in {took:.1f} s")
    assert took < 30, "a busy machine needs longer than the second or two of a quiet one"


POISONED = """
import sys
from pathlib import Path
from starflow_world.agents import rollout as module
from starflow_world.cli import main
from tests.ray_work import Faulty
out = Path(sys.argv[2])
def poisoned(scene, folder):
    return Faulty(scene, folder, {1: ("raise", 99)}, Path(sys.argv[3]))
module.Rollouts = poisoned
main(["rollout", "--world", sys.argv[1], "--out", str(out), "--episodes", "6", "--max-steps", "8", "--actors", "2"])
"""


def test_the_command_line_names_what_failed_in_one_line_and_exits_with_1(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    with launch(POISONED, saved, tmp_path / "out", tmp_path / "marks") as run:
        _, errors = run.communicate(timeout=600)
    assert run.returncode == 1
    last = errors.strip().splitlines()[-1]
    assert last.startswith("starflow-world: actors: expected every task to be done, but 1 failed 3 times each: 1 (V")
    assert len(list((tmp_path / "out").glob("episode-*"))) == 5


LISTENERS = """
import sys
from starflow_world.agents.pool import Crew, Pool
from tests.ray_work import Introspection
with Pool(Introspection(), Crew(1)) as pool:
    assert len(list(pool.run(range(2)))) == 2
    print("ready", flush=True)
    sys.stdin.read(1)
"""


def listening(pids: list[int]) -> Iterator[tuple[str, int]]:
    """Addresses, as hexadecimal of /proc/net, and ports on which processes accept connections."""
    sockets = set()
    for pid in pids:
        try:
            handles = list((Path("/proc") / str(pid) / "fd").iterdir())
        except OSError:
            continue
        for handle in handles:
            try:
                sockets.add(os.readlink(handle))
            except OSError:
                continue
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                address, port = fields[1].split(":")
                yield address, int(port, 16)


def test_a_ray_of_our_own_listens_on_the_loopback_address_only_and_has_no_dashboard() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "192.0.2.77:6379"}  # of a foreign cluster
    with subprocess.Popen([sys.executable, "-c", LISTENERS], cwd=ROOT, env=environment, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        below = [run.pid, *descendants(run.pid)]
        found = set(listening(below))
        run.communicate("\n", timeout=120)
    assert found
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert {address for address, _ in found} <= loopback, found
    assert DASHBOARD not in {port for _, port in found}


TWO_NODES = """
import sys, logging
from pathlib import Path
import numpy as np, torch
from ray.cluster_utils import Cluster
import ray
from starflow_world.agents.pool import Crew, Pool
from starflow_world.agents.collect import Dream, Rollouts
from starflow_world.envs.ray_vector_env import RayVectorEnv
from starflow_world.envs.vector_env import WorldVectorEnv
from tests.ray_work import specs
torch.set_num_threads(1)
world, out = sys.argv[1], Path(sys.argv[2])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
other = cluster.add_node(num_cpus=2)
work, crew = Rollouts(Dream(world, "cpu"), out), Crew(3, address=cluster.address)
with Pool(work, crew) as pool:
    for count, _ in enumerate(pool.run(specs(30), recover=work.find)):
        if count == 8:
            nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
            cluster.remove_node(other, allow_graceful=False)
    assert count == 29
other = cluster.add_node(num_cpus=2)
env = RayVectorEnv(world, 4, 4, threads=1, max_episode_steps=9, address=cluster.address)
rows = [WorldVectorEnv(world, 1, max_episode_steps=9) for _ in range(4)]
same = lambda found, parts: np.testing.assert_array_equal(found, np.concatenate(parts))
same(env.reset(seed=2)[0], [row.reset(seed=2 + k)[0] for k, row in enumerate(rows)])
before = env.pids
for step in range(14):
    if step == 6:
        cluster.remove_node(other, allow_graceful=False)
    same(env.step(np.full(4, step % 4))[0], [row.step(np.array([step % 4]))[0] for row in rows])
assert env.pids != before, "no actor was on the node that was removed"
env.close()
ray.shutdown()
cluster.shutdown()
print("done")
"""


def test_a_cluster_that_loses_a_node_loses_no_episode_and_no_row(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with launch(TWO_NODES, saved, tmp_path / "out") as run:
        printed, errors = run.communicate(timeout=1200)
    assert printed.endswith("done\n"), errors[-3000:]
    remove_leftovers(tmp_path / "out")  # as whoever claims the folder next does: of a writer that died with its node
    (tmp_path / "expected").mkdir()
    play_here(saved, tmp_path / "expected", 30)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
