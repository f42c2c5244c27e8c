"""A report card on disk: report.html, report.md and report.json, with the pictures and videos of its rollouts.

The HTML page contains its pictures; the files beside it are for the Markdown page and for `starflow-world compare`.
Names of files do not come from report.json, so a report of somebody else makes nobody read another file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from starflow_world.commands.evaluate.markdown import report_markdown
from starflow_world.commands.evaluate.page import ReportCard, report_page
from starflow_world.commands.evaluate.report import FORMAT
from starflow_world.errors import DataError
from starflow_world.evaluation.horizons import SHOWN, SHOWN_STEPS, Horizons, Shown, horizons_of
from starflow_world.io.files import DAMAGE, is_file, write_text
from starflow_world.io.media import VideoWriter, enlarge, read_picture, write_png

PAGE, MARKDOWN, JSON = "report.html", "report.md", "report.json"
FPS, QUALITY, HEIGHT, GAP = 10, 20, 160, 8
MOST_BYTES = 1 << 26


def write_report(report: dict[str, Any], made: Horizons, out: Path) -> Path:
    """Write the report and its media to the folder `out`; return the path of the page."""
    write_text(out / JSON, json.dumps(report, indent=1) + "\n")
    for number in range(SHOWN):  # of an earlier report
        for path in (_strip(out, number), _video(out, number)):
            path.unlink(missing_ok=True)
    for number, shown in enumerate(made.shown):
        _write_strip(shown, horizons_of(made.steps), _strip(out, number))
        _write_video(shown, _video(out, number))
    write_text(out / MARKDOWN, report_markdown(report, [_strip(out, n).name for n in range(len(made.shown))]))
    write_text(out / PAGE, report_page([read_report(out)]))
    return out / PAGE


def read_report(folder: Path) -> ReportCard:
    """Read a report and its media. Raises DataError."""
    path = folder / JSON
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes")
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["format"] != FORMAT:
            raise ValueError(f"format {report['format']}")
        strips = [_read_strip(_strip(folder, n), report["frame"]) for n in range(SHOWN) if is_file(_strip(folder, n))]
        videos = [_video(folder, n).read_bytes() for n in range(SHOWN) if is_file(_video(folder, n))]
    except DAMAGE as damage:
        raise DataError(f"{path}: expected a report of format {FORMAT}, found {damage!r:.120}; write it again with "
                        "starflow-world evaluate WORLD --data DIR --report OUT") from None
    return ReportCard(report, strips, videos)


def _strip(folder: Path, number: int) -> Path:
    return folder / f"frames-{number + 1}.png"


def _video(folder: Path, number: int) -> Path:
    return folder / f"rollout-{number + 1}.mp4"


def _write_strip(shown: Shown, horizons: Sequence[int], path: Path) -> None:
    """Write the frames at the horizons as a picture without gaps: real above imagined above their difference."""
    steps = [step for step in horizons if step in shown.real]
    columns = [_stacked(shown, step, axis=0) for step in steps]
    write_png(path, np.concatenate(columns, axis=1))


def _stacked(shown: Shown, step: int, axis: int) -> np.ndarray:
    real, imagined = shown.real[step], shown.imagined[step]
    difference = np.abs(real.astype(np.int16) - imagined).astype(np.uint8)
    return np.concatenate([real, imagined, difference], axis=axis)


def _read_strip(path: Path, frame: Sequence[int]) -> np.ndarray:
    """Return the frames (3, K, H, W, 3) of a strip."""
    picture, (height, width) = read_picture(path), (int(side) for side in frame)
    if picture.shape[0] != 3 * height or picture.shape[1] % width:
        raise ValueError(f"{path.name} of {picture.shape[:2]} pixels for frames of {height} x {width}")
    return picture.reshape(3, height, -1, width, 3).swapaxes(1, 2)


def _write_video(shown: Shown, path: Path) -> None:
    """Write real, imagined and difference side by side, enlarged, from the last given frame on."""
    with VideoWriter(path, FPS, quality=QUALITY) as video:
        for step in sorted(step for step in shown.real if step <= SHOWN_STEPS):
            parts = np.split(_stacked(shown, step, axis=0), 3)
            factor = max(1, HEIGHT // parts[0].shape[0])
            gap = np.full((parts[0].shape[0] * factor, GAP, 3), 128, np.uint8)
            large = [enlarge(part, factor) for part in parts]
            frame = np.concatenate([large[0], gap, large[1], gap, large[2]], axis=1)
            video.add(np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge"))
