"""The figures that have a goal, and where a baseline is better."""

from typing import Any

from starflow_world.commands.anomaly.figures import BASELINES, mean
from starflow_world.commands.anomaly.run import OWN, WINDOWED
from starflow_world.commands.anomaly.twins import NOMINAL, SHIFT
from starflow_world.io.reports import Goal

SIMPLE = ("frozen frames", "blank frames")
"""What is simple, and could look likely for that alone."""


def judged(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The goals of a part's summary, as plain data."""
    special = _babyai(found) if found["part"] == "babyai" else _cartpole(found)
    return [goal.as_json() for goal in [*special, *_common(found)]]


def average(found: dict[str, Any], group: str, name: str, key: str = "auroc") -> float:
    """Mean over the kinds of a group."""
    return mean([found["kinds"][kind][name][key] for kind in found["groups"][group]])


def better(found: dict[str, Any]) -> dict[str, list[str]]:
    """By kind: baselines whose AUROC is above the scorer's, the best first."""
    wins = {}
    for kind, cells in found["kinds"].items():
        above = [name for name in BASELINES if cells[name]["auroc"] > cells[OWN]["auroc"]]
        if above:
            wins[kind] = sorted(above, key=lambda name: -cells[name]["auroc"])
    return wins


def _babyai(found: dict[str, Any]) -> list[Goal]:
    areas = {kind: cells[OWN]["auroc"] for kind, cells in found["kinds"].items()}
    worst = min(areas, key=lambda kind: areas[kind])
    return [
        Goal("mean AUROC over kinds, per frame", mean(list(areas.values())), least=0.98),
        Goal("AUROC of the worst kind, per frame", areas[worst], least=0.95, note=worst),
        *(Goal(f"share of positive {kind} that are flagged", found["flagged"][kind], least=0.5,
               note=f"nats per dim {found['nats'][kind]:.3f}, normal {found['nats_normal']:.3f}")
          for kind in SIMPLE if kind in areas),
    ]


def _cartpole(found: dict[str, Any]) -> list[Goal]:
    severe = [found["kinds"][kind][OWN] for kind in found["groups"]["severe"]]
    own, ours = (average(found, "minor", name, "windowed") for name in (WINDOWED, OWN))
    oracle = average(found, "minor", "oracle", "windowed")
    return [
        Goal("severe: mean AUROC, per frame", mean([c["auroc"] for c in severe]), least=0.97,
             note="PEDM on states 0.96"),
        Goal("severe: mean FPR at 95 % of the positives", mean([c["fpr"] for c in severe]), most=0.15,
             note="PEDM on states 0.26"),
        Goal("minor: mean AUROC, windowed", own, least=0.85,
             note=f"mean of the score {ours:.3f}, oracle {oracle:.3f}; published per step: best 0.55"),
    ]


def _common(found: dict[str, Any]) -> list[Goal]:
    normal, shifted = (found["alarms"][OWN][kind] for kind in (NOMINAL, SHIFT))
    margins = {}
    for group in found["groups"]:
        rival = max(BASELINES, key=lambda name: average(found, group, name))
        margins[group] = average(found, group, OWN) - average(found, group, rival), rival
    tightest = min(margins, key=lambda group: margins[group][0])
    speeds = [facts["frames_per_second"] / facts["generated_per_second"] for facts in found["facts"]]
    main = next(iter(found["groups"]))
    times = [found["in_time"][kind] for kind in found["groups"][main]]
    near, first, count = (mean([time[key] for time in times]) for key in ("near", "first", "episodes"))
    return [
        Goal("false alarms on held-out normal frames, %", 100 * normal["share"], 0.5, 2,
             f"target 1; {100 * normal['low']:.2f} to {100 * normal['high']:.2f}"),
        Goal("false alarms under another policy, %", 100 * shifted["share"], most=3,
             note=f"{100 * shifted['low']:.2f} to {100 * shifted['high']:.2f}"),
        Goal("AUROC above the best baseline's, mean over kinds", margins[tightest][0], least=0,
             note=f"{tightest}: {margins[tightest][1]}"),
        Goal("episodes flagged within 1 frame of the event, %", 100 * near, least=90,
             note=f"{main}; and nowhere before it {100 * first:.0f}; {count:.0f} episodes of each kind"),
        Goal("frames scored per frame generated (16 rows)", mean(speeds), least=2.5,
             note=f"{mean([f['frames_per_second'] for f in found['facts']]):.0f} scored per second"),
    ]
