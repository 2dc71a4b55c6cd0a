"""The demo's motion desk: what hands do becomes gestures that are changed apart."""

import itertools
import math

import pytest

import demo.motion_desk
from demo.drawn_tracks import MAX_STEP
from demo.messages import Camera
from demo.motion_desk import MAX_PATHS, Changes, MotionDesk
from streamgen.motion.gestures import Gesture, changed, released, tracks_between
from streamgen.motion.tracks import UNSPECIFIED, VISIBLE, TrackSet
from tests.tiny_models import assert_needs

REST = Camera((0.0, 0.0), 1.0, 0.0)


def only(changes: Changes | None) -> TrackSet:
    """The tracks of the one gesture that is changed."""
    assert changes is not None
    (tracks,) = changes.values()
    assert tracks is not None
    return tracks


def places(tracks: TrackSet) -> list[tuple[float, float]]:
    """Where the first track says that its thing is."""
    said = tracks.points[0][tracks.state[0] != UNSPECIFIED]
    return [(x, y) for x, y in said.tolist()]


def in_force(gestures: tuple[Gesture, ...], changes: Changes | None, start: int) -> tuple[Gesture, ...]:
    """The gestures of a stream from a frame on, as the runtime has them."""
    return changed(released(gestures, start), changes or {}, start)


def ids(gestures: tuple[Gesture, ...]) -> dict[str, list[int]]:
    return {gesture.name: gesture.tracks.ids.tolist() for gesture in gestures}


# -- drags


def test_a_drag_goes_through_what_was_drawn_and_lets_go_at_its_end() -> None:
    desk = MotionDesk(16)
    assert desk.plan(1, 4) is None
    desk.begin_stroke(5, (0.5, 0.5), [(0.5, 0.5), (0.55, 0.5)])
    first = places(only(desk.plan(5, 4)))
    assert len(first) == 4
    assert first[0] == (0.5, 0.5)
    assert first[-1] == pytest.approx((0.55, 0.5))
    desk.move_stroke(5, [(0.6, 0.5), (0.6, 0.6)])
    second = places(only(desk.plan(9, 4)))
    assert second[-1] == pytest.approx((0.6, 0.6))
    assert sum(at == pytest.approx((0.6, 0.5)) for at in second) <= 1
    desk.move_stroke(5, [], end=True)
    last = only(desk.plan(13, 4))
    assert last.num_frames == 4, "over with its chunk"
    assert desk.plan(17, 4) is None


def test_a_hand_that_holds_still_holds_the_thing_still() -> None:
    desk = MotionDesk(16)
    desk.begin_stroke(1, (0.3, 0.3), [(0.3, 0.3)])
    desk.plan(1, 4)
    assert places(only(desk.plan(5, 4))) == [pytest.approx((0.3, 0.3))] * 4


def test_no_drag_is_faster_than_things_can_be_pulled(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        desk = MotionDesk(16)
        desk.begin_stroke(1, (0.1, 0.1), [(0.9, 0.9)])
        desk.move_stroke(1, [], end=True)
        way = [(0.1, 0.1)]
        for start in range(1, 60, 4):
            changes = desk.plan(start, 4)
            if changes is None:
                break
            way += places(only(changes))
        steps = [math.dist(a, b) for a, b in itertools.pairwise(way)]
        assert max(steps) <= 1.4 * MAX_STEP
        assert len(way) > 12

    assert_needs(check, monkeypatch, demo.motion_desk, "MAX_STEP", 10.0)


def test_only_so_many_drags_at_once() -> None:
    desk = MotionDesk(16)
    assert all(desk.begin_stroke(i, (0.5, 0.5), []) for i in range(4))
    assert not desk.begin_stroke(9, (0.5, 0.5), [])
    assert not desk.move_stroke(9, [])


# -- paths, pins, camera


def test_a_path_keeps_its_drawn_timing_and_starts_on_the_thing() -> None:
    desk = MotionDesk(16)
    points = [(0.0, 0.4, 0.5), (1000.0, 0.5, 0.5), (1250.0, 0.7, 0.5)]
    assert desk.add_path(points, (0.42, 0.52))
    tracks = only(desk.plan(9, 4))
    way = places(tracks)
    assert way[0] == pytest.approx((0.42, 0.52))
    assert way[16] == pytest.approx((0.5, 0.5), abs=0.02)
    assert way[-1] == pytest.approx((0.7, 0.5), abs=1e-3)
    assert tracks.num_frames == pytest.approx(21, abs=1)
    assert all(desk.plan(start, 4) is None for start in range(13, 61, 4)), "it ends by itself"


def test_only_so_many_paths_at_once_and_those_let_go_of_make_room() -> None:
    desk = MotionDesk(16)
    drawn = [(0.0, 0.4, 0.5), (1000.0, 0.5, 0.5)]
    assert all(desk.add_path(drawn, (0.4, 0.5)) for _ in range(MAX_PATHS // 2))
    desk.plan(9, 4)
    assert all(desk.add_path(drawn, (0.4, 0.5)) for _ in range(MAX_PATHS // 2))
    assert not desk.add_path(drawn, (0.4, 0.5))
    desk.clear()
    assert desk.add_path(drawn, (0.4, 0.5))
    changes = desk.plan(13, 4)
    assert changes is not None
    assert [tracks is None for tracks in changes.values()] == [True] * (MAX_PATHS // 2) + [False]


def test_pins_hold_and_are_renewed_before_they_are_over() -> None:
    desk = MotionDesk(16)
    desk.set_pins([(0.2, 0.2), (0.8, 0.8)])
    gestures: tuple[Gesture, ...] = ()
    renewed = []
    for start in range(1, 1 + 1600, 4):
        changes = desk.plan(start, 4)
        renewed += [start] * (changes is not None)
        gestures = in_force(gestures, changes, start)
        tracks = tracks_between(gestures, start, start + 4)
        assert tracks is not None
        assert tracks.pinned.tolist() == [True, True]
        assert bool((tracks.state == VISIBLE).all())
        assert tracks.ids.tolist() == [0, 1]
    assert 10 <= len(renewed) <= 12
    desk.set_pins([(0.5, 0.5)])
    assert only(desk.plan(1601, 4)).num_tracks == 1
    desk.set_pins([])
    assert desk.plan(1605, 4) == {"pins": None}
    assert desk.plan(1609, 4) is None


def test_a_camera_move_is_a_field_over_the_picture_and_ends_with_the_key() -> None:
    desk = MotionDesk(16)
    desk.move_camera(Camera((0.2, 0.0), 1.0, 0.0))
    tracks = only(desk.plan(1, 4))
    assert tracks.num_tracks >= 16
    moved = tracks.points[:, 4] - tracks.points[:, 0]
    seen = (tracks.state[:, 0] == VISIBLE) & (tracks.state[:, 4] == VISIBLE)
    assert moved[seen, 0].max() < 0, "the camera goes right, the picture left"
    later = [desk.plan(start, 4) for start in range(5, 5 + 48, 4)]
    assert later[:-1] == [None] * 11
    assert only(later[-1]).num_frames == tracks.num_frames, "held on, it begins anew"
    desk.move_camera(REST)
    assert desk.plan(53, 4) == {"camera": None}
    desk.move_camera(REST)
    assert desk.plan(57, 4) is None, "nothing is let go of that is not in force"


def test_a_camera_move_that_would_end_within_a_chunk_begins_anew_with_it() -> None:
    desk = MotionDesk(16)
    desk.move_camera(Camera((0.2, 0.0), 1.0, 0.0))
    gestures = in_force((), desk.plan(1, 4), 1)
    for start in range(5, 200, 10):
        gestures = in_force(gestures, desk.plan(start, 10), start)
        tracks = tracks_between(gestures, start, start + 10)
        assert tracks is not None
        assert bool((tracks.state == VISIBLE).any(0).all())


# -- gestures beside each other


def test_what_hands_do_is_changed_apart() -> None:
    """Of pins, a path, two drags and a camera move, each chunk says only what changes."""
    desk = MotionDesk(16)
    desk.set_pins([(0.2, 0.2)])
    desk.add_path([(0.0, 0.4, 0.5), (2000.0, 0.5, 0.5)], (0.4, 0.5))
    assert set(desk.plan(1, 4) or {}) == {"pins", "path 1"}
    desk.begin_stroke(1, (0.5, 0.5), [(0.6, 0.5)])
    desk.begin_stroke(2, (0.7, 0.7), [(0.6, 0.7)])
    assert set(desk.plan(5, 4) or {}) == {"drag 2", "drag 3"}, "neither pins nor path are said again"
    desk.move_camera(Camera((0.2, 0.0), 1.0, 0.0))
    desk.move_stroke(1, [], end=True)
    assert set(desk.plan(9, 4) or {}) == {"drag 2", "drag 3", "camera"}
    desk.set_pins([])
    changes = desk.plan(13, 4)
    assert changes is not None
    assert set(changes) == {"pins", "drag 3"}
    assert changes["pins"] is None
    desk.clear()
    assert desk.plan(17, 4) == dict.fromkeys(["path 1", "drag 3", "camera"])
    assert desk.plan(21, 4) is None


def test_pins_do_not_interrupt_a_path() -> None:
    desk = MotionDesk(16)
    desk.add_path([(0.0, 0.4, 0.5), (2000.0, 0.5, 0.5)], (0.4, 0.5))
    before = in_force((), desk.plan(1, 4), 1)
    desk.set_pins([(0.2, 0.2)])
    after = in_force(before, desk.plan(9, 4), 9)
    assert [gesture.name for gesture in after] == ["path 1", "pins"]
    assert after[0] is before[0]


def test_ids_stay_those_they_were_while_others_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        desk = MotionDesk(16)
        desk.begin_stroke(1, (0.1, 0.1), [])
        desk.begin_stroke(2, (0.5, 0.5), [])
        gestures = in_force((), desk.plan(1, 4), 1)
        second = ids(gestures)["drag 2"]
        desk.move_stroke(1, [], end=True)
        for start in range(5, 41, 4):
            if start == 13:
                desk.set_pins([(0.2, 0.2), (0.8, 0.8)])
            desk.move_stroke(2, [(0.5, 0.5 + start / 200)])
            gestures = in_force(gestures, desk.plan(start, 4), start)
            assert ids(gestures)["drag 2"] == second
            assert len({number for each in ids(gestures).values() for number in each}) == sum(
                gesture.tracks.num_tracks for gesture in gestures
            )
        assert set(ids(gestures)) == {"drag 2", "pins"}

    # without the frame in which a live drag is in force and says nothing
    assert_needs(check, monkeypatch, TrackSet, "slice", lambda self, start, stop: self)


@pytest.mark.slow
def test_hours_of_drag_leave_no_more_than_the_live_gestures() -> None:
    desk, most = MotionDesk(16), 0
    gestures: tuple[Gesture, ...] = ()
    desk.set_pins([(0.2, 0.2)])
    for chunk in range(2 * 3600 * 16 // 4):
        start = 1 + 4 * chunk
        if chunk % 10 == 0:
            desk.begin_stroke(chunk, (0.5, 0.5), [(0.6, 0.5)])
        desk.move_stroke(chunk - chunk % 10, [(0.5 + chunk % 10 / 100, 0.5)], end=chunk % 10 == 8)
        gestures = in_force(gestures, desk.plan(start, 4), start)
        most = max(most, len(gestures))
    assert most == 2
    assert len(desk._ends) <= 2
