"""Captions of scenes, from a small grammar with synonyms, word order variants and omissions.

All choices come from numbers in [0, 1) handed in by the caller, so that captions are as reproducible as the
pictures. Captions are lower case, at most ``MAX_WORDS`` words, with no punctuation but commas. Of several
objects, the later one is in front.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .vocabulary import (
    BACKGROUND_PHRASES,
    BACKGROUND_TAGS,
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
DRAWS_PER_CAPTION = 44

CANONICAL_SHARE = 0.3
#: Probability that a non-canonical caption leaves an attribute out, set so that over all captions it is
#: 35 % size, 12 % motion, 8 % background, 4 % colour; the shape is never left out. Few people give the sizes
#: of three objects.
_OMIT_SIZE = 0.35 / (1 - CANONICAL_SHARE)
_OMIT_SIZE_OF_THREE = 0.8
_OMIT_MOTION = 0.12 / (1 - CANONICAL_SHARE)
_OMIT_BACKGROUND = 0.08 / (1 - CANONICAL_SHARE)
_OMIT_COLOUR = 0.04 / (1 - CANONICAL_SHARE)
#: Probability of the canonical word among its synonyms.
_CANONICAL_WORD = 0.5

_SHAPE_TABLE = tuple(SHAPE_WORDS[name] for name in SHAPES)
_SHAPE_NAMES = frozenset(word for words in _SHAPE_TABLE for word in words)
_COLOUR_TABLE = tuple(COLOUR_WORDS[name] for name in COLOURS)
_SIZE_TABLE = tuple(SIZE_WORDS[name] for name in SIZES)
_BACKGROUND_TABLE = tuple(BACKGROUND_PHRASES[name] for name in BACKGROUNDS)
_TAG_TABLE = tuple(BACKGROUND_TAGS[name] for name in BACKGROUNDS)
_MOTION_TABLE = tuple(MOTION_PHRASES[name] for name in MOTIONS)
#: Phrases no longer than the canonical one, for captions of three objects.
_BRIEF_MOTION_TABLE = tuple(
    tuple(
        pair
        for pair in pairs
        if all(p.count(" ") <= c.count(" ") for p, c in zip(pair, pairs[0], strict=True))
    )
    for pairs in _MOTION_TABLE
)
_OPENINGS = ("there is", "a video of", "show me")
_LINK_WORDS = ("a", "an", "the", "and", "while", "is", "that")


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


@dataclass(frozen=True)
class Said:
    """What a caption says: per object its colour, size and motion (the shape always), and the background."""

    colour: tuple[bool, ...]
    size: tuple[bool, ...]
    motion: tuple[bool, ...]
    background: bool


@dataclass(frozen=True)
class _Noun:
    """An object in words, and whether they say its size and colour."""

    text: str
    size: bool
    colour: bool


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
    """``a {size} {colour} {shape} {verb} [and ...] over the {background}`` from indices.

    Where this is above ``MAX_WORDS`` (three objects, diagonals), sizes are left out from the last object on.
    """
    return _canonical(objects, background)[0]


def _canonical(objects: Sequence[ObjectWords], background: int) -> tuple[str, Said]:
    for sized in range(len(objects), -1, -1):
        parts = [
            f"a {f'{SIZES[o.size]} ' if index < sized else ''}{COLOURS[o.colour]} {SHAPES[o.shape]} "
            f"{_MOTION_TABLE[o.motion][0][0]}"
            for index, o in enumerate(objects)
        ]
        caption = f"{' and '.join(parts)} {_BACKGROUND_TABLE[background][0]}"
        if _words(caption) <= MAX_WORDS:
            break
    every = (True,) * len(objects)
    return caption, Said(every, tuple(i < sized for i in range(len(objects))), every, True)


def _words(caption: str) -> int:
    return caption.count(" ") + 1


def _noun(thing: ObjectWords, draws: _Draws, must: MustSay, omit_size: float) -> _Noun:
    """The object without an article."""
    words = []
    if size := not draws.chance(omit_size):
        words.append(draws.pick(_SIZE_TABLE[thing.size]))
    if colour := not draws.chance(_OMIT_COLOUR) or must.colour:
        words.append(draws.pick(_COLOUR_TABLE[thing.colour]))
    words.append(draws.pick(_SHAPE_TABLE[thing.shape]))
    return _Noun(" ".join(words), size, colour)


def _with_article(noun: _Noun, draws: _Draws) -> str:
    text = noun.text
    if draws.chance(0.2):
        return text
    if draws.chance(0.15):
        return f"the {text}"
    return f"an {text}" if text[0] in "aeiou" else f"a {text}"


def _verbs(
    objects: Sequence[ObjectWords], must: MustSay, draws: _Draws, finite: bool, simple: bool
) -> list[str]:
    """A verb phrase per object, "" where the motion is left out; ``simple`` ones have no "that" or "is".

    Of several objects only the last may be left without one, or all: "a star and a ring moving up" says that
    both do.
    """
    table = _BRIEF_MOTION_TABLE if len(objects) == 3 else _MOTION_TABLE
    silent = 0
    if draws.chance(_OMIT_MOTION) and not must.motion:
        silent = len(objects) if draws.chance(0.5) else 1
    verbs = []
    for thing in objects[: len(objects) - silent]:
        phrase = draws.pick_pair(table[thing.motion], 0 if finite else 1)
        if not simple and draws.chance(0.08 if finite else 0.25):
            phrase = f"that {phrase}" if finite else f"is {phrase}"
        verbs.append(phrase)
    return verbs + [""] * silent


def _said(nouns: Sequence[_Noun], verbs: Sequence[str], background: bool) -> Said:
    colour, size = tuple(noun.colour for noun in nouns), tuple(noun.size for noun in nouns)
    return Said(colour, size, tuple(bool(verb) for verb in verbs), background)


def _list_caption(
    objects: Sequence[ObjectWords], background: int, must: MustSay, draws: _Draws
) -> tuple[str, Said]:
    """Keywords: ``red star, moving left, night sky``."""
    nouns = [_noun(thing, draws, must, _OMIT_SIZE) for thing in objects]
    verbs = _verbs(objects, must, draws, finite=False, simple=True)
    texts = [noun.text for noun in nouns]
    items = [item for pair in zip(texts, verbs, strict=True) for item in pair if item]
    if said := not draws.chance(_OMIT_BACKGROUND) or must.background:
        items.insert(0 if draws.chance(0.25) else len(items), draws.pick(_TAG_TABLE[background]))
    return ", ".join(items), _said(nouns, verbs, said)


def _joined(parts: Sequence[str], all_move: bool, draws: _Draws) -> str:
    """Objects with their verbs as one sentence."""
    if len(parts) == 2 and all_move and draws.chance(0.15):
        return " while ".join(parts)
    if len(parts) == 3 and draws.chance(0.5):
        return f"{parts[0]}, {parts[1]} and {parts[2]}"
    return " and ".join(parts)


def _free_caption(
    objects: Sequence[ObjectWords], background: int, must: MustSay, draws: _Draws
) -> tuple[str, Said]:
    if len(objects) < 3 and draws.chance(0.1):
        return _list_caption(objects, background, must, draws)
    place = ""
    if not draws.chance(_OMIT_BACKGROUND) or must.background:
        place = draws.pick(_BACKGROUND_TABLE[background])
    omit_size = _OMIT_SIZE if len(objects) < 3 else _OMIT_SIZE_OF_THREE
    plain, nouns = [], []
    for thing in objects:
        plain.append(_noun(thing, draws, must, omit_size))
        nouns.append(_with_article(plain[-1], draws))
    opening = f"{draws.pick(_OPENINGS)} " if draws.chance(0.07) else ""
    finite = draws.chance(0.55) and not opening
    verbs = _verbs(objects, must, draws, finite, simple=bool(opening) or len(objects) == 3)
    said = _said(plain, verbs, bool(place))
    if len(objects) == 1 and verbs[0] and place and draws.chance(0.12):
        return f"{opening}{nouns[0]} {place} {verbs[0]}", said
    parts = [f"{noun} {verb}".rstrip() for noun, verb in zip(nouns, verbs, strict=True)]
    body = opening + _joined(parts, all(verbs), draws)
    if not place:
        return body, said
    return (f"{place}, {body}" if draws.chance(0.2) and not opening else f"{body} {place}"), said


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
    return build_told_caption(objects, background, must, numbers)[0]


def build_told_caption(
    objects: Sequence[ObjectWords], background: int, must: MustSay, numbers: Sequence[float]
) -> tuple[str, Said]:
    """The caption of ``build_caption``, and what it says."""
    draws = _Draws(numbers)
    if draws.chance(CANONICAL_SHARE):
        return _canonical(objects, background)
    caption, said = _free_caption(objects, background, must, draws)
    return (caption, said) if _words(caption) <= MAX_WORDS else _canonical(objects, background)


def object_places(caption: str) -> list[int]:
    """Index of each object's shape word among the words of a caption of this grammar, in the order of the
    objects: no word for a shape means anything else.
    """
    return [i for i, word in enumerate(caption.replace(",", " ").split()) if word in _SHAPE_NAMES]


def caption_vocabulary() -> list[str]:
    """Every word the grammar can produce, sorted."""
    phrases: list[str] = [*_LINK_WORDS, *_OPENINGS]
    for table in (_SHAPE_TABLE, _COLOUR_TABLE, _SIZE_TABLE, _BACKGROUND_TABLE, _TAG_TABLE):
        for options in table:
            phrases.extend(options)
    for motions in _MOTION_TABLE:
        for pair in motions:
            phrases.extend(pair)
    return sorted({word for phrase in phrases for word in phrase.split()})
