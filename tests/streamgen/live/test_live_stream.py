"""A stream that listens: what it makes of its input, exact through replay, snapshots, failures and twins."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import streamgen.stream.step
from models.context import ChunkPlan
from streamgen import InputError, Pipeline, Session, StreamEvent, Timeline, load_pipeline
from streamgen.engine.decoder import StreamingDecoder, encode_frames
from streamgen.engine.runner import DenoiseTask, PlainRunner
from streamgen.engine.source import Source
from streamgen.live.hearing import Heard, hear
from streamgen.live.pushed import PushedInput
from streamgen.live.taken import Taken
from streamgen.wan.options import WanOptions
from tests.live_input import clip, latents_of, listening
from tests.streamgen.stream.test_interruptions import Fault, Interrupter, failing_once, traced
from tests.streams import BLUE, RED
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs
from tests.tiny_wan import SMALL

PLANS = (ChunkPlan(1, 1, 1, 3), ChunkPlan(3, 2, 2, 6))


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> list[Pipeline]:
    return [
        load_pipeline(write_checkpoint(tmp_path_factory.mktemp(f"plan{i}"), plan, steps=2))
        for i, plan in enumerate(PLANS)
    ]


@pytest.fixture(scope="module")
def pipeline(pipelines: list[Pipeline]) -> Pipeline:
    return pipelines[0]


@pytest.fixture(scope="module", params=["vae", "tiny"])
def wan(request: pytest.FixtureRequest) -> Pipeline:
    overrides = (*SMALL, f"decoder={request.param}", "sampling.steps=2")
    return load_pipeline("wan-1.3b-longlive", "cpu", wan=WanOptions(random_weights=True, overrides=overrides))


def heard_tasks(monkeypatch: pytest.MonkeyPatch) -> list[DenoiseTask]:
    """All that is denoised from here on."""
    denoise, seen = PlainRunner.denoise, []

    def noted(self: PlainRunner, task: DenoiseTask) -> Tensor:
        seen.append(task)
        return denoise(self, task)

    monkeypatch.setattr(PlainRunner, "denoise", noted)
    return seen


# -- what enters


@pytest.mark.parametrize("plan", range(len(PLANS)))
def test_frames_enter_as_the_whole_clip_is_encoded(
    plan: int, pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunk by chunk, with the numbers of one encoding of the clip."""
    pipeline = pipelines[plan]
    frames = clip(1 + 4 * (pipeline.plan.start(4) - 1))
    tasks = heard_tasks(monkeypatch)
    latents_of(listening(pipeline, frames), 4)
    heard = torch.cat([task.source.latents for task in tasks if task.source is not None], 1)
    assert (heard - encode_frames(pipeline.tokenizer, frames)).abs().max() < 1e-4


def test_an_input_that_begins_in_mid_stream_enters_behind_its_first_frame_once_more(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = clip(12)
    session = listening(pipeline, None)
    latents_of(session, 2)
    tasks = heard_tasks(monkeypatch)
    session.listen(frames)
    latents_of(session, 3)
    heard = torch.cat([task.source.latents for task in tasks if task.source is not None], 1)
    whole = encode_frames(pipeline.tokenizer, torch.cat([frames[:1], frames]))
    assert (heard - whole[:, 1:]).abs().max() < 1e-4


def test_wan_models_hear_through_their_own_encoder(wan: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The VAE as it encodes a clip; the small one with frame 0 as the last of its four, where it is shown."""
    plan, geometry = wan.plan, wan.geometry
    count = plan.start(3)
    frames = clip(1 + 4 * (count - 1), size=(geometry.height, geometry.width))
    tasks = heard_tasks(monkeypatch)
    session = wan.open(RED, settings={"strength": 0.95})
    session.listen(frames)
    latents_of(session, 3)
    heard = torch.cat([task.source.latents for task in tasks if task.source is not None], 1)
    shown = frames
    if type(wan.tokenizer).__name__ == "TinyDecoder":
        shown = torch.cat([frames[:1].expand(3, -1, -1, -1), frames])
    assert (heard - encode_frames(wan.tokenizer, shown)[:, :count]).abs().max() < 1e-4
    again = wan.replay(session.timeline)
    again.listen(frames)
    assert torch.equal(latents_of(again, 3), session_latents(session, 3))


def session_latents(session: Session, chunks: int) -> Tensor:
    """Of the last chunks."""
    return torch.cat([chunk.latents for chunk in session.state.latents.recent[-chunks:]], 1)


def test_denoising_begins_at_the_input_noised_to_the_nearest_level_under_the_strength(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, frames = heard_tasks(monkeypatch), clip(40)
    session = listening(pipeline, frames, settings={"strength": 0.65})
    first = next(session)
    session.submit(StreamEvent(settings={"strength": 0.9}))
    second = next(session)
    assert [task.sampling.sigmas for task in tasks] == [(0.6, 0.0), (6 / 7, 0.6, 0.0)]
    assert (first.steps, second.steps) == (1, 2)
    source = tasks[1].source
    assert source is not None
    draw, _ = PlainRunner(pipeline.dit).draws(tasks[1])
    start = tasks[1].begun(draw)
    assert torch.allclose(start, source.latents / 7 + 6 / 7 * draw, atol=1e-6)


def test_at_strength_one_the_input_is_not_seen(pipeline: Pipeline) -> None:
    alone = latents_of(listening(pipeline, None), 4)
    assert torch.equal(latents_of(listening(pipeline, clip(30), settings={"strength": 1.0}), 4), alone)
    assert not torch.equal(latents_of(listening(pipeline, clip(30)), 4), alone)


def test_what_lies_outside_the_mask_stays_the_input(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In latents, to the last bit; with the sampler that makes noise anew, too."""

    def check() -> None:
        for sampler in ("euler", "renoise"):
            session = listening(
                pipeline, clip(40), settings={"sampler": sampler, "steps": 2, "strength": 1.0}
            )
            latents_of(session, 2)
            mask = torch.zeros(32, 32)
            mask[:, 16:] = 1
            receipt = session.submit(StreamEvent(mask=mask))
            with pytest.MonkeyPatch.context() as patched:
                tasks = heard_tasks(patched)
                made = next(session).latents
            assert (receipt.status, receipt.chunk) == ("applied", 2)
            source = tasks[0].source
            assert source is not None
            assert torch.equal(made[..., :2], source.latents[..., :2])
            assert not torch.equal(made[..., 2:], source.latents[..., 2:])
            # all of it again
            session.submit(StreamEvent(mask=torch.ones(1, 1)))
            assert next(session) is not None
            assert session.controls.mask is None

    assert_needs(check, monkeypatch, Source, "kept", lambda self, clean: clean)


def test_words_masks_and_strength_take_effect_together(pipeline: Pipeline) -> None:
    session = listening(pipeline, clip(60))
    latents_of(session, 3)
    event = StreamEvent(prompt=BLUE, mask=torch.eye(4), settings={"strength": 0.6})
    receipt = session.submit(event)
    chunk = next(session)
    assert (receipt.status, receipt.chunk, receipt.frame) == ("applied", 3, 9)
    assert chunk.recached
    assert chunk.steps == 1
    assert session.controls.mask is not None
    assert torch.equal(session.controls.mask, torch.eye(4))


def test_receipts_name_the_frames_of_each_chunk(pipeline: Pipeline) -> None:
    session = listening(pipeline, clip(11))
    receipts = [next(session).input for _ in range(5)]
    assert [None if r is None else r.numbers for r in receipts] == [
        (0,),
        (1, 2, 3, 4),
        (5, 6, 7, 8),
        (9, 10, 10, 10),
        (),
    ]
    assert receipts[3] is not None
    assert (receipts[3].held, receipts[3].over) == (2, "given frames has ended")
    assert next(session).input is None
    assert session.input_over
    # the log tells what nobody would expect, and no more
    told = [(e.chunk, e.event.input) for e in session.timeline.events if e.event.input is not None]
    assert told == [(0, (0,)), (3, (9, 10, 10, 10)), (4, ())]


# -- again


def steered(session: Session, chunks: int = 8) -> Tensor:
    """A stream with changes of all kinds."""
    changes = {
        2: StreamEvent(prompt=BLUE),
        4: StreamEvent(settings={"strength": 0.6}, mask=torch.eye(4)),
        6: StreamEvent(cache="clear"),
    }
    parts = []
    for _ in range(chunks):
        event = changes.get(session.state.latents.chunk)
        if event is not None:
            session.submit(event)
        parts.append(next(session).latents)
    return torch.cat(parts, 1)


@pytest.mark.parametrize("plan", range(len(PLANS)))
def test_a_replay_with_the_same_input_is_exact(plan: int, pipelines: list[Pipeline]) -> None:
    pipeline = pipelines[plan]
    for length in (200, 22):
        frames = clip(length)
        session = listening(pipeline, frames)
        expected = steered(session)
        timeline = Timeline.from_json(json.loads(json.dumps(session.timeline.to_json())))
        again = pipeline.replay(timeline)
        again.listen(frames)
        assert torch.equal(latents_of(again, 8), expected)
        assert again.timeline.to_json() == session.timeline.to_json()
        assert again.state.heard is not None
        assert session.state.heard is not None
        assert again.state.heard.to_json() == session.state.heard.to_json()
        other = pipeline.replay(timeline)
        other.listen(clip(length, seed=1))
        assert not torch.equal(latents_of(other, 8), expected)
        assert other.state.heard is not None
        assert other.state.heard.digest != again.state.heard.digest


def test_a_replay_without_its_input_is_refused_in_one_line(pipeline: Pipeline) -> None:
    session = listening(pipeline, clip(40))
    latents_of(session, 3)
    again = pipeline.replay(session.timeline)
    with pytest.raises(InputError, match="takes frame 0 of its live input next"):
        next(again)
    short = pipeline.replay(fed_late(pipeline).timeline)
    short.listen(clip(3))
    latents_of(short, 2)
    with pytest.raises(InputError, match="takes 4 frames up to number 11, found 0 of them"):
        next(short)


def fed_late(pipeline: Pipeline) -> Session:
    """A stream whose camera comes on at chunk 2, loses frames, stalls and ends."""
    session = listening(pipeline, None)
    session.listen(capacity=4, patience=0.0)
    frames = clip(60)
    latents_of(session, 2)
    session.feed(frames[:12])
    latents_of(session, 3)
    session.feed(frames[12:18])
    latents_of(session, 2)
    session.end_input()
    latents_of(session, 2)
    return session


def test_what_was_fed_replays_by_number(pipeline: Pipeline) -> None:
    """A camera comes on in mid-stream, frames are dropped and held, and it ends: the record names them."""
    session = fed_late(pipeline)
    told = [(e.chunk, e.event.input) for e in session.timeline.events if e.event.input is not None]
    assert told == [
        (2, (8, 9, 10, 11)),
        (3, (11,) * 4),
        (4, (11,) * 4),
        (5, (14, 15, 16, 17)),
        (6, (17,) * 4),
        (7, ()),
    ]
    again = pipeline.replay(session.timeline)
    again.listen(clip(60))
    assert torch.equal(latents_of(again, 9)[:, -4:], session_latents(session, 4))
    assert again.timeline.to_json() == session.timeline.to_json()


def test_the_record_has_to_name_what_was_taken(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def untold(state: Any, decision: Any, order: Any, taken: Any) -> Any:
        return streamgen.stream.step.replace(decision, order=order, taken_input=taken)

    def check() -> None:
        session = fed_late(pipeline)
        again = pipeline.replay(session.timeline)
        again.listen(clip(60))
        assert torch.equal(latents_of(again, 9)[:, -4:], session_latents(session, 4))

    assert_needs(check, monkeypatch, streamgen.stream.session, "hearing", untold)


def test_a_snapshot_in_mid_input_goes_on_exactly(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fork, save and resume, restore: with the same frames behind, the same stream."""

    def check() -> None:
        frames = clip(80)
        session = listening(pipeline, frames)
        session.submit(StreamEvent(mask=torch.eye(4)), at_frame=5)
        latents_of(session, 3)
        snapshot, fork = session.snapshot(), session.fork()
        session.save(tmp_path / "stream")
        expected = latents_of(session, 5)
        assert torch.equal(latents_of(fork, 5), expected)
        resumed = pipeline.resume(tmp_path / "stream")
        resumed.listen(frames)
        assert torch.equal(latents_of(resumed, 5), expected)
        session.restore(snapshot)
        assert torch.equal(latents_of(session, 5), expected)
        assert session.timeline.to_json() == fork.timeline.to_json()

    forgetful = lambda codec, tensors, values: heard_anew(codec, tensors)  # noqa: E731
    assert_needs(check, monkeypatch, streamgen.stream.snapshot, "heard_of", forgetful)


def heard_anew(codec: Any, tensors: Any) -> Heard:
    """An encoder that has forgotten what it saw."""
    taken = Taken(tensors["last"].cpu()[None], (8,))
    return hear(codec, None, taken, True)[0]


def test_waiting_frames_are_part_of_a_snapshot(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        session = listening(pipeline, None)
        session.feed(clip(8))
        latents_of(session, 1)
        assert len(session.snapshot().tensors.get("input.waiting", ())) == 7
        session.save(tmp_path / "stream")
        fork, resumed = session.fork(), pipeline.resume(tmp_path / "stream")
        for each in (session, fork, resumed):
            each.feed(clip(1, seed=3))
        expected = latents_of(session, 2)
        assert torch.equal(latents_of(fork, 2), expected)
        assert torch.equal(latents_of(resumed, 2), expected)

    nothing = lambda self: (torch.empty(0, 32, 32, 3), ())  # noqa: E731
    assert_needs(check, monkeypatch, PushedInput, "waiting", nothing)


def test_a_resumed_stream_without_its_input_says_so_and_may_end_it(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    session = listening(pipeline, clip(40))
    latents_of(session, 3)
    session.save(tmp_path / "stream")
    resumed = pipeline.resume(tmp_path / "stream")
    with pytest.raises(InputError, match="takes frame 9 of its live input next"):
        next(resumed)
    resumed.end_input()
    chunk = next(resumed)
    assert chunk.input is not None
    assert chunk.input.over == "it was ended"


# -- failures and neighbours


def interrupted_everywhere(make: Callable[[], Session], stride: int, only: str | None = None) -> int:
    """Interrupt a chunk at its lines, those of the input's room counted; returns how many there were."""

    def run(tracer: Interrupter | None) -> tuple[Tensor, Any]:
        session = make()
        parts: list[Tensor] = []
        if tracer is not None:
            traced(lambda: parts.append(next(session).latents), tracer)
        while len(parts) < 3:
            parts.append(next(session).latents)
        heard = session.state.heard
        assert heard is not None
        return torch.cat(parts, 1), (session.timeline.to_json(), heard.to_json())

    expected, seen = run(None), Interrupter()
    run(seen)
    places = sorted(p for p in seen.seen if only is None or only in p[0])
    for place in places[::stride]:
        found = run(Interrupter(place))
        assert torch.equal(found[0], expected[0]), place
        assert found[1] == expected[1], place
    return len(places)


def read_session(pipeline: Pipeline) -> Session:
    session = listening(pipeline, clip(40))
    latents_of(session, 2)
    session.submit(StreamEvent(prompt=BLUE, mask=torch.eye(4)))
    return session


def fed_session(pipeline: Pipeline) -> Session:
    session = listening(pipeline, None)
    session.listen(patience=0.0)
    session.feed(clip(1))
    latents_of(session, 1)
    session.feed(clip(11, seed=2))
    return session


@pytest.mark.parametrize("make", [read_session, fed_session])
def test_a_chunk_with_input_interrupted_at_any_line(
    make: Callable[[Pipeline], Session], pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.streamgen.stream import test_interruptions

    live = str(Path(streamgen.__file__).parent / "live")
    monkeypatch.setattr(test_interruptions, "OURS", (*test_interruptions.OURS, live))
    assert interrupted_everywhere(lambda: make(pipeline), 60) > 200
    assert interrupted_everywhere(lambda: make(pipeline), 9, live) > 40


@pytest.mark.slow
@pytest.mark.parametrize("make", [read_session, fed_session])
def test_a_chunk_with_input_interrupted_at_every_line(
    make: Callable[[Pipeline], Session], pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.streamgen.stream import test_interruptions

    live = str(Path(streamgen.__file__).parent / "live")
    monkeypatch.setattr(test_interruptions, "OURS", (*test_interruptions.OURS, live))
    assert interrupted_everywhere(lambda: make(pipeline), 1) > 200


def test_a_chunk_that_fails_takes_the_same_frames_again(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although newer ones came meanwhile."""

    def check() -> None:
        session = fed_session(pipeline)
        expected = latents_of(session.fork(), 1)
        with pytest.MonkeyPatch.context() as patched:
            failing_once(StreamingDecoder, "decode", patched, 0)
            with pytest.raises(Fault):
                next(session)
        session.feed(clip(30, seed=9))
        chunk = next(session)
        assert chunk.input is not None
        assert chunk.input.numbers == (4, 5, 6, 7)
        assert torch.equal(chunk.latents, expected)

    take = PushedInput.take

    def forgetful(self: PushedInput, order: Any) -> Any:
        """As if nothing was promised."""
        self._lane = streamgen.live.pushed.replace(self._lane, promise=None, kept=0)
        taken = take(self, order)
        self._lane = streamgen.live.pushed.replace(self._lane, kept=0)
        return taken

    import streamgen.live.pushed

    assert_needs(check, monkeypatch, PushedInput, "take", forgetful)


def test_two_streams_that_listen_do_not_disturb_each_other(pipeline: Pipeline) -> None:
    one, two = clip(40, seed=1), clip(40, seed=2)
    expected = [latents_of(listening(pipeline, frames, seed=3), 5) for frames in (one, two)]
    sessions = [listening(pipeline, frames, seed=3) for frames in (one, two)]
    found: list[list[Tensor]] = [[], []]
    for _ in range(5):
        for parts, session in zip(found, sessions, strict=True):
            parts.append(next(session).latents)
    assert all(torch.equal(torch.cat(f, 1), e) for f, e in zip(found, expected, strict=True))
