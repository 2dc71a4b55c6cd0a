"""The runner whose passes are compiled programs (torch.compile), on any device torch compiles for.

The plain network reads its cache at places that are numbers of the host and others in every chunk, so that
a compiler begins anew each time. Here a pass gets them as one small tensor, and reads the cache as a whole:
once the window is full that is just what the plain network reads, and before, a mask hides what is not
filled. So there are two programs for each length of chunks, whatever words, motion, sliders and steps come.
Everything else (chunks of the sink, joint recaches, gradient, the picture decoder) the plain runner does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.attention import attend
from models.causal_dit import CausalDiT, TextContext
from models.kv_cache import CacheView
from models.rope import RotaryTables, rotate
from models.video_codec import VideoCodec

from .guidance import Pass
from .runner import PassRunner

# largest difference to a chunk of the plain runner from the same state in float32, in standard deviations
TOLERANCE = 2e-4


@dataclass(frozen=True)
class ProgramContext:
    """The `AttentionContext` of a program: nothing in it but tensors.

    Attributes:
        keys, values: the whole ring, `(layers, B, S, H, D)`.
        tables: rotation of the chunk's tokens.
        places: `(R,)` int64, where in S they lie.
        mask: `(1, 1, 1, S)`, what of the ring is filled; None where all of it is.
    """

    keys: Tensor
    values: Tensor
    tables: RotaryTables
    places: Tensor
    mask: Tensor | None

    @classmethod
    def of(cls, view: CacheView) -> "ProgramContext":
        """What a chunk attends to. Made on the ring's device by counting, so nothing is copied there."""
        ring, device = view.ring, view.ring.device
        runs = [torch.arange(place.start, place.stop, device=device) for _, place in view.places]
        slots, mask = ring.keys.shape[2], None
        if view.end < slots:
            mask = (torch.arange(slots, device=device) < view.end)[None, None, None]
            # nobody's content any more, but a mask does not hide what is not finite
            ring.keys[:, :, view.end :] = 0
            ring.values[:, :, view.end :] = 0
        return cls(ring.keys, ring.values, view.tables, torch.cat(runs), mask)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `AttentionContext`."""
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(1, self.places, rotate(k, self.tables))
        values.index_copy_(1, self.places, v)
        return attend(rotate(q, self.tables), keys, values, self.mask)


class CompiledRunner(PassRunner):
    """Passes of the network as compiled programs.

    Args:
        compiler: makes a program of a function; by default inductor, whole functions or none.
    """

    name = "compile"

    def __init__(
        self,
        dit: CausalDiT,
        codec: VideoCodec | None = None,
        compiler: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] | None = None,
    ) -> None:
        super().__init__(dit, codec)
        compiler = compiler or (lambda function: torch.compile(function, fullgraph=True, dynamic=False))
        self._program = compiler(_forward)

    def serves(self, view: CacheView) -> bool:
        """See `PassRunner`; no chunk of the sink."""
        return super().serves(view) and not view.sink_new

    def _prepared(self, view: CacheView, text: TextContext, motion: Tensor | None) -> tuple[Any, ...]:
        """What all passes of a chunk share."""
        for layer in range(self.dit.config.layers):
            view.rotate_sink(layer)
        rows, columns = view.ring.shape.grid
        patch, channels = self.dit.config.patch, self.dit.config.motion_channels
        if motion is None and channels:
            size = (1, view.frames, channels, rows * patch, columns * patch)
            motion = torch.zeros(size, device=view.ring.device, dtype=view.ring.dtype)
        return (
            ProgramContext.of(view),
            text.keys,
            text.values,
            None if motion is None else motion.contiguous(),
        )

    def network_pass(self, view: CacheView, text: TextContext, motion: Tensor | None) -> Pass:
        """See `PassRunner`."""
        prepared = self._prepared(view, text, motion)

        def run(x: Tensor, timestep: float, strengths: tuple[float, float] | None = None) -> Tensor:
            timesteps = torch.full(x.shape[:2], timestep, device=x.device)
            return self._run(prepared, x, timesteps, strengths)

        return run

    def _run(
        self,
        prepared: tuple[Any, ...],
        x: Tensor,
        timesteps: Tensor,
        strengths: tuple[float, float] | None,
    ) -> Tensor:
        """One pass; strengths of 0 are no wish, as for the clean frames of a commit."""
        wishes = None
        if self.dit.config.guidance:
            told = strengths or (0.0, 0.0)
            wishes = torch.stack([torch.full(x.shape[:2], each, device=x.device) for each in told], -1)
        # a program of its own for views and for what carries gradient would be one more each
        with torch.no_grad():
            return self._program(self.dit, x.contiguous(), timesteps, wishes, *prepared)


def _forward(
    dit: CausalDiT,
    x: Tensor,
    timesteps: Tensor,
    strengths: Tensor | None,
    context: ProgramContext,
    keys: tuple[Tensor, ...],
    values: tuple[Tensor, ...],
    motion: Tensor | None,
) -> Tensor:
    """A pass as a function of tensors."""
    velocity: Tensor = dit(x, timesteps, TextContext(keys, values), context, motion, strengths)
    return velocity
