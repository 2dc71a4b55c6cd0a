"""The memory estimate of the tiny family: its parts are what is allocated; what does not fit is refused."""

from pathlib import Path

import pytest
import torch

import streamgen.tiny.load
import streamgen.tiny.memory
from streamgen import load_pipeline
from streamgen.errors import CheckpointError
from streamgen.tiny.config import TinyConfig
from streamgen.tiny.memory import check_memory, stream_parts
from tests.command_line import call
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "small", steps=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"window_frames": 12, "sink_frames": 2}])
def test_parts_are_what_a_stream_allocates(
    dtype: torch.dtype, settings: dict[str, int], checkpoint: Path
) -> None:
    pipeline = load_pipeline(checkpoint, "cpu", dtype)
    assert isinstance(pipeline.config, TinyConfig)
    session = pipeline.open("a red circle", settings=settings)
    next(session)
    next(session)
    parts = stream_parts(pipeline.config, session.state.latents.ring.plan, dtype)
    assert session.state.decoder is not None
    state = session.state.decoder.tokenizer.tensors()
    assert parts["decoder state"] == sum(4 * x.numel() for x in state.values() if x.is_floating_point())
    for stream in (session, session.fork()):
        assert parts["cache"] == stream.state.latents.ring.allocated_bytes()
    assert parts["prompts"] == 2 * session.controls.text.context.size_bytes()


def test_openings_and_forks_are_checked(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load_pipeline(checkpoint)
    assert isinstance(pipeline.config, TinyConfig)
    session = pipeline.open("a red circle")
    next(session)
    session.save(tmp_path / "state")
    needed = sum(stream_parts(pipeline.config, pipeline.plan, torch.float32).values())
    for left in (needed, needed - 1):
        monkeypatch.setattr(streamgen.tiny.memory, "free_bytes", lambda device, left=left: left)
        for door in (
            lambda: pipeline.open("sea"),
            session.fork,
            lambda: pipeline.resume(tmp_path / "state"),
        ):
            if left == needed:
                door()
                continue
            with pytest.raises(
                CheckpointError, match=r"memory: a stream of 32x32 needs .* would fit: window"
            ):
                door()
    with pytest.raises(CheckpointError, match="would fit: window_frames"):
        pipeline.open("sea", settings={"window_frames": 1000})


def test_loading_is_checked(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(streamgen.tiny.memory, "free_bytes", lambda device: 1000)

    def check() -> None:
        done = call(
            capsys, "render", "sea", "-o", tmp_path / "a.mp4", "--seconds", "0.1", "--model", checkpoint
        )
        assert done.code == 2
        assert "error: memory: 32x32 needs" in done.error()

    assert_needs(check, monkeypatch, streamgen.tiny.load, "check_memory", lambda *_: None)
    pipeline_config = streamgen.tiny.load.read_tiny_config(checkpoint)
    monkeypatch.setattr(streamgen.tiny.memory, "free_bytes", lambda device: None)
    check_memory(pipeline_config, CPU, torch.float32)
