"""A report card of made-up figures, for tests of pages: no world is needed."""

from typing import Any

import numpy as np

from starflow_world.commands.evaluate.report import REAL, assembled, horizon_charts, outcome_charts, series
from starflow_world.evaluation.fidelity import RewardLevels
from starflow_world.evaluation.horizons import COPY, ONE_FRAME, WORLD, Horizons, Shown, horizons_of
from starflow_world.evaluation.intervals import ratio_band
from starflow_world.evaluation.ledgers import LOSSES
from starflow_world.evaluation.reliability import end_bins, reward_bins

GIVEN, EPISODES, STEPS, SIDE = 8, 10, 70, 16
DECAY = {WORLD: 40.0, ONE_FRAME: 12.0, COPY: 3.0}


def made_up_rollouts() -> Horizons:
    """Rollouts of a square that walks, and is imagined a little beside its place in the end."""
    rng, steps = np.random.default_rng(0), np.arange(1, STEPS + 1)
    made = Horizons(GIVEN, STEPS, EPISODES, "by the law")
    over = steps > np.linspace(STEPS, 40, EPISODES)[:, None]
    for source, decay in DECAY.items():
        right = np.exp(-steps / decay) * rng.uniform(0.8, 1, (EPISODES, 1)) * rng.uniform(0.95, 1, (EPISODES, STEPS))
        values = {"psnr": 15 + 30 * right, "ssim": 0.5 + 0.5 * right, "cells": right,
                  "exact": (right > rng.uniform(size=right.shape)).astype(float), "distance of ball": 8 - 8 * right}
        if source != COPY:
            values |= {"legal": (right > 0.3).astype(float)}
            values |= {name: (rng.uniform(size=right.shape) > 0.9 + right / 10).astype(float) for name in LOSSES}
        for name, some in values.items():
            made.values.setdefault(name, {})[source] = np.where(over, np.nan, some)
    real = rng.uniform(size=(EPISODES, STEPS)) < 0.1
    predicted = np.where(rng.uniform(size=real.shape) < 0.9, real, ~real).astype(float)
    happened = real.astype(float)
    made.outcomes = {"reward": predicted, "real_reward": happened, "end": predicted, "end_probability": predicted,
                     "real_end": happened}
    for number, length in enumerate((70, 64, 20)):
        shown = Shown(f"walk to the {number}th wall", {}, {})
        for step in range(length + 1):
            for frames, late in ((shown.real, 0), (shown.imagined, step // 30)):
                frames[step] = np.full((SIDE, SIDE, 3), 40, np.uint8)
                at = (step + late) % (SIDE - 4)
                frames[step][4 + number : 8 + number, at : at + 4] = (220, 180, 60 * number)
        made.shown.append(shown)
    return made


def made_up_report(name: str = "made-up") -> dict[str, Any]:
    """Return a report in which every part has figures."""
    made, rng = made_up_rollouts(), np.random.default_rng(1)
    likelihood = {
        "excess": {WORLD: rng.gamma(1, 0.2, (EPISODES, 30)), ONE_FRAME: rng.gamma(2, 1, (EPISODES, 30))},
        "nats": {REAL: rng.normal(300, 5, (EPISODES, 30)), WORLD: rng.normal(296, 5, (EPISODES, 30))},
        "action_nats": {REAL: rng.gamma(2, 2, (EPISODES, 30))},
        "action_first": {REAL: (rng.uniform(size=(EPISODES, 30)) < 0.9).astype(float)},
    }
    charts = horizon_charts(made) | outcome_charts(made, RewardLevels(0.0, 0.5))
    charts |= {key: {source: series(ratio_band(values)) for source, values in chart.items()}
               for key, chart in likelihood.items()}
    charts["variance"] = {WORLD: series(ratio_band(rng.uniform(0.8, 1.1, (EPISODES, 4))), horizons_of(STEPS))}
    said = rng.uniform(size=800)
    happened = (rng.uniform(size=800) < said).astype(float)
    outcomes = {"end": {"f1": 0.9, "bins": {REAL: end_bins(said, happened), WORLD: end_bins(said**2, happened)}},
                "reward": {"f1": 0.8, "bins": {REAL: reward_bins(said, happened)}}}
    measured = {"charts": charts, "outcomes": outcomes, "given": GIVEN, "steps": STEPS, "rollouts": EPISODES,
                "ledger": made.ledger, "actions": 4, "texts": [shown.text for shown in made.shown], "digest": "0" * 64}
    facts = {"format": 1, "world": name, "world_id": "1" * 64, "card": {"env": "Squares-v0", "command": "train"},
             "parameters": 1000, "frame": [SIDE, SIDE], "window": 16, "context": GIVEN, "noise_level": 0.1,
             "data": "eval", "origin": {"env": "Squares-v0"}, "made": "2026-01-01 00:00 UTC", "seconds": 60,
             "processor": "some processor", "threads": 1, "device": "cpu", "versions": {"torch": "2.13"}}
    rows = {"whole": 0.0, "one frame of history": 0.08, "no action": 1.9, "no text": 0.0, "no last deep layer": 7.1,
            "no deep block": 74.0}
    figures = {"episodes": EPISODES, "excess_nats": 0.2, "steps_per_second_1": 40.0, "steps_per_second_64": 160.0,
               "gflop_per_step": 0.18, "chance": {"law_excess": 0.02},
               "ablations": {part: {"excess_nats": 0.1 + loss, "excess_nats_error": 0.01, "loss": loss,
                                    "loss_error": loss / 20} for part, loss in rows.items()}}
    curve = [{"episodes": float(count), "valid_excess": 300.0 / count, "minutes": 10.0} for count in (100, 300, 1000)]
    return assembled(measured, facts, figures, curve)
