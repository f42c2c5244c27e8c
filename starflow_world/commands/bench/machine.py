"""The machine: the rate of a matrix product, memory, and how quiet it was while something was measured."""

import os
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

GEMM = 1024
BUSY_CORES, LOADED, UNSTEADY = 0.1, 0.5, 0.1


def gemm_rate(repeats: int = 15) -> float:
    """Operations per second of a 1024 x 1024 x 1024 float32 matrix product, the median of `repeats`."""
    a, b = torch.randn(2, GEMM, GEMM, generator=torch.Generator().manual_seed(0)).unbind()
    seconds = []
    for _ in range(repeats + 2):
        begin = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - begin)
    return 2 * GEMM**3 / float(np.median(seconds[2:]))


def resident() -> float:
    """Memory of this process in MB (2**20 bytes), NaN where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    except (OSError, ValueError, IndexError):
        return float("nan")


def _busy() -> float:
    """Core-seconds that all processes of the machine but this one have used so far, NaN where it does not tell."""
    try:
        fields = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    except (OSError, ValueError):
        return float("nan")
    own = resource.getrusage(resource.RUSAGE_SELF)
    busy = sum(fields[:3]) + sum(fields[5:8])  # all but idle and waiting for disks
    return busy / os.sysconf("SC_CLK_TCK") - own.ru_utime - own.ru_stime


@dataclass
class Watch:
    """How quiet the machine is between two moments: the load average, what others used, the rate of a product."""

    begun: float = field(default_factory=time.perf_counter)
    busy: float = field(default_factory=_busy)
    load: float = field(default_factory=lambda: os.getloadavg()[0])
    gemm: float = field(default_factory=gemm_rate)

    def finish(self) -> dict[str, float]:
        """The facts; rates in operations per second, `others` in cores, `seconds` of wall clock."""
        seconds, rate = time.perf_counter() - self.begun, gemm_rate()
        return {
            "load_before": self.load, "load_after": os.getloadavg()[0], "others": (_busy() - self.busy) / seconds,
            "gemm_before": self.gemm, "gemm_after": rate, "gemm": (self.gemm + rate) / 2, "seconds": seconds,
        }


def disturbances(facts: dict[str, float]) -> list[str]:
    """Why the machine was not quiet, if it was not."""
    found = []
    if facts["others"] > BUSY_CORES:
        found.append(f"other processes used {facts['others']:.2f} cores during the run")
    if facts["load_before"] > LOADED:
        found.append(f"the load average was {facts['load_before']:.2f} before the run")
    if abs(facts["gemm_after"] / facts["gemm_before"] - 1) > UNSTEADY:
        before, after = facts["gemm_before"] / 1e9, facts["gemm_after"] / 1e9
        found.append(f"the matrix product ran at {before:.0f} Gflop/s before and {after:.0f} after")
    return found
