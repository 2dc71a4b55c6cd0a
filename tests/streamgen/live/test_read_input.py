"""Clips and pipes as input: formats, rates, ends, and what is wrong with them."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from streamgen import InputError
from streamgen.engine.geometry import LatentGeometry
from streamgen.errors import Interrupted
from streamgen.live.open import RawFrames, open_input
from streamgen.live.read import EndsEarly, ReadInput, ThreadFrames, resampled
from streamgen.live.taken import Order, Taken
from streamgen.video.read import read_clip
from streamgen.video.write import VideoFileSink
from tests.live_input import clip
from tests.streamgen.video.test_containers import MAKERS
from tests.waiting import PATIENCE

GEOMETRY = LatentGeometry(32, 32)


def taken(source: ReadInput, *counts: int) -> list[Taken]:
    """Chunks of so many frames, until the input is over."""
    out: list[Taken] = []
    begun, following = False, 0
    for place, count in enumerate(counts):
        order = Order((0, place), count, begun, following)
        found = source.take(order)
        if found is None:
            break
        out.append(found)
        source.done(order)
        begun = bool(found.numbers)
        following = found.numbers[-1] + 1 if found.numbers else following
    return out


def opened(source: Any, raw: RawFrames | None = None, **more: Any) -> ReadInput:
    return open_input(source, GEOMETRY, 4, raw, **more)


@pytest.fixture
def piped(tmp_path: Path) -> Callable[[bytes], Path]:
    """A named pipe that gives bytes and is then closed."""
    threads: list[threading.Thread] = []

    def make(data: bytes) -> Path:
        path = tmp_path / f"pipe{len(threads)}"
        os.mkfifo(path)

        def write() -> None:
            with contextlib.suppress(BrokenPipeError):
                path.write_bytes(data)

        threads.append(threading.Thread(target=write, daemon=True))
        threads[-1].start()
        return path

    return make


def y4m(frames: Tensor, header: str = "W32 H32 F16:1 Ip C444", cut: int = 0) -> bytes:
    """Frames as planes of grey; C444 of grey pictures is exact but for the range of luma."""
    out = f"YUV4MPEG2 {header}\n".encode()
    for frame in frames:
        luma = (frame[..., 0].float() * 219 / 255 + 16).round().to(torch.uint8).numpy().tobytes()
        out += b"FRAME\n" + luma + bytes([128]) * (2 * 32 * 32)
    return out[: len(out) - cut]


def grey(frames: int) -> Tensor:
    return clip(frames)[..., :1].expand(-1, -1, -1, 3).contiguous()


def write_clip(path: Path, frames: Tensor, fps: int = 16) -> Path:
    with VideoFileSink(path, frames.shape[1], frames.shape[2], fps) as sink:
        sink.write(frames.numpy())
        sink.complete()
    return path


def test_a_clip_of_any_length_is_read_as_it_is_needed(tmp_path: Path) -> None:
    """And again from any frame: a rewind, a fork."""
    frames = torch.arange(60, dtype=torch.uint8)[:, None, None, None].expand(-1, 32, 32, 3) * 4
    source = opened(write_clip(tmp_path / "a.mp4", frames.contiguous()))
    chunks = taken(source, 1, *[4] * 20)
    assert [c.numbers[0] for c in chunks[:15]] == [0, *range(1, 57, 4)]
    assert chunks[15].numbers == (57, 58, 59, 59)
    assert (chunks[15].held, chunks[15].over) == (1, f"{tmp_path / 'a.mp4'} has ended")
    assert chunks[16].numbers == ()
    assert source.over(60)
    shown = torch.cat([c.frames for c in chunks[:15]]).float().mean((1, 2, 3))
    assert (shown - torch.arange(57) * 4).abs().max() < 6
    back = source.take(Order((1, 1), 4, True, 5))
    assert back is not None
    assert torch.equal(back.frames, chunks[2].frames)
    twin = source.twin()
    assert twin is not None
    again = twin.take(Order((0, 3), 4, True, 9))
    assert again is not None
    assert torch.equal(again.frames, chunks[3].frames)


def test_a_clip_of_another_size_and_rate(tmp_path: Path) -> None:
    frames = clip(30, size=(48, 80))
    source = opened(write_clip(tmp_path / "a.mp4", frames, fps=30))
    chunks = taken(source, *[4] * 5)
    assert [len(set(c.numbers)) for c in chunks] == [4, 4, 4, 4, 0]
    assert chunks[0].frames.shape == (4, 32, 32, 3)


@pytest.mark.parametrize("kind", ["rotation", "non-square pixels", "odd sizes"])
def test_clips_are_seen_as_a_start_from_them_is(kind: str, tmp_path: Path) -> None:
    path = MAKERS[kind](tmp_path)
    (first,) = taken(opened(path), 4)
    assert torch.equal(first.frames, torch.from_numpy(read_clip(path, 16, 32, 32, 4)))


@pytest.mark.parametrize("chroma", ["444", "420", "420jpeg", "420mpeg2", "420paldv", "422", "mono"])
def test_y4m_of_all_kinds(chroma: str, piped: Callable[[bytes], Path]) -> None:
    frames = torch.full((5, 32, 32, 3), 100, dtype=torch.uint8)
    frames[2:] = 180
    luma, size = 32 * 32, {"444": 2048, "422": 1024, "mono": 0}.get(chroma, 512)
    data = f"YUV4MPEG2 W32 H32 F16:1 Ip A1:1 C{chroma} XYSCSS=X\n".encode()
    for frame in frames:
        value = round(float(frame[0, 0, 0]) * 219 / 255 + 16)
        data += b"FRAME Ip\n" + bytes([value]) * luma + bytes([128]) * size
    chunks = taken(opened(piped(data)), 1, 4, 4)
    assert torch.equal(chunks[0].frames, frames[:1])
    assert (chunks[1].frames.int() - frames[1:].int()).abs().max() <= 1
    assert chunks[2].numbers == ()


def test_y4m_colours_are_those_of_bt601(piped: Callable[[bytes], Path]) -> None:
    """Red, as FFmpeg writes it: Y 81, U 90, V 240; and in the full range."""
    planes = {"": (81, 90, 240), " XCOLORRANGE=FULL": (76, 85, 255)}
    for more, (y, u, v) in planes.items():
        size = 32 * 32
        data = f"YUV4MPEG2 W32 H32 F16:1 C444{more}\nFRAME\n".encode()
        data += bytes([y]) * size + bytes([u]) * size + bytes([v]) * size
        (chunk,) = taken(opened(piped(data)), 1)
        assert (chunk.frames[0, 0, 0].int() - torch.tensor([255, 0, 0])).abs().max() <= 2


def test_y4m_of_another_rate_and_an_odd_size(piped: Callable[[bytes], Path]) -> None:
    data = b"YUV4MPEG2 W33 H17 F32:1 C420\n"
    for number in range(12):
        data += b"FRAME\n" + bytes([16 + 10 * number]) * (33 * 17) + bytes([128]) * (2 * 17 * 9)
    chunks = taken(opened(piped(data)), 1, 4, 4)
    shown = torch.cat([c.frames for c in chunks]).float().mean((1, 2, 3)) * 219 / 255
    assert torch.allclose(shown[:6], torch.arange(6) * 20.0, atol=1.5)
    assert chunks[1].held == 0
    assert chunks[2].held == 3


def test_raw_frames_with_a_size(piped: Callable[[bytes], Path]) -> None:
    frames = clip(5, size=(40, 24))
    data = frames.numpy().tobytes()
    chunks = taken(opened(piped(data), RawFrames((24, 40))), 1, 4)
    assert len(chunks[1].numbers) == 4
    exact = clip(5)
    chunks = taken(opened(piped(exact.numpy().tobytes()), RawFrames((32, 32), 16.0)), 1, 4)
    assert torch.equal(torch.cat([c.frames for c in chunks]), exact)


BAD_PIPES: list[tuple[bytes, RawFrames | None, str]] = [
    (b"", None, "found nothing in it"),
    (b"hello world, no frames", None, "raw RGB frames need --input-size WIDTHxHEIGHT"),
    (b"YUV4MPEG2 W32 H32" + b" X" * 2000, None, "its Y4M header has no end"),
    (b"YUV4MPEG2 H32 F16:1\n", None, "expected width and height in its Y4M header"),
    (b"YUV4MPEG2 W0 H32 F16:1\n", None, "expected width and height in its Y4M header"),
    (b"YUV4MPEG2 W99999 H32 F16:1\n", None, "expected sides of at most 16384, found 99999x32"),
    (b"YUV4MPEG2 W32 H32 F16:1 C420p10\n", None, "expected Y4M of 8 bits .* found C420p10"),
    (b"YUV4MPEG2 W32 H32 F16:1 It\n", None, r"expected progressive Y4M \(Ip\), found It"),
    (b"YUV4MPEG2 W32 H32 Ffast\n", None, "expected a frame rate of up to 1000, found Ffast"),
    (b"YUV4MPEG2 W32 H32 F16:0\n", None, "expected a frame rate of up to 1000, found F16:0"),
    (b"YUV4MPEG2 W32 H32 F16:1\n", None, "has no frames"),
    (b"YUV4MPEG2 W32 H32 F16:1\nFRA", None, "expected frame 0, found other bytes"),
    (b"YUV4MPEG2 W32 H32 F16:1\nPICTURE\nxx", None, "expected frame 0, found b'PICTURE'"),
    (b"YUV4MPEG2 W32 H32 F16:1\nFRAME\nxx", None, "in the middle of frame 0: 2 of 1536 bytes"),
    (b"YUV4MPEG2 W32 H32 F16:1\n", RawFrames((32, 32)), "says its own size .* expected no --input-size"),
    (b"abc", RawFrames((32, 32)), "in the middle of frame 0: 3 of 3072 bytes"),
    (b"", RawFrames((32, 32)), "has no frames"),
    (b"abc", RawFrames((0, 32)), "expected sides of 1 to 16384, found 0x32"),
]


@pytest.mark.parametrize(("data", "raw", "message"), BAD_PIPES)
def test_pipes_that_cannot_be_are_refused_in_one_line(
    data: bytes, raw: RawFrames | None, message: str, piped: Callable[[bytes], Path]
) -> None:
    path = piped(data)
    with pytest.raises(InputError, match=message) as caught:
        opened(path, raw)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("input ")
    assert str(path) in str(caught.value)


def test_a_pipe_that_closes_in_mid_frame_ends_there_and_says_so(piped: Callable[[bytes], Path]) -> None:
    """What came whole is shown, and nothing else."""
    frames = grey(6)
    source = opened(piped(y4m(frames, cut=100)))
    chunks = taken(source, 1, 4, 4)
    assert (torch.cat([c.frames for c in chunks[:2]]).int() - frames[:5].int()).abs().max() <= 1
    assert chunks[2].numbers == ()
    assert chunks[2].over is not None
    assert "ends in the middle of frame 5: 2972 of 3072 bytes" in chunks[2].over


def test_a_pipe_cannot_go_back(piped: Callable[[bytes], Path]) -> None:
    source = opened(piped(clip(40).numpy().tobytes()), RawFrames((32, 32)))
    taken(source, 1, 4, 4)
    with pytest.raises(InputError, match="cannot go back to frame 1, it is read but once"):
        source.take(Order((1, 1), 4, True, 1))
    assert source.twin() is None
    # and goes on where it was
    on = source.take(Order((1, 2), 4, True, 9))
    assert on is not None
    assert on.numbers == (9, 10, 11, 12)


def test_a_pipe_without_end_is_read_as_far_as_it_is_wanted(tmp_path: Path) -> None:
    """Its writer waits, and is let go of when nobody listens any more."""
    path, gone = tmp_path / "pipe", threading.Event()
    os.mkfifo(path)

    def write() -> None:
        frame = clip(1).numpy().tobytes()
        with contextlib.suppress(BrokenPipeError), path.open("wb", buffering=0) as pipe:
            while True:
                pipe.write(frame)
        gone.set()

    threading.Thread(target=write, daemon=True).start()
    source = opened(path, RawFrames((32, 32)))
    chunks = taken(source, 1, *[4] * 40)
    assert chunks[-1].numbers == (157, 158, 159, 160)
    assert not gone.is_set()
    del source, chunks
    assert gone.wait(PATIENCE)


def test_a_silent_pipe_can_be_left(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    holder = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(Interrupted):
            opened(path, RawFrames((32, 32)), stopped=lambda: True)
    finally:
        os.close(holder)


def test_clips_that_cannot_be_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no clip")
    (tmp_path / "empty.mp4").touch()
    for source, message in (
        (tmp_path / "none.mp4", "no such file"),
        (tmp_path, "no such file"),
        (tmp_path / "text.mp4", "not a video"),
        (tmp_path / "empty.mp4", "not a video"),
        ("", "expected a path"),
        (7, "expected a path"),
        (np.zeros((2, 2)), "expected uint8 frames"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            opened(source)
        assert "\n" not in str(caught.value)


def test_a_clip_that_is_cut_off_ends_early_and_says_so(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mp4"
    # its table of frames lies at the beginning, and promises more than there are
    with av.open(str(whole), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=16)
        stream.width = stream.height = 32
        for picture in clip(100):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24")))
        container.mux(stream.encode())
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    source = opened(cut)
    chunks = taken(source, 1, *[4] * 60)
    assert source.trouble is not None
    assert "damaged or cut off" in source.trouble
    assert chunks[-1].over == source.trouble


def test_trouble_behind_the_first_frames_is_told_with_the_end() -> None:
    def frames() -> Iterator[Tensor]:
        yield from clip(3)
        raise EndsEarly("x.mp4: damaged")

    source = ReadInput("x.mp4", ThreadFrames("x.mp4", frames, 8))
    chunks = taken(source, 1, 4, 4)
    assert (chunks[1].numbers, chunks[1].over) == ((1, 2, 2, 2), "x.mp4: damaged")
    assert source.trouble == "x.mp4: damaged"


def test_what_a_reader_did_not_foresee_is_not_an_end() -> None:
    def frames() -> Iterator[Tensor]:
        yield from clip(3)
        raise RuntimeError("disk on fire")

    source = ReadInput("x", ThreadFrames("x", frames, 8))
    taken(source, 1)
    with pytest.raises(RuntimeError, match="disk on fire"):
        source.take(Order((0, 1), 4, True, 1))


def test_a_reader_keeps_a_few_frames_alone() -> None:
    made: list[int] = []

    def frames() -> Iterator[Tensor]:
        for number in range(1000):
            made.append(number)
            yield torch.full((32, 32, 3), number % 256, dtype=torch.uint8)

    source = ReadInput("x", ThreadFrames("x", frames, 8))
    taken(source, *[4] * 25)
    assert 100 <= len(made) <= 112
    far = source.take(Order((0, 99), 4, True, 500, None, (600, 601, 601, 700)))
    assert far is not None
    assert far.frames[:, 0, 0, 0].tolist() == [600 % 256, 601 % 256, 601 % 256, 700 % 256]


def test_resampling_keeps_pace_over_hours() -> None:
    def numbers(rate: float, count: int) -> list[int]:
        return [int(x) for x in resampled((torch.tensor(i) for i in range(count)), rate, 16)]

    assert numbers(32.0, 8) == [0, 2, 4, 6]
    assert numbers(8.0, 4) == [0, 0, 1, 1, 2, 2, 3, 3]
    found = numbers(30000 / 1001, 3000)
    assert abs(len(found) - 1601.6) <= 1
    assert all(0 <= int(i * 30000 / 1001 / 16) - n <= 1 for i, n in enumerate(found))
