"""What one visitor can do, and that several in one forward do not disturb each other."""

import json
from dataclasses import replace

import numpy as np
import pytest

from starflow_world.errors import StarflowError
from starflow_world.io.media import read_video
from starflow_world.play import session as sessions
from starflow_world.play.messages import read_message, unpack
from starflow_world.play.session import Session, advance
from starflow_world.world.state import WorldState

SET = {"do": "start", "kind": "set", "seed": 3, "text": None, "name": ""}
ACTIONS = [0, 1, 1, 0, 1, 0]


def begun(game, **changes):
    session = Session(game)
    session.do(SET | changes)
    return session


def play(session, actions=ACTIONS):
    """Take the actions; the frames of the first branch."""
    frames = []
    for action in actions:
        session.do({"do": "step", "action": [action]})
        advance([session])
        frames.append(session.branches[0].now.frame)
    return np.stack(frames)


def test_a_bookmark_returns_to_the_same_bytes_and_goes_on_to_the_same_bytes(small_game):
    session = begun(small_game)
    play(session)
    message = session.do({"do": "mark"})[0]
    header, pixels = unpack(message)
    future = play(session)
    shown, parts = unpack(session.do({"do": "goto", "id": header["id"]})[0])
    assert parts[: len(pixels)] == pixels
    assert shown["panes"][0]["step"] == header["step"] == len(ACTIONS)
    np.testing.assert_array_equal(play(session), future)
    session.do({"do": "goto", "id": header["id"]})
    np.testing.assert_array_equal(play(session), future)


def test_a_link_replays_the_episode_to_the_same_bytes(small_game):
    session = begun(small_game)
    play(session)
    session.do({"do": "branch", "luck": 5, "beside": False})
    frames = play(session)
    link = json.loads(session.do({"do": "link"})[0])
    other = Session(small_game)
    other.do(read_message(json.dumps({"do": "replay", "start": link["start"], "path": link["path"]})))
    while other.waiting:
        advance([other])
    np.testing.assert_array_equal(other.branches[0].now.frame, frames[-1])
    assert other.branches[0].path == link["path"]


def test_visitors_in_one_forward_see_what_each_sees_alone(small_game):
    four = [begun(small_game, seed=seed) for seed in range(4)]
    alone = [play(begun(small_game, seed=seed)) for seed in range(4)]
    for step, action in enumerate(ACTIONS):
        for session in four:
            session.do({"do": "step", "action": [action]})
        assert set(advance(four)) == set(four)
        for session, frames in zip(four, alone, strict=True):
            apart = np.abs(session.branches[0].now.frame.astype(int) - frames[step])
            assert apart.max() <= 1, "rounding differs with the width of a batch"


def test_the_same_luck_and_action_give_the_same_frame_and_another_action_another(small_game):
    session = begun(small_game)
    was = play(session)[-1]
    header, _ = unpack(session.do({"do": "other", "action": [ACTIONS[-1]]})[0])
    assert [pane["step"] for pane in header["panes"]] == [len(ACTIONS)] * 2
    np.testing.assert_array_equal(session.branches[0].now.frame, was)
    session.do({"do": "alone", "keep": 0})
    session.do({"do": "other", "action": [1 - ACTIONS[-1]]})
    assert (session.branches[0].now.frame != was).any()
    np.testing.assert_array_equal(session.branches[1].now.frame, was)


def test_branches_side_by_side_get_the_same_actions_with_other_luck(small_game):
    session = begun(small_game)
    play(session)
    session.do({"do": "branch", "luck": 9, "beside": True})
    play(session, [1, 0])
    first, second = session.branches
    assert first.actions() == second.actions()
    assert (first.now.frame != second.now.frame).any()
    session.do({"do": "alone", "keep": 1})
    assert session.branches == [second]


def test_going_back_and_doing_the_same_gives_the_same_bytes(small_game):
    session = begun(small_game)
    frames = play(session)
    session.do({"do": "back", "to": 4})
    np.testing.assert_array_equal(play(session, ACTIONS[4:]), frames[4:])
    session.do({"do": "back", "to": 0})
    apart = np.abs(play(session).astype(int) - frames)
    assert apart.max() <= 1, "older moments have their cache computed anew"
    with pytest.raises(StarflowError, match="kept"):
        session.do({"do": "back", "to": 99})


def test_a_text_applies_in_the_middle_of_an_episode(small_game):
    session, other = begun(small_game), begun(small_game)
    play(session, [0, 1])
    play(other, [0, 1])
    session.do({"do": "text", "text": "<b>"})
    header, _ = unpack(advance([session])[session][0])
    assert header["panes"][0]["text"] == "<b>"
    assert (play(session, [1, 1]) != play(other, [1, 1])).any()


def test_a_step_that_fails_is_told_to_its_visitor_and_to_no_other(small_game, monkeypatch):
    good, bad = begun(small_game), begun(small_game)
    broken, step = bad.branches[0], sessions.step_branches

    def failing(world, branches, actions):
        if broken in branches:
            raise RuntimeError("secret")
        return step(world, branches, actions)

    monkeypatch.setattr(sessions, "step_branches", failing)
    for session in (good, bad):
        session.do({"do": "step", "action": [0]})
    replies = advance([good, bad])
    assert unpack(replies[good][0])[0]["panes"][0]["step"] == 1
    assert "start anew" in replies[bad][0]
    assert "secret" not in replies[bad][0]
    bad.do(SET)
    assert play(bad).shape[0] == len(ACTIONS)


def test_the_real_environment_gets_the_same_actions_and_follows_every_jump(small_game):
    session = begun(small_game, kind="real")
    header, _ = unpack(session.frame())
    assert [pane["name"] for pane in header["panes"]] == ["imagined", "real"]
    play(session, [0, 1, 0])
    real = session.reality.now.frame
    session.do({"do": "mark"})
    play(session, [1, 1])
    header, _ = unpack(session.do({"do": "goto", "id": 1})[0])
    np.testing.assert_array_equal(session.reality.now.frame, real)
    assert header["panes"][1]["first"] is not None, "a random world is soon apart from CartPole"
    session.do({"do": "back", "to": 0})
    assert session.branches[0].apart is None
    session.close()


def test_a_world_whose_environment_is_missing_says_so(small_game):
    session = begun(replace(small_game, source=None, why="no such package"))
    with pytest.raises(StarflowError, match="no such package"):
        session.do({"do": "beside", "on": True})


def test_a_recording_is_a_video_of_every_step(small_game):
    session = begun(small_game)
    session.do({"do": "record", "on": True, "overlay": True})
    play(session, ACTIONS[:3])
    session.do({"do": "branch", "luck": 1, "beside": True})
    play(session, ACTIONS[3:])
    name = session.do({"do": "record", "on": False, "overlay": False})[1]
    path = small_game.shelf.path(small_game.shelf.names(".mp4")[-1])
    assert path.name in name
    assert len(list(read_video(path, 99))) == len(ACTIONS) + 1


def test_a_saved_state_begins_another_episode(small_game):
    session = begun(small_game)
    play(session)
    session.do({"do": "save"})
    name = small_game.shelf.names(".safetensors")[-1]
    other = begun(small_game, kind="state", name=name)
    np.testing.assert_array_equal(other.branches[0].now.frame, session.branches[0].now.frame)
    saved = WorldState.load(small_game.shelf.path(name), small_game.world)
    assert saved.key.tolist() == session.branches[0].now.state.key.tolist()
    with pytest.raises(StarflowError, match="picture or a saved state"):
        other.do({"do": "link"})


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "", "state-1.safetensors", "state-0001.safetensors/..",
                                  "state-0001.safetensors\0", "play-٠٠٠١.mp4"])
def test_no_name_leads_out_of_the_folder_of_saved_files(small_game, name):
    (small_game.shelf.folder.parent / "secret").write_text("x")
    with pytest.raises(StarflowError, match="saved file"):
        small_game.shelf.path(name)


def test_bookmarks_are_limited_and_can_be_forgotten(small_game):
    session = begun(small_game)
    for _ in range(sessions.MOST_BOOKMARKS):
        session.do({"do": "mark"})
    with pytest.raises(StarflowError, match="at most"):
        session.do({"do": "mark"})
    session.do({"do": "forget", "id": 1})
    session.do({"do": "mark"})


BAD = [
    "", "[]", "{", "1", "null", '{"do": 1}', '{"do": []}', '{"do": "__init__"}', '{"do": "close"}', '{"do": "step"}',
    '{"do": "step", "action": 1}', '{"do": "step", "action": [1], "x": 1}', '{"do": "step", "action": [true]}',
    '{"do": "step", "action": [[1]]}', '{"do": "back", "to": -1}', '{"do": "back", "to": 1.5}',
    '{"do": "back", "to": 1e99}', '{"do": "back", "to": 99999999999999999999}', '{"do": "text", "text": "\\ud800"}',
    '{"do": "text", "text": null}', json.dumps({"do": "text", "text": "x" * 1001}), "[" * 50000,
    '{"do": "start", "kind": "file", "seed": 1, "text": null, "name": ""}',
    json.dumps({"do": "step", "action": [0] * 300}), " " * 70000,
    '{"do": "replay", "start": {"kind": "state", "seed": 1}, "path": []}', '{"do": "replay", "start": [], "path": []}',
    '{"do": "replay", "start": {"kind": "set", "seed": 1}, "path": [{"luck": -1}]}',
    '{"do": "replay", "start": {"kind": "set", "seed": 1}, "path": [{"luck": 1, "text": ""}]}',
]


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_messages_outside_the_protocol_are_refused_in_one_line(text):
    with pytest.raises(StarflowError) as refused:
        read_message(text)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
