"""What tests of live input share: clips of noise that moves, and streams that listen to them."""

from typing import Any

import torch
from torch import Tensor

from streamgen import Pipeline, Session
from tests.streams import RED

LISTENING = {"steps": 3, "strength": 0.9}


def clip(frames: int, seed: int = 0, size: tuple[int, int] = (32, 32)) -> Tensor:
    """Blocks of random colours that change from frame to frame, uint8 `(T, H, W, 3)`."""
    draw = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 255, (frames, size[0] // 8, size[1] // 8, 3), generator=draw, dtype=torch.uint8)
    return blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)


def listening(pipeline: Pipeline, frames: Tensor | None, **more: Any) -> Session:
    """A stream that hears a clip from its first frame on."""
    settings = LISTENING | more.pop("settings", {})
    session = pipeline.open(more.pop("prompt", RED), settings=settings, **more)
    if frames is not None:
        session.listen(frames)
    return session


def latents_of(session: Session, chunks: int) -> Tensor:
    """Latents of the next chunks."""
    return torch.cat([next(session).latents for _ in range(chunks)], 1)
