"""The demo's web application over WebSockets with a fake engine: seats, queue, limits, admission."""

import base64
import contextlib
import io
import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from starlette.websockets import WebSocketDisconnect

import demo.lobby
import demo.uploads
from demo.access import Access, Gate
from demo.app import build_app
from demo.connection import CLOSE_REPLACED, MAX_BAD
from demo.fake_engine import FakeEngine
from demo.live import LiveSession
from demo.lobby import Full, Lobby, Rules, Seat
from demo.messages import FRAME_HEADER, MAX_MESSAGE_BYTES, Simple, Start
from demo.server import Options
from streamgen.video.write import VideoFileSink
from tests.demo_viewers import Clock
from tests.tiny_models import assert_needs
from tests.waiting import wait_until

START = {"type": "start", "prompt": "a red ball", "seed": 1}
HOST = {"host": "localhost:7860"}
# Seconds; a machine that has nothing else to do needs a hundredth of it.
PATIENCE = 180.0


# -- seats, with an injected clock


class Tables:
    """A lobby with fake sessions on a clock."""

    def __init__(self, **rules: Any) -> None:
        self.clock = Clock()
        self.engine = FakeEngine(wait=self.clock.sleep)
        self.closed: list[LiveSession] = []
        self.lobby = Lobby(Rules(**rules), self._open, self._close, self.clock)

    def _open(self, seat: Seat) -> LiveSession:
        return LiveSession(self.engine, seat.outgoing, self.clock)

    def _close(self, session: LiveSession) -> None:
        self.closed.append(session)
        session.close()

    def sit(self) -> Seat:
        seat = self.lobby.connect(self.lobby.ticket())
        assert seat is not None
        return seat

    def later(self, seconds: float) -> None:
        self.clock.sleep(seconds)
        self.lobby.tick()


def said(seat: Seat, kind: str) -> list[dict[str, Any]]:
    return [message for message in seat.outgoing.take() if message["type"] == kind]


def test_a_fixed_number_runs_and_the_rest_see_their_place() -> None:
    tables = Tables(max_sessions=2, grace_seconds=4.0)
    seats = [tables.sit() for _ in range(5)]
    assert [seat.session is not None for seat in seats] == [True, True, False, False, False]
    assert [said(seat, "queue")[-1]["position"] for seat in seats[2:]] == [1, 2, 3]
    tables.lobby.disconnect(seats[0], seats[0].visit)
    tables.later(5)
    assert seats[2].session is not None
    assert [said(seat, "queue")[-1]["position"] for seat in seats[3:]] == [1, 2]
    assert len(tables.closed) == 1


def test_a_place_is_kept_for_a_page_that_reloads_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        tables = Tables(grace_seconds=4.0)
        seat = tables.sit()
        session = seat.session
        tables.lobby.disconnect(seat, seat.visit)
        tables.later(3)
        assert tables.lobby.connect(seat.token) is seat
        assert seat.session is session
        tables.lobby.disconnect(seat, seat.visit)
        tables.later(4.1)
        assert tables.closed == [session]
        assert tables.lobby.connect(seat.token) is None

    assert_needs(check, monkeypatch, Lobby, "tick", lambda self: None)


def test_a_lost_connection_has_minutes_and_a_closed_page_seconds() -> None:
    tables = Tables()
    lost, closed = tables.sit(), tables.sit()
    tables.lobby.disconnect(lost, lost.visit)
    tables.lobby.disconnect(closed, closed.visit, closed=True)
    tables.later(5)
    assert closed.over
    tables.later(170)
    assert tables.lobby.connect(lost.token) is lost
    assert not lost.over


def test_a_page_on_its_way_back_has_longer() -> None:
    tables = Tables(closed_seconds=4.0, loading_seconds=20.0)
    seat = tables.sit()
    tables.lobby.disconnect(seat, seat.visit, closed=True)
    tables.later(3)
    assert tables.lobby.coming_back(seat.token)
    tables.later(20)
    assert tables.lobby.connect(seat.token) is seat
    tables.lobby.disconnect(seat, seat.visit, closed=True)
    tables.lobby.coming_back(seat.token)
    tables.later(24.1)
    assert seat.over
    assert not tables.lobby.coming_back(seat.token)


def disconnect_in(state: str) -> tuple[Tables, Seat, LiveSession]:
    tables = Tables(grace_seconds=4.0)
    seat = tables.sit()
    session = seat.session
    assert session is not None
    if state != "ready":
        session.handle(Start("a red ball", 0))
    if state in ("playing", "paused", "failed"):
        for _ in range(4):
            session.work()
    if state == "paused":
        session.handle(Simple("pause"))
    if state == "failed":
        tables.engine.fail_next = RuntimeError("no")
        session.work()
    if state == "ended":
        tables.lobby.end(seat, "over")
    assert session.state == state
    return tables, seat, session


@pytest.mark.parametrize("state", ["ready", "opening", "playing", "paused", "failed", "ended"])
def test_a_viewer_who_leaves_in_any_state_gives_everything_back(state: str) -> None:
    tables, seat, session = disconnect_in(state)
    tables.lobby.disconnect(seat, seat.visit)
    if state == "playing":
        made = session.counters.generated
        for _ in range(200):
            tables.clock.sleep(0.005)
            if session.due(tables.clock()) <= tables.clock():
                session.work()
        assert session.counters.generated <= made + 8, "nobody watches: the engine rests"
    tables.later(5)
    assert session.state == "ended"
    assert tables.closed == [session]
    assert tables.lobby.running == tables.lobby.waiting == []
    assert session.due(tables.clock()) == float("inf")
    session.work()
    assert all(reel.closed for reel in session.recording._reels.values())


def test_whoever_leaves_the_row_makes_it_shorter() -> None:
    tables = Tables(max_sessions=1, grace_seconds=4.0)
    first, second, third = (tables.sit() for _ in range(3))
    tables.lobby.disconnect(second, second.visit)
    tables.later(5)
    third.outgoing.clear()
    fourth = tables.sit()
    assert said(third, "queue")[-1]["position"] == 1
    assert said(fourth, "queue")[-1]["position"] == 2
    assert first.session is not None


def test_idle_sessions_end_with_notice_and_a_touch_keeps_them() -> None:
    tables = Tables(idle_seconds=600.0, notice_seconds=60.0)
    seat = tables.sit()
    tables.later(545)
    assert said(seat, "idle")[-1]["seconds"] == 55
    tables.lobby.heard(seat)
    assert said(seat, "idle")[-1]["seconds"] is None
    tables.later(541)
    tables.later(60)
    assert "idle" in said(seat, "ended")[-1]["text"]
    assert seat.over
    forever = Tables(idle_seconds=0.0)
    watched = forever.sit()
    forever.later(1e6)
    assert not watched.over


def test_ids_cannot_be_guessed_and_unused_ones_expire() -> None:
    tables = Tables(max_sessions=1, max_waiting=2)
    tokens = {tables.lobby.ticket() for _ in range(3)}
    assert all(len(token) >= 43 for token in tokens)
    with pytest.raises(Full):
        tables.lobby.ticket()
    tables.later(31)
    assert tables.lobby.connect(tokens.pop()) is None
    assert tables.lobby.connect("guess") is None
    tables.lobby.ticket()


def test_an_older_connection_of_the_same_page_does_not_free_the_newer_ones_seat() -> None:
    tables = Tables(grace_seconds=4.0)
    seat = tables.sit()
    first = seat.visit
    tables.lobby.connect(seat.token)
    tables.lobby.disconnect(seat, first)
    tables.later(10)
    assert seat.session is not None


# -- over the wire


@contextlib.contextmanager
def serving(engine: FakeEngine | None = None, **options: Any) -> Iterator[TestClient]:
    access = options.pop("access", Access())
    app = build_app(engine or FakeEngine(seconds=0.01), Options(access=access, **options))
    with TestClient(app, base_url="http://localhost:7860") as client:
        yield client


def ticket(client: TestClient, **headers: str) -> str:
    answer = client.post("/live/session", headers=headers)
    assert answer.status_code == 200, answer.text
    token: str = answer.json()["session"]
    return token


def connect(client: TestClient, token: str, **headers: str) -> Any:
    return client.websocket_connect(f"/live/ws/{token}", headers=HOST | headers)


def until(
    socket: Any, wanted: Callable[[dict[str, Any]], bool], patience: float = PATIENCE
) -> dict[str, Any]:
    """The next message that is wanted; frames are acknowledged on the way."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        event = socket.receive()
        if event.get("bytes") is not None:
            _, _, _, seq, epoch, frame, _, _ = FRAME_HEADER.unpack(event["bytes"][: FRAME_HEADER.size])
            message = {"type": "frame", "frame": frame, "data": event["bytes"][FRAME_HEADER.size :]}
            socket.send_json({"type": "ack", "seq": seq, "epoch": epoch, "shown": frame, "head": frame + 0.5})
        else:
            if event["type"] == "websocket.close":
                raise WebSocketDisconnect(event["code"], event.get("reason"))
            message = json.loads(event["text"])
        if wanted(message):
            return message
    raise AssertionError("the message did not come")


def kind(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda message: message["type"] == name


def test_a_stream_over_a_socket_plays_and_answers() -> None:
    with serving() as client, connect(client, ticket(client)) as socket:
        assert until(socket, kind("hello"))["width"] == 64
        socket.send_json(START)
        until(socket, lambda m: m["type"] == "frame" and m["frame"] >= 20)
        socket.send_json({"type": "event", "id": 9, "epoch": 1, "prompt": "a blue ball"})
        receipt = until(socket, lambda m: m["type"] == "receipt" and m["status"] == "applied")
        frame = until(socket, lambda m: m["type"] == "frame" and m["frame"] >= receipt["frame"])
        red, _, blue = np.asarray(Image.open(io.BytesIO(frame["data"]))).reshape(-1, 3).mean(0)
        assert blue > 2 * red


def test_bad_messages_are_answered_and_many_of_them_end_the_connection() -> None:
    with serving() as client, connect(client, ticket(client)) as socket:
        socket.send_text("{")
        assert until(socket, kind("error"))["code"] == "bad_message"
        socket.send_bytes(b"\0" * 10)
        assert "camera frame" in until(socket, kind("error"))["text"]
        socket.send_json(START)
        until(socket, kind("frame"))
        for _ in range(MAX_BAD):
            socket.send_text('{"type": "nothing"}')
        with pytest.raises(WebSocketDisconnect) as closed:
            until(socket, lambda m: False)
        assert closed.value.code == 1008


def test_an_oversized_message_ends_the_connection() -> None:
    with serving() as client, connect(client, ticket(client)) as socket:
        socket.send_text(" " * (MAX_MESSAGE_BYTES + 1))
        with pytest.raises(WebSocketDisconnect) as closed:
            until(socket, lambda m: False)
        assert closed.value.code == 1008


def test_two_viewers_have_nothing_in_common() -> None:
    with serving() as client, connect(client, ticket(client)) as one, connect(client, ticket(client)) as two:
        one.send_json(START)
        two.send_json({**START, "prompt": "a green ball"})
        until(one, lambda m: m["type"] == "frame" and m["frame"] > 8)
        green = until(two, lambda m: m["type"] == "frame" and m["frame"] > 8)
        assert np.asarray(Image.open(io.BytesIO(green["data"]))).reshape(-1, 3).mean(0).argmax() == 1
        one.send_json({"type": "pause"})
        until(one, lambda m: m["type"] == "state" and m["state"] == "paused")
        until(two, lambda m: m["type"] == "frame" and m["frame"] > green["frame"] + 8)


def test_the_row_moves_up_when_a_page_is_closed() -> None:
    rules = Rules(max_sessions=1, closed_seconds=0.2, grace_seconds=0.2)
    with serving(rules=rules) as client:
        with connect(client, ticket(client)) as first:
            until(first, kind("state"))
            second_token = ticket(client)
            with connect(client, second_token) as second:
                assert until(second, kind("queue"))["position"] == 1
                assert client.get("/live/health").json() == {"running": 1, "waiting": 1, "watching": 0}
                second.send_json(START)
                assert "turn" in until(second, kind("error"))["text"]
                first.close()
                assert until(second, kind("state"))["state"] == "ready"
        deadline = time.monotonic() + PATIENCE
        while client.get("/live/health").json()["running"] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert client.get("/live/health").json() == {"running": 0, "waiting": 0, "watching": 0}


@pytest.mark.parametrize(("code", "kept"), [(1000, False), (1001, False), (1005, True), (1011, True)])
def test_whoever_closes_is_gone_and_whoever_is_lost_is_waited_for(code: int, kept: bool) -> None:
    with serving(rules=Rules(closed_seconds=0.2)) as client:
        token = ticket(client)
        with connect(client, token) as socket:
            until(socket, kind("state"))
            socket.close(code)
        lobby = client.app.app.app.state.demo.lobby  # type: ignore[attr-defined]
        if kept:
            # longer than the place of a page that was closed is kept
            wait_until(lambda: lobby.find(token).left is not None)
            time.sleep(0.5)
        else:
            wait_until(lambda: lobby.find(token) is None)
        assert client.post(f"/live/{token}/back").json() == {"kept": kept}


def test_a_second_connection_of_a_page_takes_the_first_ones_place() -> None:
    with serving() as client:
        token = ticket(client)
        with connect(client, token) as first, connect(client, token) as second:
            with pytest.raises(WebSocketDisconnect) as closed:
                until(first, lambda m: False)
            assert closed.value.code == CLOSE_REPLACED
            second.send_json(START)
            until(second, kind("frame"))


def test_an_engine_error_reaches_the_page_in_plain_words() -> None:
    engine = FakeEngine(seconds=0.01)
    with serving(engine) as client, connect(client, ticket(client)) as socket:
        socket.send_json(START)
        until(socket, kind("frame"))
        engine.fail_next = ValueError("the weights are tired")
        failed = until(socket, lambda m: m["type"] == "state" and m["state"] == "failed")
        assert failed["text"] == "the engine failed: ValueError: the weights are tired"
        socket.send_json({"type": "resume"})
        until(socket, lambda m: m["type"] == "state" and m["state"] == "playing")
        until(socket, kind("chunk"))


def test_downloads_are_what_was_shown() -> None:
    with serving() as client:
        token = ticket(client)
        with connect(client, token) as socket:
            socket.send_json(START)
            until(socket, lambda m: m["type"] == "frame" and m["frame"] >= 24)
            video = client.get(f"/live/{token}/clip.mp4?frames=20")
            assert video.status_code == 200
            assert video.content[4:8] == b"ftyp"
            record = client.get(f"/live/{token}/timeline.json?frames=20").json()
            assert (record["frames"], len(record["timeline"]["events"])) == (20, 1)
        assert client.get("/live/nobody/clip.mp4?frames=20").status_code == 404


# -- uploads


def huge_png(side: int) -> bytes:
    """A picture of so many pixels a side, in a few bytes: its header, and hardly any data."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = part(b"IHDR", head) + part(b"IDAT", zlib.compress(bytes(100))) + part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def image(width: int = 80, height: int = 60) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (10, 200, 10)).save(out, "PNG")
    return out.getvalue()


def test_uploads_are_checked_in_kind_size_and_content(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo.uploads, "DECODE_SECONDS", PATIENCE)
    with serving() as client:
        token = ticket(client)
        with connect(client, token) as socket:
            until(socket, kind("state"))

            def post(body: bytes, kind: str) -> tuple[int, Any]:
                answer = client.post(f"/live/{token}/picture", content=body, headers={"content-type": kind})
                return answer.status_code, answer.json()

            status, made = post(image(), "image/png")
            assert (status, made["frames"]) == (200, 1)
            assert made["picture"].startswith("data:image/png")
            assert "expected an image or a clip" in post(image(), "text/html")[1]["error"]
            assert "cannot be read as an image" in post(b"no picture", "image/png")[1]["error"]
            told = post(huge_png(30_000), "image/png")[1]["error"]
            assert "the picture: has too many pixels: expected at most" in told
            assert "empty" in post(b"", "image/png")[1]["error"]
            with VideoFileSink(tmp_path / "long.mp4", 64, 64, 16) as sink:
                sink.write(np.zeros((11 * 16, 64, 64, 3), np.uint8))
            long = (tmp_path / "long.mp4").read_bytes()
            assert "at most 10 seconds" in post(long, "video/mp4")[1]["error"]
            assert post(b"\0" * 500, "video/mp4")[0] == 400
            monkeypatch.setattr(demo.uploads.save, "__defaults__", (10,))
            assert "too large" in post(image(), "image/png")[1]["error"]


def test_decoding_has_a_time_limit(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(image())
    with pytest.raises(demo.uploads.InputError, match="took longer"):
        demo.uploads.decode(file, (64, 64), 16, seconds=0.001)


# -- who may come in


@pytest.mark.parametrize(
    ("host", "origin", "welcome"),
    [
        ("localhost:7860", None, True),
        ("127.0.0.1:7860", "http://127.0.0.1:7860", True),
        ("localhost:7860", "http://evil.example", False),
        ("localhost:7860", "http://localhost:9999", False),
        ("localhost:7860", "null", False),
        ("evil.example:7860", "http://evil.example:7860", False),
        ("localhost:7860", "https://demo.example.org", True),
        ("demo.example.org", "https://demo.example.org", True),
    ],
)
def test_pages_of_other_sites_are_kept_out(
    host: str, origin: str | None, welcome: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        with serving(access=Access(origins=("https://demo.example.org",))) as client:
            headers = {"host": host} | ({"origin": origin} if origin else {})
            token = ticket(client)
            assert (client.post("/live/session", headers=headers).status_code == 200) == welcome
            try:
                with client.websocket_connect(f"/live/ws/{token}", headers=headers) as socket:
                    socket.receive_json()
                    came_in = True
            except WebSocketDisconnect:
                came_in = False
            assert came_in == welcome

    if welcome:
        check()
    else:

        async def open_door(self: Gate, *call: Any) -> None:
            await self.app(*call)

        assert_needs(check, monkeypatch, Gate, "__call__", open_door)


def test_names_that_are_none_are_not_answered() -> None:
    assert not Access().host_allowed("[")
    assert not Access().host_allowed("")
    assert not Access().origin_allowed("http://", "")
    assert Access(local=False).host_allowed("anything.example")


def test_a_password_is_asked_for_everywhere_but_on_the_socket_of_a_ticket() -> None:
    code = base64.b64encode(b"me:secret").decode()
    with serving(access=Access(login="me:secret")) as client:
        for path in ("/", "/live/health", "/live/static/main.js", "/config"):
            answer = client.get(path)
            assert answer.status_code == 401
            assert "Basic" in answer.headers["www-authenticate"]
        for wrong in ("Basic ???", "Basic " + base64.b64encode(b"me:guess").decode(), "Bearer x"):
            assert client.post("/live/session", headers={"authorization": wrong}).status_code == 401
        token = ticket(client, authorization=f"Basic {code}")
        with connect(client, token) as socket:
            assert socket.receive_json()["type"] == "hello"
