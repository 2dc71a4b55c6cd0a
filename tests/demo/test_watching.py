"""Watchers: they see what the one who steers sees, steer nothing, and cost the engine nothing."""

import asyncio
import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from starlette.websockets import WebSocketDisconnect

import demo.pictures
import demo.relay
from demo.fake_engine import FakeEngine
from demo.lobby import Rules
from demo.messages import FRAME_HEADER
from demo.pictures import OutFrame
from demo.relay import BUNDLE_HEADER, Relay, pack
from demo.watching import CLOSE_ENDED, CLOSE_FULL, CLOSE_UNKNOWN, MAX_BAD
from tests.demo.test_server import HOST, START, connect, kind, serving, ticket, until
from tests.tiny_models import assert_needs


def watch_link(client: TestClient, token: str) -> str:
    link: str = client.post(f"/live/{token}/watch").json()["watch"]
    return link


@contextlib.contextmanager
def watch(client: TestClient, link: str) -> Iterator["Watcher"]:
    with client.websocket_connect(f"/live/ws/watch/{link}", headers=HOST) as socket:
        yield Watcher(socket)


def unpacked(data: bytes) -> list[tuple[tuple[Any, ...], bytes]]:
    """Headers and pictures of a bundle."""
    version, count, _, _ = BUNDLE_HEADER.unpack(data[: BUNDLE_HEADER.size])
    assert version == 2
    found, at = [], BUNDLE_HEADER.size
    for _ in range(count):
        size = int.from_bytes(data[at : at + 4], "little")
        one = data[at + 4 : at + 4 + size]
        found.append((FRAME_HEADER.unpack(one[: FRAME_HEADER.size]), one[FRAME_HEADER.size :]))
        at += 4 + size
    assert at == len(data)
    return found


class Watcher:
    """What a watcher gets, frames one by one and acknowledged."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self._got: list[dict[str, Any]] = []

    def send(self, message: Any) -> None:
        self.socket.send_text(message if isinstance(message, str) else json.dumps(message))

    def first(self, name: str, **wanted: Any) -> dict[str, Any]:
        """The next message that is wanted."""
        while True:
            message = self._next()
            if message["type"] == name and wanted.items() <= message.items():
                return message

    def _next(self) -> dict[str, Any]:
        while not self._got:
            event = self.socket.receive()
            if event["type"] == "websocket.close":
                raise WebSocketDisconnect(event["code"], event.get("reason"))
            if event.get("bytes") is None:
                return dict(json.loads(event["text"]))
            for header, picture in unpacked(event["bytes"]):
                frame = {"type": "frame", "frame": header[5], "epoch": header[4], "data": picture}
                self._got.append(frame)
            ack = {"type": "ack", "seq": header[3], "epoch": 1, "shown": 0, "head": 0}
            with contextlib.suppress(WebSocketDisconnect):
                self.socket.send_json(ack)
        return self._got.pop(0)


def colour(frame: dict[str, Any]) -> int:
    return int(np.asarray(Image.open(io.BytesIO(frame["data"]))).reshape(-1, 3).mean(0).argmax())


def test_a_watcher_sees_the_stream_its_changes_and_its_end() -> None:
    with serving() as client:
        token = ticket(client)
        with connect(client, token) as steering:
            steering.send_json(START)
            until(steering, lambda m: m["type"] == "frame" and m["frame"] >= 8)
            with watch(client, watch_link(client, token)) as watching:
                assert watching.first("hello")["watching"] is True
                place = watching.first("place")
                assert (place["prompt"], place["marks"], place["takes"]) == ("a red ball", [], [])
                assert client.get("/live/health").json()["watching"] == 1
                until(steering, lambda m: m["type"] == "frame" and m["frame"] >= place["frame"] + 8)
                assert colour(watching.first("frame", epoch=1)) == 0
                steering.send_json({"type": "event", "id": 9, "epoch": 1, "prompt": "a blue ball"})
                at = until(steering, lambda m: m["type"] == "receipt" and m["status"] == "applied")["frame"]
                told = watching.first("receipt")
                assert (told["label"], told["frame"], told["id"]) == ("a blue ball", at, 0)
                until(steering, lambda m: m["type"] == "frame" and m["frame"] > at + 8)
                assert colour(watching.first("frame")) == 2
                steering.send_json({"type": "pause"})
                watching.first("state", state="paused")
                client.delete(f"/live/{token}/watch")
                assert "taken back" in watching.first("ended")["text"]
                with pytest.raises(WebSocketDisconnect) as closed:
                    watching.first("frame")
                assert closed.value.code == CLOSE_ENDED


def test_whoever_only_watches_changes_nothing() -> None:
    """What a page can say to steer is refused, and too much of it ends the watcher's connection alone."""
    says = [
        {"type": "pause"},
        {"type": "clear"},
        {"type": "event", "id": 1, "epoch": 1, "prompt": "a green ball"},
        {"type": "rewind", "mark": 1},
        {"type": "camera", "pan": [0.1, 0], "zoom": 1, "rotate": 0},
        {"type": "pins", "points": [[0.5, 0.5]]},
        {**START, "seed": 5},
        {"type": "awake"},
    ]
    with serving() as client:
        token = ticket(client)
        with connect(client, token) as steering:
            steering.send_json(START)
            until(steering, kind("frame"))
            link = watch_link(client, token)
            with watch(client, link) as watching:
                for message in says:
                    watching.send(message)
                    assert "only watches" in watching.first("error")["text"]
                for _ in range(MAX_BAD - len(says) + 1):
                    watching.send("{")
                with pytest.raises(WebSocketDisconnect) as closed:
                    watching.first("nothing")
                assert closed.value.code == 1008
            until(steering, lambda m: m["type"] == "frame" and m["frame"] >= 24)
            demo = client.app.app.app.state.demo
            session = demo.lobby.running[0].session
            assert (session.state, session.epoch, session.stream.prompt) == ("playing", 1, "a red ball")
            # the link opens the view alone
            for path in ("back", "watch"):
                client.post(f"/live/{link}/{path}")
            assert client.get(f"/live/{link}/timeline.json?frames=4").status_code == 404
            with pytest.raises(WebSocketDisconnect) as closed, connect(client, link) as stranger:
                until(stranger, kind("state"))
            assert closed.value.code == CLOSE_UNKNOWN


@pytest.mark.parametrize("link", ["nobody", "%00", "x" * 500])
def test_a_link_to_nothing_says_so(link: str) -> None:
    with serving() as client, pytest.raises(WebSocketDisconnect) as closed, watch(client, link) as watching:
        watching.first("hello")
    assert closed.value.code == CLOSE_UNKNOWN
    assert closed.value.reason == "nothing plays under this link"


@pytest.mark.parametrize("most", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_so_many_watch_and_the_next_one_is_told(most: int) -> None:
    with serving(max_watchers=most) as client, contextlib.ExitStack() as all_of_them:
        token = ticket(client)
        steering = all_of_them.enter_context(connect(client, token))
        steering.send_json(START)
        until(steering, kind("frame"))
        link = watch_link(client, token)
        sockets = [all_of_them.enter_context(watch(client, link)) for _ in range(most)]
        at = max(socket.first("place")["frame"] for socket in sockets)
        with pytest.raises(WebSocketDisconnect) as closed, watch(client, link) as late:
            late.first("hello")
        assert closed.value.code == CLOSE_FULL
        assert f"{most} watch already" in closed.value.reason
        until(steering, lambda m: m["type"] == "frame" and m["frame"] >= at + 8)
        for socket in sockets:
            assert socket.first("frame")["epoch"] == 1


def test_a_stream_that_goes_on_elsewhere_is_still_under_its_link() -> None:
    with serving(rules=Rules(closed_seconds=600.0)) as client:
        token = ticket(client)
        with connect(client, token) as steering:
            steering.send_json(START)
            until(steering, lambda m: m["type"] == "frame" and m["frame"] >= 24)
            link = watch_link(client, token)
        demo = client.app.app.app.state.demo
        demo.lobby.end(demo.lobby.find(token), "over")
        demo._writing.submit(lambda: None).result()
        answer = client.post(f"/live/session?after={token}").json()
        assert answer["kept"]
        with connect(client, answer["session"]) as again:
            until(again, kind("frame"))
            with watch(client, link) as watching:
                assert watching.first("place")["prompt"] == "a red ball"


# -- the row that watchers read


def frames(count: int, size: int = 64, start: int = 0) -> list[OutFrame]:
    rng = np.random.default_rng(start)
    return [
        OutFrame(1, start + i, 0, 0.0, rng.integers(0, 255, (size, size, 3), dtype=np.uint8))
        for i in range(count)
    ]


def test_large_frames_lie_in_several_messages_and_none_is_lost() -> None:
    made = pack(frames(12, 256), 7)
    assert len(made) > 1
    found = [one for bundle in made for one in unpacked(bundle)]
    assert [header[5] for header, _ in found] == list(range(12))
    assert {header[3] for header, _ in found} == {7}
    assert len(pack(frames(4), 0)) == 1


def test_a_picture_is_encoded_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        encoded: list[int] = []
        real = demo.pictures.encode
        with monkeypatch.context() as patched:
            patched.setattr(demo.pictures, "encode", lambda pixels: (encoded.append(1), real(pixels))[1])

            async def run() -> None:
                relay = Relay(lambda: 0.0)
                with relay.joined():
                    relay.show(frames(3))
                    item = relay.read(0)
                    assert item is not None
                    await asyncio.gather(*(item.bundles(0) for _ in range(50)))

            asyncio.run(run())
        assert len(encoded) == 3

    async def each(self: demo.relay.Item, number: int) -> list[bytes]:
        return pack([OutFrame(1, f.frame, 0, 0.0, f.pixels) for f in self.frames], number)

    assert_needs(check, monkeypatch, demo.relay.Item, "bundles", each)


def test_without_watchers_nothing_is_kept_and_with_them_two_seconds_are() -> None:
    async def run() -> None:
        now = [0.0]
        relay = Relay(lambda: now[0])
        relay.show(frames(4))
        assert relay.end == 0
        with relay.joined():
            for step in range(20):
                now[0] = 0.5 * step
                relay.show(frames(4))
            assert relay.end == 20
            assert relay.read(19) is not None
            assert relay.read(20) is None
            with pytest.raises(LookupError):
                relay.read(14)
            assert relay.read(15) is not None
        with pytest.raises(LookupError):
            relay.read(19)

    asyncio.run(run())


def test_a_slow_engine_is_waited_for_and_news_wake_watchers() -> None:
    async def run() -> None:
        relay = Relay(lambda: 0.0)
        with relay.joined():
            waiting = asyncio.create_task(relay.news(60.0))
            await asyncio.sleep(0)
            await asyncio.to_thread(relay.say, {"type": "state", "state": "paused", "text": "", "epoch": 1})
            await asyncio.wait_for(waiting, 30.0)
        await relay.news(0.01)

    asyncio.run(run())


def waits_of_chunks(engine: FakeEngine) -> Counter[int]:
    """How often each chunk of the engine's first stream waits; it does not wait then."""
    waits: Counter[int] = Counter()
    engine.wait = lambda _: waits.update([engine.opened[0].index])
    return waits


@pytest.mark.slow
def test_the_fake_engine_is_as_quick_with_watchers() -> None:
    """Nothing that a chunk waits for depends on who watches: the engine's work is the same, call by call."""
    made = []
    for watchers in (0, 20):
        engine = FakeEngine(seconds=0.01)
        calls = waits_of_chunks(engine)
        with serving(engine) as client, contextlib.ExitStack() as all_of_them:
            token = ticket(client)
            steering = all_of_them.enter_context(connect(client, token))
            steering.send_json(START)
            link = None
            until(steering, kind("frame"))
            link = watch_link(client, token)
            for _ in range(watchers):
                all_of_them.enter_context(watch(client, link))
            until(steering, lambda m: m["type"] == "frame" and m["frame"] >= 40)
            steering.send_json({"type": "pause"})
            until(steering, lambda m: m["type"] == "state" and m["state"] == "paused")
            # the chunk that was under way when the stream was paused may have waited once so far
            whole = engine.opened[0].index
            made.append({calls[index] for index in range(whole)})
    assert made == [{2}, {2}]
