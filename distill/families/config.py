"""Settings of a stage that trains a diffusion transformer, of either family of models."""

from dataclasses import dataclass, field
from typing import Any

from models.context import ChunkPlan

from ..clips.config import ClipFolderConfig
from ..config import RunConfig, require
from ..latent_cache import CacheConfig
from ..scenes import SceneConfig
from ..windows import WindowConfig
from ..words.heads import WordsConfig


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the tiny family's DiT and its encoders; channel counts that follow from one another are not
    repeated here. `patch_stride` below `patch` lets tokens overlap (`models.patches`); null: they do not. Of
    `text_towers` encoders side by side, `text_dim` wide together, the words stage's is the last.
    """

    dim: int = 256
    layers: int = 6
    heads: int = 4
    ffn_dim: int = 1024
    patch: int = 2
    text_dim: int = 128
    text_layers: int = 2
    text_length: int = 24
    text_towers: int = 1
    motion_channels: int = 16
    motion_hidden: int = 32
    patch_stride: int | None = None

    def __post_init__(self) -> None:
        stride = self.patch if self.patch_stride is None else self.patch_stride
        fits = stride > 0 and self.patch % stride == 0
        expected = f"null, or a number that divides network.patch ({self.patch})"
        require(fits, "network.patch_stride", expected, stride)


@dataclass(frozen=True)
class WanTeacher:
    """The sizes of a teacher whose folder has published files, which do not say them: `model` and `overrides`
    as in `WanTraining`.
    """

    model: str = "wan-1.3b-motion"
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class WanTraining:
    """A model of the Wan family to be trained.

    Attributes:
        model: a name of `configs/model`, or a folder that has a `config.yaml` of this family.
        weights: the folder with the frozen parts, VAE and text encoder, published or converted.
        overrides: changes of the model's config, dotted `key=value`, such as `height=320`.
        text_encoder: a folder or hub name, over what the weights folder and the model's config say.
        text_device: where captions are encoded; the encoder is freed when they are.
        text_cache: the folder that keeps encoded captions.
        no_text: the caption that stands for no text, where text is dropped and where it is guided away from.
        teacher: the model of a teacher of other sizes; null where it is the model, or says itself what it is.
    """

    weights: str
    model: str = "wan-1.3b-motion"
    overrides: tuple[str, ...] = ()
    text_encoder: str | None = None
    text_device: str = "cpu"
    text_cache: str = "runs/cache/prompts"
    no_text: str = ""
    teacher: WanTeacher | None = None

    def __post_init__(self) -> None:
        require(bool(self.weights.strip()), "wan.weights", "a folder", repr(self.weights))


@dataclass(frozen=True)
class DiffusionRun(RunConfig):
    """Config of a stage that trains a diffusion transformer on latents of the world or of own clips.

    `tokenizer` is an export of the tokenizer stage or a checkpoint directory; `init` a checkpoint directory
    whose networks training starts from, null for random ones; `words` where the text encoder comes from
    without it, and what it is to keep; `clips` a folder of own clips instead of those of `scenes`, or beside
    them; `sampling` what the result streams with by default. With `wan` the model is one of the Wan family:
    `tokenizer`, `network`, `scenes`, `words` and `cache` are not used then, and `init` may be a folder of
    published files.
    """

    wan: WanTraining | None = None
    tokenizer: str = "runs/tiny/tokenizer/export"
    init: str | None = None
    network: NetworkConfig = field(default_factory=NetworkConfig)
    plan: ChunkPlan = field(default_factory=ChunkPlan)
    scenes: SceneConfig = field(default_factory=SceneConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    clips: ClipFolderConfig | None = None
    windows: WindowConfig = field(default_factory=WindowConfig)
    words: WordsConfig = field(default_factory=WordsConfig)
    sampling: dict[str, Any] = field(default_factory=dict)

    @property
    def needs_clips(self) -> bool:
        """Whether the stage trains on clips at all."""
        return True
