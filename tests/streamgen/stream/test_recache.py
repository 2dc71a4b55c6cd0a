"""Invariant 4: recache equals a fresh cache that commits the context, and what becomes of the past."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from models.context import ChunkPlan
from streamgen import InputError, Pipeline, StreamEvent, load_pipeline
from streamgen.engine.runner import Runner
from streamgen.motion.tracks import drag
from streamgen.stream.latents import LatentState
from streamgen.stream.recache import ByChunk, Joint, commit
from tests.streams import BLUE, RED, context_keys, settle_session, take
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load_pipeline(write_checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def chunky(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load_pipeline(write_checkpoint(tmp_path_factory.mktemp("chunky"), ChunkPlan(2, 1, 3, 4)))


@pytest.mark.parametrize("noise_level", [0.0, 0.2])
@pytest.mark.parametrize("due", [False, True])
def test_recache_equals_a_fresh_cache_that_commits_the_context(
    chunky: Pipeline, noise_level: float, due: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the last chunk has been committed under the old words or is still due."""

    def check() -> None:
        session = chunky.open(RED, seed=3, settings={"context_noise": noise_level})
        session.submit(StreamEvent(motion=drag((0.2, 0.2), (0.8, 0.8), 40)))
        take(session, 9)
        old = context_keys(session.fork())
        if not due:
            settle_session(session)
        state, noise, text = session.state.latents, session.state.noise, chunky.text(BLUE)
        fresh = LatentState(chunky.new_ring(session.controls.settings))
        cursor = fresh.cursor
        for chunk in state.context:
            cursor = commit(session.runner, fresh, cursor, replace(chunk, text=text), noise)
        made = ByChunk().rebuild(session.runner, state, noise, "refresh", text)
        new, expected = made.ring.state(made.cursor), fresh.ring.state(cursor)
        assert (new["values"] - expected["values"]).abs().max() < 1e-6
        assert (new["keys"] - expected["keys"]).abs().max() < 1e-6
        assert (new["keys"] - old).abs().max() > 1e-3
        assert all(chunk.text is text for chunk in made.context)

    forgotten = lambda self, runner, state, *rest: replace(state, due=False)  # noqa: E731
    assert_needs(check, monkeypatch, ByChunk, "rebuild", forgotten)


@pytest.mark.parametrize("text", ["unchanged words", "each its own"])
def test_recache_under_unchanged_text_changes_nothing_before_eviction(
    pipeline: Pipeline, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each chunk goes in with its own motion and its own noise level: if recache forgot them, keys would
    differ.
    """

    def check() -> None:
        session = pipeline.open(
            RED, seed=1, motion=drag((0.1, 0.5), (0.9, 0.5), 30), settings={"context_noise": 0.1}
        )
        take(session, 2)
        session.submit(StreamEvent(settings={"context_noise": 0.4}))
        take(session, 2)
        before = context_keys(session)
        words = pipeline.text(RED) if text == "unchanged words" else None
        state = session.state.latents
        made = ByChunk().rebuild(session.runner, state, session.state.noise, "refresh", words)
        assert (made.ring.state(made.cursor)["keys"] - before).abs().max() < 1e-5

    rebuild = ByChunk.rebuild
    for lost in ({"motion": None}, {"sigma": 0.4}):

        def forgetful(
            self: ByChunk, runner: Runner, state: LatentState, *rest: Any, lost: dict[str, Any] = lost
        ) -> LatentState:
            context = tuple(replace(chunk, **lost) for chunk in state.context)
            return rebuild(self, runner, replace(state, context=context), *rest)

        assert_needs(check, monkeypatch, ByChunk, "rebuild", forgetful)


def test_a_rebuild_commits_each_chunk_under_its_own_words(pipeline: Pipeline) -> None:
    """After a switch that kept the cache, a recache is under the new words; a rebuild is under both."""
    session = pipeline.open(RED, seed=1)
    take(session, 2)
    session.submit(StreamEvent(prompt=BLUE, cache="keep"))
    take(session, 2)
    kept = context_keys(session)
    keys = {}
    for action in ("rebuild", "recache"):
        twin = session.fork()
        state = twin.state.latents
        words = None if action == "rebuild" else pipeline.text(BLUE)
        made = ByChunk().rebuild(twin.runner, state, twin.state.noise, "refresh", words)
        keys[action] = made.ring.state(made.cursor)["keys"]
    assert (keys["rebuild"] - kept).abs().max() < 1e-5
    assert (keys["recache"] - kept).abs().max() > 1e-3


def test_actions_differ_and_do_what_they_say(pipeline: Pipeline) -> None:
    outputs, keys, frames = {}, {}, {}
    for action in ("recache", "keep", "clear"):
        session = pipeline.open(RED, seed=1)
        take(session, 6)
        before = context_keys(session)
        session.submit(StreamEvent(prompt=BLUE, cache=action))  # type: ignore[arg-type]
        outputs[action] = take(session, 1)
        keys[action] = (before, context_keys(session))
        frames[action] = session.state.latents.cursor.frames
    assert not torch.equal(outputs["recache"], outputs["keep"])
    assert not torch.equal(outputs["recache"], outputs["clear"])
    # four tokens a latent frame: of sink and three window frames, the two that stay have the very keys they
    # had
    kept, rebuilt = keys["keep"], keys["recache"]
    assert torch.equal(kept[0][:, :, 8:16], kept[1][:, :, 4:12])
    assert (rebuilt[0][:, :, 8:16] - rebuilt[1][:, :, 4:12]).abs().max() > 1e-3
    assert (frames["clear"], frames["keep"]) == (1, 7)


@pytest.mark.parametrize("action", ["recache", "clear", "rebuild", "keep"])
def test_the_cache_action_works_under_unchanged_words(pipeline: Pipeline, action: str) -> None:
    session, plain = pipeline.open(RED, seed=1), pipeline.open(RED, seed=1)
    for each in (session, plain):
        take(each, 6)
    receipt = session.submit(StreamEvent(cache=action))  # type: ignore[arg-type]
    same = torch.equal(next(session).latents, next(plain).latents)
    assert receipt.status == "applied"
    assert same == (action == "keep")
    assert session.timeline.events[-1].event.cache == action
    assert torch.equal(take(pipeline.replay(session.timeline), 9)[-8:], take(session, 2))


def test_kept_sink_stays_and_refreshed_sink_changes(pipeline: Pipeline) -> None:
    for sink, same in (("keep", True), ("refresh", False)):
        session = pipeline.open(RED, seed=1)
        take(session, 6)
        before = session.state.latents.ring.sink_keys.clone()
        session.submit(StreamEvent(prompt=BLUE, sink=sink))  # type: ignore[arg-type]
        take(session, 1)
        assert torch.equal(before, session.state.latents.ring.sink_keys) == same


def test_a_plan_that_joint_recache_cannot_serve_is_refused(chunky: Pipeline) -> None:
    """A sink of 1 + 2 latent frames cannot be refreshed from a span of whole chunks: cache and record would
    differ.
    """
    settings = {"recache_mode": "joint"}
    with pytest.raises(InputError, match="recache_mode joint: cannot refresh a sink of 3 latent frames"):
        chunky.open(RED, settings=settings)
    session = chunky.open(RED, settings=settings | {"sink_policy": "keep"})
    take(session, 6)
    for event in (StreamEvent(prompt=BLUE, sink="refresh"), StreamEvent(settings={"sink_policy": "refresh"})):
        receipt = session.submit(event)
        assert (receipt.status, "cannot refresh" in str(receipt.reason)) == ("refused", True)
    session.submit(StreamEvent(prompt=BLUE))
    take(session, 3)
    latents = session.state.latents
    held = sum(chunk.frames for chunk in latents.context)
    assert held == latents.ring.context_frames(latents.cursor.moved(2))


@pytest.mark.parametrize("mode", ["chunks", "joint"])
def test_cache_and_record_hold_the_same_frames(mode: str) -> None:
    """At every chunk of many plans, before and after switches with either sink."""
    for plan in (ChunkPlan(1, 1, 1, 3), ChunkPlan(2, 2, 2, 4), ChunkPlan(3, 3, 0, 6), ChunkPlan(3, 1, 4, 3)):
        held_everywhere(plan, mode)


def held_everywhere(plan: ChunkPlan, mode: str) -> None:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        pipeline = load_pipeline(write_checkpoint(Path(folder), plan, steps=1))
    keep = "keep" if plan.sink_frames % plan.chunk_frames else "refresh"
    session = pipeline.open(RED, settings={"recache_mode": mode, "sink_policy": keep})
    for i in range(14):
        if i % 4 == 3:
            sink = "keep" if i % 8 == 3 else keep
            session.submit(StreamEvent(prompt=BLUE if i % 8 == 3 else RED, sink=sink))  # type: ignore[arg-type]
        next(session)
        settle_session(session)
        latents = session.state.latents
        held = sum(chunk.frames for chunk in latents.context)
        assert held == latents.ring.context_frames(latents.cursor), (plan, mode, i)


def test_joint_owns_its_check(chunky: Pipeline) -> None:
    Joint().check(ChunkPlan(3, 3, 3, 6), "refresh")
    ByChunk().check(chunky.plan, "refresh")
