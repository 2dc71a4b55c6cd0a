"""What a session needs of whatever turns latents into pictures and back; the state of convolutional ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .bottleneck import Posterior


class StreamState(Protocol):
    """What a stream's decoder remembers: a value that no call modifies."""

    def tensors(self) -> dict[str, Tensor]:
        """The whole state as tensors, for a snapshot; constant in size."""
        ...


class VideoCodec(Protocol):
    """Latents `(B, N, C, h, w)` to video `(B, T, 3, H, W)` in about [-1, 1] and back, whole or streaming.

    Frame 0 is latent frame 0, every later latent frame is 4 frames. `normalize` and `denormalize` map to and
    from what the diffusion network sees; `start` is the index of the first given latent frame in its stream.
    """

    latent_mean: Tensor

    def encode(self, video: Tensor) -> Posterior:
        """Posterior of a clip of any length T >= 1."""
        ...

    def encode_next(self, video: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Raw latents of a stream's next frames `(B, T, 3, H, W)`, the mean of their posterior, and the state
        after them: T is 1 + 4k in the first call, 4k later.
        """
        ...

    def decode(self, latents: Tensor, num_frames: int | None = None) -> Tensor:
        """Video of raw latents from a stream's start, `num_frames` of its frames or all."""
        ...

    def initial_state(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> Any:
        """The state before a stream's first latent frame."""
        ...

    def decode_chunk(self, latents: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Frames of the next latents, and the state after them."""
        ...

    def state_from_tensors(self, tensors: Mapping[str, Tensor]) -> Any:
        """A state from what its `tensors` gave; ValueError where it is of another codec."""
        ...

    def normalize(self, latents: Tensor, start: int) -> Tensor:
        """Latents as the diffusion network sees them."""
        ...

    def denormalize(self, latents: Tensor, start: int) -> Tensor:
        """Inverse of `normalize`."""
        ...


@dataclass(frozen=True)
class FeatureState:
    """The state of a convolutional codec: what each layer with a memory has kept, by the layer's name.

    Before the first chunk `memory` has one empty tensor that carries batch, device and dtype. `frames` counts
    what was consumed: pixel frames of an encoder, latent frames of a decoder. `part` is "new", "encoder" or
    "decoder".
    """

    memory: Mapping[str, Tensor]
    frames: int = 0
    part: str = "new"

    def tensors(self) -> dict[str, Tensor]:
        """See `StreamState`."""
        return {f"{self.part}.{name}": value for name, value in self.memory.items()} | {
            "frames": torch.tensor(self.frames)
        }

    @classmethod
    def new(cls, batch: int, device: torch.device | str, dtype: torch.dtype) -> "FeatureState":
        """The state before a stream's first chunk.

        Raises:
            ValueError: a batch below 1.
        """
        if batch < 1:
            raise ValueError(f"batch: expected at least 1, found {batch}")
        return cls({"start": torch.empty(batch, 0, device=device, dtype=dtype)})

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "FeatureState":
        """Inverse of `tensors`; ValueError where the names are not those of a state."""
        names = sorted(set(tensors) - {"frames"})
        parts = {name.split(".")[0] for name in names}
        if "frames" not in tensors or len(parts) != 1 or not parts <= {"new", "encoder", "decoder"}:
            raise ValueError(f"decoder state: expected the memory of one decoder, found {names[:3]}")
        part = parts.pop()
        memory = {name.removeprefix(part + "."): tensors[name] for name in names}
        return cls(memory, int(tensors["frames"]), part)

    def opened(self, part: str, batch: int) -> "FeatureState":
        """This state for use by one part; ValueError where it belongs to another kind of stream."""
        if self.part not in ("new", part):
            raise ValueError(f"state: expected one of the {part}, found one of the {self.part}")
        found = next(iter(self.memory.values())).shape[0]
        if found != batch:
            raise ValueError(f"state: expected a batch of {batch}, found {found}")
        return FeatureState({} if self.part == "new" else self.memory, self.frames, part)


class Memory:
    """Hands each layer what it has kept and collects what it keeps now, during one chunk.

    Args:
        read_once: whether nobody reads the state after this: it is emptied as the layers read it, so that the
            old and the new one together take the room of one.
    """

    def __init__(self, state: FeatureState, read_once: bool = False) -> None:
        self.starts = state.frames == 0
        self._old = state.memory
        self._read_once = read_once
        self.kept: dict[str, Tensor] = {}

    def past(self, slot: str, x: Tensor, frames: int) -> Tensor:
        """The last `frames` inputs of a layer, along axis 2 of `(B, C, T, H, W)`; zeros before the start.

        Raises:
            ValueError: the stream had another picture size.
        """
        old = self._old.get(slot)
        if self._read_once and isinstance(self._old, dict):
            self._old.pop(slot, None)
        shape = (*x.shape[:2], frames, *x.shape[3:])
        if old is None:
            return x.new_zeros(shape)
        if tuple(old.shape) != shape:
            raise ValueError(f"state: expected {slot} of shape {shape}, found {tuple(old.shape)}")
        return old

    def keep(self, slot: str, x: Tensor, frames: int) -> None:
        """Remember the last `frames` of `x` for the next chunk, without gradient and without its storage."""
        self.kept[slot] = x[:, :, x.shape[2] - frames :].detach().clone()

    def state(self, part: str, frames: int) -> FeatureState:
        """The state after the chunk."""
        return FeatureState(self.kept, frames, part)
