"""The goals that all parts of the benchmark share, and where a baseline is better than the scorer."""

from typing import Any

from starflow_world.commands.anomaly.figures import BASELINES, mean
from starflow_world.commands.anomaly.run import OWN
from starflow_world.commands.anomaly.twins import NOMINAL, SHIFT
from starflow_world.io.reports import Goal


def average(figures: dict[str, Any], group: str, name: str, key: str = "auroc") -> float:
    """Return the mean of a detector's figure over the kinds of a group."""
    return mean([figures["kinds"][kind][name][key] for kind in figures["groups"][group]])


def better(figures: dict[str, Any]) -> dict[str, list[str]]:
    """Return, by kind, the baselines whose AUROC is above the scorer's, the best first."""
    wins = {}
    for kind, cells in figures["kinds"].items():
        above = [name for name in BASELINES if cells[name]["auroc"] > cells[OWN]["auroc"]]
        if above:
            wins[kind] = sorted(above, key=lambda name: -cells[name]["auroc"])
    return wins


def common_goals(figures: dict[str, Any]) -> list[Goal]:
    """Return false alarms, the margin over the best baseline, detection in time, and the speed of scoring."""
    normal, shifted = (figures["alarms"][OWN][kind] for kind in (NOMINAL, SHIFT))
    margins = {}
    for group in figures["groups"]:
        rival = max(BASELINES, key=lambda name: average(figures, group, name))
        margins[group] = average(figures, group, OWN) - average(figures, group, rival), rival
    tightest = min(margins, key=lambda group: margins[group][0])
    speeds = [facts["frames_per_second"] / facts["generated_per_second"] for facts in figures["facts"]]
    main = next(iter(figures["groups"]))
    times = [figures["in_time"][kind] for kind in figures["groups"][main]]
    near, first, count = (mean([time[key] for time in times]) for key in ("near", "first", "episodes"))
    return [
        Goal("false alarms on held-out normal frames, %", 100 * normal["share"], 0.5, 2,
             note=f"target 1; {100 * normal['low']:.2f} to {100 * normal['high']:.2f}"),
        Goal("false alarms under another policy, %", 100 * shifted["share"], most=3,
             note=f"{100 * shifted['low']:.2f} to {100 * shifted['high']:.2f}"),
        Goal("AUROC above the best baseline's, mean over kinds", margins[tightest][0], least=0,
             note=f"{tightest}: {margins[tightest][1]}"),
        Goal("episodes flagged within 1 frame of the event, %", 100 * near, least=90,
             note=f"{main}; and nowhere before it {100 * first:.0f}; {count:.0f} episodes of each kind"),
        Goal("frames scored per frame generated (16 rows)", mean(speeds), least=2.5,
             note=f"{mean([f['frames_per_second'] for f in figures['facts']]):.0f} scored per second"),
    ]
