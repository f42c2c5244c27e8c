"""The HTML page of one or several report cards. All texts from reports are escaped by starflow_world/io/html.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from starflow_world.commands.evaluate.catalog import (
    ACTIONS,
    CHANCE,
    FIDELITY,
    LIKELIHOOD,
    OUTCOMES,
    Panel,
    charts_of,
    flat_figures,
    headlines,
    horizon_rows,
    ledger_words,
    left_out,
    published_words,
)
from starflow_world.commands.evaluate.charts import (
    PALETTE,
    SOURCES,
    WORLDS,
    Line,
    bar_chart,
    curve_chart,
    line_chart,
    reliability_chart,
)
from starflow_world.commands.evaluate.markdown import provenance_rows
from starflow_world.commands.evaluate.report import REAL
from starflow_world.errors import DataError
from starflow_world.evaluation.horizons import COPY, horizons_of
from starflow_world.io.files import DAMAGE
from starflow_world.io.html import Markup, data_uri, joined, page, table, tag
from starflow_world.io.media import png_bytes
from starflow_world.io.reports import number, percent

LONGEST_NAME = 24


@dataclass(frozen=True)
class ReportCard:
    """A report (commands/evaluate/report.py), strips of frames (3, K, H, W, 3) u8 (real, imagined, difference) of its
    rollouts at the horizons, videos (MP4) of them, and its colour in a comparison."""

    report: Mapping[str, Any]
    strips: Sequence[np.ndarray]
    videos: Sequence[bytes]
    colour: str = "blue"

    @property
    def name(self) -> str:
        """Return the name of the world."""
        return str(self.report["world"])


def report_page(cards: Sequence[ReportCard]) -> str:
    """Return the page of one report, or of several next to each other. Raises DataError for more than there are
    colours, and for a report of which parts are missing or of the wrong kind."""
    if not 1 <= len(cards) <= len(WORLDS):
        raise DataError(f"compare: expected 1 to {len(WORLDS)} reports, found {len(cards)}; leave some out")
    some = [replace(card, colour=colour) for card, colour in zip(cards, WORLDS, strict=False)]
    try:
        title = " and ".join(card.name for card in some)
        return page(f"{title}: report card", _body(some), PALETTE)
    except (*DAMAGE, IndexError) as damage:
        raise DataError(f"report: expected what starflow-world evaluate --report writes, found {damage!r:.120}; write "
                        "it again") from None


def _body(cards: Sequence[ReportCard]) -> Markup:
    alone = len(cards) == 1
    return joined(
        _top(cards), _frames(cards), *(_section(cards, section) for section in (FIDELITY, LIKELIHOOD, CHANCE)),
        _outcomes(cards), _section(cards, ACTIONS), _ablations(cards), _curves(cards), _speed(cards),
        *(_published(card, alone) for card in cards), _details(cards),
    )


def _top(cards: Sequence[ReportCard]) -> Markup:
    if len(cards) > 1:
        titles = list(dict.fromkeys(title for card in cards for title in headlines(card.report)))
        rows = [[title, *(headlines(card.report).get(title, "") for card in cards)] for title in titles]
        return joined(tag("h1", "Worlds compared"), _legend(cards), table(["", *(card.name for card in cards)], rows))
    report = cards[0].report
    env = report["card"].get("env", report["data"])
    tiles = [tag("div", tag("b", text), tag("span", title, class_="soft"), class_="box")
             for title, text in headlines(report).items()]
    about = (f"A learned world of {env}, measured on {report['figures']['episodes']} episodes of {report['data']}. "
             f"Rollouts: {report['rollouts']} in open loop with the recorded actions, after {report['given']} real "
             "frames. Bands are 95 % intervals over episodes.")
    return joined(tag("h1", cards[0].name), tag("p", about, class_="soft"), tag("div", tiles, class_="tiles"),
                  _legend(cards))


def _legend(cards: Sequence[ReportCard]) -> Markup:
    """Return the key of the colours, which holds for the whole page."""
    if len(cards) == 1:
        keys = [(colour, "solid", source) for source, colour in SOURCES.items()]
    else:
        keys = [(card.colour, "solid", card.name) for card in cards]
        keys.append(("grey", "dashed", f"dashed, in the colour of a world: {COPY}"))
    return tag("div", [
        tag("span", tag("i", style=f"border-color: var(--c-{colour}); border-top-style: {style}"), name)
        for colour, style, name in keys
    ], class_="key")


def _frames(cards: Sequence[ReportCard]) -> Markup:
    """Return strips of frames at the horizons and looping videos."""
    parts: list[str] = []
    for card in cards:
        if len(cards) > 1:
            parts.append(tag("h3", card.name))
        clips = []
        strips = [_strip(strip, card.report, _text(card, place)) for place, strip in enumerate(card.strips)]
        parts.append(tag("div", strips, class_="row"))
        for place, video in enumerate(card.videos):
            source = data_uri("video/mp4", video)
            shown = Markup(f'<video autoplay loop muted playsinline controls src="{source}"></video>')
            words = f"real | imagined | difference. {_text(card, place)}"
            clips.append(tag("figure", shown, tag("figcaption", words), class_="box"))
        parts.append(tag("div", clips, class_="grid"))
    note = ("Rollouts in open loop with the same actions, from the same real frames, after 1, 4, 16 ... steps. The "
            "difference is black where a pixel is right. Where chance decides, an imagined frame may differ and still "
            "be possible.")
    return joined(tag("h2", "Frames"), tag("p", note, class_="soft"), parts)


def _text(card: ReportCard, number: int) -> str:
    texts = card.report["texts"]
    return str(texts[number]) if number < len(texts) and texts[number] else f"episode {number + 1}"


def _strip(strip: np.ndarray, report: Mapping[str, Any], text: str) -> Markup:
    steps, rows = horizons_of(int(report["steps"]))[: strip.shape[1]], []
    for name, frames in zip(("real", "imagined", "difference"), strip, strict=True):
        pictures = [tag("img", src=data_uri("image/png", png_bytes(frame)), alt=f"{name}, step {step}")
                    for frame, step in zip(frames, steps, strict=True)]
        rows.append([name, *pictures])
    return tag("div", tag("h3", text), table(["", *(f"{step:,}" for step in steps)], rows, class_="frames"))


def _section(cards: Sequence[ReportCard], section: str) -> Markup:
    """Return the charts of a section."""
    boxes = [_chart(cards, key, entry) for key, entry in charts_of([card.report for card in cards], section)]
    if not boxes:
        return Markup()
    words: list[tuple[str, str]] = []
    if section == CHANCE:
        words = [(card.name, ledger_words(card.report)) for card in cards]
    if section == ACTIONS:
        words = [(card.name, f"A guess among {card.report['actions']} actions is right in "
                  f"{percent(1 / card.report['actions'])} of frames. Actions with the same effect in a state cannot be "
                  "told from each other.") for card in cards if card.report["actions"]]
    notes = [tag("p", text if len(cards) == 1 else f"{name}: {text}", class_="soft") for name, text in words if text]
    return joined(tag("h2", section), notes, tag("div", boxes, class_="grid"))


def _chart(cards: Sequence[ReportCard], key: str, entry: Panel) -> Markup:
    lines = []
    for card in cards:
        chart = card.report["charts"].get(key, {})
        if len(cards) == 1:
            lines += [Line(SOURCES[source], series, source == COPY) for source, series in chart.items()]
        else:
            lines += [Line(card.colour, series, source == COPY) for source, series in chart.items()
                      if source in (entry.main, COPY)]
    drawn = line_chart(lines, "" if entry.share else entry.unit, share=entry.share, log=entry.log)
    return _box(entry.title, entry.meaning, drawn)


def _box(title: str, meaning: str, drawn: Markup) -> Markup:
    return tag("figure", tag("h3", title), drawn, tag("figcaption", meaning), class_="box")


def _outcomes(cards: Sequence[ReportCard]) -> Markup:
    boxes = [_chart(cards, key, entry) for key, entry in charts_of([card.report for card in cards], OUTCOMES)]
    for name, unit in (("reward", "reward"), ("end", "probability of an end")):
        bins = []
        for card in cards:
            sources = card.report["outcomes"].get(name, {}).get("bins", {})
            bins += [(SOURCES[source] if len(cards) == 1 else card.colour, some) for source, some in sources.items()
                     if len(cards) == 1 or source == REAL]
        if bins:
            boxes.append(_box(f"Reliability of {name}s", "On the diagonal, what is predicted comes as often as "
                              "predicted. Larger points are more cases.", reliability_chart(bins, unit)))
    return joined(tag("h2", OUTCOMES), tag("div", boxes, class_="grid")) if boxes else Markup()


def _ablations(cards: Sequence[ReportCard]) -> Markup:
    known = [card.report["figures"].get("ablations", {}) for card in cards]
    names = list(dict.fromkeys(name for rows in known for name in rows if name != "whole"))
    if not names:
        return Markup()
    groups = []
    for card, rows in zip(cards, known, strict=True):
        loss, error = ([float(rows.get(name, {}).get(key, np.nan)) for name in names] for key in ("loss", "loss_error"))
        groups.append((card.colour, loss, error))
    short = [" ".join(name.split())[:LONGEST_NAME] for name in names]  # longer ones leave no room for bars
    drawn = bar_chart(short, groups, "nats per frame that are lost")
    meaning = ("Nats per frame that real frames cost without a part of the world, beyond the whole world, with 95 % "
               "intervals. What costs nothing does nothing.")
    return joined(tag("h2", "What each part is worth"), tag("div", _box("Ablations", meaning, drawn), class_="grid"))


def _curves(cards: Sequence[ReportCard]) -> Markup:
    curves = [(card.colour, card.report["curve"]) for card in cards if card.report["curve"]]
    if not curves:
        return Markup()
    box = _box("Data-size curve", "Held-out excess nats of trainings of equal time on parts of the data.",
               curve_chart(curves))
    return joined(tag("h2", "What data are worth"), tag("div", box, class_="grid"))


def _speed(cards: Sequence[ReportCard]) -> Markup:
    titles = {
        "steps_per_second_1": "env steps per second, 1 env",
        "steps_per_second_64": "env steps per second, 64 envs together",
        "gflop_per_step": "Gflop per step", "sweeps": "Jacobi sweeps per frame",
        "jacobi_over_sequential": "times as fast as decoding token by token", "jacobi_error": "largest error of that",
    }
    rows = [[title, *(number(card.report["figures"].get(key)) for card in cards)] for key, title in titles.items()]
    rows = [row for row in rows if any(row[1:])]
    rows.append(["processor", *(f"{card.report['processor']}, {card.report['threads']} threads" for card in cards)])
    return joined(tag("h2", "Speed"), table(["", *(card.name for card in cards)], rows))


def _published(card: ReportCard, alone: bool) -> Markup:
    rows = card.report["published"]
    title = "Beside published figures" if alone else f"{card.name} beside published figures"
    parts = [table(["figure", "published", "here", "source"], rows)] if rows else []
    return joined(tag("h2", title), tag("p", published_words(card.report)), parts)


def _details(cards: Sequence[ReportCard]) -> Markup:
    """Return tables of all figures, what was left out, and provenance, of each world."""
    parts: list[str] = []
    for card in cards:
        prefix = "" if len(cards) == 1 else f"{card.name}: "
        head, rows = horizon_rows(card.report)
        parts += [
            tag("h2", f"{prefix}tables"),
            tag("details", tag("summary", "Figures at the horizons, with 95 % intervals"), table(head, rows)),
            tag("details", tag("summary", "All figures of the card"),
                table(["figure", "value"], list(flat_figures(card.report["figures"])))),
            tag("h2", f"{prefix}what is left out"),
            tag("ul", [tag("li", text) for text in left_out(card.report)]),
            tag("h2", f"{prefix}provenance"), table(["", ""], provenance_rows(card.report)),
        ]
    return joined(parts)
