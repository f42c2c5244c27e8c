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
        from starflow_world.io.files import is_file
        from starflow_world.model.checkpoint import CARD, CONFIG, read_json
        from starflow_world.model.video_checkpoint import CONFIG as CONVERTED
        from starflow_world.world import find_world

        folder = find_world(self.world)
        for name in (CONVERTED,) if is_file(folder / CONVERTED) else (CONFIG, CARD):
            print(f"{folder / name}\n")
            for key, value in read_json(folder / name).items():
                print(f"  {key}: {value}")
            print()
