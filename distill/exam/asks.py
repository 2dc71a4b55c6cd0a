"""What is to be seen of scenes and changes: the facts that streams of several categories share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..evaluation.figures import KEPT_PSNR
from ..evaluation.streams import Subject
from ..evaluation.suites import in_words
from .facts import WORDS, Fact

#: Frames at the beginning of a stream that nothing is said of.
_FIRST = 8
#: Frames after an event until all of it should be there.
GRACE = 24
#: Frames after an event in which an object may hop.
_HOP = 16
#: Of several objects one may hide another, or touch it and be one with it, for a while.
_HIDDEN, _TOUCHING = 0.35, 0.7


@dataclass(frozen=True)
class Parts:
    """What a stream is made of: its frames; scenes as (first frame, prompt, objects); facts; and motions by
    the frame from which they count.
    """

    frames: int
    scenes: Sequence[tuple[int, str, tuple[Subject, ...]]]
    facts: Sequence[Fact]
    motions: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)


def scene_facts(
    subjects: Sequence[Subject],
    frames: tuple[int, int],
    asks: str,
    names: Sequence[str] = tuple(WORDS),
    crowded: bool = False,
) -> list[Fact]:
    """What a scene's words say in frames; `crowded` where another object may be in the way."""
    found = []
    tolerance = _HIDDEN if crowded or len(subjects) > 1 else None
    for subject in subjects:
        words = in_words(subject)
        for name in names:
            if name == "background":
                continue
            own = None if name == "motion" else tolerance
            object_ = None if name == "colour" else words["colour"]
            found.append(Fact(name, frames, words[name], own, object_, asks=asks))
    if "background" in names:
        found.append(Fact("background", frames, in_words(subjects[0])["background"], asks=asks))
    return found


def beginning(subjects: Sequence[Subject], event: int) -> list[Fact]:
    """What is there before the first event."""
    span = (_FIRST, event)
    return [*scene_facts(subjects, span, "beginning"), count(len(subjects), span, "beginning")]


def count(objects: int, frames: tuple[int, int], asks: str) -> Fact:
    """So many objects are there."""
    return Fact("count", frames, objects, _TOUCHING if objects > 1 else None, asks=asks)


def reshown(subject: Subject, names: Sequence[str], event: int, stop: int, asks: str) -> list[Fact]:
    """Attributes that show within a second of an event."""
    words = in_words(subject)
    return [
        Fact(
            "shown_within",
            (event, stop),
            {name: words[name]},
            1.0,
            words["colour"] if name in ("shape", "motion") else None,
            asks=asks,
        )
        for name in names
    ]


def change(
    before: Subject, after: Subject, kind: str, event: int, frames: int, others: Sequence[Subject] = ()
) -> list[Fact]:
    """One attribute changes at an event; the rest stays, and so do other objects."""
    span, colour, crowded = (event + GRACE, frames), in_words(after)["colour"], bool(others)
    facts = reshown(after, (kind,), event, frames, "response")
    facts += scene_facts((after,), span, "response", (kind,), crowded)
    kept = [name for name in WORDS if name != kind]
    facts += scene_facts((after,), span, "retention", kept, crowded)
    facts.append(count(1 + len(others), span, "retention"))
    if kind != "background":
        facts.append(Fact("background_kept", (event - 1, event + 1), KEPT_PSNR, asks="retention"))
    if not others:
        # an object that changes colour is followed as whatever is there
        own = None if kind == "colour" else colour
        facts.append(Fact("place_kept", (event, event + _HOP), object=own, asks="retention"))
    same = [in_words(other)["colour"] for other in others]
    if before.colour == after.colour and before.shape == after.shape:
        same.append(colour)
    for name in same:
        facts.append(Fact("identity_kept", span, object=name, against=(_FIRST, event), asks="retention"))
    for other in others:
        facts += scene_facts((other,), span, "retention", ("colour", "shape", "motion"), crowded=True)
    return facts
