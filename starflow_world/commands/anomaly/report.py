"""The report: one Markdown file of all parts that have been run, whose figures are the JSON beside it."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starflow_world.commands.anomaly.figures import BASELINES, RUN_LENGTH
from starflow_world.commands.anomaly.goals import average, better
from starflow_world.commands.anomaly.pictures import draw
from starflow_world.commands.anomaly.run import BLIND, FORMAT, INFORMED, OWN, WINDOW, WINDOWED, Evaluated
from starflow_world.commands.anomaly.twins import NOMINAL, SHIFT
from starflow_world.io.files import write_text
from starflow_world.io.reports import goal_table, json_safe, markdown_table, number, percent

PARTS = ("babyai", "cartpole")
METHOD = f"""# Finding what goes wrong: the anomaly benchmark

Made by `starflow-world anomaly-bench PART --world WORLD`; every figure is in the JSON files beside this one.

Real environments are played and something goes wrong at a random time. A frame is **positive** iff it differs from the
frame that the nominal simulator, set to the same state, gives for the same action. So the frames after a one-off event
are negative, and so is what changes no pixel. Negatives are the other frames of the same episodes and those of nominal
test episodes. Everything is fitted on nominal episodes only; training, calibration and test episodes have seeds of
their own. AUROC is one-sided and per frame, its interval (95 %) comes from resampling episodes; FPR is taken where 95 %
of the positives are found. Delays are those of Page's cumulative sum at one false alarm per {RUN_LENGTH:.0f}
calibration frames, the same test for every detector. Windowed figures are of means over {WINDOW} frames (the
world's own windowed score looks back as far): a window is positive where all its frames come after the switch, negative
where none does.

Baselines: {"; ".join(BASELINES)}. The predictor runs about as many operations per frame as the world's flow and is
trained once, on the nominal episodes of the first seed; all else is fitted anew with every seed. The oracles are the
true simulator behind the same pixel noise: *{BLIND}* measures how much a frame surprises it, *{INFORMED}* knows what
may go wrong and compares the two (and is judged on the kind's own episodes). BabyAI has no pixel noise, so there both
are the label itself.
"""
LIMITS = """## What a score can and cannot say

* It says how strange a **real** frame is under this world, given what came before and the action. It does not say what
  is wrong, nor whether it matters.
* It cannot show that the world hallucinates: what a flow samples is typical under the flow by construction, so the
  likelihood of its own imagination says nothing about its truth. Signals that can disagree with the sampler are
  needed for that.
* Likelihood alone can mislead: simple pictures tend to be likely ones, whatever the data (Nalisnick et al. 2019). What
  frozen and blank frames are worth in nats is measured above; raw nats stand in every table, so that it can be seen
  where they would have been enough.
* A threshold holds for the data it was calibrated on. Other behaviour in the same world raises false alarms; the
  row "other policy" measures by how much.
* What the world has never seen, it calls strange, even if it is normal; what it cannot see (between two frames, or
  smaller than its noise level) it cannot find. Frames that depend on what happened before the window are surprises.
* AUROC is of single frames. One event is one positive frame: a monitor that misses that frame
  has no second chance where the dynamics are normal again.
"""


def write(found: dict[str, Any], seeds: Sequence[Evaluated], out: Path) -> None:
    """PART.json, its pictures, and README.md of all parts in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{found['part']}.json", json.dumps(json_safe(found), indent=1) + "\n")
    draw(found, seeds, out)
    paths = [path for name in PARTS if (path := out / f"{name}.json").exists()]
    parts = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    parts = {name: one for name, one in parts.items() if one.get("format") == FORMAT}  # others are to be run again
    write_text(out / "README.md", markdown(parts) + "\n")


def markdown(parts: dict[str, dict[str, Any]]) -> str:
    """The whole report."""
    texts = [METHOD]
    for name in PARTS:
        missing = f"## {name}\n\nNot run: there are no figures of this part.\n"
        texts.append(part(parts[name]) if name in parts else missing)
    texts.append("## MuJoCo\n\nNot there: no world was trained for a MuJoCo task, so nothing is said about one.\n")
    return "\n".join([*texts, LIMITS]).rstrip()


def part(found: dict[str, Any]) -> str:
    """One part of the benchmark."""
    facts, plan = found["facts"][0], found["plan"]
    missed = [goal["name"] for goal in found["goals"] if not goal["met"]]
    lines = [
        f"## {found['part']}: world {facts['world_name']}", "", found["about"], "",
        f"{plan['seeds']} seeds of {plan['episodes']} episodes of each kind; {facts['calibration_frames']} frames to "
        f"calibrate on; {facts['parameters']:,} parameters in the world, {facts['predictor']:,} in the predictor "
        f"({plan['predictor_steps']} training steps).", "",
        goal_table(found["goals"]), "",
        f"**Fails**: {'; '.join(missed)}." if missed else "All goals are met.", "",
        "### Detectors, mean over kinds", "", markdown_table(*means(found)), "",
        "### AUROC per frame by kind", "", markdown_table(*by_kind(found)), "", wins(found), "",
        "### The scorer by kind", "", markdown_table(*own(found)), "",
        "### AUROC of the scorer's parts", "", markdown_table(*of_parts(found)), "",
        "### False alarms at a target of 1 %", "", markdown_table(*false_alarms(found)), "",
        f"The scorer by policy: {', '.join(f'{name} {percent(share)}' for name, share in found['shift'].items())}.", "",
        *(f"![{what}]({found['part']}-{what}.png)\n" for what in ("roc", "delay", "heat")),
    ]
    return "\n".join(lines)


def means(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Every detector, averaged over the kinds of each group."""
    keys = {"AUROC": "auroc", "AUPR": "aupr", "FPR": "fpr", "windowed": "windowed"}
    head = ["detector", *(f"{group}: {title}" for group in found["groups"] for title in keys)]
    whole, columns = floats(found), [(group, key) for group in found["groups"] for key in keys.values()]
    rows = [
        [name, *(number(average(whole, group, name, key)) for group, key in columns)]
        for name in (OWN, WINDOWED, *BASELINES, BLIND, INFORMED)
    ]
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return [head[i] for i in kept], [[row[i] for i in kept] for row in rows]


def floats(found: dict[str, Any]) -> dict[str, Any]:
    """The summary with NaN where JSON has none."""
    kinds = {
        kind: {name: {key: math.nan if v is None else v for key, v in cell.items()} for name, cell in cells.items()}
        for kind, cells in found["kinds"].items()
    }
    return found | {"kinds": kinds}


def by_kind(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """AUROC, detectors across; the best of the scorer and the baselines in bold."""
    names = [OWN, *BASELINES]
    rows = []
    for kind, cells in found["kinds"].items():
        best = max(cells[name]["auroc"] for name in names)
        texts = [number(cells[name]["auroc"]) for name in names]
        bold = [f"**{t}**" if cells[name]["auroc"] == best else t for name, t in zip(names, texts, strict=True)]
        bold[0] += f" ({number(cells[OWN]['low'])} to {number(cells[OWN]['high'])})"
        rows.append([kind, *bold, *(number(cells[name]["auroc"]) for name in (BLIND, INFORMED))])
    return ["kind", *names, BLIND, INFORMED], rows


def wins(found: dict[str, Any]) -> str:
    """Where a baseline is better than the scorer."""
    found_better = better(found)
    if not found_better:
        return "No baseline is better than the scorer on any kind."
    each = "; ".join(f"{kind} ({', '.join(names)})" for kind, names in found_better.items())
    return f"**A baseline is better than the scorer** on: {each}."


def own(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """All figures of the scorer."""
    head = ["kind", "positives", "AUPR (guess)", "FPR", "windowed", "delay", "never found", "own change test",
            "flagged", "in time", "nats per dim (normal)", "whole episodes (best baseline)"]
    rows = []
    for kind, cells in found["kinds"].items():
        cell = cells[OWN]
        nats = f"{number(found['nats'][kind])} ({number(found['nats_normal'])})"
        told, whole = found["change"][kind], found["episodes"][kind]
        best = max(BASELINES, key=lambda name: whole[name])
        episodes = f"{number(whole[OWN])} ({number(whole[best])}, {best})"
        change = f"{number(told['delay'])}, never {percent(told['missed'])}, early {percent(told['early'])}"
        rows.append([
            kind, str(found["positives"][kind]), f"{number(cell['aupr'])} ({number(cell['prevalence'])})",
            number(cell["fpr"]), number(cells[WINDOWED]["windowed"]), number(cell["delay"]), percent(cell["missed"]),
            change, percent(found["flagged"][kind]), percent(found["in_time"][kind]["near"]), nats, episodes,
        ])
    return head, rows


def of_parts(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """AUROC of each statistic that the score combines."""
    names = list(next(iter(found["parts"].values())))
    head = ["kind", "combined", *(name.removeprefix("part: ") for name in names)]
    return head, [
        [kind, number(found["kinds"][kind][OWN]["auroc"]), *(number(parts[name]) for name in names)]
        for kind, parts in found["parts"].items()
    ]


def false_alarms(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Shares of flagged normal frames by detector."""
    rows = []
    for name, kinds in found["alarms"].items():
        cells = [kinds[kind] for kind in (NOMINAL, SHIFT)]
        rows.append([name, *(f"{percent(c['share'])} ({percent(c['low'])} to {percent(c['high'])})" for c in cells)])
    return ["detector", "held-out normal", "other policy"], rows
