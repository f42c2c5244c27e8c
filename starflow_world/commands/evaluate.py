"""`starflow-world evaluate`: the figures of a world's card, measured on held-out episodes, and their pictures."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from starflow_world.agents.babyai.memory import needs_memory
from starflow_world.config.world import DecodeConfig
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.data.episodes import Episode
from starflow_world.errors import DataError
from starflow_world.evaluation.fidelity import actions_of, excess_nats, memoryless, one_step, open_loop, outcomes
from starflow_world.evaluation.intervals import Share
from starflow_world.io.files import write_text
from starflow_world.io.media import caption, contact_sheet, enlarge, write_png
from starflow_world.model.checkpoint import CARD, read_json
from starflow_world.world import World, find_world

TEXT_SAMPLES = 200
BEGINS = (0, 8, 16)


def report(
    name: str, data: Path, ending: Path | None, out: Path, *, episodes: int = 120, card: bool = False
) -> dict[str, Any]:
    """Measure the world `name`, print its figures, and write them to `out` (and into its card)."""
    world, some = World.load(name), _episodes(data, episodes)
    figures: dict[str, Any] = {"episodes": len(some)}
    babyai = str(some[0].info.get("env", "")).startswith("BabyAI") or "carrying" in some[0].info
    rule = needs_memory if babyai else memoryless
    figures |= excess_nats(world, some, needs_memory=rule)
    figures |= one_step(world, some, needs_memory=rule)
    horizons = [h for h in (16, 64) if min(len(e) for e in some) > h]
    if horizons:
        figures |= open_loop(world, some, horizons, BEGINS, needs_memory=rule)
    if ending is not None and world.networks.outcome is not None:
        figures |= outcomes(world, _episodes(ending, 4 * episodes))
    if babyai:
        figures |= _babyai(world, some, out)
    figures |= cost(world, some[0])
    write_text(out / "evaluation.json", json.dumps(plain(figures), indent=1) + "\n")
    for key, value in figures.items():
        print(f"{key:<28} {value if isinstance(value, Share | str) else _short(value)}")
    if card:
        folder = find_world(name)
        write_text(folder / CARD, json.dumps(read_json(folder / CARD) | {"figures": plain(figures)}, indent=1) + "\n")
    return figures


def _episodes(folder: Path, most: int) -> list[Episode]:
    dataset = EpisodeDataset(folder)
    if not len(dataset):
        raise DataError(f"{folder}: expected episodes, found none; make some with starflow-world collect")
    return [dataset[index] for index in range(min(most, len(dataset)))]


def _babyai(world: World, episodes: list[Episode], out: Path) -> dict[str, Any]:
    from starflow_world.agents.babyai.tiles import changed_actions, text_starts

    missions = [episodes[index % len(episodes)].text for index in range(TEXT_SAMPLES)]
    figures: dict[str, Any] = {"changed_action_agrees": changed_actions(world, episodes)}
    shares, frames = text_starts(world, missions)
    pictures = [caption(enlarge(frame, 3), [text], 0.4) for frame, text in zip(frames[:24], missions, strict=False)]
    write_png(out / "text_starts.png", contact_sheet(pictures, columns=6))
    return figures | shares


def cost(world: World, episode: Episode) -> dict[str, float]:
    """Operations and seconds of an env step, decoding included, over whole windows with their slides."""
    count = min(len(episode), 2 * world.config.window)
    flat = actions_of([episode], count)
    figures: dict[str, float] = {"threads": torch.get_num_threads()}
    counting = FlopCounterMode(display=False)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counting as counter:
        _roll(world, episode, flat, 1)
    figures["gflop_per_step"] = counter.get_total_flops() / (count - 1) / 1e9
    for rows in (1, 64):
        _roll(world, episode, flat[:, :4], rows)
        seconds = _roll(world, episode, flat, rows)
        figures[f"steps_per_second_{rows}"] = rows * (count - 1) / seconds
    sequential = world.decoded(replace(DecodeConfig(), chunk=1))
    seconds = _roll(sequential, episode, flat[:, :17], 1)
    figures["jacobi_over_sequential"] = seconds / _roll(world, episode, flat[:, :17], 1)
    figures["jacobi_error"] = _largest_error(world, sequential, episode, flat)
    return figures


def _roll(world: World, episode: Episode, flat: torch.Tensor, rows: int) -> float:
    """Seconds of stepping `rows` rows through the actions (1, T, 1 + flat), behind a real first frame."""
    frames = np.repeat(episode.frames[None, :1], rows, axis=0)
    state, _ = world.start(frames, flat[:, :1].expand(rows, -1, -1), text=episode.text, seed=0)
    begin = time.perf_counter()
    for t in range(1, flat.shape[1]):
        state, made = world.step(state, flat[:, t].expand(rows, -1), reuse=True)
    made.frames.cpu()  # a device may still be at work
    return time.perf_counter() - begin


def _largest_error(world: World, sequential: World, episode: Episode, flat: torch.Tensor) -> float:
    """Largest difference of u between the two decodings of a frame, from equal states and noise."""
    state, _ = world.start(episode.frames[None, :1], flat[:, :1], text=episode.text, seed=0)
    worst = 0.0
    for t in range(1, min(flat.shape[1], 17)):
        other, _ = sequential.step(state, flat[:, t])
        state, _ = world.step(state, flat[:, t])
        last = int(state.length[0]) - 1
        worst = max(worst, float((state.tokens[0, last] - other.tokens[0, last]).abs().max()))
    return worst


def plain(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures as JSON can hold them."""
    found: dict[str, Any] = {}
    for key, value in figures.items():
        if isinstance(value, Share):
            found[key] = {"share": None if not value.total else value.share, "total": value.total,
                          "interval": value.interval}
        else:
            found[key] = asdict(value) if hasattr(value, "__dataclass_fields__") else value
    return found


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
