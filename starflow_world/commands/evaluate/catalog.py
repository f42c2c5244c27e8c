"""The figures of a report card: where they stand, what they are called and what they mean."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starflow_world.commands.evaluate.report import REAL
from starflow_world.evaluation.horizons import COPY, HORIZONS, WORLD, horizons_of
from starflow_world.evaluation.ledgers import LawLedger, TileLedger
from starflow_world.io.reports import number, percent

DISTANCE = "distance of "
FIDELITY, LIKELIHOOD, CHANCE, OUTCOMES, ACTIONS = (
    "What it imagines", "How likely it finds what happens", "Objects and variety", "Rewards and ends",
    "What actions are worth")


@dataclass(frozen=True)
class Panel:
    """A chart: its section, title, meaning and unit; share: drawn from 0 to 100 %; main: the source that is compared
    between worlds."""

    section: str
    title: str
    meaning: str
    unit: str = ""
    share: bool = False
    log: bool = False
    main: str = WORLD


CATALOG = {
    "psnr": Panel(FIDELITY, "PSNR", "Similarity of pixels to the real frame. Higher is better; equal frames count as "
                  "60 dB.", "dB"),
    "ssim": Panel(FIDELITY, "SSIM", "Similarity of structure to the real frame; 1 is equal."),
    "cells": Panel(FIDELITY, "Right cells", "Cells within 4 grey levels of the real frame.", share=True),
    "exact": Panel(FIDELITY, "Exact frames", "Frames in which every cell is right.", share=True),
    "excess": Panel(LIKELIHOOD, "Excess nats of real frames", "Nats beyond the floor of the noise, given the real "
                    "frames before. 0 is perfect where nothing is left to chance.", "nats per frame", log=True),
    "nats": Panel(LIKELIHOOD, "Log-likelihood", "Of real frames given real ones, and of imagined frames given imagined "
                  "ones. Where the two part, the dream has drifted.", "nats per frame"),
    "objects": Panel(CHANCE, "Objects lost", "Objects that were duplicated, vanished or became others.", "objects"),
    "legal": Panel(CHANCE, "Possible transitions", "Imagined steps that the law of the environment allows.",
                   share=True),
    "variance": Panel(CHANCE, "Variance ratio", "Variance of the frames over episodes, imagined over real. 1 is right; "
                      "0 is one picture for all.", "ratio"),
    "reward_f1": Panel(OUTCOMES, "Rewards in open loop", "F1 of reward events, of all steps since the point before.",
                       "F1", share=True),
    "end_f1": Panel(OUTCOMES, "Ends in open loop", "F1 of terminations, of all steps since the point before.", "F1",
                    share=True),
    "action_nats": Panel(ACTIONS, "Action information", "Nats that the true action explains beyond other actions. In "
                         "imagined frames: whether the dream still obeys.", "nats per frame", main=REAL),
    "action_first": Panel(ACTIONS, "True action most likely", "Real frames to which no other action gives a higher "
                          "likelihood.", share=True, main=REAL),
}


def entry_of(key: str) -> Panel | None:
    """Return the entry of a chart; None for a chart that is not drawn."""
    if key.startswith(DISTANCE):
        name = key.removeprefix(DISTANCE)
        return Panel(FIDELITY, f"Position of the {name}", "Distance from its real position, in frames in which it is "
                     "seen.", "pixels")
    return CATALOG.get(key)


def charts_of(reports: Sequence[Mapping[str, Any]], section: str) -> Iterator[tuple[str, Panel]]:
    """Yield the charts of a section that any of the reports has, in the order of the catalogue."""
    keys = dict.fromkeys([*CATALOG, *(key for report in reports for key in report["charts"])])
    for key in keys:
        entry = entry_of(key)
        if entry is not None and entry.section == section and any(key in report["charts"] for report in reports):
            yield key, entry


def horizon_rows(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of a table of all charts at the horizons: value and 95 % interval, by figure and source."""
    shown, rows = horizons_of(int(report["steps"])), []
    for key, chart in report["charts"].items():
        entry = entry_of(key)
        for source, series in chart.items() if entry is not None else ():
            assert entry is not None
            cells = [_cell(series, step, percent if entry.share else number) for step in shown]
            title = f"{entry.title} ({entry.unit})" if entry.unit else entry.title
            rows.append([title, source, *cells])
    return ["figure", "of", *(f"{step:,} step{'s' * (step > 1)}" for step in shown)], rows


def _cell(series: Mapping[str, Any], step: int, text: Any) -> str:
    if step not in series["steps"]:
        return ""
    place = list(series["steps"]).index(step)
    value, low, high = (series[name][place] for name in ("value", "low", "high"))
    if low is None or high is None:
        return str(text(value))
    return f"{text(value)} ({text(low)} to {text(high)})"


def headlines(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the figures that stand at the top of a report, those that were measured, as text by title."""
    figures, charts = report["figures"], report["charts"]
    found = {"excess nats per frame": number(figures.get("excess_nats"))}
    chance = figures.get("chance") or {}
    found["of them above chance itself"] = number(chance.get("law_excess"))
    for step in (1, 16, 64):
        found[f"exact frames, {step} step{'s' * (step > 1)}"] = percent(_at(charts, "exact", step))
    found["PSNR after 16 steps, dB"] = number(_at(charts, "psnr", 16))
    found["the same of the last frame repeated"] = number(_at(charts, "psnr", 16, COPY))
    for name in ("reward", "end"):
        found[f"{name} F1, real frames"] = number(report["outcomes"].get(name, {}).get("f1"))
    found["nats that actions are worth"] = number(_mean(charts, "action_nats", REAL))
    found["true action most likely"] = percent(_mean(charts, "action_first", REAL))
    found["env steps per second, 1 env"] = number(figures.get("steps_per_second_1"))
    return {title: text for title, text in found.items() if text}


def _at(charts: Mapping[str, Any], key: str, step: int, source: str = WORLD) -> float | None:
    series = charts.get(key, {}).get(source, {"steps": []})
    return series["value"][series["steps"].index(step)] if step in series["steps"] else None


def _mean(charts: Mapping[str, Any], key: str, source: str) -> float | None:
    """Return the mean of a series over all episodes and steps."""
    series = charts.get(key, {}).get(source)
    if not series or not series["value"]:
        return None
    pairs = list(zip(series["value"], series["episodes"], strict=True))
    return sum(value * count for value, count in pairs) / sum(count for _, count in pairs)


def flat_figures(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each figure as name and text; shares with their intervals; ablations and sweep counts are left out."""
    for key, value in figures.items():
        if key in ("ablations", "sweep_counts"):
            continue
        if isinstance(value, dict) and {"share", "total", "interval"} <= set(value):
            if value["total"]:
                low, high = value["interval"]
                text = f"{percent(value['share'])} ({percent(low)} to {percent(high)}) of {value['total']:,}"
                yield prefix + key, text
        elif isinstance(value, dict):
            yield from flat_figures(value, f"{prefix}{key}: ")
        elif isinstance(value, float):
            yield prefix + key, number(value)
        else:
            yield prefix + key, str(value)


def left_out(report: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each thing that this report does not say."""
    charts, figures = report["charts"], report["figures"]
    texts = ["LPIPS is left out: no installed package ships the weights that it needs."]
    for name in ("reward", "end"):
        texts += [f"The world predicts no {name}s, or the episodes bring none, so {name}s are not judged; --outcomes "
                  "names a folder of episodes that end."] * (name not in report["outcomes"])
    texts += ["The law of the environment is not known here, so chance is not compared with it."] * (
        "chance" not in figures)
    texts += ["Frames have no tiles, so there is no ledger of objects."] * ("objects" not in charts)
    texts += ["The number of actions is not small, so each is compared with the others in shuffled order only."] * (
        "action_first" not in charts)
    texts += ["Ablations were left out."] * ("ablations" not in figures)
    texts += ["There is no data-size curve: --curve names a file, or the card has one under `curve`."] * (
        not report["curve"])
    texts += [f"The longest episode ends after {report['steps']:,} imagined steps, so longer horizons are missing."] * (
        report["steps"] < HORIZONS[-1])
    return texts


def published_words(report: Mapping[str, Any]) -> str:
    """Return the sentence that stands with the table of published figures, or instead of it."""
    if report["published"]:
        return "Published figures of the same protocol, as the card of the world names them."
    env = report["card"].get("env", "this environment")
    return (f"No figures of others are known that were measured by this protocol on {env}, so no table stands here. "
            "GameNGen reports a PSNR of 29.4 dB for next frames of Doom (gamengen.github.io): other frames of another "
            "size, and a PSNR depends on how much of a frame changes at all, which is why the last frame repeated "
            "stands beside ours. Scores of agents on Atari 100k judge an agent, not the frames. The card of a world "
            "may name figures of the same protocol under `published`.")


def ledger_words(report: Mapping[str, Any]) -> str:
    """Return the sentence that says how the objects of a report are counted; "" where they are not."""
    return {
        LawLedger.name: "Objects are counted up to each step, beside the nearest frame that the law allows.",
        TileLedger.name: "Objects are counted at each step, beside the real frame of that step.",
    }.get(report["ledger"], "")
