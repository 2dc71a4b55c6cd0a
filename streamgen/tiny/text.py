"""Prompts of the tiny family: a word-level encoder with its vocabulary."""

import torch
from torch import Tensor

from models.text_encoder import TextEncoder, Vocabulary, Words


class WordPrompts:
    """The tiny family's word-level encoder with its vocabulary."""

    quick = True

    def __init__(self, encoder: TextEncoder, vocabulary: Vocabulary) -> None:
        self.encoder, self.vocabulary = encoder, vocabulary
        self.length = encoder.config.length

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
