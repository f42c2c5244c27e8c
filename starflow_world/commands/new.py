"""`starflow-world new`: write a recipe for an environment after a short play."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from starflow_world.commands.flags import read_wrappers


@dataclass(frozen=True)
class New:
    """Play a Gymnasium environment for a few seconds and write a recipe for `train`: frame size, codec, action space,
    texts, rewards and window, with the reasons as comments."""

    env: str
    """Gymnasium id of an environment, or module:Id of one that the module registers."""
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
    """File for the recipe; empty: configs/ENVIRONMENT.yaml."""

    def run(self) -> None:
        """Write the recipe and print what comes next."""
        from starflow_world.agents.environment import Environment
        from starflow_world.agents.recipe import new_recipe

        source = Environment(self.env, self.env_kwargs, read_wrappers(self.wrappers), max_steps=self.max_steps or None)
        print(new_recipe(source, Path(self.out) if self.out else None, view=self.view, minutes=self.minutes))
