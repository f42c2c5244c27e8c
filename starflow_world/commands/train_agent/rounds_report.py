"""Report of the online loop: curves of world and agent side by side, and a table of the rounds."""

from pathlib import Path
from typing import Any

from starflow_world.commands.train_agent.report import COLOURS, Runs, at, draw_curves
from starflow_world.io.files import write_text
from starflow_world.io.plots import saved
from starflow_world.io.reports import markdown_table, number


def write_rounds_report(figures: dict[str, Any], out: Path) -> None:
    """Write curves.png and report.md into `out`."""
    write_rounds_curves(figures, out / "curves.png")
    write_text(out / "report.md", rounds_markdown(figures))


def rounds_markdown(figures: dict[str, Any]) -> str:
    """Return the report in Markdown."""
    plan, loops, known = figures["plan"], figures["rounds"], figures["data_steps"]
    rows = []
    for index, records in enumerate(zip(*loops, strict=True)):
        steps = sum(record["real_steps"] for record in records) / len(records)
        before, after = (str(Runs(tuple(record[key] for record in records))) if index else ""
                         for key in ("excess_before", "excess_after"))
        real, imagined = (Runs(tuple(record["curve"][-1][key] for record in records)) for key in ("reward", "imagined"))
        rows.append([str(index), f"{steps:,.0f}", before, after, str(real), str(imagined), _lived(figures, steps)])
    data = "unknown, counted as 0" if known["steps"] is None else (
        f"{'' if known['exact'] else 'at most '}{known['steps']:,.0f}")
    task = f'"{plan["text"]}"' if plan["text"] else figures["env"]
    head = ["round", "real steps", "excess nats of new frames before", "after", "return in reality", "imagined",
            "learned in reality, as many steps"]
    return "\n".join([
        f"# {task}: world and agent learn from each other", "",
        f"World `{figures['world']}` ({figures['world_id'][:12]}) at first, {plan['algorithm']}, {plan['seeds']} "
        f"seeds, {plan['rounds']} rounds: {plan['collected']} real episodes collected by {plan['collector']}, "
        f"{plan['world_steps']} steps of the world, {plan['dream_steps']} env steps in it. Returns are interquartile "
        "means over the seeds with 95 % bootstrap intervals (Agarwal et al. 2021), in "
        f"{plan['episodes']} real episodes that no training has seen.", "", "![curves](curves.png)", "",
        markdown_table(head, rows), "",
        f"Real steps count the data that the world was trained on at first ({data}). A random policy gets "
        f"{number(figures['random']['real']['reward'])} in reality.", "",
    ])


def _lived(figures: dict[str, Any], steps: float) -> str:
    """Return the return of the agents that learned in reality for as many steps; empty if they had fewer."""
    curves = figures["curves"]["real"]
    return str(at(curves, steps)) if curves[0][-1]["steps"] >= steps else ""


def write_rounds_curves(figures: dict[str, Any], path: Path) -> None:
    """Plot the world's excess nats of new episodes, and the agents' returns, against the real steps so far."""
    from matplotlib.figure import Figure

    loops = figures["rounds"]
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for key, style in (("excess_before", "--"), ("excess_after", "-")):
        for loop in loops:
            points = [(record["real_steps"], record[key]) for record in loop if key in record]
            left.plot(*zip(*points, strict=True), style, marker="o", color=COLOURS["dream"],
                      label=key.replace("_", " ") if loop is loops[0] else None)
    agents = [[{"steps": record["real_steps"], **{key: record["curve"][-1][key] for key in ("reward", "imagined")}}
               for record in loop] for loop in loops]
    draw_curves(right, figures["curves"]["real"], COLOURS["real"], "learned in reality")
    draw_curves(right, agents, COLOURS["dream"], "learned in the dream, round by round")
    draw_curves(right, agents, COLOURS["dream"], "imagined by the latter", "imagined")
    right.axhline(figures["random"]["real"]["reward"], color="grey", linestyle="--", label="random")
    left.set(xlabel="real steps", ylabel="excess nats per frame of new episodes", title="world")
    right.set(xlabel="real steps", ylabel="return in reality", title="agent")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(loc="best")
    saved(figure, path)
