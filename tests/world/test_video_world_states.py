"""The state of a video world is a value: rows, branches, copies and snapshots; and what such a world refuses."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from starflow_world.check import check_world
from starflow_world.cli import main
from starflow_world.config.world import WorldConfig
from starflow_world.errors import CheckpointError, ConfigError, DataError, StateError
from starflow_world.io.files import read_tensors, write_tensors
from starflow_world.world import World
from starflow_world.world.state import WorldState
from tests.tiny_video import SEED, TEXT, moving_spot, sized, stepped, tiny_video_world


@pytest.fixture(scope="module")
def frames(video_world, tmp_path_factory) -> Tensor:
    """A clip (1, 13, H, W, 3)."""
    return sized(video_world, moving_spot(tmp_path_factory.mktemp("clip") / "spot.mp4", 13))


@pytest.fixture(scope="module")
def rows(video_world) -> WorldState:
    """Two rows, one behind its first frame, one behind five."""
    young, _ = video_world.start(text="a cat.", seed=1)
    old, _ = stepped(video_world, 4, video_world.start(text=TEXT, seed=SEED)[0])
    return WorldState.stack([young, old])


def test_rows_of_different_ages_step_together_as_they_do_alone(video_world, rows):
    together, seen = stepped(video_world, 3, rows, 1)
    for row in range(2):
        alone, apart = stepped(video_world, 3, rows[row], 1)
        assert (apart[-1].frames[0].int() - seen[-1].frames[row].int()).abs().max() <= 1
        torch.testing.assert_close(together.tokens[row], alone.tokens[0], rtol=0, atol=1e-4)
    assert not torch.equal(seen[-1].frames[0], seen[-1].frames[1])


def test_branches_and_copies_do_not_disturb_each_other(video_world, rows):
    before = rows.digest()
    branches = rows[[1, 1, 1]].with_keys([5, 5, 6])
    _, seen = stepped(video_world, 2, branches)
    assert torch.equal(seen[-1].frames[0], seen[-1].frames[1])
    assert not torch.equal(seen[-1].frames[0], seen[-1].frames[2])
    copy = rows.clone()
    video_world.step(copy, [0, 0], reuse=True)
    assert rows.digest() == before
    replaced = rows.replace_rows(torch.tensor([0]), rows[1])
    assert replaced.streams == (rows.streams[1], rows.streams[1])


def test_a_cache_can_be_made_anew_with_both_halves(video_world, rows):
    _, expected = video_world.step(rows, [1, 1])
    _, found = video_world.step(replace(rows, cache=None), [1, 1])
    torch.testing.assert_close(found.latents, expected.latents, rtol=0, atol=1e-4)


@pytest.mark.parametrize("exact", [True, False])
def test_a_snapshot_goes_on_with_the_same_pictures(video_world, rows, frames, tmp_path, exact):
    told, _ = video_world.start(frames[:, :9], text=TEXT, seed=SEED)
    for state in (rows, told):
        state.save(tmp_path / "state", exact=exact)
        loaded = WorldState.load(tmp_path / "state", video_world)
        if exact:
            assert loaded.digest() == state.digest()
        _, found = stepped(video_world, 2, loaded)
        _, expected = stepped(video_world, 2, state)
        assert (found[-1].frames.int() - expected[-1].frames.int()).abs().max() <= 1
    again, heard = (video_world.observe(state, [None], frames[:, 9:13])[1].nats.item() for state in (loaded, told))
    assert again == pytest.approx(heard, abs=1e-3)


@pytest.mark.parametrize(("change", "said"), [
    (lambda t, m: t.pop("streams.1.decoder.0"), r"streams\.1\.decoder\.0"),
    (lambda t, m: t.update({"streams.0.shown": torch.zeros(1, 8, 8, 3, dtype=torch.uint8)}), r"streams\.0\.shown"),
    (lambda t, m: t.update({"streams.7.shown": torch.zeros(1)}), "which nothing reads"),
    (lambda t, m: m.update({"streams": '[{"decoder": 9}, {"decoder": 5}]'}), "for a batch element of 1 latent frames"),
    (lambda t, m: m.update({"streams": "[{}]"}), "memory of 2 batch elements"),
    (lambda t, m: m.pop("streams"), "None for the codec's memory"),
    (lambda t, m: t.update({"step": torch.tensor([-1, 5])}), "for a batch element of -1"),
])
def test_a_damaged_memory_of_the_codec_is_one_clear_error(video_world, rows, tmp_path, change, said):
    rows.save(tmp_path / "state", exact=False)
    tensors, metadata = read_tensors(tmp_path / "state")
    change(tensors, metadata)
    metadata.pop("digest", None)
    write_tensors(tmp_path / "state", tensors, metadata, sealed=True)
    with pytest.raises(StateError, match=said):
        WorldState.load(tmp_path / "state", video_world)


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_frames_that_no_latent_frame_is_made_of_are_refused(video_world, frames):
    with pytest.raises(DataError, match=r"expected 1 \+ 4k"):
        video_world.start(frames[:, :8])
    with pytest.raises(DataError, match=r"expected 1 \+ 4k"):
        video_world.log_prob(frames[:, :4])
    state, _ = video_world.start(frames[:, :1], text=TEXT)
    with pytest.raises(DataError, match="expected 4 for each of 1 rows"):
        video_world.observe(state, [None], frames[:, 1:2])
    state, _ = video_world.step(state, [0])
    with pytest.raises(DataError, match="after given frames, found imagined ones"):
        video_world.observe(state, [None], frames[:, 5:9])


def test_what_reads_single_frames_says_that_it_cannot(video_world):
    with pytest.raises(ConfigError, match="expected one that encodes each frame on its own, found one with memory"):
        check_world(video_world)


def test_a_converted_folder_says_what_it_is(video_folder, capsys):
    main(["info", str(video_folder)])
    assert "'denoiser_look_ahead'" in capsys.readouterr().out


def test_parts_that_do_not_fit_are_refused(video_folder, video_world, tmp_path):
    with pytest.raises(ConfigError, match=r"published: expected it with codec\.kind wan"):
        WorldConfig("w", video_world.config.flow, codec=video_world.config.codec, text=video_world.config.text)
    broken = tiny_video_world(tmp_path, window=1, context=1)
    with pytest.raises(CheckpointError, match=r"video\.json: window"):
        World.load(broken)
    with pytest.raises(ConfigError, match="dtype: expected float32 or bfloat16"):
        World.load(video_folder, dtype=torch.float64)
