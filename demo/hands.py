"""What a viewer does with their hands: it becomes gestures, and they are told what became of it."""

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from streamgen import StreamEvent
from streamgen.motion.tracks import TrackSet

from .answers import Answers
from .drawn_tracks import clamped
from .engine import ModelInfo, Stream
from .follow import follow
from .messages import BadMessage, Box, Camera, Path, Pins, Remove, Simple, Stroke
from .motion_desk import MotionDesk
from .motion_words import box_name, camera_name, colour_name, pins_name, way_name

HandMessage = Stroke | Path | Box | Pins | Remove | Camera | Simple
# Of pictures kept for following what a stroke was drawn on.
_SEEN_SECONDS = 2.0


class Hands:
    """The hands of one viewer. Not thread-safe.

    Args:
        info: of the model.
        answers: tells what becomes of changes.
        fresh: says whether a message is of the stream as it is; refuses it if not.
    """

    def __init__(self, info: ModelInfo, answers: Answers, fresh: Callable[[int, int, str], bool]) -> None:
        self.info, self.answers, self.fresh = info, answers, fresh
        # the newest pictures, with their frames
        self.seen: deque[tuple[int, np.ndarray]] = deque(maxlen=round(_SEEN_SECONDS * info.fps))
        self._strokes: dict[int, tuple[int, str, tuple[float, float]]] = {}
        self.reset()

    def reset(self) -> None:
        """Nothing is held: another stream, or another moment of it."""
        self.desk = MotionDesk(self.info.fps, self.info.width / self.info.height)
        self._strokes.clear()
        self._lets_go = False
        self._told: list[dict[str, object]] = []

    def rows(self) -> dict[str, object]:
        """What is in force, for the page."""
        self._told = self.desk.held.rows()
        return {"pins": self.desk.pin_rows, "held": self._told}

    def take(self, message: HandMessage) -> None:
        """Do what a viewer's hand did.

        Raises:
            BadMessage: it cannot be.
        """
        if isinstance(message, Stroke):
            self._stroke(message)
        elif isinstance(message, Path):
            self._path(message)
        elif isinstance(message, Box):
            self._box(message)
        elif isinstance(message, Pins):
            self._pins(message)
        elif isinstance(message, Remove):
            self._remove(message)
        elif isinstance(message, Camera):
            self._camera(message)
        else:
            self.desk.clear()
            self._lets_go = True
            self.answers.gesture("release", message.id, "all")
        self.tell()

    def begin(self, stream: Stream) -> None:
        """A chunk begins: what hands have done until now takes effect with it."""
        changes = self.desk.plan(stream.next_frame, stream.next_length)
        receipt = None
        if self._lets_go:
            # of all, so of what a timeline brought as well
            kept = {name: tracks for name, tracks in (changes or {}).items() if tracks is not None}
            receipt = stream.submit(StreamEvent(motion=TrackSet.empty(0), gestures=kept or None))
        elif changes is not None:
            receipt = stream.submit(StreamEvent(gestures=changes))
        self._lets_go = False
        self.answers.begin(receipt)
        if receipt is not None and receipt.status == "refused":
            self.reset()
        if changes is not None:
            self.tell()

    def bring(self, stream: Stream, frame: int) -> None:
        """A chunk has been made from a frame on: what it had in force of a timeline is shown as theirs is."""
        self.desk.bring(stream.gestures, frame)
        self.tell()

    def leaves(self, message: HandMessage) -> Sequence[str]:
        """Gestures of a timeline that a viewer lets go of."""
        brought = self.desk.held.brought()
        if isinstance(message, Remove):
            held = self.desk.held.find(message.number)
            return [name for name in brought if held is not None and held.gesture == name]
        return brought if isinstance(message, Simple) else ()

    def tell(self) -> None:
        """Tell the page what is in force, where that has changed."""
        rows = self.desk.held.rows()
        if rows != self._told:
            self._told = rows
            self.answers.outgoing.say({"type": "held", "held": rows})

    def now_at(self, frame: int, point: tuple[float, ...]) -> tuple[float, float]:
        """Where the thing at `point` of picture `frame` is in the newest picture."""
        return follow([picture for number, picture in self.seen if number >= frame], (point[0], point[1]))

    def _thing(self, at: tuple[float, float]) -> str:
        return colour_name(self.seen[-1][1] if self.seen else None, *at)

    def _stroke(self, message: Stroke) -> None:
        points = [(x, y) for _, x, y in message.points]
        if message.phase == "begin":
            if not self.fresh(message.epoch, message.id, "drag"):
                return
            at = self.now_at(message.frame, points[0])
            thing = self._thing(at)
            label = way_name(thing, at, None)
            number = self.desk.begin_stroke(message.id, at, points, message.grid, label)
            if number is None:
                raise BadMessage("stroke: too many drags at once")
            self._strokes[message.id] = number, thing, at
            self.answers.gesture("drag", message.id, label)
            return
        known = self._strokes.get(message.id)
        if known is None:
            return
        self.desk.move_stroke(message.id, points, message.phase == "end")
        number, thing, at = known
        if points:
            self.desk.held.relabel(number, way_name(thing, at, points[-1]))
        if message.phase == "end":
            del self._strokes[message.id]
            label = next((held.label for held in self.desk.held if held.number == number), "")
            if label:
                self.answers.relabel(message.id, label)

    def _path(self, message: Path) -> None:
        if not self.fresh(message.epoch, message.id, "path"):
            return
        at = self.now_at(message.frame, message.points[0][1:])
        label = way_name(self._thing(at), at, message.points[-1][1:])
        if self.desk.add_path(message.points, at, message.grid, label, message.id) is None:
            raise BadMessage("path: too many paths are under way")
        self.answers.gesture("path", message.id, label)

    def _box(self, message: Box) -> None:
        if not self.fresh(message.epoch, message.id, "box"):
            return
        _, left, top, right, bottom = message.knots[0]
        at = self.now_at(message.frame, (clamped((left + right) / 2), clamped((top + bottom) / 2)))
        thing = message.name or self._thing(at)
        label = ""
        if all(right > left and bottom > top for _, left, top, right, bottom in message.knots):
            half = (right - left) / 2, (bottom - top) / 2
            now = (at[0] - half[0], at[1] - half[1], at[0] + half[0], at[1] + half[1])
            label = box_name(thing, now, message.knots[-1][1:])
        try:
            made = self.desk.add_box(message.knots, at, message.spacing, message.name, label, message.id)
        except ValueError as error:
            self.answers.refuse(message.id, "box", str(error))
            return
        if made is None:
            self.answers.refuse(message.id, "box", "too many boxes and paths are under way")
            return
        self.answers.gesture("box", message.id, label)

    def _pins(self, message: Pins) -> None:
        self.desk.set_pins(message.points, message.grids)
        if message.points:
            self.answers.gesture("pins", message.id, pins_name(message.points))
        else:
            self.answers.gesture("release", message.id, "pins")

    def _remove(self, message: Remove) -> None:
        held = self.desk.remove(message.number)
        if held is None:
            self.answers.refuse(message.id, "release", f"nothing of number {message.number} is in force")
            return
        # the hand that was at it has nothing to move any more
        self._strokes = {key: one for key, one in self._strokes.items() if one[0] != message.number}
        self.answers.gesture("release", message.id, f"{held.kind} {held.number}")

    def _camera(self, message: Camera) -> None:
        label = camera_name(message)
        try:
            self.desk.move_camera(message, label)
        except ValueError as error:
            raise BadMessage(str(error)) from None
        if not message.at_rest:
            self.answers.gesture("camera", message.id, label)
