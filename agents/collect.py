"""Collection: policy x Gymnasium env -> folder of episodes, each determined by (seed, index) alone.

The env is a real one (`collect`) or a world (`rollout`). Resumable: complete episodes are not played again; an
interrupted run that is resumed, and a run spread over actors, give the same bytes as an uninterrupted one.
`collection.json` records the recipe of the folder.
"""

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tqdm import tqdm

from starflow_world.agents.environment import Environment, check_env, check_single, height_width
from starflow_world.agents.policy import Held, NoEnd, Policy, RandomPolicy, check_policy, policy_record
from starflow_world.agents.pool import Crew, EpisodeSpec, Pool, Receipt
from starflow_world.agents.registry import default_policy
from starflow_world.data.dataset import COLLECTION, installed_versions
from starflow_world.data.episodes import Episode, episode_path, read_episode, write_episode
from starflow_world.envs.observation import is_minigrid, mission, shown
from starflow_world.envs.world_env import WorldEnv
from starflow_world.errors import ConfigError, DataError, WorkerError
from starflow_world.io.files import claim, recorded, remove_leftovers
from starflow_world.world import World, find_world

PACKAGES = ("gymnasium", "minigrid", "MinAtar", "numpy", "h5py", "opencv-python-headless")
NO_END_STEPS = 64
MOST_STEPS = 10_000
"""Steps after which an episode in an env without a time limit raises an error."""
REWARD_STEPS = 256
"""Number of random steps that determine the kind of an environment's rewards."""


def collect(env_id: str, out: Path | str, *, episodes: int, policy: Policy | None = None, seed: int,
            env_kwargs: dict[str, Any] | None = None, wrappers: Sequence[Any] = (), max_steps: int | None = None,
            reward: str = "auto", frame_size: int | tuple[int, ...] = 64, view: str = "render", ends: bool = True,
            hold: int = 1, progress: bool = True, actors: int = 0, time_limit: float = 300.0,
            address: str | None = None) -> Path:
    """Play `episodes` episodes of a Gymnasium env into `out`, and return that folder.

    policy None: the default of the env (`default_policy`). env_kwargs, wrappers, max_steps, frame_size, view:
    see `Environment`. reward "event" stores 1 where the env's reward is positive and else 0, "raw" stores it as it is;
    "auto" is the kind that `out` has already, else "event" for MiniGrid and where only 0 and one positive value are
    seen, else "raw". With ends=False actions that would terminate are resampled and each episode runs to its time limit
    (default 64 steps). Every action is repeated `hold` times; ends=False requires hold=1. actors: number of Ray actors
    (0: this process), each within `time_limit` seconds per episode; address: of a Ray cluster. Before writing, raises
    ConfigError, ActionError or DataError for an unsuitable env or policy, and DataError if `out` holds a collection of
    another recipe.
    """
    if episodes < 1 or min(seed, actors) < 0:
        raise ConfigError(f"expected episodes >= 1, seed and actors >= 0, found {episodes}, {seed}, {actors}")
    if hold < 1 or (hold > 1 and not ends):
        raise ConfigError(f"hold: expected steps >= 1, and 1 where no action may end an episode, found {hold}")
    out, max_steps = Path(out), NO_END_STEPS if max_steps is None and not ends else max_steps
    kind = _recipe(recorded(out / COLLECTION)).get("reward", reward) if reward == "auto" else reward
    source = Environment(env_id, env_kwargs or {}, tuple(wrappers), frame_size, max_steps,
                         "raw" if kind == "auto" else kind, view)
    env = source.make()
    try:
        check_env(env, source.size)
        policy = default_policy(env) if policy is None else policy
        policy = policy if ends else NoEnd(policy)
        policy = policy if hold == 1 else Held(policy, hold)
        check_policy(policy, env)
        source = replace(source, reward=reward_kind(env) if kind == "auto" else kind)
    finally:
        env.close()
    _claim(out, {**source.to_dict(), "seed": seed}, policy, episodes, PACKAGES)
    specs = [EpisodeSpec(index, seed, policy) for index in range(episodes)]
    crew = Crew(max(1, actors), time_limit=time_limit, address=address)
    _play_all(Rollouts(RealScene(source), out.resolve(), reward=source.reward), specs, actors, crew, progress)
    return out


def rollout(world: Path | str, out: Path | str, *, episodes: int, policy: Policy, seed: int = 0,
            text: str | None = None, start: int | None = None, max_steps: int | None = None, progress: bool = True,
            actors: int = 0, gpus_per_actor: float = 0.0, threads: int = 1, time_limit: float = 300.0,
            address: str | None = None) -> Path:
    """Play `episodes` episodes in a world (its folder or name) into `out`, and return that folder.

    They start from the world's start set: a start with this text, or its element `start` (None: any). max_steps: time
    limit (None: the world's own). Rewards and terminations are the world's. actors: number of Ray actors (0: this
    process), each with gpus_per_actor GPUs (0: CPU) and within `time_limit` seconds per episode. Of the last five
    arguments only `threads` affects the numbers. Raises ConfigError for a policy that cannot act in a world, and
    DataError if `out` holds a collection of another recipe.
    """
    if episodes < 1 or min(seed, actors) < 0:
        raise ConfigError(f"expected episodes >= 1, seed >= 0 and actors >= 0, found {episodes}, {seed} and {actors}")
    if max_steps is not None and max_steps < 1:
        raise ConfigError(f"max_steps: expected a number >= 1, or None for the world's own limit, found {max_steps}")
    out, folder = Path(out), find_world(world).resolve()
    device = "cuda" if gpus_per_actor > 0 or (not actors and torch.cuda.is_available()) else "cpu"
    opened = World.load(folder, device="cpu")
    size = 0 if opened.starts is None else len(opened.starts)
    if text is None and not (size if start is None else 0 <= start < size):
        raise ConfigError(f"start: expected an index below {size}, the size of the start set of {opened.config.name}, "
                          f"found {start}; without a start set give a text")
    opened.encode_text([text or ""])
    check_policy(policy, WorldEnv(opened, render_mode="rgb_array"))
    recipe = {"world": opened.world_id, "text": text, "start": start, "seed": seed, "max_steps": max_steps,
              "device": device, "threads": threads}
    _claim(out, recipe, policy, episodes, ("gymnasium", "numpy", "h5py", "torch"))
    specs = [EpisodeSpec(index, seed, policy, start, text, max_steps) for index in range(episodes)]
    crew = Crew(max(1, actors), gpus_per_actor, threads, time_limit, address)
    _play_all(Rollouts(Dream(str(folder), device), out.resolve()), specs, actors, crew, progress)
    return out


def reward_kind(env: gymnasium.Env) -> str:
    """Return "event" if an env's rewards are 0 and one positive value in random play, else "raw".

    MiniGrid's count as an event: one reward at success, which decreases with time.
    """
    if is_minigrid(env):
        return "event"
    policy, seen, over = RandomPolicy(), set(), True
    for step in range(REWARD_STEPS):
        if over:
            observation, _ = env.reset(seed=step)
            policy.reset(step, env)
        observation, gain, terminated, truncated, _ = env.step(policy(observation))
        over = terminated or truncated
        seen.add(float(gain))
    paid = seen - {0.0}
    return "event" if len(paid) == 1 and min(paid) > 0 else "raw"


# ---- playing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RealScene:
    """Work context that plays episodes in a real env, with raw rewards."""

    environment: Environment

    def open(self) -> Callable[[EpisodeSpec], Episode]:
        """Make the env; return a function that plays the episode of a spec."""
        env, size = self.environment.make(), self.environment.size
        return lambda spec: play(env, spec.policy, seed=spec.seed, index=spec.index, reward="raw", frame_size=size)


@dataclass(frozen=True)
class Dream:
    """Scene of `Rollouts`: episodes that run in a world."""

    world: str
    device: str

    def open(self) -> Callable[[EpisodeSpec], Episode]:
        """Load the world; return a function that plays the episode of a spec."""
        env = WorldEnv(World.load(self.world, device=self.device), render_mode="rgb_array")
        config, starts, limit = env.world.config, env.world.starts, env.max_episode_steps

        def imagine(spec: EpisodeSpec) -> Episode:
            options: dict[str, Any] = {"text": spec.text}
            if spec.start is not None and starts is not None:
                options = {"frames": starts.frames[spec.start].numpy(), "text": spec.text or starts.texts[spec.start]}
            env.max_episode_steps = spec.max_steps or limit
            return play(env, spec.policy, seed=spec.seed, index=spec.index, reward="raw", options=options,
                        frame_size=(config.height, config.width))

        return imagine


@dataclass(frozen=True)
class Rollouts:
    """Work of a pool: play the episode of a spec and write it into the folder `out`, with rewards of kind `reward`."""

    scene: RealScene | Dream
    out: Path
    reward: str = field(default="raw", kw_only=True)

    def open(self) -> Callable[[EpisodeSpec], Receipt]:
        """Open the scene; return a function that plays and writes an episode."""
        playing = self.scene.open()

        def write(spec: EpisodeSpec) -> Receipt:
            raw, path = playing(spec), episode_path(self.out, spec.index)
            episode = replace(raw, rewards=stored_rewards(raw.rewards, self.reward)).validate()
            try:
                write_episode(path, episode)
            except DataError as error:
                reason = " ".join(str(error).split())  # messages of HDF5 have several lines
                raise WorkerError(reason) from error  # no other episode could be written either
            low, high = float(raw.rewards.min()), float(raw.rewards.max())
            return Receipt(spec.index, path.name, len(raw), (low, high) if self.reward == "event" and low < 0 else None)

        return write

    def find(self, spec: EpisodeSpec) -> Receipt | None:
        """Return the receipt of an episode that exists and is complete, else None."""
        path = episode_path(self.out, spec.index)
        if not path.exists():
            return None
        try:
            return Receipt(spec.index, path.name, len(read_episode(path)))
        except DataError:
            return None


def _play_all(work: Rollouts, specs: Sequence[EpisodeSpec], actors: int, crew: Crew, progress: bool) -> None:
    """Play every spec whose episode does not exist yet, in this process or by a pool of actors."""
    missing = [spec for spec in specs if work.find(spec) is None]
    bar = tqdm(total=len(specs), initial=len(specs) - len(missing), desc=work.out.name, unit="episode",
               disable=not progress)
    warned = False
    with bar, closing(_receipts(work, missing, actors, crew)) as receipts:
        for receipt in receipts:
            if not (work.out / receipt.file).exists():
                raise WorkerError(f"{work.out}: expected {receipt.file}, which an actor wrote, found none; choose a "
                                  "folder that all nodes of the cluster share")
            if receipt.lost and not warned:
                warned = True
                warnings.warn(f"reward: event stores 0 for negative rewards, and {receipt.file} has rewards from "
                              f"{receipt.lost[0]:g} to {receipt.lost[1]:g}; raw keeps them", stacklevel=4)
            bar.update()


def _receipts(
    work: Rollouts, specs: Sequence[EpisodeSpec], actors: int, crew: Crew
) -> Generator[Receipt, None, None]:
    """Play specs, and yield the receipt of each when it is written."""
    if not actors or not specs:
        with threads_of(crew.threads):
            yield from map(work.open(), specs) if specs else ()
        return
    try:
        with Pool(work, crew) as pool:
            named = pool.run(specs, recover=work.find, name=lambda index: str(specs[index].index))
            yield from (receipt for _, receipt in named)
    finally:
        remove_leftovers(work.out)


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Compute with `count` threads, as actors do: sums of floats depend on the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seeds(seed: int, index: int) -> tuple[int, int]:
    """Return the seeds of env and policy for episode `index`, independent of each other and of other episodes."""
    env_seed, policy_seed = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(2)
    return int(env_seed) % 2**31, int(policy_seed) % 2**31


def stored_rewards(rewards: np.ndarray, kind: str) -> np.ndarray:
    """Return rewards (T,) as an episode stores them: "raw", or as an "event", 1 where they are positive and else 0."""
    return (rewards > 0).astype(np.float32) if kind == "event" else rewards


def play(env: gymnasium.Env, policy: Policy, *, seed: int, index: int, reward: str = "event",
         frame_size: int | tuple[int, ...] = 64, options: dict[str, Any] | None = None) -> Episode:
    """Play one episode to its end. The same env, policy settings, seed, index and reset options give the same episode.

    Raises DataError for invalid frames or a changing frame size, and for an episode of more than 10,000 steps in an env
    without a time limit.
    """
    space, size, (env_seed, policy_seed) = check_single(env), height_width(frame_size), seeds(seed, index)
    with redirect_stdout(StringIO()):  # BabyAI prints its rejected samples
        observation, begun = env.reset(seed=env_seed, options=options)
    policy.reset(policy_seed, env)
    text = mission(env, observation, begun)
    drawn: Any = env.render()
    frames, carried = [shown(drawn, size)], [_carrying(env)]
    actions: list[np.ndarray] = [np.zeros(spaces.flatdim(env.action_space), np.float32)]
    rewards, terminated, truncated, limit = [0.0], False, False, _time_limit(env)
    while not (terminated or truncated):
        if len(frames) > limit:
            raise DataError(f"{env}: expected episodes of at most {limit} steps without a time limit, found one that "
                            "goes on; give one with max_steps (--max-steps)")
        action = policy(observation)
        observation, gain, terminated, truncated, _ = env.step(action)
        before, drawn = np.shape(drawn), env.render()
        if np.shape(drawn) != before:
            raise DataError(f"{env}: expected frames of one size, found {before} and then {np.shape(drawn)}")
        frames.append(shown(drawn, size))
        carried.append(_carrying(env))
        actions.append(np.asarray(spaces.flatten(env.action_space, action), np.float32))
        rewards.append(float(gain))
    info: dict[str, Any] = {"seed": seed, "index": index, "env_seed": env_seed, "policy": policy.name}
    if is_minigrid(env):
        info["carrying"] = carried
    last = np.arange(1, len(frames) + 1) == len(frames)
    return Episode(np.stack(frames), np.stack(actions), stored_rewards(np.array(rewards, np.float32), reward),
                   terminated=last & terminated, truncated=last & truncated, text=text, space=space, info=info)


def _time_limit(env: gymnasium.Env) -> int:
    """Return the time limit of an episode in steps: the env's own, else MOST_STEPS."""
    inner = env.unwrapped
    own = inner.max_episode_steps if isinstance(inner, WorldEnv) else getattr(env.spec, "max_episode_steps", None)
    return int(own) if own and own < float("inf") else MOST_STEPS


def _carrying(env: gymnasium.Env) -> str | None:
    """Return colour and type of the object that the agent of a MiniGrid carries, which no frame shows."""
    inner: Any = env.unwrapped
    carried = inner.carrying if is_minigrid(env) else None
    return None if carried is None else f"{carried.color} {carried.type}"


def _claim(out: Path, recipe: dict[str, Any], policy: Policy, episodes: int, packages: Iterable[str]) -> None:
    """Write the record of a collection; DataError if the folder has another. The episode count never decreases."""
    before = recorded(out / COLLECTION)
    recipe["policy"] = policy_record(policy, _recipe(before).get("policy"))
    more = before.get("episodes", 0)
    episodes = max(episodes, more) if isinstance(more, int) else episodes
    versions = installed_versions(packages)
    claim(out / COLLECTION, {"recipe": recipe, "episodes": episodes, "packages": versions}, key="recipe")


def _recipe(record: dict[str, Any]) -> dict[str, Any]:
    return record["recipe"] if isinstance(record.get("recipe"), dict) else {}
