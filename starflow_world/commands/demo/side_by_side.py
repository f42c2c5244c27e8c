"""The shipped world beside the real environment, with the same actions and the same first frame."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium
import numpy as np
from tqdm import tqdm

from starflow_world.agents.babyai.bot import BotPolicy, MixedPolicy
from starflow_world.agents.environment import make_env
from starflow_world.agents.policy import NoEnd
from starflow_world.config.world import DecodeConfig
from starflow_world.envs.world_env import WorldEnv
from starflow_world.evaluation.fidelity import cells_right
from starflow_world.io.media import VideoWriter, compared, contact_sheet, write_png

REAL, LEARNED = "BabyAI-GoToLocalS8N4-v0", "StarflowWorld/BabyAI-GoToLocal-v0"
ACTIONS = ("turn left", "turn right", "forward", "pick up", "drop", "toggle", "done")


@dataclass
class Tally:
    """Counts for the summary: steps, exact frames, steps with equal rewards, seconds spent in the world."""

    steps: int = 0
    exact: int = 0
    rewards: int = 0
    seconds: float = 0.0


def play_demo(out: Path, *, steps: int, seed: int) -> Path:
    """Play `steps` steps without reaching the goal, then let the expert bot finish; write demo.mp4 and demo.png."""
    real = make_env(REAL, max_steps=4 * steps)
    observation, _ = real.reset(seed=seed)
    policy, finish = NoEnd(MixedPolicy()), BotPolicy()
    policy.reset(seed, real)
    mission, frame = str(observation["mission"]), np.asarray(real.render())
    learned = gymnasium.make(LEARNED, max_episode_steps=4 * steps)
    imagined, _ = learned.reset(seed=seed, options={"frames": frame, "text": mission})
    print(f"mission: {mission}\n")
    print("step  action      reward  imagined  nats/dim  sweeps  steps/s  frame")
    tally, pictures = Tally(), [_picture(frame, imagined, mission, "start", 0)]
    with VideoWriter(out / "demo.mp4", fps=6) as video:
        video.add(pictures[0])
        ended = False
        while not ended and tally.steps < 2 * steps:
            if tally.steps == steps:
                finish.reset(seed, real)
            action = int((policy if tally.steps < steps else finish)(observation))
            observation, reward, ended, _, _ = real.step(action)
            frame, begin = np.asarray(real.render()), time.perf_counter()
            imagined, guess, over, _, info = learned.step(action)
            seconds = time.perf_counter() - begin
            tally = _print_step(tally, learned, action, float(reward), float(guess), frame, imagined, info, seconds)
            pictures.append(_picture(frame, imagined, mission, ACTIONS[action], tally.steps))
            video.add(pictures[-1])
            if over and not ended:
                print("      the learned world ended, the real one did not: going on from the real frame")
                learned.reset(options={"frames": frame, "text": mission})
    write_png(out / "demo.png", contact_sheet(pictures[:: max(1, len(pictures) // 15)][:16], columns=4))
    _summary(tally, learned, out)
    return out


def _print_step(
    tally: Tally, learned: gymnasium.Env, action: int, reward: float, guess: float, frame: np.ndarray,
    imagined: np.ndarray, info: dict[str, float], seconds: float,
) -> Tally:
    exact = bool(cells_right(_world_env(learned).world, imagined, frame).all())
    tally = Tally(
        tally.steps + 1, tally.exact + exact, tally.rewards + ((reward > 0) == (guess > 0.5)),
        tally.seconds + seconds,
    )
    print(
        f"{tally.steps:>4}  {ACTIONS[action]:<10}  {float(reward > 0):>6.0f}  {guess:>z8.2f}"
        f"  {info['nats_per_dim']:>8.3f}  {info['sweeps']:>6}"
        f"  {tally.steps / tally.seconds:>7.1f}  {'exact' if exact else 'differs'}",
        flush=True,
    )
    return tally


def _picture(real: np.ndarray, imagined: np.ndarray, mission: str, action: str, step: int) -> np.ndarray:
    return compared({"real": real, "imagined": imagined}, [f"{step:>3}  {action}", mission])


def _world_env(env: gymnasium.Env) -> WorldEnv:
    unwrapped = env.unwrapped
    assert isinstance(unwrapped, WorldEnv)
    return unwrapped


def _summary(tally: Tally, learned: gymnasium.Env, out: Path) -> None:
    jacobi, sequential = speeds(_world_env(learned))
    print(
        f"\n{tally.exact} of {tally.steps} imagined frames are exactly right"
        f" ({100 * tally.exact / tally.steps:.1f} %), open loop from one real frame"
        f"\nreward agrees in {tally.rewards} of {tally.steps} steps"
        f"\nJacobi decoding {jacobi:.1f} steps/s, sequential {sequential:.1f} steps/s: {jacobi / sequential:.1f} x"
        f"\n\nvideo   {out / 'demo.mp4'}\nsheet   {out / 'demo.png'}"
    )


def speeds(env: WorldEnv, steps: int = 16) -> tuple[float, float]:
    """Return steps per second of one row with Jacobi and with sequential decoding, measured alternately."""
    worlds = (env.world, env.world.decoded(replace(DecodeConfig(), chunk=1)))
    state, spent = env.get_state(), [0.0, 0.0]
    for index in tqdm(range(2 * steps + 2), desc="Jacobi against sequential", leave=False):
        which, begin = index % 2, time.perf_counter()
        state, _ = worlds[which].step(state, [2])
        if index > 1:
            spent[which] += time.perf_counter() - begin
    return steps / spent[0], steps / spent[1]
