"""When words are encoded: ahead, inside `submit`, or beside the stream; and when they cannot be."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.text_encoder import Words
from streamgen import InputError, Pipeline, StreamEvent, load_pipeline
from streamgen.stream.model import ModelParts
from streamgen.stream.queue import EventQueue
from streamgen.tiny.text import WordPrompts
from tests.streams import BLUE, RED, take
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs
from tests.waiting import PATIENCE, wait_until


class SlowWords(WordPrompts):
    """An encoder that is let go on by the test: `gates` by prompt, none for those that need no waiting."""

    quick = False

    def __init__(self, inner: WordPrompts) -> None:
        super().__init__(inner.encoder, inner.vocabulary)
        self.gates: dict[str, threading.Event] = {}
        self.failing: set[str] = set()
        self.encoded: list[str] = []

    def embed(self, prompt: str) -> Tensor:
        if prompt in self.gates:
            assert self.gates[prompt].wait(PATIENCE), "the test never let go"
        if prompt in self.failing:
            raise RuntimeError("the encoder\nfell over")
        self.encoded.append(prompt)
        return super().embed(prompt)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> ModelParts:
    return load_pipeline(write_checkpoint(tmp_path_factory.mktemp("model"), steps=1)).parts


@pytest.fixture
def slow(parts: ModelParts) -> tuple[Pipeline, SlowWords]:
    assert isinstance(parts.prompts, WordPrompts)
    prompts = SlowWords(parts.prompts)
    return Pipeline(ModelParts(parts.name, parts.config, parts.networks, prompts, parts.digest)), prompts


def test_a_quick_encoder_runs_inside_submit(parts: ModelParts) -> None:
    session = Pipeline(parts).open(RED)
    next(session)
    receipt = session.submit(StreamEvent(prompt="a blue zebra " + "star " * 9))
    assert (receipt.unknown, receipt.dropped) == (("zebra",), 6)
    chunk = next(session)
    assert (receipt.status, receipt.chunk, receipt.unknown) == ("applied", chunk.index, ("zebra",))


def test_no_chunk_waits_for_a_live_prompt(slow: tuple[Pipeline, SlowWords]) -> None:
    pipeline, prompts = slow
    session = pipeline.open(RED)
    prompts.gates[BLUE] = threading.Event()
    receipt = session.submit(StreamEvent(prompt=BLUE))
    for _ in range(4):
        assert next(session).receipts == ()
    assert (receipt.status, session.controls.prompt) == ("accepted", RED)
    prompts.gates[BLUE].set()
    wait_until(lambda: session._queue.items[0].ready)
    chunk = next(session)
    assert (receipt.status, receipt.chunk, session.controls.prompt) == ("applied", chunk.index, BLUE)
    assert torch.equal(take(pipeline.replay(session.timeline), 7)[-8:], take(session, 2))


def test_a_scheduled_prompt_is_encoded_ahead_and_its_chunk_waits(
    slow: tuple[Pipeline, SlowWords], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, prompts = slow
    plain = take(steered(pipeline), 4)

    def check() -> None:
        pipeline._texts.clear()
        prompts.encoded.clear()
        session = steered(pipeline)
        wait_until(lambda: BLUE in prompts.encoded)
        assert session.next_frame == 0, "encoded before any chunk was made"
        pipeline._texts.clear()
        gate = prompts.gates[BLUE] = threading.Event()
        late = steered(pipeline)
        parts = [next(late).frames for _ in range(2)]
        threading.Timer(0.2, gate.set).start()
        parts += [next(late).frames for _ in range(2)]
        del prompts.gates[BLUE]
        assert torch.equal(torch.cat(parts), plain)

    passing = lambda self, frame: [item for item in self._items if item.ready and item.at_frame <= frame]  # noqa: E731
    assert_needs(check, monkeypatch, EventQueue, "due", passing)


def steered(pipeline: Pipeline) -> Any:
    session = pipeline.open(RED, seed=2)
    session.submit(StreamEvent(prompt=BLUE), at_frame=5)
    return session


def test_a_failing_encoder_refuses_its_event_and_the_stream_goes_on(slow: tuple[Pipeline, SlowWords]) -> None:
    pipeline, prompts = slow
    prompts.failing.add(BLUE)
    session, plain = pipeline.open(RED, seed=2), pipeline.open(RED, seed=2)
    live = session.submit(StreamEvent(prompt=BLUE, settings={"steps": 2}))
    scheduled = session.submit(StreamEvent(prompt=BLUE), at_frame=9)
    wait_until(lambda: all(item.ready for item in session._queue.items))
    assert torch.equal(take(session, 5), take(plain, 5))
    for receipt in (live, scheduled):
        assert receipt.status == "refused"
        assert receipt.reason == "prompt: cannot be encoded (the encoder fell over)"
    assert (session.pending, session.controls.settings.steps) == ((), 1)


def test_a_newer_prompt_overtakes_one_that_is_being_encoded(slow: tuple[Pipeline, SlowWords]) -> None:
    """The older one's settings still take effect, its words are superseded; it does not come back later."""
    pipeline, prompts = slow
    session = pipeline.open(RED)
    pipeline.text("a blue circle")
    gate = prompts.gates[BLUE] = threading.Event()
    older = session.submit(StreamEvent(prompt=BLUE, settings={"text_guidance": 2.0}))
    newer = session.submit(StreamEvent(prompt="a blue circle"))
    chunk = next(session)
    assert chunk.receipts == (older, newer)
    assert (older.status, older.superseded, newer.status) == ("applied", ("prompt",), "applied")
    gate.set()
    take(session, 3)
    assert (session.controls.prompt, session.controls.settings.text_guidance) == ("a blue circle", 2.0)


def test_an_event_may_be_withdrawn_while_it_waits(slow: tuple[Pipeline, SlowWords]) -> None:
    pipeline, prompts = slow
    session = pipeline.open(RED)
    prompts.gates[BLUE] = threading.Event()
    encoding = session.submit(StreamEvent(prompt=BLUE))
    scheduled = session.submit(StreamEvent(settings={"steps": 2}), at_frame=40)
    for receipt in (encoding, scheduled):
        session.withdraw(receipt)
        assert receipt.status == "withdrawn"
        with pytest.raises(
            InputError, match=rf"expected an event that waits, found receipt {receipt.number} with"
        ):
            session.withdraw(receipt)
    prompts.gates[BLUE].set()
    take(session, 12)
    assert (session.controls.prompt, session.controls.settings.steps) == (RED, 1)
    applied = session.submit(StreamEvent(settings={"steps": 2}))
    next(session)
    with pytest.raises(InputError, match="found receipt 2 applied"):
        session.withdraw(applied)
    other = pipeline.open(RED)
    with pytest.raises(InputError, match="is not one of this stream"):
        session.withdraw(other.submit(StreamEvent(settings={"steps": 1})))


def test_first_prompts_that_come_at_once_are_encoded_one_after_the_other(parts: ModelParts) -> None:
    """An encoder that is loaded by its first prompt is not loaded twice."""
    at_once, most = [0], [0]

    class Counting(SlowWords):
        def embed(self, prompt: str) -> Tensor:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
            time.sleep(0.05)
            at_once[0] -= 1
            return super().embed(prompt)

    assert isinstance(parts.prompts, WordPrompts)
    prompts = Counting(parts.prompts)
    pipeline = Pipeline(ModelParts(parts.name, parts.config, parts.networks, prompts, parts.digest))
    words = [RED, BLUE, RED, "a star"]
    threads = [threading.Thread(target=pipeline.open, args=(prompt,)) for prompt in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert sorted(prompts.encoded) == sorted({*words})


# -- embeddings from outside


def test_embeddings_take_the_place_of_words(parts: ModelParts, tmp_path: Path) -> None:
    pipeline = Pipeline(parts)
    rows = pipeline.prompts.embed(BLUE)[0]
    by_words, by_rows = pipeline.open(BLUE, seed=3), pipeline.open(prompt_embeds=rows, seed=3)
    assert torch.equal(take(by_words, 3), take(by_rows, 3))
    same_words = by_rows.submit(StreamEvent(prompt="whatever", prompt_embeds=-rows))
    frames = take(by_rows, 3)
    assert by_rows.timeline.events[-1].event.cache == "recache"
    assert same_words.status == "applied"
    again = by_rows.submit(StreamEvent(prompt="whatever", prompt_embeds=-2 * rows))
    kept = by_rows.submit(
        StreamEvent(prompt="whatever", prompt_embeds=-2 * rows), at_frame=by_rows.next_frame + 4
    )
    frames = torch.cat([frames, take(by_rows, 3)])
    assert [entry.event.cache for entry in by_rows.timeline.events[-2:]] == ["recache", "keep"]
    assert (again.status, kept.status) == ("applied", "applied")
    assert torch.equal(take(pipeline.replay(by_rows.timeline), 9)[-len(frames) :], frames)
    by_rows.save(tmp_path / "stream")
    assert torch.equal(take(pipeline.resume(tmp_path / "stream"), 2), take(by_rows, 2))


def test_embeddings_of_another_size_are_refused(parts: ModelParts) -> None:
    pipeline = Pipeline(parts)
    session = pipeline.open(RED)
    for rows, message in (
        (torch.zeros(2, 9), "expected up to 6 tokens of width 8 for .*, found 2 of width 9"),
        (torch.zeros(7, 8), "found 7 of width 8"),
    ):
        receipt = session.submit(StreamEvent(prompt_embeds=rows))
        assert receipt.status == "refused"
        with pytest.raises(InputError, match=message):
            raise InputError(str(receipt.reason))
        with pytest.raises(InputError, match=message):
            pipeline.open(prompt_embeds=rows)
    for wrong, message in (
        (torch.zeros(2, 2, 8), "expected shape .tokens, dim., found .2, 2, 8."),
        (torch.zeros(2, 8, dtype=torch.long), "expected a tensor of floating-point numbers"),
        (torch.full((2, 8), float("nan")), "expected finite numbers"),
    ):
        with pytest.raises(InputError, match=message):
            StreamEvent(prompt_embeds=wrong)
    with pytest.raises(InputError, match="expected some words, a blend or prompt_embeds"):
        pipeline.open(motion=None, settings={}, gestures={"a": None})


def test_words_know_their_length(parts: ModelParts) -> None:
    assert isinstance(parts.prompts.words(RED), Words)
    assert parts.prompts.length == 6


def test_no_chunk_waits_for_the_empty_prompt(slow: tuple[Pipeline, SlowWords]) -> None:
    """An unguided stream has not needed it; a slider that does waits until it is encoded."""
    pipeline, prompts = slow
    gate, null = threading.Event(), prompts.null

    def slowly() -> Tensor:
        gate.wait(PATIENCE)
        return null()

    prompts.null = slowly  # type: ignore[method-assign]
    session = pipeline.open(RED, settings={"text_guidance": 1.0})
    take(session, 2)
    receipt = session.submit(StreamEvent(settings={"text_guidance": 3.0}))
    take(session, 2)
    assert receipt.status == "accepted"
    gate.set()
    wait_until(lambda: session._queue.items[0].ready)
    next(session)
    assert receipt.status == "applied"
