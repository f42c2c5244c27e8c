"""Rollouts of minutes: one stream of imagined steps, written as it goes as episodes that continue each other.

    episode-000000.h5 ...     at most FILE_STEPS steps; one that goes on begins with the last frame of the one before
    state-000007.safetensors  the state that the next file begins with, if the last one goes on
    rollout.mp4               every frame once, in fragments
    speed.jsonl               processor seconds and memory of each file

A file follows from the recipe, its index and that state, which is saved before the file before it gets its name. A run
that is killed and run again therefore goes on from the last whole file, to the same bytes. Episodes, policies and noise
know nothing of files, but that a policy is reset at the beginning of each.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tqdm import tqdm

from starflow_world.agents.collect import seeds, threads_of
from starflow_world.agents.policy import Policy, RandomPolicy, check_policy, policy_record
from starflow_world.agents.stream_env import Listed, StreamEnv, listed_actions
from starflow_world.config.prompts import Prompts, check_times, prompt_at
from starflow_world.data.dataset import COLLECTION, installed_versions
from starflow_world.data.episodes import Episode, episode_path, read_episode, write_episode
from starflow_world.envs.episode import EnvState
from starflow_world.errors import ConfigError
from starflow_world.io.files import claim, write_text
from starflow_world.io.media import GrowingVideo, enlarge
from starflow_world.io.memory import resident
from starflow_world.world import World, find_world
from starflow_world.world.state import WorldState

FILE_STEPS, FILE_BYTES = 500, 1 << 26
"""Most steps of a file, and most bytes of its frames, which are held in memory."""
VIDEO, SPEED = "rollout.mp4", "speed.jsonl"
VIDEO_SIDE = 256
"""Pixels to which small frames are enlarged in the video."""
PART = 1000
"""Steps over which speed is measured."""
TRIES = 8
"""Actions that are tried in place of one that would end the episode."""
Film = GrowingVideo | None


def long_rollout(
    world: Path | str, out: Path | str, *, steps: int, policy: Policy | None = None, actions: Path | None = None,
    seed: int = 0, prompts: Prompts | None = None, max_steps: int | None = None, ends: bool = True, video: bool = False,
    threads: int = 1, progress: bool = True,
) -> Path:
    """Imagine one stream of `steps` steps in a world (its folder or name) into `out`, and return that folder.

    policy (None: random), or `actions`: a file of actions; steps 0: all of them. prompts: texts and the steps from
    which they hold; None: any of the start set. Where the world says that the episode ends, or after
    max_steps, the next start follows; with ends=False actions that would end it are drawn again, and an end that cannot
    be avoided is ignored. video: also write rollout.mp4. Memory does not grow with `steps`. Raises ConfigError,
    ActionError or DataError before anything is written, and DataError if `out` holds another recipe.
    """
    out, folder = Path(out), find_world(world).resolve()
    env = StreamEnv(World.load(folder, device="cuda" if torch.cuda.is_available() else "cpu"), render_mode="rgb_array")
    if actions is not None:
        if policy is not None:
            raise ConfigError("actions: expected a policy or actions, found both")
        policy = listed_actions(actions, env.world)
        steps = steps or len(policy.actions)
        if steps > len(policy.actions):
            raise ConfigError(f"steps: expected at most {len(policy.actions)}, as there are actions, found {steps}")
    if steps < 1 or seed < 0 or (max_steps is not None and max_steps < 1):
        raise ConfigError(f"steps, seed, max_steps: expected steps >= 1, a seed >= 0 and a time limit >= 1 or none, "
                          f"found {steps}, {seed} and {max_steps}")
    policy = RandomPolicy() if policy is None else policy
    if prompts is not None:
        check_times(prompts, steps, "text: expected steps")
    elif env.world.starts is None:
        raise ConfigError(f"text: expected one, as world {env.world.config.name} has no start set, found none")
    for _, text in prompts or ():
        env.world.encode_text([text])
    env.max_episode_steps = math.inf if max_steps is None else max_steps
    check_policy(policy, env)
    recipe = {
        "world": env.world.world_id, "steps": steps, "prompts": prompts, "seed": seed, "max_steps": max_steps,
        "ends": ends, "device": env.world.dynamics.device.type, "threads": threads, "policy": policy_record(policy),
    }
    packages = installed_versions(("gymnasium", "numpy", "h5py", "torch"))
    claim(out / COLLECTION, {"recipe": recipe, "packages": packages}, key="recipe")
    stream = Stream(env, policy, out, steps, seed, prompts, ends)
    film = GrowingVideo(out / VIDEO, env.metadata["render_fps"]) if video else nullcontext()
    with threads_of(threads), film as shown:
        stream.run(shown, progress)
    return out


def stream_files(out: Path | str) -> Iterator[Episode]:
    """Yield the episodes of a stream in their order."""
    index = 0
    while (path := episode_path(out, index)).exists():
        yield read_episode(path)
        index += 1


@dataclass
class Stream:
    """A stream of `steps` steps in an env, written into the folder `out`."""

    env: StreamEnv
    policy: Policy
    out: Path
    steps: int
    seed: int
    prompts: Prompts | None
    ends: bool

    def __post_init__(self) -> None:
        height, width, _ = self.env.observation_space.shape or ()
        self.limit = max(1, min(FILE_STEPS, FILE_BYTES // (3 * height * width)))
        self.buffer = Buffer(self.limit + 1, (height, width, 3), spaces.flatdim(self.env.action_space))
        self.factor = max(1, VIDEO_SIDE // max(height, width))

    def run(self, film: Film, progress: bool) -> None:
        """Play what is missing, after the files that are there."""
        index, before = 0, None
        for before in stream_files(self.out):
            for frame in before.frames[int(_goes_on_from(before)):]:
                self.show(film, frame)
            index += 1
        own, lines = 0, _lines(self.out / SPEED)[:index]
        with tqdm(total=self.steps, initial=_end(before), desc=self.out.name, unit="step", disable=not progress) as bar:
            while _end(before) < self.steps:
                begin = time.process_time()
                before = self.play_file(index, before, lambda frame: self.show(film, frame))
                index, own = index + 1, own + len(before) - 1
                lines.append({"end": _end(before), "steps": len(before) - 1, "seconds": time.process_time() - begin,
                              "resident_mb": resident(), "own_steps": own})
                write_text(self.out / SPEED, "".join(json.dumps(line) + "\n" for line in lines))
                bar.update(len(before) - 1)

    def show(self, film: Film, frame: np.ndarray) -> None:
        """Add a frame to the video, if there is one."""
        if film is not None:
            film.add(enlarge(frame, self.factor))

    def play_file(self, index: int, before: Episode | None, show: Callable[[np.ndarray], None]) -> Episode:
        """Play and write the next file, after the file `before`."""
        env, buffer = self.env, self.buffer
        env.position, (env_seed, policy_seed) = _end(before), seeds(self.seed, index)
        if before is not None and before.info["goes_on"]:
            self.go_on(index, before)
            buffer.begin(before.frames[-1], {name: before.info[name][-1] for name in MEASURED})
            since = before.info["since_start"] + len(before) - 1
        else:
            text = None if self.prompts is None else prompt_at(self.prompts, env.position)
            frame, info = env.reset(seed=env_seed, options={"text": text})
            buffer.begin(frame, measured(env, info))
            since = 0
            show(frame)
        text, first = env.now.world.texts[0], env.position
        self.policy.reset(policy_seed, env)
        other = RandomPolicy()
        other.reset(policy_seed, env)
        breaks = {self.steps, *(start for start, _ in self.prompts or ())}
        terminated = truncated = False
        while not (terminated or truncated or buffer.count > self.limit):
            if buffer.count > 1 and env.position in breaks:
                break
            action, frame, reward, terminated, truncated, info = self.step(buffer.last.copy(), other)
            buffer.add(frame, spaces.flatten(env.action_space, action), reward, measured(env, info))
            env.position += 1
            show(frame)
        goes_on = not (terminated or truncated)
        facts = {"seed": self.seed, "index": index, "env_seed": env_seed, "policy": self.policy.name,
                 "first_step": first, "since_start": since, "goes_on": goes_on}
        if goes_on:
            env.now.world.save(self.state(index + 1))
        episode = buffer.episode(terminated, text, self.env.world.config.action_space, facts)
        write_episode(episode_path(self.out, index), episode)
        self.state(index).unlink(missing_ok=True)
        return episode

    def state(self, index: int) -> Path:
        """Return the file of the state that file `index` begins with."""
        return self.out / f"state-{index:06d}.safetensors"

    def go_on(self, index: int, before: Episode) -> None:
        """Restore the state that the file before ended in, with the text that holds from here on."""
        world, position = self.env.world, self.env.position
        state = WorldState.load(self.state(index), world)
        begun = state.step.numpy() - (before.info["since_start"] + len(before) - 1)
        if self.prompts is not None and state.texts[0] != (text := prompt_at(self.prompts, position)):
            state = world.with_text(state, text)
        self.env.set_state(EnvState(state, before.frames[-1:], begun, np.zeros(1, bool)))

    def step(
        self, observation: np.ndarray, other: Policy
    ) -> tuple[Any, np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one step; return its action and what the env returned."""
        env, before = self.env, self.env.now
        action = self.policy(observation)
        frame, reward, terminated, truncated, info = env.step(action)
        tries = 0 if self.ends or isinstance(self.policy, Listed) else TRIES
        while terminated and tries:
            env.set_state(before)
            action, tries = other(observation), tries - 1
            frame, reward, terminated, truncated, info = env.step(action)
        if not self.ends:
            self.policy.played(action)
            if terminated:
                env.set_state(replace(env.now, ended=np.zeros(1, bool)))
                terminated = False
        return action, frame, float(reward), terminated, truncated, info


MEASURED = ("nats", "latent_mean", "latent_variance")
"""What the info of a file says of every frame."""


def measured(env: StreamEnv, info: dict[str, Any]) -> dict[str, float]:
    """Return the values of MEASURED for the last frame."""
    latents = env.latents.astype(np.float64)
    return {"nats": info["nats"], "latent_mean": float(latents.mean()), "latent_variance": float(latents.var())}


class Buffer:
    """Memory for the frames and numbers of one file; used again for the next."""

    def __init__(self, length: int, shape: tuple[int, int, int], actions: int) -> None:
        self.frames = np.empty((length, *shape), np.uint8)
        self.actions, self.rewards = np.zeros((length, actions), np.float32), np.zeros(length, np.float32)
        self.measured: dict[str, list[float]] = {}
        self.count = 0

    @property
    def last(self) -> np.ndarray:
        """Return the last frame, not a copy."""
        return np.asarray(self.frames[self.count - 1])

    def begin(self, frame: np.ndarray, values: dict[str, float]) -> None:
        """Begin a file with its first frame."""
        self.count, self.measured = 0, {name: [] for name in MEASURED}
        self.add(frame, 0, 0.0, values)

    def add(self, frame: np.ndarray, action: Any, reward: float, values: dict[str, float]) -> None:
        """Append a frame, the flat action that led to it, its reward and the values of MEASURED."""
        place = self.count
        self.frames[place], self.actions[place], self.rewards[place] = frame, action, reward
        for name in MEASURED:
            self.measured[name].append(values[name])
        self.count += 1

    def episode(self, terminated: bool, text: str, space: str, facts: dict[str, Any]) -> Episode:
        """Return what was added as an episode, which shares this memory."""
        part, last = slice(self.count), np.arange(1, self.count + 1) == self.count
        return Episode(
            self.frames[part], self.actions[part], self.rewards[part], terminated=last & terminated,
            truncated=last & (not terminated), text=text, space=space, info=facts | self.measured,
        )


def speed_figures(out: Path | str) -> dict[str, float]:
    """Return what speed.jsonl says: steps per processor second of the first and the last 1,000 steps, their ratio, and
    the growth in MB of the resident memory of the last process after its first 1,000 steps; NaN where it is too short.
    """
    lines = _lines(Path(out) / SPEED)
    first, last = _rate(lines), _rate(lines[::-1])
    begun = [line for line in lines if line["own_steps"] == line["steps"]]
    own = lines[lines.index(begun[-1]) if begun else 0 :]
    warm = [line["resident_mb"] for line in own if line["own_steps"] >= PART]
    return {"steps_per_second_first": first, "steps_per_second_last": last, "last_over_first": last / first,
            "growth_mb": warm[-1] - warm[0] if len(warm) > 1 else math.nan}


def _rate(lines: Sequence[dict[str, Any]]) -> float:
    """Return the steps per processor second of the first lines that have PART steps together."""
    steps, seconds = 0, 0.0
    for line in lines:
        if steps < PART:
            steps, seconds = steps + line["steps"], seconds + line["seconds"]
    return steps / seconds if steps >= PART else math.nan


def _end(before: Episode | None) -> int:
    """Return the number of steps of a stream up to the end of a file."""
    return 0 if before is None else int(before.info["first_step"]) + len(before) - 1


def _goes_on_from(episode: Episode) -> bool:
    """Return whether a file begins with the last frame of the one before."""
    return bool(episode.info["since_start"])


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
