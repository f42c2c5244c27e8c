"""`starflow-world make`: a world from its recipe alone: collect, train, evaluate."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

if TYPE_CHECKING:
    from starflow_world.config.train import DataConfig


@dataclass(frozen=True)
class MakeWorld:
    """Make a world from its recipe alone: collect the episodes that it asks for, train, and measure on held-out ones.

    What was interrupted goes on where it stopped. Episodes and steps that are done are not done again, the figures are.
    """

    recipe: Positional[Path]
    """Recipe with a section `data`, such as configs/dynamic-obstacles.yaml."""
    overrides: Positional[tuple[str, ...]] = ()
    """Changes to the recipe as section.key=value, such as train.steps=100."""
    folder: Path = Path(".")
    """Folder in which data/NAME, data/NAME-valid, ... and runs/NAME are written."""

    def run(self) -> None:
        """Collect, train and evaluate."""
        from starflow_world.commands.evaluate import Evaluate
        from starflow_world.commands.train import TrainWorld
        from starflow_world.config.train import RecipeConfig, load_recipe
        from starflow_world.errors import ConfigError
        from starflow_world.model.checkpoint import TRAINING

        recipe = load_recipe(self.recipe, self.overrides)
        if not isinstance(recipe, RecipeConfig) or recipe.data is None:
            raise ConfigError(f"{self.recipe}: expected a section `data` that names an environment, found none; write "
                              "one, or collect and train by their own verbs")
        name, data = recipe.name or self.recipe.stem, self.folder / "data"
        out, valid = self.folder / "runs" / name, data / f"{name}-valid"
        size = (recipe.world.height, recipe.world.width)
        collect_split(recipe.data, data / name, size, recipe.data.episodes, recipe.data.seed)
        collect_split(recipe.data, valid, size, recipe.data.valid, recipe.data.seed + 1)
        starts = data / f"{name}-starts" if recipe.data.starts else None
        if starts is not None:
            short = replace(recipe.data, max_steps=1, policy="random")
            collect_split(short, starts, size, recipe.data.starts, recipe.data.seed + 3)
        judged = valid
        if recipe.data.eval:
            judged = data / f"{name}-eval"
            collect_split(recipe.data, judged, size, recipe.data.eval, recipe.data.seed + 2, ends=False)
        resume = (out / TRAINING).exists()
        TrainWorld(self.recipe, data / name, out, self.overrides, valid, starts, resume=resume).run()
        Evaluate(judged, str(out), outcomes=valid, out=out / "evaluate", card=True).run()


def collect_split(
    data: "DataConfig", out: Path, size: tuple[int, int], episodes: int, seed: int, *, ends: bool = True
) -> None:
    """Collect one set of episodes of a recipe into `out`, with frames of this size."""
    from starflow_world.agents.collect import collect
    from starflow_world.agents.registry import make_policy

    policy = None if data.policy == "auto" else make_policy(data.policy)
    collect(data.env, out, episodes=episodes, policy=policy, seed=seed, env_kwargs=data.env_kwargs,
            wrappers=data.wrappers, max_steps=data.max_steps or None, frame_size=size, reward=data.reward,
            view=data.view, ends=ends)
