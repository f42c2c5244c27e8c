"""The command line: dispatches, and turns errors into one line. Exit 0: done, 1: a StarflowError, 2: wrong usage."""

import sys
from collections.abc import Callable
from pathlib import Path

import tyro

from .errors import StarflowError


def demo(out: Path = Path("out/demo"), /, *, steps: int = 64, seed: int = 100_003) -> None:
    """Play the shipped world beside the real environment; write a video and a contact sheet.

    Args:
        out: folder for demo.mp4 and demo.png.
        steps: steps before the expert bot finishes the mission.
        seed: of the environment and the policy.
    """
    from .demo import demo as run

    run(out, steps=steps, seed=seed)


def collect(
    *, env: str, out: Path, episodes: int = 1000, policy: str = "mixed", seed: int = 0, max_steps: int = 0,
    frame_size: int = 64, reward: str = "event", no_end: bool = False,
) -> None:
    """Play a real Gymnasium environment into a folder of episodes; an interrupted run goes on where it stopped.

    Args:
        env: Gymnasium id of an environment that renders RGB.
        out: folder for the episodes.
        episodes: how many.
        policy: random, bot, tinker or mixed (bot, tinker and mixed are for BabyAI).
        seed: every episode follows from it and its index.
        max_steps: time limit; 0: the environment's own.
        frame_size: pixels of the square frames.
        reward: event (1 where the reward is positive) or raw.
        no_end: draw actions that would end an episode again (for open-loop evaluation).
    """
    from starflow_world.agents.policy import make_policy
    from starflow_world.agents.rollout import collect as run

    run(env, out, episodes=episodes, policy=make_policy(policy), seed=seed, max_steps=max_steps or None,
        frame_size=frame_size, reward=reward, ends=not no_end)
    print(out)


def train(
    config: tyro.conf.Positional[Path], overrides: tyro.conf.Positional[tuple[str, ...]] = (), *, data: Path, out: Path,
    valid: Path | None = None, resume: bool = False, init: Path | None = None,
) -> None:
    """Train a world on collected episodes.

    Args:
        config: recipe, such as configs/babyai.yaml.
        overrides: section.key=value, such as train.steps=100.
        data: folder of episodes.
        out: folder for the checkpoint, metrics.jsonl and curves.png.
        valid: folder of held-out episodes.
        resume: go on with an interrupted run in `out`.
        init: checkpoint folder or name of a shipped world to start from.
    """
    from .recipe import load_recipe
    from .training import train as run
    from .world import find_world

    start = None if init is None else find_world(init)
    command = f"starflow-world train {' '.join(sys.argv[2:])}"
    run(load_recipe(config, overrides), data, out, valid=valid, resume=resume, init=start, command=command)
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
    from .report import report

    report(world, data, outcomes, out, episodes=episodes, card=card)


def check(world: tyro.conf.Positional[str] = "babyai-gotolocal", /, *, seed: int = 0) -> None:
    """Examine whether a world keeps what it promises; takes about a minute, and exits with 1 if a promise is broken.

    Args:
        world: folder or name of a shipped world.
        seed: of the actions and the noise that it is examined with.
    """
    from .check import check_world
    from .world import World

    report = check_world(World.load(world), seed=seed, said=lambda result: print(result, flush=True))
    print(report.summary)
    report.raise_if_broken()


def bench(
    world: tyro.conf.Positional[str] = "babyai-gotolocal", *, out: Path = Path("out/bench"),
    envs: tuple[int, ...] = (1, 4, 16, 64, 256), repeats: int = 3, steps: int = 2000, full: bool = False,
    profile: bool = False,
) -> None:
    """Measure how fast a world is, beside decoding as STARFlow-V was published, in minutes; keep the machine quiet.

    Args:
        world: folder or name of a shipped world.
        out: folder for bench.json, bench.md and bench.png.
        envs: numbers of envs.
        repeats: how often each decoder has its turn; medians are taken.
        steps: steps of the long run that watches memory.
        full: make that 10,000 steps.
        profile: only print where a step's time goes.
    """
    from .bench import Plan
    from .bench import bench as run

    run(world, out, Plan(envs, repeats, 10_000 if full else steps), profile=profile)


def convert(checkpoint: tyro.conf.Positional[Path], *, out: Path, head_width: int = 64, text_length: int = 256,
            position_scale: float = 32.0) -> None:
    """Read a published STARFlow-V state dict (.pth) and write the flow as safetensors.

    Args:
        checkpoint: the .pth or .safetensors file.
        out: folder for flow.safetensors and flow.json.
        head_width: width of an attention head.
        text_length: text tokens the model was trained with.
        position_scale: pt_seq_len of the model.
    """
    from .convert import convert as run

    run(checkpoint, out, head_width=head_width, text_length=text_length, position_scale=position_scale)
    print(out)


def info(world: tyro.conf.Positional[str] = "babyai-gotolocal", /) -> None:
    """Print what a world is and how good it was measured to be.

    Args:
        world: folder or name of a shipped world.
    """
    from .checkpoint import CARD, CONFIG, read_json
    from .world import find_world

    folder = find_world(world)
    for name in (CONFIG, CARD):
        print(f"{folder / name}\n")
        for key, value in read_json(folder / name).items():
            print(f"  {key}: {value}")
        print()


VERBS: dict[str, Callable[..., None]] = {
    "demo": demo, "collect": collect, "train": train, "evaluate": evaluate, "check": check, "bench": bench,
    "convert": convert, "info": info,
}


def main(arguments: list[str] | None = None) -> None:
    """Run a verb."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        tyro.extras.subcommand_cli_from_dict(VERBS, prog="starflow-world", args=words)
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
