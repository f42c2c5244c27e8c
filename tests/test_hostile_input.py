"""Nothing that is read can run code, and whatever is given to a verb is used or refused in one clear error."""

import io
import os
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from starflow_world.config.train import TrainConfig, load_recipe
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.data.episodes import Episode, read_episode, read_header, write_episode
from starflow_world.errors import ActionError, DataError, StarflowError, StateError
from starflow_world.io.files import read_tensors
from starflow_world.model.actions import space_from_json
from starflow_world.model.checkpoint import (
    load_flow,
    load_networks,
    load_starts,
    load_training,
    save_checkpoint,
    training_facts,
)
from starflow_world.training.optimizers import world_optimizers
from starflow_world.video.convert import convert
from starflow_world.world import World
from starflow_world.world.state import WorldState
from tests.worlds import tiny_world


@pytest.fixture(scope="module")
def world() -> World:
    return tiny_world(height=4, width=4)


# ---- code in data ----------------------------------------------------------------------------------------------------


def array(payload: bytes) -> bytes:
    """A .npy file with an object in it."""
    head = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + len(head).to_bytes(2, "little") + head + payload


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), content)
    return file.getvalue()


def payloads(canary: Path) -> dict[str, bytes]:
    """Files that touch the canary when a careless reader opens them."""
    pickled = f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()
    stream = b"\x80\x02" + pickled
    return {
        "pickle": pickled, "protocol 2": stream, "npy": array(pickled), "npz": zipped(arr_npy=array(pickled)),
        "pth": zipped(archive__data_pkl=stream, archive__version=b"3\n", archive__byteorder=b"little"),
        "yaml": f"world: !!python/object/apply:os.system ['touch {canary}']\n".encode(),
        "json": f'{{"py/reduce": [{{"py/function": "os.system"}}, ["touch {canary}"]]}}'.encode(),
        "space": f'{{"type": "__import__(\'os\').system(\'touch {canary}\')"}}'.encode(),
    }


KINDS = tuple(payloads(Path("x")))


def careless(path: Path) -> None:
    """What a reader that trusts its input would do, in a process of its own."""
    program = (
        "import sys, numpy, torch, yaml\nopened = open(sys.argv[1], 'rb')\n"
        "for read in (lambda f: __import__('pickle').load(f), lambda f: torch.load(f, weights_only=False),\n"
        "             lambda f: list(numpy.load(f, allow_pickle=True)['arr.npy'.split('.')[0]]),\n"
        "             lambda f: numpy.load(f, allow_pickle=True), lambda f: yaml.unsafe_load(f)):\n"
        "    try:\n        opened.seek(0); read(opened)\n    except Exception: pass\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, str(path)], check=True)


def test_the_payloads_are_live(tmp_path):
    for kind in ("protocol 2", "npz", "pth", "yaml"):
        canary = tmp_path / f"canary-{kind.replace(' ', '-')}"
        (tmp_path / "payload").write_bytes(payloads(canary)[kind])
        careless(tmp_path / "payload")
        assert canary.exists(), kind


@pytest.mark.parametrize("kind", KINDS)
def test_no_reader_runs_code(world, tmp_path, kind):
    canary, content = tmp_path / "canary", payloads(tmp_path / "canary")[kind]
    names = ("model.safetensors", "config.json", "starts.safetensors", "training.safetensors", "flow.json")
    for replaced in (names, *((name,) for name in names)):
        folder = tmp_path / f"folder {len(replaced)} {replaced[0]}"
        save_checkpoint(folder, world.networks, {})
        for name in replaced:
            (folder / name).write_bytes(content)
    episodes = tmp_path / "episodes"
    episodes.mkdir()
    (episodes / "episode-000000.h5").write_bytes(content)
    for name in ("x.pth", "x.safetensors", "x.yaml"):
        (tmp_path / name).write_bytes(content)
    optimizers = world_optimizers(world.networks, TrainConfig())
    readers: list[Callable[[], Any]] = [
        lambda: read_tensors(tmp_path / "x.safetensors"), lambda: WorldState.load(tmp_path / "x.safetensors", world),
        lambda: load_recipe(tmp_path / "x.yaml"), lambda: space_from_json(content.decode("latin-1")),
        lambda: convert(tmp_path / "x.pth", tmp_path / "out"),
        lambda: convert(tmp_path / "x.safetensors", tmp_path / "out"),
        lambda: read_episode(episodes / "episode-000000.h5"), lambda: read_header(episodes / "episode-000000.h5"),
        lambda: EpisodeDataset(episodes), lambda: EpisodeDataset(episodes, skip_bad=True),
    ]
    for folder in sorted(tmp_path.glob("folder *")):
        for read in (World.load, load_networks, load_starts, training_facts, load_flow):
            readers.append(lambda read=read, folder=folder: read(folder))
        readers.append(lambda folder=folder: load_training(folder, world.networks, optimizers))
    refused = 0
    for read in readers:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read()
            except StarflowError:
                refused += 1
        assert not canary.exists()
    assert refused >= 30


def test_a_poisoned_cache_of_a_dataset_is_built_anew(tmp_path):
    canary, empty = tmp_path / "canary", np.zeros(2, bool)
    frames, actions = np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 4), np.float32)
    write_episode(tmp_path / "episode-000000.h5", Episode(frames, actions, np.zeros(2, np.float32), empty, empty))
    EpisodeDataset(tmp_path).memory_map()
    for path in tmp_path.glob(".cache/*/*"):
        path.write_bytes(payloads(canary)["npy"])
    assert EpisodeDataset(tmp_path).memory_map().frames.shape == (2, 4, 4, 3)
    assert not canary.exists()


# ---- what verbs are given --------------------------------------------------------------------------------------------


def picture(*shape: int) -> Tensor:
    return torch.zeros(*shape, 4, 4, 3, dtype=torch.uint8)


ACTIONS = [
    None, 3, "go", b"go", {}, [], [0], [0, 1, 2], [0, 4], [0, -1], [0, 1.0], [0, "1"], [0, [1]], [0, float("nan")],
    object(), torch.zeros(2, 4), torch.zeros(3, 5), torch.zeros(5), torch.tensor(1.0), torch.full((2, 5), torch.nan),
    np.array(1), np.array([0.0, 1.0]), [0, np.nan],
]
FRAMES = [
    0, "x", object(), [], [None], picture(2).float(), picture(2).to(torch.int8), picture(3), picture(2, 2),
    picture(2)[:, :3], picture(2)[..., :1], np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4, 3), object), [[1, 2], [3]], {},
    picture(2)[:, None, None],
]
LATENTS = [
    0, "x", np.zeros((2, 4, 12), np.float32), torch.zeros(2, 4, 12).long(), torch.zeros(2, 4, 11),
    torch.zeros(1, 4, 12), torch.full((2, 4, 12), torch.nan), torch.full((2, 4, 12), torch.inf), torch.zeros(4, 12),
]


def refused(state: WorldState, error: type[StarflowError], said: str, call: Callable[[], Any]) -> None:
    """One error of one kind, short, and the state as it was, with its cache."""
    before = state.digest()
    with pytest.raises(error, match=said) as caught:
        call()
    assert len(str(caught.value)) < 400
    assert state.digest() == before
    assert state.cache is not None


@pytest.mark.parametrize("reuse", [False, True])
def test_wrong_actions_are_refused_and_the_state_stays_as_it_was(world, reuse):
    state, _ = world.start(picture(2, 1))
    for wrong in ACTIONS:
        refused(state, ActionError, "action", lambda wrong=wrong: world.step(state, wrong, reuse=reuse))
        refused(state, ActionError, "action", lambda wrong=wrong: world.observe(state, wrong, picture(2), reuse=reuse))


@pytest.mark.parametrize("reuse", [False, True])
def test_wrong_frames_and_latents_are_refused_and_the_state_stays_as_it_was(world, reuse):
    state, _ = world.start(picture(2, 1))
    for wrong in FRAMES:
        refused(state, DataError, "frames", lambda wrong=wrong: world.observe(state, [0, 0], wrong, reuse=reuse))
    for wrong in LATENTS:
        call = lambda wrong=wrong: world.observe(state, [0, 0], latents=wrong, reuse=reuse)  # noqa: E731
        refused(state, DataError, "latents", call)
        refused(state, DataError, "noise", lambda wrong=wrong: world.step(state, [0, 0], noise=wrong, reuse=reuse))
    refused(state, DataError, "found both or neither", lambda: world.observe(state, [0, 0]))
    both = {"frames": picture(2), "latents": torch.zeros(2, 4, 12)}
    refused(state, DataError, "found both or neither", lambda: world.observe(state, [0, 0], **both))


def test_wrong_starts_are_refused(world):
    for wrong in (*FRAMES[:7], picture(0, 1), picture(1, 0), picture(2), np.zeros((2, 1, 4, 4, 4), np.uint8)):
        with pytest.raises(DataError, match="frames"):
            world.start(wrong)
        with pytest.raises(DataError, match="frames"):
            world.log_prob(wrong)
    for wrong in ([[None]], [[None, 1]], [[None], [1], [2]], [None, None], 3, "go", [], [[None], 1], torch.zeros(2, 1),
                  torch.zeros(2, 2, 5), torch.zeros(2, 1, 4), [[None], [7]], [["go"], [1]]):
        for call in (world.start, world.log_prob):
            with pytest.raises(ActionError, match="action"):
                call(picture(2, 1), wrong)
    for text in (["a"], ["a", "b", "c"], [], None, [1, 2], 3, b"ab", ["a", None], {"a": 1, "b": 2}):
        for call in (world.start, world.log_prob):
            with pytest.raises(DataError, match="text"):
                call(picture(2, 1), text=text)
    for seed in (-1, [1], [1, 2, 3], None, "7", 1.5, [1, -1], [1, None], [[1], [2]]):
        for call in (world.start, world.log_prob):
            with pytest.raises(DataError, match="seed"):
                call(picture(2, 1), seed=seed)
    for guidance in (-1.0, float("nan")):
        with pytest.raises(StarflowError, match="guidance"):
            world.start(text="go", guidance=guidance)
    for nothing in ({"text": []}, {"seed": []}):
        with pytest.raises(DataError):
            world.start(**nothing)


def test_good_input_of_every_form_is_taken(world):
    state, seen = world.start(np.zeros((2, 1, 4, 4, 3), np.uint8), seed=np.int64(3), text=("a", "b"))
    frozen = np.zeros((2, 4, 4, 3), np.uint8)
    frozen.flags.writeable = False
    for action in ([0, 1], (0, None), np.array([0, 1]), [np.int64(0), np.int8(1)], torch.eye(5)[[0, 1]]):
        world.step(state, action)
        for frames in (frozen, frozen.tolist(), [frozen[0], frozen[1]]):
            if not isinstance(frames, list) or isinstance(frames[0], np.ndarray):
                world.observe(state, action, frames)
    _, imagined = world.step(state, [0, 1])
    world.observe(state, [0, 1], latents=imagined.latents.double())
    for shown in (np.zeros((2, 4, 4, 3), np.uint8), picture(2)):
        _, told = world.observe(state, [0, 1], shown)
        shown[:] = 255
        assert not told.frames.any()
    assert seen.frames.shape == (2, 1, 4, 4, 3)


# ---- paths -----------------------------------------------------------------------------------------------------------

PATHS = [
    "..", "../..", "/", "/nowhere/none", "~", "~root/x", "a\0b", "a\nb", "a\\b", "C:\\x", "\\\\host\\share", "x.",
    "x" * 300, "x" * 5000, "a/" * 2000, "\u2215etc\u2215passwd", "file:///etc/passwd", "http://127.0.0.1:1/x", "",
    " ", "\ud800",
]


@pytest.mark.parametrize("path", PATHS)
def test_odd_paths_are_refused_by_every_reader(world, tmp_path, path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    readers: list[Callable[[str], Any]] = [
        World.load, load_networks, load_recipe, training_facts, lambda p: WorldState.load(p, world), read_episode,
        lambda p: convert(p, tmp_path / "out"),
    ]
    for read in readers:
        with pytest.raises(StarflowError):
            read(path)
    assert not list(tmp_path.iterdir())


def test_a_pipe_in_the_place_of_any_file_does_not_hang(world, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        convert_it, load_it = lambda p: convert(p, tmp_path / "out"), lambda p: WorldState.load(p, world)
        for read in (load_recipe, read_episode, convert_it, load_it):
            with pytest.raises(StarflowError):
                read(tmp_path / name)
    with pytest.raises(StateError):
        WorldState.load(tmp_path, world)
