"""The report of anomaly-bench: one Markdown file for all finished parts, from the JSON files beside it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starflow_world.commands.anomaly.figures import BASELINES, RUN_LENGTH, average, better
from starflow_world.commands.anomaly.pictures import draw
from starflow_world.commands.anomaly.run import BLIND, FORMAT, INFORMED, OWN, WINDOW, WINDOWED, SeedResult
from starflow_world.commands.anomaly.twins import NOMINAL, SHIFT
from starflow_world.io.files import write_text
from starflow_world.io.reports import goal_table, json_safe, markdown_table, number, percent

METHOD = f"""# Finding what goes wrong: the anomaly benchmark

Made by `starflow-world anomaly-bench PART --world WORLD`; every figure is in the JSON files beside this page.

Real environments are played and something goes wrong at a random time. A frame is **positive** iff it differs from the
frame that the nominal simulator, set to the same state, gives for the same action. So the frames after a one-off event
are negative, and so is an anomaly that changes no pixel. Negatives are the other frames of the same episodes and those
of nominal test episodes. Everything is fitted on nominal episodes only; training, calibration and test episodes have
seeds of their own. AUROC is one-sided and per frame, its interval (95 %) comes from resampling episodes; FPR is taken
at 95 % recall. Delays are those of Page's cumulative sum at one false alarm per {RUN_LENGTH:.0f} calibration frames,
the same test for every detector. Windowed figures are of means over {WINDOW} frames (the world's own windowed score
uses as many): a window is positive if all its frames come after the switch, negative if none does.

Baselines: {"; ".join(BASELINES)}. The predictor runs about as many operations per frame as the world's flow and is
trained once, on the nominal episodes of the first seed; everything else is fitted again with every seed. The oracles
are the true simulator behind the same pixel noise: *{BLIND}* measures how much a frame surprises it, *{INFORMED}*
knows what may go wrong and compares the two (and is judged on the kind's own episodes).
"""
LIMITS = """## What a score can and cannot say

* It says how strange a **real** frame is under this world, given the history and the action. It does not say what is
  wrong, nor whether it matters.
* It cannot show that the world hallucinates: samples of a flow are typical under the flow by construction, so the
  likelihood of its own imagination says nothing about its truth. That needs signals that can disagree with the sampler.
* Likelihood alone can mislead: simple pictures tend to be likely, whatever the data (Nalisnick et al. 2019). The nats
  of frozen and blank frames are measured above; raw nats are in every table, to show where they would have been enough.
* A threshold holds for the data it was calibrated on. Other behaviour in the same world raises false alarms; the
  row "other policy" measures by how much.
* A world calls everything strange that it has never seen, even if it is normal; it cannot find what it cannot see
  (between two frames, or smaller than its noise level). Frames that depend on events before the window are surprises.
* AUROC is of single frames. One event is one positive frame: a monitor that misses that frame
  has no second chance if the dynamics are normal again.
"""


def write_anomaly_report(
    figures: dict[str, Any], seeds: Sequence[SeedResult], out: Path, parts: Sequence[str]
) -> None:
    """Write figures (JSON) and pictures of a part, and a README.md for all `parts` that have figures in `out`."""
    write_text(out / f"{figures['part']}.json", json.dumps(json_safe(figures), indent=1) + "\n")
    draw(figures, seeds, out)
    paths = [path for name in parts if (path := out / f"{name}.json").exists()]
    stored = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    write_text(out / "README.md", anomaly_markdown(stored, parts) + "\n")


def anomaly_markdown(stored: Mapping[str, dict[str, Any]], parts: Sequence[str]) -> str:
    """Return the report of all parts from their stored figures; figures of another format count as missing."""
    texts = [METHOD]
    for name in parts:
        known = stored.get(name, {}).get("format") == FORMAT
        texts.append(_part(stored[name]) if known else f"## {name}\n\nNot run: there are no figures of this part.\n")
    texts.append("## MuJoCo\n\nNot there: no world was trained for a MuJoCo task, so nothing is said about one.\n")
    return "\n".join([*texts, LIMITS]).rstrip()


def _part(figures: dict[str, Any]) -> str:
    facts, plan = figures["facts"][0], figures["plan"]
    missed = [goal["name"] for goal in figures["goals"] if not goal["met"]]
    shift = ", ".join(f"{name} {percent(share)}" for name, share in figures["shift"].items())
    return "\n".join([
        f"## {figures['part']}: world {facts['world_name']}", "", figures["about"], "",
        f"{plan['seeds']} seeds of {plan['episodes']} episodes of each kind; {facts['calibration_frames']} frames to "
        f"calibrate on; {facts['parameters']:,} parameters in the world, {facts['predictor']:,} in the predictor "
        f"({plan['predictor_steps']} training steps).", "",
        goal_table(figures["goals"]), "",
        f"**Fails**: {'; '.join(missed)}." if missed else "All goals are met.", "",
        "### Detectors, mean over kinds", "", _detectors(figures), "",
        "### AUROC per frame by kind", "", _by_kind(figures), "", _wins(figures), "",
        "### The scorer by kind", "", _scorer(figures), "",
        "### AUROC of the scorer's parts", "", _parts(figures), "",
        "### False alarms at a target of 1 %", "", _false_alarms(figures), "",
        f"The scorer by policy: {shift}.", "",
        *(f"![{picture}]({figures['part']}-{picture}.png)\n" for picture in ("roc", "delay", "heat")),
    ])


def _detectors(figures: dict[str, Any]) -> str:
    """Return a table of every detector's figures, averaged over the kinds of each group, without empty columns."""
    keys = {"AUROC": "auroc", "AUPR": "aupr", "FPR": "fpr", "windowed": "windowed"}
    head = ["detector", *(f"{group}: {title}" for group in figures["groups"] for title in keys)]
    columns = [(group, key) for group in figures["groups"] for key in keys.values()]
    rows = [
        [name, *(number(average(figures, group, name, key)) for group, key in columns)]
        for name in (OWN, WINDOWED, *BASELINES, BLIND, INFORMED)
    ]
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return markdown_table([head[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _by_kind(figures: dict[str, Any]) -> str:
    """Return a table of AUROC by kind and detector; the best of the scorer and the baselines is bold."""
    names = [OWN, *BASELINES]
    rows = []
    for kind, cells in figures["kinds"].items():
        best = max(cells[name]["auroc"] for name in names)
        areas = {name: number(cells[name]["auroc"]) for name in (*names, BLIND, INFORMED)}
        areas |= {name: f"**{areas[name]}**" for name in names if cells[name]["auroc"] == best}
        areas[OWN] += f" ({number(cells[OWN]['low'])} to {number(cells[OWN]['high'])})"
        rows.append([kind, *areas.values()])
    return markdown_table(["kind", *names, BLIND, INFORMED], rows)


def _wins(figures: dict[str, Any]) -> str:
    each = "; ".join(f"{kind} ({', '.join(names)})" for kind, names in better(figures).items())
    if not each:
        return "No baseline is better than the scorer on any kind."
    return f"**A baseline is better than the scorer** on: {each}."


def _scorer(figures: dict[str, Any]) -> str:
    """Return a table of all figures of the scorer."""
    head = ["kind", "positives", "AUPR (guess)", "FPR", "windowed", "delay", "never found", "own change test",
            "flagged", "in time", "nats per dim (normal)", "whole episodes (best baseline)"]
    rows = []
    for kind, cells in figures["kinds"].items():
        cell, change, whole = cells[OWN], figures["change"][kind], figures["episodes"][kind]
        best = max(BASELINES, key=lambda name: whole[name])
        rows.append([
            kind, str(figures["positives"][kind]), f"{number(cell['aupr'])} ({number(cell['prevalence'])})",
            number(cell["fpr"]), number(cells[WINDOWED]["windowed"]), number(cell["delay"]), percent(cell["missed"]),
            f"{number(change['delay'])}, never {percent(change['missed'])}, early {percent(change['early'])}",
            percent(figures["flagged"][kind]), percent(figures["in_time"][kind]["near"]),
            f"{number(figures['nats'][kind])} ({number(figures['nats_normal'])})",
            f"{number(whole[OWN])} ({number(whole[best])}, {best})",
        ])
    return markdown_table(head, rows)


def _parts(figures: dict[str, Any]) -> str:
    names = list(next(iter(figures["parts"].values())))
    return markdown_table(["kind", "combined", *(name.removeprefix("part: ") for name in names)], [
        [kind, number(figures["kinds"][kind][OWN]["auroc"]), *(number(parts[name]) for name in names)]
        for kind, parts in figures["parts"].items()
    ])


def _false_alarms(figures: dict[str, Any]) -> str:
    rows = []
    for name, kinds in figures["alarms"].items():
        cells = [kinds[kind] for kind in (NOMINAL, SHIFT)]
        rows.append([name, *(f"{percent(c['share'])} ({percent(c['low'])} to {percent(c['high'])})" for c in cells)])
    return markdown_table(["detector", "held-out normal", "other policy"], rows)
