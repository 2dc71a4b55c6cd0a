"""Sizes of pictures and latents, and the mapping between pixel frames and latent frames."""

from dataclasses import dataclass

from models.context import ChunkPlan
from models.patches import Patches

__all__ = ["ChunkPlan", "LatentGeometry"]


@dataclass(frozen=True)
class LatentGeometry:
    """How a stream's pictures map to latents.

    Pixel frame 0 makes latent frame 0, each later latent frame is `temporal` pixel frames.

    Args:
        height, width: picture size in pixels.
        spatial, temporal: compression of the tokenizer.
        latent_channels: channels of a latent frame.
        patch: side of a DiT token in latent cells.
        fps: frames per second of the model.
        patch_stride: latent cells from one token to the next; None: `patch`.

    Raises:
        ValueError: the picture does not divide into tokens.
    """

    height: int
    width: int
    spatial: int = 8
    temporal: int = 4
    latent_channels: int = 16
    patch: int = 2
    fps: int = 16
    patch_stride: int | None = None

    def __post_init__(self) -> None:
        step, least = self.spatial * self.patches.stride, self.spatial * self.patch
        if self.height < least or self.width < least or self.height % step or self.width % step:
            beside = f" from {least} on" if least > step else ""
            raise ValueError(
                f"picture size must be a multiple of {step} pixels{beside}, found {self.height}x{self.width}"
            )

    @property
    def patches(self) -> Patches:
        """How a latent frame is cut into DiT tokens."""
        return Patches.of(self.patch, self.patch_stride)

    @property
    def latent_height(self) -> int:
        return self.height // self.spatial

    @property
    def latent_width(self) -> int:
        return self.width // self.spatial

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of DiT tokens."""
        return self.patches.grid(self.latent_height, self.latent_width)

    @property
    def tokens_per_frame(self) -> int:
        """DiT tokens per latent frame."""
        rows, columns = self.token_grid
        return rows * columns

    def latent_frames(self, frames: int) -> int:
        """Latent frames that hold `frames` pixel frames from the start of a stream (the last one may be part
        empty).
        """
        return 0 if frames <= 0 else 1 + -(-(frames - 1) // self.temporal)

    def frames(self, latent_frames: int) -> int:
        """Pixel frames of the first `latent_frames` latent frames."""
        return 0 if latent_frames <= 0 else 1 + self.temporal * (latent_frames - 1)

    def latent_of(self, frame: int) -> int:
        """The latent frame that holds a pixel frame."""
        return 0 if frame <= 0 else 1 + (frame - 1) // self.temporal

    def frame_range(self, latent_start: int, count: int) -> tuple[int, int]:
        """Pixel frames `[start, stop)` of `count` latent frames from `latent_start`."""
        return self.frames(latent_start), self.frames(latent_start + count)
