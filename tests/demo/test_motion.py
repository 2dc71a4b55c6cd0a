"""The demo's hands and memory: gestures become tracks, strokes find their things, recordings replay."""

import json
from pathlib import Path as FilePath

import numpy as np
import pytest

import demo.follow
import streamgen.stream.step
from demo.engine import PipelineEngine, SessionStream
from demo.exports import write_export
from demo.follow import follow
from demo.live import LiveSession
from demo.messages import Event, Path, Pins, Rewind, Simple, Start, Stroke
from demo.outgoing import Outgoing
from demo.recording import Recording, session_record
from streamgen import InputError, Pipeline, StreamEvent, load_pipeline
from streamgen.motion.gestures import Gesture, changed, tracks_between
from streamgen.render.clip import write_clip
from streamgen.render.sources import open_timeline
from streamgen.video.read import read_clip
from tests.demo.test_motion_desk import ids
from tests.demo_viewers import Clock
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load_pipeline(write_checkpoint(tmp_path_factory.mktemp("demo")), device="cpu")


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
    return LiveSession(PipelineEngine(pipeline), Outgoing(), Clock())


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
    live: LiveSession, pipeline: Pipeline, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
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


def test_the_recorded_video_has_the_recorded_frames(live: LiveSession, tmp_path: FilePath) -> None:
    steer(live)
    count = live.recording.frames - 3
    path = tmp_path / "clip.mp4"
    assert write_export(live.recording, count, 16, path) == count
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
    (event,) = [row for row in live.stream.timeline()["events"] if "gestures" in row]
    assert event["frame"] == 13 - 4
    points = event["gestures"]["drag 1"]["tracks"][0]["points"]
    assert [point is not None for point in points] == [True] * 4 + [False]
    live.handle(Simple("clear"))
    play(live, 1)
    event = live.stream.timeline()["events"][-1]
    assert event["frame"] == 13
    assert event["motion"] is None  # all of it ends
    assert held_by(live) == ()


def stream_of(session: LiveSession) -> SessionStream:
    assert isinstance(session.stream, SessionStream)
    return session.stream


def held_by(session: LiveSession) -> tuple[Gesture, ...]:
    """The gestures in force in a real stream."""
    return stream_of(session).session.controls.gestures


def test_a_drag_keeps_the_pins_and_letting_go_of_one_leaves_the_others(
    live: LiveSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        live.handle(Start("a red circle", 0))
        play(live, 3)
        live.handle(Pins(((0.2, 0.2), (0.8, 0.8))))
        live.handle(Path(1, live.epoch, 5, ((0.0, 0.5, 0.5), (3000.0, 0.6, 0.5))))
        play(live, 2)
        before = ids(held_by(live))
        live.handle(Stroke(2, live.epoch, 9, "begin", ((0.0, 0.4, 0.4),)))
        play(live, 3)
        stream = stream_of(live)
        tracks = tracks_between(held_by(live), stream.next_frame - 4, stream.next_frame)
        assert tracks is not None
        assert sorted(tracks.pinned.tolist()) == [False, False, True, True]
        assert {name: ids(held_by(live))[name] for name in before} == before
        live.handle(Stroke(2, live.epoch, 9, "end", ()))
        live.handle(Pins(()))
        play(live, 2)
        assert set(ids(held_by(live))) == {"path 1"}

    alone = lambda gestures, changes, frame: changed((), changes, frame)  # noqa: E731
    assert_needs(check, monkeypatch, streamgen.stream.step, "changed", alone)


def test_a_long_drag_leaves_no_more_than_the_live_gestures_in_the_state(live: LiveSession) -> None:
    live.handle(Start("a red circle", 0))
    play(live, 3)
    live.handle(Pins(((0.2, 0.2),)))
    for stroke in range(8):
        live.handle(Stroke(stroke, live.epoch, 9, "begin", ((0.0, 0.4, 0.4), (30.0, 0.5, 0.5))))
        for _ in range(4):
            play(live, 1)
            assert len(held_by(live)) <= 2
        live.handle(Stroke(stroke, live.epoch, 9, "end", ()))
        play(live, 1)
    play(live, 1)
    assert set(ids(held_by(live))) == {"pins"}


def test_after_a_rewind_tracks_of_the_stream_itself_end_too(live: LiveSession) -> None:
    live.handle(Start("a red circle", 0))
    play(live, 3)
    live.handle(Pins(((0.2, 0.2),)))
    play(live, 12)
    live.handle(Rewind(next(mark for mark in live.marks if mark.frame > 20).id))
    play(live, 1)
    assert set(ids(held_by(live))) == {"pins"}, "as the moment was"
    live.handle(Path(1, live.epoch, 5, ((0.0, 0.5, 0.5), (3000.0, 0.6, 0.5))))
    play(live, 1)
    assert set(ids(held_by(live))) == {"path 1"}


def test_what_waited_at_a_moment_does_not_come_again(live: LiveSession) -> None:
    live.handle(Start("a red circle", 0))
    play(live, 3)
    stream = stream_of(live)
    receipt = stream.submit(StreamEvent(prompt="a blue star"))
    moment = stream.snapshot()
    stream.step()
    assert receipt.status == "applied"
    assert stream.in_force(receipt)
    stream.restore(moment)
    assert not stream.in_force(receipt)
    stream.step()
    assert stream.prompt == "a red circle"


def test_the_cache_is_touched_when_it_is_said_and_only_then(live: LiveSession) -> None:
    live.handle(Start("a red circle", 0))
    play(live, 3)
    for number, event in enumerate(
        [
            Event(1, live.epoch, settings={"text_guidance": 2.5}),
            Event(2, live.epoch, cache="recache"),
            Event(3, live.epoch, "a red circle", cache="clear"),
            Event(4, live.epoch, "a blue star"),
        ]
    ):
        live.handle(event)
        play(live, 1)
        row = stream_of(live).timeline()["events"][number + 1]
        assert row.get("cache") == [None, "recache", "clear", "recache"][number]


def test_a_model_without_motion_says_so_once(live: LiveSession, monkeypatch: pytest.MonkeyPatch) -> None:
    live.handle(Start("a red circle", 0))
    play(live, 3)
    monkeypatch.setattr(stream_of(live).session.model, "motion_encoder", None)
    live.outgoing.clear()
    live.handle(Pins(((0.2, 0.2),)))
    play(live, 3)
    (told,) = [message for message in live.outgoing.take() if message["type"] == "receipt"]
    assert (told["kind"], told["status"]) == ("pins", "refused")
    assert "not trained with tracks" in told["reason"]
    assert live.strip.rows()[-1]["kind"] == "prompt"
