"""The benchmark from end to end on a toy part, its baselines against closed forms, and its report."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from starflow_world.cli import main
from starflow_world.commands.anomaly import AnomalyBench, find_scenario
from starflow_world.commands.anomaly import run as run_module
from starflow_world.commands.anomaly.baselines import (
    FrameDifference,
    GaussianMixture,
    MeanRBF,
    Neighbours,
    Pixels,
    fit_baselines,
    running_mean,
)
from starflow_world.commands.anomaly.figures import BASELINES, better
from starflow_world.commands.anomaly.predictor import fit_predictor, width_for
from starflow_world.commands.anomaly.run import OWN
from starflow_world.commands.anomaly.twins import NOMINAL, SHIFT, Scenario, TwinRun, TwinStep, play_twins
from starflow_world.data.episodes import Episode
from starflow_world.errors import ConfigError
from starflow_world.io.reports import Goal
from starflow_world.world import World
from tests.worlds import env_world, no_text

KINDS = ("blank frames", "frozen frames")
SIDE = 8


@dataclass(frozen=True)
class Toy(Scenario):
    """A bright square that four actions push about, and two of the anomalies of BabyAI."""

    frames: int = 24
    name: str = "babyai"
    world: str = "toy"
    lasting: bool = True
    about = "A toy."

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        return {"all kinds": KINDS}

    def start(self, kind: str, seed: int, index: int) -> TwinRun:
        return ToyRun(kind, np.random.default_rng((seed, index)))

    def goals(self, figures: dict[str, Any]) -> list[Goal]:
        return [Goal("a goal of the toy", len(figures["kinds"]), least=2)]


class ToyRun:
    """Where the square is, and how it is seen."""

    over = False
    facts = "", "random", spaces.Discrete(4)

    def __init__(self, kind: str, rng: np.random.Generator) -> None:
        self.kind, self.rng, self.place = kind, rng, rng.integers(0, SIDE - 2, 2)

    def first(self) -> np.ndarray:
        return draw(self.place)

    def step(self, spoiled: bool) -> TwinStep:
        action = int(self.rng.integers(4))
        nominal = np.clip(self.place + ((0, 1), (1, 0), (0, -1), (-1, 0))[action], 0, SIDE - 2)
        twin = draw(nominal)
        self.place = self.place if spoiled and self.kind == "frozen frames" else nominal
        frame = np.zeros_like(twin) if spoiled and self.kind == "blank frames" else draw(self.place)
        differs = float((frame != twin).any())
        return TwinStep(frame, twin, action, differs, differs)


def draw(place: np.ndarray) -> np.ndarray:
    frame = np.full((SIDE, SIDE, 3), 60, np.uint8)
    frame[place[0] : place[0] + 2, place[1] : place[1] + 2] = 250, 180, 30
    return frame


@pytest.fixture(scope="module")
def world() -> World:
    return env_world(spaces.Discrete(4), size=SIDE, window=24, context=6, **no_text())


SETTINGS = AnomalyBench(episodes=9, seeds=1, predictor_steps=3)


def measure(world: World, out: Path, work: Path, settings: AnomalyBench = SETTINGS) -> None:
    replace(settings, out=out, work=work).measure(Toy(), world)


@pytest.fixture(scope="module")
def report(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("anomaly")
    measure(world, out / "docs", out / "work")
    return out


# ---- the whole -------------------------------------------------------------------------------------------------------


def test_the_report_names_everything_and_what_fails(report: Path) -> None:
    text = (report / "docs" / "README.md").read_text()
    for word in (*KINDS, *BASELINES, "oracle", "What a score can and cannot say", "MuJoCo", "**Fails**", NOMINAL[:5]):
        assert word in text
    assert "## cartpole\n\nNot run" in text
    for picture in ("roc", "delay", "heat"):
        assert f"babyai-{picture}.png" in text
        assert (report / "docs" / f"babyai-{picture}.png").stat().st_size > 5000


def test_figures_are_json_with_every_detector_and_goal(report: Path) -> None:
    found = json.loads((report / "docs" / "babyai.json").read_text())
    assert found["seeds"] == 1
    assert {goal["name"] for goal in found["goals"] if not goal["met"]}
    assert {goal["name"]: goal["met"] for goal in found["goals"]}["a goal of the toy"]
    for kind in KINDS:
        assert set(found["kinds"][kind]) >= {OWN, *BASELINES, "oracle", "oracle, blind"}
        assert found["kinds"][kind]["oracle"]["auroc"] == 1
        assert found["kinds"][kind]["oracle, blind"]["auroc"] == 1
        cell = found["kinds"][kind][OWN]
        assert cell["low"] <= cell["auroc"] <= cell["high"]
        assert found["positives"][kind] > 20
    assert found["kinds"]["frozen frames"]["frame difference"]["auroc"] < 0.5  # one-sided: standing still is normal
    assert all(0 <= area <= 1 for areas in found["episodes"].values() for area in areas.values())
    assert 0 <= found["alarms"][OWN][NOMINAL]["share"] < 0.1
    assert set(found["alarms"]["frame difference"]) == {NOMINAL, SHIFT}


def test_a_seed_that_is_done_is_not_done_again(report: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    played = []

    def counted(stage: Toy, kind: str, count: int, seed: int) -> list:
        played.append(kind)
        return play_twins(stage, kind, count, seed, progress=False)

    monkeypatch.setattr(run_module, "play_twins", counted)
    before = (report / "docs" / "babyai.json").read_bytes()
    measure(world, report / "again", report / "work")
    assert played == []
    assert (report / "again" / "babyai.json").read_bytes() == before


@pytest.mark.slow
def test_another_seed_is_added_to_those_that_are_done(
    report: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = []

    def counted(stage: Toy, kind: str, count: int, seed: int) -> list:
        played.append((kind, seed))
        return play_twins(stage, kind, count, seed, progress=False)

    monkeypatch.setattr(run_module, "play_twins", counted)
    measure(world, report / "two", report / "work", replace(SETTINGS, seeds=2))
    assert len(set(played)) == 6  # four splits and two kinds of the second seed
    (report / "work" / "babyai-seed-1.safetensors").unlink()
    first = json.loads((report / "two" / "babyai.json").read_text())
    measure(world, report / "two", report / "work", replace(SETTINGS, seeds=2))
    assert json.loads((report / "two" / "babyai.json").read_text())["kinds"] == first["kinds"]


def test_what_another_world_or_plan_left_is_not_used(
    report: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise ConfigError("played again")

    monkeypatch.setattr(run_module, "play_twins", refused)
    stranger = env_world(spaces.Discrete(4), size=SIDE, noise_level=0.2, **no_text())
    for settings, other in ((replace(SETTINGS, episodes=10), world), (SETTINGS, stranger)):
        with pytest.raises(ConfigError, match="played again"):
            measure(other, report / "again", report / "work", settings)


def test_figures_of_another_version_are_not_reported(report: Path, world: World) -> None:
    out = report / "older"
    measure(world, out, report / "work")
    older = json.loads((out / "babyai.json").read_text()) | {"format": "0", "part": "cartpole"}
    (out / "cartpole.json").write_text(json.dumps(older))
    measure(world, out, report / "work")
    assert "## cartpole\n\nNot run" in (out / "README.md").read_text()


def test_unknown_parts_and_empty_plans_are_errors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(["anomaly-bench", "reacher"])
    assert "expected a part of babyai, cartpole, found 'reacher'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="expected a part of babyai, cartpole, found 'reacher'"):
        find_scenario("reacher")
    with pytest.raises(ConfigError, match="expected episodes, seeds and predictor steps >= 1"):
        AnomalyBench(episodes=0)


def test_a_baseline_that_wins_a_kind_is_named() -> None:
    cells = {name: {"auroc": 0.5} for name in BASELINES} | {OWN: {"auroc": 0.8}}
    assert better({"kinds": {"a": cells}}) == {}
    cells |= {BASELINES[2]: {"auroc": 0.81}, BASELINES[1]: {"auroc": 0.9}}
    assert better({"kinds": {"a": cells}}) == {"a": [BASELINES[1], BASELINES[2]]}


# ---- baselines -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def normal() -> list[Episode]:
    return [twin.episode for twin in play_twins(Toy(), NOMINAL, 12, 3, progress=False)]


def test_baselines_are_deterministic_and_score_every_frame(normal: list[Episode]) -> None:
    for name in fit_baselines(normal, 0):
        one, two = (fit_baselines(normal, 0)[name](normal[0]) for _ in range(2))
        assert one.shape == (len(normal[0]),)
        assert np.isfinite(one).all(), name
        np.testing.assert_array_equal(one, two)


def test_frame_difference_is_in_grey_levels(normal: list[Episode]) -> None:
    frames = normal[0].frames.astype(float)
    assert FrameDifference()(normal[0])[5] == pytest.approx(np.abs(frames[5] - frames[4]).mean())


def test_principal_components_are_orthogonal_and_in_units_of_the_first(normal: list[Episode]) -> None:
    pixels = Pixels.fit(normal, 0, components=6)
    gram = (pixels.basis.T @ pixels.basis).numpy()
    np.testing.assert_allclose(gram, gram[0, 0] * np.eye(6), atol=1e-3 * gram[0, 0])
    seen = np.concatenate([pixels.transitions(episode)[:, -6:] for episode in normal])
    assert seen[:, 0].std() == pytest.approx(1, rel=0.1)
    assert (np.diff(seen.std(0)) < 0.05).all()


def test_neighbours_know_what_they_have_seen_and_not_what_they_have_not(normal: list[Episode]) -> None:
    pixels = Pixels.fit(normal, 0)
    known = pixels.transitions(normal[0])
    nearest = Neighbours(pixels, torch.from_numpy(known).float(), nearest=1)
    assert nearest(normal[0]).max() < 1e-2
    other = replace(normal[0], actions=np.roll(normal[0].actions, 1, axis=1))
    assert nearest(other)[1:].mean() > 0.1


def test_a_mixture_of_one_is_the_normal_density(normal: list[Episode]) -> None:
    pixels, x = Pixels.fit(normal, 0, components=3), np.random.default_rng(0).normal(2, 3, (4000, 2))
    found = GaussianMixture.fit(pixels, x, 0, parts=1, rounds=3)
    np.testing.assert_allclose(found.means[0], x.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.variances[0], x.var(0), rtol=0.01)
    at_mean = found.log_density(x.mean(0)[None])[0, 0]
    assert at_mean == pytest.approx(-0.5 * np.log(2 * np.pi * found.variances).sum(), abs=1e-6)


def test_a_mixture_finds_two_heaps(normal: list[Episode]) -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate((rng.normal(-5, 1, (3000, 1)), rng.normal(5, 1, (1000, 1))))
    found = GaussianMixture.fit(Pixels.fit(normal, 0, components=2), x, 0, parts=2)
    assert sorted(found.shares.round(2)) == [0.25, 0.75]
    assert sorted(found.means.ravel().round()) == [-5, 5]


def test_statistics_of_an_episode_are_running_means(normal: list[Episode]) -> None:
    values = np.arange(10.0)[:, None]
    assert running_mean(values, 3).ravel().tolist() == [0, 0.5, 1, 2, 3, 4, 5, 6, 7, 8]
    pixels = Pixels.fit(normal, 0)
    fitted = MeanRBF.fit(pixels, [pixels.transitions(episode) for episode in normal], 0)
    strange = replace(normal[0], actions=30 * normal[0].actions)
    assert fitted(strange)[-1] > np.mean([fitted(episode)[-1] for episode in normal]) + 1


def test_the_predictor_learns_repeats_itself_and_has_the_size_asked_for(normal: list[Episode]) -> None:
    copy = float(np.mean([np.square((e.frames[1:] / 127.5) - (e.frames[:-1] / 127.5)).mean() for e in normal]))
    found = fit_predictor(normal, 0, parameters=60_000, steps=200, progress=False)
    assert sum(p.numel() for p in found.parameters()) == pytest.approx(60_000, rel=0.1)
    assert np.mean([found(episode)[1:].mean() for episode in normal]) < 0.8 * copy
    first, second = (fit_predictor(normal, 1, parameters=9_000, steps=4, progress=False) for _ in range(2))
    np.testing.assert_array_equal(first(normal[0]), second(normal[0]))
    assert width_for(10**6, 7) > width_for(10**5, 7)
