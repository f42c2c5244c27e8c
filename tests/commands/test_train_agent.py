"""train-agent and rank, from the first frame to the report, in a world that knows nothing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gymnasium import spaces

pytest.importorskip("minigrid")
pytest.importorskip("stable_baselines3")

from starflow_world.agents.babyai.rooms import ENV, LIMIT
from starflow_world.agents.environment import Environment
from starflow_world.agents.policy import RandomPolicy
from starflow_world.commands.rank import RankPolicies, candidates, rank_policies
from starflow_world.commands.train_agent import TrainAgent
from starflow_world.commands.train_agent.report import agents_markdown, at, ratios, steps_to
from starflow_world.commands.train_agent.task import JUDGED_FROM, BabyAIRooms, RealEpisodes, first_frames, make_task
from starflow_world.commands.train_agent.training import train_agent
from starflow_world.config.world import CodecConfig, TextConfig
from starflow_world.errors import ConfigError, DataError
from starflow_world.model.networks import Networks
from starflow_world.world import World
from tests.worlds import TINY, no_text, randomise, save_world, tiny_config

TEXT = "go to the red ball"
SOURCE = Environment(ENV, max_steps=LIMIT)
PLAN = TrainAgent(text=TEXT, steps=256, dream_steps=512, envs=8, seeds=1, starts=3, episodes=2, chunk=256)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a world of 64x64 frames in 16 tokens, whose episodes end soon."""
    torch.manual_seed(0)
    flow = replace(TINY.flow, channels=16, text_length=24)
    text = TextConfig("t5", 24, 16, 1, 2)
    codec = CodecConfig("pca", patch=8, components=4, merge=2)
    sizes = {"height": 64, "width": 64, "max_episode_steps": 20}
    config = tiny_config(spaces.Discrete(7), codec=codec, flow=flow, text=text, **sizes)
    networks = randomise(Networks(config))
    networks.codec.fit(first_frames(BabyAIRooms(SOURCE, TEXT), range(20))[0])
    folder = save_world(World(networks), tmp_path_factory.mktemp("world"))
    (folder / "card.json").write_text(json.dumps(SOURCE.to_dict()))
    return folder


@pytest.fixture(scope="module")
def done(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_agent(replace(PLAN, world=str(world), out=tmp_path_factory.mktemp("agent"), round_trip=1e6))


def test_a_run_leaves_agents_figures_curves_a_video_and_a_report(done: Path) -> None:
    assert {path.name for path in done.iterdir()} == {
        "agent.mp4", "agents.json", "curves.png", "dream-0", "real-0", "report.md", "run.json"
    }
    figures = json.loads((done / "agents.json").read_text())
    steps = {where: [point["steps"] for point in curves[0]] for where, curves in figures["curves"].items()}
    assert steps == {"real": [0, 256], "dream": [0, 256, 512]}
    assert figures["final"][0]["real"]["episodes"] == figures["random"]["dream"]["episodes"] == 2
    last = figures["curves"]["dream"][0][-1]
    assert {key: last[key] for key in figures["final"][0]["real"]} == figures["final"][0]["real"]
    assert agents_markdown(figures) == (done / "report.md").read_text()
    for name in ("agent.mp4", "curves.png"):
        assert (done / name).stat().st_size > 5000


def test_a_run_goes_on_and_adds_what_is_asked_for(world: Path, done: Path, tmp_path: Path) -> None:
    done = shutil.copytree(done, tmp_path / "agent")  # other tests look at what was there before
    again = replace(PLAN, world=str(world), out=done, round_trip=1e6, resume=True)
    with pytest.raises(ConfigError, match="--resume"):
        train_agent(replace(again, resume=False))
    with pytest.raises(DataError, match="new folder"):
        train_agent(replace(again, starts=4))
    before = (done / "real-0" / "agent.safetensors").read_bytes()
    train_agent(replace(again, dream_steps=768))
    figures = json.loads((done / "agents.json").read_text())
    assert [point["steps"] for point in figures["curves"]["dream"][0]] == [0, 256, 512, 768]
    assert (done / "real-0" / "agent.safetensors").read_bytes() == before


def test_dreams_and_rooms_begin_alike_and_no_room_is_both_learned_from_and_judged_in(world: Path) -> None:
    task = make_task(World.load(world), SOURCE, TEXT, starts=3, episodes=2)
    assert max(task.learned) < JUDGED_FROM <= min(task.judged)
    begun = {frame.numpy().tobytes() for frame in first_frames(task.real, task.learned)[0]}
    for where in ("dream", "real"):
        env = task.train_env(where, 6)
        frames, infos = env.reset(seed=0)
        assert {frame.tobytes() for frame in frames} <= begun
        assert infos["text"].tolist() == [TEXT] * 6
        pairs = zip(task.starts(where), first_frames(task.real, task.judged)[0], strict=True)
        for start, frame in pairs:
            assert (task.env(where).reset(seed=start.seed, options=start.options)[0] == frame.numpy()).all()


def test_the_time_limit_is_the_same_in_both(world: Path) -> None:
    task = make_task(World.load(world), SOURCE, TEXT, starts=1, episodes=1)
    assert task.env("dream").max_episode_steps == task.env("real").inner.max_steps
    assert task.train_env("dream", 1).max_episode_steps == task.train_env("real", 1).envs[0].inner.max_steps


def test_policies_are_ranked_in_both(world: Path, done: Path, tmp_path: Path) -> None:
    rank_policies(RankPolicies(str(world), agents=done, episodes=2, out=tmp_path))
    figures = json.loads((tmp_path / "rank.json").read_text())
    assert len(figures["scores"]) == 7
    assert {"random", "PPO dream-0", "PPO real-0"} <= figures["scores"].keys()
    assert figures["scores"]["scripted, 0% random"]["real"]["success"] == 1.0
    assert set(figures["spearman"]) == {"success", "discounted"}
    assert all(name in (tmp_path / "rank.md").read_text() for name in figures["scores"])
    with pytest.raises(DataError, match="train-agent"):
        rank_policies(RankPolicies(str(world), agents=tmp_path, episodes=1, out=tmp_path))


def test_agents_of_several_runs_are_told_apart(done: Path, tmp_path: Path) -> None:
    for run in ("a", "b"):
        shutil.copytree(done / "dream-0", tmp_path / run / "dream-0")
    names = [policy.name for policy in candidates(TEXT, tmp_path)]
    assert names[-2:] == ["PPO a/dream-0", "PPO b/dream-0"]
    assert candidates(TEXT, tmp_path / "a" / "dream-0")[-1].name == "PPO dream-0"


def curve(*success: float) -> list[dict[str, float]]:
    return [{"steps": 100 * index, "success": value} for index, value in enumerate(success)]


def test_the_report_compares_after_the_same_steps_and_at_the_end() -> None:
    final = [{"dream": {"reward": 0.9}, "real": {"reward": 0.8}}, {"dream": {"reward": 0.8}, "real": {"reward": 0.8}}]
    figures = {
        "curves": {"real": [curve(0, 0.5, 0.8), curve(0, 0.7, 1.0)],
                   "dream": [curve(0, 0.2, 0.6, 0.7, 0.9), curve(0, 0.4, 0.6, 0.8, 0.9)]},
        "final": final,
    }
    found = ratios(figures)
    assert found["same_steps"] == pytest.approx(0.6 / 0.9)
    assert found["end"] == pytest.approx(1.0)
    assert found["imagined_error"] == pytest.approx(0.05 / 0.8)
    assert at(figures["curves"]["dream"][0], 250) == 0.6
    assert [steps_to(one) for one in figures["curves"]["real"]] == [200, 200]
    assert steps_to(curve(0, 0.5)) is None


def test_the_report_says_by_how_much_the_steps_differ_and_shows_a_figure_in_one_way() -> None:
    final = {"success": 0.815, "reward": 0.815, "discounted": 0.5}
    plan = {"text": TEXT, "seeds": 1, "envs": 8, "actions": 3, "starts": 3, "episodes": 200}
    figures = {"world": "w", "world_id": "0" * 64, "plan": plan, "final": [{"dream": final, "real": final}],
               "random": {"real": {"success": 0.1}}, "curves": {"real": [curve(0, 0.5)], "dream": [curve(0, 0.815)]}}
    text = agents_markdown(figures)
    assert f"at most {LIMIT} steps" in text
    assert "times the steps" not in text
    assert text.count("81.5%") == 6
    assert "82%" not in text
    figures["curves"]["dream"] = [curve(0, 0.5, 0.6, 0.5)]
    assert "| 3 times the steps (300) | 100% | >= 100 % at twice |" in agents_markdown(figures)


@pytest.mark.parametrize("change", [{"steps": 0}, {"envs": 0}, {"dream_steps": -1}, {"seeds": 0}])
def test_a_plan_that_cannot_be_meant_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        TrainAgent(**change)


def test_a_world_that_does_not_fit_is_refused_before_anything_is_played(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RealEpisodes, "seeds", lambda *_: pytest.fail("played"))
    monkeypatch.setattr(BabyAIRooms, "seeds", lambda *_: pytest.fail("played"))
    opened = World.load(world)
    with pytest.raises(ConfigError, match=r"the Discrete actions of CartPolePixels-v0, .*, found Discrete\(7\)"):
        make_task(opened, Environment("CartPolePixels-v0"), "", starts=1, episodes=1)
    with pytest.raises(ConfigError, match=r"expected frames of BabyAI.*, \(32, 32, 3\), found \(64, 64, 3\)"):
        make_task(opened, Environment("BabyAI-GoToObj-v0", frame_size=32), "", starts=1, episodes=1)
    with pytest.raises(ConfigError, match="names no environment in its card"):
        train_agent(TrainAgent(world=str(save_world(opened, world.parent / "nameless"))))


def test_agents_learn_in_a_world_of_another_environment(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tiny_config(spaces.Discrete(2), height=16, width=16, max_episode_steps=9, **no_text())
    folder = save_world(World(randomise(Networks(config))), tmp_path / "world")
    source = Environment("CartPolePixels-v0", frame_size=16)
    (folder / "card.json").write_text(json.dumps(source.to_dict()))
    task = make_task(World.load(folder), source, "", starts=3, episodes=2)
    for where in ("real", "dream"):
        env = task.train_env(where, 2)
        frames, _ = env.reset(seed=0)
        assert frames.shape == (2, 16, 16, 3)
        frames, *_ = env.step([0, 1])
        assert frames.shape == (2, 16, 16, 3)
        assert task.judge(where, RandomPolicy()).episodes == 2
