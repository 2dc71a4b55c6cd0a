"""Words that come over several chunks, and blends: where they lead, what the cache does, and that all of it
is replayed, restored and resumed bit for bit.
"""

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import streamgen.stream.snapshot
import streamgen.stream.step
import streamgen.stream.timeline
from streamgen import InputError, Pipeline, Session, StreamEvent, Timeline, load_pipeline
from streamgen.interpolate import between, blended
from streamgen.stream.prompts import Over, recaches_that_fit
from streamgen.stream.recache import ByChunk
from tests.streams import BLUE, RED, take
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs

SEA = "the sea"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load_pipeline(write_checkpoint(tmp_path_factory.mktemp("passages")))


def recaches(session: Session, chunks: int, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each of the next chunks is made after a recache."""
    made: list[int] = []
    rebuild = ByChunk.rebuild

    def counted(self: ByChunk, *args: Any) -> Any:
        made.append(1)
        return rebuild(self, *args)

    out = []
    with monkeypatch.context() as patch:
        patch.setattr(ByChunk, "rebuild", counted)
        for _ in range(chunks):
            made.clear()
            next(session)
            out.append(bool(made))
    return out


# -- embeddings


def test_interpolation_begins_and_ends_at_its_ends_and_keeps_lengths() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    a[:, 3:], b[:, 4:] = 0, 0
    for way in ("linear", "spherical"):
        assert torch.equal(between(a, b, 0.0, way), a)
        assert torch.equal(between(a, b, 1.0, way), b)
        steps = [between(a, b, i / 10, way) for i in range(11)]
        farthest = max(float((y - x).norm()) for x, y in itertools.pairwise(steps))
        assert farthest < float((b - a).norm()) / 4
        assert all(torch.isfinite(x).all() for x in steps)
    middle = between(a, b, 0.5, "spherical")[:, :3].norm(dim=-1)
    torch.testing.assert_close(middle, (a[:, :3].norm(dim=-1) + b[:, :3].norm(dim=-1)) / 2)
    torch.testing.assert_close(between(a, a, 0.3, "spherical"), a)
    torch.testing.assert_close(between(a, -a, 0.25, "spherical"), a / 2)


def test_a_blend_is_the_weighted_mean() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(1, 4, 8) for _ in range(3)]
    torch.testing.assert_close(blended(parts, (2.0, 1.0, 1.0)), (2 * parts[0] + parts[1] + parts[2]) / 4)
    assert torch.equal(blended(parts, (0.0, 3.0, 0.0)), parts[1])


# -- the way


def test_a_passage_goes_by_even_steps_and_ends_at_the_words(pipeline: Pipeline) -> None:
    session = pipeline.open(RED, seed=1)
    take(session, 3)
    receipt = session.submit(StreamEvent(prompt=BLUE, over={"chunks": 4}))
    start, goal = pipeline.text(RED).embedding, pipeline.text(BLUE).embedding
    assert start is not None
    assert goal is not None
    for step in range(1, 5):
        chunk = next(session)
        torch.testing.assert_close(session.controls.text.embedding, torch.lerp(start, goal, step / 4))
    assert receipt.status == "applied"
    assert receipt.until == chunk.start_frame
    assert session.controls.text is pipeline.text(BLUE)
    assert session.controls.passage is None
    assert len(session.timeline.events) == 2, "the way is one event"


def test_seconds_are_whole_chunks(pipeline: Pipeline) -> None:
    session = pipeline.open(RED)
    next(session)
    chunk_seconds = len(next(session).frames) / pipeline.geometry.fps
    session.submit(StreamEvent(prompt=BLUE, over=3.2 * chunk_seconds))
    next(session)
    assert session.controls.passage is not None
    assert session.controls.passage.chunks == 3
    session.submit(StreamEvent(prompt=RED, over=0.001))
    next(session)
    assert session.controls.text is pipeline.text(RED), "at least one chunk"


def test_the_cache_follows_every_so_many_chunks_and_at_the_end(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    for every, expected in ((1, [1, 1, 1, 1, 1, 0]), (2, [0, 1, 0, 1, 1, 0]), (9, [0, 0, 0, 0, 1, 0])):
        session = pipeline.open(RED)
        take(session, 3)
        session.submit(StreamEvent(prompt=BLUE, over={"chunks": 5, "every": every}))
        assert recaches(session, 6, monkeypatch) == [bool(x) for x in expected]
    session.submit(StreamEvent(prompt=RED, cache="keep", over={"chunks": 3}))
    assert recaches(session, 4, monkeypatch) == [False] * 4


def test_newer_words_begin_where_the_way_is(pipeline: Pipeline) -> None:
    session = pipeline.open(RED)
    take(session, 2)
    session.submit(StreamEvent(prompt=BLUE, over={"chunks": 4}))
    take(session, 2)
    here = session.controls.text.embedding
    assert here is not None
    session.submit(StreamEvent(prompt=SEA, over={"chunks": 2}))
    next(session)
    goal = pipeline.text(SEA).embedding
    assert goal is not None
    torch.testing.assert_close(session.controls.text.embedding, torch.lerp(here, goal, 0.5))
    session.submit(StreamEvent(prompt=BLUE))
    next(session)
    assert session.controls.text is pipeline.text(BLUE)
    assert session.controls.passage is None


def test_other_changes_leave_the_way_alone_and_a_new_scene_ends_it(pipeline: Pipeline) -> None:
    session = pipeline.open(RED)
    take(session, 2)
    session.submit(StreamEvent(prompt=BLUE, over={"chunks": 6}))
    take(session, 2)
    session.submit(StreamEvent(settings={"steps": 2}))
    session.submit(StreamEvent(cache="recache"))
    next(session)
    assert session.controls.passage is not None
    assert session.controls.passage.done == 3
    session.submit(StreamEvent(cache="clear"))
    next(session)
    assert session.controls.passage is None
    assert session.controls.text is pipeline.text(BLUE)


def test_a_blend_of_one_is_that_prompt_and_weights_are_live(pipeline: Pipeline) -> None:
    session = pipeline.open(blend=[(RED, 1.0), (BLUE, 0.0)])
    assert session.controls.text is pipeline.text(RED)
    session = pipeline.open(blend={RED: 3, BLUE: 1})
    parts = [pipeline.text(prompt).embedding for prompt in (RED, BLUE)]
    assert parts[0] is not None
    assert parts[1] is not None
    torch.testing.assert_close(session.controls.text.embedding, torch.lerp(parts[0], parts[1], 0.25))
    assert session.controls.prompt == f"75 % {RED} + 25 % {BLUE}"
    next(session)
    receipt = session.submit(StreamEvent(blend={RED: 1, BLUE: 3}))
    next(session)
    assert receipt.status == "applied"
    torch.testing.assert_close(session.controls.text.embedding, torch.lerp(parts[0], parts[1], 0.75))


# -- exactness


def steered(session: Session) -> torch.Tensor:
    """A stream with a blend, two passages that overlap, and settings on the way."""
    parts = [take(session, 2)]
    session.submit(StreamEvent(blend={RED: 1, SEA: 2}, over={"chunks": 3, "way": "spherical", "every": 2}))
    parts.append(take(session, 2))
    session.submit(StreamEvent(prompt=BLUE, over={"chunks": 5, "every": 3}, sink="keep"))
    parts.append(take(session, 2))
    session.submit(StreamEvent(settings={"steps": 2}))
    parts.append(take(session, 5))
    return torch.cat(parts)


@pytest.mark.parametrize("mode", ["chunks", "joint"])
def test_replay_is_exact(pipeline: Pipeline, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"recache_mode": mode}

    def check() -> None:
        session = pipeline.open(blend={RED: 2, BLUE: 1}, seed=4, settings=settings)
        frames = steered(session)
        told = Timeline.from_json(json.loads(session.timeline.dumps()))
        assert torch.equal(take(pipeline.replay(told), 11), frames)

    assert_needs(check, monkeypatch, streamgen.stream.timeline, "words_to_json", _blend_alone)


def _blend_alone(event: StreamEvent) -> dict[str, Any]:
    """An event as a timeline tells it, without how long its words take to come."""
    return {"blend": [list(part) for part in event.parts]} if event.blend is not None else {}


def test_snapshots_forks_and_files_hold_the_way(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        session = pipeline.open(RED, seed=2)
        take(session, 2)
        session.submit(StreamEvent(blend={BLUE: 2, SEA: 1}, over={"chunks": 5, "every": 2}))
        take(session, 2)
        saved, path = session.snapshot(), tmp_path / "way.snapshot"
        session.save(path)
        fork = session.fork()
        frames = take(session, 5)
        assert torch.equal(take(fork, 5), frames)
        assert torch.equal(take(pipeline.resume(path), 5), frames)
        session.restore(saved)
        assert torch.equal(take(session, 5), frames)

    assert_needs(check, monkeypatch, streamgen.stream.snapshot, "_passage", lambda row, texts: None)


def test_a_failure_on_the_way_changes_nothing(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    session, other = pipeline.open(RED, seed=3), pipeline.open(RED, seed=3)
    for each in (session, other):
        take(each, 2)
        each.submit(StreamEvent(prompt=BLUE, over={"chunks": 4, "every": 2}))
    expected = take(other, 6)
    parts = []
    for _ in range(6):
        with monkeypatch.context() as patch:
            patch.setattr(streamgen.stream.step, "advance", _fails)
            with pytest.raises(KeyboardInterrupt):
                next(session)
        parts.append(next(session).frames)
    assert torch.equal(torch.cat(parts), expected)


def _fails(*args: object) -> None:
    raise KeyboardInterrupt


# -- what cannot be


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"blend": {RED: 0.0, BLUE: 0.0}}, "a weight above 0, found only 0"),
        ({"blend": {RED: -1.0}}, "weight: expected a number of at least 0 and at most 1e+06, found -1"),
        ({"blend": {RED: math.nan}}, "weight: expected a number of at least 0 and at most 1e+06, found nan"),
        ({"blend": {RED: math.inf}}, "weight: expected a number of at least 0 and at most 1e+06, found inf"),
        ({"blend": {RED: 1e308, BLUE: 1e308}}, "at most 1e+06, found 1e+308"),
        ({"blend": {RED: 10**400}}, "at most 1e+06, found 1000"),
        ({"blend": [(f"prompt {i}", 1.0) for i in range(100)]}, "1 to 16 prompts with weights, found 100"),
        ({"blend": []}, "1 to 16 prompts with weights, found 0"),
        ({"blend": "a red circle"}, "1 to 16 prompts with weights, found 'a red circle'"),
        ({"blend": [(" ", 1.0)]}, "expected some words"),
        ({"blend": [{"prompt": RED, "wieght": 1}]}, "did you mean 'weight'"),
        ({"blend": {RED: 1}, "prompt": BLUE}, "expected a prompt, prompt_embeds or a blend, found two"),
        ({"over": 2.0, "cache": "recache"}, "over: expected new words that it leads to"),
        ({"prompt": RED, "over": 0.0}, "seconds above 0"),
        ({"prompt": RED, "over": math.nan}, "seconds above 0"),
        ({"prompt": RED, "over": True}, "seconds above 0"),
        ({"prompt": RED, "over": {"seconds": 1, "chunks": 2}}, "seconds or chunks, one of them"),
        ({"prompt": RED, "over": {"chunks": 0}}, "chunks: expected 1 to"),
        ({"prompt": RED, "over": {"chunks": 3, "every": 0}}, "every: expected 1 to"),
        ({"prompt": RED, "over": {"chunks": 3, "way": "square"}}, "linear or spherical"),
        ({"prompt": RED, "over": {"chunk": 3}}, "did you mean 'chunks'"),
        ({"prompt": RED, "over": 2.0, "cache": "clear"}, "leaves nothing that words could change over"),
    ],
)
def test_what_cannot_be_is_told(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=re.escape(reason)) as found:
        StreamEvent(**fields)
    assert "\n" not in str(found.value)


def test_no_chunk_comes_late_where_recaches_are_spread() -> None:
    assert recaches_that_fit(8, 0.25, 0.1, 0.1, ahead=0.1) == 1
    assert recaches_that_fit(8, 0.25, 0.1, 0.1) == 2, "the first one has to be paid for before"
    assert recaches_that_fit(8, 0.25, 0.1, 0.28, ahead=0.05) == 3
    assert recaches_that_fit(8, 0.25, 0.2, 0.28, ahead=0.28) == 6, "and the later ones, too"
    assert recaches_that_fit(8, 0.25, 0.3, 0.3) == 8, "at the end alone"
    assert recaches_that_fit(2, 0.25, 0.2, 3.0) == 2
    assert recaches_that_fit(8, 0.25, 0.1, 0.0) == 1


def test_an_over_is_read_back() -> None:
    for over in (Over(seconds=2.0), Over(chunks=3, way="spherical", every=2)):
        assert Over.of(json.loads(json.dumps(over.to_json()))) == over
