"""What became of everything a viewer asked for: accepted, applied at a frame, or refused with the reason."""

from dataclasses import dataclass

from streamgen.stream.events import Receipt

from .engine import Generated
from .strip import Strip
from .voice import Voice

MAX_PENDING = 64
# Number of the receipts of gestures: they are in the tracks of a chunk, not in events of their own.
_GESTURE = -1


@dataclass
class _Asked:
    """A change that waits for its chunk; `id` is the viewer's."""

    id: int
    kind: str
    label: str
    receipt: Receipt


class Answers:
    """Changes that wait, and the strip of those that took effect.

    Args:
        voice: carries answers to the viewer.
        fps: of the stream.
    """

    def __init__(self, voice: Voice, fps: float) -> None:
        self.voice, self.fps = voice, fps
        self.strip = Strip()
        self._asked: list[_Asked] = []

    @property
    def full(self) -> bool:
        """Whether no more can wait."""
        return len(self._asked) >= MAX_PENDING

    def accepted(self, number: int, kind: str, label: str, receipt: Receipt, unknown: list[str]) -> None:
        """A change waits for its chunk; `unknown` words of it mean nothing to the model."""
        self._asked.append(_Asked(number, kind, label, receipt))
        row = {"type": "receipt", "id": number, "kind": kind, "status": "accepted"}
        self.voice.say({**row, "unknown": unknown})

    def gesture(self, kind: str, number: int = 0) -> None:
        """A gesture is in force from the next chunk on."""
        if not self.full:
            self._asked.append(_Asked(number, kind, kind, Receipt(_GESTURE)))

    def refuse(self, number: int, kind: str, reason: str) -> None:
        """A change cannot be."""
        row = {"type": "receipt", "id": number, "kind": kind, "status": "refused"}
        self.voice.say({**row, "reason": reason})

    def refuse_all(self, reason: str) -> None:
        """No change that waits will be."""
        for asked in self._asked:
            self.refuse(asked.id, asked.kind, reason)
        self._asked.clear()

    def settle(self, made: Generated, epoch: int) -> None:
        """A chunk has been made: tell the fate of what it decided."""
        waiting = []
        for asked in self._asked:
            receipt = asked.receipt
            if receipt.number == _GESTURE:
                receipt.status, receipt.chunk, receipt.frame = "applied", made.index, made.start
                receipt.seconds = made.start / self.fps
            if receipt.status == "accepted":
                waiting.append(asked)
                continue
            if receipt.status == "applied" and receipt.frame is not None:
                self.strip.add(receipt.frame, asked.kind, asked.label)
            row = {**receipt.to_json(), "type": "receipt", "id": asked.id, "kind": asked.kind}
            self.voice.say({**row, "label": asked.label, "epoch": epoch})
        self._asked = waiting
