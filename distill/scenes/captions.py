"""Captions of scenes, from a small grammar with synonyms, word order variants and omissions.

All choices come from numbers in [0, 1) handed in by the caller, so that captions are as reproducible as the
pictures. Captions are lower case, at most ``MAX_WORDS`` words, with no punctuation but commas.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .vocabulary import (
    BACKGROUND_PHRASES,
    BACKGROUNDS,
    COLOUR_WORDS,
    COLOURS,
    MOTION_PHRASES,
    MOTIONS,
    SHAPE_WORDS,
    SHAPES,
    SIZE_WORDS,
    SIZES,
)

MAX_WORDS = 24
#: Random numbers one caption may consume, at least, for up to three objects.
DRAWS_PER_CAPTION = 40

CANONICAL_SHARE = 0.3
#: Probability that a non-canonical caption leaves an attribute out, set so that over all captions it is
#: 35 % size, 12 % motion, 8 % background, 4 % colour; the shape is never left out.
_OMIT_SIZE = 0.35 / (1 - CANONICAL_SHARE)
_OMIT_MOTION = 0.12 / (1 - CANONICAL_SHARE)
_OMIT_BACKGROUND = 0.08 / (1 - CANONICAL_SHARE)
_OMIT_COLOUR = 0.04 / (1 - CANONICAL_SHARE)
#: Probability of the canonical word among its synonyms.
_CANONICAL_WORD = 0.5

_SHAPE_TABLE = tuple(SHAPE_WORDS[name] for name in SHAPES)
_COLOUR_TABLE = tuple(COLOUR_WORDS[name] for name in COLOURS)
_SIZE_TABLE = tuple(SIZE_WORDS[name] for name in SIZES)
_BACKGROUND_TABLE = tuple(BACKGROUND_PHRASES[name] for name in BACKGROUNDS)
_MOTION_TABLE = tuple(MOTION_PHRASES[name] for name in MOTIONS)
_LINK_WORDS = ("a", "an", "the", "and", "while", "is", "that", "there")


@dataclass(frozen=True)
class ObjectWords:
    """One object of a caption, as vocabulary indices."""

    shape: int
    colour: int
    size: int
    motion: int


@dataclass(frozen=True)
class MustSay:
    """What a caption must not leave out (because it is what changes in the clip)."""

    colour: bool = False
    background: bool = False
    motion: bool = False


class _Draws:
    """Consumes prepared random numbers one after the other."""

    def __init__(self, numbers: Sequence[float]) -> None:
        self._next = iter(numbers).__next__

    def chance(self, probability: float) -> bool:
        return self._next() < probability

    def pick(self, options: Sequence[str]) -> str:
        """One of the options, the first with probability ``_CANONICAL_WORD``."""
        return options[self._index(len(options))]

    def pick_pair(self, options: Sequence[tuple[str, str]], which: int) -> str:
        return options[self._index(len(options))][which]

    def _index(self, count: int) -> int:
        number = self._next()
        if number < _CANONICAL_WORD or count == 1:
            return 0
        return 1 + int((number - _CANONICAL_WORD) / (1 - _CANONICAL_WORD) * (count - 1))


def canonical_caption(objects: Sequence[ObjectWords], background: int) -> str:
    """``a {size} {colour} {shape} {verb} [and ...] over the {background}`` from indices."""
    parts = [
        f"a {SIZES[o.size]} {COLOURS[o.colour]} {SHAPES[o.shape]} {_MOTION_TABLE[o.motion][0][0]}"
        for o in objects
    ]
    return f"{' and '.join(parts)} {_BACKGROUND_TABLE[background][0]}"


def canonical_prompt(size: str, colour: str, shape: str, motion: str, background: str) -> str:
    """The canonical caption of one object from attribute names of ``vocabulary``.

    Raises ValueError that names the attribute when a name is not in the vocabulary.
    """
    tables = (SIZES, COLOURS, SHAPES, MOTIONS, BACKGROUNDS)
    labels = ("size", "colour", "shape", "motion", "background")
    for label, name, table in zip(labels, (size, colour, shape, motion, background), tables, strict=True):
        if name not in table:
            raise ValueError(f"{label}: expected one of {', '.join(table)}, found {name!r}")
    words = ObjectWords(SHAPES.index(shape), COLOURS.index(colour), SIZES.index(size), MOTIONS.index(motion))
    return canonical_caption([words], BACKGROUNDS.index(background))


def _noun(thing: ObjectWords, draws: _Draws, must: MustSay) -> str:
    words = []
    if not draws.chance(_OMIT_SIZE):
        words.append(draws.pick(_SIZE_TABLE[thing.size]))
    if not draws.chance(_OMIT_COLOUR) or must.colour:
        words.append(draws.pick(_COLOUR_TABLE[thing.colour]))
    words.append(draws.pick(_SHAPE_TABLE[thing.shape]))
    noun = " ".join(words)
    if draws.chance(0.2):
        return noun
    if draws.chance(0.15):
        return f"the {noun}"
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _verb(thing: ObjectWords, draws: _Draws, must: MustSay) -> str:
    """Verb phrase, or "" when the motion is left out."""
    if draws.chance(_OMIT_MOTION) and not must.motion:
        return ""
    if draws.chance(0.55):
        phrase = draws.pick_pair(_MOTION_TABLE[thing.motion], 0)
        return f"that {phrase}" if draws.chance(0.08) else phrase
    phrase = draws.pick_pair(_MOTION_TABLE[thing.motion], 1)
    return f"is {phrase}" if draws.chance(0.25) else phrase


def _free_caption(objects: Sequence[ObjectWords], background: int, must: MustSay, draws: _Draws) -> str:
    place = ""
    if not draws.chance(_OMIT_BACKGROUND) or must.background:
        place = draws.pick(_BACKGROUND_TABLE[background])
    nouns = [_noun(thing, draws, must) for thing in objects]
    verbs = [_verb(thing, draws, must) for thing in objects]
    if len(objects) == 1 and verbs[0] and place and draws.chance(0.12):
        return f"{nouns[0]} {place} {verbs[0]}"
    joint = " while " if len(objects) == 2 and all(verbs) and draws.chance(0.15) else " and "
    body = joint.join(f"{noun} {verb}".rstrip() for noun, verb in zip(nouns, verbs, strict=True))
    if draws.chance(0.04):
        body = f"there is {body}"
    if not place:
        return body
    return f"{place}, {body}" if draws.chance(0.2) else f"{body} {place}"


def build_caption(
    objects: Sequence[ObjectWords], background: int, must: MustSay, numbers: Sequence[float]
) -> str:
    """One caption.

    Args:
        objects: one to three objects, in painter's order.
        background: index into ``BACKGROUNDS``.
        must: attributes that may not be left out.
        numbers: at least ``DRAWS_PER_CAPTION`` random numbers in [0, 1).
    """
    draws = _Draws(numbers)
    if draws.chance(CANONICAL_SHARE):
        return canonical_caption(objects, background)
    caption = _free_caption(objects, background, must, draws)
    # 24 words is the longest canonical caption (three objects at night), so this always fits.
    return caption if caption.count(" ") < MAX_WORDS else canonical_caption(objects, background)


def caption_vocabulary() -> list[str]:
    """Every word the grammar can produce, sorted."""
    phrases: list[str] = list(_LINK_WORDS)
    for table in (_SHAPE_TABLE, _COLOUR_TABLE, _SIZE_TABLE, _BACKGROUND_TABLE):
        for options in table:
            phrases.extend(options)
    for motions in _MOTION_TABLE:
        for pair in motions:
            phrases.extend(pair)
    return sorted({word for phrase in phrases for word in phrase.split()})
