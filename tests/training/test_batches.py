"""Batches: windows begin and end where and as often as promised, inside one episode, aligned, the same in every run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from starflow_world.config.train import TrainConfig
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.data.episodes import episode_path, write_episode
from starflow_world.errors import DataError
from starflow_world.training.batches import Batch, Sampler
from starflow_world.training.reappearances import reappearances
from tests.squares import episode, fill

LENGTHS = (12, 12, 5, 20, 4, 7)
CONFIG = TrainConfig(
    frames=64, lengths=(4,), starts=16, events=16, action_dropout=0.1, text_dropout=0.25
)
CHI_SQUARE = {1: 10.83, 2: 13.82, 3: 16.27, 5: 20.52}  # p = 1e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("data"), LENGTHS)


def sampler(folder: Path, **changes: object) -> Sampler:
    return Sampler(EpisodeDataset(folder).memory_map(), replace(CONFIG, **changes))  # type: ignore[arg-type]


def places(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Episode (B, T) and time (B, T), as the last pixel tells."""
    corner = batch.frames[:, :, -1, -1].numpy()
    return corner[..., 0].astype(int), corner[..., 1].astype(int)


def chi_square(seen: np.ndarray, expected: np.ndarray) -> float:
    return float(((seen - expected) ** 2 / expected).sum())


def test_every_frame_but_the_first_counts_as_often_as_any_other(folder):
    """Weights times draws are the same for each frame: those of the flow, and those of the reward head with events."""
    made = sampler(folder, lengths=(2, 4, 7), events=8, steps=1)
    size, offset = sum(LENGTHS), np.cumsum([0, *LENGTHS])
    flow, outcome, judged = np.zeros(size), np.zeros(size), 0
    for step in range(1, 8001):  # after the last step of the training, when all weights are in force
        for batch, kinds in ((made.batch(step), (True, True)), (made.events(step), (False, True))):
            episodes, times = places(batch)
            index = (offset[episodes] + times)[:, 1:].flatten()
            np.add.at(flow, index, batch.weights[:, 1:].flatten().numpy() * kinds[0])
            np.add.at(outcome, index, batch.outcome_weights[:, 1:].flatten().numpy() * kinds[1])
            judged += len(index) * kinds[0]
    later = np.delete(np.arange(size), offset[:-1])
    for total in (flow, outcome):
        assert total[later] == pytest.approx(judged / len(later), rel=0.07)
        assert total[offset[:-1]] == pytest.approx(0)


def test_at_first_events_count_like_any_other_frame(folder):
    made = sampler(folder, steps=100)
    early, middle, late, last = (made.events(step).outcome_weights.sum() for step in (0, 10, 50, 99))
    assert early == 16
    assert early > middle > max(late, last)


def test_where_a_frame_stands_in_its_window_says_nothing_about_an_event(folder):
    """At each place of a window events weigh as much, with the further ones, as those of the windows alone would."""
    made, total = sampler(folder, lengths=(4, 7), events=16, steps=1), np.zeros((2, 7))
    for step in range(1, 4001):
        for batch, plain in ((made.batch(step), True), (made.events(step), False)):
            ends = batch.ends.numpy() > 0
            size = ends.shape[1]
            total[0, :size] += (batch.outcome_weights.numpy() * ends).sum(0)
            total[1, :size] += (batch.weights.numpy() * ends).sum(0) * plain
    assert total[0, 1:] == pytest.approx(total[1, 1:], rel=0.1)
    assert total[1, 3] > 0
    assert total[1, 6] > 0


def test_events_are_drawn_alike(folder):
    made, counts = sampler(folder), np.zeros(len(LENGTHS))
    for step in range(250):
        batch = made.events(step)
        episodes, times = places(batch)
        assert (times[:, -1] == np.array(LENGTHS)[episodes[:, -1]] - 1).all()  # in these episodes the end is the event
        assert ((batch.outcome_weights > 0).numpy() == [False, False, False, True]).all()
        assert (np.diff(times, axis=1) == 1).all()
        counts += np.bincount(episodes[:, 0], minlength=len(LENGTHS))
    assert chi_square(counts, 250 * 16 * np.ones(len(LENGTHS)) / len(LENGTHS)) < CHI_SQUARE[5]


def test_without_events_none_are_drawn(folder):
    assert sampler(folder, events=0).events(0) is None


def test_no_window_crosses_an_episode_and_what_belongs_together_stays_together(folder):
    made = sampler(folder, lengths=(2, 4, 7), action_dropout=0.0, text_dropout=0.0)
    for step in range(60):
        batch = made.batch(step)
        episodes, times = places(batch)
        assert (episodes == episodes[:, :1]).all()
        assert (np.diff(times, axis=1) == 1).all()
        flat = torch.zeros(*times.shape, 5)
        index = torch.from_numpy((times + episodes) % 4)
        flat[..., 0] = 1
        flat.scatter_(2, 1 + index[..., None], 1.0)
        flat[torch.from_numpy(times == 0)] = 0  # none leads to a first frame
        assert torch.equal(batch.actions, flat)
        last = times == np.array(LENGTHS)[episodes] - 1
        assert torch.equal(batch.ends, torch.from_numpy(last))
        assert torch.equal(batch.rewards, torch.from_numpy(last.astype(np.float32)))
        assert batch.texts == [f"row {index % 4}" for index in episodes[:, 0]]


def test_conditions_are_dropped_at_the_promised_rates_each_on_its_own(folder):
    made, dropped, texts, first = sampler(folder), [], [], []
    for step in range(150):
        batch = made.batch(step)
        _, times = places(batch)
        dropped.append((batch.actions[:, 1:] == 0).all(-1).numpy())
        texts += [text == "" for text in batch.texts]
        first.append(((batch.actions[:, 0] == 0).all(-1).numpy(), times[:, 0] == 0))
    gone, rows = np.concatenate(dropped), len(texts)
    assert chi_square(np.array([gone.sum(), (~gone).sum()]), gone.size * np.array([0.1, 0.9])) < CHI_SQUARE[1]
    assert chi_square(np.array([sum(texts), rows - sum(texts)]), rows * np.array([0.25, 0.75])) < CHI_SQUARE[1]
    patterns = np.bincount(gone @ np.array([1, 2, 4]), minlength=8)
    share = np.array([0.1**k * 0.9 ** (3 - k) for k in (0, 1, 1, 2, 1, 2, 2, 3)])
    assert chi_square(patterns, len(gone) * share) < 24.3  # 7 degrees of freedom
    assert all((none == true_start).all() for none, true_start in first)


def test_starts_are_first_frames_of_all_episodes_alike(folder):
    made, counts = sampler(folder), np.zeros(len(LENGTHS))
    for step in range(100):
        batch = made.starts(step)
        episodes, times = places(batch)
        assert times.shape == (16, 1)
        assert not times.any()
        assert not batch.actions.any()
        counts += np.bincount(episodes[:, 0], minlength=len(LENGTHS))
    assert chi_square(counts, np.full(len(LENGTHS), 100 * 16 / len(LENGTHS))) < CHI_SQUARE[5]


def test_a_batch_follows_from_seed_and_step_alone(folder):
    one, other = sampler(folder), sampler(folder)
    later = {step: other.batch(step) for step in (7, 3, 0)}
    for step in (3, 0, 7):
        a, b = one.batch(step), later[step]
        assert torch.equal(a.frames, b.frames)
        assert torch.equal(a.actions, b.actions)
        assert a.texts == b.texts
        one.starts(step)
    assert not torch.equal(one.batch(1).frames, one.batch(2).frames)
    assert not torch.equal(one.batch(1).frames, sampler(folder, seed=1).batch(1).frames)
    before = np.random.get_state(legacy=False)["state"]["pos"], torch.get_rng_state()  # noqa: NPY002 (looked at)
    one.batch(5)
    assert before[0] == np.random.get_state(legacy=False)["state"]["pos"]  # noqa: NPY002
    assert torch.equal(before[1], torch.get_rng_state())


def test_every_batch_has_one_length_and_the_promised_number_of_frames(folder):
    made, seen = sampler(folder, lengths=(7, 2, 5, 50), steps=30), set()
    for step in range(40):
        shape = made.batch(step).frames.shape
        seen.add(shape[1])
        assert shape[0] == 64 // shape[1]
        assert shape[1] <= (2, 5, 7, 7)[step // 10], "shortest windows first"
    assert seen == {2, 5, 7}  # no episode has 50 frames
    assert sampler(folder, frames=3).batch(0).frames.shape[0] == 1
    with pytest.raises(DataError, match="expected episodes of at least 50 frames, the longest has 20"):
        sampler(folder, lengths=(50, 60))


# ---- what reappears -------------------------------------------------------------------------------------------------


def shown(folder: Path, episodes: tuple[str, ...]) -> Sampler:
    """Sampler of episodes whose frames show a letter, as the colour of one of four patches of 4 x 4 pixels."""
    for index, letters in enumerate(episodes):
        frames = np.zeros((len(letters), 8, 8, 3), np.uint8)
        for t, letter in enumerate(letters):
            frames[t, :4, 4 * (t % 2) : 4 * (t % 2) + 4] = ord(letter)
        write_episode(episode_path(folder, index), replace(episode(index, len(letters)), frames=frames))
    config = replace(CONFIG, lengths=(3,), frames=300, reappearing=0.5, steps=1, events=0)
    return Sampler(EpisodeDataset(folder).memory_map(), config, patch=4)


def test_what_is_shown_again_after_it_was_gone_is_found_at_any_place_in_its_own_episode(tmp_path):
    made = shown(tmp_path, ("aabaca", "bcdefa"))
    found = reappearances(made.windows, 4)
    seen = sorted(zip(found.frames.tolist(), found.gaps.tolist(), strict=True))
    assert seen == [(3, 2), (5, 2)], "a after b, and a after c; what another episode showed is not remembered"
    assert len(set(found.contents.tolist())) == 1
    chunks = reappearances(made.windows, 4, chunk=1)
    assert sorted(chunks.frames.tolist()) == [3, 5]
    assert len(reappearances(made.windows, 4, most=3).frames) == 2, "whole episodes"


def test_windows_of_what_reappears_hold_it_twice_and_it_counts_no_more_for_that(tmp_path):
    made = shown(tmp_path, ("a" * 25,) * 12 + ("bcb" + "d" * 20,))
    drawn = weight = total = 0.0
    for step in range(1, 41):
        batch = made.batch(step)
        letters = batch.frames.amax((2, 3, 4))
        again = (letters == torch.tensor([ord(letter) for letter in "bcb"], dtype=torch.uint8)).all(1)
        drawn, weight = drawn + float(again.float().mean()) / 40, weight + float(batch.weights[again][:, 2].sum())
        total += float(batch.weights[:, 1:].sum())
    assert drawn == pytest.approx(0.5, abs=0.05)
    assert weight / total == pytest.approx(1 / (12 * 24 + 22), rel=0.1), "as often as any frame but the first"
