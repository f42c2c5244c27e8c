"""What a report card says, as one JSON-safe dictionary: figures against the horizon, reliability, provenance.

Nothing here writes or draws; starflow_world/commands/evaluate/writing.py does.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from starflow_world import __version__
from starflow_world.agents.laws import Law
from starflow_world.agents.registry import LOCATORS
from starflow_world.commands.bench.machine import processor
from starflow_world.commands.evaluate.measure import json_figures
from starflow_world.data.dataset import installed_versions, origin
from starflow_world.data.episodes import Episode
from starflow_world.errors import DataError
from starflow_world.evaluation.ablations import one_frame_excess
from starflow_world.evaluation.actions import MOST_ACTIONS, action_information
from starflow_world.evaluation.fidelity import RewardLevels, frame_excess, outcome_figures, predict_outcomes
from starflow_world.evaluation.horizons import (
    ONE_FRAME,
    WORLD,
    Horizons,
    horizons_of,
    long_enough,
    measure_horizons,
)
from starflow_world.evaluation.intervals import Band, interval, ratio_band
from starflow_world.evaluation.ledgers import LOSSES, LawLedger
from starflow_world.evaluation.reliability import end_bins, reward_bins
from starflow_world.io.files import DAMAGE
from starflow_world.io.reports import json_safe
from starflow_world.model.actions import every_action
from starflow_world.world import World

FORMAT = 1
REAL = "real frames"
PACKAGES = ("torch", "numpy", "gymnasium", "minigrid", "MinAtar", "h5py", "av", "opencv-python-headless")
JUDGED = 64
"""Most episodes whose rewards and ends are predicted from real frames."""

Chart = dict[str, dict[str, list[float]]]
"""Series of each source: steps, value, low, high, episodes."""


def measure_report(
    world: World, episodes: Sequence[Episode], ending: Sequence[Episode] | None, law: Law | None
) -> tuple[dict[str, Any], Horizons]:
    """Return the part of the report that the card's figures lack: charts and reliability, and the rollouts they are of.
    """
    locate = LOCATORS.get(str(world.card.get("env")).rpartition(":")[2])
    made = measure_horizons(world, episodes, law=law, locate=locate)
    worth = action_information(world, episodes)
    charts = horizon_charts(made) | _likelihood(world, episodes, made, worth) | {"variance": _variance(made)}
    outcomes: dict[str, Any] = {}
    if world.networks.outcome is not None:
        judged = [episode for episode in ending or episodes if len(episode) > 1][:JUDGED]
        dreamed = made if ending is None else _dream(world, ending)
        if dreamed is not None:
            charts |= outcome_charts(dreamed, RewardLevels.of(judged))
        outcomes = _outcomes(world, judged, dreamed)
    used = long_enough(world, episodes)
    facts = {
        "given": made.given, "steps": made.steps, "rollouts": made.episodes, "ledger": made.ledger,
        "actions": len(every_action(world.action_space, MOST_ACTIONS)), "texts": [shown.text for shown in made.shown],
        "digest": hashlib.sha256("".join(e.digest() for e in used).encode()).hexdigest(),
    }
    charts = {name: chart for name, chart in charts.items() if any(one["steps"] for one in chart.values())}
    return {"charts": charts, "outcomes": outcomes} | facts, made


def provenance(world: World, name: str, data: Path, seconds: float) -> dict[str, Any]:
    """Return what was measured, on what, with what."""
    config = world.config
    parameters = sum(parameter.numel() for parameter in world.networks.parameters())
    return {
        "format": FORMAT, "world": name, "world_id": world.world_id, "card": json_safe(_without(world.card, "figures")),
        "parameters": parameters, "frame": [config.height, config.width], "window": config.window,
        "context": config.context, "noise_level": config.noise_level, "data": data.name, "origin": origin(data),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "seconds": round(seconds),
        "processor": processor(), "threads": torch.get_num_threads(), "device": str(world.dynamics.device),
        "versions": {"starflow-world": __version__} | installed_versions(PACKAGES),
    }


def _without(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


def read_curve(path: Path) -> list[dict[str, float]]:
    """Read a data-size curve: a JSON list of {"episodes": 100, "valid_excess": 1.5, ...}. Raises DataError."""
    try:
        return check_curve(json.loads(path.read_text(encoding="utf-8")))
    except DAMAGE as damage:
        raise DataError(f'{path}: expected a curve, [{{"episodes": 100, "valid_excess": 1.5}}, ...] in JSON, found '
                        f"{damage!s:.120}; write one with python -m tests.benchmarks.curves") from None


def check_curve(values: Any) -> list[dict[str, float]]:
    """Return the points of a curve, those with the most frequent `minutes` where there are any. Raises ValueError."""
    points = [{key: float(one[key]) for key in ("episodes", "valid_excess")} | {"minutes": float(one.get("minutes", 0))}
              for one in values]
    if not points or not np.isfinite([list(point.values()) for point in points]).all():
        raise ValueError("no points, or numbers that are not finite")
    minutes = [point["minutes"] for point in points]
    usual = max(minutes, key=minutes.count)
    return sorted((point for point in points if point["minutes"] == usual), key=lambda point: point["episodes"])


def published_rows(card: Mapping[str, Any], figures: Mapping[str, Any], charts: Mapping[str, Chart]) -> list[list[str]]:
    """Return rows of figure, published value, ours and source from the card's `published`: a list of {"figure",
    "value", "source"} whose protocol is that of this report. `figure`: a key of the figures, or CHART_HORIZON. Raises
    DataError."""
    rows = []
    for one in card.get("published", []):
        try:
            figure, value, source = str(one["figure"]), float(one["value"]), str(one["source"])
            ours = _ours(figure, figures, charts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError('card.json: published: expected {"figure": "psnr_1", "value": 29.4, "source": "..."}, a '
                            f"figure of this report, found {one!r:.120} ({error!r:.60}); mend the card") from None
        rows.append([figure, f"{value:.4g}", f"{ours:.4g}", source])
    return rows


def _ours(figure: str, figures: Mapping[str, Any], charts: Mapping[str, Chart]) -> float:
    if figure in figures:
        value = figures[figure]
        return float(value["share"] if isinstance(value, dict) else value)
    name, _, horizon = figure.rpartition("_")
    series = charts[name][WORLD]
    return series["value"][series["steps"].index(int(horizon))]


# ---- charts ----------------------------------------------------------------------------------------------------------


def horizon_charts(made: Horizons) -> dict[str, Chart]:
    """Return a chart of each figure of the rollouts, with bands over episodes; objects of all kinds together."""
    charts: dict[str, Chart] = {}
    for figure, sources in made.values.items():
        charts[figure] = {source: series(ratio_band(values)) for source, values in sources.items()}
    for figure in LOSSES:
        charts.pop(figure, None)
    sources = made.values.get(LOSSES[0], {})
    charts["objects"] = {source: series(ratio_band(_lost(made, source))) for source in sources}
    return charts


def _lost(made: Horizons, source: str) -> np.ndarray:
    """Return the objects lost (E, T): up to each step by the law, else beside the real frame of that step."""
    lost = np.sum([made.values[figure][source] for figure in LOSSES], axis=0)
    if made.ledger != LawLedger.name:
        return np.asarray(lost)
    return np.where(np.isnan(lost), np.nan, np.nancumsum(lost, axis=1))


def series(band: Band, steps: Sequence[int] | None = None) -> dict[str, list[float]]:
    """Return a band as lists, without steps that no episode has; the steps are 1, 2, ... where none are given."""
    places = np.arange(1, len(band.value) + 1) if steps is None else np.array(steps)
    kept = np.isfinite(band.value)
    rounded = {name: [float(f"{value:.5g}") for value in part[kept].tolist()]
               for name, part in (("value", band.value), ("low", band.low), ("high", band.high))}
    return {"steps": places[kept].tolist(), **rounded, "episodes": band.episodes[kept].tolist()}


def _likelihood(
    world: World, episodes: Sequence[Episode], made: Horizons, worth: Mapping[str, np.ndarray]
) -> dict[str, Chart]:
    """Return charts of excess nats of real frames (with one frame of history beside), of the nats of imagined frames
    beside those of real ones, and of what actions are worth."""
    some, given = long_enough(world, episodes), made.given
    excess = {}
    for source, found in ((WORLD, frame_excess(world, some)), (ONE_FRAME, one_frame_excess(world, some))):
        values = np.full((len(some), made.steps), np.nan)
        for row, frames in enumerate(found):
            values[row, : len(frames) - given] = frames[given:]
        excess[source] = series(ratio_band(values))
    dreamed = {name: {WORLD: series(ratio_band(made.values[name][WORLD]))} for name in ("nats", "action_nats")}
    real = {name: {REAL: series(ratio_band(values))} for name, values in worth.items()}
    return {"excess": excess} | {name: real[name] | dreamed.get(name, {}) for name in real}


def _variance(made: Horizons, resamples: int = 400, seed: int = 0) -> Chart:
    """Return the variance over episodes of the pixels of imagined frames, over that of the real frames."""
    rng, found = np.random.default_rng(seed), {}
    for step, pair in made.frames.items():
        rows = len(pair[0])
        draws = np.concatenate([np.ones((1, rows)), rng.multinomial(rows, np.full(rows, 1 / rows), resamples)])
        imagined, real = (_spread(frames, draws / rows) for frames in pair)
        if rows > 1 and real[0] > 0:
            ratio = np.divide(imagined, real, out=np.full_like(real, np.nan), where=real > 0)
            found[step] = (float(ratio[0]), *interval(ratio[1:]), float(rows))
    if not found:
        return {}
    value, low, high, count = (np.array(part) for part in zip(*found.values(), strict=True))
    return {WORLD: series(Band(value, low, high, count.astype(int)), list(found))}


def _spread(frames: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the variance over frames (B, H, W, 3), summed over pixels, under each of R weightings (R, B)."""
    flat = frames.reshape(len(frames), -1).astype(np.float64)
    return np.asarray((weights @ flat**2 - (weights @ flat) ** 2).sum(1))


def _dream(world: World, ending: Sequence[Episode]) -> Horizons | None:
    """Return rollouts of episodes that end; None where all of them are too short."""
    if max(map(len, ending)) <= world.config.context:
        return None
    return measure_horizons(world, ending, sources=(WORLD,))


def outcome_charts(made: Horizons, levels: RewardLevels) -> dict[str, Chart]:
    """Return charts of the F1 of rewards and ends in open loop, of all steps since the horizon before; steps without
    any event are left out."""
    real = made.outcomes["real_reward"]
    pairs = {"end_f1": [(made.outcomes["end"] == 1, made.outcomes["real_end"] == 1)],
             "reward_f1": [(levels.events(made.outcomes["reward"]) == sign, levels.events(real) == sign)
                           for sign in (1, -1)]}
    return {name: _f1(made.steps, cases) for name, cases in pairs.items()}


def _f1(steps: int, cases: Sequence[tuple[np.ndarray, np.ndarray]]) -> Chart:
    edges = [0, *horizons_of(steps)]
    hits = sum((said & real).astype(float) for said, real in cases)
    both = sum(said.astype(float) + real for said, real in cases)
    parts, wholes = (np.stack([values[:, low:high].sum(1) for low, high in pairwise(edges)], 1)
                     for values in (2 * np.asarray(hits), np.asarray(both)))
    found = series(ratio_band(parts, wholes), edges[1:])
    found["episodes"] = [int((wholes[:, edges.index(int(step)) - 1] > 0).sum()) for step in found["steps"]]
    return {WORLD: found} if found["steps"] else {}


def _outcomes(world: World, judged: Sequence[Episode], dreamed: Horizons | None) -> dict[str, Any]:
    """Return F1 of rewards and ends of real frames where there are any, and reliability bins from real frames and in
    open loop."""
    made, levels = predict_outcomes(world, judged), RewardLevels.of(judged)
    bins = {"end": {REAL: end_bins(made.end_probability, made.real_end)},
            "reward": {REAL: reward_bins(made.reward, made.real_reward)}}
    if dreamed is not None:
        known = ~np.isnan(dreamed.outcomes["real_end"])
        part = {name: values[known] for name, values in dreamed.outcomes.items()}
        bins["end"][WORLD] = end_bins(part["end_probability"], part["real_end"])
        bins["reward"][WORLD] = reward_bins(part["reward"], part["real_reward"])
    there = {"end": bool(made.real_end.any()), "reward": bool(levels.events(made.real_reward).any())}
    figures = outcome_figures(made, levels)
    return {name: {"f1": figures[f"{name}_f1"], "bins": bins[name]} for name, happens in there.items() if happens}


def assembled(
    measured: Mapping[str, Any], facts: Mapping[str, Any], figures: Mapping[str, Any],
    curve: list[dict[str, float]] | None,
) -> dict[str, Any]:
    """Return the whole report. Raises DataError for a card whose curve or published figures cannot be read."""
    safe, card = json_figures(dict(figures)), facts["card"]
    if curve is None and "curve" in card:
        try:
            curve = check_curve(card["curve"])
        except DAMAGE as damage:
            raise DataError("card.json: curve: expected a list of episodes and valid_excess, found "
                            f"{damage!s:.120}") from None
    rows = published_rows(card, safe, measured["charts"])
    return dict(json_safe({**facts, **measured, "figures": safe, "curve": curve or [], "published": rows}))
