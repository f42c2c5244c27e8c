"""One seed of evaluation: play, fit, score; what every detector says of every frame is kept as tensors.

Splits are made by seed and never overlap: nominal episodes to fit on, to calibrate on and to test on, episodes of
another policy, and anomalous ones of every kind. A seed that is done is not done again.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from starflow_world.commands.anomaly.baselines import fit_baselines
from starflow_world.commands.anomaly.predictor import Predictor, fit_predictor
from starflow_world.commands.anomaly.settings import AnomalySettings
from starflow_world.commands.anomaly.twins import NOMINAL, SHIFT, Stage, Twin, gather
from starflow_world.data.episodes import Episode
from starflow_world.io.files import read_tensors, write_tensors
from starflow_world.score import Scorer, Scores
from starflow_world.world import World

FORMAT = "4"
CALIBRATION = "calibration"
OWN, NATS, WINDOWED, PREDICTOR = "world", "raw nats", "world, windowed", "next-frame predictor"
INFORMED, BLIND = "oracle", "oracle, blind"
WINDOW = 16
"""Frames of all windowed figures, those of the scorer too."""
SPLITS = {"train": 3.0, CALIBRATION: 3.0, NOMINAL: 2.0, SHIFT: 1.5}
"""Episodes of each split for one episode of each kind of anomaly."""
FIRST_SEED = 9_000_000
"""Far from the seeds that worlds are trained on."""


@dataclass(frozen=True, eq=False)
class Group:
    """Episodes of one kind or split, end to end; N frames, the first of each episode among them.

    lengths and begins (E,), whole (E,): the scorer's score of the episode, positive (N,) bool, scores: (N,) of each
    detector, alarm and change (N,) bool: what the scorer flags; picture (2, H, W, 3) u8: the event of the first episode
    and the frame before it, heat (h, w).
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
        """Values (N,) by episode."""
        return np.split(values, np.cumsum(self.lengths)[:-1])


@dataclass(frozen=True, eq=False)
class Evaluated:
    """One seed: groups by name, and facts (speeds, sizes, what it was made with)."""

    groups: dict[str, Group]
    facts: dict[str, Any]


def evaluated(stage: Stage, world: World, settings: AnomalySettings, seed: int) -> Evaluated:
    """The seed's figures: from `work` if they are there for this world and these settings, else made and kept there."""
    path = settings.work / f"{stage.name}-seed-{seed}.safetensors"
    made = {"format": FORMAT, "world": world.world_id, "plan": settings.seed_key, "stage": repr(stage), "seed": seed}
    if path.exists():
        found = _loaded(path)
        if all(found.facts.get(key) == value for key, value in made.items()):
            return found
    found = _evaluate(stage, world, settings, seed)
    _save(path, Evaluated(found.groups, {**found.facts, **made}))
    return _loaded(path)


def _evaluate(stage: Stage, world: World, settings: AnomalySettings, seed: int) -> Evaluated:
    names = ["train", CALIBRATION, NOMINAL, SHIFT, *(kind for kinds in stage.groups.values() for kind in kinds)]
    played = {}
    for number, name in enumerate(tqdm(names, desc=f"{stage.name}, seed {seed}: playing", unit="split")):
        kind = NOMINAL if name in ("train", CALIBRATION) else name
        played[name] = gather(stage, kind, _count(settings, name), FIRST_SEED + 1000 * seed + number)
    normal = [twin.episode for twin in played.pop("train")]
    held = [twin.episode for twin in played[CALIBRATION]]
    scorer = Scorer.fit(world, normal, calibration_episodes=held, seed=seed, window=WINDOW)
    predictor = shared_predictor(stage, world, settings, normal)
    detectors: dict[str, Callable[[Episode], np.ndarray]] = dict(fit_baselines(normal, seed))
    detectors[PREDICTOR] = predictor
    policies = [str(twin.episode.info["policy"]) for twin in played[SHIFT]]
    groups, seconds, frames = {}, 0.0, 0
    for name, twins in tqdm(played.items(), desc=f"{stage.name}, seed {seed}: scoring", unit="split"):
        begin = time.perf_counter()
        scores = scorer.score([twin.episode for twin in twins])
        seconds, frames = seconds + time.perf_counter() - begin, frames + sum(len(s.score) for s in scores)
        groups[name] = _group(twins, scores, detectors)
    facts = {
        "frames_per_second": frames / seconds, "generated_per_second": generation(world, held),
        "false_alarms": scorer.false_alarms, "parameters": _size(world.networks), "predictor": _size(predictor),
        "policies": policies,
        "world_name": world.config.name, "calibration_frames": sum(map(len, held)), "threads": torch.get_num_threads(),
    }
    return Evaluated(groups, facts)


def _count(settings: AnomalySettings, name: str) -> int:
    """Return the number of episodes of a split or a kind."""
    return max(2, round(settings.episodes * SPLITS.get(name, 1.0)))


def _size(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _group(twins: list[Twin], scores: Sequence[Scores], detectors: dict[str, Callable[[Episode], np.ndarray]]) -> Group:
    def joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
        return np.concatenate(parts).astype(dtype)

    found = {
        OWN: [s.score for s in scores], WINDOWED: [s.windowed for s in scores],
        NATS: [-s.nats_per_dim for s in scores], INFORMED: [t.oracle for t in twins], BLIND: [t.blind for t in twins],
    }
    found |= {f"part: {name}": [s.parts[name] for s in scores] for name in scores[0].parts}
    found |= {name: [detector(twin.episode) for twin in twins] for name, detector in detectors.items()}
    first = min(twins[0].event, len(twins[0].positive) - 1)
    return Group(
        lengths=np.array([len(t.positive) for t in twins]), begins=np.array([t.begin for t in twins]),
        whole=np.array([s.episode["score"] for s in scores], np.float32),
        positive=joined([t.positive for t in twins], bool), alarm=joined([s.alarm for s in scores], bool),
        change=joined([s.change for s in scores], bool), picture=twins[0].episode.frames[[max(0, first - 1), first]],
        heat=np.asarray(scores[0].heat[first], np.float32),
        scores={key: joined(parts, np.float32) for key, parts in found.items()},
    )


def shared_predictor(stage: Stage, world: World, settings: AnomalySettings, normal: list[Episode]) -> Predictor:
    """The predictor, trained once and used for all seeds: with as many operations per frame as the world's flow.

    The world runs its weights on every token, the predictor on every patch.
    """
    patches = normal[0].frames.shape[1] * normal[0].frames.shape[2] // 64
    tokens = world.dynamics.tokens
    path, wanted = settings.work / f"{stage.name}-predictor.safetensors", _size(world.networks.flow) * tokens // patches
    made = {"format": FORMAT, "plan": settings.seed_key, "stage": repr(stage), "parameters": str(wanted)}
    if path.exists():
        tensors, facts = read_tensors(path)
        if facts == made:
            found = Predictor(normal[0].actions.shape[1], len(tensors["into.weight"]))
            found.load_state_dict(tensors)
            return found.eval()
    found = fit_predictor(normal, 0, parameters=wanted, steps=settings.predictor_steps)
    write_tensors(path, found.state_dict(), made)
    return found


@torch.inference_mode()
def generation(world: World, episodes: Sequence[Episode], rows: int = 16, steps: int = 24) -> float:
    """Frames per second that the world generates with `rows` rows."""
    from starflow_world.evaluation.fidelity import actions_of

    some = [episode for episode in episodes if len(episode) > steps][:rows]
    if not some:
        return float("nan")
    flat, first = actions_of(some, steps + 1), np.stack([episode.frames[:1] for episode in some])
    state, _ = world.start(first, flat[:, :1], text=[episode.text for episode in some], seed=0)
    begin = time.perf_counter()
    for t in range(1, steps + 1):
        state, _ = world.step(state, flat[:, t], reuse=True)
    return len(some) * steps / (time.perf_counter() - begin)


# ---- files -----------------------------------------------------------------------------------------------------------

ARRAYS = tuple(field.name for field in fields(Group) if field.name != "scores")


def _save(path: Path, found: Evaluated) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for name, group in found.groups.items():
        tensors |= {f"{name}|{key}": torch.from_numpy(np.ascontiguousarray(getattr(group, key))) for key in ARRAYS}
        tensors |= {f"{name}||{key}": torch.from_numpy(np.nan_to_num(v, nan=0.0)) for key, v in group.scores.items()}
    write_tensors(path, tensors, {"facts": json.dumps(found.facts)}, sealed=True)


def _loaded(path: Path) -> Evaluated:
    tensors, metadata = read_tensors(path, sealed=True)
    arrays = {key: tensor.numpy() for key, tensor in tensors.items()}
    groups = {}
    for name in dict.fromkeys(key.split("|")[0] for key in arrays):
        parts = {key: arrays[f"{name}|{key}"] for key in ARRAYS}
        scores = {key.split("||")[1]: value for key, value in arrays.items() if key.startswith(f"{name}||")}
        groups[name] = Group(**parts, scores=scores)
    return Evaluated(groups, json.loads(metadata["facts"]))
