"""Opening streams: half precision, start pictures, the prompt cache, positions that end, misfit parts."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from models.context import ChunkPlan
from streamgen import CheckpointError, InputError, Pipeline, StreamEvent, load_pipeline
from streamgen.motion.tracks import drag
from streamgen.stream.timeline import Start, Timeline
from tests.streams import BLUE, RED, take
from tests.tiny_checkpoints import generator_noise, write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("opening"))


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Pipeline:
    return load_pipeline(checkpoint)


def picture() -> torch.Tensor:
    return (generator_noise((32, 32, 3), 3) * 40 + 128).clamp(0, 255).to(torch.uint8)


def test_half_precision_streams_steers_and_resumes(
    checkpoint: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    """bfloat16 is the default on a GPU. The pictures stay near those of float32."""
    half = load_pipeline(checkpoint, dtype=torch.bfloat16)
    steered = []
    for model in (half, pipeline):
        session = model.open(RED, seed=1, image=picture(), settings={"context_noise": 0.1})
        first = take(session, 4)
        session.submit(StreamEvent(prompt=BLUE, motion=drag((0.2, 0.2), (0.8, 0.8), 12)))
        steered.append(torch.cat([first, take(session, 2)]))
        session.save(tmp_path / "stream")
        assert torch.equal(take(session, 2), take(model.resume(tmp_path / "stream"), 2))
    assert (steered[0].float() - steered[1].float()).abs().mean() < 4
    with pytest.raises(InputError, match=r"expected dtype torch\.bfloat16, found"):
        half.resume(tmp_path / "stream")


def test_a_stream_from_an_image_replays_with_it_alone(pipeline: Pipeline) -> None:
    """As an image or as a clip of one frame; without it, or with another, it would be another stream."""
    session = pipeline.open(RED, seed=2, image=picture())
    frames = take(session, 3)
    timeline = Timeline.from_json(json.loads(session.timeline.dumps()))
    for start in ({"image": picture()}, {"video": picture()[None]}):
        assert torch.equal(frames, take(pipeline.replay(timeline, **start), 3))
    name = f"1 frame with sha256 {hashlib.sha256(picture().numpy().tobytes()).hexdigest()[:12]}"
    with pytest.raises(InputError, match=f"^timeline: image or video: expected {name}, found none$"):
        pipeline.replay(timeline)
    with pytest.raises(InputError, match=f"expected {name}, found 1 frame with sha256"):
        pipeline.replay(timeline, image=picture().flip(0))
    with pytest.raises(InputError, match=f"expected none, found {name}"):
        pipeline.replay(timeline_without_start(pipeline), image=picture())


def timeline_without_start(pipeline: Pipeline) -> Timeline:
    session = pipeline.open(RED, seed=2)
    next(session)
    return session.timeline


def test_the_start_is_of_the_frames_that_were_encoded(pipeline: Pipeline) -> None:
    """Of seven frames the first five fill whole latent frames."""
    clip = (generator_noise((7, 32, 32, 3), 4) * 40 + 128).clamp(0, 255).to(torch.uint8)
    seven, five = (pipeline.open(RED, video=clip[:n]).timeline.start for n in (7, 5))
    assert seven == five == Start(5, hashlib.sha256(clip[:5].numpy().tobytes()).hexdigest())
    assert pipeline.open(RED, video=clip[:4]).timeline.start != five


def test_the_start_goes_along_with_every_copy_of_a_stream(pipeline: Pipeline, tmp_path: Path) -> None:
    """Saved, forked and restored, also by a session that started from nothing."""
    session = pipeline.open(RED, seed=2, image=picture())
    take(session, 2)
    session.save(tmp_path / "stream")
    other = pipeline.open(RED)
    other.restore(session.snapshot())
    for copy in (session.fork(), pipeline.resume(tmp_path / "stream"), other):
        assert copy.timeline.start == session.timeline.start is not None
        again = pipeline.replay(copy.timeline, image=picture())
        assert torch.equal(take(again, 4)[-8:], take(copy, 2))


def test_start_pictures_that_cannot_be_shown_are_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    """An image stands still for a first chunk that is longer; a clip has to fill it."""
    whole_chunks = load_pipeline(write_checkpoint(tmp_path / "chunky", ChunkPlan(2, 2, 2, 4)))
    assert whole_chunks.open(RED, image=picture()).timeline.start == Start.of(picture().expand(5, -1, -1, -1))
    with pytest.raises(InputError, match=r"start: expected at least 5 frames .* found 1"):
        whole_chunks.open(RED, video=picture()[None])
    take(whole_chunks.open(RED, video=picture()[None].repeat(5, 1, 1, 1)), 2)
    for frames in (picture()[None][:0], picture()):
        with pytest.raises(InputError, match="start: expected uint8 frames"):
            pipeline.open(RED, video=frames)


def test_the_last_prompts_are_kept(pipeline: Pipeline) -> None:
    """By use, not by when they were first seen, and never more than 64."""
    first = pipeline.text(RED)
    for i in range(63):
        pipeline.text(f"a star {i}")
    assert pipeline.text(RED) is first
    pipeline.text("a star 63")
    assert pipeline.text(RED) is first
    assert len(pipeline._texts) == 64


def test_absolute_positions_end_in_one_line_and_the_stream_stays_usable(pipeline: Pipeline) -> None:
    session = pipeline.open(RED, settings={"rope": "absolute"})
    session.state.latents.ring.max_positions = 4
    take(session, 4)
    for _ in range(2):
        with pytest.raises(InputError, match="rope: absolute positions end after 4 latent frames"):
            next(session)
    session.submit(StreamEvent(prompt=BLUE, cache="clear"))
    take(session, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["motion_encoder"].update(channels=5), "dit.motion_channels: expected 5"),
        (lambda c: c["dit"].update(text_dim=16), "dit.text_dim: expected 8"),
        (lambda c: c["dit"].update(latent_channels=8), "dit.latent_channels: expected 4"),
        (lambda c: c["motion_encoder"].update(temporal=2), "motion_encoder.temporal: expected 4"),
        (lambda c: c.update(sampling=3), "key sampling: expected a section of keys, found 3"),
        (lambda c: c["tokenizer"].update(dim=16.0), r"key tokenizer\.dim: expected int, found 16\.0"),
        (lambda c: c["dit"].update(dim="24"), r"key dit\.dim: expected int, found '24'"),
    ],
)
def test_parts_that_do_not_fit_one_another_are_named(
    checkpoint: Path, tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    config = OmegaConf.to_container(OmegaConf.load(checkpoint / "config.yaml"))
    change(config)
    OmegaConf.save(OmegaConf.create(config), tmp_path / "config.yaml")
    with pytest.raises(CheckpointError, match=message):
        load_pipeline(tmp_path)
