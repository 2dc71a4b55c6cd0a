"""Where a stream's noise comes from: an argument of the rollout, a function of (seed, chunk) alone."""

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from ..errors import InputError


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

    Args:
        ahead: draw what the next chunk will ask for in a thread, while this one is computed; by default where
            a GPU computes it. The numbers are the same.
    """

    def __init__(
        self,
        seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        ahead: bool | None = None,
    ) -> None:
        self.seed, self.device, self.dtype = seed, device, dtype
        self._ahead = _Ahead(self._numbers) if (device.type == "cuda" if ahead is None else ahead) else None

    @property
    def identity(self) -> str:
        """See `NoiseSource`."""
        return seed_identity(self.seed)

    def initial(self, chunk: int, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource`."""
        return self._draw("initial|{}", chunk, shape)

    def renoise(self, chunk: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource`."""
        return self._draw(f"renoise|{{}}|{step}", chunk, shape)

    def commit(self, chunk: int, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource`."""
        return self._draw("commit|{}", chunk, shape)

    def _draw(self, place: str, chunk: int, shape: tuple[int, ...]) -> Tensor:
        """What belongs to a place of a chunk, on the device."""
        drawn = self._numbers if self._ahead is None else self._ahead.drawn
        # from pinned memory where that is another device, so that the host goes on while it is copied
        return drawn(place, chunk, shape).to(self.device, non_blocking=True)

    def _numbers(self, place: str, chunk: int, shape: tuple[int, ...]) -> Tensor:
        """The same on the host."""
        place = place.format(chunk)
        digest = hashlib.blake2b(f"{self.seed}|{place}".encode(), digest_size=8).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big") >> 1)
        # not from torch's defaults, which a caller may have changed
        made = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
        made = made.to(self.dtype)
        return made.pin_memory() if self.device.type == "cuda" else made


class _Ahead:
    """Makes the draws of the next chunk while this one's are used."""

    def __init__(self, numbers: Callable[[str, int, tuple[int, ...]], Tensor]) -> None:
        self._numbers, self._worker = numbers, ThreadPoolExecutor(1, "streamgen-noise")
        self._coming: dict[tuple[str, int, tuple[int, ...]], Future[Tensor]] = {}
        self._asking = threading.Lock()

    def drawn(self, place: str, chunk: int, shape: tuple[int, ...]) -> Tensor:
        """A draw, and the one of the next chunk on its way."""
        with self._asking:
            coming = self._coming.pop((place, chunk, shape), None)
            # what nobody came for (a stream that went elsewhere, another length) is given up
            self._coming = {key: draw for key, draw in self._coming.items() if key[1] in (chunk, chunk + 1)}
            following = (place, chunk + 1, shape)
            if following not in self._coming:
                self._coming[following] = self._worker.submit(self._numbers, *following)
        return self._numbers(place, chunk, shape) if coming is None else coming.result()


def seed_identity(seed: int) -> str:
    """The identity of the draws of a seed."""
    return f"seed {seed}"


def checked_source(noise: NoiseSource) -> NoiseSource:
    """A caller's source of draws, which has to have a name.

    Raises:
        InputError: it has none.
    """
    if not hasattr(noise, "identity") or not isinstance(noise.identity, str) or not noise.identity:
        raise InputError("noise: expected a source with an identity, a text for snapshots and timelines")
    return noise
