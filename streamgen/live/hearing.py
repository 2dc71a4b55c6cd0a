"""The streaming encoder of a stream's input, and pictures as latents."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from models.video_codec import StreamState, VideoCodec

from .taken import Taken

_COUNTS = ("latent_frames", "following", "frames", "repeated", "skipped")


@dataclass(frozen=True, eq=False)
class Heard:
    """What a stream has heard of its input. A value.

    Attributes:
        on: whether it listens; else the input is over.
        encoder: the codec's state behind the last frame.
        latent_frames: that were encoded since the encoder began.
        following: number of the frame behind the last one taken.
        last: that frame, uint8 `(H, W, 3)`.
        frames, repeated, skipped: taken, of these shown once more, and numbers that no chunk took.
        digest: of all frames taken, in order, 32 hex digits.
    """

    on: bool
    encoder: StreamState
    latent_frames: int
    following: int
    last: Tensor
    frames: int = 0
    repeated: int = 0
    skipped: int = 0
    digest: str = ""

    def silent(self) -> "Heard":
        """Once the input is over."""
        return replace(self, on=False)

    def to_json(self) -> dict[str, Any]:
        """What a record says of it."""
        return {name: vars(self)[name] for name in ("frames", "repeated", "skipped", "digest")}


@torch.no_grad()
def hear(codec: VideoCodec, before: Heard | None, taken: Taken, first: bool) -> tuple[Heard, Tensor]:
    """Encode the next frames.

    Args:
        before: what was heard; None, or not on: the input begins.
        first: whether these frames begin with frame 0 of the stream, which is a latent frame by itself.

    Returns:
        what is heard then, and latents `(1, T, C, h, w)` as the network sees them, in the codec's precision.
    """
    mean = codec.latent_mean
    video = _as_video(taken.frames, mean)
    begins = before is None or not before.on
    if begins:
        state: Any = codec.initial_state(1, mean.device, mean.dtype)
        place = 0
        if not first:
            # latent frame 0 is one frame alone: the first one stands in for it
            _, state = codec.encode_next(video[:, :1], state)
            place = 1
    else:
        assert before is not None
        state, place = before.encoder, before.latent_frames
    raw, state = codec.encode_next(video, state)
    latents = codec.normalize(raw, place)
    old = before or Heard(True, state, 0, taken.numbers[0], taken.frames[-1])
    steps = [n - last for last, n in pairwise((old.following - 1, *taken.numbers))]
    heard = Heard(
        True,
        state,
        place + raw.shape[1],
        taken.numbers[-1] + 1,
        taken.frames[-1].clone(),
        old.frames + len(taken.numbers),
        old.repeated + steps.count(0),
        old.skipped + sum(step - 1 for step in steps if step > 1),
        _chained(old.digest, taken.frames),
    )
    return heard, latents


@torch.no_grad()
def still_latents(codec: VideoCodec, picture: Tensor, start: int, count: int) -> Tensor:
    """Latents `(1, count, C, h, w)` of a picture that stands still, as from latent frame `start` of a stream
    on.

    Args:
        picture: uint8 `(H, W, 3)`.
    """
    mean, ahead = codec.latent_mean, int(start > 0)
    frames = 1 + 4 * (count + ahead - 1)
    video = _as_video(picture[None], mean).expand(-1, frames, -1, -1, -1)
    raw, _ = codec.encode_next(video, codec.initial_state(1, mean.device, mean.dtype))
    return codec.normalize(raw, 0)[:, ahead:]


def heard_tensors(heard: Heard) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """As tensors and plain values, for a snapshot."""
    tensors = {f"encoder.{name}": x.clone() for name, x in heard.encoder.tensors().items()}
    names = ("on", "latent_frames", "following", "frames", "repeated", "skipped", "digest")
    return tensors | {"last": heard.last.clone()}, {name: vars(heard)[name] for name in names}


def heard_of(codec: VideoCodec, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Heard:
    """Inverse of `heard_tensors`; KeyError or ValueError where it is damaged."""
    prefix = "encoder."
    held = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    state = codec.state_from_tensors(held)
    counts = {name: int(values[name]) for name in _COUNTS}
    return Heard(
        bool(values["on"]), state, last=tensors["last"].cpu(), digest=str(values["digest"]), **counts
    )


def _as_video(frames: Tensor, like: Tensor) -> Tensor:
    """uint8 `(T, H, W, 3)` as `(1, T, 3, H, W)` in [-1, 1]."""
    return frames.to(like.device).movedim(-1, 1)[None].to(like.dtype).div(127.5).sub(1.0)


def _chained(before: str, frames: Tensor) -> str:
    for frame in frames:
        data = before.encode() + frame.contiguous().numpy().tobytes()
        before = hashlib.blake2b(data, digest_size=16).hexdigest()
    return before
