"""Who may talk to the server, what it answers to hostile input, and that visitors come and go."""

import json
import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed: the extra play")
testclient = pytest.importorskip("starlette.testclient")

from starflow_world.cli import main  # noqa: E402 (after the packages that may be missing)
from starflow_world.errors import ConfigError  # noqa: E402
from starflow_world.play import server  # noqa: E402
from starflow_world.play.game import Game  # noqa: E402
from starflow_world.play.messages import unpack  # noqa: E402

HOST = "127.0.0.1:8765"
ORIGIN = {"origin": f"http://{HOST}"}
START = {"do": "start", "kind": "set", "seed": 3, "text": None, "name": ""}
Client = testclient.TestClient


def client_of(game: Game, token: str = "", host: str = "127.0.0.1") -> Client:
    return Client(server.make_app(game, server.names_of(host, 8765), token), base_url=f"http://{host}:8765")


@pytest.fixture
def client(small_game: Game) -> Iterator[Client]:
    with client_of(small_game) as made:
        yield made


def connect(client: Client, **headers: str):
    return client.websocket_connect(f"ws://{HOST}/play", headers=ORIGIN | headers)


def ask(place, **command):
    """Send a command and return the next message: a header, or what was said."""
    place.send_text(json.dumps(command))
    return heard(place)


def heard(place):
    message = place.receive()
    if "text" in message and message["text"] is not None:
        return json.loads(message["text"])
    assert message.get("bytes") is not None, message
    return unpack(message["bytes"])[0]


def test_a_visitor_starts_steps_and_sees_frames(client: Client, small_game: Game):
    with connect(client) as place:
        hello = heard(place)
        assert (hello["say"], hello["height"], hello["names"]) == ("hello", 8, ["left", "right"])
        assert ask(place, **START)["panes"][0]["step"] == 0
        place.send_text(json.dumps({"do": "step", "action": [1]}))
        header, pixels = unpack(place.receive_bytes())
        assert header["panes"][0]["step"] == 1
        assert len(pixels) == 8 * 8 * 3 + 16, "a frame and the heat of 4 x 4 tokens"
        place.send_bytes(bytes(8 * 8 * 3))
        assert heard(place)["panes"][0]["step"] == 0


@pytest.mark.parametrize("headers", [
    {"host": "evil.example"}, {"host": "evil.example:8765"}, {"host": "127.0.0.1"}, {"host": "127.0.0.1:80"},
    {"host": ""}, {"host": "127.0.0.1:8765.evil.example"}, {"origin": "http://evil.example"}, {"origin": "null"},
    {"origin": "https://127.0.0.1:8765"}, {"origin": "http://localhost:8765"}, {"origin": "http://127.0.0.1:9"},
], ids=str)
def test_a_foreign_host_or_origin_is_refused_before_anything_else(client: Client, headers):
    for path in ("/", "/page.js", "/nothing", "/saved/x"):
        answer = client.get(path, headers=headers)
        assert (answer.status_code, answer.text) == (403, "forbidden")
        assert "access-control-allow-origin" not in answer.headers
    with pytest.raises(testclient.WebSocketDisconnect), connect(client, **headers):
        pass


def test_a_page_of_no_origin_cannot_open_a_socket(client: Client):
    with pytest.raises(testclient.WebSocketDisconnect), client.websocket_connect(f"ws://{HOST}/play"):
        pass


def test_another_host_asks_for_the_token(small_game: Game):
    with client_of(small_game, "secret", "192.0.2.1") as client:
        for path in ("/", "/?token=", "/?token=wrong", "/?token=secret2"):
            assert client.get(path).status_code == 403
        assert client.get("/", headers={"cookie": "starflow_token=wrong"}).status_code == 403
        answer = client.get("/?token=secret")
        assert answer.status_code == 200
        assert "HttpOnly; SameSite=Strict" in answer.headers["set-cookie"]
        assert client.get("/").status_code == 200, "the cookie is enough from now on"


@pytest.mark.parametrize("words", [["--host", "0.0.0.0"], ["--host", ""], ["--fps", "0"], ["--port", "99999"]], ids=str)
def test_a_wrong_address_is_one_clear_error(words, saved, capsys):
    with pytest.raises(SystemExit):
        main(["play", str(saved), "--no-browser", *words])
    assert capsys.readouterr().err.startswith(f"starflow-world: {words[0]}: expected")


def test_a_port_in_use_is_one_clear_error():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="expected a free port"):
        server.bind("127.0.0.1", taken.getsockname()[1])


def test_the_loopback_address_alone_is_listened_at():
    place = server.bind("127.0.0.1", 0)
    try:
        assert place.getsockname()[0] == "127.0.0.1"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", place.getsockname()[1]), timeout=2)
    finally:
        place.close()


PATHS = [
    "/../cli.py", "/..%2fcli.py", "/%2e%2e/%2e%2e/cli.py", "/page.js/", "/page.js%00", "//etc/passwd", "/etc/passwd",
    "/%2fetc%2fpasswd", "/C:%5cwindows", "/saved/../server.py", "/saved/..%2f..%2fcli.py", "/saved/%00", "/saved/",
    "/" + "a" * 4000, "/page%EF%BC%8Fx", "/docs", "/openapi.json", "/__init__.py", "/server.py",
]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_to_another_file(client: Client, path: str):
    answer = client.get(path, follow_redirects=False)
    assert answer.status_code == 404
    assert len(answer.text) < 100


def test_nothing_but_get_is_answered_and_every_answer_forbids_foreign_content(client: Client):
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert client.request(method, "/", content=b"{}").status_code == 405
    for path in ("/", "/nothing"):
        headers = client.get(path).headers
        assert "default-src 'none'; script-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert not [name for name in headers if name.startswith("access-control")]


def test_a_wrong_message_is_told_and_the_visitor_plays_on(client: Client):
    with connect(client) as place:
        heard(place)
        step = '{"do": "step", "action": [0]}'
        for text in ("", "[]", step, step.replace("0", "7"), '{"do": "mark"}', "é" * 9):
            place.send_text(text)
            assert heard(place)["say"] == "error"
        place.send_bytes(b"short")
        assert "8 x 8 x 3 bytes" in heard(place)["text"]
        assert ask(place, **START)["say"] == "frame"


def test_random_messages_and_requests_break_nothing(client: Client):
    draw = random.Random(0)
    words = ["start", "step", "back", "mark", "goto", "text", "record", "beside", "alone", "branch", "do", 1, -1, None,
             [], [0], {}, "set", "x" * 70, 1e300, True]
    keys = ["do", "action", "kind", "seed", "text", "name", "to", "id", "on", "keep", "luck"]
    with connect(client) as place:
        heard(place)
        for _ in range(150):
            place.send_text(json.dumps({draw.choice(keys): draw.choice(words) for _ in range(4)}))
        while ask(place, **START).get("say") == "error":
            pass
    for _ in range(100):
        path = "".join(draw.choice("abc/.%?&=#\\~ é") for _ in range(draw.randint(0, 30)))
        assert client.get(f"http://{HOST}/{path}".replace("%", "%25"), follow_redirects=False).status_code < 500


def test_the_fifth_visitor_is_refused_and_one_that_leaves_makes_room(client: Client):
    four = [connect(client) for _ in range(server.MOST_VISITORS)]
    for place in four:
        place.__enter__()
        assert heard(place)["say"] == "hello"
    with connect(client) as place:
        assert heard(place)["say"] == "full"
    four[0].__exit__(None, None, None)
    deadline = time.monotonic() + 20
    said = "full"
    while said == "full" and time.monotonic() < deadline:
        with connect(client) as place:
            said = heard(place)["say"]
    assert said == "hello"
    for place in four[1:]:
        place.__exit__(None, None, None)


def test_two_visitors_never_share_a_state(client: Client):
    with connect(client) as one, connect(client) as two:
        heard(one), heard(two)
        ask(one, **START)
        ask(two, **START)
        assert ask(one, do="step", action=[0])["panes"][0]["step"] == 1
        assert ask(two, do="back", to=0)["panes"][0]["step"] == 0
        assert ask(two, do="goto", id=1)["say"] == "error"


def flood(place):
    for _ in range(2 * int(server.BURST)):
        place.send_text("{}")
    while True:
        place.receive_text()


def test_whoever_sends_too_much_or_nothing_is_let_go(client: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "RATE", 0.0)
    with connect(client) as place:
        heard(place)
        with pytest.raises(testclient.WebSocketDisconnect):
            flood(place)
    monkeypatch.setattr(server, "RATE", 120.0)
    monkeypatch.setattr(server, "IDLE", 0.1)
    with connect(client) as place:
        heard(place)
        with pytest.raises(testclient.WebSocketDisconnect):
            place.receive_text()


def test_the_server_refuses_large_messages_and_headers_and_stops_with_visitors_on(small_game: Game):
    websockets = pytest.importorskip("websockets.sync.client")
    from websockets.exceptions import ConnectionClosed

    place = server.bind("127.0.0.1", 0)
    port = place.getsockname()[1]
    running = server.make_server(server.make_app(small_game, server.names_of("127.0.0.1", port)))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    address, origin = f"ws://127.0.0.1:{port}/play", f"http://127.0.0.1:{port}"
    with websockets.connect(address, origin=origin) as visitor:
        assert json.loads(visitor.recv())["say"] == "hello"
        visitor.send("x" * (server.LONGEST + 1))
        with pytest.raises(ConnectionClosed):
            visitor.recv()
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nX: " % port + b"a" * 20_000)
        assert raw.recv(100).startswith(b"HTTP/1.1 4")
    with websockets.connect(address, origin=origin) as visitor:
        visitor.recv()
        running.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
