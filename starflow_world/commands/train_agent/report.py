"""Report of train-agent: learning curves as PNG and a text in Markdown, both from its figures."""

from pathlib import Path
from typing import Any

import numpy as np

from starflow_world.io.files import write_text
from starflow_world.io.plots import saved

COLOURS = {"dream": "tab:orange", "real": "tab:blue"}
REACHED = 0.8
FINAL = ("success", "reward", "discounted")


def write_agent_report(figures: dict[str, Any], out: Path) -> None:
    """Write curves.png and report.md into `out`."""
    write_learning_curves(figures, out / "curves.png")
    write_text(out / "report.md", agents_markdown(figures))


def at(curve: list[dict[str, float]], steps: float) -> float:
    """Return the success rate of the last point of a curve with at most `steps` steps."""
    return [point["success"] for point in curve if point["steps"] <= steps][-1]


def steps_to(curve: list[dict[str, float]]) -> float | None:
    """Return the steps after which the success rate first reached `REACHED`; None if it never did."""
    return next((point["steps"] for point in curve if point["success"] >= REACHED), None)


def ratios(figures: dict[str, Any]) -> dict[str, float]:
    """Return mean success of agents trained in the world relative to those trained in the real environment, after equal
    steps and at the end; and the relative difference of imagined and real reward of the final agents."""
    curves, final = figures["curves"], figures["final"]
    common = min(curve[-1]["steps"] for one in curves.values() for curve in one)
    real = _mean(at(curve, common) for curve in curves["real"])
    found = {"same_steps": _mean(at(curve, common) for curve in curves["dream"]), "end": _mean(
        curve[-1]["success"] for curve in curves["dream"])}
    imagined, reality = (_mean(one[where]["reward"] for one in final) for where in ("dream", "real"))
    return {
        **{key: value / real if real else float("nan") for key, value in found.items()},
        "imagined_error": abs(imagined - reality) / reality if reality else float("nan"),
    }


def agents_markdown(figures: dict[str, Any]) -> str:
    """Return the report in Markdown."""
    plan, curves, found = figures["plan"], figures["curves"], ratios(figures)
    common = min(curve[-1]["steps"] for one in curves.values() for curve in one)
    dreamed, lived = (curves[where][0][-1]["steps"] for where in ("dream", "real"))
    task = f'"{plan["text"]}"' if plan["text"] else figures["env"]
    more = f"| {dreamed / lived:.3g} times the steps ({dreamed:,.0f}) | {found['end']:.0%} | >= 100 % at twice |"
    lines = [
        f"# An agent that learned {task} in a dream", "",
        f"World `{figures['world']}` ({figures['world_id'][:12]}), {plan['seeds']} seeds, {plan['envs']} envs, "
        f"{plan['actions'] or 'all'} actions; episodes of at most {figures.get('limit', 64)} steps from "
        f"{plan['starts']} real first frames. Every agent is judged in {plan['episodes']} real episodes that it never "
        "saw, with sampled actions.", "",
        "![learning curves](curves.png)", "",
        f"| agent | steps | success in reality, mean (each seed) | steps to {REACHED:.0%} |",
        "| --- | --- | --- | --- |",
        _row(f"learned in reality, {common:,.0f} steps", [_cut(curve, common) for curve in curves["real"]]),
        _row("learned in the dream, the same steps", [_cut(curve, common) for curve in curves["dream"]]),
        _row("learned in the dream, to the end", curves["dream"]),
        f"| random | | {_shown('success', figures['random']['real']['success'])} | |", "",
        "| dream over reality | measured | wanted |", "| --- | --- | --- |",
        f"| the same steps | {found['same_steps']:.0%} | >= 90 % |",
        *([more] if dreamed != lived else []),
        f"| imagined reward of the final agent, off from the real one by | {found['imagined_error']:.0%} | <= 10 % |",
        "", "| learned in the dream | success, dream | real | reward, dream | real | discounted, dream | real |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for seed, one in enumerate(figures["final"]):
        cells = (_shown(key, one[where][key]) for key in FINAL for where in ("dream", "real"))
        lines.append(f"| seed {seed} | {' | '.join(cells)} |")
    video = "`agent.mp4`: seed 0 in dreams (left) and in reality, from the same first frames."
    return "\n".join([*lines, "", video, ""])


def _row(name: str, curves: list[list[dict[str, float]]]) -> str:
    success = [curve[-1]["success"] for curve in curves]
    each, reached = ", ".join(_shown("success", value) for value in success), [steps_to(curve) for curve in curves]
    steps = ", ".join("never" if value is None else f"{value:,.0f}" for value in reached)
    return f"| {name} | {curves[0][-1]['steps']:,.0f} | {_shown('success', _mean(success))} ({each}) | {steps} |"


def _shown(key: str, value: float) -> str:
    return f"{value:.1%}" if key == "success" else f"{value:.3f}"


def _cut(curve: list[dict[str, float]], steps: float) -> list[dict[str, float]]:
    return [point for point in curve if point["steps"] <= steps]


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def write_learning_curves(figures: dict[str, Any], path: Path) -> None:
    """Plot success in the real environment against training steps: thin lines for seeds, a thick one for their mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for where, curves in figures["curves"].items():
        for curve in curves:
            axis.plot([p["steps"] for p in curve], [p["success"] for p in curve], color=COLOURS[where], alpha=0.3)
        count = min(len(curve) for curve in curves)
        steps = [point["steps"] for point in curves[0][:count]]
        mean = np.mean([[point["success"] for point in curve[:count]] for curve in curves], axis=0)
        label = "learned in the dream" if where == "dream" else "learned in reality"
        axis.plot(steps, mean, color=COLOURS[where], linewidth=2.5, label=label)
    axis.axhline(figures["random"]["real"]["success"], color="grey", linestyle="--", label="random")
    title = figures["plan"]["text"] or figures["env"]
    axis.set(xlabel="env steps", ylabel="success in reality", ylim=(0, 1.02), title=title)
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    saved(figure, path)
