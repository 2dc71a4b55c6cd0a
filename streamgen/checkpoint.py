"""Checkpoint directories: `config.yaml`, `model.safetensors`, `tokenizer.safetensors`, `vocabulary.txt` and a
card.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.causal_dit import CausalDiTConfig
from models.context import ChunkPlan
from models.motion_encoder import MotionEncoderConfig
from models.text_encoder import TextEncoderConfig, Vocabulary
from models.video_tokenizer import VideoTokenizerConfig

from .digest import tensor_digest
from .errors import CheckpointError, InputError
from .geometry import LatentGeometry
from .settings import StreamSettings
from .structured import StructureError, build, read_yaml
from .suggest import shorten

FORMAT = 1
MODEL, TOKENIZER, VOCABULARY, CONFIG = (
    "model.safetensors",
    "tokenizer.safetensors",
    "vocabulary.txt",
    "config.yaml",
)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """A checkpoint's `config.yaml`: sizes of all parts, and the settings it was made for.

    `tokenizer_digest` is the `tensor_digest` of the tokenizer that the DiT was trained on; another one is
    refused.
    """

    format: int
    family: str
    height: int
    width: int
    fps: int
    tokenizer: VideoTokenizerConfig
    tokenizer_digest: str
    dit: CausalDiTConfig
    text_encoder: TextEncoderConfig
    motion_encoder: MotionEncoderConfig
    plan: ChunkPlan
    sampling: StreamSettings

    def __post_init__(self) -> None:
        for what, found, expected in (
            ("dit.latent_channels", self.dit.latent_channels, self.tokenizer.latent_channels),
            ("dit.motion_channels", self.dit.motion_channels, self.motion_encoder.channels),
            ("dit.text_dim", self.dit.text_dim, self.text_encoder.dim),
            ("motion_encoder.temporal", self.motion_encoder.temporal, self.tokenizer.temporal),
        ):
            if found != expected:
                raise ValueError(f"{what}: expected {expected} to fit the other parts, found {found}")
        self.geometry()

    def geometry(self) -> LatentGeometry:
        """Picture and latent sizes."""
        tokenizer = self.tokenizer
        return LatentGeometry(
            self.height,
            self.width,
            tokenizer.patch,
            tokenizer.temporal,
            tokenizer.latent_channels,
            self.dit.patch,
            self.fps,
        )


def read_config(directory: Path) -> CheckpointConfig:
    """The config of a checkpoint directory.

    Raises:
        CheckpointError: missing or unreadable, an unknown or missing key, a value of another type or out of
            range.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise CheckpointError(f"checkpoint {directory}: expected a directory with {CONFIG}, found none")
    try:
        content = read_yaml(path)
    except StructureError as error:
        raise CheckpointError(str(error)) from None
    if content.get("format", FORMAT) != FORMAT:
        raise CheckpointError(f"{path}: expected format {FORMAT}, found {shorten(content['format'])}")
    try:
        return build(CheckpointConfig, with_settings(content))
    except (StructureError, InputError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def with_settings(content: dict[str, Any]) -> dict[str, Any]:
    """A config's content with its plan and settings built: these take sink and window from the plan.

    Raises:
        StructureError, InputError: a plan or a setting that does not fit.
    """
    plan, changes = content.get("plan"), content.get("sampling")
    if not isinstance(plan, Mapping) or not isinstance(changes, Mapping):
        return content
    plan = build(ChunkPlan, plan, "plan.")
    base = StreamSettings(sink_frames=plan.sink_frames, window_frames=plan.window_frames)
    try:
        return content | {"plan": plan, "sampling": base.updated(changes)}
    except InputError as error:
        raise InputError(f"sampling: {error}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        CheckpointError: missing, truncated or another format.
    """
    if not path.is_file():
        raise CheckpointError(f"weights {path}: no such file")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"weights {path}: truncated or not safetensors ({error})") from None


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load weights into a module, cast to its dtypes.

    Raises:
        CheckpointError: the first keys that are missing or surplus, or the first tensor of another shape.
    """
    check_tensors(module.state_dict(), tensors, where)
    module.load_state_dict(dict(tensors))


def check_tensors(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise CheckpointError where tensors are not those that a module has (`own`): see `load_into`."""
    for what, names in (("missing", set(own) - set(tensors)), ("surplus", set(tensors) - set(own))):
        if names:
            some = ", ".join(sorted(names)[:3])
            raise CheckpointError(
                f"{where}: {len(names)} {what} tensors ({some}{', ...' if len(names) > 3 else ''})"
            )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{where}: {name}: expected shape {tuple(own[name].shape)}, found {tuple(tensor.shape)}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{where}: {name}: expected finite numbers, found NaN or infinity")


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under `prefix.`, without it."""
    return {
        name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(prefix + ".")
    }


def check_tokenizer(tensors: Mapping[str, Tensor], config: CheckpointConfig, where: str) -> None:
    """Raise CheckpointError where the tokenizer is not the one that the DiT was trained on."""
    found = tensor_digest(tensors)
    if found != config.tokenizer_digest:
        raise CheckpointError(
            f"{where}: expected the tokenizer that this model was trained on "
            f"({config.tokenizer_digest[:12]}), "
            f"found another ({found[:12]})"
        )


def read_vocabulary(path: Path, config: TextEncoderConfig) -> Vocabulary:
    """The words of a checkpoint.

    Raises:
        CheckpointError: missing, unreadable, or of another size than the text encoder.
    """
    try:
        vocabulary = Vocabulary(path.read_text(encoding="utf-8").split())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"vocabulary {path}: {error}") from None
    if len(vocabulary) != config.vocabulary:
        raise CheckpointError(
            f"vocabulary {path}: expected {config.vocabulary - 2} words, found {len(vocabulary) - 2}"
        )
    return vocabulary
