"""Configuration is plain data: read strictly, refused quickly, never run."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from starflow_world.config.reading import from_dict, to_dict
from starflow_world.config.train import RecipeConfig, TrainConfig, load_recipe
from starflow_world.config.video import load_video_config
from starflow_world.config.world import DecodeConfig, FlowConfig, WorldConfig
from starflow_world.errors import ConfigError
from tests.worlds import TINY

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(set((ROOT / "configs").glob("*.yaml")) - set((ROOT / "configs").glob("starflow_v_*.yaml")))
PLAIN = (ROOT / "configs" / "babyai-gotolocal.yaml").read_text()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_is_short(path):
    recipe = load_recipe(path)
    assert from_dict(RecipeConfig, to_dict(recipe)) == recipe
    assert len(path.read_text().splitlines()) <= 45
    assert max(recipe.train.lengths) <= recipe.world.window
    assert recipe.world.window >= 3 * recipe.world.context  # slides stay cheap


def test_a_config_survives_json():
    text = json.dumps(to_dict(TINY))
    assert from_dict(WorldConfig, json.loads(text)) == TINY
    ahead = replace(TINY, flow=replace(TINY.flow, denoiser_layers=1, denoiser_look_ahead=(1,)))
    assert from_dict(WorldConfig, json.loads(json.dumps(to_dict(ahead)))) == ahead
    unequal = replace(TINY, flow=replace(TINY.flow, shallow_blocks=2, shallow_layers=(2, 1)))
    assert from_dict(WorldConfig, json.loads(json.dumps(to_dict(unequal)))) == unequal
    video = load_video_config("starflow-v-7b").world()
    assert from_dict(WorldConfig, json.loads(json.dumps(to_dict(video)))) == video


def test_what_a_world_does_not_have_is_no_part_of_its_digest():
    assert "published" in to_dict(load_video_config("starflow-v-7b").world())
    assert "published" not in to_dict(TINY), "ids of worlds stay as they were before there were such parts"


@pytest.mark.parametrize(("changes", "said"), [
    ({"windw": 3}, r"unknown key windw; did you mean 'window'\?"),
    ({"flow.deep_width_": 3}, r"unknown key flow.deep_width_; did you mean 'deep_width'\?"),
    ({"xyzzy": 3}, "unknown key xyzzy; known keys: name, flow"),
    ({7: 3}, "unknown key 7"),
    ({"window": "6"}, "window: expected int, found '6'"),
    ({"window": True}, "window: expected int, found True"),
    ({"window": 6.0}, "window: expected int, found 6.0"),
    ({"window": None}, "window: expected int, found None"),
    ({"window": [6]}, "window: expected int"),
    ({"noise_level": float("nan")}, "noise_level: expected float, found nan"),
    ({"noise_level": float("inf")}, "noise_level: expected float, found inf"),
    ({"noise_level": 10**400}, "noise_level: expected float"),
    ({"noise_level": -1}, "noise_level: expected a positive number, found -1"),
    ({"noise_level": 0}, "noise_level: expected a positive number"),
    ({"flow": 3}, "flow.: expected a mapping, found int"),
    ({"flow": []}, "flow.: expected a mapping, found list"),
    ({"flow.denoiser_look_ahead": 1}, "flow.denoiser_look_ahead: expected a list, found 1"),
    ({"flow.denoiser_look_ahead": ["a"]}, "flow.denoiser_look_ahead: expected int, found 'a'"),
    ({"flow.denoiser_layers": 1, "flow.denoiser_look_ahead": [1, 1]}, "denoiser_look_ahead: expected 1 numbers"),
    ({"flow.denoiser_layers": 1, "flow.denoiser_look_ahead": [-1]}, "denoiser_look_ahead"),
    ({"flow.shallow_layers": -1}, "shallow_layers: expected a number from 0 to 1024"),
    ({"flow.shallow_layers": "2 1"}, "flow.shallow_layers: expected int, found '2 1'"),
    ({"flow.shallow_layers": [1, "2"]}, "flow.shallow_layers: expected int, found '2'"),
    ({"flow.shallow_layers": [1]}, r"or a list of 0, one per shallow block, found \(1,\)"),
    ({"flow.shallow_blocks": 2, "flow.shallow_layers": [1, 2000]}, r"shallow_layers: .* found \(1, 2000\)"),
    ({"flow.head_width": 0}, "head_width: expected a number from 1"),
    ({"flow.head_width": 10}, "head_width: expected 20"),
    ({"flow.deep_width": 50}, "multiples of head_width 20, found 50"),
    ({"codec": {"kind": "patch", "patch": 2}}, r"flow.sites: expected 1 or the codec's merge 1, found 2"),
    ({"flow.sites": 5}, "sites: expected sites\\*\\*2 to divide channels 12, found 5"),
    ({"flow.components": 0}, "components: expected a number from 1"),
    ({"flow.head_inner": 0}, "head_inner: expected a number from 1"),
    ({"flow.features_width": -1}, "features_width: expected a number from 0"),
    ({"flow.motion_width": 8}, "unknown key flow.motion_width"),
    ({"guidance": -1.0}, "guidance: expected a number >= 0"),
    ({"flow.shallow_blocks": 10**9}, "shallow_blocks: expected a number from 0 to 1024"),
    ({"flow.channels": 16}, r"expected \(12, 8, 16\), as codec and text have, found \(16, 8, 16\)"),
    ({"flow.text_length": 9}, r"expected \(12, 8, 16\)"),
    ({"text.heads": 3}, "width: expected a multiple of heads 3"),
    ({"text.kind": "bert"}, "kind: expected one of none, t5, published, found 'bert'"),
    ({"codec": {"kind": "pca", "patch": 2, "components": 13}}, "components: expected a number from 1 to 12"),
    ({"height": 16384, "width": 16384}, "at most 1048576 tokens in a window"),
    ({"height": 0}, "height: expected a number from 1"),
    ({"window": 1}, "window: expected a number from 2"),
    ({"context": 6}, "context: expected less than window 6, found 6"),
    ({"outcome.largest_reward": 0.0}, "largest_reward: expected a positive number"),
    ({"decode": {"tolerance": -1.0}}, "tolerance: expected a number >= 0"),
    ({"reward": "dense"}, "reward: expected one of event, raw"),
    ({"name": None}, "name: expected str"),
])
def test_what_cannot_be_meant_is_refused_by_name(changes, said):
    values = to_dict(TINY)
    for path, value in changes.items():
        *parents, last = path.split(".") if isinstance(path, str) else [path]
        place = values
        for name in parents:
            place = place[name]
        place[last] = value
    with pytest.raises(ConfigError, match=said):
        from_dict(WorldConfig, values)


def test_what_is_missing_is_named():
    with pytest.raises(ConfigError, match="flow: expected a value, found none"):
        from_dict(WorldConfig, {"name": "x"})
    with pytest.raises(ConfigError, match=r"flow\.channels: expected a value"):
        from_dict(WorldConfig, {"name": "x", "flow": {}})
    with pytest.raises(ConfigError, match="RecipeConfig: expected a mapping"):
        from_dict(RecipeConfig, [])


@pytest.mark.parametrize(("changes", "said"), [
    ({"events": -1}, "events"),
    ({"steps": 0}, "steps"), ({"frames": 0}, "frames"), ({"valid_every": 0}, "valid_every"), ({"starts": -1}, "starts"),
    ({"lengths": ()}, "lengths"), ({"lengths": (0,)}, "lengths"), ({"learning_rate": 0.0}, "learning_rate"),
    ({"precision": "f16"}, "precision"), ({"seed": -1}, "seed"), ({"save_minutes": -1.0}, "save_minutes"),
])
def test_training_that_cannot_be_meant_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        replace(TrainConfig(), **changes)


def test_overrides_change_one_value_each():
    recipe = load_recipe(RECIPES[0], ("train.steps=7", "world.name=other", "train.lengths=[2, 3]"))
    assert (recipe.train.steps, recipe.world.name, recipe.train.lengths) == (7, "other", (2, 3))
    for wrong in ("train.steps", "train.stpes=3", "train.steps.more=3", "train.steps=[", "train.steps=&a [*a]",
                  "train.steps=!!python/name:os.system", "=3", "train.=3"):
        with pytest.raises(ConfigError):
            load_recipe(RECIPES[0], (wrong,))


BOMB = "".join(f"{n}: &{n} [{', '.join([f'*{p}'] * 9)}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True))
HOSTILE = {
    "nothing": "", "a list": "- 1", "a number": "3", "no mapping": "world: 3\ndata: 4", "tab": "world:\n\tname: x",
    "a key twice": PLAIN.replace("  name:", "  window: 24\n  name:"),
    "an alias bomb": "a: &a [x]\n" + BOMB, "an alias to itself": "world: &a\n  name: *a",
    "a merge": "world: &w {name: x}\ndata:\n  <<: *w", "binary": "world: !!binary x",
    "an object": "world: !!python/object/apply:os.system ['true']", "a tag": "world: !x {}",
    "a date that is none": "world: 2001-99-99", "a number of 5000 digits": "world: " + "9" * 5000,
    "not a number": PLAIN.replace("noise_level: 0.12", "noise_level: .nan"),
    "infinity": PLAIN.replace("noise_level: 0.12", "noise_level: .inf"),
    "deep lists": "[" * 10_000, "deep whole lists": "[" * 10_000 + "]" * 10_000, "deep maps": "{a: " * 10_000,
    "deep dashes": "- " * 10_000, "deep blocks": "\n".join(" " * n + "a:" for n in range(350)),
    "many keys": "\n".join(f"k{n}: 1" for n in range(3000)), "one long key": "k" * 30_000 + ": 1",
    "two documents": "a: 1\n---\nb: 2", "a NUL": "world: \0", "bytes": "\xff\xfe\x00", "10 MB": "# " + "x" * 10_000_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_within_a_second(kind, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(HOSTILE[kind], encoding="latin-1" if kind == "bytes" else "utf-8")
    begin = time.process_time()
    with pytest.raises(ConfigError):
        load_recipe(path)
    assert time.process_time() - begin < 1.0


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "link")
    for path in (tmp_path, tmp_path / "none", tmp_path / "link", "a\0b", "x" * 5000, "/dev/zero"):
        with pytest.raises(ConfigError, match="found none"):
            load_recipe(path)


def test_defaults_are_the_published_model_with_every_switch_off():
    flow = FlowConfig(channels=192)
    assert (flow.shallow_blocks, flow.shallow_width, flow.deep_layers, flow.deep_width) == (5, 3072, 24, 4096)
    assert flow.components == flow.sites == 1
    assert flow.features_width == flow.denoiser_layers == 0
    assert DecodeConfig().chunk == DecodeConfig().max_sweeps == 0
