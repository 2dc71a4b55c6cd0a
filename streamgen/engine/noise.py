"""Where a stream's noise comes from: an argument of the rollout, a function of (seed, chunk) alone."""

import hashlib
from typing import Protocol

import torch
from torch import Tensor


class NoiseSource(Protocol):
    """Standard normal draws for chunk i. Another source (a reference's draws, a motion prior) can take its
    place.

    `identity` names it in snapshots and timelines: a stream goes on with draws of the same identity alone.
    """

    @property
    def identity(self) -> str:
        """A name that no source with other draws has."""
        ...

    def initial(self, chunk: int, shape: tuple[int, ...]) -> Tensor:
        """What denoising of the chunk starts from."""
        ...

    def renoise(self, chunk: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """Fresh noise after step `step` of a re-noising sampler."""
        ...

    def commit(self, chunk: int, shape: tuple[int, ...]) -> Tensor:
        """Noise that the finished chunk gets at the context noise level; the same at every recache."""
        ...


class SeededNoise:
    """Draws that do not depend on what was drawn before, so any chunk can be repeated or skipped to.

    Drawn on the CPU in float32, so that all devices get the same numbers.
    """

    def __init__(self, seed: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.seed, self.device, self.dtype = seed, device, dtype

    @property
    def identity(self) -> str:
        """See `NoiseSource`."""
        return seed_identity(self.seed)

    def initial(self, chunk: int, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource`."""
        return self._draw(f"initial|{chunk}", shape)

    def renoise(self, chunk: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource`."""
        return self._draw(f"renoise|{chunk}|{step}", shape)

    def commit(self, chunk: int, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource`."""
        return self._draw(f"commit|{chunk}", shape)

    def _draw(self, place: str, shape: tuple[int, ...]) -> Tensor:
        digest = hashlib.blake2b(f"{self.seed}|{place}".encode(), digest_size=8).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big") >> 1)
        # not from torch's defaults, which a caller may have changed
        made = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
        if self.device.type == "cuda":
            # from pinned memory, so that the host goes on while it is copied
            return made.to(self.dtype).pin_memory().to(self.device, non_blocking=True)
        return made.to(self.device, self.dtype)


def seed_identity(seed: int) -> str:
    """The identity of the draws of a seed."""
    return f"seed {seed}"
