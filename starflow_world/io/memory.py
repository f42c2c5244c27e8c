"""Memory of this process."""

import resource
from pathlib import Path


def resident() -> float:
    """Return the resident memory of this process in MB (2**20 bytes), NaN if the system does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    except (OSError, ValueError, IndexError):
        return float("nan")
