"""The WebSocket protocol: what a client may say, checked field by field, and how a frame is packed.

Clients send JSON text, the server JSON text and binary frames. `docs/demo.md` has the protocol as a table.
"""

import itertools
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from streamgen import InputError, StreamEvent
from streamgen.interpolate import Way
from streamgen.live.picture import Picture, PictureUse
from streamgen.motion.boxes import SPACING
from streamgen.stream.events import CacheAction
from streamgen.stream.prompts import MAX_PROMPT, Blend, Over, blend_name, checked_blend
from streamgen.stream.recache import SinkPolicy

MAX_MESSAGE_BYTES = 64 * 1024
# Settings that a viewer may change, with type and range: narrower than the engine's, which is shared.
SETTINGS: dict[str, tuple[type[int] | type[float], float, float]] = {
    "steps": (int, 1, 50),
    "text_guidance": (float, 0, 10),
    "motion_guidance": (float, 0, 10),
    "strength": (float, 0.01, 1),
}
# Those that are words, with their most characters; "" is none.
TEXT_SETTINGS = {"negative_prompt": MAX_PROMPT, "input_prompt": MAX_PROMPT, "lora": 500}
MAX_SEED = 2**31 - 1
MAX_STROKE_POINTS = 64
MAX_PATH_POINTS = 512
MAX_PINS = 64
MAX_PATH_MS = 30_000
MAX_NAME = 60
_LARGEST = 2**32 - 1

FRAME_HEADER = struct.Struct("<BBHIIIId")
FRAME_VERSION = 1
JPEG, PNG = 1, 2

CACHE, SINKS, WAYS = get_args(CacheAction), get_args(SinkPolicy), get_args(Way)
USES = get_args(PictureUse)
# A way from words to words: longer ones are asked for in parts.
MAX_OVER_SECONDS = 60.0
PHASES = ("begin", "move", "end")


class BadMessage(Exception):
    """A message that is refused; its text names the field, what was expected and what was found."""


@dataclass(frozen=True)
class Start:
    """Begin a stream, or begin again. `picture` starts it from what was uploaded."""

    prompt: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    picture: bool = False


@dataclass(frozen=True)
class Event:
    """Change words, settings or cache at the next chunk; `id` comes back in the receipt.

    The words are a prompt or a blend, and come at once or `over` so many seconds.
    """

    id: int
    epoch: int
    prompt: str | None = None
    settings: Mapping[str, Any] | None = None
    cache: CacheAction | None = None
    sink: SinkPolicy | None = None
    blend: Blend | None = None
    over: float = 0.0
    way: Way = "linear"
    picture: PictureUse | None = None

    @property
    def kind(self) -> str:
        """What of it is told first."""
        says = self.prompt is not None or self.blend is not None
        if self.picture is not None and not says:
            return "picture"
        return "prompt" if says else "settings" if self.settings else "cache"

    @property
    def label(self) -> str:
        """What it says, for the strip."""
        values = ", ".join(
            f"{name} {value or 'none'}" if isinstance(value, str) else f"{name} {value:g}"
            for name, value in (self.settings or {}).items()
        )
        words = self.prompt or (blend_name(self.blend) if self.blend else "")
        return words or values or (f"a picture, {self.picture}" if self.picture else str(self.cache))

    def stream_event(self, every: int = 1, picture: Picture | None = None) -> StreamEvent:
        """As the stream takes it.

        Args:
            every: with every so many-th chunk of a passage the cache is made anew.
            picture: what was uploaded, where one is asked for.

        Raises:
            InputError: values that cannot be.
        """
        over = Over(seconds=self.over, way=self.way, every=every) if self.over else None
        more: dict[str, Any] = {"blend": self.blend, "over": over, "picture": picture}
        return StreamEvent(self.prompt, None, self.settings, self.cache, self.sink, **more)


@dataclass(frozen=True)
class Grid:
    """A patch of tracks in place of one: (width, height) in parts of the picture, one every `spacing`."""

    size: tuple[float, float]
    spacing: float


@dataclass(frozen=True)
class Stroke:
    """Part of a live drag: `points` are (milliseconds, x, y), drawn on picture `frame` of `epoch`."""

    id: int
    epoch: int
    frame: int
    phase: str
    points: tuple[tuple[float, float, float], ...]
    grid: Grid | None = None


@dataclass(frozen=True)
class Path:
    """A finished path with its own timing: `points` are (milliseconds, x, y), times rising."""

    id: int
    epoch: int
    frame: int
    points: tuple[tuple[float, float, float], ...]
    grid: Grid | None = None


@dataclass(frozen=True)
class Box:
    """What is in a box goes along its way: `knots` are (milliseconds, left, top, right, bottom)."""

    id: int
    epoch: int
    frame: int
    knots: tuple[tuple[float, ...], ...]
    name: str = ""
    spacing: float = SPACING


@dataclass(frozen=True)
class Pins:
    """All points that hold their place from now on; `grids` has a patch for each, or is empty."""

    points: tuple[tuple[float, float], ...]
    id: int = 0
    grids: tuple[Grid | None, ...] = ()


@dataclass(frozen=True)
class Remove:
    """Let go of one gesture, by the number it has on the picture."""

    number: int
    id: int = 0


@dataclass(frozen=True)
class Camera:
    """A camera move per second of video: pan (frame sizes), zoom factor, clockwise degrees; rest: 0, 1, 0.

    It lasts until it is stopped, or for so many `seconds`.
    """

    pan: tuple[float, float]
    zoom: float
    rotate: float
    id: int = 0
    seconds: float = 0.0

    @property
    def at_rest(self) -> bool:
        """Whether this stops a move."""
        return self.pan == (0.0, 0.0) and self.zoom == 1.0 and self.rotate == 0.0


@dataclass(frozen=True)
class Ack:
    """What has arrived (all frames up to `seq`) and where the viewer is: `shown` is the picture on screen,
    `head` the playing position in frames (fractions included).
    """

    seq: int
    epoch: int
    shown: int
    head: float


@dataclass(frozen=True)
class Step:
    """While paused: the viewer wants to see picture `frame`."""

    frame: int


@dataclass(frozen=True)
class Rewind:
    """Go back to a mark of the scrubber and branch from there."""

    mark: int


@dataclass(frozen=True)
class Take:
    """Return to a branch that was left."""

    take: int


@dataclass(frozen=True)
class Simple:
    """A message without fields but perhaps an `id`: pause, resume, clear, awake, webcam_off."""

    kind: str
    id: int = 0


Message = Start | Event | Stroke | Path | Box | Pins | Remove | Camera | Ack | Step | Rewind | Take | Simple

_SIMPLE = ("pause", "resume", "clear", "awake", "webcam_off")


def parse(text: str | bytes) -> Message:
    """A client's message.

    Raises:
        BadMessage: too long, no JSON object, an unknown type, or a field that is missing, unknown, of another
            type or out of range.
    """
    size = len(text) if isinstance(text, bytes) else len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_MESSAGE_BYTES:
        raise BadMessage(f"message: expected at most {MAX_MESSAGE_BYTES} bytes, found {size}")
    try:
        row = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BadMessage("message: expected a JSON object") from None
    if not isinstance(row, dict):
        raise BadMessage("message: expected a JSON object")
    kind = row.pop("type", None)
    if not isinstance(kind, str) or (kind not in _PARSERS and kind not in _SIMPLE):
        raise BadMessage(f"type: unknown type {_short(kind)}")
    fields = _Fields(kind, row)
    made = Simple(kind, fields.number_of()) if kind in _SIMPLE else _PARSERS[kind](fields)
    fields.finish()
    return made


def pack_frame(
    data: bytes, encoding: int, seq: int, epoch: int, frame: int, chunk: int, made: float
) -> bytes:
    """A binary frame: header (little endian) and the encoded picture.

    Args:
        data: the picture as `encoding` (`JPEG` or `PNG`) says.
        seq: counts the frames sent to this viewer, from 1.
        epoch: raised by every start, rewind and take.
        frame: index in the stream.
        chunk: the chunk it belongs to.
        made: when it was generated, Unix seconds.
    """
    return FRAME_HEADER.pack(FRAME_VERSION, encoding, 0, seq, epoch, frame, chunk, made) + data


class _Fields:
    """Takes fields out of a message one by one, checked; `finish` refuses what is left over."""

    def __init__(self, kind: str, row: dict[str, Any]) -> None:
        self.kind, self.row = kind, row

    def fail(self, name: str, expected: str, found: Any) -> BadMessage:
        return BadMessage(f"{self.kind}: {name}: expected {expected}, found {_short(found)}")

    def finish(self) -> None:
        if self.row:
            raise BadMessage(f"{self.kind}: unknown field {_short(next(iter(self.row)))}")

    def whole(self, name: str, most: int = _LARGEST) -> int:
        value = self.row.pop(name, None)
        if type(value) is not int or not 0 <= value <= most:
            raise self.fail(name, f"a whole number in 0..{most}", value)
        return value

    def number_of(self) -> int:
        """The viewer's number for a message, 0 without one."""
        return self.whole("id") if "id" in self.row else 0

    def number(self, name: str, least: float, most: float) -> float:
        return self._number(name, self.row.pop(name, None), least, most)

    def text(self, name: str, most: int) -> str:
        value = self.row.pop(name, None)
        if not isinstance(value, str) or not value.strip() or len(value) > most:
            raise self.fail(name, f"text of 1 to {most} characters", value)
        return value

    def choice(self, name: str, known: tuple[str, ...]) -> Any:
        value = self.row.pop(name, None)
        if value not in known:
            raise self.fail(name, f"one of {', '.join(known)}", value)
        return value

    def option(self, name: str, known: tuple[str, ...]) -> Any:
        return self.choice(name, known) if name in self.row else None

    def flag(self, name: str) -> bool:
        value = self.row.pop(name, False)
        if not isinstance(value, bool):
            raise self.fail(name, "true or false", value)
        return value

    def settings(self) -> dict[str, Any]:
        values = self.row.pop("settings", {})
        if not isinstance(values, dict):
            raise self.fail("settings", "an object", values)
        for name, value in values.items():
            if name in TEXT_SETTINGS:
                if not isinstance(value, str) or len(value) > TEXT_SETTINGS[name]:
                    raise self.fail(name, f"text of up to {TEXT_SETTINGS[name]} characters", value)
                continue
            if name not in SETTINGS:
                raise self.fail("settings", f"of {', '.join((*SETTINGS, *TEXT_SETTINGS))}", name)
            kind, least, most = SETTINGS[name]
            self._number(name, value, least, most)
            if kind is int and type(value) is not int:
                raise self.fail(name, "a whole number", value)
        return {n: value if n in TEXT_SETTINGS else SETTINGS[n][0](value) for n, value in values.items()}

    def blend(self) -> Blend:
        """Prompts and weights."""
        try:
            return checked_blend(self.row.pop("blend", None))
        except InputError as error:
            raise BadMessage(f"{self.kind}: {error}") from None

    def points(self, width: int, least: int, most: int) -> tuple[tuple[float, ...], ...]:
        """Rows of `width` numbers: (x, y), or (milliseconds, x, y)."""
        rows = self._rows(least, most)
        made = []
        for row in rows:
            if not isinstance(row, list) or len(row) != width:
                raise self.fail("points", f"{width} numbers each", row)
            xy = [self._number("points", value, 0.0, 1.0) for value in row[width - 2 :]]
            time = [self._number("points", value, 0.0, 1e9) for value in row[: width - 2]]
            made.append((*time, *xy))
        if width == 3:
            self._check_times(made)
        return tuple(made)

    def boxes(self, most: int) -> tuple[tuple[float, ...], ...]:
        """Rows of (milliseconds, left, top, right, bottom); what cannot be is for the motion to say."""
        made = []
        for row in self._rows(2, most):
            if not isinstance(row, list) or len(row) != 5:
                raise self.fail("points", "5 numbers each", row)
            edges = [self._number("points", value, -9.0, 9.0) for value in row[1:]]
            made.append((self._number("points", row[0], 0.0, 1e9), *edges))
        self._check_times(made)
        return tuple(made)

    def held(self, most: int) -> tuple[tuple[tuple[float, float], ...], tuple["Grid | None", ...]]:
        """Rows of (x, y), or with the patch of a grid: (x, y, width, height, spacing)."""
        points, grids = [], []
        for row in self._rows(0, most):
            if not isinstance(row, list) or len(row) not in (2, 5):
                raise self.fail("points", "2 or 5 numbers each", row)
            x, y = (self._number("points", value, 0.0, 1.0) for value in row[:2])
            points.append((x, y))
            grids.append(self._grid(row[2:]) if len(row) == 5 else None)
        return tuple(points), tuple(grids) if any(grids) else ()

    def grid(self) -> "Grid | None":
        """A patch of tracks, [width, height, spacing], where one is asked for."""
        row = self.row.pop("grid", None)
        if row is None:
            return None
        if not isinstance(row, list) or len(row) != 3:
            raise self.fail("grid", "[width, height, spacing]", row)
        return self._grid(row)

    def _grid(self, row: list[Any]) -> "Grid":
        width, height = (self._number("grid", value, 0.0, 1.0) for value in row[:2])
        return Grid((width, height), self._number("grid", row[2], 0.04, 1.0))

    def _rows(self, least: int, most: int) -> list[Any]:
        rows = self.row.pop("points", None)
        if not isinstance(rows, list) or not least <= len(rows) <= most:
            raise self.fail("points", f"a list of {least} to {most} points", rows)
        return rows

    def _check_times(self, made: list[tuple[float, ...]]) -> None:
        if any(later[0] < sooner[0] for sooner, later in itertools.pairwise(made)):
            raise self.fail("points", "times that do not fall", made)
        if made and made[-1][0] - made[0][0] > MAX_PATH_MS and self.kind != "stroke":
            raise BadMessage(f"{self.kind}: points: expected at most {MAX_PATH_MS} ms from first to last")

    def _number(self, name: str, value: Any, least: float, most: float) -> float:
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        # neither NaN nor infinity is in a range; a whole number may be too large for a float
        if not plain or not least <= value <= most:
            raise self.fail(name, f"a number in {least:g}..{most:g}", value)
        return float(value)


def _start(fields: _Fields) -> Start:
    prompt, seed = fields.text("prompt", MAX_PROMPT), fields.whole("seed", MAX_SEED)
    return Start(prompt, seed, fields.settings(), fields.flag("picture"))


def _event(fields: _Fields) -> Event:
    number, epoch = fields.whole("id"), fields.whole("epoch")
    prompt = fields.text("prompt", MAX_PROMPT) if "prompt" in fields.row else None
    settings = fields.settings() or None
    cache, policy = fields.option("cache", CACHE), fields.option("policy", CACHE)
    if cache is not None and policy is not None and cache != policy:
        raise BadMessage(f"event: cache {cache} and policy {policy} are the same field")
    cache = cache or policy
    blend = fields.blend() if "blend" in fields.row else None
    over = fields.number("over", 0.0, MAX_OVER_SECONDS) if "over" in fields.row else 0.0
    if prompt is not None and blend is not None:
        raise BadMessage("event: expected a prompt or a blend, found both")
    if over and prompt is None and blend is None:
        raise BadMessage("event: over: expected new words that it leads to, found none")
    picture = fields.option("picture", USES)
    if prompt is None and blend is None and settings is None and cache is None and picture is None:
        raise BadMessage("event: expected a prompt, settings or a cache action, found none of them")
    if over and cache in ("clear", "rebuild"):
        # nothing is left that words could come from
        over = 0.0
    sink, way = fields.option("sink", SINKS), fields.choice("way", WAYS) if "way" in fields.row else WAYS[0]
    return Event(number, epoch, prompt, settings, cache, sink, blend, over, way, picture)


def _stroke(fields: _Fields) -> Stroke:
    phase = fields.choice("phase", PHASES)
    points = fields.points(3, 0 if phase == "end" else 1, MAX_STROKE_POINTS)
    return Stroke(*_place(fields), phase, tuple((t, x, y) for t, x, y in points), fields.grid())


def _path(fields: _Fields) -> Path:
    points = fields.points(3, 2, MAX_PATH_POINTS)
    return Path(*_place(fields), tuple((t, x, y) for t, x, y in points), fields.grid())


def _box(fields: _Fields) -> Box:
    knots = fields.boxes(MAX_PATH_POINTS)
    spacing = fields.number("spacing", 0.04, 1.0) if "spacing" in fields.row else SPACING
    name = fields.row.pop("name", "")
    if not isinstance(name, str) or len(name) > MAX_NAME:
        raise fields.fail("name", f"text of up to {MAX_NAME} characters", name)
    return Box(*_place(fields), knots, " ".join(name.split()), spacing)


def _place(fields: _Fields) -> tuple[int, int, int]:
    return fields.whole("id"), fields.whole("epoch"), fields.whole("frame")


def _pins(fields: _Fields) -> Pins:
    points, grids = fields.held(MAX_PINS)
    return Pins(points, fields.number_of(), grids)


def _camera(fields: _Fields) -> Camera:
    pan = fields.row.pop("pan", None)
    if not isinstance(pan, list) or len(pan) != 2:
        raise fields.fail("pan", "two numbers", pan)
    x, y = (fields._number("pan", value, -1.0, 1.0) for value in pan)
    zoom, rotate = fields.number("zoom", 0.25, 4.0), fields.number("rotate", -180.0, 180.0)
    seconds = fields.number("seconds", 0.0, MAX_PATH_MS / 1000) if "seconds" in fields.row else 0.0
    return Camera((x, y), zoom, rotate, fields.number_of(), seconds)


def _ack(fields: _Fields) -> Ack:
    seq, epoch, shown = fields.whole("seq"), fields.whole("epoch"), fields.whole("shown")
    return Ack(seq, epoch, shown, fields.number("head", 0.0, _LARGEST))


_PARSERS: dict[str, Callable[[_Fields], Message]] = {
    "start": _start,
    "event": _event,
    "stroke": _stroke,
    "path": _path,
    "box": _box,
    "pins": _pins,
    "remove": lambda fields: Remove(fields.whole("number"), fields.number_of()),
    "camera": _camera,
    "ack": _ack,
    "step": lambda fields: Step(fields.whole("frame")),
    "rewind": lambda fields: Rewind(fields.whole("mark")),
    "take": lambda fields: Take(fields.whole("take")),
}


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
