"""Pictures decoded beside the next chunk: the same bits, in order, whatever fails on the way."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.context import ChunkPlan
from streamgen import InputError, Pipeline, Session, StreamEvent, load_pipeline
from streamgen.engine.decoder import DecoderState, Decoding, StreamingDecoder
from streamgen.engine.parallel.mesh import Mesh
from tests.command_line import call
from tests.streams import BLUE, RED
from tests.thread_mesh import CPU
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs
from tests.waiting import PATIENCE

UNGUIDED = {"text_guidance": 1.0, "motion_guidance": 0.0}
RUNNERS = ("plain", "onnx", "ahead", "wave")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_checkpoint(tmp_path_factory.mktemp("model"), ChunkPlan(1, 1, 1, 3), steps=2)


def beside(model: Path) -> Pipeline:
    pipeline = load_pipeline(model)
    pipeline.decode_beside()
    return pipeline


def shown(session: Session, chunks: int = 8, behind: int = 2) -> list[Tensor]:
    """Pictures of a stream with a change of words, asked for some chunks later."""
    made = []
    for chunk in range(chunks):
        if chunk == 4:
            session.submit(StreamEvent(prompt=BLUE))
        made.append(next(session))
    return [chunk.frames for chunk in made[:behind]] + [chunk.frames for chunk in made[behind:]]


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_same_pictures_with_every_runner(
    runner: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = shown(load_pipeline(model).open(RED, settings=UNGUIDED, runner=runner))
    pipeline = beside(model)

    def check() -> None:
        made = shown(pipeline.open(RED, settings=UNGUIDED, runner=runner))
        assert all(torch.equal(*pair) for pair in zip(made, alone, strict=True))

    if runner != "plain":
        check()
        return
    # a state that is not the one behind the chunk before
    first = lambda state: DecoderState.initial(pipeline.tokenizer)  # noqa: E731
    assert_needs(check, monkeypatch, __import__("streamgen.engine.decoder", fromlist=["x"]), "at_rest", first)


def test_the_next_chunk_is_made_meanwhile(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk is handed over before its pictures are there, and the next one denoised while they are made."""
    pipeline = beside(model)
    session = pipeline.open(RED, runner="plain")
    gate, decode = threading.Event(), StreamingDecoder.decode

    def waiting(self: StreamingDecoder, latents: Tensor, state: DecoderState) -> Any:
        assert gate.wait(PATIENCE)
        return decode(self, latents, state)

    monkeypatch.setattr(StreamingDecoder, "decode", waiting)
    first = next(session)
    assert isinstance(first.pictures, Decoding)
    denoised = threading.Event()
    denoise = session.runner.denoise

    def told(task: Any) -> Tensor:
        made = denoise(task)
        denoised.set()
        return made

    monkeypatch.setattr(session.runner, "denoise", told)
    second: list[Any] = []
    thread = threading.Thread(target=lambda: second.append(next(session)))
    thread.start()
    # the second one is denoised, and waits: no more than one chunk's pictures are on their way
    assert denoised.wait(PATIENCE)
    thread.join(0.05)
    assert not second
    gate.set()
    thread.join(PATIENCE)
    assert len(first.frames) == 1
    assert len(second[0].frames) == 4


def test_what_fails_is_decoded_by_who_asks(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = shown(load_pipeline(model).open(RED, runner="plain"), 6)
    session = beside(model).open(RED, runner="plain")
    decode, calls = StreamingDecoder.decode, 0

    def failing(self: StreamingDecoder, latents: Tensor, state: DecoderState) -> Any:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise KeyboardInterrupt if threading.current_thread() is threading.main_thread() else RuntimeError
        return decode(self, latents, state)

    monkeypatch.setattr(StreamingDecoder, "decode", failing)

    def stubborn(work: Any) -> Any:
        for _ in range(5):
            try:
                return work()
            except (KeyboardInterrupt, RuntimeError):
                continue
        raise AssertionError("it fails for ever")

    made = []
    for chunk in range(6):
        if chunk == 4:
            session.submit(StreamEvent(prompt=BLUE))
        made.append(stubborn(lambda: next(session)))
    assert [chunk.index for chunk in made] == list(range(6))
    pictures = [stubborn(lambda chunk=chunk: chunk.frames) for chunk in made]
    assert all(torch.equal(*pair) for pair in zip(pictures, expected, strict=True))
    assert calls > 6


def test_a_snapshot_has_the_decoder_where_it_is(model: Path) -> None:
    pipeline = beside(model)
    session = pipeline.open(RED, runner="plain")
    shown(session, 5)
    snapshot = session.snapshot()
    again = Session.of(load_pipeline(model), snapshot)
    assert torch.equal(next(again).frames, next(session).frames)


def test_the_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", model, "--seconds", 1, "--threads", 1, "--runner", "plain", "-q"]
    digests = []
    for name, more in (("a", []), ("b", ["--decode-beside"]), ("c", ["--decoder-device", "cpu"])):
        done = call(capsys, "render", RED, "-o", tmp_path / f"{name}.mp4", *options, *more)
        assert done.code == 0, done.stderr
        record = json.loads((tmp_path / f"{name}.json").read_text())
        digests.append((record["sha256"], record["frames"], record["decoder_device"]))
    assert digests[0] == digests[1] == digests[2]
    done = call(capsys, "render", RED, "-o", tmp_path / "d.mp4", "--decoder-device", "gpu9", *options)
    assert done.code == 2
    assert "device gpu9" in done.error()
    pipeline = Pipeline(load_pipeline(model).parts, mesh=Mesh(0, 2, CPU))
    with pytest.raises(InputError, match="decoder device: not over 2 processes"):
        pipeline.decode_beside("cpu")
