"""Prompts to text embeddings: what a pipeline needs of a text encoder, and the word-level one of the tiny
family.
"""

from typing import Protocol

import torch
from torch import Tensor

from models.text_encoder import TextEncoder, Vocabulary, Words


class PromptEncoder(Protocol):
    """Text embeddings `(1, L, dim)`, zero past the end of the prompt, as the diffusion network reads them."""

    def words(self, prompt: str) -> Words:
        """The prompt as the encoder sees it: what it does not know, how much did not fit."""
        ...

    def embed(self, prompt: str) -> Tensor:
        """Embedding of a prompt, on any device."""
        ...

    def null(self) -> Tensor:
        """Embedding of no prompt, for guidance."""
        ...


class WordPrompts:
    """The tiny family's word-level encoder with its vocabulary."""

    def __init__(self, encoder: TextEncoder, vocabulary: Vocabulary) -> None:
        self.encoder, self.vocabulary = encoder, vocabulary

    def words(self, prompt: str) -> Words:
        """See `PromptEncoder`."""
        return self.vocabulary.encode(prompt, self.encoder.config.length)

    def embed(self, prompt: str) -> Tensor:
        """See `PromptEncoder`."""
        return self._encoded(self.words(prompt).ids)

    def null(self) -> Tensor:
        """See `PromptEncoder`."""
        return self._encoded(torch.zeros(self.encoder.config.length, dtype=torch.long))

    def _encoded(self, ids: Tensor) -> Tensor:
        embedding: Tensor = self.encoder(ids[None].to(self.encoder.embedding.weight.device))
        return embedding
