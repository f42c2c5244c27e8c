"""Shared by all tests: few threads that do not spin, and a header that names the software."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read once, when torch loads

import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from starflow_world.world import World
from tests.squares import fill
from tests.states import F32, F64, small_world
from tests.worlds import KINDS, env_world, save_world

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


@pytest.fixture(scope="session", autouse=True)
def float32_is_faster() -> Iterator[None]:
    """Worlds are loaded in float32 unless a test says otherwise, on processors of every kind."""
    with pytest.MonkeyPatch.context() as patch:
        rates = {torch.float32: 2.0, torch.bfloat16: 1.0}
        patch.setattr("starflow_world.model.rates.measured_rates", lambda *sizes, **limits: rates)
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny world, saved as a folder."""
    return save_world(env_world(), tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module", params=KINDS)
def worlds(request: pytest.FixtureRequest) -> dict[torch.dtype, World]:
    """The same tiny world in both precisions, a mixture and as published."""
    return {dtype: small_world(dtype, **KINDS[request.param]) for dtype in (F32, F64)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes of squares to train on."""
    return fill(tmp_path_factory.mktemp("data"), (5, 8, 4, 12))


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing learning curves takes longer than tiny runs."""
    monkeypatch.setattr("starflow_world.training.world.write_curves", lambda metrics, out: None)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The last bit of a sum depends on how many share it; and worlds so small that a second thread only costs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny converted video model of four actions, whose denoiser sees no future: a step shows what a clip does."""
    pytest.importorskip("diffusers")
    from tests.tiny_video import TINY_VIDEO, tiny_video_world

    causal = replace(TINY_VIDEO.flow, denoiser_look_ahead=())
    space = '{"n": 4, "start": 0, "type": "Discrete"}'
    return tiny_video_world(tmp_path_factory.mktemp("models"), flow=causal, action_space=space)


@pytest.fixture(scope="session")
def video_world(video_folder: Path) -> World:
    return World.load(video_folder, device="cpu")


@pytest.fixture
def at_most(record_property: Callable[[str, object], None]) -> Callable[[str, float, float], None]:
    """Record a figure under its name for docs/promises.md, and assert that it is no larger than the limit."""

    def check(name: str, found: float, limit: float) -> None:
        record_property(name, float(found))
        assert found <= limit, name

    return check


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """fsync guards against a loss of power, which no test can cause, and on a busy disk it takes minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)  # forked processes inherit it
        yield


@pytest.fixture(scope="session", autouse=True)
def _named_software(record_testsuite_property: Callable[[str, object], None]) -> None:
    """The junit file names it as well."""
    record_testsuite_property("software", pytest_report_header())
