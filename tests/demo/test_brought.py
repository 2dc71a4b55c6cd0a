"""Motion that a timeline brought: held beside what hands hold, for as long as it is in force."""

import json
from typing import Any

import pytest
import torch

import demo.hands
from demo.drawn_tracks import box_tracks
from demo.fake_engine import FakeEngine
from demo.messages import Box, Remove
from demo.opening import read_score
from streamgen import StreamEvent
from streamgen.motion.tracks import TrackSet, path
from streamgen.stream.timeline import Timeline
from tests.demo.test_editing import Desk
from tests.tiny_models import assert_needs


def opened(*events: tuple[int, StreamEvent]) -> Desk:
    """A fake stream as a timeline says."""
    timeline = Timeline(16.0, 3)
    timeline.record(0, 0, StreamEvent("a red ball"))
    for frame, event in events:
        timeline.record(frame // 4, frame, event)
    engine = FakeEngine(wait=lambda _: None)
    desk = Desk(engine)
    desk.live.play(read_score(json.dumps(timeline.to_json()).encode(), engine.info))
    desk.live.work()
    return desk


def held(desk: Desk) -> list[tuple[Any, ...]]:
    rows: Any = desk.live.hands.rows()["held"]
    return [(row["number"], row["kind"], row["start"], row["end"], row["knots"]) for row in rows]


def test_what_a_timeline_brought_is_held_as_it_could_have_been_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        box = Box(1, 1, 0, ((0.0, 0.1, 0.1, 0.3, 0.3), (1000.0, 0.5, 0.5, 0.9, 0.9)), 0.1)
        tracks = box_tracks(box.knots, (0.2, 0.2), 0.1, "", 16.0, 1.0)[1]
        two = TrackSet.from_points(torch.tensor([[[0.1, 0.2]], [[0.6, 0.7]]]).repeat(1, 8, 1))
        desk = opened((5, StreamEvent(gestures={"box 1": tracks, "pins": two}))).play(6)
        rows = held(desk)
        assert len(rows) == 2
        (number, kind, start, end, knots), (_, pins, *_, points) = rows
        assert (number, kind, start, end) == (1, "box", 5, 5 + tracks.num_frames)
        assert knots[0] == pytest.approx([0, 0.1, 0.1, 0.3, 0.3], abs=1e-3)
        assert knots[-1] == pytest.approx([tracks.num_frames - 1, 0.5, 0.5, 0.9, 0.9], abs=1e-3)
        assert (pins, points) == ("pins", [[0, 0.1, 0.2], [0, 0.6, 0.7]])
        # let go of by its number, as one's own
        desk.live.handle(Remove(number))
        assert held(desk.play(13))[0][3] == 9

    assert_needs(check, monkeypatch, demo.hands.Hands, "bring", lambda *_: None)


def test_a_drag_of_a_timeline_grows_and_is_let_go_of_for_good() -> None:
    parts = [path([(0, x, 0.5), (0.25, x + 0.1, 0.5)], 16.0) for x in (0.1, 0.2, 0.3, 0.4)]
    events = [(5 + 4 * i, StreamEvent(gestures={"drag 1": part})) for i, part in enumerate(parts)]
    desk = opened(*events).play(13)
    ((number, kind, start, end, knots),) = held(desk)
    assert (number, kind, start, end) == (1, "drag", 5, 14)
    assert [knot[0] for knot in knots] == list(range(9))
    assert [knot[1] for knot in knots] == pytest.approx([0.1 + 0.025 * i for i in range(9)], abs=1e-3)
    desk.live.handle(Remove(number))
    desk.play(21)
    assert [frame for frame, _ in desk.live.stream.motions] == [5, 9, 13]
