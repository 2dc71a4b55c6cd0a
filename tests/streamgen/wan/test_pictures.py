"""A picture starts every model: for chunk-wise ones it stands still for the first chunk. Sizes go by
whole tokens, with a note where the weights never saw that size.
"""

from pathlib import Path

import pytest
import torch
from PIL import Image

from streamgen import InputError, Pipeline, load_pipeline
from streamgen.engine.decoder import encode_frames
from streamgen.stream.timeline import Start
from streamgen.video.read import image_size
from streamgen.wan.config import wan_model_names
from streamgen.wan.options import WanOptions
from streamgen.wan.pictures import on_grid, parse_size, shaped_like, size_note
from tests.command_line import call
from tests.tiny_wan import SMALL

LONGLIVE = "wan-1.3b-longlive"
PICTURE = torch.randint(0, 255, (32, 48, 3), generator=torch.Generator().manual_seed(3)).to(torch.uint8)


def opened(name: str, *more: str) -> Pipeline:
    return load_pipeline(name, "cpu", wan=WanOptions(random_weights=True, overrides=(*SMALL, *more)))


@pytest.fixture
def portrait(tmp_path: Path) -> Path:
    path = tmp_path / "portrait.png"
    Image.new("RGB", (300, 450), (200, 40, 40)).save(path)
    return path


@pytest.mark.parametrize("name", wan_model_names())
def test_a_picture_starts_every_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["dit.motion_channels=16"] if name.endswith("motion") else []
    pipeline = opened(name, *more)
    still = pipeline.geometry.frames(pipeline.plan.length(0))
    assert still == (1 if pipeline.plan.chunk_frames == 1 else 9)

    session = pipeline.open("a boat", image=PICTURE)
    frames = PICTURE.expand(still, -1, -1, -1)
    assert session.timeline.start == Start.of(frames)
    first, second = next(session), next(session)
    assert torch.equal(first.latents, encode_frames(pipeline.tokenizer, frames))
    assert (first.steps, second.steps) == (0, pipeline.settings.steps)
    assert len(first.frames) == still
    without = pipeline.open("a boat")
    next(without)
    assert not torch.equal(second.latents, next(without).latents)
    again = pipeline.replay(session.timeline, image=PICTURE)
    next(again)
    assert torch.equal(next(again).latents, second.latents)
    if still > 1:
        monkeypatch.setattr(Pipeline, "start_pictures", lambda self, image, video: image[None])
        with pytest.raises(InputError, match="expected at least 9 frames for the first chunk"):
            pipeline.open("a boat", image=PICTURE)


def test_a_clip_that_is_too_short_is_refused_as_before() -> None:
    with pytest.raises(InputError, match="expected at least 9 frames for the first chunk of this model"):
        opened(LONGLIVE).open("a boat", video=PICTURE[None])


def test_what_a_picture_comes_to_is_said(portrait: Path) -> None:
    assert opened(LONGLIVE).picture_notes(portrait) == (
        "image: stands still for 9 frames, the first chunk of this model",
        "image: cropped at the centre, from 300x450 to the shape of 48x32",
    )
    upright = opened("wan-1.3b-causal-forcing-frame", "width=32", "height=48")
    assert upright.picture_notes(portrait) == upright.picture_notes(None) == ()


def test_a_camera_on_its_side_is_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "side.jpg", exif=exif)
    assert image_size(tmp_path / "side.jpg") == (20, 40)


@pytest.mark.parametrize(
    ("text", "found"),
    [("480x832", (480, 832)), ("480 × 850", (480, 848)), ("20x20", (16, 16)), ("24X40", (32, 32))],
)
def test_sizes_go_to_the_nearest_whole_tokens(text: str, found: tuple[int, int]) -> None:
    assert on_grid(*parse_size(text)) == found


@pytest.mark.parametrize(
    "text", ["", "480", "480x", "0x0", "8x480", "480x99999", "-480x832", "1e3x480", "picturex1"]
)
def test_sizes_that_cannot_be_are_one_line(text: str) -> None:
    with pytest.raises(InputError, match="--size") as caught:
        parse_size(text)
    assert "\n" not in str(caught.value)


def test_a_size_has_the_shape_of_a_picture_and_the_pixels_of_the_model() -> None:
    assert shaped_like((1080, 1920), (832, 480)) == (480, 848)
    assert shaped_like((100, 100), (832, 480)) == (624, 624)
    width, height = shaped_like((10_000, 1), (832, 480))
    assert (width, height) == (4096, 16)
    assert size_note((832, 480), (832, 480)) is None
    assert "made for 832x480" in (size_note((480, 832), (832, 480)) or "")


def test_a_portrait_from_the_command_line(
    tmp_path: Path, portrait: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [text for pair in SMALL for text in ("--model-set", pair)]
    command = ["render", "a boat", "-o", str(tmp_path / "out.mp4"), "--model", LONGLIVE, "--random-weights"]
    command += [*changes, "--seconds", "0.5", "--image", str(portrait)]
    done = call(capsys, *command, "--size", "picture")
    assert done.code == 0, done.stderr
    assert "--size picture: pictures of 32x48, in whole tokens of 16 pixels" in done.stderr
    assert "stands still for 9 frames" in done.stderr
    assert "cropped" not in done.stderr
    refused = call(capsys, *command[:-2], "--size", "picture").error()
    assert refused.startswith("error: --size picture: expected --image")
    assert "expected WIDTHxHEIGHT" in call(capsys, *command, "--size", "wide").error()
