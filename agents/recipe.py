"""A recipe for any environment or recordings: a YAML file for `train`, with what was seen as comments."""

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

from starflow_world.agents.environment import Environment
from starflow_world.agents.survey import Survey, survey, survey_recordings
from starflow_world.codec.candidates import LARGEST_ERROR, Candidate, best_candidate, codec_candidates
from starflow_world.config.train import load_recipe
from starflow_world.errors import ConfigError
from starflow_world.io.files import write_text

PATCHES = (8, 4, 2, 1)
STEPS, DATA_FRAMES = 6000, 60_000
LEAST_NOISE, LARGEST_NOISE, APART = 0.03, 0.12, 8.0
"""The noise of latents is the smallest distance between two contents of a site over APART, within these bounds."""
SPRITES = 256
"""Most distinct contents of a site in an environment that draws sprites; more: pictures that change continuously."""
TEXT_WIDTH, TEXT_ROOM, LONG_RUN = 64, 1.5, 500


def new_recipe(
    source: Environment | Path, out: Path | None = None, *, view: str = "auto", minutes: float = 60.0
) -> str:
    """Play an environment for seconds, or look at a folder of episodes, write a recipe to `out` (None:
    configs/ENVIRONMENT.yaml or configs/FOLDER.yaml) and return a summary with the command that comes next. minutes:
    time to train; 0: STEPS steps.

    Raises ConfigError, ActionError or DataError where no world can learn from the environment or the episodes.
    """
    if minutes < 0:
        raise ConfigError(f"minutes: expected a number >= 0, found {minutes}")
    name = _name(source.resolve().name if isinstance(source, Path) else source.env)
    out = Path("configs", f"{name}.yaml") if out is None else out
    if out.exists():
        raise ConfigError(f"{out}: expected no such file, found one; choose another with --out")
    seen = survey_recordings(source) if isinstance(source, Path) else survey(source, view)
    height, width = seen.size
    sides = dict.fromkeys(side for side in (seen.cell, *PATCHES) if 0 < side <= max(height, width))
    candidates = codec_candidates([episode.frames for episode in seen.episodes], sides)
    write_text(out, recipe_text(name, seen, candidates, minutes))
    load_recipe(out)
    codec = best_candidate(candidates)
    following = ["starflow-world", "make", str(out)]
    if seen.source is None:
        following = ["starflow-world", "train", str(out), "--data", seen.seen, "--out", f"runs/{name}"]
    found = (
        f"frames: {_view(seen)}, {height} x {width} ({seen.why})",
        f"codec: {_described(codec)}",
        f"texts: {_texts(seen)}", f"rewards: {_rewards(seen)}", f"actions: {seen.action_space}",
    )
    return "\n".join((f"{out}, from {_amount(seen)}:", *(f"  {line}" for line in found), "next:",
                      f"  {shlex.join(following)}"))


def data_section(seen: Survey) -> str:
    """Return the section `data` of a recipe: how its episodes are collected, by `make` or `collect`; "" for
    recordings."""
    if seen.source is None:
        return ""
    source, mean = seen.source, sum(map(len, seen.episodes)) / len(seen.episodes)
    given: dict[str, Any] = {"env": source.env, "policy": seen.policy}
    if source.env_kwargs:
        given["env_kwargs"] = source.env_kwargs
    if source.wrappers:
        given["wrappers"] = source.wrappers
    if source.view != "render":
        given["view"] = source.view
    if seen.reward == "raw":
        given["reward"] = "raw"
    given["max_steps"] = source.max_steps or (LONG_RUN if seen.endless else 0)
    given["episodes"] = min(10_000, max(100, math.ceil(DATA_FRAMES / mean / 100) * 100))
    return "data:\n" + "".join(f"  {key}: {json.dumps(value)}\n" for key, value in given.items())


def recipe_text(name: str, seen: Survey, candidates: list[Candidate], minutes: float) -> str:
    """Return a recipe as YAML with comments."""
    codec, (height, width) = best_candidate(candidates), seen.size
    channels = (3 * codec.codec.patch**2 if codec.codec.kind == "patch" else codec.codec.components)
    channels *= codec.codec.merge**2
    longest = max(len(text.encode()) for text in seen.texts)
    length = -(-math.ceil(TEXT_ROOM * longest + 1) // 8) * 8 if len(seen.texts) > 1 else 0
    text = f"{{kind: t5, length: {length}, width: {TEXT_WIDTH}, layers: 1, heads: 4}}" if length else "{kind: none}"
    window, context = (32, 4) if seen.partial else (8, 2)
    lengths = sorted({_shortest(seen), window})
    tried = "".join(f"  #   {_described(candidate)}\n" for candidate in candidates)
    kept = "" if codec.good else f"  #   none leaves less than {LARGEST_ERROR:g}: noise, or fine detail, is lost\n"
    return f"""\
# {_one_line(seen.seen)}, written by `starflow-world new` after {_amount(seen)}.
# action space: {_one_line(seen.action_space)}
# rewards: {_rewards(seen)}
#   (their kind and largest size, and the step limit, are taken from the data)
{data_section(seen)}world:
  name: {json.dumps(name)}
  # frames: {_view(seen)}, {height} x {width}: {seen.why}
  height: {height}
  width: {width}
  # codec: error on pixels that change, in grey levels, for each patch size that was tried
{tried}{kept}  codec: {{kind: {codec.codec.kind}, patch: {codec.codec.patch}, components: {codec.codec.components}, \
merge: {codec.codec.merge}}}
  flow:
    channels: {channels}  # of each of {codec.tokens} tokens per frame
    shallow_blocks: 0
    deep_layers: 4
    deep_width: 160
    head_width: 32
    text_length: {length}
    text_width: {TEXT_WIDTH if length else 0}
    position_scale: 4.0
    sites: {codec.codec.merge}
    components: {_components(codec)}  # {codec.contents} distinct contents of a site were seen
    features_width: 64
  # texts: {_texts(seen)}
  text: {text}
  outcome: {{width: 32, layers: 1}}
  # the nearest contents of a site are {codec.nearest:.2g} apart in latents; the noise is 1/{APART:g} of that, \
{LEAST_NOISE} to {LARGEST_NOISE}
  noise_level: {_noise(codec)}
  # window: {seen.partial or "nothing says that a frame hides anything"}
  window: {window}
  context: {context}
train:
  {f"minutes: {minutes:g}  # the number of steps is chosen when training starts" if minutes else f"steps: {STEPS}"}
  frames: 192
  lengths: [{", ".join(map(str, lengths))}]
  starts: 8
  start_weight: 0.2
  learning_rate: 0.003
  site_learning_rate: 0.01
  action_dropout: 0.05
"""


def _view(seen: Survey) -> str:
    return "recorded" if seen.source is None else seen.source.view


def _name(env: str) -> str:
    """Return a file name for an environment: minatar-breakout of MinAtar/Breakout-v1."""
    plain = re.sub(r"-v\d+$", "", env.rpartition(":")[2])
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-") or "world"


def _components(codec: Candidate) -> int:
    """Return the components of the mixture: room for each distinct content, few for continuous pictures."""
    return min(48, max(4, codec.contents + 4)) if codec.contents <= SPRITES else 8


def _noise(codec: Candidate) -> float:
    return min(LARGEST_NOISE, max(LEAST_NOISE, math.floor(min(codec.nearest, APART) / APART * 100) / 100))


def _shortest(seen: Survey) -> int:
    """Return the shortest training window: 8, or less where most frames are in shorter episodes."""
    lengths = [len(episode) for episode in seen.episodes]
    return next((n for n in (8, 4) if sum(m for m in lengths if m >= n) >= 0.8 * sum(lengths)), 2)


def _described(codec: Candidate) -> str:
    config = codec.codec
    kept = {"patch": "lossless", "pca": f"{config.components} components"}.get(
        config.kind, f"learned, {config.components} numbers")
    return (f"patch {config.patch}, {kept}, merge {config.merge}: {codec.tokens} tokens, error {codec.error:.2f}, "
            f"largest {codec.worst:.0f}")


def _texts(seen: Survey) -> str:
    longest = max(seen.texts, key=lambda text: len(text.encode()))
    if not longest:
        return "none"
    said = f"{len(seen.texts)} different, {len(longest.encode())} bytes at most: {_one_line(longest)}"
    return said if len(seen.texts) > 1 else f"always the same, not read: {_one_line(longest)}"


def _rewards(seen: Survey) -> str:
    rewards = [float(reward) for episode in seen.episodes for reward in episode.rewards[1:]]
    low, high = min(rewards), max(rewards)
    said = "none was seen" if low == high == 0 else f"{low:.3g} to {high:.3g}"
    return f"{said}, stored as {seen.reward}" + (" (1 where positive, else 0)" if seen.reward == "event" else "")


def _amount(seen: Survey) -> str:
    frames, names = sum(map(len, seen.episodes)), sorted({str(e.info["policy"]) for e in seen.episodes})
    return f"{frames} frames of {len(seen.episodes)} episodes (policy {', '.join(names)})"


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())[:100]
