"""Invariant 6: replay, restore, fork, resume, and sessions that do not see each other."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.context import ChunkPlan
from models.kv_cache import CacheRing
from streamgen import InputError, Pipeline, Session, StreamEvent, Timeline, load_pipeline
from streamgen.engine.noise import SeededNoise
from streamgen.motion.tracks import TrackSet, drag
from streamgen.stream.log import EventLog
from tests.streams import BLUE, RED, take
from tests.tiny_checkpoints import generator_noise, write_checkpoint
from tests.tiny_models import assert_needs


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load_pipeline(write_checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def chunky(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load_pipeline(write_checkpoint(tmp_path_factory.mktemp("chunky"), ChunkPlan(2, 1, 3, 4)))


def steered(session: Session) -> Tensor:
    """Ten chunks with a switch, a drag and a change of settings."""
    parts = [take(session, 3)]
    session.submit(StreamEvent(prompt=BLUE, motion=drag((0.3, 0.3), (0.6, 0.7), 9)))
    parts.append(take(session, 4))
    session.submit(StreamEvent(settings={"steps": 3, "text_guidance": 1.5}, motion=TrackSet.empty(0)))
    parts.append(take(session, 3))
    return torch.cat(parts)


def test_replay_of_a_recorded_timeline_is_bit_exact(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        session = pipeline.open(RED, seed=5)
        frames = steered(session)
        again = pipeline.replay(Timeline.from_json(session.timeline.to_json()))
        assert torch.equal(frames, take(again, 10))

    appended = EventLog.appended

    def only_first(self: EventLog, *rest: object) -> EventLog:
        return self if len(self) else appended(self, *rest)  # type: ignore[arg-type]

    assert_needs(check, monkeypatch, EventLog, "appended", only_first)


@pytest.mark.parametrize("chunks", [0, 1, 3, 8])
def test_restore_fork_and_resume_are_bit_exact(
    pipeline: Pipeline, chunks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        session = pipeline.open(RED, seed=2, motion=drag((0.1, 0.1), (0.9, 0.9), 60))
        take(session, chunks)
        session.submit(StreamEvent(prompt=BLUE), at_frame=session.next_frame + 5)
        snapshot, twin = session.snapshot(), session.fork()
        session.save(tmp_path / "stream.snapshot")
        frames = take(session, 5)
        assert torch.equal(frames, take(twin, 5))
        session.restore(snapshot)
        assert torch.equal(frames, take(session, 5))
        assert torch.equal(frames, take(pipeline.resume(tmp_path / "stream.snapshot"), 5))
        assert session.timeline.to_json() == twin.timeline.to_json()

    check()
    if chunks >= 3:
        assert_needs(
            check, monkeypatch, CacheRing, "load_state", lambda self, cursor, state: self.end_rebuild(cursor)
        )


def test_interleaved_sessions_give_what_each_gives_alone(pipeline: Pipeline) -> None:
    alone = [take(pipeline.open(prompt, seed=seed), 6) for prompt, seed in ((RED, 1), (BLUE, 2))]
    sessions = [pipeline.open(RED, seed=1), pipeline.open(BLUE, seed=2)]
    parts: list[list[Tensor]] = [[], []]
    for _ in range(6):
        for i, session in enumerate(sessions):
            parts[i].append(next(session).frames)
    for expected, found in zip(alone, parts, strict=True):
        assert torch.equal(expected, torch.cat(found))


def test_snapshot_size_does_not_grow(pipeline: Pipeline) -> None:
    session, sizes = pipeline.open(RED), []
    for _ in range(60):
        next(session)
        sizes.append(session.snapshot().size_bytes())
    assert len(set(sizes[6:])) == 1


def test_epoch_rises_and_the_future_is_cut_from_the_timeline(pipeline: Pipeline) -> None:
    session = pipeline.open(RED)
    take(session, 2)
    snapshot = session.snapshot()
    session.submit(StreamEvent(prompt=BLUE))
    take(session, 2)
    assert len(session.timeline.events) == 2
    session.restore(snapshot)
    chunk = next(session)
    assert (chunk.epoch, len(session.timeline.events), session.controls.prompt) == (1, 1, RED)


def test_restore_brings_back_the_timeline_of_the_snapshot(pipeline: Pipeline) -> None:
    """Back, onto another branch, and forth again to the first: each replays as it was."""
    session = pipeline.open(RED, seed=6)
    early = take(session, 2), session.snapshot()
    session.submit(StreamEvent(prompt=BLUE))
    late = take(session, 2), session.snapshot()
    session.restore(early[1])
    session.submit(StreamEvent(prompt="a blue circle"))
    take(session, 1)
    session.restore(late[1])
    assert [entry.event.prompt for entry in session.timeline.events] == [RED, BLUE]
    again = take(pipeline.replay(session.timeline), 6)
    assert torch.equal(again, torch.cat([early[0], late[0], take(session, 2)]))


def test_receipts_outlive_a_restore(pipeline: Pipeline) -> None:
    """What waits in the snapshot answers to the receipt that was given for it; what does not is refused."""
    session = pipeline.open(RED)
    take(session, 2)
    waits = session.submit(StreamEvent(prompt=BLUE), at_frame=session.next_frame + 5)
    snapshot = session.snapshot()
    gone = session.submit(StreamEvent(settings={"steps": 1}), at_frame=1000)
    session.restore(snapshot)
    assert (waits.status, gone.status) == ("accepted", "refused")
    assert "before this event" in str(gone.reason)
    assert [next(session).receipts for _ in range(3)][2] == (waits,)
    assert waits.status == "applied"


def test_clear_begins_a_scene_and_resumes(chunky: Pipeline, tmp_path: Path) -> None:
    """The first chunk of a scene is as short as the first of a stream, and forgets what was."""
    session = chunky.open(RED, seed=2)
    take(session, 4)
    session.submit(StreamEvent(prompt=BLUE, cache="clear"))
    chunks = [next(session) for _ in range(2)]
    assert [len(chunk.frames) for chunk in chunks] == [4, 8]
    assert [(chunk.index, chunk.start) for chunk in session.state.latents.context] == [(4, 7), (5, 8)]
    assert chunks[1].start_frame == chunks[0].start_frame + 4
    session.save(tmp_path / "stream")
    frames = take(session, 4)
    assert torch.equal(frames, take(chunky.resume(tmp_path / "stream"), 4))
    assert torch.equal(frames, take(chunky.replay(session.timeline), 10)[-len(frames) :])


def test_snapshot_of_another_model_is_refused(pipeline: Pipeline, chunky: Pipeline, tmp_path: Path) -> None:
    session = chunky.open(RED)
    take(session, 2)
    session.save(tmp_path / "other")
    with pytest.raises(InputError, match="snapshot: expected chunks"):
        pipeline.resume(tmp_path / "other")
    (tmp_path / "other").write_bytes((tmp_path / "other").read_bytes()[:500])
    with pytest.raises(InputError, match="damaged or not a snapshot"):
        chunky.resume(tmp_path / "other")


def test_starting_from_frames_shows_them(pipeline: Pipeline) -> None:
    picture = (generator_noise((32, 32, 3), 3) * 40 + 128).clamp(0, 255).to(torch.uint8)
    session = pipeline.open(RED, seed=1, image=picture)
    other = pipeline.open(BLUE, seed=9, image=picture)
    first = next(session).frames
    assert torch.equal(first, next(other).frames)
    assert not torch.equal(next(session).frames, next(other).frames)
    clip = picture[None].repeat(11, 1, 1, 1)
    assert torch.equal(
        take(pipeline.open(RED, video=clip), 3), take(pipeline.open(RED, seed=8, video=clip), 3)
    )


def test_noise_is_a_function_of_seed_and_place() -> None:
    noise = SeededNoise(3, torch.device("cpu"))
    assert torch.equal(noise.initial(4, (2, 3)), SeededNoise(3, torch.device("cpu")).initial(4, (2, 3)))
    draws = [noise.initial(4, (8,)), noise.initial(5, (8,)), noise.commit(4, (8,)), noise.renoise(4, 0, (8,))]
    assert len({tuple(d.tolist()) for d in draws}) == 4


def test_timeline_round_trip_and_errors() -> None:
    timeline = Timeline(16.0, 3)
    timeline.record(0, 0, StreamEvent(RED, drag((0, 0), (1, 1), 5), {"steps": 2}))
    timeline.record(4, 13, StreamEvent(BLUE, cache="keep"))
    again = Timeline.from_json(timeline.to_json())
    assert again.to_json() == timeline.to_json()
    for content, message in (
        ([], "expected an object"),
        ({"format": "streamgen-timeline", "fps": 16}, "incomplete"),
        (timeline.to_json() | {"evnts": []}, "did you mean"),
    ):
        with pytest.raises(InputError, match=message):
            Timeline.from_json(content)
