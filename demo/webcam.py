"""A viewer's camera as live input: frames up the socket, and when a chunk may be made of them.

A chunk is never begun before its frames are there, or have failed to come for a second: the engine makes the
streams of all viewers in turn, and none of them waits for another one's camera.
"""

import io
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from streamgen.video.decode_worker import cover

from .messages import MAX_MESSAGE_BYTES, BadMessage

# version, kind, reserved, seconds of the page's clock
HEADER = struct.Struct("<BBHd")
VERSION, JPEG = 1, 1
# seconds that a chunk waits for a frame
PATIENCE = 1.0
_MOST_PIXELS = 2_000_000
# frames whose time is known, until a chunk shows them
_TIMES = 256


@dataclass(frozen=True)
class WebcamFrame:
    """One picture of a viewer's camera: when it was taken, on the page's clock, and uint8 `(H, W, 3)`."""

    seconds: float
    picture: np.ndarray


def room(chunk_frames: int) -> int:
    """Frames of a camera that wait at most: those of a chunk, and half of one more so that a chunk which
    comes a little late leaves none out. Whatever waits longer makes the stream late for good: camera and
    stream are equally fast.
    """
    return chunk_frames + -(-chunk_frames // 2)


class Listening(Protocol):
    """What of a stream hears a camera."""

    @property
    def next_length(self) -> int:
        """Frames of the next chunk."""
        ...

    @property
    def input_waiting(self) -> int:
        """Frames that came and were not taken."""
        ...

    def feed(self, picture: np.ndarray, seconds: float) -> int:
        """A frame, uint8 `(H, W, 3)`, and when it was taken; its number in the input.

        Raises:
            StreamgenError: the model hears nothing, or times that fall.
        """
        ...

    def end_input(self, reason: str) -> None:
        """No frames come any more."""
        ...


def read_frame(data: bytes, height: int, width: int) -> WebcamFrame:
    """A binary message of a page: the header, and a JPEG picture, which is brought to the stream's size.

    Raises:
        BadMessage: another version, no picture, or one that is too large.
    """
    if len(data) > MAX_MESSAGE_BYTES or len(data) <= HEADER.size:
        raise BadMessage(
            f"camera frame: expected {HEADER.size + 1} to {MAX_MESSAGE_BYTES} bytes, found {len(data)}"
        )
    version, kind, _, seconds = HEADER.unpack_from(data)
    if (version, kind) != (VERSION, JPEG):
        raise BadMessage(f"camera frame: expected version {VERSION}, kind {JPEG}, found {version}, {kind}")
    if not math.isfinite(seconds) or not 0 <= seconds <= 1e12:
        raise BadMessage("camera frame: expected its time in seconds")
    try:
        with Image.open(io.BytesIO(data[HEADER.size :]), formats=("JPEG",)) as opened:
            if opened.size[0] * opened.size[1] > _MOST_PIXELS:
                raise BadMessage(f"camera frame: expected at most {_MOST_PIXELS} pixels")
            picture = np.asarray(opened.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise BadMessage("camera frame: expected a JPEG picture") from error
    return WebcamFrame(seconds, np.array(cover(picture, height, width)))


class Webcam:
    """The camera of one session.

    Args:
        clock: of the session.
        say: tells the page something.
    """

    def __init__(self, clock: Callable[[], float], say: Callable[[dict[str, Any]], None]) -> None:
        self.clock, self.say = clock, say
        self.on, self._came = False, -math.inf
        self._times: dict[int, float] = {}

    def hear(self, stream: Listening, frame: WebcamFrame) -> None:
        """A frame has come; raises as `Listening.feed` does."""
        number = stream.feed(frame.picture, frame.seconds)
        self._times[number] = frame.seconds
        self._times.pop(number - _TIMES, None)
        self.on, self._came = True, self.clock()

    def end(self, stream: Listening | None, reason: str) -> None:
        """The camera is off, or gone; the stream goes on by itself."""
        if self.on and stream is not None:
            stream.end_input(reason)
        self.on = False

    def due(self, stream: Listening) -> float:
        """When the next chunk need not wait for frames any more; -infinity where it need not at all."""
        if not self.on or stream.input_waiting >= stream.next_length:
            return -math.inf
        return self._came + PATIENCE

    def made(self, receipt: Any) -> None:
        """Tell the page which frames the chunk just told of shows, when it took the first of them, and how
        long that one was here; `receipt` is None for a chunk without.
        """
        if receipt is None:
            return
        span = [receipt.numbers[0], receipt.numbers[-1]] if receipt.numbers else []
        row = {"held": receipt.held, "dropped": receipt.dropped, "over": receipt.over}
        row["taken"] = self._times.get(span[0]) if span else None
        row["delay_ms"] = None if receipt.delay is None else round(1000 * receipt.delay, 1)
        self.say({"type": "heard", "frames": span} | row)
