"""`starflow-world data`: recordings of others as episodes, and folders of episodes looked at and joined."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg, subcommand

from starflow_world.commands.data.tasks import ImportRecordings, InspectRecordings, MergeEpisodes, PreviewRecordings


@dataclass(frozen=True)
class Data:
    """Bring in recordings (LeRobot, Minari, videos with a table, NumPy archives), look at them, join folders."""

    task: Annotated[
        Annotated[ImportRecordings, subcommand("import")]
        | Annotated[InspectRecordings, subcommand("inspect")]
        | Annotated[PreviewRecordings, subcommand("preview")]
        | Annotated[MergeEpisodes, subcommand("merge")],
        arg(name=""),
    ]
    """What to do."""

    def run(self) -> None:
        """Do it."""
        self.task.run()
