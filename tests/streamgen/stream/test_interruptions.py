"""Invariant 7: a failure at any line of a chunk leaves the stream as if it had not happened.

Every line of our own that a chunk runs through is interrupted once (`KeyboardInterrupt` in its place, the
first time it is reached and the last time), with and without an event, in both recache modes. Afterwards the
same pictures come, none twice and none lost, with the same receipts and the same timeline.
"""

import sys
from collections.abc import Callable, Set
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

import models.kv_cache
import streamgen
import streamgen.stream.session
import streamgen.stream.step
from models.causal_dit import CausalDiT
from models.kv_cache import CacheRing
from streamgen import FrameChunk, InputError, NonFiniteError, Pipeline, Session, StreamEvent, load_pipeline
from streamgen.engine.decoder import StreamingDecoder
from streamgen.engine.runner import PlainRunner
from streamgen.motion.tracks import TrackSet, drag
from tests.streams import BLUE, RED, context_keys, take
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs

Place = tuple[str, int]

PACKAGE = Path(streamgen.__file__).parent
OURS = (str(PACKAGE / "stream"), str(PACKAGE / "engine"), str(PACKAGE / "motion"))
CACHE = tuple(
    str(Path(models.kv_cache.__file__).parent / name) for name in ("kv_cache.py", "joint_recache.py")
)
EVENTS = {
    "none": None,
    "recache": StreamEvent(prompt=BLUE, motion=drag((0.3, 0.3), (0.6, 0.7), 9)),
    "keep sink": StreamEvent(prompt=BLUE, sink="keep"),
    "clear": StreamEvent(prompt=BLUE, cache="clear", settings={"steps": 2}),
    "keep": StreamEvent(prompt=BLUE, cache="keep", gestures={"pin": drag((0.1, 0.1), (0.1, 0.1), 20)}),
}
CHUNKS = 2


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load_pipeline(write_checkpoint(tmp_path_factory.mktemp("model"), steps=1))


class Interrupter:
    """Notes which lines of ours run, or raises where one of them runs first."""

    def __init__(self, place: Place | None = None) -> None:
        self.place = place
        self.seen: set[Place] = set()
        self._watched: dict[CodeType, bool] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        watched = self._watched.get(code)
        if watched is None:
            watched = self._watched[code] = self._watches(code)
        return self.line if watched else None

    def _watches(self, code: CodeType) -> bool:
        """Whether its lines are looked at: those of a function without the place are none of it."""
        name = code.co_filename
        if self.place is not None:
            return name == self.place[0] and any(line == self.place[1] for _, _, line in code.co_lines())
        return name.startswith(OURS) or name in CACHE

    def line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            here = (frame.f_code.co_filename, frame.f_lineno)
            first = here not in self.seen
            self.seen.add(here)
            if first and here == self.place:
                raise KeyboardInterrupt
        return self.line


def traced(run: Callable[[], object], tracer: Interrupter) -> bool:
    """Run something under a tracer; returns whether it was interrupted."""
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        run()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def steered(
    base: Session, event: StreamEvent | None, tracer: Interrupter | None
) -> tuple[Tensor, list[object]]:
    """Pictures of the next chunks of a fork, the event's chunk under the tracer; and what was told."""
    session = base.fork()
    receipts = [] if event is None else [session.submit(event)]
    chunks: list[FrameChunk] = []
    # the chunk, not its pictures: it is handed over before anybody asks for these
    made = lambda: chunks.append(next(session))  # noqa: E731
    if tracer is not None:
        traced(made, tracer)
    while len(chunks) < CHUNKS:
        made()
    told = [receipt.to_json() for receipt in receipts] + session.timeline.to_json()["events"]
    return torch.cat([chunk.frames for chunk in chunks]), told


def base_session(pipeline: Pipeline, mode: str) -> Session:
    """A stream whose window is full, a drag under way, the last chunk's commit due."""
    settings = {"recache_mode": mode, "context_noise": 0.1}
    session = pipeline.open(RED, seed=4, motion=drag((0.1, 0.5), (0.9, 0.5), 60), settings=settings)
    take(session, 6)
    return session


def every_line_once(
    pipeline: Pipeline, mode: str, name: str, stride: int, elsewhere: Set[Place] | None = None
) -> int:
    """Interrupt at every `stride`-th line of the chunk that is also interrupted elsewhere, and at every other
    one; returns how many lines there were.
    """
    base, event = base_session(pipeline, mode), EVENTS[name]
    expected = steered(base, event, None)
    seen = Interrupter()
    assert torch.equal(steered(base, event, seen)[0], expected[0])
    shared = seen.seen if elsewhere is None else seen.seen & elsewhere
    for place in [*sorted(seen.seen - shared), *sorted(shared)[::stride]]:
        found = steered(base, event, Interrupter(place))
        assert torch.equal(found[0], expected[0]), place
        assert found[1] == expected[1], place
    return len(seen.seen)


@pytest.mark.parametrize("mode", [pytest.param("chunks", marks=pytest.mark.slow), "joint"])
def test_a_chunk_interrupted_at_every_eleventh_line(pipeline: Pipeline, mode: str) -> None:
    assert every_line_once(pipeline, mode, "recache", 11) > 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("chunks", "none"),
        ("chunks", "recache"),
        ("joint", "recache"),
        ("chunks", "clear"),
        ("joint", "clear"),
    ],
)
def test_a_chunk_interrupted_at_every_line(pipeline: Pipeline, mode: str, name: str) -> None:
    assert every_line_once(pipeline, mode, name, 1) > 200


@pytest.mark.slow
def test_a_chunk_without_an_event_interrupted_where_joint_recaches_differ(pipeline: Pipeline) -> None:
    """All else it runs through is the same in both modes, and interrupted at every line in the other one."""
    seen = Interrupter()
    steered(base_session(pipeline, "chunks"), None, seen)
    assert every_line_once(pipeline, "joint", "none", 11, seen.seen) > 200


@pytest.mark.parametrize(
    ("target", "name", "patch"),
    [
        (CacheRing, "intact", lambda self, cursor: True),
        (Session, "__next__", None),
    ],
    ids=["lost content is noticed", "a made chunk is handed over"],
)
def test_interruptions_need(
    pipeline: Pipeline, target: type, name: str, patch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without what says that a rebuild has cost the cache, or that a chunk is owed, the sweep fails."""

    def forgetful(self: Session) -> Any:
        """The next chunk, whatever became of the last one."""
        with self._generating:
            self._conclude(self._now)
            self._now = self._next()
            self._conclude(self._now)
            return self._now.chunk

    def check() -> None:
        lost_and_taken_back(pipeline)
        every_line_of(pipeline, "session.py")

    assert_needs(check, monkeypatch, target, name, patch or forgetful)


def every_line_of(pipeline: Pipeline, file: str) -> None:
    base = base_session(pipeline, "chunks")
    expected = steered(base, None, None)
    seen = Interrupter()
    steered(base, None, seen)
    for place in sorted(seen.seen):
        if place[0].endswith(file):
            found = steered(base, None, Interrupter(place))
            assert len(found[0]) == len(expected[0]), place
            assert torch.equal(found[0], expected[0]), place


def lost_and_taken_back(pipeline: Pipeline) -> None:
    """A recache is cut short, and its event withdrawn: the cache is made anew under the words of before."""
    session = base_session(pipeline, "chunks")
    plain = session.fork()
    receipt = session.submit(StreamEvent(prompt=BLUE))
    with pytest.MonkeyPatch.context() as patched:
        failing_once(StreamingDecoder, "decode", patched, 0)
        with pytest.raises(Fault):
            next(session)
    session.withdraw(receipt)
    expected, found = next(plain).latents, next(session).latents
    # what was evicted is not in the record: near, not equal
    assert (found - expected).abs().max() < 0.05 * expected.std()
    assert (session.timeline.events[-1].event.cache, session.controls.prompt) == ("rebuild", RED)
    again = pipeline.replay(session.timeline)
    take(again, 6)
    assert torch.equal(next(again).latents, found)


# -- failures in the parts of a chunk


class Fault(Exception):
    """Injected failure."""


def failing_once(
    target: object, name: str, monkeypatch: pytest.MonkeyPatch, after: int
) -> Callable[[], bool]:
    """Make the `after`-th call of a function raise, once; returns whether it has happened."""
    original, calls = getattr(target, name), {"n": 0, "hit": False}

    def wrapped(*args: object, **kwargs: object) -> object:
        calls["n"] += 1
        if calls["n"] == after + 1:
            calls["hit"] = True
            raise Fault
        return original(*args, **kwargs)

    monkeypatch.setattr(target, name, wrapped)
    return lambda: bool(calls["hit"])


POINTS = [
    (PlainRunner, "denoise", 0),
    (PlainRunner, "commit", 0),
    (PlainRunner, "commit", 2),
    (CausalDiT, "forward", 0),
    (CausalDiT, "forward", 3),
    (StreamingDecoder, "decode", 0),
]


@pytest.mark.parametrize("mode", ["chunks", "joint"])
@pytest.mark.parametrize("name", list(EVENTS))
def test_a_failure_in_a_part_leaves_the_stream_as_it_was(pipeline: Pipeline, mode: str, name: str) -> None:
    """Twice at every point, as out of memory comes again; the event waits, and then takes effect."""
    base, event = base_session(pipeline, mode), EVENTS[name]
    expected = steered(base, event, None)
    for target, function, after in POINTS:
        session = base.fork()
        receipts = [] if event is None else [session.submit(event)]
        parts: list[Tensor] = []
        for _ in range(2):
            with pytest.MonkeyPatch.context() as patched:
                hit = failing_once(target, function, patched, after)
                try:
                    parts.append(next(session).frames)
                except Fault:
                    assert hit()
                    # a chunk may have been made before: not every point is passed in every chunk
                    waits = not parts
                    assert all((receipt.status == "accepted") == waits for receipt in receipts)
                    assert session.pending == (tuple(receipts) if waits else ())
        parts += [next(session).frames for _ in range(CHUNKS - len(parts))]
        told = [r.to_json() for r in receipts] + session.timeline.to_json()["events"]
        assert torch.equal(torch.cat(parts), expected[0]), (function, after)
        assert told == expected[1], (function, after)


@pytest.mark.parametrize("mode", ["chunks", "joint"])
@pytest.mark.parametrize("name", ["recache", "keep sink", "clear"])
def test_an_event_that_failed_and_was_then_replaced_leaves_no_trace(
    pipeline: Pipeline, mode: str, name: str
) -> None:
    """The chunk fails after the cache was made for the new words; a later event takes these words back."""
    session = pipeline.open(RED, seed=4, settings={"recache_mode": mode})
    take(session, 3)
    plain = session.fork()
    session.submit(EVENTS[name])  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patched:
        failing_once(StreamingDecoder, "decode", patched, 0)
        with pytest.raises(Fault):
            next(session)
    session.submit(StreamEvent(prompt=RED, cache="keep", settings={"steps": 1}, motion=TrackSet.empty(0)))
    found, expected = next(session).latents, next(plain).latents
    assert len(session.state.latents.context) == len(plain.state.latents.context)
    if mode == "chunks":
        # nothing was evicted yet, so a rebuild is exact but for rounding
        assert (found - expected).abs().max() < 1e-4
        assert (context_keys(session) - context_keys(plain)).abs().max() < 1e-4


def test_a_failure_twice_and_a_snapshot_in_between(pipeline: Pipeline) -> None:
    """A state whose cache a failure has cost is saved as what it is, and a resumed one makes it anew."""
    session = base_session(pipeline, "chunks")
    session.submit(StreamEvent(prompt=BLUE))
    with pytest.MonkeyPatch.context() as patched:
        failing_once(StreamingDecoder, "decode", patched, 0)
        with pytest.raises(Fault):
            next(session)
    twin = session.fork()
    assert not twin.state.latents.intact
    assert torch.equal(take(session, 3), take(twin, 3))


def test_a_chunk_that_was_not_handed_over_is_in_a_saved_stream(pipeline: Pipeline, tmp_path: Path) -> None:
    """Ctrl-C after the chunk was made, then save: the resumed stream begins with it."""
    session = base_session(pipeline, "chunks")
    expected = take(session.fork(), 3)
    with pytest.MonkeyPatch.context() as patched:
        calls = failing_once(streamgen.stream.session, "conclude", patched, 1)
        with pytest.raises(Fault):
            next(session)
        assert calls()
    session.save(tmp_path / "stream")
    assert torch.equal(take(pipeline.resume(tmp_path / "stream"), 3), expected)
    assert torch.equal(take(session, 3), expected)


# -- numbers that are not finite


@pytest.mark.parametrize(("call", "step"), [(0, 1), (1, 2)])
def test_a_chunk_that_is_not_finite_is_told_and_the_stream_goes_on(
    tmp_path: Path, call: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = load_pipeline(write_checkpoint(tmp_path / "m", steps=2)).open(
        RED, settings={"text_guidance": 1.0}
    )
    take(session, 3)
    expected = take(session.fork(), 2)
    forward, calls = CausalDiT.forward, [0]

    def broken(self: CausalDiT, *args: object, **kwargs: object) -> Tensor:
        out: Tensor = forward(self, *args, **kwargs)  # type: ignore[arg-type]
        calls[0] += 1
        # the first forward commits the chunk before
        return out * float("nan") if calls[0] == call + 2 else out

    with monkeypatch.context() as patched:
        patched.setattr(CausalDiT, "forward", broken)
        with pytest.raises(NonFiniteError, match=rf"chunk 3: step {step}: velocity is not finite"):
            next(session)
    assert torch.equal(take(session, 2), expected)


def full(*_: object, **__: object) -> object:
    raise OSError(28, "No space left on device")


def test_a_log_that_cannot_be_written_costs_nothing(pipeline: Pipeline, tmp_path: Path) -> None:
    """A full disk: the chunk waits, and comes once there is room."""
    plain = pipeline.open(RED, seed=3)
    session = pipeline.open(RED, seed=3, log=tmp_path / "log")
    expected = take(plain, 3)
    first = next(session).frames
    session.submit(StreamEvent(settings={"text_guidance": 3.0}))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            Path, "open", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        for _ in range(2):
            with pytest.raises(InputError, match="No space left on device"):
                next(session)
    assert torch.equal(torch.cat([first, take(session, 2)]), expected)
