"""What the stages of diffusion models share: networks, latents to train on, checkpoints."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.causal_dit import CausalDiT, CausalDiTConfig
from models.context import ChunkPlan
from models.motion_encoder import MotionEncoder, MotionEncoderConfig
from models.text_encoder import TextEncoder, TextEncoderConfig, Vocabulary
from models.video_tokenizer import VideoTokenizer, VideoTokenizerConfig
from streamgen.checkpoint import (
    MODEL,
    TOKENIZER,
    VOCABULARY,
    CheckpointConfig,
    load_into,
    part_of,
    read_config,
    read_tensors,
    read_vocabulary,
)
from streamgen.digest import tensor_digest
from streamgen.pipeline import Networks, Pipeline
from streamgen.settings import StreamSettings
from streamgen.structured import to_plain

from ..clips import ClipFolderConfig
from ..clips.latents import OwnLatents
from ..clips.training import LatentMix, open_folder, picture_size, stage_vocabulary
from ..config import RunConfig, build, read_mapping, write_yaml
from ..flow import FlowNetwork
from ..latent_cache import CacheConfig, LatentCache, LatentClips
from ..optim import ParameterGroups, split_parameters
from ..scenes import SceneConfig
from ..widen import widen_dit

# Inputs, outputs, embeddings and modulations: not maps between hidden spaces, so not for Muon.
EDGES = (
    "patch_embedding",
    "head",
    "modulation",
    "embedding.weight",
    "guidance_embedding.0",
    "temporal",
    "projection",
    "time_",
    "norm",
)
_WORDS = "embedding.weight"
_GUIDANCE = "guidance_embedding."
N = TypeVar("N", bound=FlowNetwork)


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the DiT and its encoders; channel counts that follow from one another are not repeated
    here.
    """

    dim: int = 256
    layers: int = 6
    heads: int = 4
    ffn_dim: int = 1024
    patch: int = 2
    text_dim: int = 128
    text_layers: int = 2
    text_length: int = 24
    motion_channels: int = 16
    motion_hidden: int = 32


@dataclass(frozen=True)
class DiffusionRun(RunConfig):
    """Config of a stage that trains a diffusion transformer on latents of the world or of own clips.

    `tokenizer` is an export of the tokenizer stage or a checkpoint directory; `init` a checkpoint directory
    whose networks training starts from, null for random ones; `clips` a folder of own clips instead of those
    of `scenes`, or beside them; `sampling` what the result streams with by default.
    """

    tokenizer: str = "runs/tiny/tokenizer/export"
    init: str | None = None
    network: NetworkConfig = field(default_factory=NetworkConfig)
    plan: ChunkPlan = field(default_factory=ChunkPlan)
    scenes: SceneConfig = field(default_factory=SceneConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    clips: ClipFolderConfig | None = None
    sampling: dict[str, Any] = field(default_factory=dict)


class DiffusionStage:
    """The frozen tokenizer, the words and the encoded clips of a stage; `network` is what it exports.

    Raises:
        CheckpointError: a tokenizer or a start that is missing, damaged, or of other sizes.
        InputError: nothing usable in the folder of own clips.
    """

    network: FlowNetwork
    latents: LatentMix
    clips: LatentClips
    images: LatentClips

    def __init__(self, config: DiffusionRun, device: torch.device) -> None:
        self.run, self.device = config, device
        self.tokenizer, self.tokenizer_digest = load_tokenizer(Path(config.tokenizer), device)
        self.folder = open_folder(config.clips, config.scenes.size)
        self.vocabulary = stage_vocabulary(self.folder, config.run_dir, words_of(config.init))

    def build(self, kind: type[N], init: str | None, **options: Any) -> N:
        """A network of a certain `kind` on the device, from the checkpoint directory `init` if given; see
        `build_network` for `options`.
        """
        network = build_network(kind, self.run, self.tokenizer.config, len(self.vocabulary), **options)
        if init is not None:
            load_networks(network, Path(init), self.vocabulary)
        return network.to(self.device)

    def load_clips(self) -> None:
        """Take the clips from the latent cache, which is built where it is missing.

        `latents` has all of them; `clips` and `images` are the own ones where there are some.
        """
        config = self.run
        encoders = (self.tokenizer, self.tokenizer_digest, self.vocabulary, config.network.text_length)
        world = LatentCache(config.cache, config.scenes, *encoders)
        own = None if self.folder is None else OwnLatents(self.folder, *encoders)
        self.latents = LatentMix(world, own, config.clips, self.device)
        self.clips, self.images, _ = self.latents.main

    def pipeline(self) -> Pipeline:
        """The network as it is now, as a pipeline that opens streams."""
        network = self.network
        networks = Networks(self.tokenizer, network.dit, network.text_encoder, network.motion_encoder)
        checkpoint = checkpoint_config(self.run, network, self.tokenizer, self.tokenizer_digest)
        return Pipeline("in training", checkpoint, networks, self.vocabulary, "in training")

    def export(self, directory: Path) -> None:
        """Write a checkpoint directory that `streamgen.load_pipeline` opens."""
        checkpoint = checkpoint_config(self.run, self.network, self.tokenizer, self.tokenizer_digest)
        write_checkpoint(checkpoint, self.network, self.vocabulary, Path(self.run.tokenizer), directory)


def optimizer_groups(module: nn.Module) -> ParameterGroups:
    """Hidden matrices apart from embeddings, modulations and outputs."""
    return split_parameters(module, EDGES)


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
    dit = widen_dit(part_of(tensors, "dit"), module.dit)
    if module.dit.config.guidance and not any(name.startswith(_GUIDANCE) for name in dit):
        dit |= {k: v for k, v in module.dit.state_dict().items() if k.startswith(_GUIDANCE)}
    load_into(module.dit, dit, f"{where} (dit)")
    load_into(module.motion_encoder, part_of(tensors, "motion_encoder"), f"{where} (motion_encoder)")
    text = part_of(tensors, "text_encoder")
    known = read_vocabulary(directory / VOCABULARY, read_config(directory).text_encoder)
    fresh = module.text_encoder.embedding.weight.detach()
    if text[_WORDS].shape[1:] == fresh.shape[1:]:
        text[_WORDS] = _by_word(fresh, vocabulary, text[_WORDS], known)
    load_into(module.text_encoder, text, f"{where} (text_encoder)")


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
    return read_vocabulary(directory / VOCABULARY, read_config(directory).text_encoder).words


def load_tokenizer(directory: Path, device: torch.device) -> tuple[VideoTokenizer, str]:
    """A frozen tokenizer from an export of the tokenizer stage or from a checkpoint directory, and its
    digest.

    Raises:
        CheckpointError: missing or damaged weights, or a config that does not fit them.
    """
    state = read_tensors(directory / TOKENIZER)
    if (directory / "tokenizer.yaml").is_file():
        config = build(VideoTokenizerConfig, read_mapping(directory / "tokenizer.yaml"))
    else:
        config = read_config(directory).tokenizer
    tokenizer = VideoTokenizer(config)
    load_into(tokenizer, state, str(directory / TOKENIZER))
    return tokenizer.to(device).eval().requires_grad_(False), tensor_digest(state)


def checkpoint_config(
    config: DiffusionRun, module: FlowNetwork, tokenizer: VideoTokenizer, digest: str
) -> CheckpointConfig:
    """What a checkpoint of this run says of itself."""
    plan = module.plan
    height, width, fps = picture_size(config.clips, config.scenes.size)
    base = StreamSettings(sink_frames=plan.sink_frames, window_frames=plan.window_frames)
    return CheckpointConfig(
        format=1,
        family="tiny",
        height=height,
        width=width,
        fps=fps,
        tokenizer=tokenizer.config,
        tokenizer_digest=digest,
        dit=module.dit.config,
        text_encoder=module.text_encoder.config,
        motion_encoder=module.motion_encoder.config,
        plan=plan,
        sampling=base.updated(config.sampling),
    )


def write_checkpoint(
    checkpoint: CheckpointConfig,
    module: FlowNetwork,
    vocabulary: Vocabulary,
    tokenizer: Path,
    directory: Path,
) -> None:
    """Write `config.yaml`, `model.safetensors` (bf16), `tokenizer.safetensors` and `vocabulary.txt`."""
    parts = {"dit": module.dit, "text_encoder": module.text_encoder, "motion_encoder": module.motion_encoder}
    state = {
        f"{part}.{name}": value.detach().to(torch.bfloat16).cpu().contiguous()
        for part, network in parts.items()
        for name, value in network.state_dict().items()
    }
    save_file(
        state, directory / "model.safetensors", metadata={"format": "pt", "digest": tensor_digest(state)}
    )
    shutil.copyfile(tokenizer / "tokenizer.safetensors", directory / "tokenizer.safetensors")
    (directory / "vocabulary.txt").write_text("\n".join(vocabulary.words) + "\n", encoding="utf-8")
    write_yaml(to_plain(checkpoint), directory / "config.yaml")
