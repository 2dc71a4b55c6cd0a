"""Everything a stream is, in one value."""

from dataclasses import dataclass

from torch import Tensor

from ..engine.decoder import DecoderState, Decoding
from ..engine.geometry import LatentGeometry
from ..engine.noise import NoiseSource
from ..live.hearing import Heard
from ..live.taken import InputReceipt
from .conditioning import Controls
from .events import Receipt
from .latents import LatentState
from .log import EventLog
from .overlap.flight import InFlight


@dataclass(frozen=True, eq=False)
class StreamState:
    """A moment of a stream. Nothing in it changes: a step makes another one.

    Attributes:
        latents: the cache, the record it was made from, and the next chunk.
        controls: what steers it.
        decoder: where the picture decoder is, or will be; None for a stream of latents.
        log: what was applied.
        noise: where all draws come from.
        opening: latents `(1, T, C, h, w)` of the pictures the stream starts from, until they are passed.
        epoch: raised by every restore; output of an older epoch is not part of the stream any more.
        heard: what it has heard of its live input; None before there is any.
        flight: chunks that have begun and are not finished, oldest first, where chunks overlap.
    """

    latents: LatentState
    controls: Controls
    decoder: DecoderState | Decoding | None
    log: EventLog
    noise: NoiseSource
    opening: Tensor | None = None
    epoch: int = 0
    heard: Heard | None = None
    flight: tuple[InFlight, ...] = ()

    @property
    def begins(self) -> LatentState:
        """Where the next chunk begins that has not begun."""
        return self.latents.later(len(self.flight))

    def next_frame(self, geometry: LatentGeometry) -> int:
        """First pixel frame of the next chunk that has not begun."""
        return geometry.frames(self.begins.start)

    def moved(
        self,
        latents: LatentState,
        controls: Controls,
        decoder: DecoderState | Decoding | None,
        log: EventLog,
        heard: Heard | None,
    ) -> "StreamState":
        """The state behind a chunk; an opening that is passed is let go of."""
        passed = self.opening is None or latents.start >= self.opening.shape[1]
        opening = None if passed else self.opening
        return StreamState(latents, controls, decoder, log, self.noise, opening, self.epoch, heard)

    def given(self) -> Tensor | None:
        """Latents of the next chunk where the opening covers it whole."""
        start, stop = self.latents.start, self.latents.start + self.latents.length
        if self.opening is None or stop > self.opening.shape[1]:
            return None
        return self.opening[:, start:stop]


@dataclass(frozen=True)
class FrameChunk:
    """Pictures of one chunk.

    Attributes:
        pictures: its frames, or those that are on their way.
        start_frame: index of the first one in the stream.
        fps: frames per second of the stream.
        index: the chunk's index.
        epoch: raised by every restore; output of an older epoch is not part of the stream any more.
        receipts: of the events that took effect with this chunk, or were found impossible at its start.
        timings: seconds spent per part (`commit` of the chunk before, `event`, `denoise`, `decode`).
        recached: whether the cache was made anew before it.
        latents: `(1, T', C, h, w)` clean.
        steps: network evaluations it took; 0 where its latents were given.
        input: which frames of the live input it was made from, and how late; None without.
    """

    pictures: Tensor | Decoding
    start_frame: int
    fps: float
    index: int
    epoch: int
    receipts: tuple[Receipt, ...]
    timings: dict[str, float]
    latents: Tensor
    steps: int = 0
    recached: bool = False
    input: InputReceipt | None = None

    @property
    def frames(self) -> Tensor:
        """uint8 `(T, H, W, 3)`; none of a stream of latents. Where they are decoded beside the next chunk
        this waits for them, and raises what decoding raises; asked again it tries again.
        """
        return self.pictures.result()[0] if isinstance(self.pictures, Decoding) else self.pictures
