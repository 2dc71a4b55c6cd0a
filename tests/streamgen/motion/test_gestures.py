"""Gestures: they come, move and go without each other, keep their ids, and are released when over."""

from pathlib import Path

import pytest
import torch

from models.motion_encoder import MotionEncoder, Tracks
from streamgen import InputError, Pipeline, StreamEvent, TrackSet, load_pipeline
from streamgen.motion import gestures
from streamgen.motion.gestures import changed, released, tracks_between
from streamgen.motion.tracks import camera, drag, pins
from tests.streams import RED, take
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load_pipeline(write_checkpoint(tmp_path_factory.mktemp("model"), steps=1))


def names(session: object) -> list[str]:
    return [gesture.name for gesture in session.controls.gestures]  # type: ignore[attr-defined]


def test_a_drag_keeps_the_pins(pipeline: Pipeline) -> None:
    session = pipeline.open(RED, gestures={"pins": pins([(0.2, 0.2), (0.8, 0.2)], 60)})
    next(session)
    session.submit(StreamEvent(gestures={"drag": drag((0.5, 0.5), (0.6, 0.7), 20)}))
    next(session)
    assert names(session) == ["pins", "drag"]
    ids = torch.cat([gesture.tracks.ids for gesture in session.controls.gestures])
    assert ids.unique().numel() == 3
    session.submit(StreamEvent(gestures={"pins": None}))
    next(session)
    assert names(session) == ["drag"]
    take(session, 5)
    assert names(session) == [], "what is over is released"


def test_plain_motion_is_one_gesture_and_an_empty_one_lets_go_of_all(pipeline: Pipeline) -> None:
    session = pipeline.open(
        RED, motion=drag((0.1, 0.1), (0.9, 0.9), 40), gestures={"pin": pins([(0.5, 0.5)], 40)}
    )
    next(session)
    session.submit(StreamEvent(motion=drag((0.1, 0.9), (0.9, 0.1), 30)))
    next(session)
    assert sorted(names(session)) == ["motion", "pin"]
    session.submit(StreamEvent(motion=TrackSet.empty(0)))
    next(session)
    assert names(session) == []
    assert torch.equal(take(pipeline.replay(session.timeline), 5)[-8:], take(session, 2))


def test_a_moved_gesture_keeps_its_ids_while_others_come_and_go() -> None:
    """Two hands whose tracks have one id: the second gets another, and keeps it after the first is gone."""
    one, two = drag((0.1, 0.1), (0.2, 0.2), 4), drag((0.7, 0.7), (0.8, 0.8), 4)
    now = changed((), {"one": one}, 0)
    now = changed(now, {"two": two}, 0)
    given = {gesture.name: gesture.tracks.ids.tolist() for gesture in now}
    assert given["one"] != given["two"]
    now = changed(now, {"one": None}, 4)
    now = changed(now, {"two": two}, 4)
    assert now[0].tracks.ids.tolist() == given["two"]
    assert (now[0].start, now[0].asked) == (4, (0,))


def test_names_that_are_not_in_force_cannot_be_let_go_of(pipeline: Pipeline) -> None:
    session = pipeline.open(RED, gestures={"pins": pins([(0.5, 0.5)], 60)})
    next(session)
    receipt = session.submit(StreamEvent(gestures={"pin": None}, settings={"steps": 2}))
    next(session)
    assert (receipt.status, receipt.reason) == ("refused", "unknown gesture 'pin' (did you mean 'pins'?)")
    assert (names(session), session.controls.settings.steps) == (["pins"], 1)
    session.submit(StreamEvent(gestures={"pins": None}))
    nothing = session.submit(StreamEvent(gestures={"pins": None}), at_frame=session.next_frame + 4)
    take(session, 2)
    assert nothing.reason == "gesture 'pins': nothing is in force to let go of"
    for wrong in ("", "x" * 65, "a\nb"):
        with pytest.raises(InputError, match="gesture: expected a name of 1 to 64 printable characters"):
            StreamEvent(gestures={wrong: None})
    with pytest.raises(InputError, match="expected at most 256 in one event, found 257"):
        StreamEvent(gestures={f"{i}": None for i in range(257)})


def test_only_tracks_that_say_something_are_encoded(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long pan sows its field again and again: in any chunk sixteen tracks of hundreds are alive."""
    pan = camera(frames=640, pan=(8.0, 0.0))
    assert pan.num_tracks > 400
    seen: list[int] = []
    forward = MotionEncoder.forward

    def counted(self: MotionEncoder, tracks: Tracks, *rest: object, first: bool) -> torch.Tensor:
        seen.append(tracks.points.shape[1])
        return forward(self, tracks, *rest, first=first)  # type: ignore[arg-type]

    def check() -> None:
        seen.clear()
        session = pipeline.open(RED, motion=pan)
        with monkeypatch.context() as patched:
            patched.setattr(MotionEncoder, "forward", counted)
            take(session, 4)
        assert max(seen) <= 48, seen

    everything = lambda own, start, stop: own[0].tracks.slice(start, stop)  # noqa: E731
    assert_needs(check, monkeypatch, streamgen_conditioning(), "tracks_between", everything)
    whole = gestures.Gesture("motion", pan, 0, tuple(pan.ids.tolist()))
    alive = tracks_between([whole], 40, 44)
    assert alive is not None
    encoder = pipeline.motion_encoder
    assert encoder is not None
    both = [
        encoder(Tracks(*(x[None] for x in (t.points, t.state, t.pinned, t.ids))), (4, 4), first=False)
        for t in (alive, pan.slice(40, 44))
    ]
    assert torch.equal(both[0], both[1])


def streamgen_conditioning() -> object:
    import streamgen.stream.conditioning

    return streamgen.stream.conditioning


def test_motion_begins_at_its_event_and_ends_with_its_tracks(pipeline: Pipeline) -> None:
    """After the last frame of the tracks a chunk has null motion, as if there had never been any."""
    session = pipeline.open(RED)
    take(session, 3)
    session.submit(StreamEvent(motion=drag((0.2, 0.2), (0.8, 0.8), 8)))
    take(session, 4)
    moving = [chunk.motion is not None for chunk in session.state.latents.context]
    assert moving == [False, True, False, False]


def test_released_and_silent() -> None:
    now = changed((), {"a": drag((0, 0), (1, 1), 8), "b": TrackSet.empty(4)}, 10)
    assert [gesture.name for gesture in now] == ["a"]
    assert released(now, 17) == now
    assert released(now, 18) == ()
    assert tracks_between(now, 0, 10) is None


@pytest.mark.slow
def test_three_hours_of_live_drag_are_saved_and_resumed(pipeline: Pipeline, tmp_path: Path) -> None:
    """An event a chunk for 43,200 chunks: the log is a few MB, and goes on where it was."""
    session = pipeline.open(RED)
    take(session, 2)
    log, frame = session.state.log, session.next_frame
    for i in range(43_200):
        x = 0.5 + 0.4 * (i % 7 - 3) / 3
        event = StreamEvent(gestures={"stroke": drag((x, 0.5), (0.5, x), 4)})
        log = log.appended(2 + i, frame + 4 * i, event, (i,))
    from dataclasses import replace

    session._now = replace(session._now, state=replace(session.state, log=log))
    session.save(tmp_path / "stream")
    assert (tmp_path / "stream").stat().st_size < 16e6
    resumed = pipeline.resume(tmp_path / "stream")
    assert len(resumed.state.log) == 43_201
    assert resumed.state.log.digest == log.digest
    assert torch.equal(take(session, 2), take(resumed, 2))


def test_a_motion_of_a_million_points_is_saved_and_resumed(pipeline: Pipeline, tmp_path: Path) -> None:
    """1,024 tracks over 1,920 frames: too much for a header of JSON."""
    points = torch.rand(1024, 1920, 2, generator=torch.Generator().manual_seed(0))
    session = pipeline.open(RED, motion=TrackSet.from_points(points))
    take(session, 2)
    session.save(tmp_path / "stream")
    resumed = pipeline.resume(tmp_path / "stream")
    assert torch.equal(take(session, 2), take(resumed, 2))
    assert torch.equal(resumed.timeline.events[0].event.motion.points, points)  # type: ignore[union-attr]
