"""Helpers for reports: figures with goals, numbers as text, tables in Markdown and CSV, JSON-safe values."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

ENDLESS = 1e300
"""Number that stands for infinity in JSON."""


@dataclass(frozen=True)
class Goal:
    """A measured value with a goal: at least `least` and at most `most`; NaN if it was not measured."""

    name: str
    value: float
    least: float = -math.inf
    most: float = math.inf
    unit: str = ""
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Return whether the goal is met; None if the value was not measured."""
        return None if math.isnan(self.value) else self.least <= self.value <= self.most

    def as_json(self) -> dict[str, Any]:
        """Return the fields and `met` as JSON-safe values."""
        return json_safe(asdict(self) | {"met": self.met})


def goal_table(goals: Iterable[Mapping[str, Any]]) -> str:
    """Return goals, in the form of `Goal.as_json`, as a Markdown table."""
    met = {True: "yes", False: "**no**", None: "not measured"}
    rows = []
    for goal in goals:
        unit = f" {goal['unit']}" if goal.get("unit") else ""
        bounds = [f"{sign} {goal[bound]:g}{unit}" for sign, bound in ((">=", "least"), ("<=", "most"))
                  if abs(goal[bound]) < ENDLESS]
        value = number(goal["value"])
        rows.append([goal["name"], value + unit if value else "", ", ".join(bounds), met[goal["met"]], goal["note"]])
    return markdown_table(["figure", "measured", "goal", "met", "how"], rows)


def number(value: float | None) -> str:
    """Format a value with three digits, four near 0 and 1; an empty text for None and NaN, "never" for infinity."""
    if value is None or math.isnan(value):
        return ""
    if abs(value) >= ENDLESS:
        return "never"
    if abs(value) >= 1 or value == 0:
        return f"{value:.3g}"
    return f"{value:.3f}" if 0.01 <= abs(value) <= 0.99 else f"{value:.4f}"


def percent(share: float | None) -> str:
    """Format a share as a percentage; an empty text for None and NaN."""
    return "" if share is None or math.isnan(share) else f"{100 * share:.1f} %"


def json_safe(value: Any) -> Any:
    """Make floats JSON-safe, in nested data too: NaN becomes None, infinities become +-1e300."""
    if is_dataclass(value) and not isinstance(value, type):
        return json_safe(asdict(value))
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else math.copysign(ENDLESS, value)
    return value


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns line up, so that it reads well on a terminal too."""
    sizes = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [" | ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)) for row in (head, *rows)]
    return "\n".join(f"| {line} |" for line in (lines[0], " | ".join("-" * size for size in sizes), *lines[1:]))


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV with a header line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
