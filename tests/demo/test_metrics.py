"""What a monitor reads of the demo: figures in Prometheus' form that follow what happens, and whether it is
ready; and how a server leaves.
"""

import base64
import signal
import time
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

import demo.server
from demo.access import Access
from demo.drain import SENT_AWAY, Drain, DrainingServer
from demo.engine import Loading
from demo.fake_engine import FakeEngine
from demo.limits import Durations
from demo.lobby import Rules
from demo.metrics import Totals
from demo.pacing import Playhead
from tests.demo.test_server import PATIENCE, START, connect, kind, serving, ticket, until
from tests.demo_viewers import Clock, Room
from tests.tiny_models import assert_needs


def figures(client: TestClient) -> dict[tuple[str, str], float]:
    """Every sample of `/metrics`, by its name and the values of its labels."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.text)
    return {
        (sample.name, " ".join(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_figures_follow_a_viewer_and_outlive_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        rules = Rules(max_sessions=1, closed_seconds=0.1)
        with serving(rules=rules) as client:
            before = figures(client)
            assert before["streamgen_sessions", "playing"] == 0
            assert before["streamgen_places", ""] == 1
            assert before["streamgen_model_info", "none fake"] == 1
            with connect(client, ticket(client)) as socket:
                socket.send_json(START)
                until(socket, lambda m: m["type"] == "frame" and m["frame"] >= 40)
                during = figures(client)
                assert during["streamgen_sessions", "playing"] == 1
                assert during["streamgen_frames_sent_total", ""] >= 40
                assert during["streamgen_frames_made_total", ""] >= 41
                assert during["streamgen_chunk_seconds_count", ""] >= 11
                assert during["streamgen_chunk_seconds_bucket", "+Inf"] >= 11
                assert during["streamgen_chunk_seconds_bucket", "0.01"] == 0, "the engine takes 10 ms"
                with connect(client, ticket(client)) as second:
                    until(second, kind("queue"))
                    assert figures(client)["streamgen_waiting", ""] == 1
            end = time.monotonic() + PATIENCE
            while figures(client)["streamgen_sessions", "playing"] and time.monotonic() < end:
                time.sleep(0.05)
            after = figures(client)
            for name in ("frames_sent_total", "frames_made_total", "sessions_begun_total"):
                assert after[f"streamgen_{name}", ""] >= during[f"streamgen_{name}", ""] > 0, name

    assert_needs(check, monkeypatch, Totals, "add", lambda self, session: None)


def test_buckets_hold_what_took_no_longer_than_they_say() -> None:
    durations, more = Durations(), Durations()
    for seconds in (0.0, 0.01, 0.011, 99.0):
        durations.add(seconds)
    more.add(0.3)
    durations += more
    assert durations.counts == [1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert durations.total == pytest.approx(99.321)


def late(room: Room) -> Durations:
    return room.viewers[0].session.counters.late


def test_lateness_is_how_long_the_viewer_stood_still() -> None:
    """Chunks of 250 ms of picture: those that take 50 ms are in time, slow ones are 750 ms late."""
    room = Room()
    room.join()
    room.run(10)
    assert late(room).counts[0] >= 0.95 * sum(late(room).counts)
    before = late(room).total
    room.engine.seconds = 1.0
    room.run(1.2)
    room.engine.seconds = 0.05
    room.run(1)
    assert 0.5 < (late(room).total - before) / sum(late(room).counts[7:]) < 1.1


def test_nobody_stands_still_who_was_never_heard_of_or_is_not_there() -> None:
    head = Playhead(0.0, 100.0, 16.0)
    assert head.stood(105.0, 0.0) == 0.0
    head.report(8.0, 105.0)
    assert head.stood(105.2, 16.0) == 0.0
    assert head.stood(106.5, 16.0) == pytest.approx(1.0)
    head.settle(106.0, 16.0, 0.0)
    assert head.stood(200.0, 16.0) == 0.0


@pytest.mark.parametrize(
    ("changed", "status"),
    [({}, "ready"), ({"loading": Loading("reading")}, "loading"), ({"failure": ValueError("no")}, "failed")],
)
def test_health_says_whether_viewers_are_taken(changed: dict[str, Any], status: str) -> None:
    engine = FakeEngine(seconds=0.01)
    with serving(engine) as client:
        vars(engine).update(changed)
        answer = client.get("/health")
        assert answer.json() == {"status": status}
        assert answer.status_code == (200 if status == "ready" else 503)
        assert figures(client)["streamgen_ready", ""] == (status == "ready")


def test_health_needs_no_password_and_figures_do() -> None:
    with serving(access=Access(login="a:b")) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/metrics").status_code == 401
        code = base64.b64encode(b"a:b").decode()
        assert client.get("/metrics", headers={"authorization": f"Basic {code}"}).status_code == 200
    with serving() as client:
        assert client.get("/health", headers={"host": "elsewhere.example"}).status_code == 403


def test_a_server_that_drains_takes_nobody_new_and_goes_when_the_last_viewer_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check() -> None:
        gone: list[bool] = []
        rules = Rules(closed_seconds=0.1)
        with serving(rules=rules, on_drained=lambda: gone.append(True)) as client:
            with connect(client, ticket(client)) as socket:
                socket.send_json(START)
                shown = until(socket, kind("frame"))["frame"]
                client.app.app.app.state.demo.drain.begin(3600)  # type: ignore[attr-defined]
                assert client.get("/health").json() == {"status": "draining"}
                refused = client.post("/live/session")
                assert (refused.status_code, refused.json()) == (503, {"error": SENT_AWAY})
                until(socket, lambda m: m["type"] == "frame" and m["frame"] > shown + 20)
                assert not gone
            end = time.monotonic() + PATIENCE
            while not gone and time.monotonic() < end:
                time.sleep(0.05)
            assert gone

    assert_needs(check, monkeypatch, Drain, "begin", lambda self, seconds: None)


def test_viewers_who_stay_have_their_time_and_no_more() -> None:
    clock = Clock()
    demo_ = demo.server.Demo(FakeEngine(), demo.server.Options(), clock)
    lobby, drain = demo_.lobby, demo_.drain
    lobby.connect(lobby.ticket())
    assert not drain.over
    drain.begin(30)
    drain.begin(60)
    clock.sleep(29)
    assert not drain.over
    clock.sleep(2)
    assert drain.over


def test_the_first_signal_drains_and_the_second_ends() -> None:
    said: list[float] = []
    server = DrainingServer(uvicorn.Config(lambda: None), said.append, 30.0)
    server.handle_exit(signal.SIGTERM, None)
    assert (said, server.should_exit) == ([30.0], False)
    server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit
    at_once = DrainingServer(uvicorn.Config(lambda: None), said.append, 0.0)
    at_once.handle_exit(signal.SIGTERM, None)
    assert at_once.should_exit
    assert said == [30.0]
