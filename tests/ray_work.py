"""What the actors of the fault tests do: they play in a tiny dream, and what is to go wrong goes wrong there.

A fault that befalls an episode once leaves a mark in a folder, so that the next attempt is spared.
"""

import os
import re
import resource
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from starflow_world.agents.collect import Dream, Rollouts
from starflow_world.agents.policy import RandomPolicy
from starflow_world.agents.pool import EpisodeSpec, Receipt


def specs(count: int, seed: int = 3, steps: int = 8) -> list[EpisodeSpec]:
    """Short episodes."""
    return [EpisodeSpec(index, seed, RandomPolicy(), max_steps=steps) for index in range(count)]


def play_here(world: Path, out: Path, count: int) -> None:
    """The same episodes without actors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for receipt in map(Rollouts(Dream(str(world), "cpu"), out).open(), specs(count)):
            assert (out / receipt.file).exists()
    finally:
        torch.set_num_threads(before)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def alive(pid: int) -> bool:
    """Whether a process runs; a dead one may not have been collected yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def gone(pids: list[int], seconds: float = 30.0) -> bool:
    """Whether all processes end in time."""
    until = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.1)
    return not any(map(alive, pids))


def shared_memory(pids: Iterable[int]) -> set[str]:
    """What Ray and these processes hold in shared memory, as far as a name there tells whose it is."""
    ours = {str(pid) for pid in pids}
    names = os.listdir("/dev/shm")
    return {name for name in names if re.search("ray|plasma", name) or ours & set(re.findall(r"\d+", name))}


@dataclass(frozen=True)
class Faulty(Rollouts):
    """Rollouts with faults: {index: (fault, how many attempts it spoils)}."""

    faults: dict[int, tuple[str, int]]
    marks: Path

    def open(self) -> Callable[[EpisodeSpec], Receipt]:
        writing = super().open()

        def write(spec: EpisodeSpec) -> Receipt:
            fault, times = self.faults.get(spec.index, ("", 0))
            tried = len(list(self.marks.glob(f"{spec.index}-*")))
            if tried < times:
                (self.marks / f"{spec.index}-{tried}-{os.getpid()}").touch()
                if fault != "after":
                    befall(fault)
            receipt = writing(spec)
            if fault == "after" and tried < times:
                os.kill(os.getpid(), signal.SIGKILL)
            return receipt

        return write


def befall(fault: str) -> None:
    """What goes wrong before an episode is played."""
    if fault == "die":
        os._exit(3)
    if fault == "hang":
        time.sleep(10_000)
    if fault == "raise":
        raise ValueError("an episode that cannot be")
    if fault == "device":
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    if fault == "full":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))


@dataclass(frozen=True)
class Introspection:
    """Work that tells about its process."""

    def open(self) -> Callable[[int], tuple[int, str, int]]:
        return lambda task: (os.getpid(), os.environ.get("OMP_NUM_THREADS", ""), torch.get_num_threads())
