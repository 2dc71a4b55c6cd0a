"""The demo's hands and memory: gestures become tracks, strokes find their things, recordings replay."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import demo.follow
import demo.motion_desk
from demo.engine import PipelineEngine
from demo.follow import follow
from demo.live import LiveSession
from demo.messages import Camera, Event, Rewind, Simple, Start, Stroke
from demo.motion_desk import MAX_STEP, MotionDesk
from demo.recording import Recording, session_record, write_video
from demo.voice import Voice
from streamgen import InputError, Pipeline, load_pipeline
from streamgen.motion.tracks import VISIBLE, TrackSet
from streamgen.render.clip import write_clip
from streamgen.render.sources import open_timeline
from streamgen.video.read import read_clip
from tests.demo_viewers import Clock
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs

REST = Camera((0.0, 0.0), 1.0, 0.0)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load_pipeline(write_checkpoint(tmp_path_factory.mktemp("demo")), device="cpu")


def last_place(tracks: TrackSet | None) -> tuple[float, float]:
    assert tracks is not None
    x, y = tracks.points[0, -1].tolist()
    return x, y


# -- drags


def test_a_drag_goes_through_what_was_drawn_and_lets_go_at_its_end() -> None:
    desk = MotionDesk(16)
    assert desk.plan(1, 4) is None
    desk.begin_stroke(5, (0.5, 0.5), [(0.5, 0.5), (0.55, 0.5)])
    first = desk.plan(5, 4)
    assert first is not None
    assert first.num_frames == 4
    assert first.points[0, 0].tolist() == [0.5, 0.5]
    assert last_place(first) == pytest.approx((0.55, 0.5))
    desk.move_stroke(5, [(0.6, 0.5), (0.6, 0.6)])
    second = desk.plan(9, 4)
    assert second is not None
    assert last_place(second) == pytest.approx((0.6, 0.6))
    assert [bool((second.points[0, i] == torch.tensor([0.6, 0.5])).all()) for i in range(4)].count(True) <= 1
    desk.move_stroke(5, [], end=True)
    assert desk.plan(13, 4) is not None
    released = desk.plan(17, 4)
    assert released is not None
    assert released.is_empty
    assert desk.plan(21, 4) is None
    assert not desk.busy


def test_a_hand_that_holds_still_holds_the_thing_still() -> None:
    desk = MotionDesk(16)
    desk.begin_stroke(1, (0.3, 0.3), [(0.3, 0.3)])
    desk.plan(1, 4)
    held = desk.plan(5, 4)
    assert held is not None
    assert torch.allclose(held.points[0], torch.full((4, 2), 0.3))


def test_no_drag_is_faster_than_things_can_be_pulled(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        desk = MotionDesk(16)
        desk.begin_stroke(1, (0.1, 0.1), [(0.9, 0.9)])
        desk.move_stroke(1, [], end=True)
        places = [torch.tensor([0.1, 0.1])]
        for start in range(1, 60, 4):
            tracks = desk.plan(start, 4)
            if tracks is None or tracks.is_empty:
                break
            places += list(tracks.points[0])
        steps = [math.dist(a.tolist(), b.tolist()) for a, b in itertools.pairwise(places)]
        assert max(steps) <= 1.4 * MAX_STEP
        assert len(places) > 12

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
    tracks = desk.plan(9, 4)
    assert tracks is not None
    assert tracks.points[0, 0].tolist() == pytest.approx([0.42, 0.52])
    assert tracks.points[0, 16].tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    assert last_place(tracks) == pytest.approx((0.7, 0.5), abs=1e-3)
    assert tracks.num_frames == pytest.approx(21, abs=1)
    assert desk.plan(13, 4) is None, "the plan holds until it ends"
    released = desk.plan(9 + 24, 4)
    assert released is not None
    assert released.is_empty


def test_pins_hold_and_are_renewed_and_live_beside_a_drag() -> None:
    desk = MotionDesk(16)
    desk.set_pins([(0.2, 0.2), (0.8, 0.8)])
    tracks = desk.plan(1, 4)
    assert tracks is not None
    assert tracks.pinned.tolist() == [True, True]
    assert desk.plan(5, 4) is None
    assert desk.plan(1 + tracks.num_frames, 4) is not None
    desk.begin_stroke(1, (0.5, 0.5), [])
    both = desk.plan(181, 4)
    assert both is not None
    assert sorted(both.pinned.tolist()) == [False, True, True]
    desk.clear()
    released = desk.plan(185, 4)
    assert released is not None
    assert released.is_empty


def test_a_camera_move_is_a_field_over_the_picture_and_ends_with_the_key() -> None:
    desk = MotionDesk(16)
    desk.move_camera(Camera((0.2, 0.0), 1.0, 0.0))
    tracks = desk.plan(1, 4)
    assert tracks is not None
    assert tracks.num_tracks >= 16
    moved = tracks.points[:, 4] - tracks.points[:, 0]
    seen = (tracks.state[:, 0] == VISIBLE) & (tracks.state[:, 4] == VISIBLE)
    assert moved[seen, 0].max() < 0, "the camera goes right, the picture left"
    desk.move_camera(REST)
    released = desk.plan(5, 4)
    assert released is not None
    assert released.is_empty


def test_after_a_rewind_tracks_of_the_stream_itself_end_too() -> None:
    desk = MotionDesk(16)
    desk.let_go()
    released = desk.plan(9, 4)
    assert released is not None
    assert released.is_empty


# -- what a stroke was drawn on


def moving_square(frames: int, speed: float) -> list[np.ndarray]:
    out = []
    background = np.random.default_rng(1).integers(90, 130, (64, 64, 3)).astype(np.uint8)
    for i in range(frames):
        picture = background.copy()
        x = 10 + round(speed * i)
        picture[28:38, x : x + 10] = (220, 30, 30)
        out.append(picture)
    return out


def test_a_stroke_finds_the_thing_where_it_has_gone_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = moving_square(12, 2)

    def check() -> None:
        x, y = demo.follow.follow(frames, (15 / 64, 33 / 64))
        assert (x * 64, y * 64) == pytest.approx((15 + 22, 33), abs=2)

    assert_needs(check, monkeypatch, demo.follow, "follow", lambda frames, point: point)


def test_what_stands_still_or_is_lost_stays_where_it_was() -> None:
    still = moving_square(8, 0)
    assert follow(still, (0.9, 0.9)) == pytest.approx((0.9, 0.9))
    assert follow([], (0.3, 0.4)) == (0.3, 0.4)
    gone = [moving_square(1, 0)[0], np.zeros((64, 64, 3), np.uint8)]
    assert follow(gone, (15 / 64, 33 / 64)) == pytest.approx((15 / 64, 33 / 64), abs=0.01)


# -- a real model behind it


def play(session: LiveSession, chunks: int) -> None:
    for _ in range(chunks):
        session.work()


@pytest.fixture
def live(pipeline: Pipeline) -> LiveSession:
    return LiveSession(PipelineEngine(pipeline), Voice(), Clock())


def steer(session: LiveSession) -> None:
    """A start, a drag, a switch, a rewind to before the switch, another switch."""
    session.handle(Start("a red circle", 4))
    play(session, 12)
    session.handle(Stroke(1, session.epoch, 40, "begin", ((0.0, 0.4, 0.4), (30.0, 0.5, 0.5))))
    play(session, 2)
    session.handle(Stroke(1, session.epoch, 40, "end", ((60.0, 0.6, 0.5),)))
    session.handle(Event(2, session.epoch, "a blue star over sand"))
    play(session, 8)
    early = next(mark for mark in session.marks if mark.frame > 20)
    session.handle(Rewind(early.id))
    play(session, 3)
    session.handle(Event(3, session.epoch, "the sea", {"text_guidance": 2.5}, "keep"))
    play(session, 4)


def test_the_record_of_a_session_renders_to_the_same_frames(
    live: LiveSession, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is recorded is what was shown on the branch that plays, bit for bit."""
    steer(live)
    assert live.stream is not None

    def check() -> None:
        count = live.recording.frames
        assert live.stream is not None
        record = session_record(live.recording, count, live.stream.timeline(), {"model": "x"})
        file = tmp_path / "session.json"
        file.write_text(json.dumps(record))
        clip = open_timeline(pipeline, file, tmp_path / "again.mp4", None, None, None)
        assert clip.frames == count
        made = write_clip(clip)
        assert made["replay"]["equal"] is True

    def shifted(self: Recording, frames: int) -> object:
        yield np.zeros((frames, *self.size, 3), np.uint8)

    assert_needs(check, monkeypatch, Recording, "read", shifted)


def test_the_recorded_video_has_the_recorded_frames(live: LiveSession, tmp_path: Path) -> None:
    steer(live)
    count = live.recording.frames - 3
    path = tmp_path / "clip.mp4"
    assert write_video(live.recording, count, 16, path) == count
    video = read_clip(path, 16, 32, 32, 1000)
    frames = np.concatenate(list(live.recording.read(count)))
    assert len(video) == count
    # pictures of random weights are noise, of which 4:2:0 keeps the brightness alone
    brightness = np.array([0.2126, 0.7152, 0.0722])
    assert np.abs(video @ brightness - frames @ brightness).mean() < 12


def test_a_recording_beyond_its_share_of_the_disk_ends_and_says_so() -> None:
    recording = Recording(8, 8, budget=700)
    noise = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    for start in (0, 2, 4):
        recording.add(start, noise)
    assert (recording.frames, recording.full) == (2, True) or recording.frames <= 4
    assert recording.full
    recording.restart()
    assert (recording.frames, recording.full) == (0, False)
    with pytest.raises(InputError, match="nothing"):
        session_record(recording, 5, {"events": [], "fps": 16}, {})
    recording.close()
    recording.add(0, noise)


def test_a_drag_reaches_the_model_as_tracks_of_its_chunk(live: LiveSession) -> None:
    live.handle(Start("a red circle", 0))
    play(live, 4)
    live.handle(Stroke(1, live.epoch, 9, "begin", ((0.0, 0.4, 0.4), (30.0, 0.5, 0.5))))
    play(live, 1)
    assert live.stream is not None
    (event,) = [row for row in live.stream.timeline()["events"] if "motion" in row]
    assert event["frame"] == 13 - 4
    assert len(event["motion"]["tracks"][0]["points"]) == 4
    live.handle(Simple("clear"))
    play(live, 1)
    assert live.stream.timeline()["events"][-1]["motion"] is None
