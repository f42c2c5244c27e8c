"""stub"""
from dataclasses import dataclass


@dataclass(frozen=True)
class Doctor:
    """Stub."""
    json: bool = False
    """Print JSON."""
    def run(self) -> None:
        """Run."""
