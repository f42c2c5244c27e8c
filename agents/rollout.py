"""Collecting: policy x Gymnasium env -> folder of episodes, each following from (seed, index) alone.

Resumable: an episode that is there and whole is not played again; an interrupted run, run again, ends in the same
bytes as one that was not interrupted. `collection.json` says how the folder came to be.
"""

import json
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import Any

import cv2
import gymnasium
import numpy as np
from gymnasium import spaces
from tqdm import tqdm

from starflow_world.agents.policy import NoEnd, Policy
from starflow_world.conditioning import space_to_json
from starflow_world.data import Episode, episode_path, read_episode, write_episode
from starflow_world.errors import ConfigError, DataError
from starflow_world.files import remove_leftovers, write_text

REWARDS: dict[str, Callable[[float], float]] = {"event": lambda reward: float(reward > 0), "raw": float}
PACKAGES = ("gymnasium", "minigrid", "numpy", "h5py", "opencv-python-headless")
NO_END_STEPS = 64


def collect(env_id: str, out: Path | str, *, episodes: int, policy: Policy, seed: int,
            env_kwargs: dict[str, Any] | None = None, max_steps: int | None = None, reward: str = "event",
            frame_size: int = 64, ends: bool = True, progress: bool = True) -> Path:
    """Play `episodes` episodes of a Gymnasium env into `out`, and return that folder.

    reward "event" stores 1 where the env's reward is positive and else 0, "raw" stores it as it is. `max_steps` is
    the time limit (else the env's own). With ends=False actions that would terminate are drawn again and each
    episode runs to its time limit (default 64 steps). Frames are what the env renders, frame_size x frame_size.
    Raises DataError when `out` holds a collection of another recipe, or the env renders no RGB frames.
    """
    if reward not in REWARDS or episodes < 1 or seed < 0 or frame_size < 1:
        raise ConfigError(f"expected reward of {sorted(REWARDS)}, episodes and frame_size >= 1 and seed >= 0, found "
                          f"{reward!r}, {episodes}, {frame_size}, {seed}")
    out, max_steps = Path(out), max_steps if ends or max_steps else NO_END_STEPS
    policy = policy if ends else NoEnd(policy)
    recipe = {"env": env_id, "env_kwargs": env_kwargs or {}, "policy": repr(policy), "seed": seed,
              "max_steps": max_steps, "reward": reward, "frame_size": frame_size}
    _record(out, recipe, episodes)
    env = make_env(env_id, env_kwargs=env_kwargs, max_steps=max_steps, frame_size=frame_size)
    try:
        for index in tqdm(range(episodes), desc=env_id, unit="episode", disable=not progress):
            path = episode_path(out, index)
            if not _whole(path):
                episode = play(env, policy, seed=seed, index=index, reward=reward, frame_size=frame_size)
                write_episode(path, episode)
    finally:
        env.close()
    return out


def make_env(env_id: str, *, env_kwargs: dict[str, Any] | None = None, max_steps: int | None = None,
             frame_size: int = 64) -> gymnasium.Env:
    """The env, rendering RGB; a MiniGrid is drawn without highlight in tiles that fill frame_size."""
    kwargs = dict(env_kwargs or {})
    if env_id.startswith(("MiniGrid-", "BabyAI-")):
        import minigrid  # noqa: F401  (registers its environments)

        if max_steps is not None:
            kwargs.setdefault("max_steps", max_steps)
    kwargs |= {"render_mode": "rgb_array", "disable_env_checker": True, "max_episode_steps": max_steps}
    env = gymnasium.make(env_id, **kwargs)
    world: Any = env.unwrapped
    if hasattr(world, "tile_size") and hasattr(world, "highlight"):
        world.tile_size = kwargs.get("tile_size", max(1, frame_size // max(world.width, world.height)))
        world.highlight = kwargs.get("highlight", False)
    return env


def seeds(seed: int, index: int) -> tuple[int, int]:
    """Seeds of the env and of the policy for episode `index`: independent of each other and of other episodes."""
    env_seed, policy_seed = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(2)
    return int(env_seed) % 2**31, int(policy_seed) % 2**31


def play(env: gymnasium.Env, policy: Policy, *, seed: int, index: int, reward: str = "event",
         frame_size: int = 64) -> Episode:
    """Play one episode to its end. The same env, policy settings, seed and index give the same episode."""
    env_seed, policy_seed = seeds(seed, index)
    with redirect_stdout(StringIO()):  # BabyAI prints its rejected samples
        observation, _ = env.reset(seed=env_seed)
    policy.reset(policy_seed, env)
    text = _text(env, observation)
    frames, carried = [_frame(env, frame_size)], [_carrying(env)]
    actions: list[np.ndarray] = [np.zeros(spaces.flatdim(env.action_space), np.float32)]
    rewards, terminated, truncated = [0.0], False, False
    while not (terminated or truncated):
        action = policy(observation)
        observation, gain, terminated, truncated, _ = env.step(action)
        frames.append(_frame(env, frame_size))
        carried.append(_carrying(env))
        actions.append(np.asarray(spaces.flatten(env.action_space, action), np.float32))
        rewards.append(REWARDS[reward](float(gain)))
    info: dict[str, Any] = {"seed": seed, "index": index, "env_seed": env_seed, "policy": policy.name}
    if hasattr(env.unwrapped, "carrying"):
        info["carrying"] = carried
    last = np.arange(1, len(frames) + 1) == len(frames)
    return Episode(np.stack(frames), np.stack(actions), np.array(rewards, np.float32), terminated=last & terminated,
                   truncated=last & truncated, text=text, space=space_to_json(env.action_space), info=info)


def _frame(env: gymnasium.Env, size: int) -> np.ndarray:
    """What the env shows now, (size, size, 3) uint8."""
    frame = env.render()
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise DataError(f"{env}: expected (H, W, 3) uint8 from render(), found {getattr(frame, 'shape', frame)}; "
                        'choose an env that supports render_mode="rgb_array"')
    return frame if frame.shape[:2] == (size, size) else cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA)


def _text(env: gymnasium.Env, observation: Any) -> str:
    """The task in words, where the env gives it."""
    mission = observation.get("mission") if isinstance(observation, dict) else None
    return str(mission if mission is not None else getattr(env.unwrapped, "mission", ""))


def _carrying(env: gymnasium.Env) -> str | None:
    """Colour and type of what the agent of a MiniGrid carries: no frame shows it."""
    carried = getattr(env.unwrapped, "carrying", None)
    return None if carried is None else f"{carried.color} {carried.type}"


def _whole(path: Path) -> bool:
    """Whether a good episode is there already."""
    if not path.exists():
        return False
    try:
        read_episode(path)
    except DataError:
        return False
    return True


def _record(out: Path, recipe: dict[str, Any], episodes: int) -> None:
    """Write collection.json, unless the folder belongs to another recipe."""
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    path = out / "collection.json"
    recipe = json.loads(json.dumps(recipe))
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["recipe"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: expected the record of a collection, found {error}; use a new folder") from error
        if found != recipe:
            raise DataError(f"{path}: expected the recipe {recipe}, found {found}; use a new folder")
    write_text(path, json.dumps({"recipe": recipe, "episodes": episodes, "packages": _versions()}, indent=1))


def _versions() -> dict[str, str]:
    """Versions of the packages that episodes depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
