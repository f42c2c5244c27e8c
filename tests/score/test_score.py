"""What a world says of real frames, and how it becomes scores: exact, the same by every road, and saved whole."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from starflow_world.config.world import CodecConfig
from starflow_world.data.episodes import Episode, flat_actions
from starflow_world.errors import DataError, ScorerError
from starflow_world.model.actions import space_to_json
from starflow_world.noise import make_key, normals
from starflow_world.score import PARTS, Scorer, ScoreStream
from starflow_world.score.evidence import Evidence, episode_evidence
from starflow_world.score.store import FACTS, NUMBERS
from starflow_world.world import World
from tests.patchwork import ACTIONS, episode, some
from tests.worlds import KINDS, PUBLISHED, TINY, env_world, no_text

LENGTHS = (3, 9, 14, 6, 11)
DRAWS = 120


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest) -> World:
    return env_world(ACTIONS, **KINDS[request.param])


@pytest.fixture(scope="module")
def scorer(world: World) -> Scorer:
    return Scorer.fit(world, some(24), false_alarms=0.06, run_length=50)


@pytest.fixture(scope="module")
def seen(world: World) -> tuple[list[Episode], list[Evidence]]:
    episodes = [episode(length, seed) for seed, length in enumerate(LENGTHS)]
    return episodes, episode_evidence(world, episodes, seeds=[3], batch=2)


# ---- evidence --------------------------------------------------------------------------------------------------------


def test_nats_are_those_of_log_prob(world: World, seen: tuple[list[Episode], list[Evidence]]) -> None:
    for one, found in zip(*seen, strict=True):
        nats = world.log_prob(one.frames[None], flat_actions(one)[None], text=one.text, seed=3)[0]
        np.testing.assert_allclose(found.nats.sum(1), nats.numpy(), atol=2e-3)


def test_the_action_ratio_is_that_of_observing_a_frame_with_and_without_its_action(
    world: World, seen: tuple[list[Episode], list[Evidence]]
) -> None:
    """Against the other road: the world observes step by step, and once more without the action; 14 frames slide."""
    one, found = seen[0][2], seen[1][2]
    state, _ = world.start(one.frames[None, :1], text=[one.text], seed=[3])
    for t in range(1, len(one)):
        action = [int(one.actions[t].argmax())]
        _, free = world.observe(state, [None], one.frames[None, t])
        state, acted = world.observe(state, action, one.frames[None, t])
        ratio = (free.token_nats - acted.token_nats)[0].numpy()
        np.testing.assert_allclose(found.against[t], ratio, atol=2e-3)
    assert np.abs(found.against[1:]).sum(1).min() > 1e-2, "the action changes nothing: the test says nothing"


OTHERS = {
    "no text": no_text(), "as published": PUBLISHED, "no features": {"flow": replace(TINY.flow, features_width=0)},
    "one normal, no shallow blocks": {"flow": replace(TINY.flow, components=1)},
    "shallow blocks and mixtures": {"flow": replace(TINY.flow, shallow_blocks=2)},
}


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_worlds_of_every_kind_are_scored_alike(changes: dict[str, object]) -> None:
    world = env_world(ACTIONS, **changes)
    one = episode(9, text="" if "text" in changes else "go")
    found = episode_evidence(world, [one], seeds=[0], batch=4)[0]
    nats = world.log_prob(one.frames[None], flat_actions(one)[None], text=one.text, seed=0)[0]
    np.testing.assert_allclose(found.nats.sum(1), nats.numpy(), atol=2e-3)


@pytest.mark.parametrize("kind", ["one normal, no shallow blocks", "mixtures", "as published"])
def test_surprise_is_the_excess_over_the_noise_floor_without_its_sampling_noise(kind: str) -> None:
    """In closed form with one normal per channel, a bound of it with mixtures, and with shallow blocks as it is drawn.
    """
    world = env_world(ACTIONS, **(OTHERS | KINDS)[kind])
    one, sigma, shape = episode(3), world.config.noise_level, (world.dynamics.tokens, world.config.channels)
    drawn: list[tuple[float, float]] = []
    for seed in range(DRAWS):
        found = episode_evidence(world, [one], seeds=[seed], batch=1)[0]
        noise = normals(torch.tensor([make_key(seed)]), torch.tensor([2]), "observation", shape)[0].double()
        floor = (-0.5 * noise.square() - np.log(sigma) - 0.5 * np.log(2 * np.pi)).sum()
        drawn.append((float(floor) - found.nats[2].sum(), found.surprise[2].sum()))
    excess, surprise = np.array(drawn).T
    if kind == "as published":
        np.testing.assert_allclose(surprise, excess, atol=2e-3)
        return
    difference, error = surprise.mean() - excess.mean(), (excess - surprise).std() / DRAWS**0.5
    assert difference > -4 * error
    assert kind == "mixtures" or difference < 4 * error
    assert surprise.std() < 0.5 * excess.std()
    assert (surprise > 0).all()


def test_noise_is_keyed_and_draws_are_averaged(world: World) -> None:
    one, other = episode(9), episode(7, 1)
    first, second, both = (episode_evidence(world, [one], seeds=seeds, batch=2)[0] for seeds in ([5], [6], [5, 6]))
    beside = episode_evidence(world, [other, one], seeds=[5], batch=1)[1]
    np.testing.assert_allclose(beside.nats, first.nats, atol=1e-4)
    assert np.abs(first.nats - second.nats).max() > 0.1
    np.testing.assert_allclose(both.surprise, (first.surprise + second.surprise) / 2, atol=1e-6)


# ---- scores ----------------------------------------------------------------------------------------------------------


def test_scores_are_the_same_alone_in_a_batch_in_another_order_and_streamed(world: World) -> None:
    """To 1e-4 nats per dim; two draws, windows that slide, rows of different texts."""
    judge = Scorer.fit(world, some(24), false_alarms=0.06, run_length=50, draws=2)
    episodes = [episode(length, 50 + length, text="ab"[length % 2]) for length in LENGTHS[:3]]
    together, backwards = judge.score(episodes, batch=3), judge.score(episodes[::-1], batch=2)[::-1]
    for one, first, second in zip(episodes, together, backwards, strict=True):
        alone, stream = judge(one), ScoreStream(judge)
        verdicts = stream.begin(one.frames[:1], [one.text])
        for t in range(1, len(one)):
            verdicts += stream.see([int(one.actions[t].argmax())], one.frames[t : t + 1])
        streamed = np.array([verdict.nats_per_dim for verdict in verdicts])
        dims = world.dynamics.tokens * world.config.channels
        for other in (second.nats_per_dim, alone.nats_per_dim, streamed):
            np.testing.assert_allclose(other, first.nats_per_dim, atol=1e-4)
        for key in ("windowed", "cusum", "score", "p"):
            found = np.array([getattr(verdict, key) for verdict in verdicts])
            np.testing.assert_allclose(found, getattr(first, key), atol=0.02, err_msg=key)
            np.testing.assert_allclose(getattr(alone, key), getattr(first, key), atol=0.02, err_msg=key)
        parts = np.array([[verdict.parts[name] for name in PARTS] for verdict in verdicts])
        np.testing.assert_allclose(parts, first.values, atol=1e-4 * dims)
        np.testing.assert_allclose(np.stack([v.heat for v in verdicts]), first.heat, atol=1e-4 * dims)


def test_rows_of_a_stream_begin_anew_without_touching_the_others(scorer: Scorer) -> None:
    first, second, third = episode(7, 1), episode(9, 2), episode(4, 3)
    stream = ScoreStream(scorer, 2)
    stream.begin(np.stack((first.frames[0], second.frames[0])), ["go", "go"])
    found = []
    for t in range(1, 9):
        left = (first, t) if t < 7 else (third, t - 7)
        actions = [int(one.actions[step].argmax()) for one, step in (left, (second, t))]
        shown = np.stack((left[0].frames[left[1]], second.frames[t]))
        verdicts = stream.see(actions, shown)
        if t == 7:
            verdicts[0] = stream.begin(third.frames[:1], ["go"], [0])[0]
        found.append([verdict.nats_per_dim for verdict in verdicts])
    expected = np.concatenate((scorer(first).nats_per_dim[1:], scorer(third).nats_per_dim[:2]))
    np.testing.assert_allclose([pair[0] for pair in found], expected, atol=1e-5)
    np.testing.assert_allclose([pair[1] for pair in found], scorer(second).nats_per_dim[1:], atol=1e-5)


def test_the_heat_map_and_novelty_point_at_the_token_that_changed(scorer: Scorer) -> None:
    normal = some(24)[3]
    frames = normal.frames.copy()
    frames[4, 2:4, 6:8] = np.array([255, 0, 255])  # token (1, 3)
    before, after = scorer(normal), scorer(replace(normal, frames=frames))
    changed = np.abs(after.heat[4] - before.heat[4])
    assert np.unravel_index(int(changed.argmax()), changed.shape) == (1, 3)
    assert after.parts["novelty"][4] > before.parts["novelty"][4] + 1
    np.testing.assert_allclose(after.score[:4], before.score[:4], atol=1e-3)


def test_blank_frames_are_novel_and_simple_although_a_world_may_expect_them(scorer: Scorer) -> None:
    blank = replace(some(24)[0], frames=np.full((8, 8, 8, 3), 128, np.uint8))
    found, normal = scorer(blank), scorer(some(24)[0])
    assert found.parts["background"].min() > normal.parts["background"].max()
    assert found.alarm.all()
    assert found.nats_per_dim.mean() > normal.nats_per_dim.mean(), "the test's own premise"


def test_what_the_codec_cannot_say_is_a_score_of_its_own() -> None:
    codec = CodecConfig("pca", patch=2, components=3, merge=2)
    world = env_world(ACTIONS, codec=codec, **no_text())
    one = episode(6, text="")
    known = episode_evidence(world, [one], seeds=[0], batch=2)[0]
    back = world.networks.codec.decode(torch.from_numpy(known.latents)[None])[0][0].numpy()
    judge = Scorer.fit(world, [episode(8, s, text="") for s in range(8)], false_alarms=0.2, run_length=20)
    assert judge(replace(one, frames=back)).parts["residual"].max() < 3
    assert judge(one).parts["residual"].min() > 10


def test_normal_frames_that_are_all_new_are_not_strange_for_it(world: World) -> None:
    """Where no two frames share a patch, novelty is normal: its scale is from frames beside the patches of others."""

    def noise(seed: int) -> Episode:
        frames = np.random.default_rng(seed).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
        return replace(episode(8, seed), frames=frames)

    judge = Scorer.fit(world, [noise(seed) for seed in range(24)], false_alarms=0.06, run_length=50)
    assert np.median(judge(noise(99)).score) < 3


def test_an_episode_is_strange_for_one_very_strange_frame_or_for_many(scorer: Scorer) -> None:
    normal = some(24)[1]
    frames = normal.frames.copy()
    frames[5] = 128
    assert scorer(replace(normal, frames=frames)).episode["score"] > scorer(normal).episode["score"] + 1
    assert scorer(normal).episode["alarms"] == scorer(normal).alarm.sum()


def test_scores_become_a_table(scorer: Scorer) -> None:
    scores = scorer(some(1)[0])
    lines = scores.to_csv().splitlines()
    head = lines[0].split(",")
    assert len(lines) == 1 + len(scores)
    assert set(PARTS) | {"frame", "score", "p", "alarm", "cusum"} <= set(head)
    assert float(lines[3].split(",")[head.index("score")]) == pytest.approx(scores.score[2], rel=1e-6)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_thresholds_that_the_data_cannot_support_are_refused(world: World) -> None:
    """500 frames for 1 %, proportionally otherwise."""
    with pytest.raises(ScorerError, match=r"at least 500 normal frames for a false-alarm rate of 0\.01"):
        Scorer.fit(world, some(24))
    with pytest.raises(ScorerError, match="at least 50 normal frames"):
        Scorer.fit(world, some(3), calibration_episodes=some(4), false_alarms=0.1)
    with pytest.raises(ScorerError, match="false alarms: expected a rate between 0 and 1"):
        Scorer.fit(world, some(4), false_alarms=1.5)
    with pytest.raises(ScorerError, match="draws: expected an integer >= 1"):
        Scorer.fit(world, some(4), false_alarms=0.5, draws=0)


def test_episodes_that_cannot_be_scored_are_refused_in_one_sentence(scorer: Scorer) -> None:
    good = episode(6)
    wrong = np.full((6, 4), np.nan, np.float32)
    for bad, says in (
        (episode(1), "at least 2 frames, found 1"),
        (episode(6, size=16), "expected the world's size"),
        (replace(good, frames=good.frames.astype(np.float32)), "uint8"),
        (replace(good, frames=good.frames[:0]), "frame"),
        (replace(good, actions=wrong), "finite"),
        (replace(good, actions=np.zeros((6, 7), np.float32)), "expected 4 numbers each"),
        (replace(good, space=space_to_json(spaces.MultiBinary(4))), "action space"),
        ("episode", "expected an Episode"),
    ):
        with pytest.raises(DataError, match=says):
            scorer(bad)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="frames: expected uint8"):
        ScoreStream(scorer).begin(np.zeros((1, 8, 8, 3)), ["go"])


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_saved_scorer_scores_as_before(scorer: Scorer, tmp_path: Path) -> None:
    scorer.save(tmp_path / "s")
    again, one = Scorer.load(tmp_path / "s", scorer.world), episode(9, 77)
    before, after = scorer(one), again(one)
    assert again.settings == scorer.settings
    for key in ("score", "p", "alarm", "windowed", "cusum", "change", "values", "heat"):
        assert np.array_equal(getattr(before, key), getattr(after, key)), key
    assert before.episode == after.episode


def test_a_scorer_of_another_world_size_codec_or_noise_level_is_refused(scorer: Scorer, tmp_path: Path) -> None:
    scorer.save(tmp_path)
    mixed = scorer.world.config.flow.components > 1
    pca = CodecConfig("pca", patch=2, components=3, merge=2) if mixed else CodecConfig("pca", patch=2, components=12)
    for changes, says in (
        ({"size": 16}, "size: expected"), ({"noise_level": 0.2}, "noise_level: expected"),
        ({"codec": pca}, "codec: expected"),
        ({"window": 5}, "world_id: expected"),
    ):
        with pytest.raises(ScorerError, match=says):
            Scorer.load(tmp_path, env_world(ACTIONS, **({} if mixed else PUBLISHED) | changes))  # type: ignore[arg-type]


def test_a_damaged_scorer_is_one_clear_error(scorer: Scorer, tmp_path: Path) -> None:
    scorer.save(tmp_path)
    whole, facts = (tmp_path / NUMBERS).read_bytes(), (tmp_path / FACTS).read_text()
    rng = np.random.default_rng(0)
    for _ in range(40):
        broken = bytearray(whole)
        broken[int(rng.integers(len(broken)))] ^= 1 << int(rng.integers(8))
        (tmp_path / NUMBERS).write_bytes(broken)
        with pytest.raises(ScorerError):
            Scorer.load(tmp_path, scorer.world)
    (tmp_path / NUMBERS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ScorerError, match="damage"):
        Scorer.load(tmp_path, scorer.world)
    (tmp_path / NUMBERS).write_bytes(whole)
    for text in ("{", "[]", facts.replace("0.06", "0.6"), json.dumps(json.loads(facts) | {"format": 1})):
        (tmp_path / FACTS).write_text(text)
        with pytest.raises(ScorerError):
            Scorer.load(tmp_path, scorer.world)
    with pytest.raises(ScorerError, match="found none"):
        Scorer.load(tmp_path / "nowhere", scorer.world)


def test_a_scorer_of_another_version_is_refused(
    scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("starflow_world.score.store.FORMAT", 1)
    scorer.save(tmp_path)
    monkeypatch.undo()
    with pytest.raises(ScorerError, match="format 2, found 1"):
        Scorer.load(tmp_path, scorer.world)
