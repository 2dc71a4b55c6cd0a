"""What became of everything a viewer asked for: accepted, applied at a frame, refused with the reason, or
withdrawn.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from streamgen.stream.events import Receipt

from .engine import Generated
from .outgoing import Outgoing
from .strip import Strip

MAX_PENDING = 64
# Number of the receipt of gestures that change nothing in the stream: letting go where nothing is held.
_NOTHING = -1


@dataclass
class _Asked:
    """A change that waits for its chunk; `id` is the viewer's.

    Attributes:
        receipt: None for a gesture until the chunk begins with which it takes effect.
        begun: a chunk has begun since; what waits for another one waits for its words.
        told: the viewer knows that.
        settings: that it sets, where no viewer has asked for them.
    """

    id: int
    kind: str
    label: str
    receipt: Receipt | None
    begun: bool = False
    told: bool = False
    settings: Mapping[str, Any] | None = None


class Answers:
    """Changes that wait, and the strip of those that took effect.

    Args:
        outgoing: carries answers to the viewer.
        fps: of the stream.
    """

    def __init__(self, outgoing: Outgoing, fps: float) -> None:
        self.outgoing, self.fps = outgoing, fps
        self.strip = Strip()
        self._asked: list[_Asked] = []

    @property
    def full(self) -> bool:
        """Whether no more can wait."""
        return len(self._asked) >= MAX_PENDING

    def submitted(
        self,
        number: int,
        kind: str,
        label: str,
        receipt: Receipt,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """A change waits for its chunk, or cannot be. `settings` are those of one that was planned, so that
        the page shows what holds.
        """
        if receipt.status == "refused":
            self.refuse(number, kind, str(receipt.reason))
            return
        self._asked.append(_Asked(number, kind, label, receipt, settings=settings))
        self._say(number, kind, "accepted", unknown=list(receipt.unknown), dropped=receipt.dropped)

    def gesture(self, kind: str, number: int = 0, label: str | None = None) -> None:
        """A gesture is in force from the next chunk on."""
        if not self.full:
            self._asked.append(_Asked(number, kind, label or kind, None))

    def relabel(self, number: int, label: str) -> None:
        """A gesture says more than when it began: where it led to."""
        for asked in self._asked:
            if asked.id == number:
                asked.label = label
        self.strip.relabel(number, label)
        self.outgoing.say({"type": "relabelled", "id": number, "label": label})

    def refuse(self, number: int, kind: str, reason: str) -> None:
        """A change cannot be."""
        self._say(number, kind, "refused", reason=reason)

    def refuse_all(self, reason: str) -> None:
        """No change that waits will be."""
        for asked in self._asked:
            self.refuse(asked.id, asked.kind, reason)
        self._asked.clear()

    def begin(self, gestures: Receipt | None) -> None:
        """A chunk begins. `gestures` answers for what hands have done until now; None where that changes
        nothing.
        """
        for asked in self._asked:
            asked.begun = True
            if asked.receipt is None:
                asked.receipt = gestures or Receipt(_NOTHING)

    def settle(self, made: Generated, epoch: int, in_force: Callable[[Receipt], bool]) -> None:
        """A chunk has been made: tell the fate of what it decided.

        Args:
            epoch: the viewer's.
            in_force: whether a receipt is of the stream as it is now.
        """
        asked, self._asked = self._asked, []
        for one in asked:
            receipt = one.receipt
            if receipt is not None and receipt.number == _NOTHING:
                receipt.status, receipt.chunk, receipt.frame = "applied", made.index, made.start
                receipt.seconds = made.start / self.fps
            if receipt is None or receipt.status == "accepted":
                self._asked.append(one)
                self._tell_waiting(one)
            elif receipt.status == "applied" and receipt.number != _NOTHING and not in_force(receipt):
                self.refuse(one.id, one.kind, "the stream went back to before this took effect")
            else:
                self._tell(one, receipt, epoch)

    def _tell_waiting(self, asked: _Asked) -> None:
        # settings wait too, where they need the empty prompt
        if asked.begun and asked.kind in ("prompt", "settings") and not asked.told:
            asked.told = True
            self._say(asked.id, asked.kind, "accepted", waiting="being encoded")

    def _tell(self, asked: _Asked, receipt: Receipt, epoch: int) -> None:
        if receipt.status == "applied" and receipt.frame is not None:
            self.strip.add(receipt.frame, asked.kind, asked.label, receipt.superseded, asked.id)
        what = {"type": "receipt", "id": asked.id, "kind": asked.kind, "label": asked.label, "epoch": epoch}
        set_now = {} if asked.settings is None else {"settings": dict(asked.settings)}
        self.outgoing.say(receipt.to_json() | what | set_now)

    def _say(self, number: int, kind: str, status: str, **more: Any) -> None:
        self.outgoing.say({"type": "receipt", "id": number, "kind": kind, "status": status, **more})
