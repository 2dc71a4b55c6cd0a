"""Prompts and their encoded texts."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from models.causal_dit import TextContext
from models.text_encoder import Vocabulary, Words

from ..errors import InputError
from ..suggest import shorten

# Against nonsense; what a model reads is counted in its own tokens.
MAX_PROMPT = 10_000


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
    """

    prompt: str
    context: TextContext
    embedding: Tensor | None = None
    given: str = ""
    unknown: tuple[str, ...] = ()
    dropped: int = 0
    cut: str = ""
    strengths: tuple[float, ...] = ()

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
        if not self.given:
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
