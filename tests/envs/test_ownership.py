"""Every array that an env returns belongs to the caller, and every array that it is given stays the caller's."""

import copy
import pickle  # noqa: TID251  (Ray's way of sending arrays)
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.utils.env_checker import data_equivalence
from torch import Tensor

from starflow_world.envs import ray_vector_env
from starflow_world.envs.ray_vector_env import RayVectorEnv
from starflow_world.envs.trust import Trust
from starflow_world.envs.vector_env import WorldVectorEnv
from starflow_world.envs.world_env import WorldEnv
from starflow_world.world import World
from tests.fake_ray import FakeRay, Reference
from tests.worlds import env_world, save_world

ROWS, STEPS = 2, 5
SETTINGS = {"max_episode_steps": 3, "render_mode": "rgb_array", "frames_between": True, "trust": Trust(residual=1e9)}


class ReadOnlyRay(FakeRay):
    """Gives arrays as Ray does: over memory that cannot be written."""

    def get(self, reference: Reference, timeout: float | None = None) -> Any:
        buffers: list[pickle.PickleBuffer] = []
        packed = pickle.dumps(super().get(reference, timeout), protocol=5, buffer_callback=buffers.append)
        return pickle.loads(packed, buffers=[bytes(buffer) for buffer in buffers])


def arrays(value: Any) -> Iterator[np.ndarray | Tensor]:
    """All arrays and tensors in nested values."""
    if isinstance(value, np.ndarray | Tensor):
        yield value
    if is_dataclass(value):
        yield from arrays([getattr(value, field.name) for field in fields(value)])
    elif isinstance(value, dict):
        yield from arrays(list(value.values()))
    elif isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype == object):
        for part in value:
            yield from arrays(part)


def overwrite(value: Any) -> int:
    """Write 255 into every array; returns how many there were."""
    written = list(arrays(value))
    with torch.inference_mode():
        for array in written:
            if isinstance(array, Tensor):
                array.fill_(255)
            else:
                assert array.flags.writeable
                np.asarray(array)[...] = None if array.dtype == object else 255
    return len(written)


def calls(env: Any, careless: bool) -> list[Any]:
    """What a series of calls returns, as copies; a careless caller overwrites all that it gets and has given."""
    returned = []

    def keep(value: Any, *given: Any) -> None:
        returned.append(copy.deepcopy(value))
        if careless:
            assert overwrite((value, given)) > 0

    single, rng = isinstance(env, WorldEnv), np.random.default_rng(0)
    keep(env.reset(seed=4))
    for _ in range(STEPS):
        action = rng.uniform(-1, 1, (2,) if single else (ROWS, 2)).astype(np.float32)
        result = env.step(action)
        keep(result, action)
        keep(env.render())
        if single and result[3]:
            keep(env.reset())
    state = env.snapshot()
    clip = rng.integers(0, 256, (3, 8, 8, 3) if single else (ROWS, 3, 8, 8, 3), dtype=np.uint8)
    options = {"frames": clip, "text": "x"}
    keep(env.reset(seed=5, options=options), options)
    keep(env.step(np.zeros((2,) if single else (ROWS, 2), np.float32)))
    env.set_state(state)
    if careless:
        overwrite((state, env.get_state(), env.snapshot()))
    keep(env.step(np.zeros((2,) if single else (ROWS, 2), np.float32)))
    return returned


@pytest.fixture(scope="module")
def boxes() -> World:
    return env_world(Box(-1, 1, (2,)))


def make(kind: str, world: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    if kind == "single":
        return WorldEnv(world, **SETTINGS)
    if kind == "rows":
        return WorldVectorEnv(world, ROWS, autoreset_mode="same_step", **SETTINGS)
    monkeypatch.setattr(World, "load", staticmethod(lambda *_, **__: world))
    deaths = iter([1.0] * 5 + ["die"] + [1.0] * 99)  # in the second step of an episode

    def fate(actor: Any, method: str, args: tuple[Any, ...]) -> float | str:
        return 1.0 if method == "open" or args[0] == "restore" else next(deaths)

    ReadOnlyRay(fate, eager=True).install(monkeypatch, ray_vector_env)
    return RayVectorEnv(folder, ROWS, ROWS, threads=1, autoreset_mode="same_step", **SETTINGS)


@pytest.mark.parametrize("kind", ["single", "rows", "ray"])
def test_nothing_changes_when_a_caller_writes_into_what_it_got_and_gave(
    kind: str, boxes: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_world(boxes, tmp_path / "world")
    careful, careless = (calls(make(kind, boxes, folder, monkeypatch), flag) for flag in (False, True))
    if kind != "single":
        assert any("final_obs" in result[-1] for result in careful if isinstance(result[-1], dict))
    for place, (expected, found) in enumerate(zip(careful, careless, strict=True)):
        assert data_equivalence(expected, found, exact=True), place
