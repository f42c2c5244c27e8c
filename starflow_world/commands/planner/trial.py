"""Evaluation of a planner in the real environment, with a random policy on the same episodes.

Every episode is written to a small file at its end, so an interrupted run can be resumed. Every plan is recorded with
the reward that it predicted and the real reward while it was followed.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from tqdm import tqdm

from starflow_world.agents.collect import play
from starflow_world.agents.environment import Environment
from starflow_world.agents.planner import Planner, Thought
from starflow_world.agents.policy import Policy, RandomPolicy, policy_record
from starflow_world.data.episodes import Episode
from starflow_world.errors import ConfigError, DataError
from starflow_world.evaluation.intervals import Share, interval
from starflow_world.io.files import claim, recorded, remove_leftovers, write_text
from starflow_world.io.media import VideoWriter, compared

FPS = 3
RECIPE, RESULT = "recipe.json", "planner.json"


def try_planner(planner: Planner, source: Environment, out: Path, *, episodes: int, seed: int) -> dict[str, Any]:
    """Play, evaluate, print a table, and write planner.json and a video of the first episode to `out`.

    Success is a positive return before the time limit; `over_random` is the planner's mean return over that of the
    random policy. Returns the content of planner.json. Raises DataError if `out`
    holds a run of another recipe.
    """
    if episodes < 1 or seed < 0:
        raise ConfigError(f"expected episodes >= 1 and seed >= 0, found {episodes} and {seed}")
    before = recorded(out / RECIPE).get("planner")
    recipe = {"world": planner.world.world_id, "planner": policy_record(planner, before), "env": source.env,
              "seed": seed, "max_steps": source.max_steps}
    recipe |= {name: value for name in ("env_kwargs", "wrappers") if (value := source.to_dict().get(name))}
    claim(out / RECIPE, recipe)
    remove_leftovers(out / "episodes")
    env = source.make()
    players: dict[str, Policy] = {"planner": planner, "random": _random(env, planner.search.actions)}
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in players}
    try:
        for index in tqdm(range(episodes), desc=planner.name, unit="episode"):
            for name, policy in players.items():
                path = out / "episodes" / f"{name}-{index:05d}.json"
                if not path.exists():
                    begin = time.perf_counter()
                    episode = play(env, policy, seed=seed, index=index, reward=source.reward,
                                   frame_size=source.size)
                    record = _judged(episode, policy) | {"index": index, "seconds": time.perf_counter() - begin}
                    if name == "planner" and index == 0:
                        write_planner_video(out / "planner.mp4", env, episode, planner.thoughts)
                    write_text(path, json.dumps(record, indent=1))
                records[name].append(_read_record(path))
    finally:
        env.close()
    result = {"recipe": recipe, **{name: _summary(played) for name, played in records.items()},
              "over_random": over_random(records["planner"], records["random"])}
    write_text(out / RESULT, json.dumps(result, indent=1))
    print(trial_table(planner.name, records))
    return result


def _random(env: gymnasium.Env, actions: Sequence[Any]) -> RandomPolicy:
    """Return a random policy with the same choice of actions as the planner."""
    space = env.action_space
    if not actions or not isinstance(space, spaces.Discrete):
        return RandomPolicy()
    return RandomPolicy(tuple(float(space.start + i in actions) for i in range(int(space.n))))


def _judged(episode: Episode, policy: Policy) -> dict[str, Any]:
    """Return the figures of an episode; for each plan the predicted reward and the real one while it was followed."""
    plans: list[dict[str, Any]] = []
    thoughts = policy.thoughts if isinstance(policy, Planner) else []
    for thought, reward in zip(thoughts, episode.rewards[1:], strict=False):
        if thought.fresh:
            plan = thought.plan
            plans.append({"promised": plan.promise, "brought": 0.0, "steps": len(plan), "imagined": plan.imagined})
        plans[-1]["brought"] += float(reward)
    gain = float(episode.rewards.sum())
    return {"mission": episode.text, "success": gain > 0, "return": gain, "steps": len(episode) - 1, "plans": plans}


def _summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    plans = [plan for record in records for plan in record["plans"]]

    def mean(values: Sequence[float]) -> float | None:
        return float(np.mean(values)) if values else None

    return {
        "episodes": len(records), "success": mean([record["success"] for record in records]),
        "return": mean([record["return"] for record in records]),
        "steps_of_successes": mean([record["steps"] for record in records if record["success"]]),
        "plans_per_episode": len(plans) / len(records) if plans else None,
        "promised_per_plan": mean([plan["promised"] for plan in plans]),
        "brought_per_plan": mean([plan["brought"] for plan in plans]),
        "imagined_per_plan": mean([plan["imagined"] for plan in plans]),
        "seconds_per_step": sum(r["seconds"] for r in records) / sum(r["steps"] for r in records),
    }


def over_random(planner: Sequence[dict[str, Any]], random: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the ratio of the mean returns and its 95 % bootstrap interval over the episodes, which both play from the
    same seeds; None where the random policy's mean is not positive."""
    one, other = (np.array([record["return"] for record in records], float) for records in (planner, random))
    if other.mean() <= 0:
        return {"ratio": None, "interval": None}
    rows = np.random.default_rng(0).integers(len(one), size=(2000, len(one)))
    below = other[rows].mean(1)
    ratios = one[rows].mean(1)[below > 0] / below[below > 0]
    return {"ratio": float(one.mean() / other.mean()), "interval": list(interval(ratios))}


def trial_table(name: str, players: dict[str, list[dict[str, Any]]]) -> str:
    """Return the figures of planner and random policy as text, with predicted and real reward of the plans."""
    lines = [f"{'':<20} {'success':<24} {'return':>8} {'steps':>6} {'plans':>6} {'promised':>9} {'brought':>8} "
             f"{'imagined':>9}"]
    for player, records in players.items():
        facts = _summary(records)
        share = Share(sum(record["success"] for record in records), len(records))
        numbers = [
            "" if facts[key] is None else f"{facts[key]:.{digits}f}"
            for key, digits in (("return", 3), ("steps_of_successes", 1), ("plans_per_episode", 1),
                                ("promised_per_plan", 2), ("brought_per_plan", 2), ("imagined_per_plan", 0))
        ]
        row = "{:>8} {:>6} {:>6} {:>9} {:>8} {:>9}".format(*numbers)
        lines.append(f"{name if player == 'planner' else player:<20} {share!s:<24} {row}".rstrip())
    above = over_random(players["planner"], players["random"])
    if above["ratio"] is not None:
        low, high = above["interval"]
        lines.append(f"return over that of random: {above['ratio']:.2f} ({low:.2f} to {high:.2f}; goal >= 2)")
    return "\n".join(lines)


def write_planner_video(path: Path, env: gymnasium.Env, episode: Episode, thoughts: Sequence[Thought]) -> None:
    """Write a video of the real frames beside the frames that the current plan predicts, and the plan's last frame."""
    number = 0
    with VideoWriter(path, fps=FPS) as video:
        for t, thought in enumerate(thoughts):
            number += thought.fresh
            if thought.fresh:
                now = episode.frames[t]
                video.add(_picture(now, now, thought.plan.frames[-1], episode.text, f"plan {number}"))
            plan = thought.plan
            said = f"plan {number}, step {thought.place + 1} of {len(plan)}, promises {plan.promise:.2f}"
            action = _action_name(env, plan.actions[thought.place])
            line = f"{action:<10} {said}{', reward' if episode.rewards[t + 1] > 0 else ''}"
            video.add(_picture(episode.frames[t + 1], plan.frames[thought.place], plan.frames[-1], episode.text, line))


def _picture(real: np.ndarray, planned: np.ndarray, aim: np.ndarray, mission: str, line: str) -> np.ndarray:
    return compared({"real": real, "as planned": planned, "where the plan leads": aim}, [mission, line])


def _action_name(env: gymnasium.Env, action: Any) -> str:
    """Return MiniGrid's name of an action, or the action as text in other environments."""
    names = getattr(env.unwrapped, "actions", None)
    return str(names(action).name) if isinstance(names, type) else str(action)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {key: record[key] for key in ("mission", "success", "return", "steps", "plans", "seconds")}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected the record of an episode, found {error!r:.80}; delete it") from None
