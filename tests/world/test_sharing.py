"""Sharing: a world in a folder or on a hub is the same one, nothing of a repository runs, a failure is one error."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from starflow_world.errors import CheckpointError
from starflow_world.io.yaml import parse_yaml
from starflow_world.model.checkpoint import CARD, CONFIG, STARTS, WEIGHTS
from starflow_world.world import World
from starflow_world.world.model_card import model_card
from starflow_world.world.sharing import README, Shared, save_shared
from tests.hub_server import FakeHub, commit, fake_hub
from tests.worlds import env_world, save_world, tiny_config

SAVED = {CARD, CONFIG, README, STARTS, WEIGHTS}
NAME = "somebody/rooms"
SHARE = {"share": 0.5, "total": 8, "interval": [0.2, 0.8]}
FIGURES = {"excess_nats": 6.92, "exact_frames_1": SHARE, "end_f1": None, "chance": {"legal_1": SHARE},
           "sweep_counts": {"2": 1}, "ablations": {"no action": {"excess_nats": 8.0, "loss": 1.086}}}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub on the loopback address, an empty cache, and no waiting between tries."""
    constants = pytest.importorskip("huggingface_hub").constants
    with fake_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                            hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield hub


@pytest.fixture
def shared(hub: FakeHub, saved: Path, tmp_path: Path) -> FakeHub:
    """The hub with the tiny world as `NAME`."""
    folder = World.load(saved).save_pretrained(tmp_path / "shared")
    hub.repositories[NAME] = {"main": {path.name: path.read_bytes() for path in folder.iterdir()}}
    return hub


def same(one: World, other: World) -> bool:
    frames = [world.start(world.starts.frames[:2, None], seed=3)[0] for world in (one, other) if world.starts]
    stepped = [one.step(frames[0], [1, 2])[1], other.step(frames[1], [1, 2])[1]]
    return one.world_id == other.world_id and bool((stepped[0].frames == stepped[1].frames).all())


def test_a_world_that_is_saved_and_loaded_is_the_same_world(saved: Path, tmp_path: Path) -> None:
    world = World.load(saved)
    loaded = World.from_pretrained(world.save_pretrained(tmp_path / "copy", license="mit"))
    assert same(world, loaded)
    assert loaded.card == world.card | {"license": "mit"}
    assert {path.name for path in (tmp_path / "copy").iterdir()} == SAVED
    again = World.from_pretrained(loaded.save_pretrained(tmp_path / "copy", license="apache-2.0"))
    assert same(world, again)
    assert again.card["license"] == "apache-2.0"


def test_a_world_in_memory_is_saved_with_its_starts_and_without_those_of_another(tmp_path: Path) -> None:
    world = env_world()
    loaded = World.from_pretrained(world.save_pretrained(tmp_path))
    assert loaded.starts is not None
    assert world.starts is not None
    assert (loaded.starts.frames == world.starts.frames).all()
    assert (world.starts.texts, loaded.card) == (loaded.starts.texts, {})
    World(world.networks).save_pretrained(tmp_path)
    assert World.from_pretrained(tmp_path).starts is None


def test_a_local_folder_needs_no_network_and_no_package(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert World.from_pretrained(saved).world_id == World.load(saved).world_id
    with pytest.raises(CheckpointError, match="expected one of a repository user/name only, found 'main'"):
        World.from_pretrained(saved, revision="main")
    with pytest.raises(CheckpointError, match="did you mean 'cartpole-pixels'"):
        World.from_pretrained("cartpole-pixel")


def test_a_world_that_is_pushed_comes_back_and_then_from_the_cache(
    hub: FakeHub, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World.load(saved)
    address = world.push_to_hub(NAME, license="mit")
    files = hub.repositories[NAME]["main"]
    assert address == f"{hub.endpoint}/{NAME}/commit/{commit(files)}"
    assert set(files) == SAVED
    assert f'World.from_pretrained("{NAME}")'.encode() in files[README]
    world.push_to_hub(NAME, license="apache-2.0", revision="draft")
    assert same(world, World.from_pretrained(NAME))
    assert World.from_pretrained(NAME, revision="draft").card["license"] == "apache-2.0"
    assert World.from_pretrained(NAME, revision=commit(files)).card["license"] == "mit"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert same(world, World.from_pretrained(NAME))
    assert hub.requests == []


def test_only_files_of_a_world_are_fetched_and_nothing_runs(shared: FakeHub, tmp_path: Path) -> None:
    files = shared.repositories[NAME]["main"]
    code = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
    odd = ("env.py", "modeling.py", "pytorch_model.bin", "../outside.json", "sub/config.json", "/etc/model.safetensors",
           "model-/../-of-/../..safetensors", "tokenizer.json", "__init__.py")
    files.update(dict.fromkeys(odd, code))
    folder = World.from_pretrained(NAME).folder
    assert folder is not None
    assert {path.name for path in folder.iterdir()} == SAVED - {README}
    fetched = {line.rpartition("/")[2] for line in shared.requests if "/resolve/" in line}
    assert fetched == SAVED - {README}
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("name", "revision", "said"), [
    ("somebody/nothing", None, "somebody/nothing: expected a folder or a repository of the hub, found neither"),
    (NAME, "v9", f"{NAME}: expected a branch, a tag or a commit, found no 'v9' there"),
    (NAME, "../../main", r"revision: expected a branch, a tag or a commit .*'\.\./\.\./main'"),
    ("somebody/../nothing", None, "repository: expected a folder, or user/name"),
    ("runs/rooms/last", None, "repository: expected a folder, or user/name .*'runs/rooms/last'"),
])
def test_a_wrong_name_or_revision_is_one_error(shared: FakeHub, name: str, revision: str | None, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        World.from_pretrained(name, revision=revision)
    assert "\n" not in str(caught.value)


def test_a_hub_out_of_reach_is_one_error(shared: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = f"{NAME}: expected to reach the hub, or a whole copy in the cache, found neither .*; connect, or"
    with pytest.raises(CheckpointError, match=said):
        World.from_pretrained(NAME)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=said):
        World.from_pretrained(NAME)
    with pytest.raises(CheckpointError, match=f"{NAME}: expected to push to it, found"):
        env_world().push_to_hub(NAME)


def test_a_broken_download_is_one_error_and_goes_on(shared: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    shared.cut = 700
    with pytest.raises(CheckpointError, match=f"{NAME}: expected to fetch it, found .*try again"):
        World.from_pretrained(NAME)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="expected to reach the hub, or a whole copy in the cache"):
        World.from_pretrained(NAME)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    shared.cut = None
    assert World.from_pretrained(NAME).starts is not None


def test_a_repository_that_is_damaged_or_of_another_kind_is_one_error(shared: FakeHub) -> None:
    whole, branches = shared.repositories[NAME]["main"], shared.repositories[NAME]
    turned = bytearray(whole[WEIGHTS])
    turned[-1] ^= 1
    branches["damaged"] = whole | {WEIGHTS: bytes(turned)}
    branches["pickled"] = whole | {WEIGHTS: b"\x80\x04cposix\nsystem\n."}
    branches["without"] = {path: content for path, content in whole.items() if path != WEIGHTS}
    branches["foreign"] = {"pytorch_model.bin": b"", "model.safetensors": whole[WEIGHTS]}
    for branch in ("damaged", "pickled", "without"):
        with pytest.raises(CheckpointError, match=f"{WEIGHTS}: expected digest"):
            World.from_pretrained(NAME, revision=branch)
    with pytest.raises(CheckpointError, match=f"{NAME}: expected config.json and model.safetensors in this repository"):
        World.from_pretrained(NAME, revision="foreign")


def test_a_published_video_model_is_not_shared_as_a_world(tmp_path: Path) -> None:
    networks: Any = SimpleNamespace(config=SimpleNamespace(name="video", codec=SimpleNamespace(kind="wan")))
    with pytest.raises(CheckpointError, match="video: expected a world that holds all its parts, found a published"):
        save_shared(Shared(networks, None, {}, None), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_repository_of_a_published_video_model_is_not_read_as_a_world(
    shared: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = SimpleNamespace(codec=SimpleNamespace(kind="wan"))
    monkeypatch.setattr("starflow_world.world.sharing.load_config", lambda folder: (video, ""))
    with pytest.raises(CheckpointError, match="somebody/rooms: expected a world that holds all its parts"):
        World.from_pretrained(NAME)


@pytest.mark.parametrize("calls", [0, 1])
def test_a_save_that_stops_leaves_no_mix_of_two_worlds(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    world, out, left = World.load(saved), save_world(env_world(size=16), tmp_path / "out"), [None] * calls
    copy = shutil.copyfile
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", lambda *paths: copy(*paths) if left and not left.pop() else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            world.save_pretrained(out)
    with pytest.raises(CheckpointError, match=f"{CONFIG}: expected a JSON file, found none"):
        World.load(out)
    assert same(world, World.from_pretrained(world.save_pretrained(out)))


def test_the_model_card_says_what_the_card_says() -> None:
    card = {"data": "rooms", "env": "Rooms-v0", "license": "mit", "command": "train", "figures": FIGURES}
    text = model_card(tiny_config(), card, "f" * 64, NAME)
    header, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert parse_yaml(header, "README.md") == {
        "license": "mit", "library_name": "starflow-world", "datasets": ["rooms"],
        "tags": ["world-model", "normalizing-flow", "reinforcement-learning", "gymnasium", "video-prediction"],
        "metrics": ["excess_nats", "exact_frames_1"],
    }
    lines = [" ".join(line.split()) for line in body.splitlines()]
    for line in ("| `excess_nats` | 6.92 |", "| `exact_frames_1` | 50.0 % (20.0 % to 80.0 %, n = 8) |",
                 "| `chance.legal_1` | 50.0 % (20.0 % to 80.0 %, n = 8) |", "| no action | 8 | | 1.09 | |",
                 "| `command` | `train` |", f"| weights, SHA-256 | `{'f' * 64}` |", "## Limits", "## Use"):
        assert line in lines, line
    assert "end_f1" not in body
    assert "sweep" not in body


def test_nothing_in_a_card_leaves_its_place_in_the_model_card() -> None:
    hostile = 'x"\n---\nlicense: gpl\n| `a` | <b>\n# title'
    card = {"data": hostile, "license": hostile, "env": hostile, hostile: hostile, "figures": {hostile: hostile}}
    text = model_card(tiny_config(name=hostile), json.loads(json.dumps(card)), "f")
    header, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert parse_yaml(header, "README.md")["license"] == hostile
    heads = [line for line in body.splitlines() if line.startswith(("#", "---", "license"))]
    assert heads[1:] == ["## Use", "## Figures", "## Ablations", "## Limits", "## Provenance"]
    bare = model_card(tiny_config(), {}, "f")
    assert 'license: "unknown"' in bare
    assert "A world learned from recordings" in bare
