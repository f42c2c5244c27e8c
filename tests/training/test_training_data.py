"""What training takes from its data before the first step, and what it refuses there, before anything is written."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from starflow_world.config.train import RecipeConfig, load_recipe
from starflow_world.config.world import NO_ACTIONS, OutcomeConfig, WorldConfig
from starflow_world.data.dataset import ORIGIN, EpisodeDataset, origin
from starflow_world.data.episodes import episode_path, write_episode
from starflow_world.errors import DataError
from starflow_world.io.files import read_tensors, write_tensors
from starflow_world.model.actions import space_to_json
from starflow_world.model.checkpoint import TRAINING, load_config, save_checkpoint
from starflow_world.model.networks import Networks
from starflow_world.model.reward_head import Outcome, OutcomeHead
from starflow_world.training import train
from starflow_world.training.recipe import complete_recipe, data_facts
from starflow_world.world import SHIPPED, find_world
from tests.squares import episode, fill, recipe, world_config
from tests.worlds import no_text

pytestmark = pytest.mark.usefixtures("no_curves")
ENV = {"env": "Squares-v0", "env_kwargs": {"size": 8}, "wrappers": ["Slow"], "frame_size": 8, "max_steps": 11}
SHORT = """
world:
  codec: {kind: patch, patch: 2}
  flow: {channels: 12, shallow_blocks: 1, shallow_layers: 1, shallow_width: 20, deep_layers: 1, deep_width: 20,
         head_width: 20}
  outcome: {width: 8}
  window: 6
  context: 2
train: {steps: 1, frames: 8, lengths: [4], starts: 2, warmup: 0, precision: f32}
"""


def record(folder: Path, **values: object) -> Path:
    """Write collection.json as `collect` does."""
    (folder / "collection.json").write_text(json.dumps({"recipe": values, "episodes": 4}))
    return folder


def card(out: Path) -> dict[str, object]:
    return json.loads((out / "card.json").read_text())


def store(folder: Path, count: int = 3, length: int = 6, **changes: object) -> Path:
    """Write episodes of squares with some of their parts changed; what a function gives follows from the index."""
    for index in range(count):
        made = {key: value(index) if callable(value) else value for key, value in changes.items()}
        write_episode(episode_path(folder, index), replace(episode(index, length), **made))
    return folder


def short(folder: Path, *overrides: str) -> RecipeConfig:
    """The recipe SHORT, which names neither world, size, step limit nor rewards."""
    folder.mkdir(exist_ok=True)
    (folder / "short.yaml").write_text(SHORT)
    return load_recipe(folder / "short.yaml", overrides)


def completed(made: RecipeConfig, data: Path, init: WorldConfig | None = None) -> WorldConfig:
    episodes = EpisodeDataset(data)
    windows = episodes.memory_map()
    return complete_recipe(made, data_facts(episodes, windows), windows, init=init, begun=None).world


def rewards(*values: float) -> np.ndarray:
    return np.array((0, *values), np.float32)


def box(low: float, high: float, unit: float = 1.0, **facts: object) -> dict[str, object]:
    """Changes of episodes: a Box action between -unit and unit, drawn by the index."""
    space = spaces.Box(np.float32(low), np.float32(high), (1,), np.float32)

    def draw(index: int) -> np.ndarray:
        actions = np.random.default_rng(index).uniform(-1, 1, (6, 1))
        actions[0] = 0
        return (actions * unit).astype(np.float32)

    return {"actions": draw, "space": space_to_json(space), **facts}


# ---- the card --------------------------------------------------------------------------------------------------------


def test_the_card_says_what_the_world_was_learned_from(tmp_path):
    data = record(fill(tmp_path / "data", (5, 8)), **ENV, reward="event", policy="x", seed=3)
    train(recipe(steps=1), data, tmp_path / "out")
    assert card(tmp_path / "out").items() >= {**ENV, "reward": "event", "data": "data", "precision": "f32"}.items()


def test_own_recordings_have_no_environment_and_a_damaged_record_is_named(tmp_path):
    data = fill(tmp_path / "data", (5, 8))
    assert origin(data) == {}
    record(data, **{**ENV, "max_steps": None})
    assert "max_steps" not in origin(data)
    for damage in ("[", '{"recipe": {"max_steps": "many"}}'):
        (data / "collection.json").write_text(damage)
        with pytest.raises(DataError, match=r"collection\.json: expected the record of a collection"):
            origin(data)


@pytest.mark.parametrize("world", sorted(path.parent.name for path in SHIPPED.glob("*/card.json")))
def test_the_card_of_a_shipped_world_says_what_it_was_learned_from(world):
    assert card(find_world(world)).keys() >= set(ORIGIN) - {"wrappers", "view", "source"}  # of some worlds only


# ---- what the data fill in -------------------------------------------------------------------------------------------


def test_name_size_and_step_limit_that_a_recipe_leaves_out_come_from_the_data(tmp_path):
    data, made = store(tmp_path / "squares"), short(tmp_path)
    world = completed(made, data)
    assert (world.name, world.height, world.width, world.max_episode_steps) == ("squares", 8, 8, 64)
    never = np.zeros(6, bool)
    assert completed(made, store(tmp_path / "cut", terminated=never, truncated=never)).max_episode_steps == 5
    record(data, **ENV)
    assert (completed(made, data).name, completed(made, data).max_episode_steps) == ("squares-v0", 11)
    said = short(tmp_path, "world.name=mine", "world.max_episode_steps=7", "world.height=8")
    assert (completed(said, data).name, completed(said, data).max_episode_steps) == ("mine", 7)
    assert said.follow == ("width", "reward", "outcome.largest_reward")


@pytest.mark.parametrize(("values", "kind", "largest"), [
    ((0, 0, 0, 0, 1), "event", 1), ((0,) * 5, "event", 1), ((-20,) * 5, "raw", 20), ((-1, 0, 0, 1, 0), "raw", 1),
    ((0.25, 3, -7.5, 0, 0), "raw", 7.5), ((0, 0, 0, 0, 0.001), "raw", 0.001),
])
def test_kind_and_range_of_rewards_come_from_the_data(tmp_path, values, kind, largest):
    data = store(tmp_path / "data", rewards=rewards(*values))
    for overrides in ((), ("world.outcome.largest_reward=0",)):
        world = completed(short(tmp_path, *overrides), data)
        assert (world.reward, world.outcome.largest_reward) == (kind, pytest.approx(largest))


def test_a_run_on_raw_rewards_says_so_and_keeps_them_when_it_is_resumed(tmp_path, capsys):
    data, made = store(tmp_path / "data", rewards=rewards(*(-20,) * 5)), short(tmp_path)
    train(made, data, tmp_path / "out")
    assert "rewards -20 to 0, learned as raw up to 20 in size" in capsys.readouterr().err
    saved = load_config(tmp_path / "out")[0]
    assert (saved.reward, saved.outcome.largest_reward, saved.name) == ("raw", 20, "data")
    train(short(tmp_path, "train.steps=2"), data, tmp_path / "out", resume=True)
    assert load_config(tmp_path / "out")[0] == saved


def test_negative_and_many_valued_rewards_are_learned():
    """Two-hot bins over symlog that reach from the lowest to the highest reward."""
    values = torch.tensor([-20.0, -19.5, -1.0, -0.01, 0.0, 0.3, 7.0, 20.0])
    head = OutcomeHead(OutcomeConfig(4, largest_reward=20.0), world_config(**no_text()).flow)
    logits = torch.zeros(len(values), 41, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)


    for _ in range(300):
        optimizer.zero_grad()
        head.loss(Outcome(logits, torch.zeros(len(values))), values, torch.zeros(len(values)))[0].sum().backward()
        optimizer.step()
    torch.testing.assert_close(head.reward(Outcome(logits.detach(), values)), values, rtol=0.02, atol=0.02)


def test_a_run_from_a_checkpoint_keeps_reward_bins_and_action_scale_that_cover_its_data(tmp_path):
    data = store(tmp_path / "data", **box(-50, 50, rewards=rewards(-2, 0, 1, 0, 0)))
    made = short(tmp_path)
    first = completed(made, data)
    wider = replace(first, outcome=replace(first.outcome, largest_reward=9.0),
                    action_scale=replace(first.action_scale, scale=(7.0,)))
    assert first.outcome.largest_reward == 2
    assert completed(made, data, wider).outcome.largest_reward == 9
    assert completed(made, data, wider).action_scale.scale == (7.0,)
    narrower = replace(first, outcome=replace(first.outcome, largest_reward=1.0))
    assert completed(made, data, narrower).outcome.largest_reward == 2


# ---- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "reason"), [
    (box(-1, 1), r'action space: expected .*"n": 4.*, found .*"Box"'),
    ({"frames": np.zeros((6, 16, 8, 3), np.uint8)}, r"frames \(height, width\): expected \(8, 8\), found \(16, 8\)"),
    ({"text": ""}, r"texts \(world\.text\.kind t5\): expected some, found none"),
    ({"text": "a longer text"}, r"bytes of a text: expected at most 7, found 13 in episode-000000\.h5; set world\."),
    ({"rewards": rewards(0, 0, -3, 0, 0)}, r"kind of rewards \(world\.reward\): expected event, found raw, -3 to 0"),
])
@pytest.mark.parametrize("role", ["data", "valid"])
def test_data_that_do_not_fit_are_one_error_that_names_both_before_the_first_step(tmp_path, changes, reason, role):
    good, bad = fill(tmp_path / "good", (6, 6)), store(tmp_path / "bad", **changes)
    data, valid = (bad, None) if role == "data" else (good, bad)
    named = "the recipe" if role == "data" else str(good)
    with pytest.raises(DataError, match=rf"bad does not fit .*{named}: .*{reason}"):
        train(recipe(world_config(), steps=1), data, tmp_path / "out", valid=valid)
    assert not (tmp_path / "out").exists()


def test_every_difference_is_in_the_one_error(tmp_path):
    bad = store(tmp_path / "bad", text="a longer text", frames=np.zeros((6, 16, 8, 3), np.uint8))
    with pytest.raises(DataError, match=r"frames \(height, width\).*\. bytes of a text"):
        train(recipe(steps=1), bad, tmp_path / "out")


def test_one_long_text_among_many_is_found_before_the_first_step(tmp_path):
    data = store(tmp_path / "data", 9, text=lambda index: "wordy, very" if index == 7 else "go")
    reason = r"at most 7, found 11 in episode-000007\.h5; set world\.text\.length and world\.flow\.text_length to 12"
    with pytest.raises(DataError, match=reason):
        train(recipe(steps=1), data, tmp_path / "out")


def test_rewards_beyond_what_the_recipe_says_are_refused(tmp_path):
    data = store(tmp_path / "data", rewards=rewards(0, 0, -3, 0, 0))
    made = short(tmp_path, "world.outcome.largest_reward=2", "world.reward=raw")
    with pytest.raises(DataError, match=r"rewards: expected at most 2 in size .*largest_reward\), found -3 to 0"):
        train(made, data, tmp_path / "out")


def test_a_checkpoint_of_another_form_is_refused_before_the_first_step(tmp_path):
    data = store(tmp_path / "data", **box(-1, 1))
    save_checkpoint(tmp_path / "init", Networks(world_config(reward="raw")), {})
    reason = r"init .*init does not fit the recipe and .*data: action space: .*\. reward: expected event, found raw"
    with pytest.raises(DataError, match=reason):
        train(replace(recipe(steps=1), follow=("reward",)), data, tmp_path / "out", init=tmp_path / "init")


# ---- actions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high", "unit", "expected"), [
    (-1, 1, 1, None), (-10_000, 10_000, 10_000, (0, 10_000)), (0, 1e-3, 1e-3, (5e-4, 5e-4)), (-2, 4, 1, (1, 3)),
])
def test_actions_are_scaled_by_their_bounds(tmp_path, low, high, unit, expected):
    scale = completed(short(tmp_path), store(tmp_path / "data", **box(low, high, unit))).action_scale
    found = None if scale is None else (scale.offset[0], scale.scale[0])
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("bound", [np.inf, 3e38])
def test_actions_without_bounds_or_with_bounds_far_beyond_the_data_are_scaled_by_the_data(tmp_path, bound):
    scale = completed(short(tmp_path), store(tmp_path / "data", 25, **box(-bound, bound, 300))).action_scale
    assert abs(scale.offset[0]) < 60
    assert scale.scale[0] == pytest.approx(300 / 3**0.5, rel=0.2)


def test_a_task_in_units_of_one_and_of_ten_thousand_trains_alike(tmp_path):
    curves = []
    for name, unit in (("one", 1.0), ("thousands", 1e4)):
        data = store(tmp_path / name, 4, **box(-unit, unit, unit))
        made = short(tmp_path, "train.steps=8")
        train(made, data, tmp_path / f"{name}-out")
        lines = (tmp_path / f"{name}-out" / "metrics.jsonl").read_text().splitlines()
        curves.append([json.loads(line)["excess"] for line in lines])
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)
    scale = load_config(tmp_path / "thousands-out")[0].action_scale
    assert (scale.offset, scale.scale) == ((0.0,), (1e4,))
    assert load_config(tmp_path / "one-out")[0].action_scale is None, "old worlds and new ones have the same config"


# ---- precision -------------------------------------------------------------------------------------------------------


def test_precision_auto_takes_the_faster_and_a_resumed_run_keeps_it(tmp_path, monkeypatch, capsys):
    data, rates = fill(tmp_path / "data", (6, 6)), {torch.float32: 1e9, torch.bfloat16: 2e9}
    monkeypatch.setattr("starflow_world.training.precision.measured_rates", lambda sizes, device: rates)
    train(recipe(steps=1, precision="auto"), data, tmp_path / "out")
    assert "precision bf16, the faster here (GFLOP/s: f32 1.0, bf16 2.0)" in capsys.readouterr().err
    assert card(tmp_path / "out")["precision"] == "bf16"
    rates[torch.bfloat16] = 0.5e9
    train(recipe(steps=2, precision="auto"), data, tmp_path / "out", resume=True)
    assert card(tmp_path / "out")["precision"] == "bf16"
    train(recipe(steps=1, precision="auto"), data, tmp_path / "other")
    assert card(tmp_path / "other")["precision"] == "f32"


@pytest.mark.parametrize("name", ["babyai-gotolocal", "cartpole-pixels", "dynamic-obstacles"])
def test_shipped_recipes_choose_the_faster_precision_and_leave_the_rewards_to_their_data(name):
    shipped = load_recipe(Path(__file__).resolve().parents[2] / "configs" / f"{name}.yaml")
    assert shipped.train.precision == "auto"
    assert {"reward", "outcome.largest_reward", "max_episode_steps"} <= set(shipped.follow)


def test_a_run_that_an_earlier_version_saved_is_resumed_as_it_began(tmp_path):
    """Its state knows neither `follow` nor a scale of actions, and its recipe not the action space."""
    data, out = store(tmp_path / "data", **box(-10, 10, 10)), tmp_path / "out"
    begun = short(tmp_path)
    monkey = pytest.MonkeyPatch()
    monkey.setattr("starflow_world.training.recipe.action_scale", lambda space, actions, first: None)
    train(begun, data, out)
    monkey.undo()
    tensors, metadata = read_tensors(out / TRAINING)
    facts = json.loads(metadata["facts"])
    del facts["recipe"]["follow"]
    facts["recipe"]["world"]["action_space"] = NO_ACTIONS
    write_tensors(out / TRAINING, tensors, {"facts": json.dumps(facts)}, sealed=True)
    before = load_config(out)[0]
    train(short(tmp_path, "train.steps=2", "train.precision=auto"), data, out, resume=True)
    assert load_config(out)[0] == before
    assert (before.action_scale, card(out)["precision"], card(out)["steps"]) == (None, "f32", 2)


def test_copies_of_the_episodes_go_where_they_are_told_to(tmp_path):
    data = store(tmp_path / "data")
    train(recipe(steps=1), data, tmp_path / "out", valid=data, cache=tmp_path / "cache")
    assert not (data / ".cache").exists()
    assert len(list((tmp_path / "cache").iterdir())) == 1
