"""`decoder: none`: streams of latents, without weights or memory for a picture decoder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from streamgen import InputError, Pipeline, StreamEvent, load_pipeline
from streamgen.families import inspect_checkpoint
from streamgen.wan.config import WanConfig
from streamgen.wan.convert import convert_weights
from streamgen.wan.load import setup_of
from streamgen.wan.memory import memory_parts
from streamgen.wan.options import TextOptions, WanOptions
from tests.command_line import call
from tests.tiny_wan import SMALL, write_published

NAME = "wan-1.3b-longlive"


def opened(*more: str, weights: Path | None = None) -> Pipeline:
    options = WanOptions(weights=weights, random_weights=weights is None, overrides=(*SMALL, *more))
    return load_pipeline(NAME, "cpu", wan=options)


@pytest.fixture(scope="module")
def alone() -> Pipeline:
    return opened("decoder=none")


def latents(session: Any, chunks: int) -> torch.Tensor:
    return torch.cat([next(session).latents for _ in range(chunks)], 1)


def test_latents_are_those_of_a_model_with_a_decoder(alone: Pipeline, tmp_path: Path) -> None:
    assert alone.parts.networks.tokenizer is None
    first, second = alone.open("a boat", seed=3, decode=False), opened().open("a boat", seed=3)
    for session in (first, second):
        session.submit(StreamEvent(prompt="a train"), at_frame=20)
    chunk = next(first)
    assert (len(chunk.frames), tuple(chunk.latents.shape)) == (0, (1, 3, 16, 4, 6))
    assert torch.equal(torch.cat([chunk.latents, latents(first, 4)], 1), latents(second, 5))
    first.save(tmp_path / "state")
    again, twin = alone.resume(tmp_path / "state"), first.fork()
    expected = latents(first, 2)
    assert torch.equal(latents(again, 2), expected)
    assert torch.equal(latents(twin, 2), expected)
    assert torch.equal(latents(alone.replay(first.timeline, decode=False), 7)[:, -6:], expected)


def test_nothing_of_a_decoder_is_read_or_counted(tmp_path: Path) -> None:
    write_published(tmp_path / "weights")
    for name in ("Wan2.1_VAE.pth", "taew2_1.pth"):
        (tmp_path / "weights" / name).unlink()
    pipeline = opened("decoder=none", weights=tmp_path / "weights")
    assert latents(pipeline.open("a boat", decode=False), 2).isfinite().all()
    assert isinstance(pipeline.config, WanConfig)
    parts = memory_parts(
        pipeline.config, setup_of(pipeline.config, pipeline.device, pipeline.dtype, TextOptions())
    )
    assert set(parts) == {"network", "cache", "prompts", "step"}
    convert_weights(tmp_path / "weights", tmp_path / "ours", "streamgen", NAME, (*SMALL, "decoder=none"))
    report = inspect_checkpoint(tmp_path / "ours")
    assert (report["problems"], "vae" in report) == ([], False)
    ours = load_pipeline(tmp_path / "ours", "cpu")
    again = latents(ours.open("a boat", decode=False), 2)
    assert torch.equal(again, latents(pipeline.open("a boat", decode=False), 2))


def test_pictures_are_refused_in_one_line(alone: Pipeline) -> None:
    image = torch.zeros(32, 48, 3, dtype=torch.uint8)
    timeline = alone.open("a boat", decode=False).timeline
    doors: list[Any] = [
        lambda: alone.open("a boat"),
        lambda: alone.open("a boat", image=image, decode=False),
        lambda: alone.open("a boat", video=image[None], decode=False),
        lambda: alone.tokenizer,
    ]
    for door in doors:
        with pytest.raises(
            InputError, match="was loaded without a picture decoder, it streams latents alone"
        ):
            door()
    assert timeline.events == []


def test_the_command_line_refuses_such_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [x for pair in (*SMALL, "decoder=none") for x in ("--model-set", pair)]
    model = ["--model", NAME, "--random-weights", *small]
    line = call(capsys, "render", "a boat", "-o", tmp_path / "a.mp4", *model).error()
    assert (
        line == f"error: model {NAME}: has decoder none and streams latents alone; a video needs vae or tiny"
    )
    (tmp_path / "jobs.txt").write_text("a boat\n")
    for more in ([], ["--dry-run"]):
        assert (
            "has decoder none"
            in call(capsys, "render", tmp_path / "jobs.txt", "-o", tmp_path / "out", *model, *more).error()
        )
    write_published(tmp_path / "weights")
    convert_weights(tmp_path / "weights", tmp_path / "ours", "streamgen", NAME, (*SMALL, "decoder=none"))
    assert "without a picture decoder" in call(capsys, "bench", "--model", tmp_path / "ours").error()
    wrong = call(capsys, "render", "a boat", "-o", tmp_path / "a.mp4", "--model", NAME, "--random-weights",
                 "--model-set", "decoder=nothing").error()  # fmt: skip
    assert "decoder" in wrong
    assert json.dumps(wrong)


def test_the_demo_refuses_such_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    from demo.__main__ import main

    write_published(tmp_path / "weights")
    convert_weights(tmp_path / "weights", tmp_path / "ours", "streamgen", NAME, (*SMALL, "decoder=none"))
    app = typer.Typer()
    app.command()(main)
    code = typer.main.get_command(app).main(
        ["--model", str(tmp_path / "ours"), "--port", "7999"], standalone_mode=False
    )
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert (code, len(lines)) == (2, 1)
