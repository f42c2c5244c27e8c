"""Processes that train together over gloo: forked, with one thread each."""

import os
import socket
from collections.abc import Callable

import torch

from starflow_world.training.distributed import ALONE, Processes, torchrun_processes
from tests.io.test_files import launched

Work = Callable[[Processes], object]


def start(count: int, work: Work) -> list[int]:
    """Processes that do `work` together, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def one(rank: int) -> None:
        torch.set_num_threads(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        found = {"WORLD_SIZE": count, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in found.items()})
        with torchrun_processes(os.environ) as processes:
            work(processes)

    return [launched(lambda rank=rank: one(rank)) for rank in range(count)]  # type: ignore[misc]


def over(process: int) -> bool:
    """Whether a process has ended; it can still be waited for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def ended(started: list[int]) -> list[int]:
    """Their exit codes."""
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]


def together(count: int, work: Work) -> None:
    assert ended(start(count, work)) == [0] * count


def alone(work: Work) -> None:
    """The same work in a process of its own that has no others."""

    def one() -> None:
        torch.set_num_threads(1)
        work(ALONE)

    assert ended([launched(one)]) == [0]
