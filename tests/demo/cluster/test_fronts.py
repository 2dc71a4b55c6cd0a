"""Fronts and workers in one process: ids that name their worker, placing, moving, and what is left when
workers go. Ray itself, and a worker that is killed: test_ray.py.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

import demo.shelf
from demo.cluster.addresses import routed
from demo.cluster.connection import DIED, Connection
from demo.cluster.front import Front, FrontOptions, front_routes, merged
from demo.cluster.roster import NOBODY, Post, Roster
from demo.cluster.start import first_of
from demo.cluster.worker import MOVING, About, Load, Order
from demo.drain import SENT_AWAY
from demo.engine import Loading
from demo.fake_engine import FakeEngine
from demo.limits import Limits
from demo.lobby import Rules
from demo.shelf import Keeper, Shelf
from streamgen.errors import InputError
from tests.demo.test_server import PATIENCE, START, connect, kind, ticket, until
from tests.demo_hall import RULES, Hall
from tests.tiny_models import assert_needs


@pytest.fixture
def hall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hall]:
    monkeypatch.setattr(demo.shelf, "KEEP_SECONDS", 0.5)
    hall = Hall(tmp_path)
    hall.add("0")
    hall.add("1")
    yield hall
    for name in hall.names():
        hall.kill(name)


@contextlib.contextmanager
def front(hall: Hall, **options: Any) -> Iterator[TestClient]:
    app = front_routes(Front(hall, FrontOptions(**options)))
    with TestClient(app, base_url="http://localhost:7860") as client:
        end = time.monotonic() + PATIENCE
        while hall.workers and state(client).status not in ("ready", "failed") and time.monotonic() < end:
            time.sleep(0.02)
        yield client


def state(client: TestClient) -> Front:
    app: Any = client.app
    found: Front = app.state.front
    return found


def frames(count: int) -> Callable[[dict[str, Any]], bool]:
    return lambda m: m["type"] == "frame" and m["frame"] >= count


def closed_with(socket: Any) -> int:
    with pytest.raises(WebSocketDisconnect) as closed:
        until(socket, lambda m: False)
    return closed.value.code


def after(client: TestClient, token: str) -> dict[str, Any]:
    row: dict[str, Any] = client.post("/live/session", params={"after": token}).json()
    return row


def until_kept(
    hall: Hall, socket: Any, token: str, frame: int, patience: float = PATIENCE
) -> tuple[int, int]:
    """Play until a stream lies on the shelf as it is at this frame or later; where that is, and what was seen
    meanwhile.
    """
    end = time.monotonic() + patience
    while True:
        seen = until(socket, kind("frame"))["frame"]
        kept = Shelf(hall.shelf).find(token[:-2])
        if kept is not None and kept.frame >= frame:
            return kept.frame, seen
        assert time.monotonic() < end, "it is not kept while it plays"


def test_ids_name_their_worker_and_names_of_files_do_not() -> None:
    assert routed("live/abc.1/clip.mp4") == ("live/abc/clip.mp4", "1")
    assert routed("live/ws/abc.12") == ("live/ws/abc", "12")
    assert routed("live/ws/watch/abc.3") == ("live/ws/watch/abc", "3")
    assert routed("live/abc.1/back") == ("live/abc/back", "1")
    assert routed("live/abc/timeline.json") == ("live/abc/timeline.json", "")


def test_viewers_are_spread_and_found_from_any_front(hall: Hall) -> None:
    with front(hall) as one, front(hall) as other:
        tokens = [ticket(client) for client in (one, other, one, other)]
        assert sorted(token[-2:] for token in tokens) == [".0", ".0", ".1", ".1"]
        with connect(other, tokens[0]) as socket:
            socket.send_json(START)
            until(socket, frames(20))
            assert one.post(f"/live/{tokens[0]}/back").json() == {"kept": True}
            row = one.get(f"/live/{tokens[0]}/timeline.json", params={"frames": 9}).json()
            assert (row["frames"], row["timeline"]["seed"]) == (9, 1)
            clip = other.get(f"/live/{tokens[0]}/clip.mp4", params={"frames": 9})
            assert (clip.status_code, clip.headers["content-type"]) == (200, "video/mp4")
            assert one.get("/live/nothing/timeline.json").status_code == 404


def test_viewers_who_come_together_are_spread(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    async def together() -> list[str]:
        roster = Roster(hall)
        await roster.look()
        # where each is has to be heard of first
        while not all(post.load for post in roster.posts.values()):
            await asyncio.sleep(0.02)
            await roster.look()
        rows = await asyncio.gather(*(roster.place("") for _ in range(4)))
        return sorted(row["session"][-1] for row, _ in rows)

    def check() -> None:
        hall.restart("0")
        hall.restart("1")
        assert asyncio.run(together()) == ["0", "0", "1", "1"]

    assert_needs(check, monkeypatch, Roster, "place", Roster._place)


def test_no_frames_pass_without_the_key(hall: Hall) -> None:
    assert hall.ask("0", "GET", "/worker", "guess").status_code == 403
    assert hall.ask("0", "POST", "/live/session", "guess").status_code == 403
    assert hall.ask("0", "GET", "/worker").json()["status"] == "ready"


@pytest.mark.slow
def test_a_stream_goes_on_at_another_worker_when_its_own_is_gone(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is lost is what was made since a stream was last kept, and the viewer is told."""
    names = iter("23")
    # where it is not kept again, some seconds are enough
    patience = iter((PATIENCE, 3.0))

    def check() -> None:
        with front(hall) as one, front(hall) as other:
            token = ticket(one)
            with connect(one, token) as socket:
                socket.send_json(START)
                begun = until(socket, kind("frame"))["frame"]
                kept, seen = until_kept(hall, socket, token, begun + 12, next(patience))
                hall.kill(token[-1])
                assert until(socket, kind("moved"))["text"] == DIED
                assert closed_with(socket) == 4404
            row = after(other, token)
            assert row["kept"]
            hall.add(next(names))
            assert row["session"][-1] != token[-1]
            with connect(other, row["session"]) as socket:
                goes_on = until(socket, kind("reopened"))["frame"]
                until(socket, frames(goes_on + 8))
        assert kept <= goes_on <= seen + 12

    assert_needs(check, monkeypatch, Keeper, "due", lambda self, *_: self._since < 0)


def test_a_worker_that_drains_loses_nothing_and_takes_nobody(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    with front(hall) as client:
        token = ticket(client)
        with connect(client, token) as socket:
            socket.send_json(START)
            until(socket, frames(20))
            for given in ("abc", "nan", "-1", "inf"):
                refused = hall.ask(token[-1], "POST", f"/worker/drain?seconds={given}")
                expected = f"seconds: expected a number >= 0, found {given!r}"
                assert (refused.status_code, refused.text) == (400, expected)
            hall.ask(token[-1], "POST", "/worker/drain?seconds=0")
            assert until(socket, kind("moved"))["text"] == MOVING
            assert closed_with(socket) == 4404
        made = hall.demo(token[-1]).totals.counters.generated
        row = after(client, token)
        assert row["session"][-1] != token[-1]
        with connect(client, row["session"]) as socket:
            assert until(socket, kind("reopened"))["frame"] == made
        assert all(ticket(client)[-1] != token[-1] for _ in range(3))
        assert client.get("/health").json() == {"status": "ready"}


@pytest.mark.slow
def test_a_row_is_left_for_a_place_at_another_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # fronts look once a second; where nothing is to come, some looks are enough
    patience = iter((PATIENCE, 3.0))

    def check() -> None:
        hall = Hall(tmp_path, Rules(max_sessions=1, max_waiting=4, closed_seconds=0.1))
        hall.add("0")
        with front(hall) as client, connect(client, ticket(client)) as first:
            until(first, kind("state"))
            waiting = ticket(client)
            with connect(client, waiting) as second:
                until(second, kind("queue"))
                hall.add("1")
                connections, end = state(client).connections, time.monotonic() + next(patience)
                while len(connections) > 1 and time.monotonic() < end:
                    time.sleep(0.05)
                assert len(connections) == 1
                assert closed_with(second) == 4404
            assert after(client, waiting)["session"].endswith(".1")
        for name in hall.names():
            hall.kill(name)

    assert_needs(check, monkeypatch, Connection, "change", lambda self: None)


@pytest.mark.slow
def test_a_front_whose_workers_are_all_gone_says_so_and_comes_back(hall: Hall) -> None:
    with front(hall) as client:
        token = ticket(client)
        with connect(client, token) as socket:
            socket.send_json(START)
            until_kept(hall, socket, token, 8)
            for name in hall.names():
                hall.kill(name)
            until(socket, kind("moved"))
            assert closed_with(socket) == 4404
        answer = client.post("/live/session", params={"after": token})
        assert (answer.status_code, answer.json()) == (503, {"error": NOBODY})
        end = time.monotonic() + PATIENCE
        while client.get("/health").json() != {"status": "no workers"} and time.monotonic() < end:
            time.sleep(0.05)
        assert client.get("/health").status_code == 503
        with connect(client, token) as socket:
            assert closed_with(socket) == 4404
        hall.add("0")
        while client.post("/live/session").status_code != 200 and time.monotonic() < end:
            time.sleep(0.05)
        row = after(client, token)
        assert row["kept"]
        with connect(client, row["session"]) as socket:
            until(socket, kind("reopened"))


@pytest.mark.slow
def test_a_session_that_runs_is_not_given_to_a_second_page(hall: Hall) -> None:
    with front(hall) as client:
        token = ticket(client)
        with connect(client, token) as socket:
            socket.send_json(START)
            until_kept(hall, socket, token, 8)
            assert not after(client, token)["kept"]


@pytest.mark.slow
def test_a_lost_viewer_keeps_their_place_and_one_who_left_does_not(hall: Hall) -> None:
    with front(hall) as client:
        for code, kept in ((1011, True), (1001, False)):
            token = ticket(client)
            with connect(client, token) as socket:
                until(socket, kind("state"))
                socket.close(code)
            lobby = hall.demo(token[-1]).lobby
            end = time.monotonic() + (PATIENCE if not kept else 1.5)
            while lobby.find(token[:-2]) is not None and time.monotonic() < end:
                time.sleep(0.05)
            assert (lobby.find(token[:-2]) is not None) == kept, code


# -- who is asked first


def post(name: str, status: str = "ready", seats: int = 0, free: int | None = None, stream: int = 0) -> Post:
    about = About("127.0.0.1:1", "key", None, "", "{}", 1)
    return Post(name, about, Load("a", status, seats, 2, 6, free, stream))


def test_the_one_with_room_and_memory_is_asked_first(hall: Hall) -> None:
    roster = Roster(hall)
    posts = [
        post("full", seats=2),
        post("short of memory", free=10, stream=11),
        post("half", seats=1, free=100),
        post("empty", free=50),
        post("empty and large", free=60),
        post("not yet", "loading"),
        post("leaving", "draining"),
        post("broken", "failed"),
        Post("gone"),
    ]
    roster.posts = {one.name: one for one in posts}
    order = [one.name for one in roster.best()]
    assert order == ["empty and large", "empty", "half", "not yet", "short of memory", "full"]


# -- figures, health, failures


def test_figures_of_all_workers_are_told_apart(hall: Hall) -> None:
    with front(hall) as client:
        with connect(client, ticket(client)) as socket:
            socket.send_json(START)
            until(socket, frames(20))
            text = client.get("/metrics").text
        lines = text.splitlines()
        playing = [line for line in lines if line.startswith('streamgen_sessions{state="playing"')]
        assert sorted(line.rpartition(" ")[2] for line in playing) == ["0.0", "1.0"]
        assert 'streamgen_workers{status="ready"} 2.0' in lines
        assert "streamgen_front_viewers 1.0" in lines
        assert len([line for line in lines if line == "# TYPE streamgen_sessions gauge"]) == 1


def test_merged_figures_keep_their_samples() -> None:
    text = "# HELP a_total b\n# TYPE a_total counter\na_total 2.0\n"
    histogram = '# HELP h b\n# TYPE h histogram\nh_bucket{le="+Inf"} 3.0\nh_count 3.0\nh_sum 1.5\n'
    assert merged({"": text + histogram}) == text + histogram
    found = merged({"": text, "1": text + histogram}).splitlines()
    assert found[2:4] == ["a_total 2.0", 'a_total{worker="1"} 2.0']
    assert 'h_bucket{le="+Inf",worker="1"} 3.0' in found


def test_a_front_that_drains_sends_new_pages_elsewhere(hall: Hall) -> None:
    with front(hall) as client, connect(client, ticket(client)) as socket:
        socket.send_json(START)
        shown = until(socket, kind("frame"))["frame"]
        state(client).drain.begin(60)
        assert client.get("/health").json() == {"status": "draining"}
        assert client.post("/live/session").json() == {"error": SENT_AWAY}
        until(socket, frames(shown + 20))


def test_workers_that_cannot_load_the_model_end_the_front(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hall, ended = Hall(tmp_path), []
    hall.add("0")
    hall.engines["0"].failure = InputError("model tiny: no such file: model.safetensors")
    with front(hall, on_failure=lambda: ended.append(True)) as client:
        answer = client.post("/live/session")
        assert answer.status_code == 503
        assert answer.json()["error"].startswith("the model cannot be loaded: model tiny: no such file")
        end = time.monotonic() + PATIENCE
        while not ended and time.monotonic() < end:
            time.sleep(0.05)
        assert ended
    assert "worker 0: model tiny: no such file" in capsys.readouterr().err
    hall.kill("0")


def _no_weights() -> Any:
    raise InputError("model nowhere: no such model")


def test_a_cluster_without_the_weights_is_told_in_one_line(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.add("0", _no_weights)
    order = Order(_no_weights, RULES, Limits(), tmp_path, tmp_path, "{}")
    with pytest.raises(InputError, match=r"^worker 0: model nowhere: no such model$"):
        first_of(hall, order, PATIENCE)
    assert hall.dismissed == ["0"]


def test_fronts_of_one_fleet_ask_for_the_same(hall: Hall) -> None:
    order = Order(partial(FakeEngine), RULES, Limits(), hall.shelf, hall.shelf, json.dumps({"model": "b"}))
    with pytest.raises(InputError, match=r"^--model: the workers .* were begun with None, .*found b"):
        first_of(hall, order, PATIENCE)
    hall.workers.clear()
    with pytest.raises(InputError, match="no worker has begun"):
        first_of(hall, order, 0.1)


def test_a_page_waits_while_a_worker_loads(hall: Hall) -> None:
    for engine in hall.engines.values():
        engine.loading = Loading("reading", 0.5)
    with front_while_loading(hall) as client, connect(client, ticket(client)) as socket:
        assert until(socket, kind("loading"))["share"] == 0.5
        assert client.get("/health").json() == {"status": "loading"}
        for engine in hall.engines.values():
            engine.loading = None
        until(socket, kind("state"))


@contextlib.contextmanager
def front_while_loading(hall: Hall) -> Iterator[TestClient]:
    app = front_routes(Front(hall, FrontOptions()))
    with TestClient(app, base_url="http://localhost:7860") as client:
        end = time.monotonic() + PATIENCE
        while state(client).status != "loading" and time.monotonic() < end:
            time.sleep(0.02)
        yield client
