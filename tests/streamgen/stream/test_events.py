"""Events: settings and sliders, the boundary where they take effect, threads, and what timelines record."""

import threading
from pathlib import Path

import pytest
import torch

import streamgen.stream.events
from models.causal_dit import CausalDiT
from streamgen import InputError, Pipeline, StreamEvent, Timeline, load_pipeline
from streamgen.motion.tracks import TrackSet, drag
from tests.streams import BLUE, RED, take
from tests.tiny_checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load_pipeline(write_checkpoint(tmp_path_factory.mktemp("events")))


def test_settings_take_effect_in_the_chunk_of_their_receipt(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network evaluations of a chunk: one per step (all guidance branches together) and the commit."""
    calls, forward = [0], CausalDiT.forward

    def counted(self: CausalDiT, *args: object, **kwargs: object) -> object:
        calls[0] += 1
        return forward(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(CausalDiT, "forward", counted)
    session = pipeline.open(RED)
    take(session, 2)
    receipt = session.submit(StreamEvent(settings={"steps": 5}))
    calls[0] = 0
    chunk = next(session)
    assert (receipt.chunk, calls[0]) == (chunk.index, 6)


def test_settings_of_the_first_chunk_replay(pipeline: Pipeline) -> None:
    session = pipeline.open(RED, seed=3)
    session.submit(StreamEvent(settings={"steps": 1}))
    frames = take(session, 3)
    assert torch.equal(frames, take(pipeline.replay(session.timeline), 3))


def test_sliders_that_do_not_fit_together_do_not_end_the_stream(pipeline: Pipeline) -> None:
    """Each is possible alone; text and motion strengths must sum to at least 1."""
    session = pipeline.open(RED)
    next(session)
    first = session.submit(StreamEvent(settings={"motion_guidance": 0.0}))
    second = session.submit(StreamEvent(prompt=BLUE, settings={"text_guidance": 0.5}))
    third = session.submit(StreamEvent(settings={"steps": 1}))
    chunk = next(session)
    assert [r.status for r in (first, second, third)] == ["applied", "refused", "applied"]
    assert "sum to at least 1" in str(second.reason)
    assert chunk.receipts == (first, second, third)
    assert (session.controls.prompt, session.controls.settings.steps) == (RED, 1)
    assert take(session, 1).shape[0] == 4


def test_a_change_may_rest_on_one_that_waits(pipeline: Pipeline) -> None:
    """Replay submits all events before the first chunk."""
    session = pipeline.open(RED, settings={"text_guidance": 0.5, "motion_guidance": 0.5})
    raise_text = session.submit(StreamEvent(settings={"text_guidance": 2.0}), at_frame=1)
    drop_motion = session.submit(StreamEvent(settings={"motion_guidance": 0.0}), at_frame=5)
    assert (raise_text.status, drop_motion.status) == ("accepted", "accepted")
    take(session, 3)
    assert (raise_text.chunk, drop_motion.chunk) == (1, 2)


def test_superseded_fields_show_only_once_applied(pipeline: Pipeline) -> None:
    session = pipeline.open(RED)
    first = session.submit(StreamEvent(prompt=BLUE, settings={"steps": 1}))
    session.submit(StreamEvent(prompt=RED))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(CausalDiT, "forward", None)
        with pytest.raises(TypeError):
            next(session)
    assert (first.status, first.superseded) == ("accepted", ())
    next(session)
    assert (first.status, first.superseded) == ("applied", ("prompt",))


def test_submit_from_other_threads(pipeline: Pipeline) -> None:
    """Every event of three threads is applied exactly once, in one of the chunks made meanwhile."""
    session = pipeline.open(RED)
    receipts: list[list[streamgen.stream.events.Receipt]] = [[], [], []]

    def send(mine: list[streamgen.stream.events.Receipt]) -> None:
        for i in range(20):
            mine.append(session.submit(StreamEvent(settings={"text_guidance": 1.0 + i / 10})))

    threads = [threading.Thread(target=send, args=(mine,)) for mine in receipts]
    for thread in threads:
        thread.start()
    seen = [r for _ in range(4) for r in next(session).receipts]
    for thread in threads:
        thread.join()
    seen += next(session).receipts
    every = [r for mine in receipts for r in mine]
    assert {r.status for r in every} == {"applied"}
    assert sorted(r.number for r in seen) == sorted(r.number for r in every) == list(range(60))


def test_what_was_submitted_is_a_copy(pipeline: Pipeline) -> None:
    settings = {"steps": 1}
    event = StreamEvent(settings=settings)
    settings["steps"] = 0
    session = pipeline.open(RED)
    session.submit(event)
    next(session)
    assert session.controls.settings.steps == 1


def test_letting_go_with_tracks_without_points_is_recorded_and_resumes(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    session = pipeline.open(RED, motion=TrackSet.empty(12))
    next(session)
    session.submit(StreamEvent(motion=TrackSet.empty(5)))
    next(session)
    again = Timeline.from_json(session.timeline.to_json())
    assert again.events[1].event.motion is not None
    session.save(tmp_path / "stream")
    assert torch.equal(take(session, 2), take(pipeline.resume(tmp_path / "stream"), 2))


def test_a_prompt_must_be_text() -> None:
    with pytest.raises(InputError, match="prompt: expected text, found 5"):
        StreamEvent(prompt=5)  # type: ignore[arg-type]


def test_receipts_name_the_boundary_and_the_last_event_wins_per_field(pipeline: Pipeline) -> None:
    session = pipeline.open(RED)
    take(session, 2)
    first = session.submit(StreamEvent(prompt="a red star", motion=drag((0, 0), (1, 1), 8)))
    second = session.submit(StreamEvent(prompt=BLUE))
    later = session.submit(StreamEvent(settings={"steps": 1}), at_frame=session.next_frame + 1)
    assert {r.status for r in (first, second, later)} == {"accepted"}
    chunk = next(session)
    assert (first.status, first.superseded, first.frame) == ("applied", ("prompt",), chunk.start_frame)
    assert (second.status, second.superseded, second.chunk) == ("applied", (), chunk.index)
    assert (chunk.receipts, later.status) == ((first, second), "accepted")
    assert (session.controls.prompt, bool(session.controls.gestures)) == (BLUE, True)
    next(session)
    assert (later.status, session.controls.settings.steps) == ("applied", 1)


def test_impossible_events_are_refused_in_the_receipt(pipeline: Pipeline) -> None:
    session = pipeline.open(RED)
    for settings, reason in (
        ({"step": 3}, "did you mean 'steps'"),
        ({"steps": "many"}, "expected int"),
        ({"steps": 0}, "steps must be"),
        ({"window_frames": 7}, "fixed when the stream opens"),
    ):
        receipt = session.submit(StreamEvent(settings=settings))
        assert receipt.status == "refused"
        assert reason in str(receipt.reason)
    with pytest.raises(InputError, match="empty prompt"):
        StreamEvent(prompt="  ")
    with pytest.raises(InputError, match="at most 10000"):
        StreamEvent(prompt="x" * 10_001)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gestures": 3}, "gestures: expected values by name, found 3"),
        ({"settings": 3}, "settings: expected values by name, found 3"),
        ({"motion": "x.json"}, "motion: expected a TrackSet, found 'x.json'"),
        ({"gestures": {"a": "x"}}, "gesture 'a': expected a TrackSet or None, found 'x'"),
        ({"motion": TrackSet.empty(2), "gestures": {"motion": None}}, "motion is the gesture 'motion'"),
        ({"cache": "forget"}, "cache: expected one of recache, keep, clear, rebuild, found 'forget'"),
        ({"prompt": RED, "sink": "drop"}, "sink policy: expected one of refresh, keep, found 'drop'"),
        ({"cache": "keep", "policy": "clear"}, "cache 'keep' and policy 'clear' are the same field"),
        ({}, "expected a prompt, motion, settings or a cache action"),
    ],
)
def test_events_that_cannot_be_are_told_in_one_line(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        StreamEvent(**fields)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gestures", [["pin"], "pin", [], 3])
def test_rows_of_a_timeline_that_are_no_events(gestures: object) -> None:
    timeline = Timeline(16.0, 3)
    timeline.record(0, 0, StreamEvent(RED))
    content = timeline.to_json()
    content["events"][0]["gestures"] = gestures
    with pytest.raises(InputError, match="gestures: expected tracks by name"):
        Timeline.from_json(content)
    with pytest.raises(InputError, match="event: expected an object"):
        Timeline.from_json(content | {"events": [gestures]})
