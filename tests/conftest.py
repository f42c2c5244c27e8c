"""Shared by all tests: few threads that do not spin, and a header that names the software."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read once, when torch loads

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

torch.set_num_threads(2)


def pytest_report_header() -> str:
    """Name what the results depend on: python, packages, threads, accelerator."""
    found = [f"python {platform.python_version()}"]
    for name in ("torch", "numpy", "gymnasium", "transformers", "ray"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu only"
    return f"{', '.join(found)}; {torch.get_num_threads()} threads, {device}"


@pytest.fixture
def at_most(record_property: Callable[[str, object], None]) -> Callable[[str, float, float], None]:
    """Record a figure under its name for docs/promises.md, and assert that it is no larger than the limit."""

    def check(name: str, found: float, limit: float) -> None:
        record_property(name, float(found))
        assert found <= limit, name

    return check


@pytest.fixture(scope="session", autouse=True)
def _named_software(record_testsuite_property: Callable[[str, object], None]) -> None:
    """The junit file names it as well."""
    record_testsuite_property("software", pytest_report_header())


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The last bit of a sum depends on how many share it; and worlds so small that a second thread only costs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
