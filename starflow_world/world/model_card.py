"""The model card of a world: README.md for the Hugging Face hub, written from card.json and the config."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from starflow_world.config.world import WorldConfig
from starflow_world.io.reports import markdown_table, number, percent

TAGS = ("world-model", "normalizing-flow", "reinforcement-learning", "gymnasium", "video-prediction")
METRICS = ("excess_nats", "exact_frames_1", "exact_frames_16", "exact_frames_64", "reward_f1", "end_f1")
NOT_A_ROW = ("ablations", "sweep_counts")
LIMITS = """\
* What it was not trained on, it makes up: other versions, layouts and lengths of the environment, and actions that its
  data lack. A likely frame need not be a real one, and rewards outside the training data need not be true.
* An agent that learns in it exploits what it gets wrong: judge agents in the real environment."""


def model_card(config: WorldConfig, card: Mapping[str, Any], weights: str, repository: str = "") -> str:
    """Return a model card as Markdown behind a YAML header. weights: digest of the weights; repository: user/name for
    the usage, "" for a local folder."""
    figures = card.get("figures")
    figures = figures if isinstance(figures, Mapping) else {}
    sections = (
        ("Use", _usage(config, repository)), ("Figures", _figures(figures)),
        ("Ablations", _ablations(figures.get("ablations"))), ("Limits", _limits(config, figures)),
        ("Provenance", _provenance(card, weights)),
    )
    learned = f"`{_code(card['env'])}`" if "env" in card else "recordings"
    title = f"# {_code(config.name)}\n\nA world learned from {learned}: {config.height} x {config.width} pixels, with "
    title += "the exact likelihood of every frame, behind the Gymnasium API."
    return "\n\n".join([_header(card, figures), title, *(f"## {name}\n\n{text}" for name, text in sections)]) + "\n"


def _header(card: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """Return the metadata that the hub reads; JSON strings are YAML ones, whatever is in them."""
    values: dict[str, Any] = {"license": card.get("license", "unknown"), "library_name": "starflow-world", "tags": TAGS}
    if isinstance(card.get("data"), str):
        values["datasets"] = [card["data"]]
    if metrics := [name for name in METRICS if figures.get(name) is not None]:
        values["metrics"] = metrics
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in values.items()), "---"])


def _usage(config: WorldConfig, repository: str) -> str:
    return f"""\
```python
from starflow_world import World, WorldEnv

world = World.from_pretrained({json.dumps(repository or f"folder/of/{_code(config.name)}")})
env = WorldEnv(world, render_mode="rgb_array")
observation, info = env.reset(seed=0)
observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
```

`pip install "starflow-world[hub]"`. Nothing in this repository runs as code: JSON and safetensors files are read."""


def _figures(figures: Mapping[str, Any]) -> str:
    """Return all figures as a table; shares with their 95 % interval."""
    rows = list(_rows(figures))
    if not rows:
        return "None were measured (`starflow-world evaluate --card`)."
    said = "On held-out episodes; nats are per frame, shares have 95 % intervals, a number behind a name counts steps."
    return f"{said}\n\n{markdown_table(['figure', 'value'], rows)}"


def _rows(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in figures.items():
        if name in NOT_A_ROW or value is None:
            continue
        if isinstance(value, Mapping) and {"share", "total", "interval"} <= value.keys():
            if value["total"] and value["share"] is not None:
                low, high = value["interval"]
                said = f"{percent(value['share'])} ({percent(low)} to {percent(high)}, n = {value['total']})"
                yield f"`{prefix}{_code(name)}`", said
        elif isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{_code(name)}.")
        else:
            yield f"`{prefix}{_code(name)}`", _value(value)


def _ablations(ablations: Any) -> str:
    """Return what each part of the world is worth."""
    if not isinstance(ablations, Mapping) or not ablations:
        return "None were measured."
    keys = ("excess_nats", "excess_nats_error", "loss", "loss_error")
    rows = [[_code(name), *(_value(row.get(key)) for key in keys)] for name, row in ablations.items()
            if isinstance(row, Mapping)]
    return "\n".join(("Nats per frame that a frame costs more where one thing is taken away, with standard errors.", "",
                      markdown_table(["what is left", "excess nats", "+-", "loss", "+-"], rows)))


def _limits(config: WorldConfig, figures: Mapping[str, Any]) -> str:
    memory = f"* It remembers the last {config.context} to {config.window} frames; episodes are of at most "
    memory += f"{config.max_episode_steps} steps."
    rewards = {"event": "1 at an event and else 0", "raw": "those of the environment", "none": "always 0"}
    lines = [memory, f"* Rewards are {rewards[config.reward]}, and predicted.", LIMITS]
    if not figures:
        lines.append("* It has not been measured.")
    return "\n".join(lines)


def _provenance(card: Mapping[str, Any], weights: str) -> str:
    rows = [[f"`{_code(key)}`", f"`{_code(value if isinstance(value, str) else json.dumps(value))}`"]
            for key, value in card.items() if key != "figures"]
    return markdown_table(["card.json", ""], [*rows, ["weights, SHA-256", f"`{weights}`"]])


def _value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else _code(value)
    return str(value) if isinstance(value, int) else number(value)


def _code(value: Any) -> str:
    """Return a text that stays in its line, its cell and its `code`, whatever is in it."""
    return " ".join(str(value).replace("`", "'").replace("|", "/").split())[:500]
