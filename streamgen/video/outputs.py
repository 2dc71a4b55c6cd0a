"""What else is made of a clip's frames while they stream by: PNG files, a preview, a contact strip, digests.

Each is a `FrameTap`: it takes frames in order, is completed under a `.part` name, and takes its final name
only when the video does. Memory stays bounded whatever the length of the clip.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

PreviewKind = Literal["gif", "webp"]

_PREVIEW_FPS = 8
_PREVIEW_SECONDS = 12
_PREVIEW_SIDE = 256
#: Pictures in a contact strip, fewer of a shorter clip.
STRIP_FRAMES = 6
_STRIP_HEIGHT = 96


@dataclass(frozen=True)
class Part:
    """A run of frames and sha256 (64 hex digits) of their raw bytes: uint8 RGB, frame by frame, by rows."""

    frames: int
    sha256: str


@dataclass(frozen=True)
class Outputs:
    """What to make besides the video and its record.

    Attributes:
        png: a folder `<name>.frames` of lossless pictures.
        preview: an animation `<name>.gif` or `<name>.webp` of the first 12 s, at most 256 pixels a side.
        strip: a folder for `<name>.jpg`, six pictures spread over the clip.
    """

    png: bool = False
    preview: PreviewKind | None = None
    strip: Path | None = None

    def paths(self, video: Path) -> list[Path]:
        """Where the results of a clip lie that it is not done without; a strip can be done without."""
        found = []
        if self.png:
            found.append(video.with_suffix(".frames"))
        if self.preview is not None:
            found.append(video.with_suffix(f".{self.preview}"))
        return found


class FrameTap(Protocol):
    """Takes the frames of a clip beside the video file."""

    def write(self, frames: np.ndarray) -> None:
        """Takes uint8 RGB (T, H, W, 3)."""
        ...

    def complete(self) -> None:
        """All frames were given: bring the result to the disk under its `.part` name."""
        ...

    def keep(self) -> None:
        """Give the result its final name."""
        ...

    def discard(self) -> None:
        """Leave nothing behind."""
        ...


def taps_for(outputs: Outputs, video: Path, frames: int, fps: float) -> list[FrameTap]:
    """The taps of a clip of `frames` frames."""
    taps: list[FrameTap] = []
    if outputs.png:
        taps.append(PngFolder(video.with_suffix(".frames")))
    if outputs.preview is not None:
        taps.append(Preview(video.with_suffix(f".{outputs.preview}"), outputs.preview, fps))
    if outputs.strip is not None:
        taps.append(Strip(outputs.strip / f"{video.stem}.jpg", frames))
    return taps


class PngFolder:
    """One PNG a frame, `000000.png` and so on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._part = folder.with_name(folder.name + ".part")
        self._count = 0

    def write(self, frames: np.ndarray) -> None:
        """Takes uint8 RGB (T, H, W, 3)."""
        if self._count == 0:
            shutil.rmtree(self._part, ignore_errors=True)
            self._part.mkdir()
        for picture in frames:
            Image.fromarray(picture).save(self._part / f"{self._count:06d}.png", compress_level=4)
            self._count += 1

    def complete(self) -> None:
        """Nothing is left to do."""

    def keep(self) -> None:
        """Replaces the folder of an earlier render."""
        if self._folder.exists():
            shutil.rmtree(self._folder)
        self._part.rename(self._folder)

    def discard(self) -> None:
        """Removes what was written."""
        shutil.rmtree(self._part, ignore_errors=True)


class _OneFile:
    """A result of one file, made at the end out of a bounded number of pictures."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._pictures: list[Image.Image] = []

    def keep(self) -> None:
        """Takes the final name."""
        self._part.replace(self._path)

    def discard(self) -> None:
        """Removes what was written."""
        with contextlib.suppress(OSError):
            self._part.unlink(missing_ok=True)


class Preview(_OneFile):
    """An animation of the first seconds, small enough for a chat or a README."""

    def __init__(self, path: Path, kind: PreviewKind, fps: float) -> None:
        super().__init__(path)
        self._kind, self._step = kind, max(round(fps / _PREVIEW_FPS), 1)
        self._milliseconds = round(1000 * self._step / fps)
        self._seen = 0

    def write(self, frames: np.ndarray) -> None:
        """Takes uint8 RGB (T, H, W, 3)."""
        for picture in frames:
            if self._seen % self._step == 0 and len(self._pictures) < _PREVIEW_FPS * _PREVIEW_SECONDS:
                small = Image.fromarray(picture)
                small.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
                self._pictures.append(small)
            self._seen += 1

    def complete(self) -> None:
        """Encodes the animation."""
        first, *others = self._pictures
        first.save(
            self._part,
            format=self._kind,
            save_all=True,
            append_images=others,
            duration=self._milliseconds,
            loop=0,
        )


class Strip(_OneFile):
    """Pictures spread over the clip, side by side."""

    def __init__(self, path: Path, frames: int) -> None:
        super().__init__(path)
        count = min(STRIP_FRAMES, frames)
        self._wanted = {round(at) for at in np.linspace(0, frames - 1, count)}
        self._seen = 0

    def write(self, frames: np.ndarray) -> None:
        """Takes uint8 RGB (T, H, W, 3)."""
        for picture in frames:
            if self._seen in self._wanted:
                image = Image.fromarray(picture)
                width = max(round(image.width * _STRIP_HEIGHT / image.height), 1)
                self._pictures.append(image.resize((width, _STRIP_HEIGHT)))
            self._seen += 1

    def complete(self) -> None:
        """Puts the pictures side by side."""
        width = sum(image.width for image in self._pictures)
        strip = Image.new("RGB", (width, _STRIP_HEIGHT))
        left = 0
        for image in self._pictures:
            strip.paste(image, (left, 0))
            left += image.width
        strip.save(self._part, format="jpeg", quality=85)


class PartDigests:
    """sha256 of the raw frames, a digest for each run of frames."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self._ends = np.cumsum(lengths).tolist()
        self._digests = [hashlib.sha256() for _ in lengths]
        self._seen = 0

    def write(self, frames: np.ndarray) -> None:
        """Takes uint8 RGB (T, H, W, 3)."""
        start = self._seen
        self._seen += len(frames)
        begin = 0
        for digest, end in zip(self._digests, self._ends, strict=True):
            first, last = max(begin, start), min(end, self._seen)
            if first < last:
                digest.update(np.ascontiguousarray(frames[first - start : last - start]).data)
            begin = end

    def parts(self) -> tuple[Part, ...]:
        """The digests."""
        begins = [0, *self._ends][:-1]
        return tuple(
            Part(end - begin, digest.hexdigest())
            for begin, end, digest in zip(begins, self._ends, self._digests, strict=True)
        )
