"""Static buffers: where programs read what a chunk brings, at addresses that never change.

A captured program knows addresses and nothing else. So everything that a chunk brings (draws, motion, words,
modulation, places in the ring) is copied into buffers that stay, and what it makes is copied out. One stream
at a time holds them: a lease lasts for a chunk. The ring itself is each stream's own.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from models.causal_dit import TextContext


class StaticBuffers:
    """Buffers by name, shape and dtype, each made when it is first asked for, and shared by all programs of a
    runner.

    Use: hold `lease()`, `put` what a chunk brings, run the program, copy what it made.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._made: dict[tuple[str, tuple[int, ...], torch.dtype], Tensor] = {}
        # what lies in buffers that are seldom written, so that they are not written again
        self._held: dict[str, object] = {}
        self._free = threading.RLock()

    @contextmanager
    def lease(self) -> Iterator[None]:
        """While this lasts the buffers are this thread's alone."""
        with self._free:
            yield

    def of(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A buffer; the same one for the same name, shape and dtype."""
        key = (name, tuple(shape), dtype)
        if key not in self._made:
            self._made[key] = torch.zeros(key[1], device=self.device, dtype=dtype)
        return self._made[key]

    def put(self, name: str, x: Tensor) -> Tensor:
        """The buffer of a tensor's name, shape and dtype with its numbers in it."""
        buffer = self.of(name, x.shape, x.dtype)
        buffer.copy_(x, non_blocking=True)
        return buffer

    def fill(self, name: str, shape: Sequence[int], dtype: torch.dtype, value: float) -> Tensor:
        """A buffer with one number in all places."""
        return self.of(name, shape, dtype).fill_(value)

    def put_text(self, name: str, text: TextContext) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of a text by layer, which are copied when another text comes."""
        assert text.segment is None, "a chunk reads one text"
        parts = (*text.keys, *text.values)
        buffers = [self.of(f"{name}.{i}", x.shape, x.dtype) for i, x in enumerate(parts)]
        place = f"{name} {tuple(parts[0].shape)}"
        if self._held.get(place) is not text:
            # cut short in between, nobody knows what is there
            self._held.pop(place, None)
            torch._foreach_copy_(buffers, list(parts))
            self._held[place] = text
        return buffers[: len(text.keys)], buffers[len(text.keys) :]

    def allocated_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(x.numel() * x.element_size() for x in self._made.values())
