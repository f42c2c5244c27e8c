"""The command line: dispatches, and turns errors into one line. Exit 0: done, 1: a StarflowError, 2: wrong usage."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

from starflow_world.commands.anomaly import AnomalyBench
from starflow_world.commands.bench import Bench
from starflow_world.commands.cli_video import convert, generate, plan
from starflow_world.commands.rollout import rollout
from starflow_world.commands.score import ScoreRecordings
from starflow_world.commands.score.verbs import calibrate
from starflow_world.errors import StarflowError


def demo(out: Path = Path("out/demo"), /, *, steps: int = 64, seed: int = 100_003) -> None:
    """Play the shipped world beside the real environment; write a video and a contact sheet.

    Args:
        out: folder for demo.mp4 and demo.png.
        steps: steps before the expert bot finishes the mission.
        seed: of the environment and the policy.
    """
    from starflow_world.commands.demo import demo as run

    run(out, steps=steps, seed=seed)


def collect(
    *, env: str, out: Path, episodes: int = 1000, policy: str = "auto", seed: int = 0, max_steps: int = 0,
    frame_size: int = 64, reward: str = "auto", no_end: bool = False, hold: int = 1, actors: int = 0,
    time_limit: float = 300.0, address: str = "",
) -> None:
    """Play a real Gymnasium environment into a folder of episodes; an interrupted run goes on where it stopped.

    Args:
        env: Gymnasium id of an environment that renders RGB; module:Id for one that importing a module registers.
        out: folder for the episodes.
        episodes: how many.
        policy: random; bot or mixed (for BabyAI), tinker (for MiniGrid), balance (for CartPolePixels-v0); auto: the
            one made for the environment, else random.
        seed: every episode follows from it and its index.
        max_steps: time limit; 0: the environment's own.
        frame_size: pixels of the square frames.
        reward: event (1 where the reward is positive), raw, or auto: event for MiniGrid and where there is one positive
            value, else raw.
        no_end: draw actions that would end an episode again (for open-loop evaluation).
        hold: take every action so many times in a row (4 for video models, which see four frames at a time).
        actors: Ray actors that play; 0: this process.
        time_limit: seconds that an actor may take for an episode.
        address: of a Ray cluster; empty: one started for the purpose.
    """
    from starflow_world.agents.collect import collect as run
    from starflow_world.agents.registry import make_policy

    run(env, out, episodes=episodes, policy=None if policy == "auto" else make_policy(policy), seed=seed,
        max_steps=max_steps or None, frame_size=frame_size, reward=reward, ends=not no_end, hold=hold, actors=actors,
        time_limit=time_limit, address=address or None)
    print(out)


def train(
    config: tyro.conf.Positional[Path], overrides: tyro.conf.Positional[tuple[str, ...]] = (), *, data: Path, out: Path,
    valid: Path | None = None, resume: bool = False, init: Path | None = None,
) -> None:
    """Train a world on collected episodes, or a video model on clips (its actions: on episodes); by many processes if
    torchrun starts them.

    Args:
        config: recipe, such as configs/babyai.yaml, or, for a video model, configs/starflow_v_train.yaml (clips) and
            configs/starflow_v_actions.yaml (episodes).
        overrides: section.key=value, such as train.steps=100.
        data: folder of episodes; or of clips and pictures, with captions in .txt files of their names.
        out: folder for the checkpoint, metrics.jsonl and curves.png.
        valid: folder of held-out episodes.
        resume: go on with an interrupted run in `out`.
        init: checkpoint folder or name of a shipped world to start from; or a folder that convert wrote.
    """
    from starflow_world.config.train import load_recipe, recipe_values, video_recipe
    from starflow_world.errors import ConfigError
    from starflow_world.training.distributed import joined

    values = recipe_values(config, overrides)
    with joined(os.environ) as processes:
        if "video" in values:
            from starflow_world.training.video import train_video

            if valid is not None:
                raise ConfigError(f"valid: expected none for a video model, found {valid}")
            train_video(video_recipe(values), data, out, resume=resume, init=init, processes=processes)
        else:
            from starflow_world.training.world import train as run
            from starflow_world.world import find_world

            start = None if init is None else find_world(init)
            command = f"starflow-world train {' '.join(sys.argv[2:])}"
            run(load_recipe(config, overrides), data, out, valid=valid, resume=resume, init=start, command=command,
                processes=processes)
    if processes.main:
        print(out)


def evaluate(
    world: tyro.conf.Positional[str] = "babyai-gotolocal", *, data: Path, outcomes: Path | None = None,
    out: Path = Path("out/evaluate"), episodes: int = 120, card: bool = False,
) -> None:
    """Measure a world on held-out episodes: excess nats, exact frames, rewards, text starts, speed, operations.

    Args:
        world: folder or name of a shipped world.
        data: episodes with a long time limit that do not end early (collect --no-end).
        outcomes: episodes that end, for rewards and ends.
        out: folder for evaluation.json and pictures.
        episodes: how many at the most.
        card: also write the figures into the checkpoint's card.json.
    """
    from starflow_world.commands.evaluate import report

    report(world, data, outcomes, out, episodes=episodes, card=card)


def check(world: tyro.conf.Positional[str] = "babyai-gotolocal", /, *, seed: int = 0) -> None:
    """Examine whether a world keeps what it promises; takes about a minute, and exits with 1 if a promise is broken.

    Args:
        world: folder or name of a shipped world.
        seed: of the actions and the noise that it is examined with.
    """
    from starflow_world.check import check_world
    from starflow_world.world import World

    report = check_world(World.load(world), seed=seed, said=lambda result: print(result, flush=True))
    print(report.summary)
    report.raise_if_broken()


def planner(
    world: tyro.conf.Positional[str] = "babyai-gotolocal", *, env: str = "BabyAI-GoToLocalS8N4-v0",
    out: Path = Path("out/planner"), method: str = "best-first", branches: int = 64, draws: int = 2, horizon: int = 12,
    rounds: int = 4, budget: int = 2048, discount: float = 0.97, actions: tuple[int, ...] = (), commit: int = 0,
    episodes: int = 50, seed: int = 100, max_steps: int = 64,
) -> None:
    """Let a planner act in a real environment, beside a random policy; an interrupted run goes on where it stopped.

    Args:
        world: folder or name of a shipped world, in which it plans.
        env: Gymnasium id of the real environment.
        out: folder for planner.json, planner.mp4 and the episodes' records.
        method: best-first, cem or random.
        branches: futures that are imagined at once.
        draws: how many of them are the same course with other noise, so that luck is not taken for a plan.
        horizon: steps that random and cem look ahead.
        rounds: how often cem draws anew around the best.
        budget: steps that a best-first search imagines at the most.
        discount: of rewards, per step.
        actions: consider these only; none: all.
        commit: steps of a plan to take before planning anew; 0: all, while what is seen agrees.
        episodes: how many.
        seed: every episode follows from it and its index.
        max_steps: time limit; 0: the environment's own.
    """
    from starflow_world.agents.planner import Planner
    from starflow_world.agents.search import Search
    from starflow_world.commands.planner import run
    from starflow_world.world import World

    search = Search(method, branches=branches, draws=draws, horizon=horizon, rounds=rounds, budget=budget,
                    discount=discount, actions=actions)
    run(Planner(World.load(world), search, commit), env, out, episodes=episodes, seed=seed, max_steps=max_steps or None)
    print(out)


def whatif(
    world: tyro.conf.Positional[str] = "babyai-gotolocal", *, episode: Path | None = None,
    env: str = "BabyAI-GoToLocalS8N4-v0", played: str = "bot", seed: int = 0, steps: int = 64, at: int = 1,
    actions: tuple[int, ...] = (), policy: str = "", out: Path = Path("out/whatif"),
) -> None:
    """Show what would have happened under other actions with the same luck, beside what did.

    Args:
        world: folder or name of a shipped world.
        episode: file of an episode that was collected; none: one is played now.
        env: Gymnasium id of the environment to play.
        played: policy that plays it.
        seed: of that episode, and of what the world draws.
        steps: its time limit.
        at: the first step to change; 1 is the first step of the episode.
        actions: taken from there on in place of as many; one alone changes one action.
        policy: in place of actions: who chooses from there on (random, best-first, cem).
        out: folder for whatif.mp4, whatif.png and whatif.json.
    """
    from starflow_world.commands.whatif import chooser, report, what_if
    from starflow_world.commands.whatif import played as play
    from starflow_world.data.episodes import read_episode
    from starflow_world.world import World

    opened = World.load(world)
    told = play(env, opened, policy=played, seed=seed, steps=steps) if episode is None else read_episode(episode)
    other = chooser(policy, opened) if policy else None
    report(what_if(opened, told, at=at, actions=actions, policy=other, seed=seed), out)


def train_agent(
    *, world: str = "babyai-gotolocal", algo: str = "ppo", text: str = "go to the red ball",
    steps: int = 65_536, dream_steps: int = 0, envs: int = 64, seeds: int = 3, starts: int = 2000, episodes: int = 200,
    chunk: int = 8192, actions: int = 3, round_trip: float = 0.0, disagreement: float = 0.0,
    out: Path = Path("out/agent"), resume: bool = False,
) -> None:
    """Train agents in the dream only, judge them in reality beside agents that learned there, and write a report.

    Args:
        world: folder or name of a shipped world, learned from BabyAI rooms.
        algo: how the agents learn; there is ppo.
        text: the mission.
        steps: of every agent.
        dream_steps: of the agents that learn in the dream; 0: as many.
        envs: episodes at a time.
        seeds: agents that learn in the dream, and as many in reality.
        starts: real first frames that episodes begin with, in both.
        episodes: real rooms, never seen in training, that agents are judged in.
        chunk: steps between two judgements; the agent is saved after each.
        actions: offer only the first so many of the world's actions, in both (3: left, right, forward; 0: all).
        round_trip: truncate a dream where this signal is above the limit (see Trust); 0: never.
        disagreement: likewise; it doubles the price of a step.
        out: folder for agents, curves.png, agent.mp4, agents.json and report.md.
        resume: go on with an interrupted run in `out`, or add steps or seeds to one.
    """
    from starflow_world.commands.train_agent import Plan
    from starflow_world.commands.train_agent import train_agent as run
    from starflow_world.envs.trust import Trust

    limits = Trust(round_trip=round_trip or None, disagreement=disagreement or None)
    plan = Plan(text, steps=steps, dream_steps=dream_steps, envs=envs, seeds=seeds, starts=starts, episodes=episodes,
                chunk=chunk, actions=actions)
    print(run(world, out, plan, algo=algo, trust=limits if limits.limits else None, resume=resume))


def rank(
    world: tyro.conf.Positional[str] = "babyai-gotolocal", *, text: str = "go to the red ball",
    agents: Path | None = None, episodes: int = 100, out: Path = Path("out/rank"),
) -> None:
    """Let policies of different quality play in the dream and in reality: are they ranked alike?

    Args:
        world: folder or name of a shipped world, learned from BabyAI rooms.
        text: the mission.
        agents: folder of train-agent, whose agents are ranked as well.
        episodes: of each policy, in both.
        out: folder for rank.json and rank.md.
    """
    from starflow_world.commands.rank import rank as run

    print(run(world, out, text, agents=agents, episodes=episodes))


def info(world: tyro.conf.Positional[str] = "babyai-gotolocal", /) -> None:
    """Print what a world is and how good it was measured to be.

    Args:
        world: folder or name of a shipped world.
    """
    from starflow_world.io.files import is_file
    from starflow_world.model.checkpoint import CARD, CONFIG, read_json
    from starflow_world.model.video_checkpoint import CONFIG as CONVERTED
    from starflow_world.world import find_world

    folder = find_world(world)
    for name in (CONVERTED,) if is_file(folder / CONVERTED) else (CONFIG, CARD):
        print(f"{folder / name}\n")
        for key, value in read_json(folder / name).items():
            print(f"  {key}: {value}")
        print()


VERBS: dict[str, Callable[..., Any]] = {
    "demo": demo, "collect": collect, "rollout": rollout, "train": train, "evaluate": evaluate, "check": check,
    "bench": Bench, "convert": convert, "generate": generate, "plan": plan, "planner": planner, "whatif": whatif,
    "train-agent": train_agent, "rank": rank, "calibrate": calibrate, "score": ScoreRecordings,
    "info": info, "anomaly-bench": AnomalyBench,
}


def main(arguments: list[str] | None = None) -> None:
    """Run a verb."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        settings = tyro.extras.subcommand_cli_from_dict(VERBS, prog="starflow-world", args=words)
        if settings is not None:
            settings.run()
    except StarflowError as error:
        if debug:
            raise
        print(f"starflow-world: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("starflow-world: interrupted; what was saved is whole", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
