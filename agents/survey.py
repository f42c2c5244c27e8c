"""A short play of an environment, or a look at recordings, to see what a world has to learn: frames, texts, rewards,
lengths of episodes."""

import math
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from starflow_world.agents.collect import play, reward_kind
from starflow_world.agents.environment import OWN_VIEW, Environment, check_env, check_single, name_and_arguments
from starflow_world.agents.policy import CarefulPolicy, Policy, RandomPolicy, check_policy
from starflow_world.agents.registry import default_policy
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.data.episodes import DTYPES, Episode
from starflow_world.envs.observation import is_minigrid, shown
from starflow_world.errors import ConfigError, DataError
from starflow_world.model.actions import space_from_json

FRAMES, SECONDS, LEAST_EPISODES, LONGEST_EPISODE = 1500, 20.0, 4, 128
SHORT = 32
"""Frames; where most episodes terminate earlier, a careful policy is tried."""
SIDE, TILE, LOOKS = 64, 8, 48


@dataclass(frozen=True)
class Survey:
    """What a short play, or recordings, showed.

    source: the environment with its frame size and view; None for recordings. seen: its id, or the folder. cell: pixels
    of a cell, 0 where there are no cells; why: the reason for the frame size. policy: its name, "auto" for the default.
    reward: "event", or "raw" where rewards have many values or negative ones. partial: why a frame does not show all,
    "" where nothing says so. endless: whether episodes need a time limit. texts: of all episodes.
    """

    source: Environment | None
    seen: str
    cell: int
    why: str
    policy: str
    episodes: tuple[Episode, ...]
    reward: str
    partial: str
    endless: bool
    action_space: str
    texts: frozenset[str]

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of the frames."""
        return self.episodes[0].frames.shape[1:3]


def survey(source: Environment, view: str = "auto") -> Survey:
    """Play an environment for a few seconds. view: render, observation, or auto (render, if that gives frames).

    Raises ConfigError, ActionError or DataError where no world can learn from it.
    """
    source, cell, why = _seen(source, view)
    capped = replace(source, max_steps=min(source.max_steps or LONGEST_EPISODE, LONGEST_EPISODE))
    env = capped.make()
    try:
        check_env(env, source.size)
        policy, name = default_policy(env), "auto"
        episodes = _play(env, policy, source)
        if isinstance(policy, RandomPolicy) and (longer := _careful(env, episodes, source)):
            episodes, name = longer, "careful"
        lowest = min(float(episode.rewards.min()) for episode in episodes)
        reward, space = "raw" if lowest < 0 else reward_kind(env), str(env.action_space)
        registered = gymnasium.spec(source.env.rpartition(":")[2]).max_episode_steps
        limited = is_minigrid(env) or source.max_steps or registered
        partial = _partial(env, source, episodes)
    finally:
        env.close()
    endless = not limited and any(len(episode) > LONGEST_EPISODE for episode in episodes)
    texts = frozenset(episode.text for episode in episodes)
    return Survey(source, source.env, cell, why, name, tuple(episodes), reward, partial, endless, space, texts)


def survey_recordings(folder: Path) -> Survey:
    """Look at a part of some episodes of a folder. Raises DataError for a folder without episodes."""
    dataset, rng, parts = EpisodeDataset(folder), np.random.default_rng(0), list[Episode]()
    for index in rng.permutation(len(dataset)).tolist():
        if sum(map(len, parts)) >= FRAMES and len(parts) >= LEAST_EPISODES:
            break
        parts.append(_part(dataset[index], rng))
    rewards = np.concatenate([part.rewards for part in parts])
    reward = "event" if np.isin(rewards, (0.0, 1.0)).all() else "raw"
    partial, why = "a recording does not say what its frames hide", "as they were recorded"
    return Survey(None, str(folder), 0, why, "none", tuple(parts), reward, partial, False,
                  str(space_from_json(dataset.action_space_json)), frozenset(dataset.texts))


def _part(episode: Episode, rng: np.random.Generator) -> Episode:
    """Return an episode of at most LONGEST_EPISODE frames, cut out anywhere."""
    first = int(rng.integers(max(len(episode) - LONGEST_EPISODE, 0) + 1))
    arrays = {key: getattr(episode, key)[first : first + LONGEST_EPISODE] for key in DTYPES}
    return replace(episode, **arrays, info={"policy": "recorded"})


def _seen(source: Environment, view: str) -> tuple[Environment, int, str]:
    """Return the source with view and frame size, the pixels of a cell (0: none), and the reason for the size."""
    if view != "auto":
        return _sized(replace(source, view=view))
    try:
        return _sized(replace(source, view="render"))
    except (ConfigError, DataError) as error:
        try:
            return _sized(replace(source, view="observation"))
        except (ConfigError, DataError):
            raise error from None


def _sized(source: Environment) -> tuple[Environment, int, str]:
    named = [name_and_arguments(wrapper)[0] for wrapper in source.wrappers]
    if source.view == "observation" and source.env.startswith(("MiniGrid-", "BabyAI-")) and OWN_VIEW not in named:
        source = replace(source, wrappers=(*source.wrappers, (OWN_VIEW, {"tile_size": TILE})))
    env = source.make()
    try:
        check_single(env)
        world: Any = env.unwrapped
        if is_minigrid(env) and source.view == "render":
            size, why = (TILE * world.height, TILE * world.width), f"{TILE} pixels for each cell of the grid"
            return replace(source, frame_size=size), TILE, why
        frames = _frames(env)
    finally:
        env.close()
    height, width = frames.shape[1:3]
    if source.view == "observation" and is_minigrid(env):
        tile = math.gcd(height, width) // 7 or TILE  # an agent sees 7 x 7 cells
        return replace(source, frame_size=(height, width)), tile, "the agent's own view"
    scale = _scale(frames)
    size = height // scale, width // scale
    if scale > 1 and max(size) <= SIDE:
        why = f"one pixel for each block of {scale} x {scale} equal pixels, as the environment draws {height} x {width}"
        return replace(source, frame_size=size), 1, why
    if max(height, width) <= SIDE:
        cell = int(max(height, width) <= SIDE // 4)
        return replace(source, frame_size=(height, width)), cell, "as large as the environment draws them"
    return replace(source, frame_size=SIDE), 0, f"scaled from {height} x {width}"


def _frames(env: gymnasium.Env) -> np.ndarray:
    """Return frames (N, H, W, 3) of a few random steps in their own size."""
    policy, over, frames = RandomPolicy(), True, list[np.ndarray]()
    for step in range(LOOKS):
        if over:
            with redirect_stdout(StringIO()):
                observation, _ = env.reset(seed=step)
            policy.reset(step, env)
            over = False
        else:
            observation, _, terminated, truncated, _ = env.step(policy(observation))
            over = terminated or truncated
        try:
            frames.append(shown(env.render(), None))
        except (DataError, MemoryError):
            raise
        except Exception as error:  # an environment is foreign code
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ConfigError(f"env: expected one that renders RGB frames, found {said}; choose another, or learn from "
                              "its observations (--view observation)") from error
        if frames[-1].shape != frames[0].shape:
            raise DataError(f"{env}: expected frames of one size, found {frames[0].shape} and then {frames[-1].shape}; "
                            "choose a wrapper that resizes them, such as gymnasium.wrappers.ResizeObservation with "
                            "--view observation")
    return np.stack(frames)


def _scale(frames: np.ndarray) -> int:
    """Return the largest n such that frames consist of n x n blocks of equal pixels; 1 where all pixels are equal."""
    height, width = frames.shape[1:3]
    whole = 1 if (frames == frames[:1, :1, :1, :1]).all() else math.gcd(height, width)
    for scale in (n for n in range(whole, 1, -1) if whole % n == 0 and n < max(height, width)):
        blocks = frames.reshape(len(frames), height // scale, scale, width // scale, scale, 3)
        if (blocks == blocks[:, :, :1, :, :1]).all():
            return scale
    return 1


def _play(env: gymnasium.Env, policy: Policy, source: Environment) -> list[Episode]:
    episodes, begun = list[Episode](), time.process_time()  # other work on the machine does not shorten the play
    while len(episodes) < LEAST_EPISODES or (
        sum(map(len, episodes)) < FRAMES and time.process_time() - begun < SECONDS
    ):
        episodes.append(play(env, policy, seed=0, index=len(episodes), reward="raw", frame_size=source.frame_size))
    return episodes


def _careful(env: gymnasium.Env, episodes: Sequence[Episode], source: Environment) -> list[Episode]:
    """Return episodes of the careful policy if random ones are short and it doubles them, else none.

    It asks copies of the environment, and must not foresee their chance: only where that comes from `np_random`.
    """
    short = [len(e) < SHORT and bool(e.terminated[-1]) for e in episodes]
    if sum(short) <= len(short) / 2 or getattr(env.unwrapped, "_np_random", None) is None:
        return []
    policy = CarefulPolicy()
    try:
        check_policy(policy, env)
    except DataError:
        return []
    longer = _play(env, policy, source)
    return longer if np.mean([*map(len, longer)]) >= 2 * np.mean([*map(len, episodes)]) else []


def _partial(env: gymnasium.Env, source: Environment, episodes: Sequence[Episode]) -> str:
    """Return why one frame does not show the whole state, as far as the environment says."""
    if is_minigrid(env) and (source.view == "observation" or source.env_kwargs.get("agent_pov")):
        return "the agent sees a part of the grid"
    if any(any(episode.info.get("carrying", ())) for episode in episodes):
        return "no frame shows what the agent carries"
    return ""

