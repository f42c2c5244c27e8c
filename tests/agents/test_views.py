"""What is recorded of an environment: rendered frames or image observations, MiniGrid's own view, MinAtar's cells."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest

from starflow_world.agents.collect import collect, play
from starflow_world.agents.environment import OWN_VIEW, Environment, source_environment
from starflow_world.agents.policy import RandomPolicy
from starflow_world.cli import main
from starflow_world.data.dataset import EpisodeDataset, origin
from starflow_world.errors import ConfigError, DataError

TILES = (OWN_VIEW, {"tile_size": 8})


class Camera(gymnasium.Env):
    """An env that renders nothing and shows a picture among its observations."""

    observation_space: Any = gymnasium.spaces.Dict({})
    action_space: Any = gymnasium.spaces.Discrete(2)

    def __init__(self) -> None:
        self.t = 0

    def look(self) -> dict[str, np.ndarray]:
        return {"speed": np.zeros(3), "camera": np.full((6, 4, 3), 10 * self.t, np.uint8)}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.look(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return self.look(), 0.0, self.t == 3, False, {}


@pytest.fixture
def camera() -> Any:
    gymnasium.register("Camera-v0", entry_point=Camera)
    yield "Camera-v0"
    del gymnasium.registry["Camera-v0"]


def test_the_image_in_the_observation_is_recorded_and_the_card_says_so(camera: str, tmp_path: Path) -> None:
    collect(camera, tmp_path, episodes=1, seed=0, frame_size=(6, 4), view="observation", progress=False)
    (episode,) = EpisodeDataset(tmp_path)
    assert episode.frames[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
    assert json.loads((tmp_path / "collection.json").read_text())["recipe"]["view"] == "observation"
    world: Any = SimpleNamespace(card=origin(tmp_path), config=SimpleNamespace(name="toy", height=6, width=4))
    source = source_environment(world)
    assert (source.view, source.size) == ("observation", (6, 4))
    env = source.make()
    env.reset(seed=0)
    assert env.step(0)[0]["camera"] is env.render()


def test_an_unknown_view_or_an_observation_without_an_image_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="view: expected one of render, observation, found 'eyes'"):
        Environment("CartPole-v1", view="eyes")
    with pytest.raises(DataError, match=r"frame: expected .*found float32 \(4,\)"):
        collect("CartPole-v1", tmp_path, episodes=1, seed=0, view="observation", progress=False)
    assert not list(tmp_path.iterdir())


class GreyCamera(Camera):
    """The same with a grey picture as its observation."""

    observation_space = gymnasium.spaces.Box(0, 255, (6, 5), np.uint8)

    def look(self) -> Any:
        return np.full((6, 5), 10 * self.t, np.uint8)


def test_a_stack_of_frames_is_refused_where_the_observation_is_recorded(tmp_path: Path) -> None:
    """Four grey frames would else pass as one picture whose channels come first."""
    stack = ("gymnasium.wrappers.FrameStackObservation", {"stack_size": 4})
    settings: dict[str, Any] = {"episodes": 1, "seed": 0, "frame_size": (6, 5), "progress": False}
    gymnasium.register("GreyCamera-v0", entry_point=GreyCamera)
    try:
        with pytest.raises(ConfigError, match=r"one image each, found the stacks of FrameStackObservation, Box\(0"):
            collect("GreyCamera-v0", tmp_path / "stack", view="observation", wrappers=(stack,), **settings)
        assert not (tmp_path / "stack").exists()
        collect("GreyCamera-v0", tmp_path / "one", view="observation", **settings)
    finally:
        del gymnasium.registry["GreyCamera-v0"]
    assert EpisodeDataset(tmp_path / "one")[0].frames[:, 0, 0].tolist() == [[10 * t] * 3 for t in range(4)]


def test_wrappers_on_the_command_line_that_are_no_json_are_one_error(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["collect", "--env", "CartPole-v1", "--out", "nowhere", "--wrappers"]
    with pytest.raises(SystemExit):
        main([*words, '["gymnasium.wrappers.TimeLimit", {3}]'])
    assert "wrappers: expected names, or JSON pairs such as" in capsys.readouterr().err


def test_the_own_view_of_a_minigrid_agent_is_recorded_cell_by_cell(tmp_path: Path) -> None:
    pytest.importorskip("minigrid")
    name = "BabyAI-GoToObj-v0"
    with pytest.raises(ConfigError, match=f"found the symbols of {name}; add the wrapper {OWN_VIEW}"):
        Environment(name, view="observation").make()
    main(["collect", "--env", name, "--out", str(tmp_path), "--episodes", "2", "--max-steps", "8", "--frame-size", "56",
          "--view", "observation", "--wrappers", json.dumps(TILES)])
    episodes = EpisodeDataset(tmp_path)
    assert all(episode.frames.shape[1:] == (56, 56, 3) and episode.text for episode in episodes)
    env = Environment(name, {}, (TILES,), 56, 8, view="observation").make()
    world: Any = env.unwrapped
    env.reset(seed=episodes[0].info["env_seed"])
    assert np.array_equal(episodes[0].frames[0], world.get_frame(tile_size=8, agent_pov=True))


@pytest.mark.parametrize("game", ["Breakout", "Freeway", "SpaceInvaders"])
def test_a_minatar_game_is_recorded_with_one_pixel_for_each_cell(game: str) -> None:
    pytest.importorskip("minatar")
    env = Environment(f"MinAtar/{game}-v1", frame_size=10).make()
    episodes = [play(env, RandomPolicy(), seed=3, index=index, frame_size=10) for index in (0, 1, 0)]
    assert episodes[0].digest() == episodes[2].digest() != episodes[1].digest()
    world: Any = env.unwrapped
    assert episodes[0].frames.shape[1:] == (*world.game.state().shape[:2], 3)
    assert len(np.unique(episodes[0].frames.reshape(-1, 3), axis=0)) <= world.game.state().shape[2] + 1
    assert world.game.sticky_action_prob == 0.1


def test_the_first_step_of_a_minatar_game_repeats_no_action_of_the_episode_before() -> None:
    pytest.importorskip("minatar")
    env = Environment("MinAtar/Breakout-v1").make()
    world: Any = env.unwrapped
    world.game.last_action = 3
    env.reset(seed=0)
    assert world.game.last_action == 0


def test_a_mistyped_id_of_a_package_that_is_not_imported_yet_gets_the_nearest_name() -> None:
    pytest.importorskip("minigrid")
    with pytest.raises(ConfigError, match=r"did you mean 'MiniGrid-Dynamic-Obstacles-8x8-v0'\?"):
        Environment("Minigrid-Dynamic-Obstacle-8x8-v0").make()
    pytest.importorskip("minatar")
    with pytest.raises(ConfigError, match=r"did you mean 'MinAtar/Breakout-v1'\?"):
        Environment("MinAtar/Brekout-v1").make()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starflow_world.agents.environment._register", lambda package: False)
    with pytest.raises(ConfigError, match=r"expected the package minatar for MinAtar/Breakout-v1.*\[envs\]"):
        Environment("MinAtar/Breakout-v1").make()
