"""The verb that measures how well anomalies are found: its arguments; the work is in anomaly/."""

from pathlib import Path

import tyro


def anomaly_bench(
    part: tyro.conf.Positional[str] = "babyai", *, world: str = "", out: Path = Path("docs/anomaly"),
    work: Path = Path("out/anomaly"), episodes: int = 20, seeds: int = 3, predictor_steps: int = 400,
) -> None:
    """Play real environments in which something goes wrong; report how well scores find it, beside baselines.

    Args:
        part: babyai or cartpole.
        world: folder or name of a world of that environment; none: the shipped one.
        out: folder for the report, its pictures and figures.
        work: folder for what is kept between seeds; an interrupted run goes on with the next.
        episodes: of each kind of anomaly, in each seed.
        seeds: how often everything is played anew, and fitted but for the next-frame predictor.
        predictor_steps: training steps of the next-frame predictor, a baseline.
    """
    from starflow_world.commands.anomaly import Plan, find_stage
    from starflow_world.commands.anomaly import anomaly_bench as run
    from starflow_world.world import World

    stage = find_stage(part)
    found = run(stage, World.load(world or stage.world), out, work, Plan(episodes, seeds, predictor_steps))
    for goal in found["goals"]:
        print(f"{'met   ' if goal['met'] else 'MISSED'} {goal['name']}: {goal['value']:.3f}  {goal['note']}")
    print(out / "README.md")
