"""Clips as people have them: every container is made here, and decord and PyAV must read the same from it."""

import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from streamgen.errors import InputError
from streamgen.video import decode_worker
from streamgen.video.decode_worker import Request, decode
from streamgen.video.read import read_clip

FRAMES = 20


def pictures(height: int = 48, width: int = 64) -> np.ndarray:
    """Frame k is of brightness 10 k + 20 on the left, and black on the right of its top quarter."""
    video = np.empty((FRAMES, height, width, 3), np.uint8)
    video[:] = (np.arange(FRAMES) * 10 + 20)[:, None, None, None]
    video[:, : height // 4, width // 2 :] = 0
    return video


def encode(
    path: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: int | Fraction = 16,
    times: list[int] | None = None,
    audio: bool = False,
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        if codec == "libx264":
            stream.options = {"crf": "4", "preset": "veryfast"}
        sound = container.add_stream("aac", rate=16000) if audio else None
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24" if picture.shape[-1] == 3 else "rgba")
            frame.pts, frame.time_base = index if times is None else times[index], 1 / Fraction(rate)
            container.mux(stream.encode(frame.reformat(format=pix_fmt)))
            if sound is not None:
                noise = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), "fltp", "mono")
                noise.sample_rate, noise.pts = 16000, index * 1000
                container.mux(sound.encode(noise))
        for each in container.streams:
            container.mux(each.encode(None))
    return path


def variable_rate(folder: Path) -> Path:
    times = [*range(10), *range(20, 40, 2)]
    return encode(folder / "a.mkv", pictures(), times=times)


def rotated(folder: Path) -> Path:
    """Turned by the matrix in its track header, as telephones do."""
    path = encode(folder / "a.mp4", pictures())
    content = bytearray(path.read_bytes())
    matrix = content.rindex(b"tkhd") + 4 + 4 + 20 + 8 + 8
    quarter = [0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30]
    content[matrix : matrix + 36] = b"".join(value.to_bytes(4, signed=True) for value in quarter)
    path.write_bytes(content)
    return path


def with_alpha(folder: Path) -> Path:
    frames = np.concatenate([pictures(), np.full((FRAMES, 48, 64, 1), 255, np.uint8)], axis=-1)
    return encode(folder / "a.mov", frames, "qtrle", "argb")


def animated_gif(folder: Path) -> Path:
    first, *others = (Image.fromarray(picture) for picture in pictures())
    first.save(folder / "a.gif", save_all=True, append_images=others, duration=60, loop=0)
    return folder / "a.gif"


def non_square(folder: Path) -> Path:
    """Pixels twice as wide as high."""
    with av.open(str(folder / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for picture in pictures():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return folder / "a.mkv"


MAKERS: dict[str, Callable[[Path], Path]] = {
    "variable rate": variable_rate,
    "rotation": rotated,
    "odd sizes": lambda folder: encode(folder / "a.mkv", pictures(47, 63), pix_fmt="yuv444p"),
    "alpha": with_alpha,
    "10-bit": lambda folder: encode(folder / "a.mkv", pictures(), pix_fmt="yuv420p10le"),
    "audio": lambda folder: encode(folder / "a.mp4", pictures(), audio=True),
    "webm": lambda folder: encode(folder / "a.webm", pictures(), "libvpx-vp9"),
    "gif": animated_gif,
    "NTSC": lambda folder: encode(folder / "a.mp4", pictures(), rate=Fraction(30000, 1001)),
    "MPEG-4 in AVI": lambda folder: encode(folder / "a.avi", pictures(), "mpeg4"),
    "MPEG-TS": lambda folder: encode(folder / "a.ts", pictures()),
    "one frame": lambda folder: encode(folder / "a.mp4", pictures()[:1]),
    "non-square pixels": non_square,
}


@pytest.fixture(params=MAKERS)
def container(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return MAKERS[request.param](tmp_path)


def test_decord_and_the_fallback_read_the_same(container: Path) -> None:
    """The same pictures, whoever decodes; conversions to RGB may round by a little."""
    wanted = Request(str(container), 16.0, 40, 56, 100)
    first, second = decode(wanted, "decord"), decode(wanted, "pyav")
    assert first.shape == second.shape
    assert first.shape[1:] == (40, 56, 3)
    assert np.abs(first.astype(int) - second).max() <= 3
    np.testing.assert_array_equal(read_clip(container, 16, 40, 56, 100), first)


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_what_is_read_is_what_was_written(tmp_path: Path, backend: str) -> None:
    for kind in ("odd sizes", "alpha", "10-bit", "audio", "webm", "gif"):
        folder = tmp_path / kind
        folder.mkdir()
        shown = decode(Request(str(MAKERS[kind](folder)), 16.0, 48, 64, FRAMES), backend)
        levels = shown[:, 24:, :24].mean(axis=(1, 2, 3))
        assert np.abs(levels - (np.arange(len(shown)) * 10 + 20)).max() < 12, kind
        assert shown[:, 2:8, 44:60].mean() < 16, kind
    turned = decode(Request(str(MAKERS["rotation"](tmp_path)), 16.0, 64, 48, 1), backend)[0]
    corners = [turned[8, 40], turned[8, 8], turned[56, 8], turned[56, 40]]
    dark = [int(corner.mean() < 10) for corner in corners]
    assert sum(dark) == 1, dark
    assert dark != [1, 0, 0, 0], "not turned"


def test_variable_rate_keeps_its_times(tmp_path: Path) -> None:
    for backend in ("decord", "pyav"):
        shown = decode(Request(str(variable_rate(tmp_path)), 16.0, 48, 64, 100), backend)
        numbers = np.rint((shown[:, 24:, :24].mean(axis=(1, 2, 3)) - 20) / 10).astype(int).tolist()
        assert numbers[:10] == list(range(10))
        assert numbers[10:20] == [9] * 10
        assert numbers[20:24] == [10, 10, 11, 11]


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_frames(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()


@pytest.mark.parametrize("spoil", [cut_in_half, without_frames], ids=["truncated", "zero frames"])
def test_both_refuse_what_is_broken(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = encode(tmp_path / "a.mp4", pictures())
    spoil(path)
    for backend in ("decord", "pyav"):
        with pytest.raises(decode_worker.ClipError) as caught:
            decode(Request(str(path), 16.0, 48, 64, 100), backend)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"a\.mp4: "):
        read_clip(path, 16, 48, 64, 100)


def test_a_clip_replaced_while_it_is_read_is_no_crash(tmp_path: Path) -> None:
    """Reading goes on with the old file, or fails in one line; the new one is never mixed in."""
    path = encode(tmp_path / "a.mp4", pictures())
    other = encode(tmp_path / "b.mp4", 255 - pictures())
    first = read_clip(path, 16, 48, 64, 100)
    shutil.copy(other, path)
    second = read_clip(path, 16, 48, 64, 100)
    assert first.shape == second.shape
    assert (first != second).any()
