"""What was recorded, as files for other programs: MP4, WebM and GIF, at the picture's size or enlarged.

Pictures are enlarged by whole factors: small ones pixel by pixel, so that they look as they do on the page,
others smoothly. Enlarging them here spares them the blur that players and editors put on small videos.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from PIL import Image

from streamgen.errors import InputError, OutputError
from streamgen.video.write import VideoFileSink, reason_of

from .recording import Lineage, Recording

Format = Literal["mp4", "webm", "gif"]
MEDIA = {"mp4": "video/mp4", "webm": "video/webm", "gif": "image/gif"}
WAYS = ("pixels", "smooth")
# Of the larger side of what is exported, in pixels; and of all frames of a GIF, which is held in memory.
MAX_SIDE = 3840
MAX_GIF_PIXELS = 200_000_000
# GIF counts in hundredths of a second, and browsers slow down what is quicker than 2 of them.
_GIF_UNIT, _GIF_SHORTEST = 100, 2
_GIF_COLOURS = 256


def write_export(
    recording: Recording,
    frames: int,
    fps: float,
    path: Path,
    scale: int = 1,
    way: str = "pixels",
    branch: Lineage | None = None,
) -> int:
    """Write the first `frames` recorded frames; returns how many there were.

    Args:
        path: its suffix (.mp4, .webm, .gif) says which format.
        scale: whole factor by which pictures are enlarged.
        way: `pixels` or `smooth`.
        branch: that is written; by default the one that plays.

    Raises:
        InputError: nothing is recorded, values out of range, or the session ended meanwhile.
        OutputError: the disk is full.
    """
    height, width = (scale * side for side in recording.size)
    if way not in WAYS:
        raise InputError(f"way: expected pixels or smooth, found {way[:40]!r}")
    if scale < 1 or max(height, width) > MAX_SIDE:
        most = MAX_SIDE // max(recording.size)
        raise InputError(f"scale: expected 1 to {max(1, most)}, found {scale}")
    branch = branch or recording.lineage()
    count = min(frames, branch.frames)
    if count < 1:
        raise InputError("nothing has been recorded yet")
    runs = _enlarged(recording.read(count, branch), scale, way)
    if path.suffix == ".mp4":
        with VideoFileSink(path, height, width, fps) as sink:
            for run in runs:
                sink.write(run)
            return sink.frames_written
    if path.suffix == ".gif" and count * height * width > MAX_GIF_PIXELS:
        lasts = MAX_GIF_PIXELS / (height * width * fps)
        raise InputError(f"a GIF of this size may last {lasts:.1f} s, found {count / fps:.1f}: take WebM")
    try:
        if path.suffix == ".gif":
            return _write_gif(runs, count, fps, path)
        return _write_webm(runs, (height, width), fps, path)
    except (OSError, av.FFmpegError) as error:
        raise OutputError(f"{path}: cannot be written ({reason_of(error)})") from None


def _enlarged(runs: Iterator[np.ndarray], scale: int, way: str) -> Iterator[np.ndarray]:
    for run in runs:
        if scale == 1:
            yield run
        elif way == "pixels":
            yield run.repeat(scale, axis=1).repeat(scale, axis=2)
        else:
            size = (run.shape[2] * scale, run.shape[1] * scale)
            yield np.stack(
                [np.asarray(Image.fromarray(one).resize(size, Image.Resampling.LANCZOS)) for one in run]
            )


def _write_webm(runs: Iterator[np.ndarray], size: tuple[int, int], fps: float, path: Path) -> int:
    rate, written = Fraction(fps).limit_denominator(1001), 0
    with av.open(str(path), "w", format="webm") as container:
        stream: Any = container.add_stream("libvpx-vp9", rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        # a page goes to any frame of it
        stream.gop_size = max(1, round(rate))
        # one thread: a session's export must not take the engine's cores
        stream.options = {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6", "threads": "1"}
        for run in runs:
            for picture in run:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = written, 1 / rate
                container.mux(stream.encode(frame))
                written += 1
        container.mux(stream.encode(None))
    return written


def _write_gif(runs: Iterator[np.ndarray], count: int, fps: float, path: Path) -> int:
    """A GIF of `count` frames that loops. Frames begin at whole hundredths of a second, at least two apart,
    so that some are shown longer than others and all together as long as they should be.
    """
    held: list[Image.Image] = []
    begins: list[int] = []
    for number, picture in enumerate(picture for run in runs for picture in run):
        begin = round(number * _GIF_UNIT / fps)
        if not begins or begin - begins[-1] >= _GIF_SHORTEST:
            begins.append(begin)
            held.append(Image.fromarray(picture).quantize(_GIF_COLOURS, dither=Image.Dither.NONE))
    end = max(round(count * _GIF_UNIT / fps), begins[-1] + _GIF_SHORTEST)
    ends = [*begins[1:], end]
    durations = [1000 // _GIF_UNIT * (end - begin) for begin, end in zip(begins, ends, strict=True)]
    held[0].save(path, save_all=True, append_images=held[1:], duration=durations, loop=0)
    return len(held)
