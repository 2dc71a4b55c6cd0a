"""The strip under the video: every change at the frame where it took effect."""

from collections.abc import Sequence
from typing import Any

MAX_ROWS = 400


class Strip:
    """Changes of the branch that plays, in order of frames; the oldest give way beyond 400."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def add(self, frame: int, kind: str, label: str, superseded: Sequence[str] = ()) -> None:
        """A change took effect at a frame, but for what a later one `superseded`."""
        row = {"frame": frame, "kind": kind, "label": label, "superseded": list(superseded)}
        self._rows = [*self._rows, row][-MAX_ROWS:]

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
