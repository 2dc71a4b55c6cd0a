"""What a viewer does with their hands: boxes, grids, gestures let go of one by one, and their words."""

from typing import Any

import numpy as np
import pytest

import demo.held
from demo.drawn_tracks import MAX_STEP
from demo.engine import Engine
from demo.fake_engine import FakeEngine, FakeStream
from demo.live import LiveSession
from demo.messages import Box, Camera, Grid, Path, Pins, Remove, Simple, Start, Stroke
from demo.motion_desk import MotionDesk
from demo.motion_words import box_name, camera_name, colour_name, pins_name, place_name, way_name
from demo.outgoing import Outgoing
from streamgen.motion.tracks import UNSPECIFIED, TrackSet
from tests.demo_viewers import Clock
from tests.tiny_models import assert_needs

FAR_BOX = ((0.0, 0.1, 0.1, 0.3, 0.3), (1000.0, 0.5, 0.5, 0.9, 0.9))


def sides(tracks: TrackSet, frame: int) -> list[float]:
    """How far the specified points of a frame are apart, across and down."""
    points = tracks.points[:, frame][tracks.state[:, frame] != UNSPECIFIED]
    return [float(value) for value in points.amax(0) - points.amin(0)]


def made(desk: MotionDesk, start: int, frames: int = 4) -> dict[str, Any]:
    changes = desk.plan(start, frames)
    assert changes is not None
    return dict(changes)


# -- the desk


def test_a_box_begins_on_the_thing_and_ends_where_and_as_large_as_it_was_drawn() -> None:
    desk = MotionDesk(16)
    assert desk.add_box(FAR_BOX, (0.24, 0.2), 0.1) == 1
    tracks = made(desk, 9)["box 1"]
    assert tracks.points[:, 0].mean(0).tolist() == pytest.approx([0.24, 0.2])
    assert tracks.points[:, -1].mean(0).tolist() == pytest.approx([0.7, 0.7], abs=0.02)
    assert sides(tracks, -1) == pytest.approx([2 * side for side in sides(tracks, 0)], abs=0.02)
    steps = (tracks.points[:, 1:] - tracks.points[:, :-1]).norm(dim=-1)
    assert float(steps.max()) <= MAX_STEP + 1e-6, "slower than drawn, where that is faster than things go"
    (held,) = desk.held
    assert (held.start, held.end) == (9, 9 + tracks.num_frames)
    assert desk.held.place(held) == pytest.approx((0.14, 0.1, 0.34, 0.3))


def test_a_box_of_the_same_name_takes_the_place_of_the_one_before() -> None:
    desk = MotionDesk(16)
    desk.add_box(FAR_BOX, (0.2, 0.2), 0.1, "ball")
    made(desk, 9)
    assert desk.add_box(FAR_BOX, (0.25, 0.25), 0.1, "ball") == 2
    changes = made(desk, 13)
    assert changes["box 1"] is None
    assert changes["box 2"].num_tracks == 4
    assert [held.number for held in desk.held.in_force()] == [2]


def test_a_box_on_the_place_of_another_is_refused_and_one_elsewhere_is_not() -> None:
    desk = MotionDesk(16)
    desk.add_box(FAR_BOX, (0.2, 0.2), 0.1, "ball")
    made(desk, 9)
    with pytest.raises(ValueError, match="box 1 is at that place: nobody could tell which is meant"):
        desk.add_box(FAR_BOX, (0.2, 0.2), 0.1, "star")
    assert desk.plan(13, 4) is None, "nothing was lost and nothing came"
    for start in range(17, 33, 4):
        desk.plan(start, 4)
    assert desk.add_box(FAR_BOX, (0.2, 0.2), 0.1, "star") == 2, "the first one has gone on"


@pytest.mark.parametrize(
    ("knots", "message"),
    [
        (((0.0, 0.1, 0.1, 0.1, 0.3), FAR_BOX[1]), "has no size"),
        (((0.0, 0.3, 0.1, 0.1, 0.3), FAR_BOX[1]), "its edges cross, left 0.3 must be below right 0.1"),
        ((FAR_BOX[0], (1000.0, 7.0, 0.5, 8.0, 0.9)), "left must be within 2 frames"),
    ],
)
def test_boxes_that_cannot_be_change_nothing(knots: Any, message: str) -> None:
    desk = MotionDesk(16)
    desk.set_pins([(0.5, 0.5)])
    with pytest.raises(ValueError, match=message):
        desk.add_box(knots, (0.2, 0.2), 0.1)
    assert set(made(desk, 9)) == {"pins"}
    assert list(desk.held) == []


def test_a_grid_goes_along_with_a_hand_a_path_or_a_pin() -> None:
    grid = Grid((0.2, 0.2), 0.1)
    desk = MotionDesk(16)
    desk.begin_stroke(1, (0.5, 0.5), [(0.6, 0.5)], grid)
    desk.add_path([(0.0, 0.3, 0.3), (500.0, 0.4, 0.3)], (0.3, 0.3), grid)
    desk.set_pins([(0.1, 0.9), (0.9, 0.9)], [None, grid])
    changes = made(desk, 9)
    assert changes["drag 1"].num_tracks == changes["path 2"].num_tracks == 9
    assert changes["pins"].num_tracks == 1 + 9
    assert bool(changes["pins"].pinned.all())
    assert changes["drag 1"].points[4, 3].tolist() == pytest.approx([0.6, 0.5])
    assert int((changes["pins"].state[:, 0] != UNSPECIFIED).sum()) == 10
    assert desk.pin_rows == [[0.1, 0.9], [0.9, 0.9, 0.2, 0.2, 0.1]]


def test_each_is_let_go_of_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        desk = MotionDesk(16)
        desk.begin_stroke(1, (0.5, 0.5), [(0.6, 0.5)])
        desk.add_path([(0.0, 0.3, 0.3), (2000.0, 0.4, 0.3)], (0.3, 0.3))
        desk.add_box(FAR_BOX, (0.2, 0.8), 0.1)
        desk.move_camera(Camera((0.1, 0.0), 1.0, 0.0), "pans")
        made(desk, 9)
        assert [held.number for held in desk.held.in_force()] == [1, 2, 3, 4]
        assert desk.remove(2) is not None
        changes = made(desk, 13)
        assert changes.get("path 2", 0) is None
        assert "box 3" not in changes
        assert desk.remove(1) is not None
        assert made(desk, 17) == {"drag 1": None}
        assert not desk.move_stroke(1, [(0.7, 0.5)]), "its hand moves nothing any more"
        assert desk.remove(4) is not None
        assert made(desk, 21) == {"camera": None}
        assert [held.number for held in desk.held.in_force()] == [3]
        assert desk.remove(4) is None
        assert desk.remove(99) is None

    assert_needs(check, monkeypatch, MotionDesk, "remove", lambda self, number: self.held.find(number))


def test_what_was_placed_and_let_go_of_before_a_chunk_began_has_never_been() -> None:
    desk = MotionDesk(16)
    number = desk.add_path([(0.0, 0.3, 0.3), (2000.0, 0.4, 0.3)], (0.3, 0.3))
    assert number == 1
    assert [held.start for held in desk.held] == [None]
    desk.remove(number)
    assert desk.plan(9, 4) is None
    assert list(desk.held) == []
    desk.add_path([(0.0, 0.3, 0.3), (2000.0, 0.4, 0.3)], (0.3, 0.3))
    desk.clear()
    assert desk.plan(9, 4) is None
    assert list(desk.held) == []


def test_what_is_over_stays_listed_for_pages_that_show_older_frames() -> None:
    desk = MotionDesk(16)
    desk.add_path([(0.0, 0.3, 0.3), (500.0, 0.4, 0.3)], (0.3, 0.3))
    made(desk, 1)
    (held,) = desk.held
    assert held.end == 10
    desk.plan(13, 4)
    assert [one.number for one in desk.held] == [1]
    assert desk.held.in_force() == []
    desk.plan(13 + round(demo.held._LISTED_SECONDS * 16), 4)
    assert list(desk.held) == []


def test_a_camera_preset_ends_by_itself() -> None:
    desk = MotionDesk(16)
    desk.move_camera(Camera((0.0, 0.0), 1.1, 0.0, seconds=2.0), "zooms in")
    assert made(desk, 1)["camera"].num_frames == 32
    assert all(desk.plan(start, 4) is None for start in range(5, 61, 4))
    assert desk.held.in_force() == []


# -- a session


@pytest.fixture
def live() -> LiveSession:
    clock = Clock()
    engine: Engine = FakeEngine(wait=clock.sleep)
    session = LiveSession(engine, Outgoing(), clock)
    session.handle(Start("a red ball", 0))
    for _ in range(6):
        session.work()
    session.outgoing.take()
    return session


def told(session: LiveSession, kind: str) -> list[dict[str, Any]]:
    return [message for message in session.outgoing.take() if message["type"] == kind]


def labels(session: LiveSession) -> list[tuple[str, str]]:
    return [(row["kind"], row["label"]) for row in session.strip.rows()[1:]]


def test_the_strip_says_what_moved_and_where_to(live: LiveSession) -> None:
    epoch = live.epoch
    live.handle(Stroke(1, epoch, 20, "begin", ((0.0, 0.2, 0.2),)))
    live.work()
    assert labels(live) == [("drag", "something red, from the upper left")]
    live.handle(Stroke(1, epoch, 20, "end", ((90.0, 0.9, 0.9),)))
    assert {
        "type": "relabelled",
        "id": 1,
        "label": "something red, from the upper left to the lower right",
    } in (told(live, "relabelled"))
    live.handle(Path(2, epoch, 20, ((0.0, 0.5, 0.5), (500.0, 0.5, 0.1))))
    live.handle(Box(3, epoch, 20, FAR_BOX, "the ball"))
    live.handle(Pins(((0.1, 0.5), (0.9, 0.5)), 4))
    live.handle(Camera((0.2, 0.0), 1.1, -9.0, 5))
    live.work()
    live.handle(Remove(2, 6))
    live.handle(Simple("clear", 7))
    live.work()
    assert labels(live) == [
        ("drag", "something red, from the upper left to the lower right"),
        ("path", "something red, from the middle to the top"),
        ("box", "the ball, from the upper left to the lower right, grows to 200 %"),
        ("pins", "2 held at the left, the right"),
        ("camera", "pans right, zooms in, turns left"),
        ("release", "path 2"),
        ("release", "all"),
    ]


def test_what_is_in_force_is_told_when_it_changes_and_after_a_reconnection(live: LiveSession) -> None:
    live.handle(Box(3, live.epoch, 20, FAR_BOX, "the ball"))
    (waits,) = told(live, "held")[-1]["held"]
    assert (waits["number"], waits["name"], waits["start"]) == (1, "the ball", None)
    live.work()
    (row,) = told(live, "held")[-1]["held"]
    assert row["start"] == 17
    assert row["end"] == row["start"] + round(row["knots"][-1][0]) + 1
    assert all(len(knot) == 5 for knot in row["knots"])
    live.work()
    assert told(live, "held") == [], "not again with every chunk"
    live.connected()
    (place,) = told(live, "place")
    assert place["held"] == [row]


def test_what_hands_ask_for_and_cannot_be_is_refused_in_a_line(live: LiveSession) -> None:
    epoch = live.epoch
    live.handle(Box(3, epoch, 20, ((0.0, 0.1, 0.1, 0.1, 0.3), FAR_BOX[1])))
    live.handle(Box(4, epoch, 20, FAR_BOX))
    live.handle(Box(5, epoch, 20, FAR_BOX))
    live.handle(Remove(9, 6))
    live.handle(Box(7, epoch + 1, 20, FAR_BOX))
    refused = {row["id"]: row["reason"] for row in told(live, "receipt") if row["status"] == "refused"}
    assert refused.keys() == {3, 5, 6, 7}
    assert "has no size" in refused[3]
    assert "box 1 is at that place" in refused[5]
    assert refused[6] == "nothing of number 9 is in force"
    assert all("\n" not in reason for reason in refused.values())
    live.work()
    assert [kind for kind, _ in labels(live)] == ["box"], "the stream goes on with what could be"


def test_what_is_placed_while_paused_begins_when_the_stream_goes_on(live: LiveSession) -> None:
    live.handle(Simple("pause"))
    live.handle(Path(2, live.epoch, 20, ((0.0, 0.5, 0.5), (500.0, 0.5, 0.1))))
    live.handle(Box(3, live.epoch, 20, FAR_BOX))
    live.handle(Remove(1))
    assert [row["number"] for row in told(live, "held")[-1]["held"]] == [2]
    live.handle(Simple("resume"))
    live.work()
    stream = live.stream
    assert isinstance(stream, FakeStream)
    assert [gesture.name for gesture in stream.gestures] == ["box 2"]


# -- words


def test_places_colours_and_ways_in_words() -> None:
    assert place_name(0.1, 0.1) == "the upper left"
    assert place_name(0.5, 0.9) == "the bottom"
    assert place_name(0.9, 0.5) == "the right"
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, 32:] = (20, 60, 220)
    picture[32:, :32] = (240, 240, 240)
    assert colour_name(picture, 0.75, 0.5) == "something blue"
    assert colour_name(picture, 0.2, 0.2) == "something black"
    assert colour_name(picture, 0.2, 0.9) == "something white"
    assert colour_name(None, 0.5, 0.5) == "something"
    assert way_name("it", (0.5, 0.5), (0.55, 0.5)) == "it, within the middle"
    assert way_name("it", (0.5, 0.5), (0.5, 0.5)) == "it, held at the middle"
    assert box_name("it", (0, 0, 0.4, 0.4), (0, 0, 0.2, 0.2)) == "it, within the upper left, shrinks to 50 %"
    assert pins_name([(0.1, 0.1)] * 3) == "3 held at the upper left"
    assert camera_name(Camera((0.0, 0.0), 0.9, 0.0, seconds=4.0)) == "zooms out, 4 s"
