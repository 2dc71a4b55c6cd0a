"""Configs of the Wan family: `configs/model/*.yaml`, and `config.yaml` of a converted checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from models.causal_dit import CausalDiTConfig
from models.context import ChunkPlan
from models.motion_encoder import MotionEncoderConfig
from models.tiny_decoder import TinyDecoderConfig
from models.wan_vae import WanVAEConfig

from ..checkpoints.directory import check_heads, with_settings
from ..engine.geometry import LatentGeometry
from ..errors import CheckpointError, InputError
from ..stream.settings import StreamSettings
from ..structured import StructureError, build, read_yaml
from ..suggest import shorten

FORMAT = 1
FAMILY = "wan"
CONFIG = "config.yaml"
CONFIGS = Path(__file__).parents[2] / "configs" / "model"


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text encoder: UMT5-XXL, or `hashed`, random embeddings of words that need no weights.

    `dim` is the width of its embeddings and `length` the number of tokens that the network reads, zeros
    included. `source` is a folder, or a name on the hub, for where the weights directory holds no encoder.
    """

    kind: Literal["umt5", "hashed"] = "umt5"
    dim: int = 4096
    length: int = 512
    source: str = "hf://Wan-AI/Wan2.1-T2V-1.3B"


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where published files lie in a weights directory: relative names, the first that is there counts.

    `section` are the keys of a trainer's file in order of preference (`generator_ema`, `generator`, ...). A
    model that is base + LoRA has `lora` with its `lora_rank`, which is then needed; `lora_alpha` null is the
    rank.
    """

    dit: tuple[str, ...] = ()
    section: tuple[str, ...] = ("generator_ema", "generator", "model", "state_dict", "")
    lora: tuple[str, ...] = ()
    lora_rank: int | None = None
    lora_alpha: float | None = None
    vae: tuple[str, ...] = ()
    tiny_decoder: tuple[str, ...] = ()
    text_encoder: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WanConfig:
    """Sizes of all parts of a Wan-family model, how its streams are chunked and sampled, and its files. With
    `decoder: none` its streams are of latents alone, and no weights of a decoder are read; `auto` is decided
    by what a weights directory holds (`weights.with_decoder`).

    Raises:
        ValueError: parts that do not fit each other, or a picture size off the grid.
    """

    format: int
    family: str
    height: int
    width: int
    fps: int
    dit: CausalDiTConfig
    vae: WanVAEConfig
    decoder: Literal["auto", "vae", "tiny", "none"]
    tiny_decoder: TinyDecoderConfig
    text: TextConfig
    motion_encoder: MotionEncoderConfig | None
    plan: ChunkPlan
    sampling: StreamSettings
    sources: Sources = field(default_factory=Sources)
    # the eight bits that the files are in, and in which streams compute unless asked otherwise
    quantize: Literal["none", "int8", "fp8"] = "none"

    def __post_init__(self) -> None:
        motion = self.motion_encoder.channels if self.motion_encoder is not None else 0
        for what, found, expected in (
            ("family", self.family, FAMILY),
            ("dit.latent_channels", self.dit.latent_channels, self.vae.latent_channels),
            ("tiny_decoder.latent_channels", self.tiny_decoder.latent_channels, self.vae.latent_channels),
            ("dit.motion_channels", self.dit.motion_channels, motion),
            ("text.dim", self.text.dim, self.dit.text_dim),
            ("vae.spatial", self.vae.spatial, 8),
        ):
            if found != expected:
                raise ValueError(f"{what}: expected {expected} to fit the other parts, found {found}")
        check_heads(self.dit)
        self.geometry()

    @property
    def decoder_part(self) -> Literal["vae", "tiny_decoder"] | None:
        """The part of the weights that decodes pictures; none where that is not decided."""
        parts: dict[str, Literal["vae", "tiny_decoder"]] = {"vae": "vae", "tiny": "tiny_decoder"}
        return parts.get(self.decoder)

    def geometry(self) -> LatentGeometry:
        """Picture and latent sizes."""
        return LatentGeometry(
            self.height,
            self.width,
            self.vae.spatial,
            latent_channels=self.dit.latent_channels,
            patch=self.dit.patch,
            fps=self.fps,
            patch_stride=self.dit.patch_stride,
        )


def wan_model_names() -> list[str]:
    """Names of the models that need published weights."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def config_file(name: str | Path) -> Path | None:
    """The config file of a Wan-family model, by name or directory; None for other families."""
    if str(name) in wan_model_names():
        return CONFIGS / f"{name}.yaml"
    path = Path(name) / CONFIG
    if path.is_file():
        try:
            family = read_yaml(path).get("family")
        except StructureError:
            return None
        return path if family == FAMILY else None
    return None


def read_wan_config(path: Path, overrides: Sequence[str] = ()) -> WanConfig:
    """A config from its file.

    Args:
        overrides: dotted `key=value`, as `dit.layers=2` or `height=128`.

    Raises:
        CheckpointError: unreadable, an unknown or missing key, a value of another type or out of range.
    """
    try:
        content = read_yaml(path, overrides)
        if content.get("format", FORMAT) != FORMAT:
            raise CheckpointError(f"{path}: expected format {FORMAT}, found {shorten(content['format'])}")
        return build(WanConfig, with_settings(content))
    except (StructureError, InputError) as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise CheckpointError(f"{where}{error}") from None
