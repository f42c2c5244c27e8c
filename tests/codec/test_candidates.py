"""The codec of a recipe keeps what changes: fewest components, and a ball of one pixel survives."""

import numpy as np
import pytest
import torch

from starflow_world.codec import PatchCodec, conv
from starflow_world.codec.candidates import best_candidate, codec_candidates

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def no_learned_codec_is_good(monkeypatch):
    monkeypatch.setattr(conv, "STEPS", 1)


def wandering(frames: np.ndarray, colour: int = 255) -> np.ndarray:
    """Frames with a ball of one pixel that is somewhere else in each."""
    for frame in frames:
        frame[tuple(RNG.integers(frame.shape[:2]))] = colour
    return frames


def test_the_codec_keeps_a_ball_of_one_pixel_among_large_changes() -> None:
    scenes = RNG.integers(0, 256, (6, 1, 1, 3)).astype(np.uint8)[RNG.integers(6, size=40)]
    episodes = [wandering(np.broadcast_to(scenes, (40, 16, 16, 3)).copy()) for _ in range(4)]
    tried = codec_candidates(episodes, (8, 4, 2, 1))
    chosen = best_candidate(tried)
    assert chosen is tried[-1]
    assert not any(candidate.good for candidate in tried[:-1])
    assert chosen.error < 0.5
    codec = PatchCodec(chosen.codec, (16, 16))
    frames = torch.from_numpy(np.concatenate(episodes))
    codec.fit(frames)
    back = codec.decode(codec.encode(frames[None])[0])[0][0]
    assert (back.float() - frames.float()).abs().max() <= 16


def test_sprites_on_a_grid_need_as_many_components_as_they_have_dimensions() -> None:
    sprites = RNG.integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    cells = sprites[RNG.integers(5, size=(3, 30, 4, 6))]
    episodes = list(cells.transpose(0, 1, 2, 4, 3, 5, 6).reshape(3, 30, 32, 48, 3))
    (only,) = codec_candidates(episodes, (8, 4))
    assert (only.codec.kind, only.codec.patch, only.codec.components, only.codec.merge) == ("pca", 8, 4, 2)
    assert (only.tokens, only.contents, only.error) == (6, 5, 0.0)
    assert 1 < only.nearest < 8


def test_single_pixels_are_lossless_and_small_frames_are_not_merged() -> None:
    frames = np.array([[0, 0, 0], [200, 0, 0]], np.uint8)[RNG.integers(2, size=(20, 2, 2))]
    (only,) = codec_candidates([frames], (1,))
    assert (only.codec.kind, only.codec.merge, only.tokens, only.error) == ("patch", 1, 4, 0.0)


def test_frames_that_never_change_have_a_codec() -> None:
    (only,) = codec_candidates([np.full((9, 16, 16, 3), 7, np.uint8)], (8, 4))
    assert (only.good, only.contents, only.nearest) == (True, 1, float("inf"))


def test_where_no_codec_is_good_the_one_with_the_smallest_error_is_taken() -> None:
    noise = RNG.integers(0, 256, (60, 64, 64, 3)).astype(np.uint8)
    tried = codec_candidates([noise], (8, 4, 2, 1))
    tried_codecs = [(candidate.codec.patch, candidate.codec.kind) for candidate in tried]
    assert tried_codecs == [(8, "pca"), (8, "conv"), (4, "pca"), (4, "conv")]  # smaller ones make more than 100 tokens
    assert best_candidate(tried).codec == tried[2].codec


def test_a_learned_codec_is_taken_where_components_lose_what_changes(monkeypatch) -> None:
    monkeypatch.setattr(conv, "STEPS", 700)
    frames = np.full((256, 16, 16, 3), 40, np.uint8)
    for t, frame in enumerate(frames):
        frame[t * 7 % 16, t * 7 % 256 // 16] = 220
    components, learned = codec_candidates([frames], (8,))
    assert (components.codec.kind, learned.codec.kind) == ("pca", "conv")
    assert not components.good
    assert learned.error < 1 < components.error
    assert learned.worst <= 16
    assert learned.nearest > 8 * 0.03  # noise of the least level hides no difference
