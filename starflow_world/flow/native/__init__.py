"""Routines in C for a CPU, built by the machine's own compiler when they are first used.

The library is kept in the user's cache folder under the hash of all that it was made of. Without a compiler there is
none, and whoever asks does the same in torch.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).parent
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-march=native -fopenmp", "-mcpu=native -fopenmp", "-march=native", "-mcpu=native", "")
LONGEST = 120
POINTERS = {"run_block": (12, 11), "run_linear": (4, 4), "run_sites": (5, 9)}
"""Of each routine: how many arguments are pointers, and how many numbers follow them."""
LOG = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The routines, or None where they cannot be had."""
    try:
        found = ctypes.CDLL(str(_built()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        LOG.info("networks run on torch's own kernels: %s", error)
        return None
    for name, (pointers, numbers) in POINTERS.items():
        routine = getattr(found, name)
        routine.argtypes, routine.restype = [ctypes.c_void_p] * pointers + [ctypes.c_int64] * numbers, ctypes.c_int
    return found


def _built() -> Path:
    """The library for these sources, this compiler and processor: from the cache folder, or built into it."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None or os.name != "posix":
        raise OSError("there is no C compiler that is known here")
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=LONGEST).stdout
    sources = [path.read_bytes() for path in sorted(FOLDER.glob("*.[ch]"))]
    name = hashlib.sha256(b"\0".join((*sources, version, _processor()))).hexdigest()[:24]
    folder = _cache()
    built = folder / f"native-{name}.so"
    if not built.is_file():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _compile(compiler, Path(scratch) / built.name)
            (Path(scratch) / built.name).replace(built)
    return built


def _compile(compiler: str, out: Path) -> None:
    said, sources = "", [str(path) for path in sorted(FOLDER.glob("*.c"))]
    for flags in FLAGS:
        command = [compiler, "-O3", *flags.split(), "-shared", "-fPIC", "-o", str(out), *sources]
        done = subprocess.run(command, capture_output=True, timeout=LONGEST)
        if done.returncode == 0:
            return
        said = said or done.stderr.decode(errors="replace").strip()[:500]
    raise OSError(f"{compiler} does not build {FOLDER}: {said}")


def _processor() -> bytes:
    """What `native` stands for: the processor's name and what it can do."""
    try:
        told = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        told = []
    kept = sorted({line for line in told if line.startswith(("model name", "flags", "Features"))})
    return "\n".join((platform.platform(), platform.machine(), platform.processor(), *kept)).encode()


def _cache() -> Path:
    """A folder that only this user can write to: what lies there is run."""
    folder = Path.home() / ".cache/starflow_world"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise OSError(f"{folder} can be written by others")
    return folder
