"""`starflow-world doctor`: the machine, the installation and a self-test, for bug reports."""

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Doctor:
    """Print versions, processor, precision, extras and folders, and test the numbers of a tiny world; about 10 seconds.

    Paste the output into a bug report. Exits with 1 if the self-test fails.
    """

    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> None:
        """Collect the facts, print them, and exit with 1 if the self-test failed."""
        from starflow_world.cli import environment
        from starflow_world.commands.doctor.facts import doctor_text, examine_machine

        facts = examine_machine(environment())
        print(json.dumps(facts, indent=1) if self.json else doctor_text(facts))
        if not facts["self-test"]["passed"]:
            raise SystemExit(1)
