"""The tiny family's checkpoints: their `config.yaml`, and what must fit what in the directory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from models.causal_dit import CausalDiTConfig
from models.context import ChunkPlan
from models.motion_encoder import MotionEncoderConfig
from models.text_encoder import TextEncoderConfig, Vocabulary
from models.video_tokenizer import VideoTokenizerConfig

from ..checkpoints.digest import tensor_digest
from ..checkpoints.directory import CONFIG, FORMAT, check_heads, with_settings
from ..engine.geometry import LatentGeometry
from ..errors import CheckpointError, InputError
from ..stream.settings import StreamSettings
from ..structured import StructureError, build, read_yaml
from ..suggest import shorten


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
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
        check_heads(self.dit)
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
            self.dit.patch_stride,
        )


def read_tiny_config(directory: Path) -> TinyConfig:
    """The config of a checkpoint directory.

    Raises:
        CheckpointError: missing or unreadable, an unknown or missing key, a value of another type or out of
            range.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint {directory}: expected a directory with {CONFIG}, found none; "
            "streamgen adopt makes one of published Wan weights"
        )
    try:
        content = read_yaml(path)
    except StructureError as error:
        raise CheckpointError(str(error)) from None
    if content.get("format", FORMAT) != FORMAT:
        raise CheckpointError(f"{path}: expected format {FORMAT}, found {shorten(content['format'])}")
    try:
        return build(TinyConfig, with_settings(content))
    except (StructureError, InputError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def check_tokenizer(tensors: Mapping[str, Tensor], config: TinyConfig, where: str) -> None:
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
