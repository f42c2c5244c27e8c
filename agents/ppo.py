"""Agents trained from frames by PPO (Schulman et al. 2017; Stable-Baselines3's implementation), saved without pickle.

Training is divided into chunks. Each starts with new episodes and generators seeded by (seed, steps so far), and ends
with an evaluation and a checkpoint of agent and optimizer, so that an interrupted run resumes exactly.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticCnnPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env.base_vec_env import VecEnv
from torch import Tensor, nn
from tqdm import tqdm

from starflow_world.agents.policy import Policy
from starflow_world.envs.observation import shown
from starflow_world.errors import CheckpointError, ConfigError
from starflow_world.io.files import is_file, read_tensors, write_tensors

AGENT, TILE = "agent.safetensors", 8
Judge = Callable[[Policy], dict[str, float]]


@dataclass(frozen=True)
class PPOSettings:
    """Settings of PPO, besides env, number of steps and seed.

    rollout: steps of each sub-environment between updates; pairs, frequencies: of `Places`; width: of the layers after
    it.
    """

    rollout: int = 32
    batch: int = 256
    epochs: int = 4
    learning_rate: float = 1e-3
    discount: float = 0.95
    gae: float = 0.9
    entropy: float = 0.01
    pairs: int = 16
    frequencies: int = 4
    width: int = 64


class Places(BaseFeaturesExtractor):
    """Feature extractor for relative positions of tiles of 8 x 8 pixels: frames (B, 3, H, W) -> features (B, width).

    `pairs` pairs of feature maps over the tiles are correlated over all shifts, as FlowNet (Dosovitskiy et al. 2015)
    correlates patches, but in Fourier space, where a correlation is a product: "the ball is two tiles to the left" is
    one feature at any position.
    """

    def __init__(
        self, observation_space: spaces.Box, pairs: int = 16, frequencies: int = 4, width: int = 64
    ) -> None:
        super().__init__(observation_space, width)
        channels, height, columns = observation_space.shape
        grid = height // TILE, columns // TILE
        self.tiles = nn.Conv2d(channels, 2 * pairs, TILE, TILE)
        waves = _waves(grid, frequencies)
        self.register_buffer("waves", waves, persistent=False)
        self.norm = nn.LayerNorm(pairs * waves.shape[1])
        self.read = nn.Linear(pairs * waves.shape[1], width)

    def forward(self, pictures: Tensor) -> Tensor:
        maps = torch.relu(self.tiles(pictures - 0.2)).flatten(2)
        maps = maps - maps.mean(2, keepdim=True)
        first, second = (maps @ self.waves).chunk(2, dim=1)
        (real, imaginary), (other_real, other_imaginary) = first.chunk(2, dim=-1), second.chunk(2, dim=-1)
        same = real * other_real + imaginary * other_imaginary
        cross = real * other_imaginary - imaginary * other_real
        return torch.relu(self.read(self.norm(torch.cat((same, cross), dim=-1).flatten(1))))


def _waves(grid: tuple[int, int], frequencies: int) -> Tensor:
    """Return cosines, then sines, over the tiles: (h w, 2 m). The period is twice the side, so shifts do not wrap."""
    rows, columns = torch.arange(grid[0]), torch.arange(grid[1])
    down, right = torch.arange(-frequencies, frequencies + 1), torch.arange(frequencies + 1)
    turns = down[:, None, None, None] * rows[:, None] / grid[0] + right[:, None, None] * columns / grid[1]
    angles = math.pi * turns.reshape(-1, grid[0] * grid[1])
    return torch.cat((angles.cos(), angles.sin())).T.contiguous()


def make_ppo(env: VecEnv, settings: PPOSettings, seed: int) -> PPO:
    """Return an untrained agent. Raises ConfigError if its batch is larger than a rollout."""
    if settings.batch > settings.rollout * env.num_envs:
        settings_say = f"a batch of {settings.batch} of {settings.rollout} steps in {env.num_envs} envs"
        raise ConfigError(f"batch: expected at most the steps of a rollout, found {settings_say}; take more envs")
    return PPO(
        "CnnPolicy", env, seed=seed, device="cpu", n_steps=settings.rollout, batch_size=settings.batch,
        n_epochs=settings.epochs, learning_rate=settings.learning_rate, gamma=settings.discount,
        gae_lambda=settings.gae, ent_coef=settings.entropy, policy_kwargs=_architecture(settings),
    )


def _architecture(settings: PPOSettings) -> dict[str, Any]:
    places = {"pairs": settings.pairs, "frequencies": settings.frequencies, "width": settings.width}
    heads = {"pi": [settings.width], "vf": [settings.width]}
    return {"features_extractor_class": Places, "features_extractor_kwargs": places, "net_arch": heads}


# ---- learning --------------------------------------------------------------------------------------------------------


def learn(
    env: VecEnv, folder: Path | str, settings: PPOSettings, judge: Judge, *, steps: int, chunk: int, seed: int = 0,
    resume: bool = False, name: str = "ppo",
) -> list[dict[str, float]]:
    """Train in `env` for `steps` steps of all rows together; return the learning curve.

    The curve has a point before and after each chunk: `steps` and the figures that `judge` returns for the agent. The
    agent is saved to `folder` with its curve. `resume` continues from there; ConfigError if that run had other
    settings.
    """
    agent, curve = make_ppo(env, settings, seed), []
    recipe = {**asdict(settings), "chunk": chunk, "seed": seed, "envs": env.num_envs}
    if resume and (Path(folder) / AGENT).is_file():
        curve = _restore(agent, Path(folder) / AGENT, recipe)
    else:
        curve = [{"steps": 0, **judge(PPOPolicy(agent.policy, name))}]
    with tqdm(total=steps, initial=agent.num_timesteps, desc=name, unit="step") as bar:
        while agent.num_timesteps < steps:
            set_random_seed(_seed(seed, agent.num_timesteps))
            env.seed(_seed(seed, agent.num_timesteps))
            agent.set_env(env, force_reset=True)
            begun = agent.num_timesteps
            agent.learn(min(chunk, steps - begun), callback=_Progress(bar), reset_num_timesteps=False)
            curve = [*curve, {"steps": agent.num_timesteps, **judge(PPOPolicy(agent.policy, name))}]
            bar.set_postfix({key: f"{value:.2f}" for key, value in curve[-1].items() if key != "steps"})
            _save(agent, Path(folder) / AGENT, recipe, curve)
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


def _save(agent: PPO, path: Path, recipe: dict[str, Any], curve: list[dict[str, float]]) -> None:
    tensors = {f"policy/{name}": tensor for name, tensor in agent.policy.named_parameters()}
    for index, state in agent.policy.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": tensor for name, tensor in state.items()}
    facts = {
        "recipe": recipe, "curve": curve, "steps": agent.num_timesteps,
        "observation": list(agent.policy.observation_space.shape), "actions": int(agent.action_space.n),
    }
    write_tensors(path, tensors, {"agent": json.dumps(facts)}, sealed=True)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, metadata = read_tensors(path, sealed=True)
    if "agent" not in metadata:
        raise CheckpointError(f"{path}: expected a saved agent, found another file; give the folder of train-agent")
    return tensors, json.loads(metadata["agent"])


def _fill(policy: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    for name, parameter in policy.named_parameters():
        saved = tensors.get(f"policy/{name}")
        if saved is None or saved.shape != parameter.shape:
            shape = None if saved is None else tuple(saved.shape)
            raise CheckpointError(f"{path}: {name}: expected shape {tuple(parameter.shape)}, found {shape}")
        parameter.data.copy_(saved)


def _restore(agent: PPO, path: Path, recipe: dict[str, Any]) -> list[dict[str, float]]:
    """Load parameters, optimizer and steps of a saved agent; return its learning curve."""
    tensors, facts = _read(path)
    if facts["recipe"] != recipe:
        raise ConfigError(f"{path}: expected a run of {recipe}, found {facts['recipe']}; use a new folder")
    _fill(agent.policy, tensors, path)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            state.setdefault(int(index), {})[key] = tensor
    groups = agent.policy.optimizer.state_dict()["param_groups"]
    agent.policy.optimizer.load_state_dict({"state": state, "param_groups": groups})
    agent.num_timesteps = facts["steps"]
    return list(facts["curve"])


# ---- acting ----------------------------------------------------------------------------------------------------------


@dataclass
class PPOPolicy(Policy):
    """Policy that samples actions from a trained agent: frames (H, W, 3) u8 -> int."""

    network: ActorCriticCnnPolicy = field(repr=False)
    name: str = "ppo"

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        self._rng = np.random.default_rng(seed)

    @torch.inference_mode()
    def __call__(self, observation: Any) -> int:
        seen, _ = self.network.obs_to_tensor(observation)
        chances = self.network.get_distribution(seen).distribution.probs[0].double().cumsum(0).numpy()
        return min(int(np.searchsorted(chances, self._rng.random() * chances[-1], side="right")), len(chances) - 1)

    def check(self, env: gymnasium.Env) -> None:
        channels, height, width = self.network.observation_space.shape or (0, 0, 0)
        needed = getattr(self.network.action_space, "n", 0)
        if env.observation_space.shape != (height, width, channels) or getattr(env.action_space, "n", 0) < needed:
            raise ConfigError(f"policy {self.name}: expected observations ({height}, {width}, {channels}) and at least "
                              f"{needed} actions, found {env.observation_space} and {env.action_space}")

    def recipe(self) -> dict[str, Any]:
        tensors = (tensor.detach().cpu().numpy().tobytes() for tensor in self.network.state_dict().values())
        return super().recipe() | {"weights": hashlib.sha256(b"".join(tensors)).hexdigest()}


@dataclass
class SeeingPolicy(PPOPolicy):
    """A trained agent in an env whose observations need not be frames: it sees what the env renders, scaled to the size
    of the frames that it learned from."""

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        super().reset(seed, env)
        self._env = env

    def __call__(self, observation: Any) -> int:
        return super().__call__(self._frame(self._env))

    def check(self, env: gymnasium.Env) -> None:
        needed = getattr(self.network.action_space, "n", 0)
        if getattr(env.action_space, "n", 0) < needed or getattr(env.action_space, "start", 0) != 0:
            raise ConfigError(f"policy {self.name}: expected at least the actions 0 to {needed - 1} that it learned, "
                              f"found {env.action_space}")
        _, height, width = self.network.observation_space.shape or (0, 0, 0)
        if env.observation_space.shape != (height, width, 3):  # else it is a world or draws as one does
            env.reset(seed=0)
            self._frame(env)

    def _frame(self, env: gymnasium.Env) -> np.ndarray:
        _, height, width = self.network.observation_space.shape or (0, 0, 0)
        return shown(env.render(), (height, width))


def load_seeing_policy(folder: Path | str) -> SeeingPolicy:
    """Load the agent that `learn` saved in a folder, for any env that renders. Raises CheckpointError."""
    folder = Path(folder)
    if not is_file(folder / AGENT) and (agents := sorted(path.parent.name for path in folder.glob(f"*/{AGENT}"))):
        raise CheckpointError(f"{folder}: expected the folder of one agent, found {', '.join(agents[:6])}; name one, "
                              f"such as {folder / agents[0]}")
    policy = load_policy(folder)
    return SeeingPolicy(policy.network, policy.name)


def load_policy(folder: Path | str, name: str | None = None) -> PPOPolicy:
    """Load the agent that `learn` saved in a folder. `name`: of the policy; default: the folder's name."""
    tensors, facts = _read(Path(folder) / AGENT)
    settings = PPOSettings(**{key: facts["recipe"][key] for key in asdict(PPOSettings())})
    pictures = spaces.Box(0, 255, tuple(facts["observation"]), np.uint8)
    network = ActorCriticCnnPolicy(
        pictures, spaces.Discrete(facts["actions"]), lambda _: settings.learning_rate, **_architecture(settings)
    )
    _fill(network, tensors, Path(folder) / AGENT)
    return PPOPolicy(network.eval(), name or Path(folder).name)
