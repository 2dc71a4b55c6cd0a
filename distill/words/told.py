"""Captions of the world's grammar with what each says of every object, never one of the test set."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from models.text_encoder import Vocabulary

from ..config import ConfigError
from ..scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, SceneConfig
from ..scenes.attributes import CHANGE_KINDS, SceneAttributes, sample_attributes
from ..scenes.captions import DRAWS_PER_CAPTION, MustSay, ObjectWords, Said, build_told_caption, object_places
from ..scenes.vocabulary import (
    BACKGROUND_PHRASES,
    BACKGROUND_TAGS,
    COLOUR_WORDS,
    MOTION_PHRASES,
    SHAPE_WORDS,
    SIZE_WORDS,
    held_out_indices,
)

#: What a caption may say of an object; the last class of each is that it does not.
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "size": SIZES,
    "motion": MOTIONS,
    "background": BACKGROUNDS,
}
#: One caption in so many is a test caption, by its hash.
TEST_SHARE = 20
Which = Literal["train", "test", "held_out"]
_AT_ONCE = 512
#: A caption, the classes of its objects in the order of `ATTRIBUTES`, and what of them it says.
_Caption = tuple[str, list[tuple[int, ...]], Said]


@dataclass(frozen=True)
class ToldBatch:
    """B captions of up to O objects.

    Attributes:
        ids: int64 (B, L) words.
        place: int64 (B, O) where each object's shape word is, -1 for no object, or one that was cut off.
        labels: by attribute int64 (B, O) class of each object, the number of classes where the caption does
            not say it; the background is the same for all objects of a caption.
    """

    ids: Tensor
    place: Tensor
    labels: Mapping[str, Tensor]


def is_test(caption: str) -> bool:
    """Whether a caption belongs to the test set, from which no training draws."""
    digest = hashlib.blake2b(caption.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % TEST_SHARE == 0


class CaptionSampler:
    """Draws captions and what they say.

    Args:
        vocabulary: of the text encoder.
        length: words that it keeps.
        scenes: the world; its `object_weights` say how many objects captions have. Held-out pairs of colour
            and shape are never drawn, whatever it says.

    Raises:
        ConfigError: the vocabulary has no words for a class of the world.
    """

    def __init__(self, vocabulary: Vocabulary, length: int, scenes: SceneConfig) -> None:
        check_vocabulary(vocabulary)
        self.vocabulary, self.length = vocabulary, length
        self.scenes = replace(scenes, include_held_out=False)

    def draw(self, count: int, generator: torch.Generator, which: Which = "train") -> ToldBatch:
        """`count` captions: for `train`ing, none of which is a `test` caption, or those; or `held_out`: such
        with an object of a colour and shape that no training draws.
        """
        return self._batch(self._captions(count, generator, which))

    def draw_changes(self, count: int, generator: torch.Generator) -> tuple[ToldBatch, ToldBatch]:
        """`count` captions in one thing of which another follows, both of the training's: as they are before,
        and after that, where what was said before and does not change counts as said.
        """
        scenes = replace(self.scenes, change_probability=1.0, double_change_probability=0.0)
        found: list[tuple[_Caption, _Caption]] = []
        while len(found) < count:
            drawn = sample_attributes(scenes, _AT_ONCE, generator)
            numbers = torch.rand(2, _AT_ONCE, DRAWS_PER_CAPTION, generator=generator).tolist()
            segments = [_objects(drawn, segment) for segment in (0, 1)]
            for row, kinds in enumerate(drawn.changes.tolist()):
                changed = dict(zip(CHANGE_KINDS, kinds, strict=True))
                must = MustSay(
                    colour=changed["colour"], background=changed["background"], motion=changed["motion"]
                )
                before, after = (_caption(segments[at][row], must, numbers[at][row]) for at in (0, 1))
                if not is_test(before[0]) and not is_test(after[0]):
                    found.append((before, after))
        before_all, after_all = (self._batch([pair[at] for pair in found[:count]]) for at in (0, 1))
        labels = {}
        for name, classes in ATTRIBUTES.items():
            old, new = before_all.labels[name], after_all.labels[name]
            labels[name] = torch.where(new == len(classes), old, new)
        return before_all, replace(after_all, labels=labels)

    def _batch(self, found: Sequence[_Caption]) -> ToldBatch:
        count, slots = len(found), self.scenes.max_objects
        place = torch.full((count, slots), -1)
        labels = {name: torch.full((count, slots), len(classes)) for name, classes in ATTRIBUTES.items()}
        ids = [self.vocabulary.encode(caption, self.length).ids for caption, _, _ in found]
        for row, (caption, objects, said) in enumerate(found):
            places = object_places(caption)
            assert len(places) == len(objects), caption
            for slot, (at, classes) in enumerate(zip(places, objects, strict=True)):
                place[row, slot] = at if at < self.length else -1
                told = (said.colour[slot], True, said.size[slot], said.motion[slot], said.background)
                for name, value, is_said in zip(ATTRIBUTES, classes, told, strict=True):
                    if is_said:
                        labels[name][row, slot] = value
        return ToldBatch(torch.stack(ids), place, labels)

    def _captions(self, count: int, generator: torch.Generator, which: Which) -> list[_Caption]:
        found: list[_Caption] = []
        scenes = replace(self.scenes, include_held_out=which == "held_out")
        while len(found) < count:
            drawn = sample_attributes(scenes, _AT_ONCE, generator, may_change=False)
            numbers = torch.rand(_AT_ONCE, DRAWS_PER_CAPTION, generator=generator).tolist()
            for objects, row in zip(_objects(drawn), numbers, strict=True):
                if which == "held_out" and not any(o[:2] in _HELD_OUT for o in objects):
                    continue
                told = _caption(objects, MustSay(), row)
                if which == "held_out" or is_test(told[0]) == (which == "test"):
                    found.append(told)
                if len(found) == count:
                    break
        return found


_HELD_OUT = frozenset(held_out_indices())


def _caption(objects: list[tuple[int, ...]], must: MustSay, numbers: Sequence[float]) -> _Caption:
    things = [ObjectWords(shape, colour, size, motion) for colour, shape, size, motion, _ in objects]
    caption, said = build_told_caption(things, objects[0][4], must, numbers)
    return caption, objects, said


def _objects(drawn: SceneAttributes, segment: int = 0) -> list[list[tuple[int, ...]]]:
    """Per caption and object its classes in the order of `ATTRIBUTES`, before or after the change."""
    columns = (drawn.colour[:, segment], drawn.shape[:, segment], drawn.size, drawn.motion[:, segment])
    background = drawn.background[:, segment, None].expand_as(drawn.size)
    table = torch.stack([*columns, background], -1).tolist()
    return [
        [tuple(classes) for classes in row[:used]]
        for row, used in zip(table, drawn.count.tolist(), strict=True)
    ]


def check_vocabulary(vocabulary: Vocabulary) -> None:
    """Raise ConfigError unless a vocabulary has the first word or phrase of every class of the world."""
    known = frozenset(vocabulary.words)
    first: dict[str, dict[str, tuple[str, ...]]] = {
        "colour": {name: (words[0],) for name, words in COLOUR_WORDS.items()},
        "shape": {name: (words[0],) for name, words in SHAPE_WORDS.items()},
        "size": {name: (words[0],) for name, words in SIZE_WORDS.items()},
        "motion": {name: phrases[0] for name, phrases in MOTION_PHRASES.items()},
        "background": {
            name: (phrases[0], BACKGROUND_TAGS[name][0]) for name, phrases in BACKGROUND_PHRASES.items()
        },
    }
    for attribute, classes in first.items():
        for name, phrases in classes.items():
            for word in " ".join(phrases).split():
                if word not in known:
                    raise ConfigError(
                        f"vocabulary: expected words for all that the world has, found none for the "
                        f"{attribute} {name!r} ({word!r} is missing)"
                    )
