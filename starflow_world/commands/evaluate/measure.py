"""The figures of a world's card, measured on held-out episodes, and their pictures."""

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from starflow_world.agents.babyai.memory import needs_memory
from starflow_world.agents.babyai.tiles import ENV as BABYAI
from starflow_world.agents.environment import Environment
from starflow_world.agents.laws import Law, law_of
from starflow_world.agents.registry import LOCATORS
from starflow_world.config.world import DecodeConfig
from starflow_world.data.dataset import EpisodeDataset, origin
from starflow_world.data.episodes import Episode
from starflow_world.errors import DataError
from starflow_world.evaluation.ablations import collapsed
from starflow_world.evaluation.chance import ChanceSizes, chance_figures, draws, spots
from starflow_world.evaluation.fidelity import (
    actions_of,
    codec_figures,
    excess_nats,
    memoryless,
    one_step,
    open_loop,
    outcomes,
    rolled,
)
from starflow_world.evaluation.intervals import Share
from starflow_world.evaluation.positions import position_figures
from starflow_world.evaluation.returns import return_figures
from starflow_world.evaluation.texts import changed_text
from starflow_world.io.media import caption, contact_sheet, enlarge, write_png
from starflow_world.world import World

TEXT_SAMPLES, RETURNS = 200, 40
DRAWN, SIDE = 12, 112
"""Steps of the rollouts that are drawn, and least width of their frames in pixels."""
BEGINS = (0, 8, 16)


def measure_world(
    world: World, episodes: list[Episode], ending: list[Episode] | None, out: Path
) -> dict[str, Any]:
    """Return the figures of a world on episodes that do not end early; rewards and ends are measured on `ending` ones.

    Writes rollouts beside the real frames, and first frames from texts, as pictures to `out`.
    """
    figures: dict[str, Any] = {"episodes": len(episodes), **codec_figures(world, episodes)}
    env, whole = str(world.card.get("env")).rpartition(":")[2], world.card.get("view") != "observation"
    rule = needs_memory if whole and "carrying" in episodes[0].info else memoryless
    figures |= excess_nats(world, episodes, needs_memory=rule)
    figures |= one_step(world, episodes, needs_memory=rule)
    horizons = [horizon for horizon in (16, 64) if min(map(len, episodes)) > horizon]
    if horizons:
        figures |= open_loop(world, episodes, horizons, BEGINS, needs_memory=rule)
    if ending is not None and world.networks.outcome is not None:
        figures |= outcomes(world, ending)
        figures |= changed_text(world, ending)
    figures |= return_figures(world, episodes[:RETURNS])
    draw_rollouts(world, episodes, out / "rollouts.png")
    if env in LOCATORS:
        figures["positions"] = position_figures(world, episodes, LOCATORS[env])
    if env == BABYAI and whole:
        figures |= _babyai(world, episodes, out)
    return figures | cost(world, max(episodes, key=len))


def draw_rollouts(world: World, episodes: list[Episode], path: Path) -> None:
    """Write a picture of rollouts in open loop after `context` real frames, a row each: real frames above imagined
    ones. Nothing where all episodes are too short."""
    given, rows = world.config.context, 4
    some = [episode for episode in episodes if len(episode) > given + DRAWN][:rows]
    if not some:
        return
    factor, pictures = max(1, SIDE // world.config.width), []
    for t, imagined, real in rolled(world, some, given - 1, DRAWN, given=given):
        pairs = np.concatenate([real, imagined], axis=1)
        pictures.append([caption(enlarge(pair, factor), [f"{t}"], 0.35) for pair in pairs])
    write_png(path, contact_sheet([step[row] for row in range(len(some)) for step in pictures], columns=DRAWN))


def measure_chance(world: World, episodes: list[Episode], law: Law, sizes: ChanceSizes) -> dict[str, Any]:
    """Return the figures of chance on episodes of the law's environment; `most_likely`: those of the next frames of the
    world whose mixtures have one component."""
    figures = chance_figures(world, episodes, law, sizes)
    if (likely := collapsed(world)) is not None:
        some = spots(world, episodes, law, sizes.states, sizes.seed)
        few = draws(likely, some, law, replace(sizes, draws=max(len(some), sizes.draws // 10)))
        figures["most_likely"] = {key: few[key] for key in ("known_tiles_1", "legal_1")}
    return figures


def known_law(folder: Path) -> Law | None:
    """Return the transition law of the environment that episodes were collected in; None if it is not known."""
    record = origin(folder)
    return law_of(Environment(**record)) if "env" in record else None


def first_episodes(folder: Path, most: int) -> list[Episode]:
    """Read the first episodes of a folder; DataError if there are none."""
    dataset = EpisodeDataset(folder)
    if not len(dataset):
        raise DataError(f"{folder}: expected episodes, found none; make some with starflow-world collect")
    return [dataset[index] for index in range(min(most, len(dataset)))]


def _babyai(world: World, episodes: list[Episode], out: Path) -> dict[str, Any]:
    from starflow_world.agents.babyai.tiles import changed_actions, text_starts

    missions = [episodes[index % len(episodes)].text for index in range(TEXT_SAMPLES)]
    figures: dict[str, Any] = {"changed_action_agrees": changed_actions(world, episodes)}
    with tqdm(total=1, desc="starts from text", unit="batch") as bar:
        shares, frames = text_starts(world, missions)
        bar.update()
    pictures = [caption(enlarge(frame, 3), [text], 0.4) for frame, text in zip(frames[:24], missions, strict=False)]
    write_png(out / "text_starts.png", contact_sheet(pictures, columns=6))
    return figures | shares


def cost(world: World, episode: Episode) -> dict[str, float]:
    """Return operations and seconds of an env step, decoding included, averaged over whole windows and slides."""
    count = min(len(episode), 2 * world.config.window)
    flat = actions_of([episode], count)
    figures: dict[str, float] = {"threads": torch.get_num_threads()}
    with tqdm(total=4, desc="cost of a step", unit="part") as bar:
        counting = FlopCounterMode(display=False)
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counting as counter:
            _roll(world, episode, flat, 1)
        figures["gflop_per_step"] = counter.get_total_flops() / (count - 1) / 1e9
        bar.update()
        for rows in (1, 64):
            _roll(world, episode, flat[:, :4], rows)
            seconds = _roll(world, episode, flat, rows)
            figures[f"steps_per_second_{rows}"] = rows * (count - 1) / seconds
            bar.update()
        sequential = world.decoded(replace(DecodeConfig(), chunk=1))
        seconds = _roll(sequential, episode, flat[:, :17], 1)
        figures["jacobi_over_sequential"] = seconds / _roll(world, episode, flat[:, :17], 1)
        figures["jacobi_error"] = _largest_error(world, sequential, episode, flat)
        bar.update()
    return figures


def _roll(world: World, episode: Episode, flat: torch.Tensor, rows: int) -> float:
    """Time `rows` batch elements over the actions (1, T, 1 + flat) after a real first frame; return seconds."""
    frames = np.repeat(episode.frames[None, :1], rows, axis=0)
    state, _ = world.start(frames, flat[:, :1].expand(rows, -1, -1), text=world.texts_for([episode.text])[0], seed=0)
    begin = time.perf_counter()
    for t in range(1, flat.shape[1]):
        state, made = world.step(state, flat[:, t].expand(rows, -1), reuse=True)
    made.frames.cpu()  # wait for the device
    return time.perf_counter() - begin


def _largest_error(world: World, sequential: World, episode: Episode, flat: torch.Tensor) -> float:
    """Return the largest difference of u between two decoders of a frame, given equal states and noise."""
    state, _ = world.start(episode.frames[None, :1], flat[:, :1], text=world.texts_for([episode.text])[0], seed=0)
    worst = 0.0
    for t in range(1, min(flat.shape[1], 17)):
        other, _ = sequential.step(state, flat[:, t])
        state, _ = world.step(state, flat[:, t])
        last = int(state.length[0]) - 1
        worst = max(worst, float((state.tokens[0, last] - other.tokens[0, last]).abs().max()))
    return worst


def json_figures(figures: dict[str, Any]) -> dict[str, Any]:
    """Make figures JSON-safe: shares and other dataclasses become dictionaries."""
    safe: dict[str, Any] = {}
    for key, value in figures.items():
        if isinstance(value, Share):
            safe[key] = {"share": None if not value.total else value.share, "total": value.total,
                         "interval": value.interval}
        elif isinstance(value, dict):
            safe[key] = json_figures(value)
        else:
            safe[key] = asdict(value) if hasattr(value, "__dataclass_fields__") else value
    return safe


def figure_text(name: str, value: Any) -> str:
    """Return a figure as a line of text; several figures as one line each, below their name."""
    if isinstance(value, dict):
        return "\n".join([name, *("  " + line for key in value for line in figure_text(key, value[key]).splitlines())])
    return f"{name:<28} {f'{value:.4g}' if isinstance(value, float) else value}"
