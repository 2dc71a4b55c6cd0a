"""What streams are opened on: the networks of a model, its sizes, and the texts it has encoded."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.causal_dit import TextContext
from models.context import ChunkPlan
from models.kv_cache import CacheRing, CacheShape
from models.text_encoder import Vocabulary, Words
from models.video_codec import VideoCodec

from ..engine.geometry import LatentGeometry
from ..engine.interpolate import blended
from ..engine.networks import Networks
from ..errors import InputError
from .events import StreamEvent
from .prompts import Blend, Passage, PromptEncoder, Text, blend_mark, blend_name, check_prompt
from .settings import StreamSettings

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
        notes: what was chosen at load, a line each.
        quantize: the eight bits that its files are in, or `none`.
    """

    name: str
    config: StreamConfig
    networks: Networks
    prompts: PromptEncoder
    digest: str
    check_memory: Callable[[ChunkPlan], None] | None = None
    notes: tuple[str, ...] = ()
    quantize: str = "none"


class StreamModel:
    """The networks of a model with what sessions share: its sizes and the texts it has encoded."""

    def __init__(self, parts: ModelParts) -> None:
        self.parts = parts
        self.name, self.config, self.digest = parts.name, parts.config, parts.digest
        self.prompts = parts.prompts
        networks = parts.networks
        self.codec, self.dit = networks.tokenizer, networks.dit
        self.text_encoder, self.motion_encoder = networks.text_encoder, networks.motion_encoder
        self.geometry: LatentGeometry = parts.config.geometry()
        self.settings: StreamSettings = parts.config.sampling
        self._texts: OrderedDict[str, Text] = OrderedDict()
        self._null_text: TextContext | None = None
        # one encoder load for first prompts that come at once; the second lock is never held for long
        self._encoding, self._encoding_starts = threading.RLock(), threading.Lock()
        self._encoder: ThreadPoolExecutor | None = None

    @property
    def tokenizer(self) -> VideoCodec:
        """What encodes and decodes pictures.

        Raises:
            InputError: the model was loaded without; its streams are streams of latents.
        """
        if self.codec is None:
            raise InputError(
                f"model {self.name}: was loaded without a picture decoder, it streams latents alone"
            )
        return self.codec

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
            with self._encoding:
                if self._null_text is None:
                    self._null_text = self._embed(self.prompts.null())[1]
        return self._null_text

    def needs_null(self, settings: StreamSettings) -> bool:
        """Whether streams with these settings are guided against no prompt. A network that takes the
        strengths as an input never is.
        """
        return not self.dit.config.guidance and not settings.guidance().is_off(False)

    def coming_null(self, settings: StreamSettings) -> "Future[object] | None":
        """The null text on its way, where settings need it and it is not there and takes its time."""
        if self._null_text is not None or self.prompts.quick or not self.needs_null(settings):
            return None
        return self._workers().submit(lambda: self.null_text)

    def words(self, prompt: str) -> Words:
        """A prompt as the model sees it: which words it does not know, how many did not fit."""
        return self.prompts.words(prompt)

    def text(self, prompt: str) -> Text:
        """A prompt encoded; the last 64 prompts are kept. Encoders are asked by one thread at a time.

        Raises:
            InputError: an empty or absurdly long prompt.
        """
        check_prompt(prompt)
        found = self._kept(prompt)
        if found is not None:
            return found
        with self._encoding:
            found = self._kept(prompt)
            if found is None:
                words = self.prompts.words(prompt)
                embedding, context = self._embed(self.prompts.embed(prompt))
                found = Text(prompt, context, embedding, "", tuple(words.unknown), words.dropped)
                self._keep(prompt, found)
            return found

    def given_text(self, prompt: str | None, embeds: Tensor) -> Text:
        """Embeddings from outside, as the network reads them.

        Args:
            prompt: what they are called; by default their fingerprint.
            embeds: `(tokens, dim)`.

        Raises:
            InputError: another width, or more tokens than the network reads.
        """
        self.check_embeds(embeds)
        width, length = self.dit.config.text_dim, self.prompts.length
        padded = torch.zeros(1, length, width)
        padded[0, : len(embeds)] = embeds
        embedding, context = self._embed(padded)
        # of what the network reads: a log keeps that, and a replay comes to the same
        rows = embedding.float().cpu().contiguous()
        given = hashlib.blake2b(rows.numpy().tobytes(), digest_size=8).hexdigest()
        return Text(prompt or f"embeddings {given}", context, embedding, given)

    def blended_text(self, blend: Blend) -> Text:
        """The weighted mean of prompts. One of all the weight is that prompt itself.

        Raises:
            InputError: see `text`.
        """
        parts = [(self.text(prompt), weight) for prompt, weight in blend if weight > 0]
        if len(parts) == 1:
            return parts[0][0]
        texts = [text for text, _ in parts]
        mean = blended([self.kept_embedding(text) for text in texts], [weight for _, weight in parts])
        embedding, context = self._embed(mean)
        unknown = tuple(dict.fromkeys(word for text in texts for word in text.unknown))
        dropped = sum(text.dropped for text in texts)
        mark = blend_mark(blend, "linear")
        return Text(blend_name(blend), context, embedding, mark, unknown, dropped, blend)

    def passing_text(self, passage: Passage) -> Text:
        """The text of a chunk on the way from one text to another; the target itself at its end."""
        if passage.over_now:
            return passage.target
        embedding, context = self._embed(passage.embedding())
        target = passage.target
        return Text(target.prompt, context, embedding, passage.mark, target.unknown, target.dropped)

    def kept_embedding(self, text: Text) -> Tensor:
        """What a text was made from."""
        assert text.embedding is not None, "texts of streams keep what they are made from"
        return text.embedding

    def check_embeds(self, embeds: Tensor) -> None:
        """Raise InputError for embeddings `(tokens, dim)` that the network cannot read."""
        width, length = self.dit.config.text_dim, self.prompts.length
        if embeds.shape[1] != width or len(embeds) > length:
            raise InputError(
                f"prompt_embeds: expected up to {length} tokens of width {width} for {self.name}, found "
                f"{len(embeds)} of width {embeds.shape[1]}"
            )

    def restored_text(self, prompt: str, given: str, embedding: Tensor, blend: Blend = ()) -> Text:
        """A text whose embedding was kept, `(1, L, dim)` in the network's precision."""
        kept = None if given else self._kept(prompt)
        return kept or Text(prompt, self._embed(embedding)[1], embedding, given, blend=blend)

    def coming_text(self, event: StreamEvent) -> "Future[Text] | None":
        """The text that an event brings: there already where it is known or quickly made, else on its way;
        None where it brings none. A failure lies in the future.
        """
        if not event.changes_text:
            return None
        make = lambda: self.event_text(event)  # noqa: E731
        known = event.prompt is not None and self._kept(event.prompt) is not None
        if self.prompts.quick or event.prompt_embeds is not None or known:
            future: Future[Text] = Future()
            try:
                future.set_result(make())
            except Exception as error:
                future.set_exception(error)
            return future
        return self._workers().submit(make)

    def event_text(self, event: StreamEvent) -> Text:
        """The text that an event brings."""
        if event.prompt_embeds is not None:
            return self.given_text(event.prompt, event.prompt_embeds)
        if event.blend is not None:
            return self.blended_text(event.parts)
        return self.text(str(event.prompt))

    def new_ring(self, settings: StreamSettings) -> CacheRing:
        """An empty cache for a stream.

        Raises:
            InputError: settings that no cache can have; CheckpointError: it does not fit into the memory.
        """
        plan = settings.plan(self.plan)
        if self.parts.check_memory is not None:
            self.parts.check_memory(plan)
        config = self.dit.config
        shape = CacheShape(config.layers, config.heads, config.head_dim, self.geometry.token_grid)
        return CacheRing(shape, plan, self.dit.rope, self.device, self.dtype, settings.rope)

    def no_frames(self) -> Tensor:
        """The pictures of a stream of latents: none, uint8 `(0, H, W, 3)`."""
        return torch.empty(0, self.geometry.height, self.geometry.width, 3, dtype=torch.uint8)

    def _workers(self) -> ThreadPoolExecutor:
        """The one thread that encodes beside streams."""
        with self._encoding_starts:
            if self._encoder is None:
                self._encoder = ThreadPoolExecutor(1, "streamgen-text")
            return self._encoder

    def _kept(self, prompt: str) -> Text | None:
        # sessions of other threads use the same store: what was found is held, and never looked up again
        with self._encoding_starts:
            found = self._texts.pop(prompt, None)
            if found is not None:
                self._texts[prompt] = found
            return found

    def _keep(self, prompt: str, text: Text) -> None:
        room = _CACHED_PROMPT_BYTES // max(1, text.context.size_bytes())
        with self._encoding_starts:
            self._texts[prompt] = text
            if len(self._texts) > max(2, min(_CACHED_PROMPTS, room)):
                self._texts.popitem(last=False)

    @torch.no_grad()
    def _embed(self, embedding: Tensor) -> tuple[Tensor, TextContext]:
        placed = embedding.to(self.device, self.dtype)
        return placed, self.dit.embed_text(placed)
