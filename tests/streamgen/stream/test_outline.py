"""Outlines: snapshots without cache and decoder, for streams that have to go on where a whole one would be
too much to keep.
"""

from pathlib import Path

import pytest
import torch

import streamgen.stream.snapshot
from models.kv_cache import CacheRing
from models.video_codec import VideoCodec
from streamgen import Pipeline, Session, StreamEvent, load_pipeline
from streamgen.engine.decoder import DecoderState
from streamgen.stream.snapshot import read_snapshot, write_snapshot
from tests.streams import BLUE, RED, take
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load_pipeline(write_checkpoint(tmp_path_factory.mktemp("model"), steps=1))


def outlined(session: Session, pipeline: Pipeline, folder: Path) -> Session:
    """The stream in what could be another process, from an outline of it."""
    write_snapshot(session.snapshot(outline=True), folder / "outline")
    snapshot = read_snapshot(folder / "outline", torch.device("cpu"))
    assert not [name for name in snapshot.tensors if name.startswith(("cache.", "decoder."))]
    return pipeline.resume(folder / "outline")


def test_a_stream_goes_on_from_an_outline_as_after_a_rebuild(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents are those of the same stream whose cache and sink are made anew, across a change of words."""

    def check() -> None:
        session = pipeline.open(RED, seed=3)
        take(session, 4)
        session.submit(StreamEvent(BLUE, cache="keep"))
        take(session, 3)
        again = outlined(session, pipeline, tmp_path)
        session.submit(StreamEvent(cache="rebuild", sink="refresh"))
        for _ in range(3):
            expected, found = next(session), next(again)
            assert (found.start_frame, found.index) == (expected.start_frame, expected.index)
            assert torch.equal(found.latents, expected.latents)
        assert again.controls.prompt == BLUE
        assert again.timeline.to_json() == session.timeline.to_json(), (
            "the rebuild is told, so a replay is exact"
        )

    def pretended(self: CacheRing, cursor: object) -> None:
        self.holds = self.sink_holds = cursor.content  # type: ignore[attr-defined]

    assert_needs(check, monkeypatch, CacheRing, "lose", pretended)


def test_pictures_of_an_outline_follow_those_before(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder is brought up to date: pictures are nearer to those that it would have made than those of
    one that begins here.
    """

    def check() -> None:
        session = pipeline.open(RED, seed=3)
        take(session, 6)
        again = outlined(session, pipeline, tmp_path)
        session.submit(StreamEvent(cache="rebuild", sink="refresh"))
        expected, found = next(session).frames, next(again).frames
        assert found.shape == expected.shape
        apart = (found.float() - expected.float()).abs().mean()
        moved = (expected.float() - take(session, 1).float()).abs().mean()
        assert apart < 0.2 * moved, (float(apart), float(moved))

    def cold(codec: VideoCodec, held: object, latents: object, latent_frames: int) -> DecoderState:
        return DecoderState(DecoderState.initial(codec).tokenizer, latent_frames)

    assert_needs(check, monkeypatch, streamgen.stream.snapshot, "_decoder", cold)


def test_an_outline_is_small_and_does_not_grow(pipeline: Pipeline) -> None:
    session = pipeline.open(RED)
    sizes = []
    for _ in range(12):
        take(session, 1)
        sizes.append(session.snapshot(outline=True).size_bytes())
    assert sizes[-1] == sizes[-2]
    assert sizes[-1] < 0.5 * session.snapshot().size_bytes()
