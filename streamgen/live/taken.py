"""What a chunk takes of its input, and what whatever gives input has to be able to do."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..suggest import shorten
from ..video.decode_worker import cover

# of one chunk; no plan is as long
MAX_NUMBERS = 4096
_LARGEST_SIDE = 16384


@dataclass(frozen=True)
class Order:
    """What is asked of an input for one chunk.

    Attributes:
        place: epoch and chunk, the same when a chunk that failed is tried again.
        count: frames.
        begun: whether the stream listens already.
        following: number of the frame behind the last one taken.
        last: that last frame, uint8 `(H, W, 3)`; None before the first.
        exact: the numbers that a log names; None: what there is.
    """

    place: tuple[int, int]
    count: int
    begun: bool = False
    following: int = 0
    last: Tensor | None = field(default=None, compare=False)
    exact: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Taken:
    """The frames of one chunk.

    Attributes:
        frames: uint8 `(T, H, W, 3)`; none where the input is over.
        numbers: of the input's frames, from 0 at its start; a frame that is shown again has its number again.
        held: how many at the end repeat the last one, since there was no other.
        dropped: frames that were let go of since the chunk before, as more came than were wanted.
        arrived: when the oldest one was there, on `time.monotonic`; None for what is read when it is needed.
        over: why nothing comes after these; None where it may.
    """

    frames: Tensor
    numbers: tuple[int, ...]
    held: int = 0
    dropped: int = 0
    arrived: float | None = None
    over: str | None = None


@dataclass(frozen=True)
class InputReceipt:
    """Which frames of its input a chunk shows, and how late.

    Attributes:
        numbers, held, dropped, over: see `Taken`.
        delay: seconds from when the oldest of them was there until the chunk's pictures were; None for input
            that is read when it is needed.
    """

    numbers: tuple[int, ...]
    held: int = 0
    dropped: int = 0
    delay: float | None = None
    over: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"numbers": list(self.numbers)}


class InputSource(Protocol):
    """Where the frames of a stream come from. Thread-safe."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def take(self, order: Order) -> Taken | None:
        """The frames of a chunk; None where it has none and has not begun. The same order is answered alike
        until it is `done`.

        Raises:
            InputError: numbers that it cannot give.
        """
        ...

    def done(self, order: Order) -> None:
        """A chunk with what was taken is made; told again it changes nothing."""
        ...

    def over(self, following: int) -> bool:
        """Whether nothing comes any more."""
        ...

    def waiting(self) -> tuple[Tensor, tuple[int, ...]]:
        """What a snapshot keeps: frames that came and were not taken, uint8 `(T, H, W, 3)`, and their
        numbers.
        """
        ...

    def restored(self, frames: Tensor, numbers: tuple[int, ...]) -> None:
        """The stream went to a snapshot with these waiting; done again with the same it changes nothing."""
        ...

    def twin(self) -> "InputSource | None":
        """The same input for a fork; None where there can be but one."""
        ...


def checked_numbers(numbers: Any) -> tuple[int, ...]:
    """Frame numbers as an event has them.

    Raises:
        InputError: no numbers of at least 0 that never fall.
    """
    rows = tuple(numbers) if isinstance(numbers, Sequence) and not isinstance(numbers, str | bytes) else None
    whole = rows is not None and all(type(n) is int and n >= 0 for n in rows)
    if rows is None or not whole or len(rows) > MAX_NUMBERS or list(rows) != sorted(rows):
        raise InputError(f"input: expected frame numbers that never fall, found {shorten(numbers)}")
    return rows


def checked_frames(frames: Any, height: int, width: int, what: str = "input") -> Tensor:
    """Frames of any size as uint8 `(T, height, width, 3)`: scaled to cover and cropped at the centre.

    Args:
        frames: a tensor or array, uint8 `(T, H, W, 3)`, or `(H, W, 3)` for one.

    Raises:
        InputError: another form.
    """
    x = torch.from_numpy(np.ascontiguousarray(frames)) if isinstance(frames, np.ndarray) else frames
    if not isinstance(x, Tensor):
        raise InputError(f"{what}: expected uint8 frames (T, H, W, 3), found {shorten(frames)}")
    x = x[None] if x.dim() == 3 else x
    sides = x.shape[1:3] if x.dim() == 4 else ()
    fits = x.dim() == 4 and x.shape[3] == 3 and all(1 <= side <= _LARGEST_SIDE for side in sides)
    if x.dtype != torch.uint8 or not fits or not len(x):
        kind = str(x.dtype).removeprefix("torch.")
        raise InputError(f"{what}: expected uint8 frames (T, H, W, 3), found {kind} {tuple(x.shape)}")
    x = x.cpu()
    if tuple(sides) == (height, width):
        return x.clone()
    # an odd size is no reason to fail: a camera has the one it has
    return torch.from_numpy(np.stack([cover(frame.numpy(), height, width) for frame in x]))
