"""A report card as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from starflow_world.commands.evaluate.catalog import (
    flat_figures,
    headlines,
    horizon_rows,
    left_out,
    published_words,
)
from starflow_world.io.reports import markdown_table, number


def report_markdown(report: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """Return the report; `pictures` are the names of the strips of frames beside it."""
    head, rows = horizon_rows(report)
    parts = [f"# {plain(report['world'])}", _conditions(report)]
    parts += [_table(["figure", "value"], headlines(report).items())]
    parts += ["## Frames", "Real above imagined above their difference, at the horizons of the table below."]
    parts += [f"{plain(text)}\n\n![frames]({name})" for name, text in zip(pictures, report["texts"], strict=False)]
    parts += ["## Against the horizon", f"{report['rollouts']} rollouts in open loop with the recorded actions, after "
              f"{report['given']} real frames; 95 % intervals over episodes.", _table(head, rows)]
    if "ablations" in report["figures"]:
        head = ["without", "excess nats per frame", "lost by that", "standard error"]
        rows = [[name, *(number(row[key]) for key in ("excess_nats", "loss", "loss_error"))]
                for name, row in report["figures"]["ablations"].items()]
        parts += ["## Ablations", _table(head, rows)]
    if report["curve"]:
        rows = [[f"{point['episodes']:,.0f}", f"{point['valid_excess']:.4g}"] for point in report["curve"]]
        parts += ["## Data", _table(["episodes of training data", "excess nats per frame"], rows)]
    parts += ["## Published figures", published_words(report)]
    if report["published"]:
        parts.append(_table(["figure", "published", "here", "source"], report["published"]))
    parts += ["## All figures", _table(["figure", "value"], flat_figures(report["figures"]))]
    parts += ["## Left out", "\n".join(f"* {text}" for text in left_out(report))]
    parts += ["## Provenance", _table(["", ""], provenance_rows(report))]
    return "\n\n".join(parts) + "\n"


def provenance_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was measured, on what, with what, as names and texts."""
    facts = {
        "world": f"{report['world']} ({report['world_id'][:16]}), {report['parameters']:,} parameters, frames of "
                 f"{report['frame'][0]} x {report['frame'][1]}, window {report['window']}, context {report['context']}",
        "data": f"{report['data']}, SHA-256 of the episodes rolled out {report['digest'][:16]}",
        "measured": f"{report['made']}, in {report['seconds']} s, {report['processor']}, {report['threads']} threads, "
                    f"{report['device']}",
        "versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
    }
    origin = {f"data: {key}": value for key, value in report["origin"].items()}
    card = {f"card: {key}": value for key, value in report["card"].items() if key not in ("published", "curve")}
    return [(name, str(value)) for name, value in (facts | origin | card).items()]


def plain(text: object) -> str:
    """Return a text in which Markdown and HTML begin nothing, on one line."""
    line = " ".join(str(text).split())
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#!" else letter for letter in line)


def _conditions(report: Mapping[str, Any]) -> str:
    return f"Measured on {report['figures']['episodes']} episodes of {plain(report['data'])}, {plain(report['made'])}."


def _table(head: Sequence[str], rows: Any) -> str:
    return markdown_table(head, [[plain(cell) for cell in row] for row in rows])
