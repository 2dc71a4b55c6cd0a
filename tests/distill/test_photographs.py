"""Clips of moving photographs: where the pictures come from, how they move, and that a stage draws them."""

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import distill.photographs.clips as clips_module
from distill.photographs import (
    PHOTOGRAPHS,
    PhotographClips,
    PhotographConfig,
    photograph_paths,
    read_photographs,
)
from distill.photographs.motion import Draw, Outline, draw_path
from distill.photographs.motion import Path as Way
from distill.stages.tokenizer import TokenizerStage
from distill.trainer import Tick
from streamgen.errors import InputError
from tests.distill.test_tokenizer_stage import CPU, DATA, run_config
from tests.tiny_models import assert_needs

CALM = PhotographConfig(objects=0, cut=0.0)


def texture(seed: int, height: int = 96, width: int = 120) -> Tensor:
    """A smooth picture (3, H, W) in colour."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(30, 220, (1, 3, height // 8, width // 8), generator=generator).float()
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return smooth.clamp(0, 255).to(torch.uint8)[0]


def plain(value: int) -> Tensor:
    return torch.full((3, 64, 64), value, dtype=torch.uint8)


def without_light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        clips_module, "draw_light", lambda draw, moments, grid: torch.ones(len(moments), 1, 1, 1)
    )


@pytest.mark.parametrize(("frames", "size"), [(1, 32), (5, 64), (9, 128)])
def test_a_clip_is_a_function_of_its_seed(frames: int, size: int) -> None:
    source = PhotographClips([texture(1), texture(2)], PhotographConfig())
    video = source.sample(3, frames, size, seed=7)
    assert video.shape == (3, frames, 3, size, size)
    assert float(video.abs().max()) <= 1
    assert float(video.std()) > 0.1
    assert torch.equal(video, source.sample(3, frames, size, seed=7))
    # no clip of a batch depends on the others
    assert torch.equal(video[:1], source.sample(1, frames, size, seed=7))
    other = source.sample(3, frames, size, seed=8)
    assert all(not torch.equal(one, two) for one in video for two in other)


def test_a_camera_shows_the_same_picture_further_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pixels to the right with each frame: what is seen moves two pixels to the left."""
    without_light(monkeypatch)
    monkeypatch.setattr(clips_module, "_bent", lambda draw, places, moments: places)
    size = 32

    def pan(draw: Draw, moments: Tensor, fastest: float, still: float) -> Way:
        place = torch.stack([moments * 2 * 2 / size, torch.zeros_like(moments)], 1)
        return Way(place, torch.zeros_like(moments), torch.ones_like(moments))

    monkeypatch.setattr(clips_module, "draw_path", pan)
    source = PhotographClips([texture(3)], CALM)

    def check() -> None:
        for seed in range(6):
            (video,) = source.sample(1, 4, size, seed)
            left, right = video[..., 2:], video[..., :-2]
            onwards = (video[1:, ..., :-2] - video[:-1, ..., 2:]).abs().max()
            # half of them are mirrored: there it moves to the right
            back = (left[1:] - right[:-1]).abs().max()
            assert min(float(onwards), float(back)) < 1e-3
            assert float((video[1:] - video[:-1]).abs().max()) > 0.02

    assert_needs(
        check,
        monkeypatch,
        clips_module,
        "_seen",
        lambda grid, camera: grid.expand(len(camera.turn), -1, -1, -1),
    )


def test_paths_begin_at_rest_and_keep_to_the_speed() -> None:
    moments = torch.arange(17.0)
    assert all(not draw_path(Draw(seed), moments, 0.08, still=1.0).place.any() for seed in range(5))
    paths = [draw_path(Draw(seed), moments, 0.08, still=0.0) for seed in range(200)]
    steps = torch.stack([path.place.diff(dim=0).norm(dim=1).mean() for path in paths]) / 2
    assert float(steps.max()) < 0.25
    assert float(steps.median()) < 0.08
    assert float(steps.min()) > 0
    sizes = torch.stack([path.size for path in paths])
    assert 0.3 < float(sizes.min()) < 0.9
    assert 1.1 < float(sizes.max()) < 3.4
    turned = torch.stack([path.turn[-1] for path in paths])
    assert 0.2 < float((turned == 0).float().mean()) < 0.8


def test_outlines_have_the_area_they_say() -> None:
    line = (torch.arange(200) + 0.5) / 100 - 1
    places = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)[None]
    none = torch.zeros(4)
    pixel = torch.tensor([0.01])
    disc = Outline(0.5, None, none, none).inside(places, pixel)
    assert float(disc.mean()) * 4 == pytest.approx(torch.pi * 0.25, rel=0.01)
    bar = Outline(0.1, 0.6, none, none).inside(places, pixel)
    assert float(bar.mean()) * 4 == pytest.approx(0.2 * 1.2, rel=0.02)
    assert float(bar[0, 100, 100]) == 1
    assert float(bar[0, 100, 130]) == 0


def test_patches_cover_and_scenes_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """With plain pictures all that differs within a frame is a patch, and from frame to frame a cut."""
    without_light(monkeypatch)
    pictures = [plain(40), plain(120), plain(220)]

    def uneven(config: PhotographConfig) -> int:
        video = PhotographClips(pictures, config).sample(12, 3, 32, seed=1)
        return int((video.flatten(3).std(-1) > 1e-4).any(-1).any(-1).sum())

    assert uneven(CALM) == 0

    def covered() -> None:
        assert uneven(replace(CALM, objects=3)) >= 4

    assert_needs(covered, monkeypatch, PhotographClips, "_covered", lambda self, draw, picture, *_: picture)
    cut = PhotographClips(pictures, replace(CALM, cut=1.0)).sample(12, 6, 32, seed=1)
    changes = (cut.diff(dim=1).abs().amax((2, 3, 4)) > 1e-4).sum(1)
    assert int(changes.max()) == 1
    assert int(changes.sum()) >= 6


def test_grey_photographs_are_drawn_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    without_light(monkeypatch)
    grey, colour = plain(120), plain(120)
    colour[0] = 0
    taken = []
    original = Draw.one_of
    monkeypatch.setattr(
        Draw, "one_of", lambda self, weights: taken.append(original(self, weights)) or taken[-1]
    )
    PhotographClips([grey, colour], CALM).sample(200, 1, 32, seed=2)
    assert 0.15 < taken.count(0) / 200 < 0.36


def test_packages_carry_the_photographs() -> None:
    paths = photograph_paths()
    assert len(paths) == len(set(paths)) == sum(len(names) for _, names in PHOTOGRAPHS.values())
    # what natural video is judged on is never drawn: no package of videos, no pictures of one
    assert all(path.suffix in {".png", ".jpg"} for path in paths)
    assert not {"skvideo", "imageio", "decord"} & set(PHOTOGRAPHS)
    pictures = read_photographs(paths)
    assert all(picture.shape[0] == 3 and min(picture.shape[1:]) >= 190 for picture in pictures)


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(InputError, match=r"a\.png: cannot be read as an image"):
        read_photographs([tmp_path / "a.png"])
    with pytest.raises(ValueError, match="32x32"):
        PhotographClips([texture(1)[:, :20]], CALM)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs scikit-image, .*streamgen\[photographs\]"):
        photograph_paths()


@pytest.mark.parametrize(
    ("key", "value"), [("share", 0.0), ("objects", -1), ("cut", 1.5), ("still", -0.1), ("fastest", 0.0)]
)
def test_settings_are_checked(key: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"photographs\.{key}: expected"):
        PhotographConfig(**{key: value})  # type: ignore[arg-type]


def test_the_stage_draws_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.stages.tokenizer.photograph_paths", list)
    monkeypatch.setattr("distill.stages.tokenizer.read_photographs", lambda paths: [texture(1), texture(2)])
    config = replace(run_config(tmp_path), photographs=PhotographConfig(share=0.6))
    stage = TokenizerStage(replace(config, data=replace(DATA, sizes=(32, 64))), CPU)

    def check() -> None:
        kinds: dict[tuple[int, bool], int] = {}
        drawn = []
        for step in range(60):
            batch = stage.batch(Tick(step, 0, 0, 1, 1, 0.5))
            # every clip of the world has an object, and none of these is marked
            drawn.append(not bool(batch.objects.any()))
            kinds[batch.video.shape[1], drawn[-1]] = batch.video.shape[-1]
        assert abs(sum(drawn) / 60 - 0.6) < 0.1
        assert set(kinds) == {(1, False), (1, True), (5, False), (5, True)}

    assert_needs(check, monkeypatch, stage.photographs, "sample", lambda *_: torch.zeros(1, 5, 3, 64, 64))
    # without the world there are no objects to measure on
    alone = TokenizerStage(replace(config, photographs=PhotographConfig(share=1.0)), CPU)
    with torch.no_grad():
        found = alone.evaluate(0, tmp_path)
    assert math.isnan(found["psnr_object"])
    assert found["psnr"] > 10
    place = Tick(3, 0, 0, 1, 1, 0.5)
    assert torch.equal(stage.batch(place).video, stage.batch(place).video)
