"""What streams are opened on: the networks of a model, its sizes, and the texts it has encoded."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.causal_dit import TextContext
from models.context import ChunkPlan
from models.text_encoder import Vocabulary, Words

from ..engine.geometry import LatentGeometry
from ..engine.networks import Networks
from ..errors import InputError
from .prompts import PromptEncoder
from .settings import StreamSettings
from .timeline import check_prompt

_CACHED_PROMPTS = 64
# keys and values of one prompt take 95 MB at Wan size in bfloat16
_CACHED_PROMPT_BYTES = 2**29


class StreamConfig(Protocol):
    """What a pipeline reads of a model's config, whatever its family."""

    @property
    def plan(self) -> ChunkPlan:
        """Chunks, sink and window that the model was trained with."""
        ...

    @property
    def sampling(self) -> StreamSettings:
        """The settings that a stream opens with."""
        ...

    def geometry(self) -> LatentGeometry:
        """Picture and latent sizes."""
        ...


@dataclass(frozen=True)
class ModelParts:
    """What loading a model gives, whatever its family; a pipeline is assembled of it.

    Attributes:
        name: how the model was asked for.
        config: its `config.yaml`.
        networks: its trained parts.
        prompts: what encodes its prompts.
        digest: fingerprint of the weights; snapshots and renders name it.
        check_memory: raises CheckpointError where a stream with this chunk plan does not fit into the memory
            that is free; None where nothing has to be checked.
    """

    name: str
    config: StreamConfig
    networks: Networks
    prompts: PromptEncoder
    digest: str
    check_memory: Callable[[ChunkPlan], None] | None = None


class StreamModel:
    """The networks of a model with what sessions share: its sizes and the texts it has encoded."""

    def __init__(self, parts: ModelParts) -> None:
        self.parts = parts
        self.name, self.config, self.digest = parts.name, parts.config, parts.digest
        self.prompts = parts.prompts
        networks = parts.networks
        self.tokenizer, self.dit = networks.tokenizer, networks.dit
        self.text_encoder, self.motion_encoder = networks.text_encoder, networks.motion_encoder
        self.geometry: LatentGeometry = parts.config.geometry()
        self.settings: StreamSettings = parts.config.sampling
        self._texts: OrderedDict[str, TextContext] = OrderedDict()
        self._null_text: TextContext | None = None

    @property
    def device(self) -> torch.device:
        return self.dit.head.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.dit.head.head.weight.dtype

    @property
    def plan(self) -> ChunkPlan:
        """The chunk plan the model was trained with."""
        return self.config.plan

    @property
    def vocabulary(self) -> Vocabulary:
        """The words of a word-level model.

        Raises:
            InputError: the model reads any text.
        """
        vocabulary = self.prompts.vocabulary
        if vocabulary is None:
            raise InputError(f"model {self.name}: has no vocabulary, it reads any text")
        return vocabulary

    @property
    def null_text(self) -> TextContext:
        """Cross-attention keys and values of no prompt, for guidance; made when first asked for."""
        if self._null_text is None:
            self._null_text = self._embed(self.prompts.null())
        return self._null_text

    def words(self, prompt: str) -> Words:
        """A prompt as the model sees it: which words it does not know, how many did not fit."""
        return self.prompts.words(prompt)

    def text(self, prompt: str) -> TextContext:
        """Cross-attention keys and values of a prompt; the last 64 prompts are kept.

        Raises:
            InputError: an empty or absurdly long prompt.
        """
        check_prompt(prompt)
        # sessions of other threads use the same cache: what was found is held, and never looked up again
        text = self._texts.pop(prompt, None)
        if text is None:
            text = self._embed(self.prompts.embed(prompt))
        self._texts[prompt] = text
        room = _CACHED_PROMPT_BYTES // max(1, text.size_bytes())
        if len(self._texts) > max(2, min(_CACHED_PROMPTS, room)):
            self._texts.popitem(last=False)
        return text

    @torch.no_grad()
    def _embed(self, embedding: Tensor) -> TextContext:
        return self.dit.embed_text(embedding.to(self.device, self.dtype))
