"""What would have happened: a real trajectory beside the same trajectory, with the same luck, under other actions."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from starflow_world.agents.collect import play
from starflow_world.agents.environment import make_env
from starflow_world.agents.planner import Planner
from starflow_world.agents.policy import Policy, RandomPolicy
from starflow_world.agents.registry import make_policy
from starflow_world.agents.search import METHODS, Search
from starflow_world.data.episodes import Episode, flat_actions
from starflow_world.envs.world_env import WorldEnv
from starflow_world.errors import ConfigError, DataError
from starflow_world.io.files import write_text
from starflow_world.io.media import VideoWriter, compared, contact_sheet, write_png
from starflow_world.world import World
from starflow_world.world.counterfactual import Fidelity, Steps, Traced, fidelity, replay, trace
from starflow_world.world.state import WorldState

FPS, SHOWN = 4, 16


@dataclass(frozen=True)
class WhatIf:
    """An episode, its steps imagined again under the actions that were taken (`again`) and under others (`other`), one
    row each, and how well the first gives back what happened: in latents and decoded frames (`fidelity`), and the share
    of pixels of the real frames themselves within one grey level (`real_pixels`)."""

    episode: Episode
    again: Steps
    other: Steps
    fidelity: Fidelity
    real_pixels: float

    @property
    def over(self) -> int:
        """The step (from 1) at which the imagined episode would have ended; one past the last if it would not."""
        ends = (self.other.end_probability[0] >= 0.5).nonzero()[:, 0]
        return int(ends[0]) + 1 if len(ends) else self.other.end_probability.shape[1] + 1


def what_if(
    world: World, episode: Episode, *, at: int = 1, actions: Sequence[Any] = (), policy: Policy | None = None,
    seed: int = 0,
) -> WhatIf:
    """Replay an episode with its own noise, but from step `at` (1: the first) with other actions.

    actions: take the place of as many that were taken; behind them the old ones go on. policy: chooses from step `at`
    to the end, in a WorldEnv. ActionError, ConfigError or DataError for what does not fit.
    """
    last = len(episode) - 1
    if (len(actions) == 0) == (policy is None):
        raise ConfigError("what if: expected other actions or a policy, found both or neither")
    if not 1 <= at <= last or at + len(actions) - 1 > last:
        raise ConfigError(f"at: expected steps {at} to {at + max(len(actions), 1) - 1} among the episode's 1 to {last}")
    if episode.space != world.config.action_space:
        raise DataError(f"episode: expected actions of {world.config.action_space}, found {episode.space}")
    flat = flat_actions(episode).to(world.dynamics.dtype)
    traced = trace(world, episode.frames, flat, text=episode.text, seed=seed)
    changed = flat.clone()
    if len(actions):
        changed[at : at + len(actions)] = world.flatten(list(actions)).cpu()
    choose = _pairs(flat, changed)
    if policy is not None:
        choose = _with_policy(world, traced, flat, at, policy, seed)
    both = replay(world, traced, choose, rows=2)
    again, other = _row(both, 0), _row(both, 1)
    apart = again.frames[0].cpu().int() - torch.from_numpy(episode.frames[1:]).int()
    return WhatIf(episode, again, other, fidelity(world, traced.steps, again), float((apart.abs() <= 1).float().mean()))


def _pairs(flat: Tensor, changed: Tensor) -> Callable[[int, WorldState], Tensor]:
    return lambda t, _: torch.stack((flat[t + 1], changed[t + 1]))


def _with_policy(
    world: World, traced: Traced, flat: Tensor, at: int, policy: Policy, seed: int
) -> Callable[[int, WorldState], Tensor]:
    """The policy sees the second row through an env that is set to it before every step."""
    env = WorldEnv(world, render_mode="rgb_array")
    env.reset(options={"state": traced.start})

    def choose(t: int, state: WorldState) -> Tensor:
        if t + 1 < at:
            return flat[t + 1].expand(2, -1)
        env.set_state(state[1])
        if t + 1 == at:
            policy.reset(seed, env)
        return torch.stack((flat[t + 1], world.flatten([policy(env.render())])[0].cpu()))

    return choose


def _row(steps: Steps, row: int) -> Steps:
    return Steps(**{name: getattr(steps, name)[row : row + 1] for name in Steps.__dataclass_fields__})


# ---- the verb --------------------------------------------------------------------------------------------------------


def played(env_id: str, world: World, *, policy: str, seed: int, steps: int) -> Episode:
    """An episode of a real env, of at most `steps` steps."""
    env = make_env(env_id, max_steps=steps, frame_size=world.config.height)
    try:
        return play(env, make_policy(policy), seed=seed, index=0, frame_size=world.config.height)
    finally:
        env.close()


def chooser(name: str, world: World) -> Policy:
    """A policy that can act in an imagined env: random, or a planner by its method."""
    if name == "random":
        return RandomPolicy()
    if name in METHODS:
        return Planner(world, Search(name))
    raise ConfigError(f"policy: expected one of {', '.join(METHODS)}, found {name!r:.60}")


def report(found: WhatIf, out: Path) -> None:
    """Write whatif.mp4, whatif.png and whatif.json to `out`, and print what differs."""
    episode, pictures = found.episode, []
    with VideoWriter(out / "whatif.mp4", fps=FPS) as video:
        for t in tqdm(range(len(episode)), desc="video", unit="frame", leave=False):
            pictures.append(_picture(found, t))
            video.add(pictures[-1])
    write_png(out / "whatif.png", contact_sheet(pictures[:: -(-len(pictures) // SHOWN)], columns=4))
    write_text(out / "whatif.json", json.dumps(_facts(found), indent=1))
    for line in _summary(found):
        print(line)
    print(f"\nvideo   {out / 'whatif.mp4'}\nsheet   {out / 'whatif.png'}\nfigures {out / 'whatif.json'}")


def _picture(found: WhatIf, t: int) -> np.ndarray:
    """Frame t (0: the one both begin from) of both courses."""
    episode, shown = found.episode, min(t, found.over)
    real, lines = episode.frames[t], [episode.text, f"{t:>3}  start", ""]
    other = real if t == 0 else found.other.frames[0, shown - 1].cpu().numpy()
    if t > 0:
        taken, chosen = _action(found.again, episode, t), _action(found.other, episode, t)
        reward = float(found.other.reward[0, t - 1])
        lines[1] = f"{t:>3}  took {taken}, reward {episode.rewards[t]:g}"
        lines[2] = f"     what if {chosen}, reward {reward:.2f}" if t <= found.over else "     what if: over"
    return compared({"what happened": real, "what would have": other}, lines)


def _action(steps: Steps, episode: Episode, t: int) -> str:
    """Action of step t as it is written in the video and the file."""
    flat = steps.actions[0, t - 1, 1:].cpu().numpy()
    kind = json.loads(episode.space)
    if kind.get("type") == "Discrete":
        return str(int(flat.argmax()) + int(kind.get("start", 0)))
    return " ".join(f"{number:.2f}" for number in flat)


def _facts(found: WhatIf) -> dict[str, Any]:
    steps = range(1, len(found.episode))

    def numbers(values: Tensor) -> list[float | None]:
        return [float(value) if torch.isfinite(value) else None for value in values[0].cpu()]

    return {
        "mission": found.episode.text, "episode": found.episode.info,
        "took": [_action(found.again, found.episode, t) for t in steps],
        "what_if": [_action(found.other, found.episode, t) for t in steps],
        "reward": found.episode.rewards[1:].tolist(), "reward_again": numbers(found.again.reward),
        "reward_what_if": numbers(found.other.reward), "end_what_if": numbers(found.other.end_probability),
        "nats_again": numbers(found.again.nats), "nats_what_if": numbers(found.other.nats),
        "fidelity": {"latents": found.fidelity.latents, "pixels": found.fidelity.pixels, "real": found.real_pixels},
    }


def _summary(found: WhatIf) -> list[str]:
    facts = _facts(found)
    differ = [t for t, pair in enumerate(zip(facts["took"], facts["what_if"], strict=True), 1) if pair[0] != pair[1]]
    over = f"would have ended at step {found.over}" if found.over < len(found.episode) else "would have gone on"
    rewards = found.other.reward[0, : found.over]
    return [
        f"mission: {found.episode.text}" if found.episode.text else "an episode without words",
        f"other actions at {len(differ)} of {len(found.episode) - 1} steps, first at {differ[0] if differ else '-'}",
        f"reward {found.episode.rewards.sum():g}; what if {float(rewards.sum()):.2f}, and the episode {over}",
        f"with the actions that were taken: latents within {found.fidelity.latents:.1g} of the noise level, "
        f"{100 * found.real_pixels:.2f} % of the pixels within one grey level of the real frames",
    ]
