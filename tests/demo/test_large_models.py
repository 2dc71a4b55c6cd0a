"""What the demo's sessions do for models that take long to load, to encode words, and much memory."""

from pathlib import Path
from typing import Any

import pytest

from demo.commands import _Command
from demo.engine import Loading, PipelineEngine
from demo.engine_of import late_engine
from demo.fake_engine import SNAPSHOT_BYTES, FakeEngine
from demo.history import Marks
from demo.live import Limits, LiveSession
from demo.loading import LateEngine
from demo.lobby import Lobby, Rules
from demo.messages import Simple, Start, parse
from demo.outgoing import Outgoing
from streamgen import Pipeline, load_pipeline, rehearsal
from streamgen.cli.options import WAN_OPTIONS
from streamgen.errors import CheckpointError
from streamgen.families import describe
from streamgen.wan.options import WanOptions
from tests.demo_viewers import Clock, Room
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs
from tests.tiny_wan import SMALL
from tests.waiting import PATIENCE

MEMORY = CheckpointError("memory: a stream needs 9.8 GiB, 4.1 are free")


def said(outgoing: Outgoing, kind: str) -> list[dict[str, Any]]:
    return [message for message in outgoing.take() if message["type"] == kind]


def test_viewers_wait_for_the_model_and_are_told_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        clock = Clock()
        engine = FakeEngine(wait=clock.sleep)
        engine.loading = Loading("placing weights", 0.25)
        told = lambda: None if engine.loading is None else {"type": "loading", **vars(engine.loading)}  # noqa: E731
        begin = lambda seat: LiveSession(engine, seat.outgoing, clock)  # noqa: E731
        lobby = Lobby(Rules(max_sessions=1), begin, LiveSession.close, clock, told)
        seats = [lobby.connect(lobby.ticket()) for _ in range(2)]
        assert all(seat is not None and seat.session is None for seat in seats)
        first, second = (seat.outgoing for seat in seats if seat is not None)
        assert said(first, "loading") == [{"type": "loading", "text": "placing weights", "share": 0.25}]
        engine.loading = None
        lobby.tick()
        assert [row["state"] for row in said(first, "state")] == ["ready"]
        assert [row["position"] for row in said(second, "queue")] == [1]

    assert_needs(check, monkeypatch, Lobby, "tick", lambda self: None)


def test_no_stream_waits_for_the_words_of_another_viewer(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        room = Room()
        watching = room.join()
        room.run(1)
        room.engine.slow_words = True
        other = room.join()
        made = watching.session._made_end
        room.run(2)
        assert watching.session._made_end > made + 16
        (state,) = [m for m in other.heard if m["type"] == "state" and m["state"] == "opening"]
        assert state["text"] == "encoding the words"
        assert other.session.stream is None
        room.engine.finish_encoding()
        room.run(1)
        assert other.states()[-1] == "playing"

    assert_needs(check, monkeypatch, _Command, "ready", property(lambda self: True))


def test_a_start_whose_words_cannot_be_encoded_is_refused_and_another_one_works() -> None:
    room = Room()
    room.engine.slow_words = True
    viewer = room.join()
    room.engine.refuse_open = CheckpointError("text encoder x: cannot be loaded")
    room.engine.finish_encoding(MemoryError("no room"))
    room.run(0.5)
    assert viewer.states()[-1] == "ready"
    assert "cannot be loaded" in [m["text"] for m in viewer.heard if m["type"] == "state"][-1]
    room.engine.refuse_open, room.engine.slow_words = None, False
    viewer.session.handle(Start("a red ball", 0))
    room.run(0.5)
    assert viewer.states()[-1] == "playing"


def test_a_stream_that_does_not_fit_is_refused_and_what_plays_goes_on() -> None:
    room = Room()
    viewer = room.join()
    room.run(1)
    room.engine.refuse_open = MEMORY
    viewer.session.handle(Start("a blue ball", 1))
    room.run(1)
    assert viewer.states()[-1] == "failed"
    assert "4.1 are free" in [m["text"] for m in viewer.heard if m["type"] == "state"][-1]
    made = viewer.session._made_end
    viewer.session.handle(Simple("resume"))
    room.run(1)
    assert viewer.session._made_end > made
    assert viewer.session.stream is not None
    assert viewer.session.stream.prompt == "a red ball"


def test_moments_that_are_too_large_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        room = Room()
        limits = Limits(SNAPSHOT_BYTES - 1, recording_bytes=2**24)
        viewer = room.join(limits=limits)
        room.run(4)
        assert not [*viewer.session.marks]
        (place,) = [m for m in viewer.heard if m["type"] == "place"]
        assert place["no_rewind"] == "Going back is off: a moment takes 1 MiB, 1 are allowed (--rewind-mb)."

    assert_needs(check, monkeypatch, Marks, "affords", lambda self, size: True)
    assert Marks(16, SNAPSHOT_BYTES).why_none(SNAPSHOT_BYTES) == ""


def test_a_late_engine_knows_its_model_before_and_after() -> None:
    wan = WanOptions(random_weights=True, overrides=SMALL)
    description = describe("wan-1.3b-longlive", wan)
    assert (description.words, description.tracks) == (None, False)
    pipeline = load_pipeline("wan-1.3b-longlive", "cpu", wan=wan)
    engine = PipelineEngine(pipeline)
    before = LateEngine(engine.info, lambda tell: engine)
    before.start()
    before.wait(PATIENCE)
    assert before.loading is None
    assert (before.info.width, before.info.height, before.info.tracks) == (48, 32, False)
    assert before.info.words == ()
    assert "knows no tracks" in before.info.card
    stream = before.open("a red boat", 1, {}, None)
    for _ in range(5):
        stream.step()
    assert stream.snapshot_bytes == pytest.approx(stream.snapshot().size_bytes(), rel=0.1)
    assert before.encode("a blue boat", {}) == ()


def test_what_a_gpu_plans_by_shape_is_planned_before_anybody_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = dict.fromkeys((*WAN_OPTIONS, "threads", "quantize", "deadline"))
    given = told | {"model": str(write_checkpoint(tmp_path / "model")), "device": "cpu", "runner": "plain"}
    given |= {"loras": (), "live_loras": (), "model_set": ()}
    seen: list[str] = []

    def rehearse(pipeline: Pipeline, tell: Any) -> None:
        tell("rehearsing", 0.5)
        seen.append(pipeline.choose().runner.name)

    monkeypatch.setattr(rehearsal, "rehearse", rehearse)

    def check() -> None:
        seen.clear()
        engine = late_engine(given)
        engine.start()
        engine.wait(60)
        assert engine.failure is None
        assert seen == ["plain"]

    with monkeypatch.context() as patched:
        patched.setattr(rehearsal, "plans_by_shape", lambda device: device.type == "cpu")
        check()
    with pytest.raises(AssertionError):
        # nothing is planned so here
        check()


def test_a_model_that_cannot_be_loaded_says_why_and_opens_nothing() -> None:
    def load(tell: Any) -> Any:
        tell("placing weights", 0.5)
        raise MEMORY

    engine = LateEngine(FakeEngine().info, load)
    engine.start()
    engine.wait(PATIENCE)
    assert engine.failure is MEMORY
    assert engine.loading == Loading("placing weights", 0.5)


def test_words_as_settings_reach_the_stream() -> None:
    room = Room()
    viewer = room.join()
    room.run(0.5)
    message = parse(
        '{"type": "event", "id": 4, "epoch": 1, "settings": {"negative_prompt": "rain", "lora": "style:0.5"}}'
    )
    viewer.session.handle(message)
    room.run(1)
    (row,) = viewer.receipts("applied")
    assert (row["kind"], row["label"]) == ("settings", "negative_prompt rain, lora style:0.5")
    assert viewer.session.stream is not None
    assert viewer.session.stream.settings["lora"] == "style:0.5"
