"""Frame sinks: where the frames of a stream go.

`VideoFileSink` writes hybrid-fragmented MP4 to `<name>.part`: should the process die, what was written so
far plays; on a clean close the file turns into an ordinary MP4 and takes its final name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Colorspace

from ..errors import InputError, OutputError

# Code points of ITU-T H.273.
_BT709 = 1
_LIMITED_RANGE = 1

# x264's quickest arithmetic for its look-ahead made another video of the same frames once in some hundreds of
# times, with one thread as well. What every processor does alike takes 2 to 5 % more time.
_EXACT = "cpu-independent=1"

# Fragments while it grows, an ordinary MP4 once closed.
_MOVFLAGS = "hybrid_fragmented"


class FrameSink(Protocol):
    """Takes frames in order; a context manager, complete after a clean exit."""

    @property
    def frames_written(self) -> int:
        """Frames taken so far."""
        ...

    @property
    def sha256(self) -> str:
        """Hex digest of the raw frames taken so far: their uint8 RGB bytes, frame by frame, row by row."""
        ...

    def write(self, frames: npt.ArrayLike) -> None:
        """Takes uint8 RGB (T, H, W, 3).

        Raises:
            ValueError: another type or shape, or another size than before.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class NullSink:
    """Counts and digests frames and keeps none."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._size: tuple[int, ...] | None = None
        self.frames_written = 0

    @property
    def sha256(self) -> str:
        """Hex digest of the raw frames taken so far."""
        return self._digest.hexdigest()

    def write(self, frames: npt.ArrayLike) -> None:
        """Takes uint8 RGB (T, H, W, 3); see `FrameSink.write`."""
        self._take(frames)

    def _take(self, frames: npt.ArrayLike) -> np.ndarray:
        array = np.asarray(frames)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
            raise ValueError(f"frames must be uint8 (T, H, W, 3), found {array.dtype} {array.shape}")
        if self._size is not None and array.shape[1:3] != self._size:
            raise ValueError(f"frames must stay (height, width) {self._size}, found {array.shape[1:3]}")
        self._size = array.shape[1:3]
        array = np.ascontiguousarray(array)
        self._digest.update(array.data)
        self.frames_written += len(array)
        return array

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


class FrameMemorySink(NullSink):
    """Keeps all frames in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[np.ndarray] = []

    def write(self, frames: npt.ArrayLike) -> None:
        """Takes uint8 RGB (T, H, W, 3); see `FrameSink.write`."""
        self._parts.append(self._take(frames).copy())

    @property
    def frames(self) -> np.ndarray:
        """All frames so far, uint8 (T, H, W, 3).

        Raises:
            ValueError: none were written.
        """
        if not self._parts:
            raise ValueError("no frames were written")
        return np.concatenate(self._parts)


class VideoFileSink(NullSink):
    """Writes an H.264 MP4: 4:2:0 at crf 18, or lossless RGB.

    While open the file is `<path>.part`. It becomes `path` on a clean exit only; after an exception it
    stays as `.part`, closed as far as possible, and is removed if it holds no frame.

    Args:
        path: the final name; an existing file is replaced.
        height: even, of the frames.
        width: even, of the frames.
        fps: frames per second.
        lossless: libx264rgb at crf 0: every pixel comes back as it was (few players show it).
        head: a video of such a sink, of the same size and rate; its packets are copied in front, so that
            nothing of it is encoded again. Digest and count are of the frames written here alone.

    Raises:
        ValueError: odd or non-positive sizes or rates.
        OutputError: on enter, write and exit: the folder cannot be written or the disk is full.
        InputError: on enter: `head` cannot be read or was encoded otherwise.
    """

    def __init__(
        self,
        path: str | Path,
        height: int,
        width: int,
        fps: float | Fraction,
        lossless: bool = False,
        head: str | Path | None = None,
    ) -> None:
        super().__init__()
        if height < 2 or width < 2 or height % 2 or width % 2:
            raise ValueError(f"video sizes must be even and above 0, found height {height}, width {width}")
        if not 0 < fps <= 1000:
            raise ValueError(f"fps must be above 0 and at most 1000, found {fps}")
        self.path = Path(path)
        self.part_path = self.path.with_name(self.path.name + ".part")
        self._rate = Fraction(fps).limit_denominator(1001)
        self._size = (height, width)
        self._lossless = lossless
        self._head = None if head is None else Path(head)
        self._head_frames = 0
        self._file: _CarefulFile | None = None
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> Self:
        if self.path.is_dir():
            raise OutputError(f"{self.path}: is a folder, expected the name of a video file")
        with self._clear_errors():
            self._file = _CarefulFile(self.part_path)
        try:
            with self._clear_errors():
                self._open_container()
                if self._head is not None:
                    self._copy_head(self._head)
        except BaseException:
            self._abandon()
            raise
        return self

    def _open_container(self) -> None:
        # The name ends in .part, so the format has to be told. Every fragment goes to the file at once.
        options = {"movflags": _MOVFLAGS, "flush_packets": "1"}
        self._container = av.open(self._file, "w", format="mp4", options=options)
        codec = "libx264rgb" if self._lossless else "libx264"
        stream = self._container.add_stream(codec, rate=self._rate)
        stream.height, stream.width = self._size or (0, 0)
        stream.pix_fmt = "rgb24" if self._lossless else "yuv420p"
        stream.options = {
            "crf": "0" if self._lossless else "18",
            "preset": "veryfast",
            "x264-params": _EXACT,
        }
        if not self._lossless:
            # Untagged files are BT.601 to some players and BT.709 to others.
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED_RANGE
        stream.gop_size = max(round(self._rate), 1)
        self._stream = stream

    def _copy_head(self, head: Path) -> None:
        """The packets of a finished video, as they are, into the new one.

        Frames are encoded with look-ahead and reordered, so that decoding times run ahead of showing times by
        a constant: the last packet copied and the first one encoded follow each other without a gap.
        """
        # all that can be wrong is found before the header is written: closing a file without packets behind
        # that crashes the muxer (libavformat 62.12, hybrid fragments)
        self._stream.codec_context.open()
        packets = self._read_head(head)
        self._head_frames = len(packets)
        # a finished file counts from its first decoding time, an encoder from the first frame that is shown
        start = min(packet.pts for packet in packets)
        for packet in packets:
            packet.pts, packet.dts = packet.pts - start, packet.dts - start
            packet.stream = self._stream
            self._container.mux(packet)

    def _read_head(self, head: Path) -> list[Any]:
        try:
            with av.open(str(head)) as source:
                copied = source.streams.video[0]
                theirs = parameter_sets(copied.codec_context.extradata or b"")
                ours = parameter_sets(self._stream.codec_context.extradata or b"")
                if not ours or theirs != ours or copied.average_rate != self._rate:
                    raise InputError(
                        f"{head}: was encoded otherwise (by another version of the encoder, or in another "
                        "size or rate) and cannot be extended without encoding it again"
                    )
                # the muxer makes MP4's form of every packet out of the encoder's form
                convert = av.BitStreamFilterContext("h264_mp4toannexb", copied)
                packets = [made for packet in source.demux(copied) for made in convert.filter(packet)]
        except (av.FFmpegError, IndexError) as error:
            raise InputError(f"{head}: cannot be read as a video") from error
        if not packets:
            raise InputError(f"{head}: has no frames")
        return packets

    def write(self, frames: npt.ArrayLike) -> None:
        """Encodes uint8 RGB (T, H, W, 3); see `FrameSink.write`.

        Raises:
            OutputError: the disk is full or the file can no longer be written.
            RuntimeError: the sink is not open.
        """
        if self._container is None:
            raise RuntimeError(f"{self.path}: the sink is not open, use it in a with statement")
        first = self._head_frames + self.frames_written
        array = self._take(frames)
        with self._clear_errors():
            for offset, picture in enumerate(array):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                if not self._lossless:
                    frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
                frame.pts = first + offset
                frame.time_base = 1 / self._rate
                self._container.mux(self._stream.encode(frame))

    def complete(self) -> None:
        """Ends the video under its `.part` name, whole and on the disk; leaving the context renames it.

        Raises:
            OutputError: the disk is full or the file can no longer be written.
        """
        with self._clear_errors():
            self._finish()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None or self.frames_written == 0:
            self._abandon()
            return
        try:
            with self._clear_errors():
                self._finish()
                os.replace(self.part_path, self.path)
                sync_folder(self.path.parent)
        except BaseException:
            self._abandon()
            raise

    def _finish(self) -> None:
        """Flushes encoder and container and brings the file to the disk."""
        container, self._container = self._container, None
        if container is not None:
            try:
                container.mux(self._stream.encode(None))
            finally:
                container.close()
        file, self._file = self._file, None
        if file is not None:
            file.finish()

    def _abandon(self) -> None:
        """Ends without the final name: what is readable of the part stays, an empty part goes."""
        with contextlib.suppress(av.FFmpegError, OSError, ValueError):
            self._finish()
        if self.frames_written == 0:
            with contextlib.suppress(OSError):
                self.part_path.unlink()

    @contextlib.contextmanager
    def _clear_errors(self) -> Any:
        try:
            yield
            if self._file is not None and self._file.failure is not None:
                raise self._file.failure
        except (OSError, av.FFmpegError) as error:
            cause = self._file.failure if self._file is not None and self._file.failure else error
            raise OutputError(f"{self.path}: cannot be written ({reason_of(cause)})") from error


class _CarefulFile:
    """A file for the muxer that keeps the first failure to itself, for the sink to ask for.

    FFmpeg loses some write errors on the way up, and its MP4 muxer crashes the process when it is flushed
    after one (libavformat 62.12, hybrid fragments), so that to the muxer every write succeeds.
    """

    def __init__(self, path: Path) -> None:
        self.failure: OSError | None = None
        # Unbuffered, so that what was written survives the death of the process.
        self._raw = path.open("wb", buffering=0)
        self.name = str(path)

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        try:
            while view and self.failure is None:
                view = view[self._put(view) :]
        except OSError as error:
            self.failure = error
        return len(data)

    def _put(self, view: memoryview) -> int:
        return self._raw.write(view) or 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def finish(self) -> None:
        """Brings the content to the disk and closes.

        Raises:
            OSError: some of it could not be written.
        """
        try:
            if self.failure is None:
                os.fsync(self._raw.fileno())
        except OSError as error:
            self.failure = error
        finally:
            self._raw.close()
        if self.failure is not None:
            raise self.failure


def parameter_sets(extradata: bytes) -> list[bytes]:
    """The H.264 sequence and picture parameter sets of a stream, from either of the two forms they come in:
    between start codes (Annex B) or with lengths (avcC, ISO/IEC 14496-15). Streams that share them can be one
    file.
    """
    if extradata[:1] != b"\x01":
        units = re.split(rb"\x00\x00\x00?\x01", extradata)
        # information for people (type 6) is no parameter
        return [unit.rstrip(b"\0") for unit in units if unit and unit[0] & 31 in (7, 8)]
    found: list[bytes] = []
    place = 5
    for mask in (31, 255):
        count = extradata[place] & mask if place < len(extradata) else 0
        place += 1
        for _ in range(count):
            length = int.from_bytes(extradata[place : place + 2])
            found.append(extradata[place + 2 : place + 2 + length])
            place += 2 + length
    return found


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk, where the system can: else a power cut undoes a rename.

    Raises:
        OSError: the disk failed.
    """
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def reason_of(error: BaseException) -> str:
    """Why a file could not be written, in a few words."""
    if isinstance(error, OSError) and error.errno is not None:
        known = {
            errno.ENOSPC: "the disk is full",
            errno.ENOENT: "no such folder",
            errno.EACCES: "permission denied",
            errno.EROFS: "the disk is read-only",
        }
        return known.get(error.errno, os.strerror(error.errno).lower())
    return str(error).splitlines()[0] if str(error) else type(error).__name__
