"""The tiny family: its tokenizer, its words, and networks of any size, trained from nothing."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from models.causal_dit import CausalDiT, CausalDiTConfig
from models.context import ChunkPlan
from models.motion_encoder import MotionEncoder, MotionEncoderConfig
from models.tensor_file import write_tensors
from models.text_encoder import TextEncoder, TextEncoderConfig, Vocabulary
from models.video_tokenizer import VideoTokenizer, VideoTokenizerConfig
from streamgen.checkpoints.digest import tensor_digest
from streamgen.checkpoints.directory import MODEL, TOKENIZER, VOCABULARY, load_into, part_of, read_tensors
from streamgen.engine.networks import Networks
from streamgen.errors import CheckpointError
from streamgen.pipeline import Pipeline
from streamgen.stream.model import ModelParts
from streamgen.stream.settings import StreamSettings
from streamgen.structured import to_plain
from streamgen.tiny.config import TinyConfig, read_tiny_config, read_vocabulary
from streamgen.tiny.text import WordPrompts

from ..clips.latents import OwnLatents
from ..clips.prompts import known_to, prompt_pairs, read_prompts
from ..clips.training import LatentMix, open_folder, picture_size, preview_sheets, stage_vocabulary
from ..clips.words import WordIds
from ..command import say
from ..config import FrozenConfig, build, read_mapping, write_yaml
from ..flow import FlowNetwork
from ..latent_cache import CacheConfig, LatentCache
from ..scenes import SceneConfig
from ..widen import widen_dit, widen_text
from ..words import heads as word_heads
from ..words.told import check_vocabulary
from .config import DiffusionRun, NetworkConfig
from .family import HELD, Family, N, NetworkSpec, with_fresh

_WORDS, _BESIDE = "embedding.weight", "beside."


class TinyFamily(Family):
    """See `Family`; `vocabulary` are the words of the run."""

    codec: VideoTokenizer

    def __init__(self, config: DiffusionRun, device: torch.device) -> None:
        super().__init__(config, device)
        self.codec, self.digest = load_tokenizer(Path(config.tokenizer), device)
        self.folder = open_folder(config.clips, config.scenes.size)
        self.vocabulary = stage_vocabulary(self.folder, config.run_dir, words_of(config.init))
        if config.words.weight or config.words.start is not None:
            check_vocabulary(self.vocabulary)

    def network(self, spec: NetworkSpec[N], held: FrozenConfig = HELD) -> N:
        """See `Family`; with `words.start` the text encoder of what is trained, or its last tower, is that of
        the words stage.
        """
        network = super().network(spec, held)
        start = self.run.words.start
        if spec.heads and not spec.frozen and start is not None:
            load_words(words_encoder(network), network.heads, Path(start), self.vocabulary)
        return network

    @classmethod
    def blank(cls, config: DiffusionRun, specs: Mapping[str, NetworkSpec[Any]]) -> dict[str, nn.Module]:
        """See `Family`; of the vocabulary, words that only own captions have are not counted."""
        tokenizer = tokenizer_config(Path(config.tokenizer))
        words = len(stage_vocabulary(None, config.run_dir, words_of(config.init)))
        return {name: network_of(spec, config, tokenizer, words) for name, spec in specs.items()}

    @classmethod
    def blank_codec(cls, config: DiffusionRun) -> nn.Module:
        return VideoTokenizer(tokenizer_config(Path(config.tokenizer)))

    @property
    def grid(self) -> tuple[int, int]:
        height, width, _ = picture_size(self.run.clips, self.run.scenes.size)
        patch = self.codec.config.patch
        return height // patch, width // patch

    def fresh(self, spec: NetworkSpec[N], place: torch.device) -> N:
        return network_of(spec, self.run, self.codec.config, len(self.vocabulary))

    def load(self, network: FlowNetwork, spec: NetworkSpec[Any]) -> None:
        assert spec.start is not None
        load_networks(network, Path(spec.start), self.vocabulary)

    def plan_of(self, directory: Path) -> ChunkPlan | None:
        return read_tiny_config(directory).plan

    def clips(self) -> LatentMix:
        """See `Family`; `main` are the own ones where there are some."""
        config, length = self.run, self.run.network.text_length
        world = self.cache(config.cache, config.scenes)
        own = None
        if self.folder is not None:
            own = OwnLatents(
                self.folder, self.codec, self.digest, WordIds(self.folder, self.vocabulary, length)
            )
        return LatentMix(world, own, config.clips, self.device)

    def cache(self, config: CacheConfig, scenes: SceneConfig) -> LatentCache:
        """Encoded clips of a world for this run's words and tokenizer."""
        length = self.run.network.text_length
        return LatentCache(config, scenes, self.codec, self.digest, self.vocabulary, length)

    def prompts(self, path: str) -> list[tuple[Tensor, Tensor]]:
        """See `Family`; says which words are unknown."""
        prompts, length = read_prompts(path), self.run.network.text_length
        line = known_to(prompts, self.vocabulary, length, path)
        if line is not None and PartialState().is_main_process:
            say(line)
        return prompt_pairs(prompts, lambda text: self.vocabulary.encode(text, length).ids)

    def pipeline(self, network: FlowNetwork) -> Pipeline:
        words = words_encoder(network)
        networks = Networks(self.codec, network.dit, words, network.motion_encoder)
        prompts = WordPrompts(words, self.vocabulary)
        checkpoint = checkpoint_config(self.run, network, self.codec, self.digest)
        # weights change: the plain runner keeps no copy of them
        return Pipeline(ModelParts("in training", checkpoint, networks, prompts, "in training"), "plain")

    def preview(self, pipeline: Pipeline, out_dir: Path, streams: bool) -> None:
        preview_sheets(pipeline, self.folder, out_dir, streams)

    def export(self, network: FlowNetwork, directory: Path) -> None:
        checkpoint = checkpoint_config(self.run, network, self.codec, self.digest)
        write_checkpoint(checkpoint, network, self.vocabulary, Path(self.run.tokenizer), directory)


def network_of(
    spec: NetworkSpec[N], config: DiffusionRun, tokenizer: VideoTokenizerConfig, vocabulary: int
) -> N:
    """`build_network` of what a stage asks for; a score's sizes are those of its start."""
    options: dict[str, Any] = {"guidance": spec.guidance, "writer": spec.writer}
    options["plan"] = spec.plan or config.plan
    sized = config
    if spec.start is not None and spec.sizes != "run":
        sized = replace(config, network=network_sizes(Path(spec.start)))
    network = build_network(spec.kind, sized, tokenizer, vocabulary, **options)
    if config.words.weight and spec.heads and not spec.frozen:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network.heads = word_heads.AttributeHeads(config.network.text_dim, config.words.weight)
    return network


def network_sizes(directory: Path) -> NetworkConfig:
    """The sizes of a checkpoint directory's networks.

    Raises:
        CheckpointError: its config cannot be read.
    """
    made = read_tiny_config(directory)
    return NetworkConfig(
        dim=made.dit.dim,
        layers=made.dit.layers,
        heads=made.dit.heads,
        ffn_dim=made.dit.ffn_dim,
        patch=made.dit.patch,
        patch_stride=made.dit.patch_stride,
        text_dim=made.text_encoder.dim,
        text_layers=made.text_encoder.layers,
        text_length=made.text_encoder.length,
        text_towers=made.text_encoder.towers,
        motion_channels=made.motion_encoder.channels,
        motion_hidden=made.motion_encoder.hidden,
    )


def words_encoder(network: FlowNetwork) -> TextEncoder:
    """The text encoder of a network of this family."""
    assert isinstance(network.text_encoder, TextEncoder)
    return network.text_encoder


def build_network(
    kind: type[N], config: DiffusionRun, tokenizer: VideoTokenizerConfig, vocabulary: int, **options: Any
) -> N:
    """A freshly initialised network of a certain `kind`; a function of the config's sizes and seed.

    `options` replace values of `CausalDiTConfig`; `plan` the config's chunk plan.
    """
    network, plan = config.network, options.pop("plan", config.plan)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        dit = CausalDiT(
            CausalDiTConfig(
                dim=network.dim,
                layers=network.layers,
                heads=network.heads,
                ffn_dim=network.ffn_dim,
                latent_channels=tokenizer.latent_channels,
                motion_channels=network.motion_channels,
                patch=network.patch,
                patch_stride=network.patch_stride,
                text_dim=network.text_dim,
                **options,
            )
        )
        text = TextEncoder(
            TextEncoderConfig(
                vocabulary=vocabulary,
                dim=network.text_dim,
                layers=network.text_layers,
                length=network.text_length,
                towers=network.text_towers,
            )
        )
        motion = MotionEncoder(
            MotionEncoderConfig(
                channels=network.motion_channels, hidden=network.motion_hidden, temporal=tokenizer.temporal
            )
        )
    return kind(dit, text, motion, plan)


def load_networks(module: FlowNetwork, directory: Path, vocabulary: Vocabulary) -> None:
    """Take DiT, text and motion encoder from a checkpoint directory.

    Word embeddings are taken by word: the checkpoint may know other words than `vocabulary`, and words that
    it does not know keep their fresh embeddings. It may also be one for fewer latent channels, or without the
    guidance input that `module` has.

    Raises:
        CheckpointError: missing or damaged weights, or networks of other sizes.
    """
    tensors, where = read_tensors(directory / MODEL), str(directory / MODEL)
    dit = widen_text(widen_dit(part_of(tensors, "dit"), module.dit), module.dit)
    load_into(module.dit, with_fresh(dit, module, f"{where} (dit)"), f"{where} (dit)")
    load_into(module.motion_encoder, part_of(tensors, "motion_encoder"), f"{where} (motion_encoder)")
    load_encoder(words_encoder(module), directory, vocabulary)
    if module.heads is not None and (directory / word_heads.FILE).is_file():
        _load_heads(module.heads, directory)


def load_encoder(encoder: TextEncoder, directory: Path, vocabulary: Vocabulary) -> None:
    """Take the text encoder of a checkpoint directory, word embeddings by word. It may have fewer towers:
    then the others of `encoder` stay fresh.

    Raises:
        CheckpointError: missing or damaged weights, or an encoder of other sizes.
    """
    tensors, where = read_tensors(directory / MODEL), str(directory / MODEL)
    known = read_vocabulary(directory / VOCABULARY, read_tiny_config(directory).text_encoder)
    fresh = encoder.state_dict()
    text = {n: v for n, v in fresh.items() if n.startswith(_BESIDE)} | part_of(tensors, "text_encoder")
    _load_encoder(encoder, text, known, vocabulary, where)


def load_words(
    encoder: TextEncoder, heads: nn.Module | None, directory: Path, vocabulary: Vocabulary
) -> None:
    """Take the text encoder, its last tower where it has several, word embeddings by word, and heads where
    there are some, from an export of the words stage.

    Raises:
        CheckpointError: missing or damaged weights, or an encoder of other sizes.
    """
    path = directory / word_heads.FILE
    tensors, file = read_tensors(path), directory / VOCABULARY
    try:
        known = Vocabulary(file.read_text(encoding="utf-8").split())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"vocabulary {file}: {error}") from None
    tower = encoder.beside[-1] if encoder.beside else encoder
    assert isinstance(tower, TextEncoder)
    _load_encoder(tower, part_of(tensors, "text_encoder"), known, vocabulary, str(path))
    if heads is not None:
        _load_heads(heads, directory)


def _load_heads(heads: nn.Module, directory: Path) -> None:
    """Take heads; those of a narrower encoder read the last channels, where its tower is."""
    path, fresh = directory / word_heads.FILE, heads.state_dict()
    given = part_of(read_tensors(path), "heads")
    for name, value in given.items():
        wide = fresh[name].shape[-1] if name in fresh else 0
        if value.ndim == 2 and value.shape[1] < wide:
            given[name] = torch.cat([value.new_zeros(len(value), wide - value.shape[1]), value], 1)
    load_into(heads, given, f"{path} (heads)")


def _load_encoder(
    encoder: TextEncoder, text: dict[str, Tensor], known: Vocabulary, vocabulary: Vocabulary, where: str
) -> None:
    """Weights `text` of an encoder with the words `known`, for one with the words `vocabulary`."""
    for name, fresh in encoder.state_dict().items():
        given = text.get(name)
        fits = given is not None and given.shape == (len(known), *fresh.shape[1:])
        if name.endswith(_WORDS) and given is not None and fits:
            text[name] = _by_word(fresh, vocabulary, given, known)
    load_into(encoder, text, f"{where} (text_encoder)")


def _by_word(fresh: Tensor, vocabulary: Vocabulary, given: Tensor, known: Vocabulary) -> Tensor:
    """`fresh` embeddings `(V, D)` with the rows of padding, unknown and all words of `known` replaced."""
    rows = fresh.clone()
    first = len(vocabulary) - len(vocabulary.words)
    rows[:first] = given[:first].to(rows)
    index = {word: first + i for i, word in enumerate(known.words)}
    for i, word in enumerate(vocabulary.words):
        if word in index:
            rows[first + i] = given[index[word]].to(rows)
    return rows


def words_of(init: str | None) -> tuple[str, ...]:
    """The words of a checkpoint directory, none where there is no such start.

    Raises:
        CheckpointError: a start whose config or vocabulary cannot be read.
    """
    if init is None:
        return ()
    directory = Path(init)
    return read_vocabulary(directory / VOCABULARY, read_tiny_config(directory).text_encoder).words


def tokenizer_config(directory: Path) -> VideoTokenizerConfig:
    """The sizes of a tokenizer from an export of the tokenizer stage or from a checkpoint directory.

    Raises:
        CheckpointError: no config, or one that cannot be read.
    """
    if (directory / "tokenizer.yaml").is_file():
        return build(VideoTokenizerConfig, read_mapping(directory / "tokenizer.yaml"))
    return read_tiny_config(directory).tokenizer


def load_tokenizer(directory: Path, device: torch.device) -> tuple[VideoTokenizer, str]:
    """A frozen tokenizer from an export of the tokenizer stage or from a checkpoint directory, and its
    digest.

    Raises:
        CheckpointError: missing or damaged weights, or a config that does not fit them.
    """
    state = read_tensors(directory / TOKENIZER)
    tokenizer = VideoTokenizer(tokenizer_config(directory))
    load_into(tokenizer, state, str(directory / TOKENIZER))
    return tokenizer.to(device).eval().requires_grad_(False), tensor_digest(state)


def checkpoint_config(
    config: DiffusionRun, module: FlowNetwork, tokenizer: VideoTokenizer, digest: str
) -> TinyConfig:
    """What a checkpoint of this run says of itself."""
    plan = module.plan
    height, width, fps = picture_size(config.clips, config.scenes.size)
    base = StreamSettings(sink_frames=plan.sink_frames, window_frames=plan.window_frames)
    return TinyConfig(
        format=1,
        family="tiny",
        height=height,
        width=width,
        fps=fps,
        tokenizer=tokenizer.config,
        tokenizer_digest=digest,
        dit=module.dit.config,
        text_encoder=words_encoder(module).config,
        motion_encoder=module.motion_encoder.config,
        plan=plan,
        sampling=base.updated(config.sampling),
    )


def write_checkpoint(
    checkpoint: TinyConfig, module: FlowNetwork, vocabulary: Vocabulary, tokenizer: Path, directory: Path
) -> None:
    """Write `config.yaml`, `model.safetensors` (bf16), `tokenizer.safetensors` and `vocabulary.txt`."""
    parts = {"dit": module.dit, "text_encoder": module.text_encoder, "motion_encoder": module.motion_encoder}
    state = word_heads.weights_of(parts, torch.bfloat16)
    write_tensors(
        state, directory / "model.safetensors", metadata={"format": "pt", "digest": tensor_digest(state)}
    )
    shutil.copyfile(tokenizer / "tokenizer.safetensors", directory / "tokenizer.safetensors")
    if module.heads is not None:
        # for the next stage: streams do not need them
        write_tensors(word_heads.weights_of({"heads": module.heads}), directory / word_heads.FILE)
    (directory / "vocabulary.txt").write_text("\n".join(vocabulary.words) + "\n", encoding="utf-8")
    write_yaml(to_plain(checkpoint), directory / "config.yaml")
