"""train-agent and rank, from the first frame to the report, in a world that knows nothing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("stable_baselines3")

from starflow_world.agents.environment import Environment
from starflow_world.commands.rank import SHARES, RankPolicies, candidates, rank_markdown, rank_policies
from starflow_world.commands.train_agent import TrainAgent
from starflow_world.commands.train_agent.report import Runs, agent_goals, agents_markdown, at
from starflow_world.commands.train_agent.training import train_agent
from starflow_world.errors import ConfigError, DataError
from starflow_world.world import World
from tests.games import BOX, DISCRETE
from tests.worlds import no_text, save_world, tiny_world

SOURCES = {name: Environment(name, frame_size=8, max_steps=4) for name in (DISCRETE, BOX)}
PLAN = TrainAgent(steps=256, dream_steps=256, overtime=2, envs=8, seeds=1, starts=3, episodes=2, chunk=256)


def saved(source: Environment, folder: Path) -> Path:
    world = tiny_world(source.make().action_space, height=8, width=8, max_episode_steps=4, **no_text())
    save_world(world, folder)
    (folder / "card.json").write_text(json.dumps(source.to_dict() | {"real_steps": 300}))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a world of the small game, whose episodes end soon."""
    return saved(SOURCES[DISCRETE], tmp_path_factory.mktemp("world"))


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
    assert figures["data_steps"] == {"steps": 300, "exact": True}
    assert figures["random"]["dream"]["episodes"] == figures["curves"]["dream"][0][-1]["episodes"] == 2
    assert ("imagined" in figures["curves"]["dream"][0][0]) > ("imagined" in figures["curves"]["real"][0][0])
    assert agents_markdown(figures) == (done / "report.md").read_text()
    for name in ("agent.mp4", "curves.png"):
        assert (done / name).stat().st_size > 2000


def test_a_run_goes_on_and_adds_what_is_asked_for(world: Path, done: Path, tmp_path: Path) -> None:
    done = shutil.copytree(done, tmp_path / "agent")  # other tests look at what was there before
    again = replace(PLAN, world=str(world), out=done, round_trip=1e6, resume=True)
    with pytest.raises(ConfigError, match="--resume"):
        train_agent(replace(again, resume=False))
    with pytest.raises(DataError, match="new folder"):
        train_agent(replace(again, starts=4))
    before = (done / "real-0" / "agent.safetensors").read_bytes()
    train_agent(replace(again, overtime=3))
    figures = json.loads((done / "agents.json").read_text())
    assert [point["steps"] for point in figures["curves"]["dream"][0]] == [0, 256, 512, 768]
    assert (done / "real-0" / "agent.safetensors").read_bytes() == before


@pytest.mark.parametrize(("algorithm", "name"), [("dqn", DISCRETE), ("sac", BOX)])
def test_other_algorithms_learn_in_worlds_of_discrete_and_continuous_actions(
    algorithm: str, name: str, tmp_path: Path
) -> None:
    plan = replace(PLAN, world=str(saved(SOURCES[name], tmp_path / "world")), algorithm=algorithm, overtime=1,
                   steps=32, dream_steps=32, chunk=32, out=tmp_path / "agent")
    train_agent(plan)
    assert f", {algorithm}, 1 seeds" in (tmp_path / "agent" / "report.md").read_text()


def test_steps_of_zero_are_those_of_the_worlds_data(world: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(world, tmp_path / "world")
    (folder / "card.json").write_text(json.dumps(SOURCES[DISCRETE].to_dict()))
    with pytest.raises(ConfigError, match="does not say how many steps its data have"):
        train_agent(replace(PLAN, world=str(folder), steps=0, out=tmp_path / "agent"))


def test_policies_are_ranked_in_both(world: Path, done: Path, tmp_path: Path) -> None:
    rank_policies(RankPolicies(str(world), agents=done, episodes=2, out=tmp_path))
    figures = json.loads((tmp_path / "rank.json").read_text())
    names = ["random", *(f"agent dream-0, {share:.0%} random" for share in SHARES), "agent dream-0", "agent real-0"]
    assert list(figures["scores"]) == names
    assert set(figures["spearman"]) == {"reward", "discounted"}
    assert rank_markdown(figures) == (tmp_path / "rank.md").read_text()
    with pytest.raises(DataError, match="train-agent"):
        rank_policies(RankPolicies(str(world), agents=tmp_path, episodes=1, out=tmp_path))
    with pytest.raises(ConfigError, match=f"expected agents of {DISCRETE}"):
        rank_policies(RankPolicies(str(world), episodes=1, out=tmp_path))


def test_agents_of_several_runs_are_told_apart_and_babyai_needs_none(done: Path, tmp_path: Path) -> None:
    pytest.importorskip("minigrid")
    for run in ("a", "b"):
        shutil.copytree(done / "dream-0", tmp_path / run / "dream-0")
    assert [policy.name for policy in candidates(DISCRETE, "", tmp_path)][-2:] == ["agent a/dream-0", "agent b/dream-0"]
    assert candidates(DISCRETE, "", tmp_path / "a" / "dream-0")[-1].name == "agent dream-0"
    names = [policy.name for policy in candidates("BabyAI-GoToLocalS8N4-v0", "go to the red ball", None)]
    assert len(names) == 6
    assert names[-1] == "scripted"


# ---- the report ------------------------------------------------------------------------------------------------------


def curve(*rewards: float, **more: float) -> list[dict[str, float]]:
    return [{"steps": 100 * index, "reward": value, "length": 5.0, **more} for index, value in enumerate(rewards)]


def figures(**changes: Any) -> dict[str, Any]:
    plan = {"algorithm": "ppo", "text": "", "seeds": 2, "envs": 8, "actions": 0, "starts": 3, "episodes": 200,
            "steps": 300, "dream_steps": 200, "overtime": 2}
    return {
        "world": "w", "world_id": "0" * 64, "env": "Game-v0", "limit": 64, "plan": plan,
        "data_steps": {"steps": 200, "exact": True},
        "random": {where: {"reward": 0.1, "length": 4.0} for where in ("real", "dream")},
        "curves": {"real": [curve(0, 0.4, 0.5, 0.9), curve(0, 0.4, 0.5, 0.9)],
                   "dream": [curve(0, 0.4, 0.6, 0.7, 0.6, imagined=0.66), curve(0, 0.4, 0.8, 0.7, 0.6, imagined=0.8)]},
    } | changes


def test_the_report_compares_with_as_many_real_steps_as_the_worlds_data_have() -> None:
    goals = agent_goals(figures())
    assert goals[0].value == pytest.approx(0.7 / 0.5)  # after 200 steps of both, not after 300
    assert "both with 200 real steps" in goals[0].note
    assert goals[1].value == pytest.approx(0.7 / 0.9)
    assert [goal.value for goal in goals[2:]] == pytest.approx([(0.73 - 0.7) / 0.7, (0.73 - 0.6) / 0.6])
    assert "after 2 x 200 steps" in goals[3].note
    more = agent_goals(figures(data_steps={"steps": 5000, "exact": False}))
    assert "300 steps in reality; the world's data have up to 5,000" in more[0].note
    assert at(figures()["curves"]["dream"], 250).values == (0.6, 0.8)


def test_a_ratio_of_returns_that_are_not_positive_is_not_given() -> None:
    value, why = Runs((-0.5, -0.4)).over(Runs((-1.0, -0.9)))
    assert value != value  # NaN
    assert why == "a ratio needs positive returns"


def test_the_report_has_intervals_over_seeds_and_counts_real_steps() -> None:
    text = agents_markdown(figures())
    assert "0.700 (0.600 to 0.800)" in text
    assert "200 (the world's data)" in text
    assert "at most 5,000 (the world's data)" in agents_markdown(figures(data_steps={"steps": 5000, "exact": False}))
    assert "unknown (the world's data)" in agents_markdown(figures(data_steps={"steps": None, "exact": False}))


@pytest.mark.parametrize("change", [{"steps": -1}, {"envs": 0}, {"dream_steps": -1}, {"seeds": 0}, {"overtime": 0},
                                    {"rounds": -1}, {"collector": "you"}, {"rounds": 1, "overtime": 2}])
def test_a_plan_that_cannot_be_meant_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=list(change)[-1]):
        TrainAgent(**change)


def test_a_world_that_does_not_fit_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"algorithm sac: expected Box actions.*choose --algorithm ppo or dqn"):
        train_agent(replace(PLAN, world=str(world), algorithm="sac", out=tmp_path))
    nameless = save_world(World.load(world), tmp_path / "nameless")
    with pytest.raises(ConfigError, match="names no environment in its card"):
        train_agent(replace(PLAN, world=str(nameless), out=tmp_path))
