"""A viewer's camera: frames up the socket, what is told of them, and that nobody else waits for it."""

import io
import struct
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from PIL import Image

import demo.fake_engine
from demo.engine import PipelineEngine
from demo.limits import Limits
from demo.live import LiveSession
from demo.messages import MAX_MESSAGE_BYTES, BadMessage, Event, Simple, Start, parse
from demo.outgoing import Outgoing
from demo.webcam import HEADER, PATIENCE, Webcam, WebcamFrame, read_frame
from streamgen import load_pipeline
from tests.demo_viewers import Room
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs

FPS = 30.0


def packed(
    picture: np.ndarray, seconds: float = 1.0, version: int = 1, kind: int = 1, quality: int = 75
) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=quality)
    return HEADER.pack(version, kind, 0, seconds) + out.getvalue()


def grey(height: int = 48, width: int = 80) -> np.ndarray:
    return np.full((height, width, 3), 120, np.uint8)


def test_a_frame_is_read_at_the_streams_size() -> None:
    frame = read_frame(packed(grey(), 12.5), 32, 32)
    assert frame.seconds == 12.5
    assert frame.picture.shape == (32, 32, 3)
    assert abs(int(frame.picture[5, 5, 0]) - 120) < 3
    assert HEADER.size == 12


BAD: list[tuple[bytes, str]] = [
    (b"", "expected 13 to"),
    (b"x" * 12, "expected 13 to"),
    (b"x" * (MAX_MESSAGE_BYTES + 1), "expected 13 to"),
    (packed(grey(), version=2), "expected version 1, kind 1, found 2, 1"),
    (packed(grey(), kind=7), "found 1, 7"),
    (packed(grey(), float("nan")), "expected its time in seconds"),
    (packed(grey(), -1.0), "expected its time in seconds"),
    (HEADER.pack(1, 1, 0, 1.0) + b"no picture at all", "expected a JPEG picture"),
    (packed(grey())[:200], "expected a JPEG picture"),
    (packed(np.zeros((1500, 1500, 3), np.uint8), quality=5), "expected at most 2000000 pixels"),
]


@pytest.mark.parametrize(("data", "message"), BAD)
def test_frames_that_make_no_sense_are_told_in_one_line(data: bytes, message: str) -> None:
    with pytest.raises(BadMessage, match=message) as caught:
        read_frame(data, 32, 32)
    assert "\n" not in str(caught.value)


def test_messages_about_cameras_and_pictures() -> None:
    assert parse('{"type": "webcam_off"}') == Simple("webcam_off")
    event = parse('{"type": "event", "id": 1, "epoch": 0, "picture": "reference"}')
    assert isinstance(event, Event)
    assert (event.picture, event.kind, event.label) == ("reference", "picture", "a picture, reference")
    strength = parse('{"type": "event", "id": 1, "epoch": 0, "settings": {"strength": 0.75}}')
    assert isinstance(strength, Event)
    assert strength.settings == {"strength": 0.75}
    for text, message in (
        ('{"type": "event", "id": 1, "epoch": 0, "picture": "sink"}', "one of scene, reference"),
        ('{"type": "event", "id": 1, "epoch": 0, "settings": {"strength": 2}}', "a number in 0.01..1"),
    ):
        with pytest.raises(BadMessage, match=message):
            parse(text)


def fed(room: Room, session: LiveSession, rate: float) -> Any:
    """A camera of a rate beside a session."""
    state = {"next": room.clock.now}

    def look() -> None:
        while room.clock.now >= state["next"]:
            session.see(WebcamFrame(state["next"], grey(8, 8)))
            state["next"] += 1 / rate

    return look


def heard(viewer: Any) -> list[dict[str, Any]]:
    return [message for message in viewer.heard if message["type"] == "heard"]


def test_a_camera_is_heard_and_its_end_is_told() -> None:
    room = Room()
    viewer = room.join()
    room.run(1)
    assert not heard(viewer)
    room.run(2, fed(room, viewer.session, room.engine.info.fps))
    rows = heard(viewer)
    assert rows
    assert all(row["held"] == 0 for row in rows[2:])
    viewer.session.handle(Simple("webcam_off"))
    room.run(1)
    count = len(heard(viewer))
    room.run(1)
    assert len(heard(viewer)) == count
    assert "playing" in viewer.states()


def test_a_chunk_tells_when_the_page_took_its_first_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """And pictures of longer ago than a chunk and a half give way: the delay does not stay long."""

    def check() -> None:
        room = Room()
        viewer = room.join()
        room.run(1)
        fps, count = room.engine.info.fps, room.engine.info.chunk_frames
        began = room.clock.now
        # what a page sends at once after a pause
        for i in range(3 * count):
            viewer.session.see(WebcamFrame(began - (3 * count - i) / fps, grey(8, 8)))
        room.run(1, fed(room, viewer.session, fps))
        rows = [row for row in heard(viewer) if row["frames"]]
        first = rows[0]["frames"][0]
        assert first >= 3 * count - (count + count // 2)
        assert rows[0]["taken"] == pytest.approx(began - (3 * count - first) / fps)
        assert all(later["taken"] > row["taken"] for row, later in pairwise(rows))

    assert_needs(check, monkeypatch, demo.fake_engine, "room", lambda chunk: 3 * chunk)


def test_nobody_waits_for_another_ones_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    """One camera gives a frame and then none; the other viewer's stream plays on, and so does this one."""

    def check() -> None:
        room = Room()
        slow, other = room.join(), room.join()
        room.run(1)
        slow.session.see(WebcamFrame(room.clock.now, grey(8, 8)))
        made = (slow.session._made_end, other.session._made_end)
        room.run(0.9 * PATIENCE)
        # it has not begun a chunk that has no frames
        assert slow.session._made_end <= made[0] + room.engine.info.chunk_frames
        assert other.session._made_end > made[1] + 0.5 * room.engine.info.fps * 0.9 * PATIENCE
        room.run(PATIENCE + 1)
        assert any(row["held"] for row in heard(slow))
        assert slow.session._made_end > made[0] + room.engine.info.chunk_frames

    assert_needs(check, monkeypatch, Webcam, "due", lambda self, stream: -float("inf"))


def test_a_page_that_goes_ends_its_camera() -> None:
    room = Room()
    viewer = room.join()
    room.run(1)
    viewer.session.see(WebcamFrame(1.0, grey(8, 8)))
    viewer.session.disconnected()
    assert not viewer.session.webcam.on
    lone = room.join(start=False)
    with pytest.raises(BadMessage, match="no stream has been started"):
        lone.session.see(WebcamFrame(1.0, grey(8, 8)))


def test_a_real_model_makes_the_camera_anew_and_shows_a_picture(tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("model")
    engine = PipelineEngine(load_pipeline(write_checkpoint(folder, steps=2)))
    assert engine.info.settings["strength"] == 0.75
    outgoing = Outgoing()
    session = LiveSession(engine, outgoing, limits=Limits(recording_bytes=2**20))
    session.handle(Start("a red circle", 0, {"strength": 0.75}))
    session.work()
    session.work()
    for i in range(6):
        session.see(WebcamFrame(10 + i / 16, grey(32, 32)))
    session.work()
    told = [message for message in outgoing.take() if message["type"] == "heard"]
    assert [row["frames"] for row in told] == [[0, 3]]
    assert told[0]["delay_ms"] is not None
    assert told[0]["taken"] == 10.0
    with pytest.raises(BadMessage, match="expected times that rise"):
        session.see(WebcamFrame(1.0, grey(32, 32)))
    session.handle(Event(3, session.epoch, settings={"strength": 0.1}))
    session.handle(Event(1, session.epoch, picture="scene"))
    session.pictures = grey(32, 32)[None]
    session.handle(Event(2, session.epoch, picture="scene"))
    session.work()
    rows = {
        row["id"]: row for row in outgoing.take() if row["type"] == "receipt" and row["status"] != "accepted"
    }
    assert rows[1]["reason"] == "no picture has been uploaded"
    assert rows[2]["status"] == "applied"
    assert "strength: expected" in rows[3]["reason"]
    session.close()


def test_the_header_is_what_the_page_packs() -> None:
    """Twelve bytes, the time at four: `webcam.js` writes them so."""
    assert struct.calcsize("<BBHd") == HEADER.size
    assert HEADER.pack(1, 1, 0, 2.0)[4:] == struct.pack("<d", 2.0)
