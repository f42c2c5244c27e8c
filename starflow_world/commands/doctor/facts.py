"""Facts about the installation: versions, processor, kernels, precision, threads, extras, folders, and a self-test."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from starflow_world import __version__
from starflow_world.check.golden import LARGEST_ERROR, golden_error
from starflow_world.commands.flags import EXTRAS
from starflow_world.model.rates import CLEARLY_FASTER, choose_precision, measured_rates

PACKAGES = (
    "torch", "numpy", "gymnasium", "safetensors", "transformers", "h5py", "av", "opencv-python-headless", "tyro",
)
INSTRUCTIONS = (
    "avx", "avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_tile", "amx_bf16",
    "neon", "asimd", "bf16", "sve", "sme",
)
SIZES = {(384, 1536): 1, (1536, 384): 1, (384, 1152): 1, (384, 384): 1}
"""Sizes and counts of the linear layers of a transformer of width 384, on which both precisions are timed."""
VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "CXX", "CUDA_VISIBLE_DEVICES")


def examine_machine(environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return all facts by section; takes about 10 seconds."""
    return {
        "versions": {
            "starflow-world": __version__, "python": platform.python_version(), "platform": platform.platform(),
            **{package: installed(package) for package in PACKAGES},
        },
        "processor": {
            "name": processor_name(), "instructions": instruction_sets(),
            "used by torch": torch.backends.cpu.get_cpu_capability(),
        },
        "threads": {
            "cores": os.cpu_count(),
            "cores of this process": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "torch threads": torch.get_num_threads(),
            **{name: environment.get(name, "") for name in VARIABLES},
        },
        "gpu": gpus(),
        "kernels": kernels(environment),
        "precision": precision(),
        "extras": {package: f"{found} ({use})" if (found := installed(package)) else
                   f"not installed ({use}): pip install 'starflow-world[{extra}]'"
                   for package, (extra, use) in EXTRAS.items()},
        "folders": folders(environment),
        "self-test": self_test(),
    }


def installed(package: str) -> str:
    """Return the version of a package; "" if it is not installed."""
    for name in (package, package.replace("_", "-"), f"{package}-ce"):  # pygame comes as pygame-ce
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""


def processor_name() -> str:
    """Return the model name of the processor, as Linux, macOS or else Python has it."""
    if lines := _cpuinfo("model name"):
        return lines[0]
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string")
    return platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Return the vector and matrix instruction sets that the system reports, under their Linux names."""
    if lines := _cpuinfo("flags") or _cpuinfo("Features"):
        words = set(lines[0].split())
    elif sys.platform == "darwin":
        text = _output("sysctl", "-a", "hw.optional").lower() + _output("sysctl", "-n", "machdep.cpu.leaf7_features")
        text += _output("sysctl", "-n", "machdep.cpu.features")
        words = {name for name in INSTRUCTIONS for line in text.lower().split("\n")
                 if name in line.replace("feat_", "") and not line.endswith(" 0")}
    else:
        words = {torch.backends.cpu.get_cpu_capability().lower()}
    return [name for name in INSTRUCTIONS if name in words]


def gpus() -> dict[str, Any]:
    """Return the accelerators that torch finds."""
    found: dict[str, Any] = {"cuda": torch.version.cuda or "", "mps": torch.backends.mps.is_available()}
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = (f"{facts.name}, {facts.total_memory / 2**30:.1f} GiB, capability "
                                  f"{facts.major}.{facts.minor}")
    return found


def kernels(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the attention kernel, the compiler, and whether `torch.compile` is available."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    query = torch.zeros(1, 2, 16, 32, device=device)
    attention = SDPBackend(torch._fused_sdp_choice(query, query, query)).name.lower()
    compiler = next((path for name in (environment.get("CXX", ""), "c++", "g++", "clang++", "cl")
                     if name and (path := shutil.which(name))), "")
    line = _output(compiler, "--version").split("\n")[0] if compiler and not compiler.endswith("cl") else ""
    triton = bool(installed("triton"))
    ready = triton if device == "cuda" else bool(compiler)
    needed = "triton" if device == "cuda" else "a C++ compiler"
    return {
        "attention": f"{attention} ({device}); two matrix products where a CPU trains",
        "compiler": f"{compiler} ({line})" if line else compiler or "none",
        "torch.compile": "available" if ready else f"not available: needs {needed}",
    }


def precision() -> dict[str, Any]:
    """Time float32 and bfloat16 on the device that worlds run on, and return both rates and the choices."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rates = measured_rates(SIZES, device)
    return {
        **{f"{str(dtype).removeprefix('torch.')}, GFLOP/s": round(rate / 1e9, 1) for dtype, rate in rates.items()},
        "device": device, "training": str(choose_precision(rates)).removeprefix("torch."),
        "inference": str(choose_precision(rates, at_least=CLEARLY_FASTER)).removeprefix("torch."),
    }


def folders(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the cache and output folders, and whether they are writable."""
    home = environment.get("HF_HOME") or str(Path("~/.cache/huggingface").expanduser())
    places = {
        "current (out/, data/, runs/)": Path.cwd(), "temporary files": Path(tempfile.gettempdir()),
        "weights from the hub": Path(home),
    }
    return {name: f"{path}: {'writable' if _writable(path) else 'NOT writable'}" for name, path in places.items()}


def self_test() -> dict[str, Any]:
    """Compare the nats of a tiny world with their stored reference values."""
    begin = time.perf_counter()
    try:
        error, said = golden_error(), ""
    except Exception as failure:  # the report shows any error
        error, said = float("inf"), f"{type(failure).__name__}: {failure!s:.200}"
    return {"passed": error <= LARGEST_ERROR, "relative error": error if said == "" else None,
            "at most": LARGEST_ERROR, "seconds": round(time.perf_counter() - begin, 2), "failure": said}


def doctor_text(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the facts as lines for a terminal or a bug report; empty values are left out."""
    lines = []
    for section, values in facts.items():
        lines.append(section)
        for name, value in values.items():
            text = " ".join(value) if isinstance(value, list) else str(value)
            if text and value is not None:
                lines.append(f"  {name:<28} {text}")
    return "\n".join([*lines, "", "self-test: " + ("passed" if facts["self-test"]["passed"] else "FAILED")])


def _cpuinfo(key: str) -> list[str]:
    """Return the values of a key of /proc/cpuinfo; [] if the system has no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in text.splitlines() if line.partition(":")[0].strip() == key]


def _output(*command: str) -> str:
    """Return the output of a program; "" if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _writable(folder: Path) -> bool:
    """Return whether a file can be created in a folder, or in its nearest existing parent."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
