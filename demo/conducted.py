"""A session whose stream can be opened from a timeline, and played again from where it was edited."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from streamgen import InputError, StreamgenError
from streamgen.stream.timeline import Timeline

from .engine import Stream
from .live import LiveSession
from .messages import BadMessage
from .opening import Score
from .score import Edit, Planned, edited, first_difference, first_words, rows, taken_apart


class Conducted(LiveSession):
    """A viewer's session, whose changes are blocks on a lane."""

    # -- from the web loop ---------------------------------------------------------------------------------

    def play(self, score: Score) -> None:
        """Begin a stream as a timeline says, and let its changes wait for their frames.

        Raises:
            BadMessage: not now.
        """
        with self._lock:
            if self.state in ("ended", "opening"):
                raise BadMessage(f"open: expected a session that is ready, found one that is {self.state}")
            if score.opening.start is not None and self.pictures is None:
                raise BadMessage("the timeline began with a picture or clip: choose the same to start from")
            before = self.state
            self._command(lambda: self._play(score, before))
            self._turn("opening")
        self.wake_worker()

    def lane(self) -> dict[str, Any]:
        """The changes of the stream as blocks, those that wait for their frames included."""
        with self._lock:
            chunk, stream = self.engine.info.chunk_frames, self.stream
            blocks = [] if stream is None else rows(self._changes(stream), self._made_end, chunk)
            return {"epoch": self.epoch, "frame": self._made_end, "blocks": blocks}

    def edit(self, epoch: int, edits: Sequence[Edit]) -> None:
        """Change the stream's blocks, and play again from the first frame that is different.

        Raises:
            InputError, BadMessage: they cannot be, or are of a stream that went elsewhere meanwhile.
        """
        with self._lock:
            stream = self.stream
            if stream is None or epoch != self.epoch:
                raise BadMessage("edit: the stream went elsewhere before this arrived")
            self._edited(stream, edits)
            self._command(lambda: self._edit(edits))
        self.wake_worker()

    # -- work ----------------------------------------------------------------------------------------------

    def _play(self, score: Score, before: str) -> None:
        """Begin the stream of a timeline; one that cannot be leaves everything as it was `before`."""
        try:
            stream = self.engine.replay(score.opening, self.pictures)
        except StreamgenError as error:
            self.outgoing.say({"type": "error", "code": "not_opened", "text": str(error)})
            with self._lock:
                self._turn(before)
            return
        with self._lock:
            self._begin(stream)
            self.plan.put(score.later, stream)

    def _changes(self, stream: Stream) -> list[Planned]:
        opening, *later = stream.events
        return [first_words(opening.event), *taken_apart(later), *self.plan.waiting]

    def _edited(self, stream: Stream, edits: Sequence[Edit]) -> tuple[list[Planned], list[Planned]]:
        """The changes as they are, and with some edits made."""
        info, changes = self.engine.info, self._changes(stream)
        if not info.tracks and any(edit.motion for edit in edits):
            raise InputError("edit: motion: this model follows no tracks")
        return changes, edited(changes, edits, info.fps, info.width / info.height)

    def _edit(self, edits: Sequence[Edit]) -> None:
        """Let changes wait for their frames, and go back where one of them is in the past already."""
        stream = self.stream
        assert stream is not None
        before, after = self._edited(stream, edits)
        first = first_difference(before, after)
        if first is None:
            return
        try:
            start = self._made_end if first >= self._made_end else self._go_back(stream, first, after[0])
        except StreamgenError as error:
            # as where a stream began with a picture that is not chosen any more; it plays on as it was
            self.outgoing.say({"type": "error", "code": "not_edited", "text": f"not edited: {error}"})
            return
        with self._lock:
            assert self.stream is not None
            self.plan.put([item for item in after[1:] if item.frame >= start], self.stream)

    def _go_back(self, stream: Stream, frame: int, words: Planned) -> int:
        """Go to the last moment that is kept before a change at a frame, or to the beginning, under its first
        `words`; what played becomes a branch. Returns where the stream is then.
        """
        mark, fresh = self.marks.before(frame), None
        if mark is None:
            timeline = Timeline.from_json(stream.timeline())
            begins, said = timeline.events[0], words.event
            event = replace(
                begins.event, prompt=said.prompt, blend=said.blend, prompt_embeds=said.prompt_embeds
            )
            opening = replace(timeline, events=[replace(begins, event=event)])
            fresh = self.engine.replay(opening, self.pictures)
        with self._lock:
            here = self._made_end, self._last_picture()
            if fresh is not None:
                self.branches.start(stream, *here)
                self.stream = fresh
                self.strip.add(0, "prompt", fresh.prompt)
                self._go_to(0)
                return 0
            assert mark is not None
            self.branches.rewind(stream, mark, *here)
            self._go_to(mark.frame, mark.picture, keep=True)
            return mark.frame
