"""A recipe for any environment, from a short play, that collects and trains; and environments that are refused."""

import shlex
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from starflow_world.agents import survey as surveys
from starflow_world.agents.environment import OWN_VIEW, Environment
from starflow_world.agents.recipe import new_recipe
from starflow_world.agents.survey import survey
from starflow_world.cli import main
from starflow_world.config.train import RecipeConfig, load_recipe
from starflow_world.errors import ActionError, ConfigError, DataError
from tests import written_recordings

TINY = ["train.steps=2", "train.frames=16", "train.starts=2", "world.flow.deep_width=32", "world.flow.deep_layers=1",
        "world.flow.head_inner=16", "world.flow.features_width=8", "train.precision=f32"]


pytestmark = pytest.mark.usefixtures("no_curves")


class Ball(gymnasium.Env):
    """A ball of one cell on 6 x 8 cells that an action moves; drawn with 5 x 5 pixels for each cell."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space: Any = gymnasium.spaces.Box(0, 1, (1,))
    action_space: Any = gymnasium.spaces.Discrete(4)
    gains, cell = (0.0, 1.0), 5

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.place, self.t = self.np_random.integers((6, 8)), 0
        return np.zeros(1, np.float32), {"text": f"catch the ball in column {self.place[1]}"}

    def step(self, action: Any) -> Any:
        self.t += 1
        self.place = (self.place + ((0, 1), (1, 0), (0, -1), (-1, 0))[action]) % (6, 8)
        return np.zeros(1, np.float32), self.gains[int(self.place[0] == 0)], self.t == 40, False, {}

    def render(self) -> Any:
        cells = np.zeros((6, 8, 3), np.uint8)
        cells[tuple(self.place)] = 255, 200, 0
        return np.repeat(np.repeat(cells, self.cell, 0), self.cell, 1)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plays are short."""
    monkeypatch.setattr(surveys, "FRAMES", 100)


@pytest.fixture
def registered() -> Any:
    """Register a class derived from Ball."""
    names = []

    def register(**changes: Any) -> str:
        names.append(f"Ball{len(names)}-v0")
        gymnasium.register(names[-1], entry_point=type("Case", (Ball,), changes))
        return names[-1]

    yield register
    for name in names:
        del gymnasium.registry[name]


def test_a_recipe_says_what_was_found_and_its_command_makes_a_world(
    registered: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["new", "--env", registered(), "--minutes", "7"])
    said = capsys.readouterr().out
    text, recipe = Path("configs/ball0.yaml").read_text(), load_recipe("configs/ball0.yaml")
    assert isinstance(recipe, RecipeConfig)
    world = recipe.world
    assert (world.height, world.width, world.codec.patch, world.codec.merge, world.grid) == (6, 8, 1, 2, (3, 4))
    assert "one pixel for each block of 5 x 5 equal pixels" in text
    assert (world.text.length, world.flow.text_length) == (40, 40)  # 26 bytes and one more, half as much again
    assert (world.window, world.context, world.flow.components, recipe.train.minutes) == (8, 2, 6, 7)
    assert 0.03 <= world.noise_level <= 0.12
    assert "# action space: Discrete(4)" in text
    assert "rewards: 0 to 1, stored as event" in said
    assert recipe.data is not None
    assert recipe.data.episodes >= 100
    main([*shlex.split(said.splitlines()[-1])[1:], *TINY, "data.episodes=3", "data.valid=2"])
    assert (tmp_path / "runs/ball0/model.safetensors").exists()
    with pytest.raises(ConfigError, match=r"configs/ball0.yaml: expected no such file"):
        new_recipe(Environment("Ball0-v0"))


def test_a_recipe_for_recordings_trains_on_them(
    registered: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["data", "import", str(written_recordings.videos(tmp_path / "tape", (40, 200))), "--out", "data/tape",
          "--frame-size", "16"])
    capsys.readouterr()
    main(["new", "--data", "data/tape", "--minutes", "0"])
    said = capsys.readouterr().out
    recipe = load_recipe("configs/tape.yaml")
    assert isinstance(recipe, RecipeConfig)
    assert recipe.data is None
    assert (recipe.world.height, recipe.world.width, recipe.world.window) == (16, 16, 32)
    assert "rewards: 0 to 1, stored as event" in said
    assert said.splitlines()[-1].strip() == "starflow-world train configs/tape.yaml --data data/tape --out runs/tape"
    main([*shlex.split(said.splitlines()[-1])[1:], *TINY])
    assert (tmp_path / "runs/tape/model.safetensors").exists()


def test_new_takes_an_environment_or_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in ((["new"], "found neither"), (["new", "--env", "Acrobot-v1", "--data", "d"], "found both"),
                        (["new", "--data", str(tmp_path)], "expected at least one good episode")):
        with pytest.raises(SystemExit):
            main(words)
        assert said in capsys.readouterr().err


def test_a_longer_text_than_the_recipe_allows_is_said_before_training(
    registered: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = registered(reset=lambda self, **options: (Ball.reset(self, **options)[0], {"text": "x" * 50}))
    new_recipe(Environment(registered()), tmp_path / "a.yaml")
    main(["collect", "--env", long, "--frame-size", "6", "8", "--episodes", "2", "--out", str(tmp_path / "data")])
    with pytest.raises(SystemExit):
        main(["train", str(tmp_path / "a.yaml"), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")])
    assert "bytes of a text: expected at most 39, found 50 in episode-000000.h5" in capsys.readouterr().err
    assert not (tmp_path / "run/model.safetensors").exists()


def test_negative_and_many_valued_rewards_are_raw(registered: Any, tmp_path: Path) -> None:
    said = new_recipe(Environment(registered(gains=(0.0, -1.0))), tmp_path / "a.yaml")
    assert "rewards: -1 to 0, stored as raw" in said
    assert 'reward: "raw"' in (tmp_path / "a.yaml").read_text()


def test_endless_episodes_get_a_time_limit(registered: Any, tmp_path: Path) -> None:
    def step(self: Any, action: Any) -> Any:
        return (*Ball.step(self, action)[:2], False, False, {})

    new_recipe(Environment(registered(step=step)), tmp_path / "a.yaml")
    assert "max_steps: 500" in (tmp_path / "a.yaml").read_text()


def test_the_view_is_chosen_by_what_gives_frames(registered: Any) -> None:
    def look(self: Any) -> Any:
        return (np.arange(72).reshape(6, 4, 3) + self.t).astype(np.uint8)

    blind = registered(
        render=lambda self: None, reset=lambda self, **options: (Ball.reset(self, **options), (look(self), {}))[1],
        step=lambda self, action: (moved := Ball.step(self, action), (look(self), *moved[1:]))[1],
    )
    seen = survey(Environment(blind))
    assert (seen.source.view, seen.source.size) == ("observation", (6, 4))
    assert survey(Environment(registered())).source.view == "render"


def test_minigrid_keeps_its_cells_and_its_own_view_gets_a_long_window(tmp_path: Path) -> None:
    pytest.importorskip("minigrid")
    own = survey(Environment("BabyAI-GoToObj-v0", max_steps=6), "observation")
    assert (own.source.size, own.cell, own.partial) == ((56, 56), 8, "the agent sees a part of the grid")
    assert own.source.wrappers[-1][0] == OWN_VIEW
    whole = survey(Environment("MiniGrid-Dynamic-Obstacles-5x5-v0", max_steps=6))
    assert (whole.source.size, whole.partial) == ((40, 40), "")


def test_minatar_has_one_pixel_for_each_cell(tmp_path: Path) -> None:
    pytest.importorskip("minatar")
    new_recipe(Environment("MinAtar/Breakout-v1"), tmp_path / "a.yaml", minutes=0)
    recipe = load_recipe(tmp_path / "a.yaml")
    assert isinstance(recipe, RecipeConfig)
    assert (recipe.world.height, recipe.world.codec.patch, recipe.world.grid) == (10, 1, (5, 5))
    assert recipe.train.minutes == 0


@pytest.mark.parametrize(("changes", "error", "said"), [
    ({"render": lambda self: None}, DataError, "frame: expected .* found NoneType"),
    ({"render": lambda self: 1 / 0}, ConfigError, "expected one that renders RGB frames, found ZeroDivisionError"),
    ({"render": lambda self: np.zeros((8 + self.t, 8, 3), np.uint8)}, DataError, "expected frames of one size, found"),
    ({"action_space": gymnasium.spaces.Dict({})}, ActionError, "action space: expected at least one number to choose"),
])
def test_an_environment_that_no_world_can_learn_is_one_clear_line(
    registered: Any, tmp_path: Path, changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as raised:
        new_recipe(Environment(registered(**changes)), tmp_path / "a.yaml")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_vector_env_is_refused(registered: Any, tmp_path: Path) -> None:
    one = registered()
    gymnasium.register("Many-v0", entry_point=lambda **options: SyncVectorEnv([lambda: gymnasium.make(one)] * 2))
    try:
        with pytest.raises(ConfigError, match="env: expected"):
            new_recipe(Environment("Many-v0"), tmp_path / "a.yaml")
    finally:
        del gymnasium.registry["Many-v0"]
