"""`starflow-world make`: a world from its recipe alone."""

import json
from pathlib import Path

import pytest

from starflow_world.cli import main
from starflow_world.world import World

RECIPE = """
data: {env: CartPolePixels-v0, policy: balance, episodes: 3, max_steps: 6, valid: 2, starts: 5}
world:
  name: small
  height: 16
  width: 16
  codec: {kind: pca, patch: 4, components: 4, merge: 2}
  flow: {channels: 16, shallow_blocks: 0, deep_layers: 1, deep_width: 40, head_width: 20, sites: 2, components: 4,
         head_inner: 8, features_width: 8, features_layers: 1}
  outcome: {width: 8}
  noise_level: 0.1
  window: 4
  context: 2
train: {steps: 2, frames: 8, lengths: [4], starts: 2, warmup: 1, precision: f32}
"""


def test_a_recipe_alone_makes_a_world_and_what_is_collected_and_trained_is_not_done_again(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE)
    main(["make", str(recipe), "--folder", str(tmp_path)])
    folder = tmp_path / "runs" / "small"
    card, digest = json.loads((folder / "card.json").read_text()), World.load(folder).world_id
    assert card["env"] == "CartPolePixels-v0"
    assert card["steps"] == 2
    assert card["starts"] == 5
    assert "excess_nats" in card["figures"]
    episodes = sorted((tmp_path / "data" / "small").glob("*.h5")), (folder / "model.safetensors").stat().st_mtime_ns
    main(["make", str(recipe), "--folder", str(tmp_path)])
    assert World.load(folder).world_id == digest
    assert sorted((tmp_path / "data" / "small").glob("*.h5")) == episodes[0]


def test_a_recipe_without_data_is_refused_by_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text("\n".join(line for line in RECIPE.splitlines() if not line.startswith("data")))
    with pytest.raises(SystemExit):
        main(["make", str(recipe), "--folder", str(tmp_path)])
    assert "expected a section `data`" in capsys.readouterr().err
