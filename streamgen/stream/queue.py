"""Events that wait: which of them are due, in which order, and whether their words are encoded."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..live.picture import Picture
from ..motion.tracks import TrackSet
from .events import CacheAction, Receipt, StreamEvent
from .prompts import Text
from .recache import SinkPolicy
from .settings import StreamSettings


@dataclass(eq=False)
class Pending:
    """An event that waits for its chunk.

    Attributes:
        at_frame: the earliest first frame of that chunk.
        live: submitted for now: if its words are still being encoded it comes later; else its chunk waits for
            them.
        text: its words, encoded or being encoded; None where it changes none.
        null: the empty prompt on its way, where the event's settings need it first.
    """

    event: StreamEvent
    receipt: Receipt
    at_frame: int = 0
    live: bool = False
    text: "Future[Text] | None" = None
    null: "Future[object] | None" = None

    @property
    def ready(self) -> bool:
        """Whether nothing has to be waited for."""
        return all(future is None or future.done() for future in (self.text, self.null))

    def wait(self) -> None:
        """Wait until it is ready."""
        for future in (self.text, self.null):
            if future is not None:
                future.exception()


class EventQueue:
    """The waiting events of a session. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._items: tuple[Pending, ...] = ()
        self._numbers = 0
        self._adopted: Sequence[Pending] | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def items(self) -> tuple[Pending, ...]:
        """What waits, in order of submission."""
        return self._items

    @property
    def numbers(self) -> int:
        """How many receipts were given."""
        return self._numbers

    def receipt(self, epoch: int) -> Receipt:
        """The next receipt."""
        with self._lock:
            self._numbers += 1
            return Receipt(self._numbers - 1, epoch=epoch)

    def put(self, item: Pending, settings: StreamSettings) -> None:
        """Add an event, or refuse it where its settings can neither be made now nor after those that wait."""
        with self._lock:
            alone, refused = possible_events([item], settings)
            if alone or item in possible_events([*self._items, item], settings)[0]:
                self._items = (*self._items, item)
            else:
                item.receipt.refuse(refused[0][1])

    def due(self, frame: int) -> list[Pending]:
        """What takes effect with a chunk that begins at a pixel frame, by frame, then by submission. It stays
        in the queue until it is removed.

        Scheduled events whose words are being encoded are waited for. Of those submitted live, one whose
        words are not there yet comes later, unless a newer prompt has overtaken it.
        """
        items = sorted(
            (i for i in self._items if i.at_frame <= frame), key=lambda i: (i.at_frame, i.receipt.number)
        )
        for item in items:
            if not item.live:
                item.wait()
        prompts = [
            n for n, item in enumerate(items) if item.text is not None and item.ready and not failed(item)
        ]
        newest = max(prompts, default=-1)
        return [item for n, item in enumerate(items) if item.ready or n < newest]

    def remove(self, items: Sequence[Pending]) -> None:
        """Take out what was applied or refused; what is not there any more is passed over."""
        gone = {id(item) for item in items}
        with self._lock:
            if gone:
                self._items = tuple(item for item in self._items if id(item) not in gone)

    def adopt(self, items: Sequence[Pending], numbers: int) -> None:
        """Make the events of a snapshot wait in place of those that do; receipts that were given for the same
        ones stay good, the others are refused. Done again with the same ones it changes nothing.
        """
        with self._lock:
            if self._adopted is items:
                return
            for old in self._items:
                same = [new for new in items if new.receipt.number == old.receipt.number]
                if same:
                    same[0].receipt = old.receipt
                else:
                    old.receipt.refuse("the stream went back to a moment before this event was submitted")
            self._items, self._numbers = tuple(items), max(numbers, self._numbers)
            self._adopted = items

    def withdraw(self, receipt: Receipt) -> None:
        """Take back an event that waits.

        Raises:
            InputError: it does not wait any more, or is not of this stream.
        """
        with self._lock:
            if receipt.status != "accepted":
                raise InputError(
                    f"withdraw: expected an event that waits, found receipt {receipt.number} {receipt.status}"
                )
            found = [item for item in self._items if item.receipt is receipt]
            if not found:
                raise InputError(f"withdraw: receipt {receipt.number} is not one of this stream")
            self.remove(found)
            receipt.status = "withdrawn"


def failed(item: Pending) -> str | None:
    """Why an event's words, or those that its settings need, could not be encoded; None where they could, or
    are not there yet.
    """
    for future, what in ((item.text, "prompt"), (item.null, "negative prompt, or none")):
        error = future.exception() if future is not None and future.done() else None
        if error is not None:
            return f"{what}: cannot be encoded ({' '.join(str(error).split()) or type(error).__name__})"
    return None


def possible_events(
    due: Sequence[Pending], settings: StreamSettings
) -> tuple[list[Pending], list[tuple[Receipt, str]]]:
    """Those of the due events whose settings can be set together, and the others' receipts with the reason.

    On submission each change was checked alone; two sliders may each be fine and not fit together.
    """
    try:
        settings.updated(last_settings(due), live=True)
        return list(due), []
    except InputError:
        possible: list[Pending] = []
        refused: list[tuple[Receipt, str]] = []
    for item in due:
        try:
            settings.updated(last_settings([*possible, item]), live=True)
            possible.append(item)
        except InputError as error:
            refused.append((item.receipt, str(error)))
    return possible, refused


def last_settings(pending: Sequence[Pending]) -> dict[str, Any]:
    """The settings that a sequence of events comes to."""
    return {name: value for item in pending for name, value in (item.event.settings or {}).items()}


@dataclass
class Merged:
    """What all events of a boundary ask for together, the last one per field.

    `words` is the event whose prompt counts; `releases` says that all gestures of before are let go of.
    """

    words: Pending | None = None
    cache: CacheAction | None = None
    sink: SinkPolicy | None = None
    releases: bool = False
    gestures: dict[str, TrackSet | None] | None = None
    settings: dict[str, Any] | None = None
    mask: Tensor | None = None
    picture: Picture | None = None
    input: Sequence[int] | None = None


def merged(pending: Sequence[Pending]) -> tuple[Merged, list[tuple[str, ...]]]:
    """What events ask for together, and for each of them the fields that a later one replaced."""
    out = Merged(gestures={}, settings=last_settings(pending))
    lost: Picture | None = None
    assert out.gestures is not None
    for item in pending:
        event = item.event
        if event.changes_text:
            # what becomes of the past is said with the words
            out.words, out.cache, out.sink = item, event.cache, event.sink
        elif event.cache is not None:
            out.cache, out.sink = event.cache, event.sink
        if event.lets_go_of_all:
            out.releases, out.gestures = True, {}
        out.gestures |= event.gesture_changes
        out.mask = out.mask if event.mask is None else event.mask
        out.picture = out.picture if event.picture is None else event.picture
        out.input = out.input if event.input is None else event.input
    if out.picture is not None and out.picture.use == "scene":
        out.cache, out.sink = "clear", None
    elif out.picture is not None and out.cache == "clear":
        # what is forgotten has no sink whose place could be taken
        out.picture, lost = None, out.picture
    elif out.picture is not None:
        out.cache, out.sink = "recache", "refresh"
    replaced = [
        _replaced(item.event, [later.event for later in pending[i + 1 :]]) for i, item in enumerate(pending)
    ]
    if lost is not None:
        at = next(i for i, item in enumerate(pending) if item.event.picture is lost)
        replaced[at] = (*replaced[at], "picture")
    return out, replaced


def _replaced(event: StreamEvent, later: Sequence[StreamEvent]) -> tuple[str, ...]:
    fields = ["prompt"] * (event.changes_text and any(other.changes_text for other in later))
    released = any(other.lets_go_of_all for other in later)
    if event.motion is not None and (released or any(other.motion is not None for other in later)):
        fields.append("motion")
    for name in ("mask", "picture", "input"):
        if vars(event)[name] is not None and any(vars(other)[name] is not None for other in later):
            fields.append(name)
    for name in event.gestures or {}:
        if released or any(name in (other.gestures or {}) for other in later):
            fields.append(f"gesture {name}")
    fields += [
        name for name in event.settings or {} if any(name in (other.settings or {}) for other in later)
    ]
    return tuple(fields)
