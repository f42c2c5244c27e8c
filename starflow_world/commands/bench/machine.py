"""The machine: processor, speed of a matrix product, memory, and detection of other work during a measurement."""

import os
import platform
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

GEMM = 1024
BUSY_CORES, LOADED, UNSTEADY = 0.1, 0.5, 0.1


def processor() -> str:
    """Return the model name of the processor and the vector instructions that torch uses."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def gemm_rate(repeats: int = 15) -> float:
    """Time a 1024 x 1024 x 1024 float32 matrix product; return the median of `repeats` in operations per second."""
    a, b = torch.randn(2, GEMM, GEMM, generator=torch.Generator().manual_seed(0)).unbind()
    seconds = []
    for _ in range(repeats + 2):
        begin = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - begin)
    return 2 * GEMM**3 / float(np.median(seconds[2:]))


def _busy() -> float:
    """Return the core-seconds that all other processes have used so far, NaN if the system does not report it."""
    try:
        fields = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    except (OSError, ValueError):
        return float("nan")
    own = resource.getrusage(resource.RUSAGE_SELF)
    busy = sum(fields[:3]) + sum(fields[5:8])  # all but idle and waiting for disks
    return busy / os.sysconf("SC_CLK_TCK") - own.ru_utime - own.ru_stime


@dataclass
class Watch:
    """Monitor of load average, work of other processes and matrix product speed, from its creation on."""

    begun: float = field(default_factory=time.perf_counter)
    busy: float = field(default_factory=_busy)
    load: float = field(default_factory=lambda: os.getloadavg()[0])
    gemm: float = field(default_factory=gemm_rate)

    def finish(self) -> dict[str, float]:
        """Return the facts: rates in operations per second, `others` in cores, wall clock in seconds."""
        seconds, rate = time.perf_counter() - self.begun, gemm_rate()
        return {
            "load_before": self.load, "load_after": os.getloadavg()[0], "others": (_busy() - self.busy) / seconds,
            "gemm_before": self.gemm, "gemm_after": rate, "gemm": (self.gemm + rate) / 2, "seconds": seconds,
        }


def disturbances(facts: dict[str, float]) -> list[str]:
    """Return the reasons why the machine was not quiet; empty if it was."""
    before, after = facts["gemm_before"] / 1e9, facts["gemm_after"] / 1e9
    reasons = {
        f"other processes used {facts['others']:.2f} cores during the run": facts["others"] > BUSY_CORES,
        f"the load average was {facts['load_before']:.2f} before the run": facts["load_before"] > LOADED,
        f"the matrix product ran at {before:.0f} Gflop/s before and {after:.0f} after":
            abs(after / before - 1) > UNSTEADY,
    }
    return [reason for reason, holds in reasons.items() if holds]
