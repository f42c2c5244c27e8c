"""`starflow-world new`: write a recipe for an environment after a short play, or for recordings."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from starflow_world.commands.flags import read_wrappers


@dataclass(frozen=True)
class New:
    """Play a Gymnasium environment for a few seconds, or look at recordings, and write a recipe for `train`: frame
    size, codec, action space, texts, rewards and window, with the reasons as comments."""

    env: str = ""
    """Gymnasium id of an environment, or module:Id of one that the module registers."""
    data: Path | None = None
    """In place of an environment: a folder of episodes, such as one that `data import` wrote."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment, as a JSON object."""
    wrappers: tuple[str, ...] = ()
    """Wrappers in this order, as for collect."""
    view: Literal["auto", "render", "observation"] = "auto"
    """What is learned: the frames of render(), the image in the observation, or auto: the first that there is."""
    max_steps: int = 0
    """Time limit in steps; 0: the environment's own."""
    minutes: float = 60.0
    """Time that training may take on the machine it runs on; 0: a fixed number of steps."""
    out: str = ""
    """File for the recipe; empty: configs/ENVIRONMENT.yaml, or configs/FOLDER.yaml."""

    def run(self) -> None:
        """Write the recipe and print what comes next."""
        from starflow_world.agents.environment import Environment
        from starflow_world.agents.recipe import new_recipe
        from starflow_world.errors import ConfigError

        if bool(self.env) == (self.data is not None):
            raise ConfigError(f"expected an environment (--env) or a folder of episodes (--data), found "
                              f"{'both' if self.env else 'neither'}")
        source = self.data or Environment(self.env, self.env_kwargs, read_wrappers(self.wrappers),
                                          max_steps=self.max_steps or None)
        print(new_recipe(source, Path(self.out) if self.out else None, view=self.view, minutes=self.minutes))
