"""Twin runs: a frame is positive iff it differs from what the nominal simulator, in the same state, gives."""

import numpy as np
import pytest

from starflow_world.agents.babyai.tiles import read_tiles
from starflow_world.commands.anomaly.babyai import FAULTS, BabyAI, BabyAIRun, render_room, replace_tile
from starflow_world.commands.anomaly.cartpole import CORRELATED, DISTURBANCES, MINOR, SEVERE, CartPole
from starflow_world.commands.anomaly.twins import NOMINAL, SHIFT, Twin, play_twin, play_twins
from starflow_world.envs.cartpole_pixels import Disturbance
from starflow_world.errors import DataError

ROOM, POLE = BabyAI(frames=28), CartPole(frames=24)
ONE_OFF = ("wrong action", "teleport", "object vanishes", "object appears", "object changes colour")
TURN, AHEAD, DONE = {0: -1, 1: 1}, 2, 6
STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # of rows and columns, by direction


@pytest.fixture(scope="module")
def rooms() -> dict[str, list[Twin]]:
    return {kind: play_twins(ROOM, kind, 3, 11, progress=False) for kind in (NOMINAL, SHIFT, *FAULTS)}


def expected(names: np.ndarray, action: int) -> np.ndarray | None:
    """What a second simulator, which sees only the picture, says comes next; None where hands decide."""
    agents = [(r, c) for r, c in np.ndindex(names.shape) if str(names[r, c]).startswith("agent")]
    if len(agents) != 1 or "?" in names or action not in (*TURN, AHEAD, DONE):
        return None
    (row, column), found = agents[0], names.copy()
    direction = int(str(names[row, column])[-1])
    if action in TURN:
        found[row, column] = f"agent {(direction + TURN[action]) % 4}"
    there = row + STEPS[direction][0], column + STEPS[direction][1]
    if action == AHEAD and names[there] == "floor":
        found[there], found[row, column] = names[row, column], "floor"
    return found


@pytest.mark.parametrize("kind", [NOMINAL, SHIFT, *(k for k in FAULTS if k not in ("texture swap", "blank frames"))])
def test_labels_agree_with_a_second_simulator_that_reads_the_pictures(rooms: dict[str, list[Twin]], kind: str) -> None:
    judged = 0
    for twin in rooms[kind]:
        names = [read_tiles(frame) for frame in twin.episode.frames]
        for t in range(1, len(names)):
            after = expected(names[t - 1], int(twin.episode.actions[t].argmax()))
            if after is not None and "?" not in names[t]:
                assert twin.positive[t] == (names[t] != after).any(), f"{kind}, frame {t}"
                judged += 1
    assert judged > 20


@pytest.mark.parametrize("kind", FAULTS)
def test_nothing_is_positive_before_the_switch_and_something_after(rooms: dict[str, list[Twin]], kind: str) -> None:
    for twin in rooms[kind]:
        assert 0 < twin.begin <= twin.event < len(twin.episode)
        assert not twin.positive[: twin.begin].any()
        assert (twin.oracle == twin.positive).all()
        twin.episode.validate()
    assert len({twin.begin for twin in rooms[kind]}) > 1


@pytest.mark.parametrize("kind", [NOMINAL, SHIFT])
def test_normal_episodes_have_no_positive_frame(rooms: dict[str, list[Twin]], kind: str) -> None:
    for twin in rooms[kind]:
        assert not twin.positive.any()
        assert twin.event == twin.begin == len(twin.episode)


@pytest.mark.parametrize("kind", ONE_OFF)
def test_one_off_events_leave_most_frames_after_them_negative(rooms: dict[str, list[Twin]], kind: str) -> None:
    after = np.concatenate([twin.positive[twin.event + 1 :] for twin in rooms[kind]])
    assert after.mean() < 0.5


def test_frozen_frames_are_positive_where_the_action_should_change_them(rooms: dict[str, list[Twin]]) -> None:
    turned, idled = [], []
    for twin in rooms["frozen frames"]:
        frozen = twin.episode.frames[twin.begin - 1 :]
        assert (frozen == frozen[0]).all()
        positive, actions = twin.positive[twin.begin :], twin.episode.actions[twin.begin :].argmax(1)
        turned += positive[np.isin(actions, list(TURN))].tolist()
        idled += positive[actions == DONE].tolist()
    assert turned
    assert all(turned)
    assert idled
    assert not any(idled)


def test_time_runs_back_through_its_own_frames(rooms: dict[str, list[Twin]]) -> None:
    for twin in rooms["time reversed"]:
        frames, actions, begin = twin.episode.frames, twin.episode.actions, twin.begin
        for back in range(min(5, begin - 1, len(frames) - begin)):
            assert (frames[begin + back] == frames[begin - 2 - back]).all()
            assert (actions[begin + back] == actions[begin - 1 - back]).all()


def test_blank_and_swapped_textures_stay(rooms: dict[str, list[Twin]]) -> None:
    for kind in ("blank frames", "texture swap"):
        for twin in rooms[kind]:
            assert twin.positive[twin.begin :].all()
    blank = rooms["blank frames"][0]
    assert np.ptp(blank.episode.frames[blank.begin :]) == 0


def test_wrong_actions_are_recorded_as_they_were_asked_for(rooms: dict[str, list[Twin]]) -> None:
    """The frame is one that another action leads to."""
    seen = 0
    for twin in rooms["wrong action"]:
        for t in np.flatnonzero(twin.positive):
            names, after = (read_tiles(twin.episode.frames[i]) for i in (t - 1, t))
            others = [expected(names, action) for action in (0, 1, AHEAD)]
            seen += any(other is not None and (other == after).all() for other in others)
    assert seen


def test_the_same_seed_and_index_give_the_same_run() -> None:
    for kind in ("teleport", "time reversed"):
        one, two, other = (play_twin(ROOM, kind, 11, index) for index in (1, 1, 2))
        assert one.episode.digest() == two.episode.digest() != other.episode.digest()
        assert (one.positive == two.positive).all()


def test_a_fork_shares_nothing_that_changes() -> None:
    run = BabyAIRun(NOMINAL, 11, 0, 200)
    for _ in range(12):
        before, fork = render_room(run.world).copy(), run.fork(run.world)
        assert (render_room(fork) == before).all()
        assert (np.asarray(run.world.render()) == before).all()
        for action in (3, 2, 4, 5, 1, 2, 3, 1, 4):
            fork.step(action)
        assert (render_room(run.world) == before).all()
        run.step(False)


def test_only_whole_tiles_are_drawn_otherwise() -> None:
    frame = np.zeros((16, 16, 3), np.uint8)
    frame[0, 0] = 1
    swapped = replace_tile(frame, np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 9, np.uint8))
    assert (swapped[:8, :8] == frame[:8, :8]).all()
    assert (swapped[8:] == 9).all()
    assert (swapped[:, 8:] == 9).all()


def test_an_anomaly_that_never_acts_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starflow_world.commands.anomaly.twins.TRIES", 1)
    monkeypatch.setitem(FAULTS, "teleport", lambda run, action: run.play(action))
    with pytest.raises(DataError, match="expected 1 episodes in which 'teleport' acts, found 0"):
        play_twins(BabyAI(frames=8), "teleport", 1, 0, progress=False)


# ---- CartPole --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*SEVERE, "action noise 0.01", *CORRELATED])
def test_disturbed_frames_of_cartpole_are_positive_from_the_switch_on(kind: str) -> None:
    twin = play_twins(POLE, kind, 1, 12, progress=False)[0]
    assert not twin.positive[: twin.begin].any()
    assert twin.positive[twin.begin :].mean() > 0.9


def test_minor_disturbances_change_pixels_too() -> None:
    twins = [play_twins(POLE, kind, 1, 12, progress=False)[0] for kind in MINOR]
    assert np.mean([twin.positive[twin.begin :].mean() for twin in twins]) > 0.9


@pytest.mark.parametrize("kind", [NOMINAL, SHIFT])
def test_normal_episodes_of_cartpole_have_no_positive_frame(kind: str) -> None:
    twin = play_twins(POLE, kind, 1, 12, progress=False)[0]
    assert not twin.positive.any()
    assert np.isnan(twin.oracle[1:]).all()


def test_a_disturbance_that_changes_nothing_is_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DISTURBANCES, "none", Disturbance())
    assert not play_twin(POLE, "none", 12, 0).positive.any()


@pytest.mark.parametrize("kind", ["mass x 1.5", "action x 1.5", "force -10 N", *CORRELATED])
def test_the_oracle_that_knows_the_fault_decides_by_the_likelihood_ratio(kind: str) -> None:
    twin = play_twins(POLE, kind, 1, 12, progress=False)[0]
    assert twin.oracle[twin.begin + 2 :].min() > 0 > twin.oracle[3 : twin.begin].max()
