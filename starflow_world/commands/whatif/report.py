"""Report of an episode beside its alternative: video, contact sheet, figures as JSON, and a summary."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from starflow_world.commands.whatif.imagine import Alternative
from starflow_world.data.episodes import Episode
from starflow_world.io.files import write_text
from starflow_world.io.media import VideoWriter, compared, contact_sheet, write_png
from starflow_world.world.counterfactual import Steps

FPS, SHOWN = 4, 16


def write_alternative(result: Alternative, out: Path) -> None:
    """Write whatif.mp4, whatif.png and whatif.json to `out`, and print the differences."""
    episode, pictures = result.episode, []
    with VideoWriter(out / "whatif.mp4", fps=FPS) as video:
        for t in tqdm(range(len(episode)), desc="video", unit="frame", leave=False):
            pictures.append(_picture(result, t))
            video.add(pictures[-1])
    write_png(out / "whatif.png", contact_sheet(pictures[:: -(-len(pictures) // SHOWN)], columns=4))
    write_text(out / "whatif.json", json.dumps(_facts(result), indent=1))
    for line in _summary(result):
        print(line)
    print(f"\nvideo   {out / 'whatif.mp4'}\nsheet   {out / 'whatif.png'}\nfigures {out / 'whatif.json'}")


def _picture(result: Alternative, t: int) -> np.ndarray:
    """Draw frame t of both trajectories; frame 0 is their common first frame."""
    episode, shown = result.episode, min(t, result.over)
    real, lines = episode.frames[t], [episode.text, f"{t:>3}  start", ""]
    other = real if t == 0 else result.other.frames[0, shown - 1].cpu().numpy()
    if t > 0:
        taken, chosen = _action(result.again, episode, t), _action(result.other, episode, t)
        reward = float(result.other.reward[0, t - 1])
        lines[1] = f"{t:>3}  took {taken}, reward {episode.rewards[t]:g}"
        lines[2] = f"     what if {chosen}, reward {reward:z.2f}" if t <= result.over else "     what if: over"
    return compared({"what happened": real, "what would have": other}, lines)


def _action(steps: Steps, episode: Episode, t: int) -> str:
    """Return the action of step t as text for video and JSON."""
    flat = steps.actions[0, t - 1, 1:].cpu().numpy()
    kind = json.loads(episode.space)
    if kind.get("type") == "Discrete":
        return str(int(flat.argmax()) + int(kind.get("start", 0)))
    return " ".join(f"{number:.2f}" for number in flat)


def _facts(result: Alternative) -> dict[str, Any]:
    steps = range(1, len(result.episode))

    def numbers(values: Tensor) -> list[float | None]:
        return [float(value) if torch.isfinite(value) else None for value in values[0].cpu()]

    return {
        "mission": result.episode.text, "episode": result.episode.info,
        "took": [_action(result.again, result.episode, t) for t in steps],
        "what_if": [_action(result.other, result.episode, t) for t in steps],
        "reward": result.episode.rewards[1:].tolist(), "reward_again": numbers(result.again.reward),
        "reward_what_if": numbers(result.other.reward), "end_what_if": numbers(result.other.end_probability),
        "nats_again": numbers(result.again.nats), "nats_what_if": numbers(result.other.nats),
        "fidelity": {"latents": result.fidelity.latents, "pixels": result.fidelity.pixels, "real": result.real_pixels},
    }


def _summary(result: Alternative) -> list[str]:
    facts = _facts(result)
    differ = [t for t, pair in enumerate(zip(facts["took"], facts["what_if"], strict=True), 1) if pair[0] != pair[1]]
    over = f"would have ended at step {result.over}" if result.over < len(result.episode) else "would have gone on"
    rewards = result.other.reward[0, : result.over]
    return [
        f"mission: {result.episode.text}" if result.episode.text else "an episode without words",
        f"other actions at {len(differ)} of {len(result.episode) - 1} steps, first at {differ[0] if differ else '-'}",
        f"reward {result.episode.rewards.sum():g}; what if {float(rewards.sum()):z.2f}, and the episode {over}",
        f"with the actions that were taken: latents within {result.fidelity.latents:.1g} of the noise level, "
        f"{100 * result.real_pixels:.2f} % of the pixels within one grey level of the real frames",
    ]
