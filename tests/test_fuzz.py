"""Readers of configs, recipes and headers meet thousands of bent ones: each is read, or refused by an error of ours.

Digests are made to fit, so that what is bent is what a reader looks at; any other error comes through and fails.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from starflow_world.config.reading import to_dict
from starflow_world.config.train import load_recipe
from starflow_world.data.episodes import read_header, write_episode
from starflow_world.errors import CheckpointError, ConfigError, StarflowError
from starflow_world.model.actions import space_from_json
from starflow_world.model.checkpoint import CONFIG, load_networks
from tests.config.test_config import PLAIN, RECIPES
from tests.data.test_episodes import example, sealed
from tests.model.test_checkpoint import original  # noqa: F401 (a fixture)

pytestmark = pytest.mark.slow
WORDS = ["", "name", "world", "flow", "none", "t5", "inf", "1e9", "\0", "\ud800", "é" * 9, "../..", "{", "&a", "x" * 99]
NUMBERS = [0, 1, -1, 2, 255, 2**31, 2**63, -(2**64), 10**400, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), 3.0]


def junk(rng: np.random.Generator, depth: int = 0) -> Any:
    """A value of any kind that JSON knows."""
    kind = int(rng.integers(6 if depth < 3 else 4))
    if kind == 4:
        return [junk(rng, depth + 1) for _ in range(rng.integers(4))]
    if kind == 5:
        return {str(rng.choice(WORDS)): junk(rng, depth + 1) for _ in range(rng.integers(4))}
    plain = [None, bool(rng.integers(2)), NUMBERS[rng.integers(len(NUMBERS))], WORDS[rng.integers(len(WORDS))]]
    return plain[kind]


def bent(value: Any, rng: np.random.Generator) -> Any:
    """A copy in which something, at any depth, is left out, added, renamed or another value."""
    value = copy.deepcopy(value)
    place, kind = value, int(rng.integers(4))
    while True:
        if not isinstance(place, dict | list) or not place:
            return junk(rng)
        key = rng.choice(list(place)) if isinstance(place, dict) else int(rng.integers(len(place)))
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
            place = place[key]
            continue
        if kind == 0:
            del place[key]
        elif kind == 1 and isinstance(place, dict):
            place[str(rng.choice(WORDS))] = place.pop(key)
        elif kind == 2 and isinstance(place, dict):
            place[str(rng.choice(WORDS))] = junk(rng)
        else:
            place[key] = junk(rng)
        return value


def scrambled(text: str, rng: np.random.Generator) -> bytes:
    """The text with some bytes changed, cut out or put in."""
    content = bytearray(text.encode())
    for _ in range(rng.integers(1, 6)):
        start = int(rng.integers(len(content)))
        content[start : start + int(rng.integers(4))] = rng.integers(0, 256, int(rng.integers(4)), np.uint8).tobytes()
    return bytes(content)


def try_all(count: int, error: type[StarflowError], once: Callable[[np.random.Generator], object]) -> None:
    """Many are refused, by one error and in few words; some are harmless."""
    rng, said = np.random.default_rng(0), []
    for _ in range(count):
        try:
            once(rng)
        except error as found:
            said.append(str(found))
    assert count / 5 < len(said) < count
    assert max(map(len, said)) < 2000


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.timeout(1200)
def test_random_recipes_are_read_or_refused(tmp_path: Path) -> None:
    path, plain = tmp_path / "recipe.yaml", to_dict(load_recipe(RECIPES[0]))

    def once(rng: np.random.Generator) -> None:
        path.write_bytes(as_json(bent(plain, rng)) if rng.random() < 0.7 else scrambled(PLAIN, rng))
        load_recipe(path)

    try_all(10_000, ConfigError, once)


@pytest.mark.timeout(1200)
def test_random_configs_of_a_checkpoint_are_read_or_refused(original: Path) -> None:  # noqa: F811 (the fixture)
    path = original / CONFIG
    plain = json.loads(path.read_text())
    del plain["digest"]  # it may be absent, and then everything else is looked at

    def once(rng: np.random.Generator) -> None:
        path.write_bytes(as_json(bent(plain, rng)) if rng.random() < 0.8 else scrambled(json.dumps(plain), rng))
        load_networks(original)

    try_all(40_000, CheckpointError, once)


@pytest.mark.timeout(1200)
def test_random_facts_of_an_episode_are_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "episode-000000.h5"
    write_episode(path, example(frames=3))
    plain = path.read_bytes()
    facts: dict[str, Any] = {"text": "go", "space": {"type": "Discrete", "n": 7, "start": 0}, "info": {"seed": 3}}

    def once(rng: np.random.Generator) -> None:
        changed = bent(facts, rng)
        path.write_bytes(plain)
        with h5py.File(path, "r+") as file:
            for name in set(file.attrs) - {"format"}:
                del file.attrs[name]
            for name, value in changed.items() if isinstance(changed, dict) else ():
                told = value if name == "text" and isinstance(value, str) else json.dumps(value)
                if name.isalnum():
                    file.attrs[name] = told.encode("utf-8", "replace").replace(b"\0", b"?").decode()
        sealed(path)
        space_from_json(read_header(path).space)

    try_all(10_000, StarflowError, once)
