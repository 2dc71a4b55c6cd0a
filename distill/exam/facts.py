"""What a transcript may state about frames: kinds of facts, and what each of them needs.

Words are those of the procedural world. How a fact is read from frames stands in `marking`.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamgen.suggest import shorten, unknown_key

from ..evaluation.classifiers import MOTION_FRAMES
from ..scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES

#: What a fact is asked for: what was there from the beginning, an answer to an event, what was to stay, what
#: comes back from earlier in the stream, motion as tracks tell it, and staying the same for long.
ASKS = ("beginning", "response", "retention", "reuse", "control", "steadiness")
#: What can be said of a scene in words; the number of objects is a number.
WORDS: Mapping[str, Sequence[str]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "background": BACKGROUNDS,
    "motion": MOTIONS,
}
MAX_OBJECTS = 3
#: Frames of a stretch of `no_drift`, in seconds.
STRETCH_SECONDS = 4.0


@dataclass(frozen=True)
class Fact:
    """One thing that is to be seen.

    Attributes:
        kind: one of `KINDS`.
        frames: the first frame that it is about, and the one behind the last.
        expect: what is expected there; its form depends on the kind.
        tolerance: how far off it may be, in the unit of the kind; None where the kind has none.
        object: colour of the object that it is about.
        against: earlier frames that these are held against, as `frames`.
        asks: one of `ASKS`.
    """

    kind: str
    frames: tuple[int, int]
    expect: Any = None
    tolerance: float | None = None
    object: str | None = None
    against: tuple[int, int] | None = None
    asks: str = "response"

    @property
    def length(self) -> int:
        """Number of frames that it is about."""
        return self.frames[1] - self.frames[0]

    @property
    def given(self) -> float:
        """Its tolerance, or that of its kind; 0 for a kind that has none."""
        return self.tolerance if self.tolerance is not None else KINDS[self.kind].tolerance or 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values, without those that are not given."""
        row = {name: value for name, value in vars(self).items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in row.items()}


@dataclass(frozen=True)
class FactKind:
    """What a kind of fact needs.

    Attributes:
        wrong: given a fact and the stream's frames per second, what is wrong with it; "" for nothing.
        tolerance: that of facts which give none; None for a kind without.
        most: the largest tolerance.
        object: whether the fact has to name an object.
        against: whether it has to name other frames.
        least: frames that it takes.
    """

    wrong: Callable[[Fact, float], str]
    tolerance: float | None = None
    most: float = 1.0
    object: bool = False
    against: bool = False
    least: int = 1


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12


def wrong_word(name: str, found: Any) -> str:
    """What is wrong with a word of an attribute; "" for nothing."""
    if isinstance(found, str):
        return "" if found in WORDS[name] else unknown_key(found, WORDS[name], name)
    return f"expected a {name}, found {shorten(found)}"


def _word(name: str) -> Callable[[Fact, float], str]:
    return lambda fact, fps: wrong_word(name, fact.expect)


def _wrong_count(found: Any) -> str:
    fits = isinstance(found, int) and not isinstance(found, bool) and 0 <= found <= MAX_OBJECTS
    return "" if fits else f"expected a number of objects from 0 to {MAX_OBJECTS}, found {shorten(found)}"


def _wrong_scene(fact: Fact) -> str:
    """Words by attribute, at least one."""
    if not isinstance(fact.expect, Mapping) or not fact.expect:
        return f'expected words such as {{"colour": "red"}}, found {shorten(fact.expect)}'
    for name, found in fact.expect.items():
        if name not in (*WORDS, "count"):
            return unknown_key(name, (*WORDS, "count"), "attribute")
        if wrong := _wrong_count(found) if name == "count" else wrong_word(name, found):
            return wrong
    return ""


def _shown(fact: Fact, fps: float) -> str:
    """One attribute that shows before the tolerance is over; a shape or motion is one of an object."""
    if wrong := _wrong_scene(fact):
        return wrong
    if len(fact.expect) != 1:
        return f"expected one attribute, found {', '.join(fact.expect)}"
    (name,) = fact.expect
    if name in ("shape", "motion") and fact.object is None:
        return f"object: expected the colour of the object whose {name} it is, found none"
    needs = round(fact.given * fps) + (MOTION_FRAMES if name == "motion" else 1)
    if fact.length < needs:
        return f"frames: expected at least {needs} of them for {fact.given:g} s, found {fact.length}"
    return ""


def _steady(fact: Fact, fps: float) -> str:
    """Colour, shape and background in stretches."""
    if wrong := _wrong_scene(fact):
        return wrong
    if missing := [name for name in ("colour", "shape", "background") if name not in fact.expect]:
        return f"expected colour, shape and background, found no {missing[0]}"
    least = round(STRETCH_SECONDS * fps)
    return "" if fact.length >= least else f"frames: expected at least {least} of them, found {fact.length}"


def _number(low: float, high: float, what: str) -> Callable[[Fact, float], str]:
    def wrong(fact: Fact, fps: float) -> str:
        fits = is_number(fact.expect) and low <= fact.expect <= high
        return "" if fits else f"expected {what} from {low:g} to {high:g}, found {shorten(fact.expect)}"

    return wrong


def _nothing(fact: Fact, fps: float) -> str:
    return "" if fact.expect is None else f"expected no value, found {shorten(fact.expect)}"


def _knots(fact: Fact, fps: float) -> str:
    """Places [frame, x, y] in the order of their frames, which span those of the fact."""
    knots = fact.expect
    well_formed = isinstance(knots, list) and all(
        isinstance(knot, list) and len(knot) == 3 and all(map(is_number, knot)) for knot in knots
    )
    if not well_formed or not knots:
        return f"expected places [frame, x, y], found {shorten(knots)}"
    frames = [knot[0] for knot in knots]
    if any(later <= earlier for earlier, later in itertools.pairwise(frames)):
        return f"expected places in the order of their frames, found {shorten(frames)}"
    if frames[0] > fact.frames[0] or frames[-1] < fact.frames[1] - 1:
        span = f"{fact.frames[0]} to {fact.frames[1] - 1}"
        return f"expected places from frame {span}, found {frames[0]:g} to {frames[-1]:g}"
    if any(not 0 <= coordinate <= 1 for knot in knots for coordinate in knot[1:]):
        return f"expected x and y in [0, 1], found {shorten(knots)}"
    return ""


#: The kinds of facts. Where `tolerance` is a share, so many of the frames may show something else.
KINDS: Mapping[str, FactKind] = {
    "colour": FactKind(_word("colour"), tolerance=0.2),
    "shape": FactKind(_word("shape"), tolerance=0.2, object=True),
    "background": FactKind(_word("background"), tolerance=0.1),
    "motion": FactKind(_word("motion"), object=True, least=MOTION_FRAMES),
    "count": FactKind(lambda fact, fps: _wrong_count(fact.expect), tolerance=0.5),
    "path": FactKind(_knots, tolerance=0.06, object=True),
    "background_kept": FactKind(_number(1, 60, "a PSNR in dB"), least=2),
    "place_kept": FactKind(_nothing, tolerance=2.0, most=20.0, least=2),
    "identity_kept": FactKind(_nothing, tolerance=0.3, object=True, against=True),
    "shown_within": FactKind(_shown, tolerance=1.0, most=60.0),
    "returns": FactKind(_number(-1, 1, "a likeness"), against=True),
    "no_drift": FactKind(_steady, tolerance=0.1),
}


def wrong_fact(fact: Fact, frames: int, fps: float) -> str:
    """What is wrong with a fact about a stream of so many frames; "" for nothing."""
    if fact.kind not in KINDS:
        return unknown_key(fact.kind, KINDS, "kind of fact")
    if fact.asks not in ASKS:
        return unknown_key(fact.asks, ASKS, "value of asks")
    return (
        _wrong_place(fact, KINDS[fact.kind], frames)
        or _wrong_tolerance(fact, KINDS[fact.kind])
        or KINDS[fact.kind].wrong(fact, fps)
    )


def _wrong_place(fact: Fact, kind: FactKind, frames: int) -> str:
    """What is wrong with the frames and the object that it is about."""
    for name, span in (("frames", fact.frames), ("against", fact.against)):
        if span is not None and not 0 <= span[0] < span[1] <= frames:
            return (
                f"{name}: expected first frame and end within 0 to {frames}, the frames of the stream, "
                f"found {list(span)}"
            )
    for name, needed, found in (
        ("object", kind.object, fact.object),
        ("against", kind.against, fact.against),
    ):
        if needed and found is None:
            return f"{name}: missing"
    if fact.object is not None and (wrong := wrong_word("colour", fact.object)):
        return f"object: {wrong}"
    least = f"frames: expected at least {kind.least} of them, found {fact.length}"
    return least if fact.length < kind.least else ""


def _wrong_tolerance(fact: Fact, kind: FactKind) -> str:
    if fact.tolerance is None:
        return ""
    if kind.tolerance is None:
        return f"tolerance: expected none, since {fact.kind} has no degrees, found {fact.tolerance:g}"
    fits = 0 <= fact.tolerance <= kind.most
    return "" if fits else f"tolerance: expected 0 to {kind.most:g}, found {fact.tolerance:g}"
