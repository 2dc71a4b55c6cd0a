"""What streams are opened on: the networks of a model, its sizes, and the texts it has encoded."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from models.causal_dit import TextContext
from models.context import ChunkPlan
from models.kv_cache import CacheRing, CacheShape, RingStorage
from models.live_lora import LiveLoras, adapted
from models.text_encoder import Vocabulary, Words
from models.video_codec import VideoCodec

from ..engine.adapters.live_lora import LiveLoraRunner
from ..engine.adapters.writer import check_same_commit
from ..engine.decoder import DecoderState, DecoderThread, Decoding, at_rest
from ..engine.geometry import LatentGeometry
from ..engine.networks import Networks
from ..engine.parallel.mesh import Mesh
from ..engine.parallel.ulysses import sharded_ring
from ..engine.program.leases import RingPool
from ..engine.runner import PlainRunner, Runner
from ..errors import InputError
from ..interpolate import blended
from ..machine import device_of
from .events import StreamEvent
from .prompts import Blend, Passage, PromptEncoder, Text, blend_mark, blend_name, check_prompt
from .settings import StreamSettings

_CACHED_PROMPTS = 64
# keys and values of one prompt take 95 MB at Wan size in bfloat16
_CACHED_PROMPT_BYTES = 2**29
# strengths that the empty prompt is kept under
_LIVE_NULLS = 4


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
        check_memory: raises CheckpointError where a stream with this chunk plan, its cache in eight bits or
            not, does not fit into the memory that is free; None where nothing has to be checked.
        notes: what was chosen at load, a line each.
        quantize: the eight bits that its files are in, or `none`.
        live: LoRAs whose strengths streams change; None where there are none.
    """

    name: str
    config: StreamConfig
    networks: Networks
    prompts: PromptEncoder
    digest: str
    check_memory: Callable[[ChunkPlan, bool], None] | None = None
    notes: tuple[str, ...] = ()
    quantize: str = "none"
    live: LiveLoras | None = None


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
        # decodes beside the next chunk, where it was asked for
        self.decoder_thread: DecoderThread | None = None
        # processes that compute its streams together
        self.mesh: Mesh | None = None
        # whether each of them holds a part of the heads
        self.shards_caches = False
        self._texts: OrderedDict[str, Text] = OrderedDict()
        self._null_text: TextContext | None = None
        # a network of their own for words: streams run beside
        self._live = None if parts.live is None else adapted(self.dit, parts.live)
        self._live_nulls: dict[tuple[float, ...], TextContext] = {}
        # one encoder load for first prompts that come at once; the second lock is never held for long
        self._encoding, self._encoding_starts = threading.RLock(), threading.Lock()
        self._encoder: ThreadPoolExecutor | None = None
        # graphs of a GPU know the addresses of a ring, and are made anew for another one
        self._rings = RingPool(1 if self.device.type == "cuda" else 0)

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

    def strengths(self, settings: StreamSettings) -> tuple[float, ...]:
        """Strengths of the live LoRAs of streams with these settings; none for a model without.

        Raises:
            InputError: a name that none of them has, or any for a model without.
        """
        live = self.parts.live
        if live is None:
            if settings.lora:
                raise InputError(
                    f"setting lora: {self.name} has no live LoRAs (--live-lora), found {settings.lora!r}"
                )
            return ()
        try:
            return live.strengths(settings.lora)
        except ValueError as error:
            raise InputError(f"setting lora: {error}") from None

    def read_at(self, text: Text, strengths: tuple[float, ...]) -> Text:
        """A text as the network reads it at strengths of its live LoRAs; itself where that is how it is."""
        if text.strengths == strengths:
            return text
        assert text.embedding is not None, "texts of streams keep what they are made from"
        return replace(text, context=self._context_at(text.embedding, strengths), strengths=strengths)

    def null_at(self, strengths: tuple[float, ...]) -> TextContext:
        """`null_text` as the network reads it at strengths of its live LoRAs."""
        if not strengths:
            return self.null_text
        found = self._live_nulls.get(strengths)
        if found is None:
            embedding = self.prompts.null().to(self.device, self.dtype)
            found = self._context_at(embedding, strengths)
            kept = dict(list(self._live_nulls.items())[1 - _LIVE_NULLS :])
            self._live_nulls = kept | {strengths: found}
        return found

    @property
    def decoder_device(self) -> torch.device:
        """Where pictures are decoded; the network's where they are not."""
        return self.device if self.codec is None else self.codec.latent_mean.device

    def decode_beside(self, device: str | None = None) -> None:
        """Decode pictures of a chunk in a thread while the next one is made; before the first stream. Chunks
        are handed over at once, and `FrameChunk.frames` waits. On the same device the same bits.

        Args:
            device: where the decoder goes; by default it stays where it is.

        Raises:
            InputError: no such device, or one for each of several processes.
        """
        codec = self.tokenizer
        if device is not None:
            if self.mesh is not None:
                raise InputError(f"decoder device: not over {self.mesh.size} processes")
            place = device_of(device)
            assert isinstance(codec, nn.Module), "decoders are modules"
            codec.to(place)
        self.decoder_thread = DecoderThread()

    def decoded(
        self, runner: Runner, latents: Tensor, state: DecoderState | Decoding | None
    ) -> tuple[Tensor | Decoding, DecoderState | Decoding | None]:
        """The next pictures of a stream, and the decoder's state behind them; none of a stream of latents."""
        if state is None:
            return self.no_frames(), None
        if self.decoder_thread is None:
            return runner.decode(latents, at_rest(state))
        coming = self.decoder_thread.begin(runner.decode, latents, state)
        return coming, coming

    def plain_runner(self) -> Runner:
        """The networks as they read, live LoRAs beside them."""
        live = self.parts.live
        return (
            PlainRunner(self.dit, self.codec) if live is None else LiveLoraRunner(self.dit, live, self.codec)
        )

    def guided(self, settings: StreamSettings) -> bool:
        """Whether streams with these settings compare two predictions. A network that takes the strengths as
        an input never does.
        """
        return not self.dit.config.guidance and not settings.guidance().is_off(False)

    def needs_null(self, settings: StreamSettings) -> bool:
        """Whether streams with these settings are guided against no prompt."""
        return self.guided(settings) and not settings.negative_prompt

    def negative_text(self, settings: StreamSettings) -> Text | None:
        """What streams with these settings are not to show, encoded; None where they do not say.

        Raises:
            InputError: it cannot be encoded.
        """
        return self._beside(settings, settings.negative_prompt)

    def input_text(self, settings: StreamSettings) -> Text | None:
        """What the live input of streams with these settings shows, encoded; None where they do not say.

        Raises:
            InputError: it cannot be encoded.
        """
        return self._beside(settings, settings.input_prompt)

    def _beside(self, settings: StreamSettings, words: str) -> Text | None:
        return self.read_at(self.text(words), self.strengths(settings)) if words.strip() else None

    def coming_null(self, settings: StreamSettings) -> "Future[object] | None":
        """The null text, or the words of settings, on their way, where they are needed and not there and take
        their time.
        """
        told = (settings.negative_prompt, settings.input_prompt)
        missing = [words for words in told if words.strip() and self._kept(words) is None]
        if missing and not self.prompts.quick:
            return self._workers().submit(lambda: [self.text(words) for words in missing])
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
                told = (tuple(words.unknown), words.dropped, words.cut)
                found = Text(prompt, context, embedding, "", *told)
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
        return Text(blend_name(blend), context, embedding, mark, unknown, dropped, blend=blend)

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

    def new_ring(self, settings: StreamSettings, eight_bits: bool = False) -> CacheRing:
        """An empty cache for a stream, in eight bits or in full precision.

        Raises:
            InputError: settings that no cache can have; CheckpointError: it does not fit into the memory.
        """
        check_same_commit(self.dit, self.settings.context_noise, settings.context_noise)
        plan = settings.plan(self.plan)
        config = self.dit.config
        shape = CacheShape(config.layers, config.heads, config.head_dim, self.geometry.token_grid)
        lent = not eight_bits and self._rings.has(shape, plan, self.device, self.dtype)
        if self.parts.check_memory is not None and not lent:
            self.parts.check_memory(plan, eight_bits)
        if eight_bits:
            storage = RingStorage(shape, plan, self.device, self.dtype, eight_bits=True)
            about = (self.dit.rope, self.device, self.dtype, settings.rope)
            return CacheRing(shape, plan, *about, storage=storage)
        if self.mesh is not None and self.shards_caches:
            return sharded_ring(self.mesh, shape, plan, self.dit.rope, self.dtype, settings.rope)
        return self._rings.ring(shape, plan, self.dit.rope, self.device, self.dtype, settings.rope)

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
    def _context_at(self, embedding: Tensor, strengths: tuple[float, ...]) -> TextContext:
        assert self._live is not None, "only models with live LoRAs have strengths"
        network, current = self._live
        with self._encoding:
            own = torch.tensor(strengths, device=current.device)
            current.copy_(own)
            return replace(network.embed_text(embedding), strengths=own)

    @torch.no_grad()
    def _embed(self, embedding: Tensor) -> tuple[Tensor, TextContext]:
        placed = embedding.to(self.device, self.dtype)
        return placed, self.dit.embed_text(placed)
