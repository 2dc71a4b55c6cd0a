"""Prompts and their encoded texts."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from models.causal_dit import TextContext
from models.text_encoder import Vocabulary, Words

from ..errors import InputError
from ..suggest import shorten

MAX_PROMPT = 2000


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
    """

    prompt: str
    context: TextContext
    embedding: Tensor | None = None
    given: str = ""
    unknown: tuple[str, ...] = ()
    dropped: int = 0

    def same(self, other: "Text") -> bool:
        """Whether both say the same: the same words with other embeddings are another text."""
        return (self.prompt, self.given) == (other.prompt, other.given)


def check_prompt(prompt: str) -> None:
    """Raise InputError for a prompt that is empty or beyond reason."""
    if not isinstance(prompt, str):
        raise InputError(f"prompt: expected text, found {shorten(prompt)}")
    if not prompt.strip():
        raise InputError("prompt: expected some words, found an empty prompt")
    if len(prompt) > MAX_PROMPT:
        raise InputError(f"prompt: expected at most {MAX_PROMPT} characters, found {len(prompt)}")
