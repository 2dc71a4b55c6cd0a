"""Prompts and their encoded texts, blends of several, and the way from one to another."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol, get_args

from torch import Tensor

from models.causal_dit import TextContext
from models.text_encoder import Vocabulary, Words

from ..errors import InputError
from ..interpolate import Way, between
from ..suggest import shorten, unknown_key

# Against nonsense; what a model reads is counted in its own tokens.
MAX_PROMPT = 10_000
MAX_BLEND = 16
# Only shares of the sum count; a sum of such weights stays finite.
MAX_WEIGHT = 1e6
MAX_OVER_SECONDS, MAX_OVER_CHUNKS = 3600.0, 100_000

Blend = tuple[tuple[str, float], ...]


class PromptEncoder(Protocol):
    """Text embeddings `(1, L, dim)`, zero past the end of the prompt, as the diffusion network reads them."""

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The words it knows, None where it reads any text."""
        ...

    @property
    def length(self) -> int:
        """L: tokens that the network reads."""
        ...

    @property
    def quick(self) -> bool:
        """Whether encoding takes so little that a submission may wait for it."""
        ...

    def words(self, prompt: str) -> Words:
        """The prompt as the encoder sees it: what it does not know, how much did not fit."""
        ...

    def embed(self, prompt: str) -> Tensor:
        """Embedding of a prompt, on any device."""
        ...

    def null(self) -> Tensor:
        """Embedding of no prompt, for guidance."""
        ...


@dataclass(frozen=True, eq=False)
class Text:
    """What a prompt has come to.

    Attributes:
        prompt: the words; for embeddings from outside, what they are called.
        context: keys and values of the network's cross-attention.
        embedding: `(1, L, dim)` that they are made from, in the network's precision; None where it is not
            kept.
        given: fingerprint of embeddings that came from outside, "" for words that were encoded here.
        unknown: words that mean nothing to the encoder.
        dropped: how many tokens did not fit.
        cut: the beginning of what did not fit.
        strengths: of the model's live LoRAs, under which the context was made; none for most models.
        blend: the prompts and weights that it is a mixture of.
    """

    prompt: str
    context: TextContext
    embedding: Tensor | None = None
    given: str = ""
    unknown: tuple[str, ...] = ()
    dropped: int = 0
    cut: str = ""
    strengths: tuple[float, ...] = ()
    blend: Blend = ()

    def same(self, other: "Text") -> bool:
        """Whether both say the same: the same words with other embeddings, or read by LoRAs of another
        strength, are another text.
        """
        own, others = ((text.prompt, text.given, text.strengths) for text in (self, other))
        return own == others

    @property
    def note(self) -> str | None:
        """What else is worth saying of the words, one line."""
        said = [f'cut before "{self.cut}"'] if self.cut else []
        if not self.given and not self.unknown:
            said += filter(None, [symbols_note(self.prompt)])
        return "; ".join(said) or None


def symbols_note(prompt: str) -> str | None:
    """One line on a prompt of symbols alone; None for one with letters or digits, of any script."""
    if any(character.isalnum() for character in prompt):
        return None
    return "the prompt has neither letters nor digits: what symbols mean to a model is not known"


def check_prompt(prompt: str) -> None:
    """Raise InputError for a prompt that is empty or beyond reason."""
    if not isinstance(prompt, str):
        raise InputError(f"prompt: expected text, found {shorten(prompt)}")
    if not prompt.strip():
        raise InputError("prompt: expected some words, found an empty prompt")
    if len(prompt) > MAX_PROMPT:
        raise InputError(f"prompt: expected at most {MAX_PROMPT} characters, found {len(prompt)}")


def checked_blend(blend: Any) -> Blend:
    """Prompts and weights as pairs, from pairs, rows `{"prompt", "weight"}`, or weights by prompt.

    Raises:
        InputError: no prompts or more than 16, or weights that are negative, above a million, or all 0.
    """
    rows = list(blend.items()) if isinstance(blend, Mapping) else blend
    if isinstance(rows, str) or not isinstance(rows, Sequence) or not 1 <= len(rows) <= MAX_BLEND:
        found = len(rows) if isinstance(rows, Sequence) and not isinstance(rows, str) else shorten(blend)
        raise InputError(f"blend: expected 1 to {MAX_BLEND} prompts with weights, found {found}")
    made = tuple(_weighted(row) for row in rows)
    if not sum(weight for _, weight in made):
        raise InputError("blend: expected a weight above 0, found only 0")
    return made


def _weighted(row: Any) -> tuple[str, float]:
    if isinstance(row, Mapping):
        for key in row:
            if key not in ("prompt", "weight"):
                raise InputError(f"blend: {unknown_key(key, ('prompt', 'weight'))}")
        prompt, weight = row.get("prompt"), row.get("weight", 1.0)
    elif isinstance(row, list | tuple) and len(row) == 2:
        prompt, weight = row
    else:
        raise InputError(f"blend: expected a prompt and its weight, found {shorten(row)}")
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number or not 0 <= weight <= MAX_WEIGHT:
        most = f"expected a number of at least 0 and at most {MAX_WEIGHT:g}"
        raise InputError(f"blend: weight: {most}, found {shorten(weight)}")
    if not isinstance(prompt, str):
        raise InputError(f"blend: prompt: expected text, found {shorten(prompt)}")
    check_prompt(prompt)
    return prompt, float(weight)


def blend_name(blend: Blend) -> str:
    """What a blend is called: its prompts by their share."""
    total = sum(weight for _, weight in blend)
    return " + ".join(f"{100 * weight / total:.0f} % {prompt}" for prompt, weight in blend)


def blend_mark(blend: Blend, way: Way) -> str:
    """Tells texts of other weights apart, as `Text.given`."""
    said = json.dumps([blend, way], ensure_ascii=False)
    return "blend " + hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Over:
    """How long new words take to come, and how.

    Attributes:
        seconds, chunks: one of the two; seconds of media time become whole chunks, at least one.
        way: how embeddings are interpolated.
        every: the cache is made anew with every so many-th chunk of the way, and with the last.

    Raises:
        InputError: both or none of the lengths, or a value out of range.
    """

    seconds: float | None = None
    chunks: int | None = None
    way: Way = "linear"
    every: int = 1

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.chunks is None):
            raise InputError("over: expected seconds or chunks, one of them")
        if self.seconds is not None:
            number = isinstance(self.seconds, int | float) and not isinstance(self.seconds, bool)
            if not number or not 0 < self.seconds <= MAX_OVER_SECONDS:
                most = f"above 0 and at most {MAX_OVER_SECONDS:g}"
                raise InputError(f"over: expected seconds {most}, found {shorten(self.seconds)}")
        for name in ("chunks", "every"):
            value = vars(self)[name]
            if value is not None and (type(value) is not int or not 1 <= value <= MAX_OVER_CHUNKS):
                raise InputError(f"over: {name}: expected 1 to {MAX_OVER_CHUNKS}, found {shorten(value)}")
        if self.way not in get_args(Way):
            raise InputError(f"over: way: expected {' or '.join(get_args(Way))}, found {shorten(self.way)}")

    @classmethod
    def of(cls, value: Any) -> "Over":
        """From a number of seconds, the fields by name, or one of these.

        Raises:
            InputError: another form, or values that cannot be.
        """
        if isinstance(value, Over):
            return value
        if not isinstance(value, Mapping):
            return cls(seconds=value)
        for key in value:
            if key not in ("seconds", "chunks", "way", "every"):
                raise InputError(f"over: {unknown_key(key, ('seconds', 'chunks', 'way', 'every'))}")
        return cls(**value)

    def realised(self, seconds_per_chunk: float) -> "Over":
        """In whole chunks."""
        if self.seconds is None:
            return self
        count = max(1, round(self.seconds / seconds_per_chunk))
        return replace(self, seconds=None, chunks=count)

    def to_json(self) -> dict[str, Any]:
        """Plain values that `of` reads."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, eq=False)
class Passage:
    """A way from one text to another, under way. A value: each chunk takes a step.

    Attributes:
        source, target: where it leads from and to.
        over: its length in chunks, and how.
        done: chunks of it that were made.
        recaches, sink: whether the cache follows, and what that does with its sink.
    """

    source: Text
    target: Text
    over: Over
    recaches: bool
    sink: Literal["refresh", "keep"] = "refresh"
    done: int = 0

    @property
    def chunks(self) -> int:
        """Length in chunks."""
        assert self.over.chunks is not None, "realised when it began"
        return self.over.chunks

    @property
    def over_now(self) -> bool:
        """Whether the target is reached."""
        return self.done >= self.chunks

    @property
    def rebuilds(self) -> bool:
        """Whether the cache is made anew with the chunk of the last step."""
        return self.recaches and (self.over_now or self.done % self.over.every == 0)

    def next(self) -> "Passage":
        """One chunk further."""
        return replace(self, done=self.done + 1)

    def embedding(self) -> Tensor:
        """`(1, L, dim)` of the chunk of the last step; that of the target at the end."""
        assert self.source.embedding is not None
        assert self.target.embedding is not None
        return between(self.source.embedding, self.target.embedding, self.done / self.chunks, self.over.way)

    @property
    def mark(self) -> str:
        """Tells the texts on the way apart, as `Text.given`."""
        ends = [self.source.prompt, self.source.given, self.target.prompt, self.target.given]
        said = json.dumps([*ends, self.done, self.chunks, self.over.way], ensure_ascii=False)
        return "way " + hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


def recaches_that_fit(
    chunks: int, chunk_seconds: float, work: float, recache: float, ahead: float = 0.0
) -> int:
    """How often a passage may make the cache anew without a chunk coming late, as `Over.every`: what the
    chunks before leave over has to pay for it, the first time, too.

    Args:
        chunks: length of the passage.
        chunk_seconds: media time of a chunk.
        work: seconds that a chunk takes to make without a recache.
        recache: seconds that a recache takes.
        ahead: seconds by which a chunk is there before its time, when the passage begins.
    """
    spare, most = chunk_seconds - work, max(1, chunks)
    if spare <= 0:
        return most
    first = 1 + math.ceil(max(0.0, recache - ahead) / spare)
    return min(max(1, first, math.ceil(recache / spare)), most)
