"""What a viewer is told of everything they asked for, from the receipts of the stream."""

import numpy as np
import pytest

from demo.answers import Answers
from demo.engine import Generated
from demo.fake_engine import FakeStream
from demo.messages import BadMessage, Camera, Event, Pins, Rewind, Simple, Start, Stroke
from demo.outgoing import Outgoing
from streamgen.stream.events import Receipt
from tests.demo_viewers import Room, Viewer


def joined(fps: float = 16.0) -> Viewer:
    """A viewer whose stream has played for a second."""
    viewer = Room(fps=fps).join()
    viewer.room.run(1)
    return viewer


def say(viewer: Viewer, number: int, prompt: str) -> None:
    viewer.session.handle(Event(number, viewer.session.epoch, prompt))


def stream_of(viewer: Viewer) -> FakeStream:
    assert isinstance(viewer.session.stream, FakeStream)
    return viewer.session.stream


def told(viewer: Viewer, number: int) -> list[tuple[str, str | None]]:
    """Status and reason (or what is waited for) of everything told about a change."""
    rows = [row for row in viewer.heard if row["type"] == "receipt" and row["id"] == number]
    return [(row["status"], row.get("waiting") or row.get("reason")) for row in rows]


# -- words


def test_unknown_and_cut_words_come_with_the_receipts() -> None:
    viewer = joined()
    say(viewer, 4, "a red xylophone" + " and" * 12)
    viewer.room.run(0.5)
    for status in ("accepted", "applied"):
        (row,) = [row for row in viewer.receipts(status) if row["id"] == 4]
        assert (row["unknown"], row["dropped"]) == (["xylophone"], 3)


def test_the_place_says_what_its_words_come_to() -> None:
    viewer = Room().join(start=False)
    viewer.session.handle(Start("a red xylophone", 0))
    viewer.room.run(2)
    assert [m["unknown"] for m in viewer.heard if m["type"] == "place"] == [["xylophone"]]
    say(viewer, 1, "a blue ball")
    viewer.room.run(2)
    viewer.session.handle(Rewind(next(iter(viewer.session.marks)).id))
    viewer.room.run(1)
    place = [m for m in viewer.heard if m["type"] == "place"][-1]
    assert (place["prompt"], place["unknown"], place["dropped"]) == ("a red xylophone", ["xylophone"], 0)


def test_words_that_are_being_encoded_are_shown_to_wait_and_no_chunk_waits_for_them() -> None:
    viewer = joined()
    viewer.room.engine.slow_words = True
    say(viewer, 2, "a blue xylophone")
    made = viewer.session._made_end
    viewer.room.run(2)
    assert viewer.session._made_end > made + 16
    assert stream_of(viewer).prompt == "a red ball"
    assert told(viewer, 2) == [("accepted", None), ("accepted", "being encoded")]
    viewer.room.engine.finish_encoding()
    viewer.room.run(1)
    assert told(viewer, 2)[2:] == [("applied", None)]
    (row,) = [row for row in viewer.receipts("applied") if row["id"] == 2]
    assert row["unknown"] == ["xylophone"]
    assert viewer.session.strip.rows()[-1]["frame"] == row["frame"] > made


def test_words_that_cannot_be_encoded_are_refused_with_the_reason() -> None:
    viewer = joined()
    viewer.room.engine.slow_words = True
    say(viewer, 2, "a blue ball")
    viewer.room.run(1)
    viewer.room.engine.finish_encoding(MemoryError("no room"))
    viewer.room.run(1)
    assert told(viewer, 2)[-1] == ("refused", "prompt: cannot be encoded (no room)")
    assert stream_of(viewer).prompt == "a red ball"


def test_words_that_newer_ones_overtake_are_told_to_be_replaced() -> None:
    viewer = joined()
    viewer.room.engine.slow_words = True
    say(viewer, 2, "a blue ball")
    viewer.room.run(1)
    viewer.room.engine.slow_words = False
    say(viewer, 3, "a green ball")
    viewer.room.run(1)
    replaced = {row["id"]: row["superseded"] for row in viewer.receipts("applied")}
    assert replaced == {2: ["prompt"], 3: []}
    assert [(row["label"], row["superseded"]) for row in viewer.session.strip.rows()[-2:]] == [
        ("a blue ball", ["prompt"]),
        ("a green ball", []),
    ]


def test_changes_that_are_taken_back_are_told() -> None:
    viewer = joined()
    viewer.room.engine.slow_words = True
    say(viewer, 2, "a blue ball")
    viewer.room.run(0.5)
    receipt = viewer.session.answers._asked[0].receipt
    assert receipt is not None
    stream_of(viewer)._queue.withdraw(receipt)
    viewer.room.run(1)
    assert told(viewer, 2)[-1][0] == "withdrawn"
    assert viewer.session.strip.rows()[-1]["label"] == "a red ball"


# -- the past


def test_the_cache_is_a_change_of_its_own() -> None:
    viewer = joined()
    viewer.session.handle(Event(5, viewer.session.epoch, cache="clear"))
    viewer.room.run(1)
    (row,) = viewer.receipts("applied")
    assert (row["id"], row["kind"], row["label"]) == (5, "cache", "clear")
    assert stream_of(viewer).timeline()["events"][-1]["cache"] == "clear"


@pytest.mark.parametrize("real", [True, False])
def test_a_receipt_of_a_future_that_was_undone_is_not_told_as_applied(real: bool) -> None:
    outgoing = Outgoing()
    answers = Answers(outgoing, 16.0)
    receipt = Receipt(7)
    answers.submitted(1, "prompt", "a blue ball", receipt)
    receipt.chunk, receipt.frame, receipt.status = 2, 5, "applied"
    made = Generated(np.zeros((4, 8, 8, 3), np.uint8), 5, 2, ())
    answers.settle(made, 2, lambda receipt: real)
    assert [row["status"] for row in outgoing.take()] == ["accepted", "applied" if real else "refused"]
    assert len(answers.strip.rows()) == real


def test_a_rewind_refuses_what_waits_and_it_is_not_told_again() -> None:
    viewer = joined()
    viewer.room.run(2)
    viewer.room.engine.slow_words = True
    say(viewer, 2, "a blue ball")
    viewer.room.run(0.5)
    viewer.session.handle(Rewind(next(iter(viewer.session.marks)).id))
    viewer.room.run(0.5)
    viewer.room.engine.finish_encoding()
    viewer.room.run(1)
    assert told(viewer, 2)[-1] == ("refused", "the stream went elsewhere before this took effect")
    assert stream_of(viewer).prompt == "a red ball"


# -- hands


def test_hands_are_answered_with_the_chunk_that_has_their_tracks() -> None:
    """What comes while a chunk is made is not in that one, whatever else is."""
    viewer = joined()
    session, stream, engine = viewer.session, stream_of(viewer), viewer.room.engine
    wait = engine.wait

    def meanwhile(seconds: float) -> None:
        engine.wait = wait
        session.handle(Stroke(3, session.epoch, 3, "begin", ((0.0, 0.5, 0.5),)))
        wait(seconds)

    session.handle(Pins(((0.2, 0.2),)))
    engine.wait = meanwhile
    viewer.room.run(1)
    frames = {row["kind"]: row["frame"] for row in viewer.receipts("applied")}
    begun: dict[str, int] = {}
    for frame, changes in stream.motions:
        begun |= {name: frame for name in changes if name not in begun}
    assert frames == {"pins": begun["pins"], "drag": begun["drag 1"]}
    assert frames["drag"] == frames["pins"] + 4


def test_letting_go_of_nothing_is_answered_too() -> None:
    viewer = joined()
    viewer.session.handle(Simple("clear"))
    viewer.room.run(1)
    (row,) = viewer.receipts("applied")
    assert (row["kind"], row["frame"] % 4) == ("release", 1)
    # of what a timeline brought as well, so the stream is told whatever hands hold
    assert stream_of(viewer).motions == [(row["frame"], {})]


def test_a_camera_that_is_too_fast_for_the_stream_is_a_bad_message() -> None:
    viewer = joined(fps=4.0)
    with pytest.raises(BadMessage, match="too fast"):
        viewer.session.handle(Camera((1.0, 0.0), 1.0, 0.0))
    viewer.room.run(2)
    assert viewer.states()[-1] == "playing"
