"""Decodes one clip. `video_read` runs this file as a script in a child process.

A separate process, because decoders hang where no signal reaches them (dmlc/decord#269) and crash on
damaged files, and both must cost the reader of the clip one error line at most. It is run by its path, not
as part of the package, so that a clip does not wait for the imports of the package.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image

# Timestamps are rounded to their container's clock, 1 ms in Matroska: a frame this late (s) is on time. Not
# 1 ms itself, by which NTSC rates are late once a second.
_LATE = 0.8e-3
# Containers with other files' names in them, and text shown as video.
_NOT_CLIPS = {"hls", "applehttp", "concat", "dash", "tty", "imf", "ffmetadata", "image2", "sdp", "rtsp"}
_DECORD_BATCH = 16


class ClipError(Exception):
    """What is wrong with the clip, in one line."""


class Request(NamedTuple):
    """What to read: the first `max_frames` frames at `fps`, each covering height x width."""

    path: str
    fps: float
    height: int
    width: int
    max_frames: int


class Probe(NamedTuple):
    """What a container says of its video: frames (0: unknown), pixel aspect, turn to apply in degrees, and
    its own kind.
    """

    frames: int
    pixel_aspect: float
    rotation: int
    container: str


def cover(picture: np.ndarray, height: int, width: int, pixel_aspect: float = 1.0) -> np.ndarray:
    """Scales uint8 (H, W, 3) to cover height x width and crops the centre.

    Args:
        picture: uint8 (H, W, 3).
        height: rows of the result.
        width: columns of the result.
        pixel_aspect: width / height of one pixel of `picture`.
    """
    rows, columns = picture.shape[:2]
    if (rows, columns) == (height, width) and pixel_aspect == 1.0:
        return picture
    box_height, box_width = float(rows), rows * width / height / pixel_aspect
    if box_width > columns:
        box_height, box_width = columns * pixel_aspect * height / width, float(columns)
    left, top = (columns - box_width) / 2, (rows - box_height) / 2
    box = (left, top, min(left + box_width, columns), min(top + box_height, rows))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC, box=box))


def decode(request: Request, backend: str) -> np.ndarray:
    """The clip as uint8 (T, H, W, 3), read with "decord" or "pyav"; what decord cannot read, PyAV tries.

    Raises:
        ClipError: no video in it, nothing decodable, or cut off.
    """
    probe = _probe(request.path)
    if backend == "decord":
        frames = _with_decord(request, probe)
        if frames is not None:
            return frames
    return _with_pyav(request, probe)


def shown_at(starts: np.ndarray, end: float, fps: float, max_frames: int) -> np.ndarray:
    """Indices of the frames on screen at 0, 1/fps, 2/fps, ... before `end`; they come up at `starts` (s)."""
    count = min(max(int(np.ceil((end - _LATE) * fps)), 1), max_frames)
    return np.maximum(np.searchsorted(starts, np.arange(count) / fps + _LATE, side="right") - 1, 0)


def _open(path: str) -> Any:
    try:
        return av.open(path, options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ClipError("not a video, or one cut off at its start") from error


def _probe(path: str) -> Probe:
    with _open(path) as container:
        if _NOT_CLIPS & set(container.format.name.split(",")):
            raise ClipError(f"not a video but a {container.format.name} file")
        stream = _video(container)
        if stream is None:
            kinds = sorted({stream.type for stream in container.streams})
            raise ClipError(f"has no video, only {' and '.join(kinds)}" if kinds else "has no video")
        try:
            rotation = next((round(frame.rotation) for frame in container.decode(stream)), None)
        except (av.FFmpegError, OSError) as error:
            raise ClipError("none of its frames can be decoded (damaged or cut off)") from error
        if rotation is None:
            raise ClipError("has zero frames that can be decoded")
        aspect = float(stream.sample_aspect_ratio or 1)
        return Probe(stream.frames, aspect, rotation, container.format.name)


def _with_decord(request: Request, probe: Probe) -> np.ndarray | None:
    """None where decord fails, or has fewer frames than the container promises."""
    # Neither non-square pixels nor turned frames are decord's business. Out of transport streams, which it
    # cannot seek in, it gives the nearest frame it has for one it has not, and says so in its log alone.
    if probe.rotation or probe.pixel_aspect != 1.0 or probe.container in ("mpegts", "mpeg"):
        return None
    try:
        import decord

        reader = decord.VideoReader(request.path, ctx=decord.cpu(0), num_threads=1)
        if len(reader) == 0 or _cut_off(len(reader), probe):
            return None
        times = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64)
        # As decord finds them in AVI.
        if not np.isfinite(times).all() or (np.diff(times[:, 0]) <= 0).any():
            return None
        times -= times[0, 0]
        wanted = shown_at(times[:, 0], times[-1, 1], request.fps, request.max_frames)
        unique, places = np.unique(wanted, return_inverse=True)
        frames = np.empty((len(unique), request.height, request.width, 3), np.uint8)
        for first in range(0, len(unique), _DECORD_BATCH):
            batch = reader.get_batch(unique[first : first + _DECORD_BATCH].tolist()).asnumpy()
            for offset, picture in enumerate(batch):
                frames[first + offset] = cover(picture, request.height, request.width)
    except Exception:  # decord raises RuntimeError, IndexError, its own errors: whatever it is, PyAV has a go
        return None
    return frames[places]


def _with_pyav(request: Request, probe: Probe) -> np.ndarray:
    pictures: list[np.ndarray] = []
    decoded, damaged = 0, False
    with _open(request.path) as container:
        try:
            for frame, until in _timed(container):
                decoded += 1
                picture: np.ndarray | None = None
                while len(pictures) < request.max_frames and len(pictures) / request.fps + _LATE < until:
                    picture = _picture(frame, request, probe) if picture is None else picture
                    pictures.append(picture)
                if len(pictures) == request.max_frames:
                    break
        except (av.FFmpegError, OSError):
            damaged = True
    if len(pictures) < request.max_frames and (damaged or _cut_off(decoded, probe)):
        promised = f" of {probe.frames}" if probe.frames else ""
        raise ClipError(f"damaged or cut off: only {decoded}{promised} frames can be decoded")
    return np.stack(pictures)


def played(request: Request) -> Iterator[np.ndarray]:
    """The clip's frames one by one, uint8 (H, W, 3), however many they are; `max_frames` 0 is all of them.

    Raises:
        ClipError: as `decode`, behind the frames that could be decoded.
    """
    probe = _probe(request.path)
    decoded, made, damaged = 0, 0, False
    with _open(request.path) as container:
        try:
            for frame, until in _timed(container):
                decoded += 1
                picture: np.ndarray | None = None
                while made / request.fps + _LATE < until:
                    picture = _picture(frame, request, probe) if picture is None else picture
                    yield picture
                    made += 1
                    if made == request.max_frames:
                        return
        except (av.FFmpegError, OSError):
            damaged = True
    if damaged or _cut_off(decoded, probe):
        promised = f" of {probe.frames}" if probe.frames else ""
        raise ClipError(f"damaged or cut off: only {decoded}{promised} frames can be decoded")


def count(request: Request) -> int:
    """How many frames `played` gives.

    Raises:
        ClipError: as `_probe`.
    """
    _probe(request.path)
    made = 0
    with contextlib.suppress(av.FFmpegError, OSError), _open(request.path) as container:
        for _, until in _timed(container):
            made += max(0, int(np.ceil((until - _LATE) * request.fps - 1e-9)) - made)
    return made


def _timed(container: Any) -> Iterator[tuple[Any, float]]:
    """Each decoded frame with the time (s, the first frame's is 0) at which the next one takes its place."""
    stream = _video(container)
    stream.thread_type = "AUTO"
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    # AVI has decoding times only, which are wrong for reordered frames.
    untimed = container.format.name == "avi"
    origin, start = 0.0, 0.0
    shown: Any = None
    for index, frame in enumerate(container.decode(stream)):
        time = index / rate if untimed or frame.time is None else float(frame.time)
        if shown is None:
            origin = time
        else:
            start = max(time - origin, start)
            yield shown, start
        shown = frame
    if shown is not None:
        duration = float((shown.duration or 0) * shown.time_base) if shown.time_base else 0.0
        yield shown, start + max(duration or 1 / rate, 2 * _LATE)


def _video(container: Any) -> Any:
    """The first video stream that is not the cover of an audio file; None without one."""
    cover_art = av.stream.Disposition.attached_pic
    return next((s for s in container.streams.video if not s.disposition & cover_art), None)


def _picture(frame: Any, request: Request, probe: Probe) -> np.ndarray:
    pixels = frame.to_ndarray(format="rgb24")
    turns = probe.rotation // 90 % 4
    aspect = 1 / probe.pixel_aspect if turns % 2 else probe.pixel_aspect
    return cover(np.ascontiguousarray(np.rot90(pixels, turns)), request.height, request.width, aspect)


def _cut_off(frames: int, probe: Probe) -> bool:
    # Edit lists hide a few frames at either end of an undamaged file.
    return frames < probe.frames - max(2, probe.frames // 20)


def main(arguments: list[str]) -> int:
    """Decodes what the JSON in arguments[0] asks for into the .npy file it names, or with "play" frame by
    frame to standard output; exit 3: the clip is bad.
    """
    order = json.loads(arguments[0])
    folder = Path(order["folder"])
    try:
        if order.get("play"):
            for picture in played(Request(**order["request"])):
                sys.stdout.buffer.write(picture.tobytes())
                sys.stdout.buffer.flush()
            return 0
        if order.get("count"):
            (folder / "count.txt").write_text(str(count(Request(**order["request"]))), encoding="utf-8")
            return 0
        frames = decode(Request(**order["request"]), order["backend"])
    except ClipError as error:
        (folder / "error.txt").write_text(str(error), encoding="utf-8")
        return 3
    np.save(folder / "frames.npy", frames)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
