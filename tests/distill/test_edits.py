"""The suite of live input: clips of the world, one thing of them to change, and what is read of it."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distill.evaluation import streams
from distill.evaluation.edits import STRENGTHS, variant_of, world_clip
from distill.evaluation.figures import figures_of
from distill.evaluation.measures import Instruments, kept_psnr, read_video
from distill.evaluation.report import _edit_sections
from distill.evaluation.rows import Row, row_of
from distill.evaluation.streams import StreamSpec, Subject, Video, load_video, save_video
from distill.evaluation.suites import EDIT_KINDS, EvaluationConfig, SuiteBuilder, evaluation_config
from distill.scenes import COLOURS, HELD_OUT, SHAPES, caption_vocabulary
from models.text_encoder import Vocabulary
from streamgen import load_pipeline
from tests.quick_instruments import quick_instruments
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs

FRAMES = 33


@pytest.fixture(scope="module")
def specs() -> list[StreamSpec]:
    builder = SuiteBuilder(EvaluationConfig(edits=6), Vocabulary(caption_vocabulary()))
    return builder.edits()


def test_each_clip_is_to_change_in_one_thing_at_every_strength(specs: list[StreamSpec]) -> None:
    assert len(specs) == 6 * len(STRENGTHS)
    for spec in specs:
        assert spec.edit is not None
        before = Subject(*world_clip(64, spec.edit.number, 1).subject)
        (after,) = spec.subjects
        one, two = dataclasses.asdict(before), dataclasses.asdict(after)
        assert {name for name in one if one[name] != two[name]} == {spec.kind}
        assert (COLOURS[after.colour], SHAPES[after.shape]) not in HELD_OUT
        assert spec.variant == variant_of(spec.edit.strength)
    first = specs[: len(STRENGTHS)]
    assert len({(spec.prompt, spec.seed) for spec in first}) == 1
    assert len({row_of(spec, {}, "w", "s").key for spec in specs}) == len(specs)
    assert [spec.kind for spec in specs[:: len(STRENGTHS)]] == [*EDIT_KINDS, *EDIT_KINDS]


def test_a_smaller_suite_is_the_beginning_of_a_larger_one(specs: list[StreamSpec]) -> None:
    more = SuiteBuilder(EvaluationConfig(edits=8), Vocabulary(caption_vocabulary())).edits()
    assert more[: len(specs)] == specs
    assert evaluation_config({"size": "full"}).edits == 64
    assert evaluation_config({"size": "small"}).edits == 0


def test_a_clip_shows_the_same_whatever_its_length() -> None:
    short, long = world_clip(64, 3, 5), world_clip(64, 3, FRAMES)
    assert short.subject == long.subject
    assert torch.equal(short.path[0], long.path[0])
    assert torch.equal(long.frames, world_clip(64, 3, FRAMES).frames)


def video_of(spec: StreamSpec, frames: Tensor | None = None) -> Video:
    """What a stream would be that gives back its input, or these frames."""
    assert spec.edit is not None
    clip = world_clip(64, spec.edit.number, FRAMES)
    before = dataclasses.replace(spec, subjects=(Subject(*clip.subject),), frames=FRAMES)
    made = clip.frames if frames is None else frames
    return Video(before, made, 0, clip.path, tuple(range(1, FRAMES, 4)), clip.frames)


@pytest.mark.slow
def test_what_is_left_as_it_is_keeps_all_and_noise_keeps_nothing(specs: list[StreamSpec]) -> None:
    """On the world's own clips the measures say what is there."""
    instruments: Instruments = quick_instruments(64)
    for spec in specs[:: len(STRENGTHS)]:
        kept = read_video(instruments, video_of(spec))
        assert kept["error"] < 0.03
        assert min(kept[name] for name in ("colour", "background")) > 0.9
        if spec.kind != "background":
            assert kept["psnr"] > 50
        else:
            assert kept["psnr"] is None
        noise = torch.randint(0, 255, (FRAMES, 64, 64, 3), dtype=torch.uint8)
        lost = read_video(instruments, video_of(spec, noise))
        assert lost["error"] > 0.2
        assert kept["psnr"] is None or lost["psnr"] is None or lost["psnr"] < 15


@pytest.mark.slow
def test_backgrounds_are_compared_where_there_is_no_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed object is no change of the background."""
    instruments = quick_instruments(64)
    clip = world_clip(64, 3, 9)
    reading = instruments.frames(clip.frames)
    painted = clip.frames.clone()
    painted[reading.masks.any(1)] = torch.tensor([250, 250, 250], dtype=torch.uint8)

    def check() -> None:
        assert kept_psnr(clip.frames, painted, reading, reading) > 50
        darker = (clip.frames.float() * 0.8).to(torch.uint8)
        assert kept_psnr(clip.frames, darker, reading, reading) < 30

    from distill.evaluation import reading as reader

    assert_needs(check, monkeypatch, reader, "max_pool2d", lambda x, *rest: torch.zeros_like(x))


def row(kind: str, strength: float, right: float, psnr: float | None, seed: int) -> Row:
    read = {"colour": 0.0, "shape": 0.0, "background": 0.0, kind: right}
    read |= {"error": 0.1 * right, "psnr": psnr, "seam": 0.5}
    told = {"subjects": [{"colour": "red"}]}
    return Row("model", "edits", variant_of(strength), kind, "p", seed, None, told, read, "w", "s")


def test_figures_are_by_strength_and_by_what_changes() -> None:
    rows = [row("colour", 0.75, 1.0, 30.0, 0), row("shape", 0.75, 0.5, 20.0, 1)]
    rows += [row("background", 0.75, 0.0, None, 2), row("colour", 1.0, 0.25, 10.0, 0)]
    figures = figures_of(rows)
    assert figures["edits.75.right"].value == pytest.approx(0.5)
    assert figures["edits.75.colour.right"].value == pytest.approx(1.0)
    assert figures["edits.75.path_error"].value == pytest.approx(0.05)
    assert figures["edits.75.kept_psnr"].value == pytest.approx(25.0)
    assert (figures["edits.75.kept_psnr"].n, figures["edits.50.right"].n) == (2, 0)
    (section,) = _edit_sections(figures)
    assert [line[0] for line in section.parts[1].rows] == ["0.75", "1"]  # type: ignore[union-attr]
    assert _edit_sections(figures_of([])) == []


def test_a_stream_listens_to_its_clip_and_its_frames_are_kept_below_it(
    specs: list[StreamSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same spec, the same frames; another strength, others."""
    monkeypatch.setattr(streams, "world_clip", lambda size, number, frames: world_clip(32, number, frames))
    pipeline = load_pipeline(write_checkpoint(tmp_path / "model", steps=4, words=caption_vocabulary()))
    some = [dataclasses.replace(spec, frames=9) for spec in specs[:4]]
    videos = [streams.render(pipeline, None, spec, {}) for spec in some]  # type: ignore[arg-type]
    assert videos[0].source is not None
    assert videos[0].frames.shape == videos[0].source.shape == (9, 32, 32, 3)
    assert len({video.frames.numpy().tobytes() for video in videos}) == 4
    again = streams.render(pipeline, None, some[1], {})  # type: ignore[arg-type]
    assert torch.equal(again.frames, videos[1].frames)
    save_video(videos[0], tmp_path / "a.safetensors")
    kept = load_video(some[0], tmp_path / "a.safetensors")
    assert torch.equal(kept.frames, torch.cat([videos[0].source, videos[0].frames], 1))
