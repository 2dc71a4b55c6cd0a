"""The fixed set of streams: what each is told and what is then to be seen, as scenes and as a transcript.

A stream is a function of the exam's seed, its category and its number alone, so that a smaller exam is the
beginning of a larger one.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ..evaluation.classifiers import MOTION_FRAMES
from ..evaluation.streams import Subject
from ..evaluation.suites import FPS, SWITCH_KINDS, canonical
from ..scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES
from ..scenes.vocabulary import BACKGROUND_PHRASES, MOTION_PHRASES, trained_indices
from .asks import GRACE, Parts, beginning, change, count, reshown, scene_facts
from .facts import Fact
from .outlines import alike
from .transcript import Transcript

#: Frames before the first event of a stream: a multiple of four and one, where chunks of every size begin.
BEFORE = 57
#: Grounds that look different at other places and hardly move.
_PLACES = tuple(BACKGROUNDS.index(name) for name in ("bricks", "night", "grass"))
#: Frames in which a stream is elsewhere before it returns: while its past is in the window, and long after.
_AWAY = {"brief": 32, "long": 96}
#: An object is held for so many frames and then drawn for so many more.
_HELD, _DRAWN = 25, 33
#: Where drags begin and end, and how far they lead at least.
_INSIDE, _REACH = (0.25, 0.75), 0.35
#: Frames after a drag until the object goes its own way.
_RELEASE = 8
LONG_FRAMES = 961
_LONG_EVENTS = (321, 641)
T = TypeVar("T")


@dataclass(frozen=True)
class Scene:
    """What is told from a frame on: a prompt, and the objects it leads to, in painter's order; an object
    keeps its place in the order as long as it is there.
    """

    start: int
    prompt: str
    subjects: tuple[Subject, ...]


@dataclass(frozen=True)
class Plan:
    """One stream of the fixed set. `motions` are objects of motion files by the frame from which they count;
    they lead the first object.
    """

    id: str
    category: str
    kind: str
    seed: int
    frames: int
    scenes: tuple[Scene, ...]
    facts: tuple[Fact, ...]
    motions: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    def transcript(self, size: int) -> Transcript:
        """As a transcript for frames of `size` x `size` pixels."""
        prompts = {scene.start: scene.prompt for scene in self.scenes}
        events: list[dict[str, Any]] = []
        for frame in sorted({*prompts, *self.motions}):
            row: dict[str, Any] = {"frame": frame, "seconds": frame / FPS}
            if frame in prompts:
                row["prompt"] = prompts[frame]
            if frame in self.motions:
                row["motion"] = dict(self.motions[frame])
            events.append(row)
        what = (self.id, self.category, self.kind, FPS, size, size, self.frames, self.seed)
        return Transcript(*what, tuple(events), self.facts)


class Draws:
    """The draws of one stream, the `number`-th of a category in the exam of a seed: functions of digests
    alone, so that no version of any library changes them.
    """

    def __init__(self, seed: int, category: str, number: int) -> None:
        self._place, self._stream, self._drawn = f"{seed}|{category}", number, 0

    def deal(self, name: str, values: Sequence[T]) -> T:
        """A value that over the streams of the category is as frequent as every other."""
        turn, place = divmod(self._stream, len(values))
        order = sorted(range(len(values)), key=lambda index: self._number(f"{name} {turn} {index}"))
        return values[order[place]]

    def pick(self, values: Sequence[T]) -> T:
        """Any of the values."""
        return values[self._next() % len(values)]

    def between(self, low: float, high: float) -> float:
        """A number with three digits."""
        return round(low + (high - low) * self._next() / 2**64, 3)

    def _next(self) -> int:
        self._drawn += 1
        return self._number(f"stream {self._stream}|{self._drawn}")

    def _number(self, purpose: str) -> int:
        digest = hashlib.blake2b(f"{self._place}|{purpose}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big")


def _stands_out(subject: Subject) -> bool:
    """Whether the size of the object can be read from pixels: not so of white over snow, where a part is
    missed.
    """
    return (COLOURS[subject.colour], BACKGROUNDS[subject.background]) != ("white", "snow")


def _subject(
    draws: Draws,
    motions: Sequence[int] = range(len(MOTIONS)),
    grounds: Sequence[int] = range(len(BACKGROUNDS)),
) -> Subject:
    colour, shape = draws.deal("pair", trained_indices())
    size, motion = draws.deal("size", range(len(SIZES))), draws.deal("motion", motions)
    found = Subject(size, colour, shape, motion, draws.deal("background", grounds))
    if _stands_out(found):
        return found
    return replace(found, background=draws.pick([g for g in grounds if g != found.background]))


def _unlike(draws: Draws, *others: Subject, background: int | None = None) -> Subject:
    """A subject that has nothing in common with others; with `background`, that one."""

    def pick(values: Sequence[int], name: str) -> int:
        taken = {vars(other)[name] for other in others}
        return draws.pick([value for value in values if value not in taken])

    colours, shapes = ({vars(other)[name] for other in others} for name in ("colour", "shape"))
    colours |= {colour for other in others for colour in alike(other.colour)}
    # white may stand over every ground but one, which may be the one asked for
    white = COLOURS.index("white") if background == BACKGROUNDS.index("snow") else -1
    pairs = [(c, s) for c, s in trained_indices() if c not in (*colours, white) and s not in shapes]
    colour, shape = draws.pick(pairs)
    size = draws.pick([size for size in range(len(SIZES)) if size != others[0].size])
    motion = pick(range(len(MOTIONS)), "motion")
    grounds = [background] if background is not None else range(len(BACKGROUNDS))
    taken = {other.background for other in others} if background is None else set()
    found = [Subject(size, colour, shape, motion, ground) for ground in grounds if ground not in taken]
    return draws.pick([subject for subject in found if _stands_out(subject)])


def _other(draws: Draws, before: Subject, kind: str, taken: Sequence[int] = ()) -> Subject:
    """The subject with another value of one attribute, colour and shape a pair of training's; not of the
    colours that are `taken` because of other objects.
    """
    values = {
        "colour": [c for c, s in trained_indices() if s == before.shape and c not in taken],
        "shape": [s for c, s in trained_indices() if c == before.colour],
        "background": list(range(len(BACKGROUNDS))),
        "motion": list(range(len(MOTIONS))),
    }[kind]
    others = [replace(before, **{kind: value}) for value in values if value != vars(before)[kind]]
    return draws.pick([other for other in others if _stands_out(other)])


def _brief(after: Subject, kind: str) -> str:
    """Words that name the object by its shape, say what changes, and nothing else."""
    shape = SHAPES[after.shape]
    return {
        "colour": f"a {COLOURS[after.colour]} {shape}",
        "shape": f"a {shape}",
        "background": f"a {shape} {BACKGROUND_PHRASES[BACKGROUNDS[after.background]][0]}",
        "motion": f"a {shape} {MOTION_PHRASES[MOTIONS[after.motion]][0][0]}",
    }[kind]


def _until(event: int) -> int:
    """A stream's frames, so that a motion can be read behind its last event: a multiple of four and one."""
    return 4 * -(-(event + GRACE + MOTION_FRAMES - 1) // 4) + 1


def _update(draws: Draws, kind: str) -> Parts:
    before = _subject(draws)
    after = _other(draws, before, kind)
    frames = _until(BEFORE)
    scenes = [(0, canonical(before), (before,)), (BEFORE, canonical(after), (after,))]
    return Parts(frames, scenes, beginning((before,), BEFORE) + change(before, after, kind, BEFORE, frames))


def _retention(draws: Draws, kind: str) -> Parts:
    """As an update, but the new words say what changes and nothing else."""
    before, frames = _subject(draws), _until(BEFORE)
    others: tuple[Subject, ...] = ()
    if kind == "second":
        others = (_unlike(draws, before, background=before.background),)
    changed = "colour" if kind == "second" else kind
    taken = [colour for other in others for colour in (other.colour, *alike(other.colour))]
    after = _other(draws, before, changed, taken)
    brief = " and ".join([_brief(after, changed), *(f"a {SHAPES[other.shape]}" for other in others)])
    first = (before, *others)
    scenes = [(0, canonical(*first), first), (BEFORE, brief, (after, *others))]
    facts = beginning(first, BEFORE) + change(before, after, changed, BEFORE, frames, others)
    return Parts(frames, scenes, facts)


def _reuse(draws: Draws, kind: str) -> Parts:
    """To another ground and back, both in words that say nothing of the object but its shape."""
    before = _subject(draws, grounds=_PLACES)
    away = _other(draws, before, "background")
    back = BEFORE + _AWAY[kind]
    frames = _until(back)
    scenes = [
        (0, canonical(before), (before,)),
        (BEFORE, _brief(away, "background"), (away,)),
        (back, _brief(before, "background"), (before,)),
    ]
    facts = beginning((before,), BEFORE) + reshown(away, ("background",), BEFORE, back, "response")
    facts += reshown(before, ("background",), back, frames, "response")
    facts += scene_facts((before,), (back + GRACE, frames), "retention", ("colour", "shape", "motion"))
    return Parts(frames, scenes, [*facts, *_as_before(before, back + GRACE, frames)])


def _returns(draws: Draws, kind: str) -> Parts:
    """To a scene in which all is different, and back, both told in full."""
    before = _subject(draws, grounds=_PLACES)
    away = _unlike(draws, before)
    back = BEFORE + _AWAY[kind]
    frames = _until(back)
    scenes = [(at, canonical(s), (s,)) for at, s in ((0, before), (BEFORE, away), (back, before))]
    facts = beginning((before,), BEFORE) + reshown(away, ("colour", "background"), BEFORE, back, "response")
    facts += reshown(before, ("colour", "background"), back, frames, "response")
    facts += scene_facts((before,), (back + GRACE, frames), "reuse")
    return Parts(frames, scenes, [*facts, *_as_before(before, back + GRACE, frames)])


def _as_before(before: Subject, start: int, frames: int) -> list[Fact]:
    """Object and place are those of the stream's beginning."""
    span, against, colour = (start, frames), (8, BEFORE), COLOURS[before.colour]
    return [
        Fact("identity_kept", span, object=colour, against=against, asks="reuse"),
        Fact("returns", span, expect=0.6, against=against, asks="reuse"),
    ]


def _drags(draws: Draws, kind: str) -> Parts:
    """An object that is held against its motion from the first frame on, so that its place is known, and
    then drawn elsewhere.
    """
    subject = _subject(draws, motions=[m for m, name in enumerate(MOTIONS) if name != "stays"])
    places = [[draws.between(*_INSIDE), draws.between(*_INSIDE)]]
    for _ in range(2 if kind == "bent" else 1):
        places.append(_far_from(draws, places[-1]))
    drawn = [[i * (_DRAWN - 1) // (len(places) - 1), *place] for i, place in enumerate(places)]
    let_go, start = _HELD + _DRAWN, _HELD + _DRAWN + _RELEASE
    frames = _until(start - GRACE)
    after = _other(draws, subject, "colour") if kind == "with-words" else subject
    held, colour = COLOURS[subject.colour], COLOURS[after.colour]
    facts = scene_facts((subject,), (4, _HELD), "beginning", ("colour", "shape", "background"))
    facts.append(
        Fact("path", (8, _HELD), [[0, *places[0]], [_HELD - 1, *places[0]]], object=held, asks="control")
    )
    # a new colour takes a while to be seen
    settled = _HELD + (_RELEASE if after != subject else 0)
    knots = [[_HELD + frame, x, y] for frame, x, y in drawn]
    facts.append(Fact("path", (settled, let_go), knots, object=colour, asks="control"))
    facts += scene_facts((after,), (start, frames), "retention", ("colour", "shape", "background"))
    facts += scene_facts((after,), (start, start + MOTION_FRAMES), "control", ("motion",))
    scenes = [(0, canonical(subject), (subject,))]
    if after != subject:
        scenes.append((_HELD, canonical(after), (after,)))
        facts += reshown(after, ("colour",), _HELD, frames, "response")
    motions = {
        frame: {"paths": [{"points": [[at / FPS, x, y] for at, x, y in knots]}]}
        for frame, knots in ((0, [[0, *places[0]], [_HELD - 1, *places[0]]]), (_HELD, drawn))
    }
    return Parts(frames, scenes, facts, motions)


def _far_from(draws: Draws, place: Sequence[float]) -> list[float]:
    while True:
        x, y = draws.between(*_INSIDE), draws.between(*_INSIDE)
        if (x - place[0]) ** 2 + (y - place[1]) ** 2 >= _REACH**2:
            return [x, y]


def _switches(draws: Draws, kind: str) -> Parts:
    """Another scene, one object more or fewer, or two switches within a second, of which the last counts."""
    before = _subject(draws)
    if kind in ("more", "fewer"):
        second = _unlike(draws, before, background=before.background)
        both, frames = (before, second), _until(BEFORE)
        first, last = ((before,), both) if kind == "more" else (both, (before,))
        scenes = [(0, canonical(*first), first), (BEFORE, canonical(*last), last)]
        expect: dict[str, Any] = {"colour": COLOURS[second.colour]} if kind == "more" else {"count": 1}
        facts = [*beginning(first, BEFORE), Fact("shown_within", (BEFORE, frames), expect)]
        span = (BEFORE + GRACE, frames)
        facts.append(count(len(last), span, "response"))
        if kind == "more":
            facts += scene_facts((second,), span, "response", ("colour", "shape", "motion"), crowded=True)
        facts += scene_facts((before,), span, "retention", crowded=kind == "more")
        identity = Fact("identity_kept", span, object=COLOURS[before.colour], against=(8, BEFORE))
        return Parts(frames, scenes, [*facts, replace(identity, asks="retention")])
    scenes, last_start = [(0, canonical(before), (before,))], BEFORE
    after = _unlike(draws, before)
    if kind == "quick":
        scenes.append((BEFORE, canonical(after), (after,)))
        last_start, after = BEFORE + FPS, _unlike(draws, before, after)
    frames = _until(last_start)
    scenes.append((last_start, canonical(after), (after,)))
    facts = beginning((before,), BEFORE) + reshown(
        after, ("colour", "background"), last_start, frames, "response"
    )
    return Parts(frames, scenes, facts + scene_facts((after,), (last_start + GRACE, frames), "response"))


def _long(draws: Draws, kind: str) -> Parts:
    """A minute, plain or with another colour and then another ground."""
    before = _subject(draws)
    scenes, facts = [(0, canonical(before), (before,))], beginning((before,), BEFORE)
    now, since = before, BEFORE
    for at, name in zip(_LONG_EVENTS, ("colour", "background"), strict=True) if kind == "steered" else ():
        facts.append(_steady(now, since, at))
        now = _other(draws, now, name)
        scenes.append((at, canonical(now), (now,)))
        facts += reshown(now, (name,), at, at + 2 * FPS, "response")
        since = at + GRACE
    facts.append(_steady(now, since, LONG_FRAMES))
    last = (LONG_FRAMES - MOTION_FRAMES, LONG_FRAMES)
    facts += scene_facts((now,), last, "steadiness", ("motion",))
    facts.append(count(1, last, "steadiness"))
    return Parts(LONG_FRAMES, scenes, facts)


def _steady(subject: Subject, start: int, stop: int) -> Fact:
    words = {
        "colour": COLOURS[subject.colour],
        "shape": SHAPES[subject.shape],
        "background": BACKGROUNDS[subject.background],
    }
    return Fact("no_drift", (start, stop), words, object=words["colour"], asks="steadiness")


#: Categories in their order: kinds of their streams, in turns, and what makes one.
CATEGORIES: Mapping[str, tuple[tuple[str, ...], Callable[[Draws, str], Parts]]] = {
    "update": (SWITCH_KINDS, _update),
    "retention": ((*SWITCH_KINDS, "second"), _retention),
    "reuse": (tuple(_AWAY), _reuse),
    "returns": (tuple(_AWAY), _returns),
    "drags": (("straight", "bent", "with-words"), _drags),
    "switches": (("whole", "more", "fewer", "quick"), _switches),
    "long": (("plain", "steered"), _long),
}
#: Seeds of streams of different categories lie this far apart.
_CATEGORY_SEEDS = 10_000


def plan(seed: int, category: str, number: int) -> Plan:
    """A stream of the set: the `number`-th of a category, from 0."""
    kinds, make = CATEGORIES[category]
    kind = kinds[number % len(kinds)]
    parts = make(Draws(seed, category, number), kind)
    own_seed = (seed * 10 + list(CATEGORIES).index(category) + 1) * _CATEGORY_SEEDS + number
    scenes = tuple(Scene(*scene) for scene in parts.scenes)
    what = (f"{category}-{number:03d}", category, kind, own_seed, parts.frames)
    return Plan(*what, scenes, tuple(parts.facts), parts.motions)
