"""Report of train-agent: learning curves as PNG and a text in Markdown, both from its figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from starflow_world.evaluation.intervals import interquartile_mean, interval, resampled_iqm
from starflow_world.io.files import write_text
from starflow_world.io.plots import saved
from starflow_world.io.reports import Goal, goal_table, markdown_table, number

COLOURS = {"dream": "tab:orange", "real": "tab:blue"}
IMAGINED = 0.1
"""Largest relative error of the imagined return that the report asks for."""
Curve = list[dict[str, float]]


@dataclass(frozen=True)
class Runs:
    """Values of one figure, one per run (seed)."""

    values: tuple[float, ...]

    @property
    def middle(self) -> float:
        """Return the interquartile mean."""
        return float(interquartile_mean(np.array(self.values)))

    def __str__(self) -> str:
        low, high = interval(resampled_iqm(self.values))
        return f"{number(self.middle)} ({number(low)} to {number(high)})"

    def over(self, other: "Runs") -> tuple[float, str]:
        """Return the ratio of the middles, and its 95 % interval as text; NaN unless both are positive."""
        if not (self.middle > 0 and other.middle > 0):
            return float("nan"), "a ratio needs positive returns"
        with np.errstate(divide="ignore"):  # a sample of runs may have no return
            low, high = interval(resampled_iqm(self.values) / resampled_iqm(other.values, seed=1))
        return self.middle / other.middle, f"95 % interval {number(low)} to {number(high)}"


def write_agent_report(figures: dict[str, Any], out: Path) -> None:
    """Write curves.png and report.md into `out`."""
    write_learning_curves(figures, out / "curves.png")
    write_text(out / "report.md", agents_markdown(figures))


def at(curves: Sequence[Curve], steps: float, key: str = "reward") -> Runs:
    """Return a figure of the last point with at most `steps` steps of each curve."""
    return Runs(tuple([point[key] for point in curve if point["steps"] <= steps][-1] for curve in curves))


def agent_goals(figures: dict[str, Any]) -> list[Goal]:
    """Return what dream and reality are compared by: the return of agents that learned in either, imagined and real
    return of the former, and both again after overtime."""
    curves, known, plan = figures["curves"], figures["data_steps"], figures["plan"]
    budget = known["steps"] or plan["steps"]
    lived = min(budget, curves["real"][0][-1]["steps"])
    dreamed, real = at(curves["dream"], plan["dream_steps"]), at(curves["real"], lived)
    note = f"both with {budget:,.0f} real steps" if lived == budget else (
        f"{lived:,.0f} steps in reality; the world's data have {'' if known['exact'] else 'up to '}{budget:,.0f}")
    low = min(one[-1]["steps"] for where in curves.values() for one in where)
    same, of_same = at(curves["dream"], low).over(at(curves["real"], low))
    ratio, of_ratio = dreamed.over(real)
    goals = [Goal("return in reality, learned in the dream over learned in reality", ratio, least=1.0,
                  note=f"{note}; {of_ratio}"),
             Goal("the same after equal env steps", same, note=f"{low:,.0f} steps each; {of_same}")]
    for times in dict.fromkeys((1, plan["overtime"])):
        steps = times * plan["dream_steps"]
        imagined, brought = at(curves["dream"], steps, "imagined"), at(curves["dream"], steps)
        off = abs(imagined.middle - brought.middle) / abs(brought.middle) if brought.middle else float("nan")
        said = f"after {times:g} x {plan['dream_steps']:,.0f} steps: imagined {imagined}, real {brought}"
        goals.append(Goal("imagined return off from the real one by", off, most=IMAGINED if times == 1 else np.inf,
                          note=said))
    return goals


def agents_markdown(figures: dict[str, Any]) -> str:
    """Return the report in Markdown."""
    plan, curves, known = figures["plan"], figures["curves"], figures["data_steps"]
    ends = dict.fromkeys((plan["dream_steps"], plan["dream_steps"] * plan["overtime"]))
    steps = "unknown" if known["steps"] is None else f"{'' if known['exact'] else 'at most '}{known['steps']:,.0f}"
    rows = [_row("learned in reality", curves["real"], plan["steps"], f"{curves['real'][0][-1]['steps']:,.0f}")]
    rows += [_row("learned in the dream", curves["dream"], end, f"{steps} (the world's data)") for end in ends]
    random = {where: figures["random"][where] for where in ("real", "dream")}
    rows.append(["random", "0", "0", number(random["real"]["reward"]), "", number(random["dream"]["reward"]),
                 f"{random['real']['length']:.1f}"])
    task = f'"{plan["text"]}"' if plan["text"] else figures["env"]
    return "\n".join([
        f"# An agent that learned {task} in a dream", "",
        f"World `{figures['world']}` ({figures['world_id'][:12]}), {plan['algorithm']}, {plan['seeds']} seeds, "
        f"{plan['envs']} envs, {plan['actions'] or 'all'} actions; episodes of at most {figures['limit']} steps from "
        f"{plan['starts']} real first frames, in both. Every agent is judged in {plan['episodes']} real episodes that "
        "it never saw, and in as many dreams that start alike. Returns are interquartile means over the seeds, with "
        "95 % bootstrap intervals over the seeds (Agarwal et al. 2021).", "",
        "![learning curves](curves.png)", "",
        markdown_table(["agent", "env steps", "real steps", "return in reality", "each seed", "imagined", "length"],
                       rows), "",
        goal_table(goal.as_json() for goal in agent_goals(figures)), "",
        "Real steps of an agent that dreams are those of the world's data. Its starts are real resets, and are not "
        "counted, as the other agent has them too.", "",
        "`agent.mp4`: seed 0 in dreams (left) and in reality, from the same first frames.", "",
    ])


def _row(name: str, curves: Sequence[Curve], steps: float, real_steps: str) -> list[str]:
    found, imagined = at(curves, steps), "imagined" in curves[0][-1]
    each = ", ".join(map(number, found.values))
    last = max(point["steps"] for point in curves[0] if point["steps"] <= steps)
    return [name, f"{last:,.0f}", real_steps, str(found), each, str(at(curves, steps, "imagined")) if imagined else "",
            f"{at(curves, steps, 'length').middle:.1f}"]


def write_learning_curves(figures: dict[str, Any], path: Path) -> None:
    """Plot the return in the real environment against training steps: thin lines for seeds, a thick one for their
    interquartile mean, a dotted one for what the agents imagine."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for where, label in (("real", "learned in reality"), ("dream", "learned in the dream")):
        draw_curves(axis, figures["curves"][where], COLOURS[where], label)
    draw_curves(axis, figures["curves"]["dream"], COLOURS["dream"], "imagined by the latter", "imagined")
    axis.axhline(figures["random"]["real"]["reward"], color="grey", linestyle="--", label="random")
    title = figures["plan"]["text"] or figures["env"]
    axis.set(xlabel="env steps", ylabel="return in reality", title=title)
    axis.grid(alpha=0.3)
    axis.legend(loc="best")
    saved(figure, path)


def draw_curves(
    axis: Any, curves: Sequence[Curve], colour: str, label: str, key: str = "reward"
) -> None:
    """Draw the curves of all seeds (not for a further figure than the return) and their interquartile mean."""
    main = key == "reward"
    for curve in curves if main else ():
        axis.plot([point["steps"] for point in curve], [point[key] for point in curve], color=colour, alpha=0.25)
    count = min(len(curve) for curve in curves)
    middle = interquartile_mean(np.array([[point[key] for point in curve[:count]] for curve in curves]).T)
    axis.plot([point["steps"] for point in curves[0][:count]], middle, color=colour, label=label,
              linewidth=2.5 if main else 1.5, linestyle="-" if main else ":")
