"""A picture in mid-stream: as a scene of its own, or as the reference in the sink's place."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import streamgen.stream.step
from models.context import ChunkPlan
from streamgen import InputError, Pipeline, Session, StreamEvent, Timeline, load_pipeline
from streamgen.engine.decoder import StreamingDecoder, encode_frames
from streamgen.live.picture import Picture, mask_from_json, mask_of
from streamgen.stream.log import decode_event, encode_event
from streamgen.stream.timeline import event_from_json, event_to_json
from tests.live_input import clip, latents_of
from tests.streamgen.stream.test_interruptions import Fault, failing_once
from tests.streams import BLUE, RED, context_keys
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs

PLANS = (ChunkPlan(1, 1, 1, 3), ChunkPlan(3, 2, 2, 6), ChunkPlan(2, 2, 0, 4))


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> list[Pipeline]:
    return [
        load_pipeline(write_checkpoint(tmp_path_factory.mktemp(f"plan{i}"), plan, steps=2))
        for i, plan in enumerate(PLANS)
    ]


@pytest.fixture(scope="module")
def pipeline(pipelines: list[Pipeline]) -> Pipeline:
    return pipelines[0]


def picture(seed: int = 5, size: tuple[int, int] = (32, 32)) -> Tensor:
    return clip(1, seed, size)[0]


def opened(pipeline: Pipeline, chunks: int = 5, **settings: Any) -> Session:
    session = pipeline.open(RED, seed=2, settings=settings)
    latents_of(session, chunks)
    return session


@pytest.mark.parametrize("plan", range(len(PLANS)))
def test_a_scene_begins_with_the_picture_and_without_a_past(plan: int, pipelines: list[Pipeline]) -> None:
    pipeline = pipelines[plan]
    session = opened(pipeline)
    receipt = session.submit(StreamEvent(picture=Picture(picture())))
    chunk = next(session)
    assert (receipt.status, receipt.chunk, receipt.frame) == ("applied", 5, chunk.start_frame)
    assert chunk.steps == 0
    length = pipeline.plan.length(0)
    still = encode_frames(pipeline.tokenizer, picture()[None].expand(1 + 4 * length, -1, -1, -1))
    assert torch.allclose(chunk.latents, still[:, 1:], atol=1e-5)
    assert len(session.state.latents.context) == 1
    # what follows was made from it alone
    other = pipeline.open(BLUE, seed=2)
    latents_of(other, 5)
    other.submit(StreamEvent(RED, picture=Picture(picture())))
    assert torch.equal(next(other).latents, chunk.latents)
    assert torch.equal(next(other).latents, next(session).latents)


@pytest.mark.parametrize("plan", [0, 1])
def test_a_reference_takes_the_place_of_the_sink(plan: int, pipelines: list[Pipeline]) -> None:
    """The stream goes on behind the cache of one that began with the picture."""
    pipeline = pipelines[plan]
    session = opened(pipeline, 7)
    before = session.state.latents.context
    receipt = session.submit(StreamEvent(picture=Picture(picture(), "reference")))
    chunk = next(session)
    assert receipt.status == "applied"
    assert chunk.recached
    sink = session.state.latents.context[0]
    frames = pipeline.geometry.frames(sink.frames)
    still = encode_frames(pipeline.tokenizer, picture()[None].expand(frames, -1, -1, -1))
    assert torch.allclose(sink.latents, still, atol=1e-5)
    assert torch.equal(session.state.latents.context[1].latents, before[2].latents)
    plain = opened(pipeline, 7)
    assert not torch.equal(next(plain).latents, chunk.latents)
    # it stays there: through changes of words, and for as long as there is the sink
    session.submit(StreamEvent(BLUE))
    latents_of(session, 6)
    assert torch.equal(session.state.latents.context[0].latents, sink.latents)


def test_a_reference_needs_its_rebuild(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are those of the picture, not of what was there."""

    def check() -> None:
        session, plain = opened(pipeline), opened(pipeline)
        session.submit(StreamEvent(picture=Picture(picture(), "reference")))
        plain.submit(StreamEvent(cache="recache"))
        for each in (session, plain):
            next(each)
        changed = (context_keys(session) - context_keys(plain)).abs().amax((0, 1, 3, 4))
        assert changed[0] > 1e-3

    same = lambda model, latents, picture: latents  # noqa: E731
    assert_needs(check, monkeypatch, streamgen.stream.step, "_with_reference", same)


@pytest.mark.parametrize("use", ["scene", "reference"])
@pytest.mark.parametrize("plan", [0, 1])
def test_pictures_replay_and_resume_exactly(
    use: Any, plan: int, pipelines: list[Pipeline], tmp_path: Path
) -> None:
    pipeline = pipelines[plan]
    session = opened(pipeline)
    session.submit(StreamEvent(BLUE, picture=Picture(picture(size=(40, 70)), use)), at_frame=0)
    snapshot = session.snapshot()
    session.save(tmp_path / "stream")
    expected = latents_of(session, 4)
    assert torch.equal(latents_of(pipeline.resume(tmp_path / "stream"), 4), expected)
    timeline = Timeline.from_json(json.loads(json.dumps(session.timeline.to_json())))
    assert torch.equal(latents_of(pipeline.replay(timeline), 9)[:, -expected.shape[1] :], expected)
    session.restore(snapshot)
    assert torch.equal(latents_of(session, 4), expected)


def test_a_scene_before_the_first_chunk_is_part_of_the_opening(pipeline: Pipeline) -> None:
    session = pipeline.open(RED, seed=2)
    session.submit(StreamEvent(picture=Picture(picture()), mask=torch.eye(4)))
    expected = latents_of(session, 3)
    image = pipeline.open(RED, seed=2, image=picture())
    assert torch.equal(latents_of(image, 3), expected)
    again = pipeline.replay(Timeline.from_json(session.timeline.to_json()))
    assert torch.equal(latents_of(again, 3), expected)
    assert again.timeline.to_json() == session.timeline.to_json()


def test_a_failure_at_a_picture_leaves_the_stream_as_it_was(pipeline: Pipeline) -> None:
    for use in ("scene", "reference"):
        session = opened(pipeline)
        receipt = session.submit(StreamEvent(picture=Picture(picture(), use)))
        expected = session.fork()
        with pytest.MonkeyPatch.context() as patched:
            failing_once(StreamingDecoder, "decode", patched, 0)
            with pytest.raises(Fault):
                next(session)
        assert receipt.status == "accepted"
        assert torch.equal(latents_of(session, 2), latents_of(expected, 2))


def test_of_two_pictures_at_one_boundary_the_later_one_counts(pipeline: Pipeline) -> None:
    session = opened(pipeline)
    first = session.submit(StreamEvent(picture=Picture(picture(1))))
    second = session.submit(StreamEvent(picture=Picture(picture(2), "reference")))
    third = session.submit(StreamEvent(cache="clear"))
    chunk = next(session)
    assert (first.superseded, second.superseded, third.superseded) == (("picture",), ("picture",), ())
    assert chunk.steps == 2
    assert len(session.state.latents.context) == 1


def test_pictures_are_cropped_and_that_is_told(pipeline: Pipeline) -> None:
    session = opened(pipeline)
    receipt = session.submit(StreamEvent(picture=Picture(picture(size=(48, 200)))))
    assert receipt.note == "picture: 200x48, scaled to cover 32x32 and cropped at the centre"
    next(session)
    assert receipt.to_json()["note"] == receipt.note
    event = session.timeline.events[-1].event
    assert event.picture is not None
    assert event.picture.pixels.shape == (32, 32, 3)


def test_events_with_pictures_and_masks_are_written_and_read(tmp_path: Path) -> None:
    event = StreamEvent(
        mask=torch.rand(5, 7), picture=Picture(picture(), "reference"), input=(3, 4, 4), settings={"steps": 1}
    )
    for other in (
        decode_event(encode_event(event, {}))[0],
        event_from_json(json.loads(json.dumps(event_to_json(event))), 16.0),
    ):
        assert torch.equal(other.mask, event.mask)  # type: ignore[arg-type]
        assert other.picture is not None
        assert torch.equal(other.picture.pixels, picture())
        assert (other.picture.use, other.input) == ("reference", (3, 4, 4))
    Image.fromarray(picture().numpy()).save(tmp_path / "a.png")
    read = Picture.read(tmp_path / "a.png", 32, 32, "reference")
    assert torch.equal(read.pixels, picture())


REFUSED: list[tuple[Any, str]] = [
    (lambda: Picture(torch.zeros(3, 3)), "picture: expected uint8 pixels"),
    (lambda: Picture("a.png"), "picture: expected uint8 pixels"),  # type: ignore[arg-type]
    (lambda: Picture(np.zeros((0, 4, 3), np.uint8)), "picture: expected uint8 pixels"),  # type: ignore[arg-type]
    (lambda: Picture(picture(), "start"), "use: expected scene or reference, found 'start'"),  # type: ignore[arg-type]
    (lambda: StreamEvent(picture="a.png"), "picture: expected a Picture, found 'a.png'"),  # type: ignore[arg-type]
    (lambda: StreamEvent(picture=Picture(picture()), cache="keep"), "as scene it comes with cache clear"),
    (lambda: StreamEvent(RED, picture=Picture(picture()), over=2.0), "over: a picture begins a scene"),
    (
        lambda: StreamEvent(picture=Picture(picture(), "reference"), cache="clear"),
        "as reference it comes with cache recache, found cache clear",
    ),
    (
        lambda: StreamEvent(picture=Picture(picture(), "reference"), sink="keep"),
        "a reference takes the sink's place, found sink keep",
    ),
    (lambda: Picture.of_png(b"no picture", "scene"), "picture: cannot be read"),
    (lambda: Picture.from_json({"png": "???"}), "png: expected base64"),
    (lambda: Picture.from_json({"png": "", "us": 1}), "unknown key 'us'"),
    (lambda: Picture.from_json("a.png"), "expected use and png"),
    (lambda: mask_from_json({"shape": [2, 2]}), "mask: expected shape and float32"),
    (lambda: mask_of({"box": [0, 0, 1]}), r"mask: box: expected \[left, top, right, bottom\]"),
    (lambda: mask_of({"box": [0.5, 0, 0.2, 1]}), "mask: box: expected"),
    (lambda: mask_of({"circle": 1}), "mask: unknown key 'circle'"),
    (lambda: mask_of(7), "mask: expected a file, a box or null, found 7"),
    (lambda: mask_of("none.png"), "none.png: no such file"),
    (lambda: StreamEvent(input=(3, 1)), "input: expected frame numbers that never fall"),
    (lambda: StreamEvent(input="12"), "input: expected frame numbers that never fall"),
    (lambda: StreamEvent(input=(-1,)), "input: expected frame numbers that never fall"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_cannot_be_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_references_that_no_sink_can_be_replaced_by_are_refused(pipelines: list[Pipeline]) -> None:
    reference = StreamEvent(picture=Picture(picture(), "reference"))
    for session, message in (
        (opened(pipelines[2]), "has no sink whose place a reference could take"),
        (opened(pipelines[0], recache_mode="joint"), "needs recache_mode chunks, this stream has joint"),
    ):
        receipt = session.submit(reference)
        assert receipt.status == "refused"
        assert receipt.reason is not None
        assert message in receipt.reason
    early = pipelines[0].open(RED)
    receipt = early.submit(reference)
    words = early.submit(StreamEvent(BLUE))
    next(early)
    assert receipt.status == "refused"
    assert "which there is not yet" in str(receipt.reason)
    assert words.status == "applied"
    # behind a cut there is none either, until the scene has one
    session = opened(pipelines[0])
    session.submit(StreamEvent(cache="clear"))
    next(session)
    assert session.submit(reference).status == "accepted"
    next(session)
    assert session.submit(reference).status == "accepted"


def test_masks_come_from_files_and_boxes(tmp_path: Path) -> None:
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", np.eye(8))
    assert torch.equal(mask_of(str(tmp_path / "a.png")), torch.eye(8))
    assert torch.equal(mask_of(tmp_path / "a.npy"), torch.eye(8))
    box = mask_of({"box": [0.5, 0, 1, 1]})
    assert (float(box[0, 0]), float(box[0, -1])) == (0, 1)
    assert torch.equal(mask_of(None), torch.ones(1, 1))
    np.save(tmp_path / "moving.npy", np.ones((3, 8, 8)))
    with pytest.raises(InputError, match=r"expected \(height, width\), found"):
        mask_of(tmp_path / "moving.npy")
