"""Collecting: policy x Gymnasium env -> folder of episodes, each following from (seed, index) alone.

The env is a real one (`collect`) or a world (`rollout`). Resumable: an episode that is there and whole is not played
again; an interrupted run, run again, ends in the same bytes as one that was not interrupted, and so does one that was
spread over actors. `collection.json` says how the folder came to be.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tqdm import tqdm

from starflow_world.agents.environment import make_env
from starflow_world.agents.policy import Held, NoEnd, Policy
from starflow_world.agents.pool import Crew, EpisodeSpec, Pool, Receipt
from starflow_world.data.episodes import Episode, episode_path, read_episode, write_episode
from starflow_world.envs.observation import mission, shown
from starflow_world.envs.world_env import WorldEnv
from starflow_world.errors import ConfigError, DataError, WorkerError
from starflow_world.io.files import claim, remove_leftovers
from starflow_world.model.actions import space_to_json
from starflow_world.world import World, find_world

REWARDS: dict[str, Callable[[float], float]] = {"event": lambda reward: float(reward > 0), "raw": float}
PACKAGES = ("gymnasium", "minigrid", "numpy", "h5py", "opencv-python-headless")
NO_END_STEPS = 64


def collect(env_id: str, out: Path | str, *, episodes: int, policy: Policy, seed: int,
            env_kwargs: dict[str, Any] | None = None, max_steps: int | None = None, reward: str = "event",
            frame_size: int = 64, ends: bool = True, hold: int = 1, progress: bool = True, actors: int = 0,
            time_limit: float = 300.0, address: str | None = None) -> Path:
    """Play `episodes` episodes of a Gymnasium env into `out`, and return that folder.

    reward "event" stores 1 where the env's reward is positive and else 0, "raw" stores it as it is. `max_steps` is
    the time limit (else the env's own). With ends=False actions that would terminate are drawn again and each
    episode runs to its time limit (default 64 steps). Every action is taken `hold` times in a row, which ends=False
    cannot be combined with. Frames are what the env renders, frame_size x frame_size.
    actors: Ray actors to play them (0: this process), each within `time_limit` seconds; address: of a Ray cluster.
    Raises DataError when `out` holds a collection of another recipe, or the env renders no RGB frames.
    """
    _check_max_steps(max_steps)
    if reward not in REWARDS or episodes < 1 or frame_size < 1 or min(seed, actors) < 0:
        raise ConfigError(f"expected reward of {sorted(REWARDS)}, episodes and frame_size >= 1, seed and actors >= 0, "
                          f"found {reward!r}, {episodes}, {frame_size}, {seed}, {actors}")
    if hold < 1 or (hold > 1 and not ends):
        raise ConfigError(f"hold: expected steps >= 1, and 1 where no action may end an episode, found {hold}")
    out, max_steps = Path(out), NO_END_STEPS if max_steps is None and not ends else max_steps
    policy = policy if ends else NoEnd(policy)
    policy = policy if hold == 1 else Held(policy, hold)
    recipe = {"env": env_id, "env_kwargs": env_kwargs or {}, "policy": repr(policy), "seed": seed,
              "max_steps": max_steps, "reward": reward, "frame_size": frame_size}
    _claim(out, recipe, episodes, PACKAGES)
    scene = RealScene(env_id, env_kwargs or {}, max_steps, reward, frame_size)
    specs = [EpisodeSpec(index, seed, policy) for index in range(episodes)]
    crew = Crew(max(1, actors), time_limit=time_limit, address=address)
    _play_all(Rollouts(scene, out.resolve()), specs, actors, crew, progress)
    return out


def rollout(world: Path | str, out: Path | str, *, episodes: int, policy: Policy, seed: int = 0,
            text: str | None = None, start: int | None = None, max_steps: int | None = None, progress: bool = True,
            actors: int = 0, gpus_per_actor: float = 0.0, threads: int = 1, time_limit: float = 300.0,
            address: str | None = None) -> Path:
    """Imagine `episodes` episodes of a world (its folder or name) into `out`, and return that folder.

    They begin from the world's start set: with this text, or from this one place in it (None: any). `max_steps` is the
    time limit (else the world's own). Rewards and ends are the world's. actors: Ray actors to imagine them (0: this
    process), each with gpus_per_actor GPUs (0: on the CPU) and within `time_limit` seconds per episode. The numbers
    depend on `threads`, and on nothing else of these. Raises DataError when `out` holds a collection of another recipe.
    """
    _check_max_steps(max_steps)
    if episodes < 1 or min(seed, actors) < 0:
        raise ConfigError(f"expected episodes >= 1, seed >= 0 and actors >= 0, found {episodes}, {seed} and {actors}")
    out, folder = Path(out), find_world(world).resolve()
    device = "cuda" if gpus_per_actor > 0 or (not actors and torch.cuda.is_available()) else "cpu"
    opened = World.load(folder, device="cpu")
    size = 0 if opened.starts is None else len(opened.starts)
    if text is None and not (size if start is None else 0 <= start < size):
        raise ConfigError(f"start: expected a place below {size}, the size of the start set of {opened.config.name}, "
                          f"found {start}; without a start set give a text")
    opened.encode_text([text or ""])
    recipe = {"world": opened.world_id, "text": text, "start": start, "policy": repr(policy), "seed": seed,
              "max_steps": max_steps, "device": device, "threads": threads}
    _claim(out, recipe, episodes, ("gymnasium", "numpy", "h5py", "torch"))
    specs = [EpisodeSpec(index, seed, policy, start, text, max_steps) for index in range(episodes)]
    crew = Crew(max(1, actors), gpus_per_actor, threads, time_limit, address)
    _play_all(Rollouts(Dream(str(folder), device), out.resolve()), specs, actors, crew, progress)
    return out


def _check_max_steps(max_steps: int | None) -> None:
    if max_steps is not None and max_steps < 1:
        raise ConfigError(f"max_steps: expected a number >= 1, or None for the env's own limit, found {max_steps}")


# ---- playing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RealScene:
    """A real env to play in, as `make_env` makes it."""

    env_id: str
    env_kwargs: dict[str, Any]
    max_steps: int | None
    reward: str
    frame_size: int

    def open(self) -> Callable[[EpisodeSpec], Episode]:
        """Make the env; returns what plays in it."""
        env = make_env(self.env_id, env_kwargs=self.env_kwargs, max_steps=self.max_steps, frame_size=self.frame_size)
        return lambda spec: play(env, spec.policy, seed=spec.seed, index=spec.index, reward=self.reward,
                                 frame_size=self.frame_size)


@dataclass(frozen=True)
class Dream:
    """A world to play in."""

    world: str
    device: str

    def open(self) -> Callable[[EpisodeSpec], Episode]:
        """Load the world; returns what plays in it."""
        env = WorldEnv(World.load(self.world, device=self.device), render_mode="rgb_array")
        size, starts, limit = env.world.config.height, env.world.starts, env.max_episode_steps

        def imagine(spec: EpisodeSpec) -> Episode:
            options: dict[str, Any] = {"text": spec.text}
            if spec.start is not None and starts is not None:
                options = {"frames": starts.frames[spec.start].numpy(), "text": spec.text or starts.texts[spec.start]}
            env.max_episode_steps = spec.max_steps or limit
            return play(env, spec.policy, seed=spec.seed, index=spec.index, reward="raw", frame_size=size,
                        options=options)

        return imagine


@dataclass(frozen=True)
class Rollouts:
    """Work for a pool: play the episode of a spec and write it into the folder `out`."""

    scene: RealScene | Dream
    out: Path

    def open(self) -> Callable[[EpisodeSpec], Receipt]:
        """Open the scene; returns what plays and writes an episode."""
        playing = self.scene.open()

        def write(spec: EpisodeSpec) -> Receipt:
            episode, path = playing(spec).validate(), episode_path(self.out, spec.index)
            try:
                write_episode(path, episode)
            except DataError as error:
                reason = " ".join(str(error).split())  # HDF5 speaks in several lines
                raise WorkerError(reason) from error  # where this one cannot be written, no other can
            return Receipt(spec.index, path.name, episode.digest(), len(episode))

        return write

    def find(self, spec: EpisodeSpec) -> Receipt | None:
        """The receipt of an episode that is there and whole."""
        path = episode_path(self.out, spec.index)
        if not path.exists():
            return None
        try:
            episode = read_episode(path)
        except DataError:
            return None
        return Receipt(spec.index, path.name, episode.digest(), len(episode))


def _play_all(work: Rollouts, specs: Sequence[EpisodeSpec], actors: int, crew: Crew, progress: bool) -> None:
    """Play every spec whose episode is not there, in this process or by a pool of actors."""
    missing = [spec for spec in specs if work.find(spec) is None]
    bar = tqdm(total=len(specs), initial=len(specs) - len(missing), desc=work.out.name, unit="episode",
               disable=not progress)
    with bar, closing(_receipts(work, missing, actors, crew)) as receipts:
        for receipt in receipts:
            if not (work.out / receipt.file).exists():
                raise WorkerError(f"{work.out}: expected {receipt.file}, which an actor wrote, found none; choose a "
                                  "folder that all nodes of the cluster share")
            bar.update()


def _receipts(
    work: Rollouts, specs: Sequence[EpisodeSpec], actors: int, crew: Crew
) -> Generator[Receipt, None, None]:
    """Play specs, and yield what was written as it comes."""
    if not actors or not specs:
        with _threads(crew.threads):
            yield from map(work.open(), specs) if specs else ()
        return
    try:
        with Pool(work, crew) as pool:
            yield from (receipt for _, receipt in pool.run(specs, found=work.find, name=lambda i: str(specs[i].index)))
    finally:
        remove_leftovers(work.out)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads, as actors do: sums of floats depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seeds(seed: int, index: int) -> tuple[int, int]:
    """Seeds of the env and of the policy for episode `index`: independent of each other and of other episodes."""
    env_seed, policy_seed = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(2)
    return int(env_seed) % 2**31, int(policy_seed) % 2**31


def play(env: gymnasium.Env, policy: Policy, *, seed: int, index: int, reward: str = "event", frame_size: int = 64,
         options: dict[str, Any] | None = None) -> Episode:
    """Play one episode to its end. The same env, policy settings, seed, index and reset options give the same."""
    env_seed, policy_seed = seeds(seed, index)
    with redirect_stdout(StringIO()):  # BabyAI prints its rejected samples
        observation, begun = env.reset(seed=env_seed, options=options)
    policy.reset(policy_seed, env)
    text, size = mission(env, observation, begun), (frame_size, frame_size)
    frames, carried = [shown(env.render(), size)], [_carrying(env)]
    actions: list[np.ndarray] = [np.zeros(spaces.flatdim(env.action_space), np.float32)]
    rewards, terminated, truncated = [0.0], False, False
    while not (terminated or truncated):
        action = policy(observation)
        observation, gain, terminated, truncated, _ = env.step(action)
        frames.append(shown(env.render(), size))
        carried.append(_carrying(env))
        actions.append(np.asarray(spaces.flatten(env.action_space, action), np.float32))
        rewards.append(REWARDS[reward](float(gain)))
    info: dict[str, Any] = {"seed": seed, "index": index, "env_seed": env_seed, "policy": policy.name}
    if hasattr(env.unwrapped, "carrying"):
        info["carrying"] = carried
    last = np.arange(1, len(frames) + 1) == len(frames)
    return Episode(np.stack(frames), np.stack(actions), np.array(rewards, np.float32), terminated=last & terminated,
                   truncated=last & truncated, text=text, space=space_to_json(env.action_space), info=info)


def _carrying(env: gymnasium.Env) -> str | None:
    """Colour and type of what the agent of a MiniGrid carries: no frame shows it."""
    carried = getattr(env.unwrapped, "carrying", None)
    return None if carried is None else f"{carried.color} {carried.type}"


def _claim(out: Path, recipe: dict[str, Any], episodes: int, packages: Iterable[str]) -> None:
    record = {"recipe": recipe, "episodes": episodes, "packages": _versions(packages)}
    claim(out / "collection.json", record, key="recipe")


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of the packages that episodes depend on."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
