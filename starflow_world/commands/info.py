"""`starflow-world info`: the config and the card of a world."""

from dataclasses import dataclass

from tyro.conf import Positional


@dataclass(frozen=True)
class Info:
    """Print the config of a world and its card: the figures it was measured with."""

    world: Positional[str] = "babyai-gotolocal"
    """Folder or name of a shipped world; or a folder that convert wrote."""

    def run(self) -> None:
        """Print every key of the files."""
        from starflow_world.model.checkpoint import describe
        from starflow_world.world import find_world

        for path, values in describe(find_world(self.world)).items():
            print(f"{path}\n")
            for key, value in values.items():
                print(f"  {key}: {value}")
            print()
