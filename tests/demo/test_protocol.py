"""The demo's protocol with a fake engine and an injected clock: pacing, drops, late and bad messages."""

import itertools
from typing import Any

import pytest

import demo.live
import demo.pacing
import demo.worker
from demo.fake_engine import COLOURS, FakeSaved
from demo.history import Takes
from demo.limits import Limits
from demo.messages import (
    Ack,
    BadMessage,
    Event,
    Path,
    Rewind,
    Simple,
    Start,
    Step,
    Stroke,
    Take,
)
from demo.outgoing import MAX_WAITING, Outgoing
from demo.pacing import AckWindow, Outbox, RecacheTimes
from tests.demo_viewers import Room, Viewer
from tests.tiny_models import assert_needs

THIN = {"delay": 0.04, "seconds_per_frame": 0.0487}  # 48.7 kB a frame at 8 Mbit/s, 80 ms round trip


def shown_rate(viewer: Viewer, seconds: float) -> float:
    """Frames shown per second over the last `seconds`."""
    since = viewer.room.clock.now - seconds
    return sum(at >= since for at, _ in viewer.shown) / seconds


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


def prompt_event(viewer: Viewer, prompt: str, number: int = 1, epoch: int | None = None) -> Event:
    return Event(number, viewer.session.epoch if epoch is None else epoch, prompt)


# -- windows and pacing


def test_a_viewer_who_answers_nothing_gets_three_frames_and_costs_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check() -> None:
        room = Room()
        viewer = room.join()
        viewer.answering = False
        room.run(10)
        assert viewer.session.counters.sent <= 3
        assert viewer.session.counters.generated <= 16 + 2 * 4
        assert len(viewer.session.outbox) <= viewer.session.outbox.room

    assert_needs(check, monkeypatch, AckWindow, "open", True)


@pytest.mark.parametrize(("fps", "delay", "least"), [(16, 0.0, 0.98), (30, 0.0, 0.98), (30, 0.04, 0.95)])
def test_all_frames_are_shown_on_links_that_carry_them(fps: int, delay: float, least: float) -> None:
    room = Room(fps=float(fps))
    viewer = room.join(delay=delay, seconds_per_frame=0.0195 if delay else 0.0)
    room.run(10)
    assert shown_rate(viewer, 6) >= least * fps
    assert viewer.most_under_way <= 6


def test_the_window_grows_with_the_round_trip_and_not_with_queues() -> None:
    window = AckWindow(30.0)
    now = 0.0
    for _ in range(40):
        seq = window.send(now)
        now += 0.033
        assert window.acknowledge(seq, now + 0.2)
    assert 6 <= window.size <= 8
    crowded = AckWindow(30.0)
    for i in range(40):
        seq = crowded.send(i * 0.1)
        crowded.acknowledge(seq, i * 0.1 + (0.05 if i % 8 == 0 else 0.4))
    assert crowded.size == 3


def test_an_acknowledgement_of_what_was_never_sent_is_refused() -> None:
    viewer = Room().join()
    with pytest.raises(BadMessage, match="never sent"):
        viewer.session.handle(Ack(5, 1, 0, 0.0))


def test_chunks_begin_just_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is buffered never exceeds one chunk and what its generation and transport take."""

    def check() -> None:
        room, most = Room(), [0.0]
        viewer = room.join()

        def look() -> None:
            session = viewer.session
            most[0] = max(most[0], session._made_end - session.head.at(room.clock.now, session._made_end))

        room.run(1)
        room.run(8, look)
        assert shown_rate(viewer, 6) >= 15.5
        assert most[0] <= 4 + 16 * (0.05 + demo.pacing.MARGIN + 0.02)

    assert_needs(check, monkeypatch, demo.live, "start_time", lambda now, *_: now)


def test_control_to_picture_stays_within_a_chunk_its_generation_and_a_tenth() -> None:
    """Changes of the prompt at random phases; the colour of the shown pixels tells when they are seen."""
    room = Room(seconds=0.12)
    viewer = room.join(delay=0.005)
    room.run(3)
    waits = []
    for index, phase in enumerate([0.01, 0.07, 0.13, 0.19, 0.22, 0.03, 0.11, 0.17, 0.24, 0.05, 0.15, 0.21]):
        room.run(0.6 + phase)
        name = ("blue", "green", "red")[index % 3]
        asked, seen = room.clock.now, len(viewer.shown)
        viewer.session.handle(prompt_event(viewer, f"a {name} ball", index + 1))
        while not any(tells(frame.pixels, name) for _, frame in viewer.shown[seen:]):
            room.run(0.005)
        waits.append(room.clock.now - asked)
    assert percentile(waits, 0.95) <= 0.25 + 0.12 + 0.1


def tells(pixels: Any, name: str) -> bool:
    """Whether a fake picture was made under the prompt that names this colour."""
    mean = pixels.reshape(-1, 3).mean(0)
    return bool(mean.argmax() == max(range(3), key=lambda i: COLOURS[name][i]))


def test_words_that_come_over_time_make_no_chunk_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recache before each chunk would be too much here; the session says how often one fits."""

    def check() -> None:
        room = Room(seconds=0.1, recache=0.3)
        viewer = room.join()
        room.run(4)
        viewer.session.handle(Event(1, 1, "a blue ball", over=2.0))
        before = len(viewer.shown)
        room.run(4)
        times = [when for when, _ in viewer.shown[before:]]
        assert max(b - a for a, b in itertools.pairwise(times)) < 0.1, "every frame in its time"
        [receipt] = viewer.receipts("applied")
        assert receipt["until"] == receipt["frame"] + 28, "of eight chunks the last one is all new"

    assert_needs(check, monkeypatch, RecacheTimes, "every", lambda *args: 1)


def test_a_slow_engine_slows_the_picture_evenly_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        room = Room(seconds=0.5)  # 4 frames of 16 fps: half of real time
        viewer = room.join()
        room.run(12)
        times = [at for at, _ in viewer.shown[-24:]]
        gaps = [b - a for a, b in itertools.pairwise(times)]
        assert 7.0 <= shown_rate(viewer, 6) <= 8.1
        assert viewer.session.outbox.dropped == 0, "a slow engine is no reason to leave frames out"
        assert max(gaps) <= 1.5 * min(gaps)
        chunks = [m for m in viewer.heard if m["type"] == "chunk"]
        assert chunks[-1]["rate"] == pytest.approx(16 * 0.95 / 2, rel=0.03)

    assert_needs(check, monkeypatch, demo.worker, "playing_rate", lambda fps, load: fps)


def test_two_viewers_share_a_busy_engine_alike() -> None:
    room = Room(seconds=0.2)  # two of them ask for 1.6 times what it can do
    viewers = [room.join(), room.join()]
    room.run(12)
    rates = [shown_rate(viewer, 6) for viewer in viewers]
    assert min(rates) >= 8.5
    assert max(rates) - min(rates) <= 1.0


def test_a_thin_link_shows_fewer_frames_and_never_older_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        room = Room(fps=30.0, seconds=0.03)
        viewer = room.join(**THIN)
        room.run(20)
        late = viewer.latencies[len(viewer.latencies) // 2 :]
        frames = [frame.frame for _, frame in viewer.shown]
        assert frames == sorted(set(frames))
        assert shown_rate(viewer, 8) >= 18
        assert viewer.session.outbox.dropped > 50
        assert percentile(late, 0.95) <= 0.4

    assert_needs(check, monkeypatch, AckWindow, "size", 64)


def test_late_frames_give_way_to_newer_ones_but_never_to_nothing() -> None:
    box: Outbox[str] = Outbox(room=3)
    for number in range(5):
        box.put(number, f"frame {number}")
    assert (len(box), box.dropped) == (3, 2)
    assert box.take(lambda number: number < 4) == "frame 4"
    box.put(5, "frame 5")
    assert box.take(lambda number: True) == "frame 5"
    assert box.take(lambda number: False) is None


# -- events


def test_every_change_gets_its_place_and_later_ones_replace_earlier() -> None:
    room = Room()
    viewer = room.join()
    room.run(2)
    viewer.session.handle(prompt_event(viewer, "a blue ball", 1))
    viewer.session.handle(Event(2, viewer.session.epoch, settings={"steps": 13}))
    room.run(1)
    applied = [r for r in viewer.receipts("applied") if r["id"] == 1]
    assert [r["frame"] % 4 for r in applied] == [1]
    assert [r["reason"] for r in viewer.receipts("refused")] == ["setting steps: 13 is unlucky"]
    assert viewer.session.strip.rows()[-1]["frame"] == applied[0]["frame"]


def test_what_was_said_about_a_past_that_was_left_is_refused() -> None:
    room = Room()
    viewer = room.join()
    room.run(3)
    old = viewer.session.epoch
    viewer.session.handle(Rewind(next(iter(viewer.session.marks)).id))
    room.run(0.5)
    for message in (
        prompt_event(viewer, "a blue ball", 7, old),
        Stroke(8, old, 3, "begin", ((0.0, 0.5, 0.5),)),
        Path(9, old, 3, ((0.0, 0.5, 0.5), (100.0, 0.6, 0.5))),
    ):
        viewer.session.handle(message)
    room.run(1)
    assert [r["id"] for r in viewer.receipts("refused")] == [7, 8, 9]
    assert viewer.session.stream is not None
    assert viewer.session.stream.prompt == "a red ball"


def test_a_change_that_waits_while_the_stream_goes_elsewhere_is_refused_with_notice() -> None:
    room = Room()
    viewer = room.join()
    room.run(3)
    viewer.session.handle(Simple("pause"))
    viewer.session.handle(prompt_event(viewer, "a blue ball", 3))
    viewer.session.handle(Rewind(next(iter(viewer.session.marks)).id))
    room.run(0.5)
    assert "elsewhere" in viewer.receipts("refused")[0]["reason"]


# -- pause, rewind, branches


def test_paused_streams_rest_and_step_frame_by_frame() -> None:
    room = Room()
    viewer = room.join()
    room.run(2)
    viewer.session.handle(Simple("pause"))
    room.run(0.5)
    made = viewer.session._made_end
    room.run(5)
    assert viewer.session._made_end == made
    viewer.session.handle(Step(made))
    room.run(1)
    assert viewer.session._made_end == made + 4
    viewer.session.handle(Simple("resume"))
    room.run(2)
    assert shown_rate(viewer, 1) >= 15


def test_rewind_branches_and_the_branch_that_was_left_can_be_taken_up() -> None:
    room = Room()
    viewer = room.join()
    session = viewer.session
    room.run(6)
    session.handle(prompt_event(viewer, "a blue ball"))
    room.run(3)
    mark = next(mark for mark in session.marks if mark.frame > 30)
    end = session._made_end
    session.handle(Rewind(mark.id))
    room.run(0.2)
    assert viewer.heard[-1]["type"] != "error"
    assert (session.epoch, session.stream.prompt) == (2, "a red ball")  # type: ignore[union-attr]
    room.run(3)
    frames = [f.frame for _, f in viewer.shown if f.epoch == 2]
    assert frames[0] == mark.frame
    assert frames == list(range(frames[0], frames[-1] + 1))
    assert session.recording.frames == session._made_end
    (take,) = session.takes
    assert (take.frame, take.prompt) == (end, "a blue ball")
    session.handle(Take(take.id))
    room.run(2)
    assert session.stream.prompt == "a blue ball"  # type: ignore[union-attr]
    assert session.recording.frames == session._made_end > end
    assert [row["label"] for row in session.strip.rows()] == ["a red ball", "a blue ball"]
    assert len(list(session.takes)) == 1


def test_history_is_bounded() -> None:
    room = Room(seconds=0.01)
    viewer = room.join()
    room.run(60)
    marks = [mark.frame for mark in viewer.session.marks]
    assert len(marks) <= 24
    assert marks == sorted(marks)
    now = viewer.session._made_end
    assert now - marks[-1] <= 24
    assert marks[0] <= 0.3 * now
    gaps = [b - a for a, b in itertools.pairwise(marks)]
    assert sum(gaps[: len(gaps) // 2]) > sum(gaps[len(gaps) // 2 :])


def test_going_back_and_forth_stays_within_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    one = FakeSaved({}).size_bytes()
    budget = 8 * one

    def check() -> None:
        room = Room(seconds=0.01)
        session = room.join(limits=Limits(budget, recording_bytes=2**24)).session

        def within() -> None:
            kept = [mark.snapshot for mark in session.marks]
            for take in session.takes:
                kept += [take.snapshot, *(mark.snapshot for mark in take.marks)]
            # the newest branch is kept in any case
            assert len({id(snapshot) for snapshot in kept}) * one <= budget + one

        room.run(20, within)
        for _ in range(4):
            session.handle(Rewind([*session.marks][1].id))
            room.run(0.05, within)
            session.handle(Take([*session.takes][-1].id))
            room.run(0.05, within)
            room.run(20, within)
        assert [*session.takes]

    assert_needs(check, monkeypatch, Takes, "fit", lambda self, playing: None)


def test_a_moment_that_is_gone_is_said_to_be() -> None:
    room = Room()
    viewer = room.join()
    room.run(2)
    viewer.session.handle(Rewind(99))
    viewer.session.handle(Take(99))
    room.run(0.5)
    assert [m["code"] for m in viewer.heard if m["type"] == "error"] == ["gone", "gone"]


# -- errors of the engine


def test_an_error_is_told_in_plain_words_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room()
    broken, other = room.join(), room.join()
    room.run(2)
    monkeypatch.setattr(broken.session.stream, "step", _raise)
    room.run(2)
    assert broken.states()[-1] == "failed"
    text = [m["text"] for m in broken.heard if m["type"] == "state"][-1]
    assert text == "the engine failed: RuntimeError: out of something"
    assert shown_rate(other, 1) >= 15
    monkeypatch.undo()
    broken.session.handle(Simple("resume"))
    room.run(3)
    assert shown_rate(broken, 1) >= 15


def _raise() -> None:
    raise RuntimeError("out of something\nand a second line")


def test_a_failed_stream_can_be_started_again() -> None:
    room = Room()
    viewer = room.join()
    room.run(2)
    room.engine.fail_next = MemoryError()
    room.run(1)
    assert viewer.states()[-1] == "failed"
    viewer.session.handle(Start("a blue ball", 5))
    room.run(2)
    assert viewer.states()[-1] == "playing"
    assert viewer.shown[-1][1].epoch == 2


def test_messages_before_a_stream_and_after_the_end_are_refused() -> None:
    viewer = Room().join(start=False)
    with pytest.raises(BadMessage, match="no stream"):
        viewer.session.handle(Simple("pause"))
    viewer.session.close()
    with pytest.raises(BadMessage, match="ended"):
        viewer.session.handle(Start("a", 0))


def test_commands_and_changes_that_wait_are_bounded() -> None:
    room = Room()
    viewer = room.join()
    room.run(1)
    viewer.session.handle(Simple("pause"))
    for number in range(100):
        viewer.session.handle(prompt_event(viewer, "a blue ball", number))
    refused = [m for m in viewer.outgoing.take() if m["type"] == "receipt" and m["status"] == "refused"]
    assert len(refused) == 36
    for _ in range(8):
        viewer.session.handle(Rewind(1))
    with pytest.raises(BadMessage, match="too many"):
        viewer.session.handle(Rewind(1))


def test_a_voice_nobody_listens_to_is_bounded_and_keeps_the_newest_figures() -> None:
    outgoing = Outgoing()
    for number in range(10):
        outgoing.say({"type": "stats", "number": number})
    assert outgoing.take() == [{"type": "stats", "number": 9}]
    for number in range(MAX_WAITING + 5):
        outgoing.say({"type": "receipt", "number": number})
    assert outgoing.overflowed
    assert len(outgoing.take()) == MAX_WAITING
