"""Training of agents from frames, saved without pickle.

Training is divided into chunks. Each starts with new episodes and generators seeded by (seed, steps so far), and ends
with an evaluation and a checkpoint of agent, optimizers and memory, so that an interrupted run resumes exactly.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticCnnPolicy
from stable_baselines3.common.vec_env.base_vec_env import VecEnv
from stable_baselines3.dqn.policies import CnnPolicy as QPolicy
from stable_baselines3.sac.policies import CnnPolicy as SoftPolicy
from torch import Tensor, nn
from tqdm import tqdm

from starflow_world.agents.algorithms import AgentPolicy, LearnerSettings, architecture, make_agent
from starflow_world.agents.policy import Policy
from starflow_world.errors import CheckpointError, ConfigError
from starflow_world.io.files import is_file, read_tensors, write_tensors
from starflow_world.model.actions import space_from_json, space_to_json

AGENT = "agent.safetensors"
NETWORKS: dict[str, Any] = {"ppo": ActorCriticCnnPolicy, "dqn": QPolicy, "sac": SoftPolicy}
REMEMBERED = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
Judge = Callable[[Policy], dict[str, float]]


def learn(
    env: VecEnv, folder: Path | str, settings: LearnerSettings, judge: Judge, *, steps: int, chunk: int, seed: int = 0,
    resume: bool = False, name: str = "agent",
) -> list[dict[str, float]]:
    """Train in `env` for `steps` steps of all rows together; return the learning curve.

    The curve has a point before and after each chunk: `steps` and the figures that `judge` returns for the agent. The
    agent is saved to `folder` with its curve. `resume` continues from there; ConfigError if that run had other
    settings.
    """
    agent, folder = make_agent(env, settings, seed), Path(folder)
    recipe = {**asdict(settings), "chunk": chunk, "seed": seed, "envs": env.num_envs}

    def judged() -> dict[str, float]:
        agent.policy.set_training_mode(False)
        return {"steps": agent.num_timesteps, **judge(AgentPolicy(agent.policy, settings.algorithm, name))}

    curve = _restore(agent, folder, recipe) if resume and (folder / AGENT).is_file() else [judged()]
    with tqdm(total=steps, initial=agent.num_timesteps, desc=name, unit="step") as bar:
        while agent.num_timesteps < steps:
            agent.set_env(env, force_reset=True)
            agent.set_random_seed(_seed(seed, agent.num_timesteps))
            some = min(chunk, steps - agent.num_timesteps)
            agent.learn(some, callback=_Progress(bar), reset_num_timesteps=False)
            curve = [*curve, judged()]
            bar.set_postfix({key: f"{value:.2f}" for key, value in curve[-1].items() if key != "steps"})
            _save(agent, folder, recipe, curve)
    return curve


def _seed(seed: int, steps: int) -> int:
    return int(np.random.SeedSequence((seed, steps)).generate_state(1)[0]) % 2**31


class _Progress(BaseCallback):
    """Callback that advances a progress bar."""

    def __init__(self, bar: tqdm) -> None:
        super().__init__()
        self.bar = bar

    def _on_step(self) -> bool:
        self.bar.update(self.training_env.num_envs)
        return True


# ---- files -----------------------------------------------------------------------------------------------------------


def _optimizers(agent: BaseAlgorithm) -> dict[str, torch.optim.Optimizer]:
    if not isinstance(agent, SAC):
        return {"policy": agent.policy.optimizer}
    own: Any = agent
    return {"actor": own.actor.optimizer, "critic": own.critic.optimizer, "entropy": own.ent_coef_optimizer}


def _parameters(agent: BaseAlgorithm) -> dict[str, Tensor]:
    """Return everything that is learned: the networks, and SAC's weight of the entropy."""
    own: Any = agent
    extra = {"log_ent_coef": own.log_ent_coef} if isinstance(agent, SAC) else {}
    return {**dict(agent.policy.named_parameters()), **extra}


def _memory(agent: BaseAlgorithm) -> ReplayBuffer | None:
    return getattr(agent, "replay_buffer", None)


def _memory_path(folder: Path, steps: int) -> Path:
    return folder / f"memory-{steps:09}.safetensors"


def _save(agent: BaseAlgorithm, folder: Path, recipe: dict[str, Any], curve: list[dict[str, float]]) -> None:
    """Write the memory, then the agent that names it, and remove the memory before."""
    memory, space = _memory(agent), agent.observation_space
    facts: dict[str, Any] = {
        "recipe": recipe, "curve": curve, "steps": agent.num_timesteps, "calls": getattr(agent, "_n_calls", 0),
        "observation": list(space.shape or ()), "actions": space_to_json(agent.action_space),
    }
    if memory is not None:
        kept = memory.buffer_size if memory.full else memory.pos
        facts["memory"] = {"place": memory.pos, "full": memory.full}
        steps = {name: torch.from_numpy(getattr(memory, name)[:kept]) for name in REMEMBERED}
        write_tensors(_memory_path(folder, agent.num_timesteps), steps, {"memory": "{}"}, sealed=True)
    tensors = {f"policy/{name}": tensor.detach() for name, tensor in _parameters(agent).items()}
    for part, optimizer in _optimizers(agent).items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{part}/{index}/{name}": tensor for name, tensor in state.items()}
    write_tensors(folder / AGENT, tensors, {"agent": json.dumps(facts)}, sealed=True)
    for old in folder.glob("memory-*.safetensors"):
        if old != _memory_path(folder, agent.num_timesteps):
            old.unlink()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, metadata = read_tensors(path, sealed=True)
    facts = json.loads(metadata.get("agent", "{}"))
    if "algorithm" not in facts.get("recipe", {}):
        raise CheckpointError(f"{path}: expected an agent of this version of train-agent, found another file or an "
                              "older agent; give its folder, or train it again")
    return tensors, facts


def _fill(parameters: dict[str, Tensor], tensors: dict[str, Tensor], path: Path) -> None:
    for name, parameter in parameters.items():
        saved = tensors.get(f"policy/{name}")
        if saved is None or saved.shape != parameter.shape:
            shape = None if saved is None else tuple(saved.shape)
            raise CheckpointError(f"{path}: {name}: expected shape {tuple(parameter.shape)}, found {shape}")
        parameter.data.copy_(saved)


def _restore(agent: BaseAlgorithm, folder: Path, recipe: dict[str, Any]) -> list[dict[str, float]]:
    """Load parameters, optimizers, memory and steps of a saved agent; return its learning curve."""
    path = folder / AGENT
    tensors, facts = _read(path)
    if facts["recipe"] != recipe:
        raise ConfigError(f"{path}: expected a run of {recipe}, found {facts['recipe']}; use a new folder")
    _fill(_parameters(agent), tensors, path)
    for part, optimizer in _optimizers(agent).items():
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimizer/{part}/"):
                index, key = name.split("/")[2:]
                state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    memory = _memory(agent)
    if memory is not None:
        steps, _ = read_tensors(_memory_path(folder, facts["steps"]), sealed=True)
        for name, tensor in steps.items():
            getattr(memory, name)[: len(tensor)] = tensor.numpy()
        memory.pos, memory.full = facts["memory"]["place"], facts["memory"]["full"]
    agent.num_timesteps = facts["steps"]
    if isinstance(agent, DQN):
        agent._n_calls = facts["calls"]
        agent.exploration_rate = agent.exploration_schedule(0.0)
    return list(facts["curve"])


def load_agent(folder: Path | str, name: str | None = None) -> AgentPolicy:
    """Load the agent that `learn` saved in a folder. `name`: of the policy; default: the folder's name. Raises
    CheckpointError."""
    path = Path(folder) / AGENT
    if not is_file(path) and (agents := sorted(found.parent for found in Path(folder).glob(f"*/{AGENT}"))):
        raise CheckpointError(f"{folder}: expected the folder of one agent, found {len(agents)}; name one, such as "
                              f"{agents[0]}")
    tensors, facts = _read(path)
    settings = LearnerSettings(**{one.name: facts["recipe"][one.name] for one in fields(LearnerSettings)})
    pictures = spaces.Box(0, 255, tuple(facts["observation"]), np.uint8)
    network: nn.Module = NETWORKS[settings.algorithm](
        pictures, space_from_json(facts["actions"]), lambda _: settings.learning_rate, **architecture(settings)
    )
    _fill(dict(network.named_parameters()), tensors, path)
    return AgentPolicy(network.eval(), settings.algorithm, name or Path(folder).name)
