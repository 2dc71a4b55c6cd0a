"""Settings of a folder of one's own clips."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..config import Bound, Checked, ClipFrames, Count, Decay, Part, Positive, require

TrackSource = Literal["none", "files", "auto"]

_Side = Annotated[int, Bound("a multiple of 16", lambda size: size >= 16 and size % 16 == 0)]


@dataclass(frozen=True)
class ClipFolderConfig(Checked, section="clips"):
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
    height: _Side = 64
    width: _Side = 64
    fps: Annotated[int, Bound("1 to 1000", lambda rate: 1 <= rate <= 1000)] = 16
    frames: ClipFrames = 81
    stride: Count | None = None
    max_seconds: float = 120.0
    images: Count = 4
    tracks: TrackSource = "files"
    points: Count = 16
    timeout: Positive = 60.0
    readers: Count = 2
    retry: bool = False
    share: Part = 1.0
    held_out: Decay = 0.1
    min_count: Count = 2
    world_words: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.path.strip()), "clips.path", "a folder", repr(self.path))
        least = f"at least clips.frames ({self.frames / self.fps:g} s)"
        require(self.max_frames >= self.frames, "clips.max_seconds", least, self.max_seconds)

    @property
    def max_frames(self) -> int:
        """Frames of one clip that are read at most."""
        return round(self.max_seconds * self.fps)

    @property
    def step(self) -> int:
        """Frames from the start of one piece to the next."""
        return self.frames if self.stride is None else self.stride

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
