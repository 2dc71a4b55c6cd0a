"""Exports: every format has all frames at their time, enlarged without blur, and says what it cannot be."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import demo.exports
from demo.exports import write_export
from demo.recording import Recording
from streamgen.errors import InputError
from tests.tiny_models import assert_needs

FPS = 16.0
COLOURS = ((220, 40, 40), (40, 200, 40), (40, 40, 220))


def picture(number: int) -> np.ndarray:
    """Left half in a colour, right half in the next one: their edge tells blur."""
    made = np.empty((32, 48, 3), np.uint8)
    made[:, :24], made[:, 24:] = COLOURS[number % 3], COLOURS[(number + 1) % 3]
    return made


@pytest.fixture
def recording() -> Iterator[Recording]:
    made = Recording(32, 48, 2**24)
    for start in range(0, 24, 4):
        made.add(start, np.stack([picture(start + i) for i in range(4)]))
    yield made
    made.close()


def frames_of(path: Path) -> list[np.ndarray]:
    if path.suffix == ".gif":
        with Image.open(path) as gif:
            found = []
            for number in range(gif.n_frames):
                gif.seek(number)
                found.append(np.asarray(gif.convert("RGB")))
            return found
    with av.open(str(path)) as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def close(found: np.ndarray, number: int, scale: int, most: float) -> bool:
    wanted = picture(number).repeat(scale, 0).repeat(scale, 1)
    return bool(np.abs(found.astype(int) - wanted).mean() < most)


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif"])
def test_every_format_has_all_frames_in_order(recording: Recording, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    assert write_export(recording, 20, FPS, path, scale=4) == 20
    found = frames_of(path)
    assert len(found) == 20
    assert found[0].shape == (128, 192, 3)
    assert all(close(one, number, 4, 12) for number, one in enumerate(found))


def test_small_pictures_stay_sharp(
    recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        write_export(recording, 4, FPS, tmp_path / "a.gif", scale=8)
        row = frames_of(tmp_path / "a.gif")[0][100]
        assert len({tuple(pixel) for pixel in row.tolist()}) == 2, "nothing lies between the two colours"

    real = demo.exports._enlarged
    assert_needs(
        check, monkeypatch, demo.exports, "_enlarged", lambda runs, scale, way: real(runs, scale, "smooth")
    )


def test_a_gif_lasts_as_long_as_the_stream(recording: Recording, tmp_path: Path) -> None:
    for fps, least in ((16.0, 24), (90.0, 8)):
        write_export(recording, 24, fps, tmp_path / "a.gif")
        with Image.open(tmp_path / "a.gif") as gif:
            total = 0
            for number in range(gif.n_frames):
                gif.seek(number)
                total += gif.info["duration"]
                assert gif.info["duration"] >= 20, "browsers slow down what is quicker"
            assert gif.n_frames >= least
        assert total == pytest.approx(1000 * 24 / fps, abs=20)


@pytest.mark.parametrize(
    ("scale", "way", "frames", "told"),
    [
        (0, "pixels", 4, "scale: expected 1 to 80, found 0"),
        (81, "pixels", 4, "scale: expected 1 to 80, found 81"),
        (2, "blurry", 4, "way: expected pixels or smooth, found 'blurry'"),
        (1, "pixels", 0, "nothing has been recorded yet"),
        (1, "pixels", -5, "nothing has been recorded yet"),
    ],
)
def test_what_cannot_be_is_told(
    recording: Recording, tmp_path: Path, scale: int, way: str, frames: int, told: str
) -> None:
    with pytest.raises(InputError, match=told):
        write_export(recording, frames, FPS, tmp_path / "a.webm", scale, way)
    assert not list(tmp_path.iterdir())


def test_a_gif_that_is_too_large_is_told(recording: Recording, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a GIF of this size may last 1\.3 s, found 1\.5: take WebM"):
        write_export(recording, 24, FPS, tmp_path / "a.gif", scale=80)
