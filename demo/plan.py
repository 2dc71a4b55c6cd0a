"""Changes that are known before their frame comes: of an opened timeline, or put there by an edit."""

from collections.abc import Collection, Iterable

from streamgen.stream.events import Receipt

from .answers import Answers
from .engine import Stream
from .score import Planned

# Words are handed over so long before they are due, since some encoders are slow.
_AHEAD_SECONDS = 10.0


class Plan:
    """What waits for its frame, in order. Not thread-safe.

    Args:
        answers: tells what becomes of it.
        fps: of the stream.
    """

    def __init__(self, answers: Answers, fps: float) -> None:
        self.answers, self._ahead = answers, round(_AHEAD_SECONDS * fps)
        self._waiting: list[Planned] = []
        self._asked: list[tuple[Planned, Receipt]] = []

    @property
    def waiting(self) -> list[Planned]:
        """All that has not taken effect yet."""
        asked = [item for item, receipt in self._asked if receipt.status == "accepted"]
        return sorted([*asked, *self._waiting], key=lambda item: item.frame)

    def put(self, items: Iterable[Planned], stream: Stream) -> None:
        """Let these wait in place of all others."""
        for _, receipt in self._asked:
            if receipt.status == "accepted":
                stream.withdraw(receipt)
        self._waiting, self._asked = sorted(items, key=lambda item: item.frame), []

    def let_go(self, gestures: Collection[str]) -> None:
        """Of gestures in force, what is yet to come of the same taking hold is dropped."""
        left = set(gestures)
        kept = []
        for item in self._waiting:
            names = item.event.gesture_changes.keys()
            if item.told:
                left -= names
            elif left.issuperset(names):
                continue
            kept.append(item)
        self._waiting = kept

    def begin(self, stream: Stream) -> None:
        """A chunk begins: hand over what is due with it, and words somewhat before."""
        self._asked = [(item, receipt) for item, receipt in self._asked if receipt.status == "accepted"]
        now, kept = stream.next_frame, []
        for item in self._waiting:
            if item.frame > now + (self._ahead if item.event.changes_text else 0):
                kept.append(item)
                continue
            receipt = stream.submit(item.event, item.frame)
            self._asked.append((item, receipt))
            if item.told or receipt.status == "refused":
                self.answers.submitted(0, item.kind, item.label, receipt, item.event.settings)
        self._waiting = kept
