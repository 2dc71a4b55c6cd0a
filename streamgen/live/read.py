"""Input that is read as it is needed: pictures in memory, clips, pipes. Nothing is dropped."""

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor

from ..errors import InputError, Interrupted
from .taken import Order, Taken

# how often a waiting reader looks whether it is to stop (s)
_LOOK = 0.2


class EndsEarly(Exception):
    """The frames end, and not as they should; says why."""


class FrameReader(Protocol):
    """Frames by number, from 0 on."""

    def frame(self, number: int) -> Tensor | None:
        """uint8 `(H, W, 3)`; None behind the last one.

        Raises:
            InputError: it is gone.
        """
        ...

    def release(self, before: int) -> None:
        """Frames before this one are not asked for any more, but after a rewind."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why the frames ended, where that was not their own end."""
        ...

    def again(self) -> "FrameReader | None":
        """Another reader of the same; None where there can be but one."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class ReadInput:
    """Frames in order, as many as chunks need.

    Args:
        name: what messages call it.
        reader: where they come from.
    """

    def __init__(self, name: str, reader: FrameReader) -> None:
        self.name, self.reader = name, reader
        self._begun, self._ordering = False, threading.Lock()
        # number of its first frame: behind those of an input before it
        self._offset = 0
        self._promise: tuple[Order, Taken] | None = None

    @property
    def trouble(self) -> str | None:
        """Why the frames ended, where that was not their own end."""
        return self.reader.trouble

    def take(self, order: Order) -> Taken | None:
        """See `InputSource`; waits for as long as it takes."""
        with self._ordering:
            promise = self._promise
            if promise is not None and promise[0] == order:
                return promise[1]
            if not order.begun and self._begun and order.exact is None and promise is None:
                # it was over, or a log has ended it
                return None
            taken = self._exact(order) if order.exact is not None else self._next(order)
            self._promise = (order, taken)
            return taken

    def done(self, order: Order) -> None:
        """See `InputSource`."""
        with self._ordering:
            if self._promise is not None and self._promise[0] == order:
                self._begun = True
                numbers = self._promise[1].numbers
                if numbers:
                    self.reader.release(numbers[-1] + 1 - self._offset)
                self._promise = None

    def over(self, following: int) -> bool:
        """See `InputSource`; waits for the frame that follows, if there is one."""
        return self.reader.frame(max(0, following - self._offset)) is None

    def waiting(self) -> tuple[Tensor, tuple[int, ...]]:
        """See `InputSource`: nothing, it is read again."""
        return torch.empty(0, 0, 0, 3, dtype=torch.uint8), ()

    def restored(self, frames: Tensor, numbers: tuple[int, ...]) -> None:
        """See `InputSource`."""
        with self._ordering:
            self._promise = None

    def twin(self) -> "ReadInput | None":
        """See `InputSource`."""
        reader = self.reader.again()
        if reader is None:
            return None
        made = ReadInput(self.name, reader)
        made._begun, made._offset = self._begun, self._offset
        return made

    def _next(self, order: Order) -> Taken:
        found: list[Tensor] = []
        if not order.begun and not self._begun:
            self._offset = order.following
        first, place = order.following, order.following - self._offset
        while len(found) < order.count and (frame := self.reader.frame(place + len(found))) is not None:
            found.append(frame)
        held = order.count - len(found)
        over = (self.reader.trouble or f"{self.name} has ended") if held else None
        if not found:
            return Taken(torch.empty(0, 0, 0, 3, dtype=torch.uint8), (), over=over)
        numbers = [first + i for i in range(len(found))] + [first + len(found) - 1] * held
        return Taken(torch.stack(found + [found[-1]] * held), tuple(numbers), held, over=over)

    def _exact(self, order: Order) -> Taken:
        numbers = order.exact or ()
        if not numbers:
            return Taken(torch.empty(0, 0, 0, 3, dtype=torch.uint8), (), over="the timeline ends it here")
        found = {number: self.reader.frame(number - self._offset) for number in sorted(set(numbers))}
        frames = [frame for number in numbers if (frame := found[number]) is not None]
        if len(frames) != order.count:
            raise InputError(
                f"input {self.name}: the timeline takes {order.count} frames up to number {numbers[-1]}, "
                f"found {len(frames)} of them"
            )
        return Taken(torch.stack(frames), numbers)


class HeldFrames:
    """Frames in memory, uint8 `(T, H, W, 3)`."""

    trouble = None

    def __init__(self, frames: Tensor) -> None:
        self._frames = frames

    def frame(self, number: int) -> Tensor | None:
        """See `FrameReader`."""
        return self._frames[number] if number < len(self._frames) else None

    def release(self, before: int) -> None:
        """See `FrameReader`."""

    def again(self) -> "HeldFrames":
        """See `FrameReader`."""
        return self

    def close(self) -> None:
        """See `FrameReader`."""


class ThreadFrames:
    """Frames that a thread reads a little ahead, whatever its reader waits for.

    Args:
        name: what messages call them.
        opener: gives them from the first one on; EndsEarly says that they end where they should not.
        ahead: how many lie ready at most.
        once: whether they can be opened but once, as a pipe.
        stopped: asked while somebody waits; then `Interrupted` is raised.
    """

    def __init__(
        self,
        name: str,
        opener: Callable[[], Iterator[Tensor]],
        ahead: int,
        once: bool = False,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.name, self.opener, self.ahead, self.once, self.stopped = name, opener, ahead, once, stopped
        self._run = _Run(opener, ahead)

    @property
    def trouble(self) -> str | None:
        """See `FrameReader`."""
        return self._run.trouble

    def frame(self, number: int) -> Tensor | None:
        """See `FrameReader`.

        Raises:
            Interrupted: `stopped` said so.
        """
        if number < self._run.first:
            if self.once:
                raise InputError(f"input {self.name}: cannot go back to frame {number}, it is read but once")
            fresh = _Run(self.opener, self.ahead)
            self._run, before = fresh, self._run
            before.close()
        return self._run.frame(number, self.stopped)

    def release(self, before: int) -> None:
        """See `FrameReader`."""
        self._run.release(before)

    def again(self) -> "ThreadFrames | None":
        """See `FrameReader`."""
        return None if self.once else ThreadFrames(self.name, self.opener, self.ahead, False, self.stopped)

    def close(self) -> None:
        """See `FrameReader`."""
        self._run.close()

    def __del__(self) -> None:
        # nobody listens any more: the thread has nobody to read for
        self._run.close()


class _Run:
    """One reading of frames, from the first one on, in a thread of its own.

    Only the thread takes frames from where they come, and only whole values are replaced: somebody who is
    interrupted while waiting loses none.
    """

    def __init__(self, opener: Callable[[], Iterator[Tensor]], ahead: int) -> None:
        self._opener, self._ahead, self._changed = opener, ahead, threading.Condition()
        # number of the first one held, and those that are
        self._held: tuple[int, tuple[Tensor, ...]] = (0, ())
        self._wanted, self._over, self._closed = 0, False, False
        self._broken: BaseException | None = None
        self.trouble: str | None = None
        threading.Thread(target=self._read, name="streamgen-input", daemon=True).start()

    @property
    def first(self) -> int:
        """Number of the first frame that is there."""
        return self._held[0]

    def frame(self, number: int, stopped: Callable[[], bool]) -> Tensor | None:
        with self._changed:
            self._wanted = max(self._wanted, number)
            self._changed.notify_all()
            while True:
                first, frames = self._held
                if number < first + len(frames):
                    return frames[number - first]
                if self._over:
                    if self._broken is not None:
                        raise self._broken
                    return None
                if stopped():
                    raise Interrupted("interrupted while waiting for input")
                self._changed.wait(_LOOK)

    def release(self, before: int) -> None:
        with self._changed:
            first, frames = self._held
            gone = min(max(0, before - first), len(frames))
            self._held = (first + gone, frames[gone:])
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _read(self) -> None:
        frames: Iterator[Tensor] = iter(())
        try:
            frames = self._opener()
            for frame in frames:
                with self._changed:
                    first, held = self._held
                    # what nobody has asked for since a rewind is passed over
                    self._held = (first, (*held, frame))
                    self._changed.notify_all()
                    while not self._closed and self._crowded():
                        self._changed.wait()
                    if self._closed:
                        return
        except EndsEarly as error:
            self.trouble = str(error)
        except BaseException as error:
            self._broken = error
        finally:
            if isinstance(frames, Generator):
                with suppress(Exception):
                    frames.close()
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _crowded(self) -> bool:
        """Whether enough lies ready; what lies before the frame that is asked for makes room."""
        first, frames = self._held
        if self._wanted >= first + len(frames):
            if len(frames) >= self._ahead:
                self._held = (first + 1, frames[1:])
            return False
        return len(frames) >= self._ahead


def resampled(frames: Iterator[Tensor], rate: float, fps: float) -> Iterator[Tensor]:
    """Frames of one rate at another: frame k is the one on screen k / fps seconds after the first."""
    for i, frame in enumerate(frames):
        # of integers of the smaller unit, so that nothing is left over after hours
        first, behind = -(-i * _micro(fps) // _micro(rate)), -(-(i + 1) * _micro(fps) // _micro(rate))
        for _ in range(behind - first):
            yield frame


def _micro(rate: float) -> int:
    return round(rate * 1_000_000)
