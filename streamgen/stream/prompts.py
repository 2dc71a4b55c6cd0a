"""What a stream needs of a text encoder."""

from typing import Protocol

from torch import Tensor

from models.text_encoder import Vocabulary, Words


class PromptEncoder(Protocol):
    """Text embeddings `(1, L, dim)`, zero past the end of the prompt, as the diffusion network reads them.

    `vocabulary` are the words of an encoder that knows no others, None where it reads any text.
    """

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The words it knows, None where it reads any text."""
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
