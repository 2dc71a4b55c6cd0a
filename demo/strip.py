"""The strip under the video: every change at the frame where it took effect."""

from collections.abc import Sequence
from typing import Any

MAX_ROWS = 400


class Strip:
    """Changes of the branch that plays, in order of frames; the oldest give way beyond 400."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def add(self, frame: int, kind: str, label: str, superseded: Sequence[str] = (), number: int = 0) -> None:
        """A change took effect at a frame, but for what a later one `superseded`.

        `number` is the viewer's, of the message that asked for it.
        """
        row = {"frame": frame, "kind": kind, "label": label, "superseded": list(superseded), "id": number}
        self._rows = [*self._rows, row][-MAX_ROWS:]

    def relabel(self, number: int, label: str) -> None:
        """The newest change of that number says something else now."""
        for index in range(len(self._rows) - 1, -1, -1):
            if self._rows[index].get("id") == number:
                self._rows[index] = self._rows[index] | {"label": label}
                return

    def cut(self, frame: int) -> None:
        """The stream went back: changes from this frame on have not happened."""
        self._rows = [row for row in self._rows if row["frame"] < frame]

    def rows(self) -> tuple[dict[str, Any], ...]:
        """All of them."""
        return tuple(self._rows)

    def put_back(self, rows: tuple[dict[str, Any], ...]) -> None:
        """Those of a branch that plays again."""
        self._rows = list(rows)

    def clear(self) -> None:
        """A new stream."""
        self._rows = []
