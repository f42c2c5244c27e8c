"""A vector env whose rows are computed by Ray actors.

Bit-equal to WorldVectorEnvs with the shards' numbers of rows and threads. The driver keeps a log from which each row
can be recomputed (see shard.py): an actor that dies or hangs is replaced, its rows are recomputed, and the caller gets
the frames that the lost actor would have returned.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from starflow_world.envs.episode import EnvState, RewardFunction
from starflow_world.envs.infos import merge_infos
from starflow_world.envs.options import check_options, check_render_mode, masked_rows, read_seeds, select_options
from starflow_world.envs.ray_runtime import START_LIMIT, check_portable, connect, end_actor, failure, new_actor
from starflow_world.envs.shard import ReplayLog, ShardAnswer, ShardFacts, ShardHost, ShardSettings, own_threads
from starflow_world.envs.trust import Trust
from starflow_world.envs.vector_env import VECTOR_OPTIONS, VectorStep, WorldVectorEnv, read_actions, render_rows
from starflow_world.errors import ConfigError, StarflowError, StateError, WorkerError
from starflow_world.model.actions import flatten_actions
from starflow_world.world import find_world
from starflow_world.world.state import WorldState

ATTEMPTS = 3


class RayVectorEnv(VectorEnv[np.ndarray, Any, np.ndarray]):
    """WorldVectorEnv whose `num_envs` rows (N) are divided nearly equally among `num_actors` processes.

    world: a folder or the name of a shipped world; every actor loads it. gpus_per_actor: a share or a number of GPUs
    for each actor (0: CPU). threads: of each actor (None: the cores of this machine divided). time_limit: seconds after
    which an actor that does not answer counts as dead. address: of the Ray cluster to use (None: a new cluster of this
    process, which ends with the process or at ray.shutdown()).
    """

    metadata: ClassVar[dict[str, Any]] = WorldVectorEnv.metadata  # type: ignore[misc]

    def __init__(
        self, world: str | Path, num_envs: int = 1, num_actors: int = 1, gpus_per_actor: float = 0.0, *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP, text: str | None = None,
        render_mode: str | None = None, reward_fn: RewardFunction | None = None, max_episode_steps: int | None = None,
        frames_between: bool = False, trust: Trust | None = None, threads: int | None = None,
        time_limit: float = 300.0, address: str | None = None,
    ) -> None:
        self._actors: list[Any] = []
        if not isinstance(world, str | Path):
            raise ConfigError("world: expected a folder or the name of a shipped world, for every actor to load, found "
                              f"{type(world).__name__}; save it and give its folder")
        if not isinstance(num_envs, int | np.integer) or not 1 <= num_actors <= num_envs:
            raise ConfigError(f"expected num_envs >= num_actors >= 1, found {num_envs!r:.30} and {num_actors!r:.30}")
        self.render_mode = check_render_mode(render_mode, self.metadata["render_modes"])
        folder, device = str(find_world(world).resolve()), "cuda" if gpus_per_actor > 0 else "cpu"
        env = {
            "autoreset_mode": autoreset_mode, "text": text, "render_mode": render_mode, "reward_fn": reward_fn,
            "max_episode_steps": max_episode_steps, "frames_between": frames_between, "trust": trust,
        }
        threads = own_threads(num_actors) if threads is None else threads
        self._settings = ShardSettings(folder, device, threads, env)
        self._gpus, self._limit, self.num_envs = gpus_per_actor, time_limit, int(num_envs)
        self._rows = np.array_split(np.arange(self.num_envs), num_actors)
        connect(num_actors, gpus_per_actor, address)
        check_portable("reward_fn", reward_fn)
        facts = self._open()
        self.autoreset_mode, self.max_episode_steps = facts.autoreset_mode, facts.max_episode_steps
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}  # type: ignore[misc]
        self.single_observation_space, self.single_action_space = facts.observation_space, facts.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    @property
    def pids(self) -> tuple[int, ...]:
        """Return the process id of each actor; it changes when the actor is replaced."""
        return tuple(facts.pid for facts in self._facts)

    # ---- the calls of a vector env -------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset as WorldVectorEnv.reset does; return all observations, and the infos of the rows that were reset."""
        given = check_options(options, VECTOR_OPTIONS)
        chosen = masked_rows(given.pop("reset_mask", None), self.num_envs)
        seeds = read_seeds(seed, self.num_envs)
        if not self._actors:
            self._open()
        if len(chosen) < self.num_envs:
            self._begun("reset_mask")
        mask, calls = np.isin(np.arange(self.num_envs), chosen), {}
        for shard, rows in enumerate(self._rows):
            if mask[rows].any():
                part = select_options(given, rows, self.num_envs) | {"reset_mask": mask[rows]}
                calls[shard] = ("begin", [seeds[row] for row in rows], part)
        answers = self._ask(calls)
        frames, infos = {shard: answer.result[0] for shard, answer in answers.items()}, []
        for shard, rows in enumerate(self._rows):
            infos.append(answers[shard].result[1] if shard in answers else {})
            self._frames[rows] = frames.get(shard, self._frames[rows])
        super().reset(seed=seed if isinstance(seed, int) else None)
        self.closed = False
        return self._frames.copy(), merge_infos(infos, [len(rows) for rows in self._rows])

    def step(self, actions: Any) -> VectorStep:
        """Step as WorldVectorEnv.step does; return observations, rewards, terminations, truncations, infos."""
        self._begun("step")
        chosen = read_actions(self, actions, self._log.ended)
        flatten_actions(self.single_action_space, chosen)  # raises here, before any shard steps
        parts = [[chosen[row] for row in rows] for rows in self._rows]
        answers = self._ask({shard: ("advance", part) for shard, part in enumerate(parts)})
        results = [answers[shard].result for shard in range(len(parts))]
        self._frames, rewards, terminated, truncated = (
            np.concatenate([result[place] for result in results]) for place in range(4)
        )
        infos = merge_infos([result[4] for result in results], [len(rows) for rows in self._rows])
        return self._frames.copy(), rewards, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return the current frames, N of (H, W, 3) u8, in mode rgb_array."""
        self._begun("render")
        return render_rows(self, self._frames)

    def close_extras(self, **_: Any) -> None:
        """End the actors; reset() starts new ones."""
        for actor in self._actors:
            end_actor(actor)
        self._actors = []

    def get_state(self) -> WorldState:
        """Return a copy of the world's state, N rows, on the CPU."""
        return self.snapshot().world

    def snapshot(self) -> EnvState:
        """Return a copy, on the CPU, of everything that the episodes need to continue exactly, N rows."""
        self._begun("snapshot")
        answers = self._ask(dict.fromkeys(range(len(self._rows)), ("get",)))
        return EnvState.stack([answers[shard] for shard in range(len(self._rows))])

    def set_state(self, state: WorldState | EnvState) -> None:
        """Continue from a copy of a snapshot or a state of N rows, as WorldVectorEnv.set_state does."""
        parts = [select_options({"state": state}, rows, self.num_envs)["state"] for rows in self._rows]
        if not self._actors:
            self._open()
        answers = self._ask({shard: ("put", part) for shard, part in enumerate(parts)})
        self._frames = np.concatenate([answers[shard].result for shard in range(len(parts))])
        self.closed = False

    def _begun(self, call: str) -> None:
        if not self._actors or not self._log.begun:
            raise StateError(f"{call}: expected episodes under way, found none; reset all rows first")

    # ---- actors --------------------------------------------------------------------------------------------------

    def _open(self) -> ShardFacts:
        """Start all actors, without episodes."""
        self._facts: list[Any] = [None] * len(self._rows)
        self._actors = [None] * len(self._rows)
        self._log, self._unsure = ReplayLog(self.num_envs), set[int]()
        try:
            opened = [self._launch(shard) for shard in range(len(self._rows))]
            for shard, reference in enumerate(opened):
                self._facts[shard] = self._answer(shard, reference, None)
        except BaseException:
            self.close_extras()
            raise
        space = self._facts[0].observation_space
        self._frames = np.zeros((self.num_envs, *space.shape), space.dtype)
        return self._facts[0]

    def _launch(self, shard: int) -> Any:
        """Start a new actor for a shard; return the Ray reference to its facts."""
        end_actor(self._actors[shard])
        self._actors[shard] = new_actor(ShardHost, gpus=self._gpus, threads=self._settings.threads)
        return self._actors[shard].open.remote(self._settings, len(self._rows[shard]))

    def _ask(self, calls: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        """Call a method with arguments on each of the given shards; return their answers.

        The log is updated when all have answered. After an error or interruption the called shards are `unsure`: they
        are restored to the state of the log before their next call.
        """
        for shard in self._unsure & calls.keys() if self._log.begun else ():
            back = ("restore", *self._log.of(self._rows[shard]))
            self._answer(shard, self._actors[shard].call.remote(*back), back)
        self._unsure |= calls.keys()
        asked = {shard: self._actors[shard].call.remote(*call) for shard, call in calls.items()}
        answers = {shard: self._answer(shard, reference, calls[shard]) for shard, reference in asked.items()}
        for shard, answer in answers.items():
            if isinstance(answer, ShardAnswer):
                name, first = calls[shard][:2]
                self._log.note(self._rows[shard], answer, first if name == "advance" else None)
        self._unsure -= calls.keys()
        return answers

    def _answer(self, shard: int, reference: Any, call: tuple[Any, ...] | None) -> Any:
        """Return the answer to a call, or to the start of an actor (None). If there is no answer in time, replace the
        actor, restore its rows from the log, and call it again."""
        import ray

        reason = None
        for _ in range(ATTEMPTS):
            try:
                if reference is None:
                    reference = self._renewed(shard, call)
                return ray.get(reference, timeout=START_LIMIT if call is None else self._limit)
            except ray.exceptions.RayError as error:
                reason, reference = failure(error), None
                if isinstance(reason, StarflowError):
                    raise reason from None
        cause = " ".join(f"{type(reason).__name__}: {reason}".split())
        raise WorkerError(f"actor of rows {self._rows[shard][0]} to {self._rows[shard][-1]}: expected an answer, but "
                          f"{ATTEMPTS} in a row failed, the last with {cause:.300}")

    def _renewed(self, shard: int, call: tuple[Any, ...] | None) -> Any:
        """Replace the actor; return the Ray reference to the answer of the new one."""
        import ray

        opening = self._launch(shard)
        if call is None:
            return opening
        self._facts[shard] = ray.get(opening, timeout=START_LIMIT)
        if self._log.begun:
            back = ("restore", *self._log.of(self._rows[shard]))
            ray.get(self._actors[shard].call.remote(*back), timeout=self._limit)
        return self._actors[shard].call.remote(*call)

