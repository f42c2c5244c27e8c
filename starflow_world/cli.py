"""The command line: `starflow-world VERB`. Exit code 0: done, 1: an error of ours in one line, 2: wrong usage.

Each verb has a module or folder of its name in commands/ with a frozen dataclass: its fields are the flags, its method
`run` does the work. Only the module of the verb that was asked for is imported.
"""

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import tyro

from starflow_world import __version__
from starflow_world.commands.flags import REGISTRY, missing_extra
from starflow_world.errors import StarflowError

VERBS = {  # where the settings of each verb are
    "demo": "demo.Demo", "doctor": "doctor.Doctor", "info": "info.Info", "new": "new.New",
    "collect": "collect.Collect", "data": "data.Data", "rollout": "rollout.Rollout", "train": "train.TrainWorld",
    "make": "make.MakeWorld", "play": "play.Play",
    "evaluate": "evaluate.Evaluate", "compare": "compare.Compare", "check": "check.CheckWorld", "bench": "bench.Bench",
    "planner": "planner.RunPlanner", "whatif": "whatif.WhatIf",
    "train-agent": "train_agent.TrainAgent", "rank": "rank.RankPolicies", "calibrate": "calibrate.Calibrate",
    "score": "score.ScoreRecordings", "anomaly-bench": "anomaly.AnomalyBench", "convert": "convert.Convert",
    "generate": "generate.Generate", "plan": "plan.PlanVideo",
}
ABOUT = "A learned world model. --version prints the version; --debug shows the traceback of an error."


def environment() -> Mapping[str, str]:
    """Return the environment variables; nothing else reads them."""
    return os.environ


def settings_class(verb: str) -> type[Any]:
    """Import the settings dataclass of a verb."""
    module, name = VERBS[verb].split(".")
    return getattr(import_module(f"starflow_world.commands.{module}"), name)


def main(arguments: list[str] | None = None) -> None:
    """Run the verb that the arguments name (default: those of the process)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words == ["--version"]:
        print(f"starflow-world {__version__}")
        return
    verbs = words[:1] if words[:1] and words[0] in VERBS else list(VERBS)
    try:
        tyro.extras.subcommand_cli_from_dict(
            {verb: settings_class(verb) for verb in verbs}, prog="starflow-world", description=ABOUT, args=words,
            config=(tyro.conf.FlagCreatePairsOff,), registry=REGISTRY,
        ).run()
        sys.stdout.flush()
    except (StarflowError, ModuleNotFoundError) as error:
        if debug or not (said := str(error) if isinstance(error, StarflowError) else missing_extra(error)):
            raise
        print(f"starflow-world: {said}", file=sys.stderr)
        raise SystemExit(1) from None
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit raises again
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("starflow-world: interrupted; what was saved is whole", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
