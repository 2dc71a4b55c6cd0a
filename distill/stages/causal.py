"""Stage 2: the causal diffusion transformer by flow matching on latents of the frozen tokenizer."""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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
    CheckpointConfig,
    load_into,
    part_of,
    read_config,
    read_tensors,
)
from streamgen.digest import tensor_digest
from streamgen.pipeline import Networks, Pipeline
from streamgen.settings import StreamSettings
from streamgen.structured import to_plain

from ..clips import ClipFolderConfig
from ..clips.latents import OwnLatents
from ..clips.training import LatentMix, caption_sheet, open_folder, picture_size, stage_vocabulary
from ..config import RunConfig, build, read_mapping, require, write_yaml
from ..flow import CausalFlow, FlowBatch
from ..latent_cache import CacheConfig, LatentCache
from ..optim import ParameterGroups, split_parameters
from ..samples import sample_sheets
from ..scenes import SceneConfig
from ..trainer import Tick
from ..windows import WindowConfig, image_batch, turning_batch, window_batch

# Inputs, outputs, embeddings and modulations: not maps between hidden spaces, so not for Muon.
EDGES = (
    "patch_embedding",
    "head",
    "modulation",
    "embedding.weight",
    "temporal",
    "projection",
    "time_",
    "norm",
)
# Of the windows and the noise that `evaluate` always uses; their clips are training clips.
_FIXED_SEED = 77


@dataclass(frozen=True)
class DataConfig:
    """Batches of one process: `video_batch` windows, or on `image_share` of the updates `image_batch` first
    frames, on `start_share` of them `start_batch` beginnings of `start_frames` latent frames, on `turn_share`
    of them `turn_batch` windows that end soon after a change or the start of a drag or camera move.

    Beginnings and turnings are where words or tracks alone decide which way things go; in long windows the
    neighbours tell. The
    first `image_phase` of the budget sees first frames alone. `held_out` is the number of windows that
    `evaluate` measures the loss on. Despite its name nothing is held out: they are cut from the training
    clips, at fixed places and with fixed noise, so their loss compares steps and runs and says nothing about
    clips that were never seen.
    """

    video_batch: int = 16
    image_batch: int = 128
    image_phase: float = 0.08
    image_share: float = 0.15
    start_batch: int = 40
    start_frames: int = 3
    start_share: float = 0.25
    turn_batch: int = 15
    turn_share: float = 0.25
    held_out: int = 512

    def __post_init__(self) -> None:
        require(self.start_frames >= 2, "data.start_frames", ">= 2", self.start_frames)
        require(
            self.image_share + self.start_share + self.turn_share <= 1,
            "data shares",
            "a sum <= 1",
            (self.image_share, self.start_share, self.turn_share),
        )


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
class CausalRun(RunConfig):
    """Config of the causal stage.

    `tokenizer` is an export of the tokenizer stage or a checkpoint directory; `init` a checkpoint directory
    whose networks training starts from, null for random ones; `clips` a folder of own clips instead of, or
    beside, those of `scenes`.
    """

    tokenizer: str = "runs/tiny/tokenizer/export"
    init: str | None = None
    network: NetworkConfig = field(default_factory=NetworkConfig)
    plan: ChunkPlan = field(default_factory=ChunkPlan)
    scenes: SceneConfig = field(default_factory=SceneConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    clips: ClipFolderConfig | None = None
    data: DataConfig = field(default_factory=DataConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    sampling: dict[str, Any] = field(default_factory=dict)


class CausalStage:
    """Trains a `CausalDiT` with its text and motion encoders (a `distill.trainer.Stage`)."""

    def __init__(self, config: CausalRun, device: torch.device) -> None:
        for name, frames in (
            ("windows.frames", config.windows.frames),
            ("windows.turning_frames", config.windows.turning_frames),
        ):
            require(frames <= config.plan.attention_frames, name, "<= plan.attention_frames", frames)
        self.config, self.device = config, device
        self.tokenizer, self.tokenizer_digest = load_tokenizer(Path(config.tokenizer), device)
        self.folder = open_folder(config.clips, config.scenes.size)
        self.vocabulary = stage_vocabulary(self.folder, config.run_dir)
        self.module = build_network(
            config.network, self.tokenizer.config, len(self.vocabulary), config.plan, config.seed
        )
        if config.init is not None:
            load_networks(self.module, Path(config.init))
        self.module.to(device)
        encoders = (self.tokenizer, self.tokenizer_digest, self.vocabulary, config.network.text_length)
        world = LatentCache(config.cache, config.scenes, *encoders)
        own = None if self.folder is None else OwnLatents(self.folder, *encoders)
        self.latents = LatentMix(world, own, config.clips, device)
        self.clips, self.images, _ = self.latents.main

    def modules(self) -> dict[str, nn.Module]:
        """DiT and encoders with their loss."""
        return {"causal": self.module}

    def optimizer_groups(self) -> dict[str, ParameterGroups]:
        """Hidden matrices apart from embeddings, modulations and outputs."""
        return {"causal": split_parameters(self.module, EDGES)}

    def target(self, step: int) -> str:
        """Always the one module."""
        return "causal"

    def batch(self, tick: Tick) -> FlowBatch:
        """First frames in the first part of the budget, then first frames, beginnings, turnings and windows.

        By turns: the kind is a function of the step, so it is alike on all processes.
        """
        data, windows = self.config.data, self.config.windows
        clips, images, turns = self.latents.of(tick.step)
        generator = torch.Generator().manual_seed(tick.generator_seed("windows"))
        # multiples of the golden ratio spread the kinds evenly over the steps
        turn = (tick.step * 0.6180339887) % 1
        if tick.progress < data.image_phase or turn < data.image_share:
            batch = image_batch(images, data.image_batch, windows, generator)
        elif turn < data.image_share + data.start_share:
            batch = window_batch(clips, data.start_batch, beginnings(windows, data.start_frames), generator)
        elif turns and turn < data.image_share + data.start_share + data.turn_share:
            batch = turning_batch(clips, data.turn_batch, silent(windows), generator)
        else:
            batch = window_batch(clips, data.video_batch, windows, generator)
        return batch.to(self.device)

    def loss(self, module: nn.Module, batch: FlowBatch) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Flow-matching loss of a batch."""
        result: tuple[Tensor, dict[str, Tensor | float]] = module(batch)
        return result

    def evaluate(self, step: int, out_dir: Path) -> dict[str, float]:
        """Loss on fixed windows of the training clips with fixed noise, and contact sheets of fixed
        streams.
        """
        totals: dict[str, float] = {}
        rounds = max(1, self.config.data.held_out // 64)
        for i in range(rounds):
            generator = torch.Generator().manual_seed(_FIXED_SEED + i)
            batch = window_batch(self.clips, 64, self.config.windows, generator).to(self.device)
            loss, metrics = self.module(batch)
            for key, value in {"loss": loss, **metrics}.items():
                totals[key] = totals.get(key, 0.0) + float(value) / rounds
        if self.folder is not None:
            caption_sheet(self.pipeline(), self.folder.captions, out_dir)
        if self.config.clips is None or self.config.clips.share < 1:
            sample_sheets(self.pipeline(), out_dir)
        return totals

    def pipeline(self) -> Pipeline:
        """The networks as they are now, as a pipeline that opens streams."""
        module = self.module
        networks = Networks(self.tokenizer, module.dit, module.text_encoder, module.motion_encoder)
        checkpoint = checkpoint_config(self.config, module, self.tokenizer, self.tokenizer_digest)
        return Pipeline("in training", checkpoint, networks, self.vocabulary, "in training")

    def export(self, directory: Path) -> None:
        """Write a checkpoint directory that `streamgen.load_pipeline` opens."""
        checkpoint = checkpoint_config(self.config, self.module, self.tokenizer, self.tokenizer_digest)
        write_checkpoint(checkpoint, self.module, self.vocabulary, Path(self.config.tokenizer), directory)


def beginnings(windows: WindowConfig, frames: int) -> WindowConfig:
    """Windows that are the first `frames` latent frames of a clip behind one or two clean ones."""
    return replace(
        windows,
        frames=frames,
        min_gap_prefix=1,
        gap_share=0.0,
        forcing_share=0.0,
        short_prefix_share=1.0,
        no_motion=silent(windows).no_motion,
    )


def silent(windows: WindowConfig) -> WindowConfig:
    """Windows mostly without tracks (but for drags): they would give away what the words have to tell."""
    return replace(windows, no_motion=max(windows.no_motion, 0.8))


def build_network(
    network: NetworkConfig, tokenizer: VideoTokenizerConfig, vocabulary: int, plan: ChunkPlan, seed: int
) -> CausalFlow:
    """A freshly initialised network; a function of the sizes and the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
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
    return CausalFlow(dit, text, motion, plan)


def load_networks(module: CausalFlow, directory: Path) -> None:
    """Take DiT, text and motion encoder from a checkpoint directory.

    Raises:
        CheckpointError: missing or damaged weights, or networks of other sizes.
    """
    tensors = read_tensors(directory / MODEL)
    for part, network in (
        ("dit", module.dit),
        ("text_encoder", module.text_encoder),
        ("motion_encoder", module.motion_encoder),
    ):
        load_into(network, part_of(tensors, part), f"{directory / MODEL} ({part})")


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
    config: CausalRun, module: CausalFlow, tokenizer: VideoTokenizer, digest: str
) -> CheckpointConfig:
    """What a checkpoint of this run says of itself."""
    plan = config.plan
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
    checkpoint: CheckpointConfig, module: CausalFlow, vocabulary: Vocabulary, tokenizer: Path, directory: Path
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
