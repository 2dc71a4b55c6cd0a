"""Settings of a folder of one's own clips."""

from dataclasses import dataclass
from typing import Literal

from ..config import require

TrackSource = Literal["none", "files", "auto"]

# Ids of words are stored in 16 bits.
_MOST_WORDS = 30_000


@dataclass(frozen=True)
class ClipFolderConfig:
    """Which clips to train on, and how they are cut.

    Attributes:
        path: the folder, see `distill.clips.listing` for what lies in it.
        directory: where latents, words, tracks and the quarantine list are kept.
        height, width: of the pictures, multiples of 16; clips are scaled to cover and cropped at the centre.
        fps: frames per second that clips are resampled to, by their timestamps.
        frames: of each piece that is cut from a clip, 1 + 4k; shorter clips are not used.
        stride: frames from the start of one piece to the next; null: `frames`, so that pieces do not overlap.
        max_seconds: of each clip that are read, from its start.
        images: single frames taken of each piece, at even distances.
        tracks: "files": those that the listing names; "auto": clips without a file are tracked as
            `streamgen.motion.from_clip` does; "none": no tracks at all.
        points: tracks kept of each piece.
        timeout: seconds after which reading one clip is given up.
        readers: clips of one process that are read ahead, each in a child process.
        retry: read again what an earlier build could not read.
        share: of the updates that draw from the folder; the others draw from the procedural world.
        held_out: share of the clips that the tokenizer stage measures on and does not train on.
        min_count: a word of the captions is learned if so many captions have it.
        world_words: the vocabulary has the words of the procedural world, too.
    """

    path: str
    directory: str = "runs/cache"
    height: int = 64
    width: int = 64
    fps: int = 16
    frames: int = 81
    stride: int | None = None
    max_seconds: float = 120.0
    images: int = 4
    tracks: TrackSource = "files"
    points: int = 16
    timeout: float = 60.0
    readers: int = 2
    retry: bool = False
    share: float = 1.0
    held_out: float = 0.1
    min_count: int = 2
    world_words: bool = True

    def __post_init__(self) -> None:
        require(bool(self.path.strip()), "clips.path", "a folder", repr(self.path))
        for name in ("height", "width"):
            size = self.__dict__[name]
            require(size >= 16 and size % 16 == 0, f"clips.{name}", "a multiple of 16", size)
        require(1 <= self.fps <= 1000, "clips.fps", "1 to 1000", self.fps)
        require(self.frames > 1 and self.frames % 4 == 1, "clips.frames", "1 + 4k, above 1", self.frames)
        require(self.stride is None or self.stride >= 1, "clips.stride", ">= 1 or null", self.stride)
        require(
            self.max_frames >= self.frames,
            "clips.max_seconds",
            f"at least clips.frames ({self.frames / self.fps:g} s)",
            self.max_seconds,
        )
        for name in ("images", "points", "readers", "min_count"):
            require(self.__dict__[name] >= 1, f"clips.{name}", ">= 1", self.__dict__[name])
        require(self.timeout > 0, "clips.timeout", "above 0", self.timeout)
        require(0 < self.share <= 1, "clips.share", "above 0, at most 1", self.share)
        require(0 <= self.held_out < 1, "clips.held_out", "within [0, 1)", self.held_out)

    @property
    def max_frames(self) -> int:
        """Frames of one clip that are read at most."""
        return round(self.max_seconds * self.fps)

    @property
    def step(self) -> int:
        """Frames from the start of one piece to the next."""
        return self.frames if self.stride is None else self.stride

    @property
    def most_words(self) -> int:
        """Words that a vocabulary has at most; the rarest are left out."""
        return _MOST_WORDS

    def starts(self, length: int) -> list[int]:
        """First frames of the pieces of a clip of `length` frames.

        A rest at the end of a quarter of a piece or more gets a piece of its own, which overlaps the one
        before.
        """
        last = length - self.frames
        if last < 0:
            return []
        starts = list(range(0, last + 1, self.step))
        if last - starts[-1] >= self.frames / 4:
            starts.append(last)
        return starts
