"""A chunk as one function of tensors: all of its steps, or its commit.

Nothing in it is a number of the host but what is in its `ProgramKey`: where the chunk lies in the ring, what
of the ring is filled, draws, words, motion, modulation and strengths are tensors. So a compiler traces it as
one graph, and what a device did once it can do again (CUDA graphs) for every chunk with the same key.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.attention import attend
from models.rope import RotaryTables, rotate

from ..guidance import joint_guidance
from ..sampler import denoise_chunk
from .fused import Modulation

# of a pass: noisy latents, motion, modulation, words, context
Network = Callable[
    [Tensor, Tensor | None, Modulation, tuple[Sequence[Tensor], Sequence[Tensor]], "ProgramContext"], Tensor
]


@dataclass(frozen=True)
class ProgramKey:
    """What a program is made for.

    Attributes:
        frames: latent frames of the chunk.
        full: whether the window is; before, a mask hides what of the ring is not filled.
        turns: whether the sink has to be turned to where this chunk sees it.
        words: tokens of a text.
        branches: 1, or the passes of guidance that a step takes: 2 without motion, 3 with.
        sigmas: noise levels of the steps; none of a commit.
        renoise: whether steps are made noisy anew.
    """

    frames: int
    full: bool
    turns: bool
    words: int
    branches: int = 1
    sigmas: tuple[float, ...] = ()
    renoise: bool = False


@dataclass(frozen=True)
class ProgramContext:
    """The `AttentionContext` of a program: nothing in it but tensors.

    Attributes:
        keys, values: the whole ring, of each layer `(1, S, H, D)`: as one tensor of all layers a compiler
            takes each write for one of the whole and copies what it has not changed.
        tables: rotation of the chunk's tokens.
        places: `(R,)` int64, where in S they lie.
        mask: `(1, 1, 1, S)`, what of the ring is filled; None where all of it is.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    tables: RotaryTables
    places: Tensor
    mask: Tensor | None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `AttentionContext`."""
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(1, self.places, rotate(k, self.tables))
        values.index_copy_(1, self.places, v)
        return attend(rotate(q, self.tables), keys, values, self.mask)


@dataclass(frozen=True)
class Sink:
    """The sink's keys as they are kept, `(layers, 1, P, H, D)`, and the rotation that they get."""

    keys: Tensor
    tables: RotaryTables

    def turn(self, ring_keys: Sequence[Tensor]) -> None:
        """Let the sink lie in the ring where this chunk sees it; a layer at a time, as wide as one layer."""
        for kept, keys in zip(self.keys, ring_keys, strict=True):
            keys[:, : kept.shape[1]] = rotate(kept, self.tables)


@dataclass(frozen=True)
class ChunkInputs:
    """What a program reads and writes, all of it static.

    Attributes:
        latents: `(1, T, C, h, w)`: noise before the first step; of a commit, what is committed.
        fresh: noise behind each step but the last.
        branches: motion `(1, T, channels, h, w)` or None, and words, of each pass of a step.
        modulations: of each step.
        context: what the chunk attends to.
        sink: of a stream that has one.
        weights: of text and motion guidance, where a step has several passes.
        made: `(1, T, C, h, w)`, clean latents.
        finite: for the noise, and velocity and clean latents of each step, whether they are.
    """

    latents: Tensor
    fresh: tuple[Tensor, ...]
    branches: tuple[tuple[Tensor | None, tuple[list[Tensor], list[Tensor]]], ...]
    modulations: tuple[Modulation, ...]
    context: ProgramContext
    sink: Sink | None
    weights: tuple[Tensor, Tensor] | None
    made: Tensor
    finite: Tensor


def denoise_program(network: Network, inputs: ChunkInputs, key: ProgramKey) -> None:
    """All steps of a chunk."""
    _turn(inputs, key)
    steps = iter(inputs.modulations)
    flags = [torch.isfinite(inputs.latents).all()]

    def velocity(x: Tensor, sigma: float) -> Tensor:
        modulation = next(steps)
        passes = [network(x, motion, modulation, words, inputs.context) for motion, words in inputs.branches]
        if inputs.weights is None:
            return passes[0]
        full, silent, *words_alone = passes
        return joint_guidance(full, silent, words_alone[0] if words_alone else full, *inputs.weights)

    def watch(step: int, name: str, x: Tensor) -> None:
        flags.append(torch.isfinite(x).all())

    fresh = inputs.fresh.__getitem__ if key.renoise else None
    inputs.made.copy_(denoise_chunk(velocity, inputs.latents, key.sigmas, fresh, watch=watch))
    inputs.finite.copy_(torch.stack(flags))


def commit_program(network: Network, inputs: ChunkInputs, key: ProgramKey) -> None:
    """The pass that writes a finished chunk's keys and values."""
    _turn(inputs, key)
    motion, words = inputs.branches[0]
    network(inputs.latents, motion, inputs.modulations[0], words, inputs.context)


def _turn(inputs: ChunkInputs, key: ProgramKey) -> None:
    if key.turns and inputs.sink is not None:
        inputs.sink.turn(inputs.context.keys)
