"""One seed of the benchmark: play, fit, score; the scores of all detectors at every frame are stored as tensors.

Splits have separate seeds and never overlap: nominal episodes to fit on, to calibrate on and to test on, episodes of
another policy, and anomalous episodes of every kind. A finished seed is not repeated.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from starflow_world.commands.anomaly.baselines import Detector, fit_baselines
from starflow_world.commands.anomaly.predictor import NextFramePredictor, fit_predictor
from starflow_world.commands.anomaly.settings import AnomalySettings
from starflow_world.commands.anomaly.twins import NOMINAL, SHIFT, Scenario, Twin, play_twins
from starflow_world.data.episodes import Episode
from starflow_world.evaluation.fidelity import actions_of
from starflow_world.io.files import read_tensors, write_tensors
from starflow_world.score import Scorer, Scores
from starflow_world.world import World

FORMAT = "4"
CALIBRATION = "calibration"
OWN, NATS, WINDOWED, PREDICTOR = "world", "raw nats", "world, windowed", "next-frame predictor"
INFORMED, BLIND = "oracle", "oracle, blind"
WINDOW = 16
"""Frames of all windowed figures and of the scorer's window."""
SPLITS = {"train": 3.0, CALIBRATION: 3.0, NOMINAL: 2.0, SHIFT: 1.5}
"""Episodes of each split per episode of each kind of anomaly."""
FIRST_SEED = 9_000_000
"""First seed of the benchmark, far from the seeds of training data."""


@dataclass(frozen=True, eq=False)
class ScoredGroup:
    """Episodes of one kind or split, concatenated; N frames, first frames included.

    lengths and begins (E,); whole (E,): the scorer's score of each episode; positive (N,) bool; alarm and change (N,)
    bool: frames that the scorer flags; scores: (N,) of each detector; picture (2, H, W, 3) u8: the event of the first
    episode and the frame before it; heat (h, w): surprise of the tokens of the event.
    """

    lengths: np.ndarray
    begins: np.ndarray
    whole: np.ndarray
    positive: np.ndarray
    alarm: np.ndarray
    change: np.ndarray
    picture: np.ndarray
    heat: np.ndarray
    scores: dict[str, np.ndarray]

    def episodes(self, values: np.ndarray) -> list[np.ndarray]:
        """Split values (N,) by episode."""
        return np.split(values, np.cumsum(self.lengths)[:-1])


ARRAYS = tuple(field.name for field in fields(ScoredGroup) if field.name != "scores")


@dataclass(frozen=True, eq=False)
class SeedResult:
    """Result of one seed: groups by name, and facts (speeds, sizes, settings)."""

    groups: dict[str, ScoredGroup]
    facts: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the result as tensors; NaN is stored as 0."""
        tensors: dict[str, torch.Tensor] = {}
        for name, group in self.groups.items():
            arrays = {f"{name}|{key}": np.ascontiguousarray(getattr(group, key)) for key in ARRAYS}
            arrays |= {f"{name}||{key}": np.nan_to_num(value, nan=0.0) for key, value in group.scores.items()}
            tensors |= {key: torch.from_numpy(array) for key, array in arrays.items()}
        write_tensors(path, tensors, {"facts": json.dumps(self.facts)}, sealed=True)

    @staticmethod
    def load(path: Path) -> "SeedResult":
        """Read a result that `save` wrote."""
        tensors, metadata = read_tensors(path, sealed=True)
        arrays = {key: tensor.numpy() for key, tensor in tensors.items()}
        groups = {}
        for name in dict.fromkeys(key.split("|")[0] for key in arrays):
            scores = {key.split("||")[1]: value for key, value in arrays.items() if key.startswith(f"{name}||")}
            groups[name] = ScoredGroup(**{key: arrays[f"{name}|{key}"] for key in ARRAYS}, scores=scores)
        return SeedResult(groups, json.loads(metadata["facts"]))


def evaluate_seed(scenario: Scenario, world: World, settings: AnomalySettings, seed: int) -> SeedResult:
    """Return the result of a seed: the stored one if world and settings are the same, else a new one."""
    path = settings.work / f"{scenario.name}-seed-{seed}.safetensors"
    made = {"format": FORMAT, "world": world.world_id, "plan": settings.seed_key, "stage": repr(scenario), "seed": seed}
    if path.exists():
        stored = SeedResult.load(path)
        if all(stored.facts.get(key) == value for key, value in made.items()):
            return stored
    result = _evaluate(scenario, world, settings, seed)
    SeedResult(result.groups, {**result.facts, **made}).save(path)
    return SeedResult.load(path)


def _evaluate(scenario: Scenario, world: World, settings: AnomalySettings, seed: int) -> SeedResult:
    names = [*SPLITS, *(kind for kinds in scenario.groups.values() for kind in kinds)]
    played = {}
    for number, name in enumerate(tqdm(names, desc=f"{scenario.name}, seed {seed}: playing", unit="split")):
        kind, count = NOMINAL if name in ("train", CALIBRATION) else name, settings.episodes * SPLITS.get(name, 1.0)
        played[name] = play_twins(scenario, kind, max(2, round(count)), FIRST_SEED + 1000 * seed + number)
    normal = [twin.episode for twin in played.pop("train")]
    held = [twin.episode for twin in played[CALIBRATION]]
    scorer = Scorer.fit(world, normal, calibration_episodes=held, seed=seed, window=WINDOW)
    predictor = _shared_predictor(scenario, world, settings, normal)
    detectors: dict[str, Detector] = {**fit_baselines(normal, seed), PREDICTOR: predictor}
    groups, seconds, frames = {}, 0.0, 0
    for name, twins in tqdm(played.items(), desc=f"{scenario.name}, seed {seed}: scoring", unit="split"):
        begin = time.perf_counter()
        scores = scorer.score([twin.episode for twin in twins])
        seconds, frames = seconds + time.perf_counter() - begin, frames + sum(map(len, scores))
        groups[name] = _group(twins, scores, detectors)
    return SeedResult(groups, {
        "frames_per_second": frames / seconds, "generated_per_second": _generation_rate(world, held),
        "false_alarms": scorer.false_alarms, "parameters": _size(world.networks), "predictor": _size(predictor),
        "policies": [str(twin.episode.info["policy"]) for twin in played[SHIFT]], "world_name": world.config.name,
        "calibration_frames": sum(map(len, held)), "threads": torch.get_num_threads(),
    })


def _size(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _group(twins: list[Twin], scores: Sequence[Scores], detectors: dict[str, Detector]) -> ScoredGroup:
    def pooled(parts: list[np.ndarray], dtype: type) -> np.ndarray:
        return np.concatenate(parts).astype(dtype)

    by_detector = {
        OWN: [s.score for s in scores], WINDOWED: [s.windowed for s in scores],
        NATS: [-s.nats_per_dim for s in scores], INFORMED: [t.oracle for t in twins], BLIND: [t.blind for t in twins],
    }
    by_detector |= {f"part: {name}": [s.parts[name] for s in scores] for name in scores[0].parts}
    by_detector |= {name: [detector(twin.episode) for twin in twins] for name, detector in detectors.items()}
    first = min(twins[0].event, len(twins[0].positive) - 1)
    return ScoredGroup(
        lengths=np.array([len(t.positive) for t in twins]), begins=np.array([t.begin for t in twins]),
        whole=np.array([s.episode["score"] for s in scores], np.float32),
        positive=pooled([t.positive for t in twins], bool), alarm=pooled([s.alarm for s in scores], bool),
        change=pooled([s.change for s in scores], bool), picture=twins[0].episode.frames[[max(0, first - 1), first]],
        heat=np.asarray(scores[0].heat[first], np.float32),
        scores={key: pooled(parts, np.float32) for key, parts in by_detector.items()},
    )


def _shared_predictor(
    scenario: Scenario, world: World, settings: AnomalySettings, normal: list[Episode]
) -> NextFramePredictor:
    """Return the predictor, which is trained once for all seeds. Its operations per frame equal those of the world's
    flow: the world applies its weights to every token, the predictor to every patch."""
    patches = normal[0].frames.shape[1] * normal[0].frames.shape[2] // 64
    path = settings.work / f"{scenario.name}-predictor.safetensors"
    size = _size(world.networks.flow) * world.dynamics.tokens // patches
    made = {"format": FORMAT, "plan": settings.seed_key, "stage": repr(scenario), "parameters": str(size)}
    if path.exists():
        tensors, facts = read_tensors(path)
        if facts == made:
            predictor = NextFramePredictor(normal[0].actions.shape[1], len(tensors["into.weight"]))
            predictor.load_state_dict(tensors)
            return predictor.eval()
    predictor = fit_predictor(normal, 0, parameters=size, steps=settings.predictor_steps)
    write_tensors(path, predictor.state_dict(), made)
    return predictor


@torch.inference_mode()
def _generation_rate(world: World, episodes: Sequence[Episode], rows: int = 16, steps: int = 24) -> float:
    """Return the frames per second that the world generates in batches of `rows`."""
    some = [episode for episode in episodes if len(episode) > steps][:rows]
    if not some:
        return float("nan")
    flat, first = actions_of(some, steps + 1), np.stack([episode.frames[:1] for episode in some])
    state, _ = world.start(first, flat[:, :1], text=world.texts_for([episode.text for episode in some]), seed=0)
    begin = time.perf_counter()
    for t in range(1, steps + 1):
        state, _ = world.step(state, flat[:, t], reuse=True)
    return len(some) * steps / (time.perf_counter() - begin)
