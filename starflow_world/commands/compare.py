"""`starflow-world compare`: the report cards of several worlds in one page."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class Compare:
    """Put report cards of several worlds, which evaluate --report wrote, next to each other in one page."""

    reports: Positional[tuple[Path, ...]]
    """Folders of reports, a colour each in this order."""
    out: Path = Path("out/compare.html")
    """Page that is written."""

    def run(self) -> None:
        """Read the reports and write the page."""
        from starflow_world.commands.evaluate.page import report_page
        from starflow_world.commands.evaluate.writing import read_report
        from starflow_world.io.files import write_text

        write_text(self.out, report_page([read_report(folder) for folder in self.reports]))
        print(self.out)
