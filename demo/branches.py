"""The branch that plays and those that were left: recording, marks, branches and strip, moved together."""

from pathlib import Path
from typing import Any

from .engine import ModelInfo, Stream
from .history import Mark, Marks, Take, Takes
from .recording import Recording
from .shelf import Kept
from .strip import Strip

# Between marks.
_MARK_SECONDS = 1.0


class Branches:
    """Where a session has been.

    Args:
        info: of the model.
        snapshot_bytes: of snapshots in memory.
        recording_bytes: of recorded frames on disk.
        strip: changes of the branch that plays.
        folder: where recorded frames lie as files, if anywhere.
    """

    def __init__(
        self, info: ModelInfo, snapshot_bytes: int, recording_bytes: int, strip: Strip, folder: Path | None
    ) -> None:
        self.recording = Recording(info.height, info.width, recording_bytes, folder)
        self.marks = Marks(round(_MARK_SECONDS * info.fps), snapshot_bytes)
        self.takes = Takes(snapshot_bytes)
        self.strip = strip

    def start(self, before: Stream | None, frame: int, picture: str) -> None:
        """A new stream begins; what played before, up to a frame, becomes a branch."""
        if before is not None and frame:
            self.takes.add(self._left(before, frame, picture))
        self.recording.restart([take.lineage for take in self.takes])
        self.marks.cut(-1)
        self.takes.fit(self.marks)
        self.strip.clear()

    def rewind(self, stream: Stream, mark: Mark, frame: int, picture: str) -> None:
        """Go back to a mark; what was made behind it, up to a frame, becomes a branch."""
        left = self._left(stream, frame, picture) if frame > mark.frame else None
        stream.restore(mark.snapshot)
        if left is not None:
            self.takes.add(left)
        self.recording.go_to(self.recording.lineage(), mark.frame)
        self.marks.cut(mark.frame)
        self.takes.fit(self.marks)
        self.strip.cut(mark.frame)

    def take_up(self, stream: Stream, take: Take, frame: int, picture: str) -> None:
        """Play a branch again in place of what plays, which becomes a branch itself."""
        left = self._left(stream, frame, picture)
        stream.restore(take.snapshot)
        if frame:
            self.takes.add(left)
        self.recording.go_to(take.lineage)
        self.marks.put_back(take.marks)
        self.strip.put_back(take.strip)

    def reopen(self, kept: Kept) -> None:
        """Go on with a stream from the shelf."""
        self.recording.reopen(kept.lineage, kept.frame)
        self.strip.put_back(kept.strip)

    def about(self, picture: str) -> dict[str, Any]:
        """What the shelf needs beside a snapshot."""
        pieces = self.recording.lineage().to_json()
        return {"pieces": pieces, "strip": list(self.strip.rows()), "picture": picture}

    def rows(self) -> dict[str, Any]:
        """For the page."""
        kept = {"marks": [mark.row() for mark in self.marks], "takes": [take.row() for take in self.takes]}
        return kept | {"strip": self.strip.rows()}

    def close(self) -> None:
        """Give everything back."""
        self.takes.clear()
        self.marks.cut(-1)
        self.recording.close()

    def _left(self, stream: Stream, frame: int, picture: str) -> Take:
        """The branch that plays, to come back to."""
        lineage, number = self.recording.lineage(), self.takes.next_id()
        past = (lineage, self.strip.rows(), tuple(self.marks))
        return Take(number, frame, stream.prompt, stream.seed, stream.snapshot(), picture, *past)
