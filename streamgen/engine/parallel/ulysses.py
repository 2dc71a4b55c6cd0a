"""Ulysses: a pass shared out over processes (DeepSpeed-Ulysses, arXiv 2309.14509).

Each process has a slab of every latent frame, some of its rows or columns, and computes all linear layers for
its tokens alone. Around attention an all-to-all turns that into all tokens of some heads, which is what the
process's cache holds; a second one turns the result back. Keys never travel between caches, and each cache is
smaller by the number of processes. `DiTBlock` and `CacheView` are what they are: the one sees fewer tokens,
the other fewer heads.
"""

from dataclasses import replace

import torch
from torch import Tensor

from models.causal_dit import CausalDiT, CausalDiTConfig, TextContext
from models.context import AttentionContext, ChunkPlan
from models.joint_recache import JointRecache
from models.kv_cache import CacheCursor, CacheRing, CacheShape, CacheView, RopeMode
from models.rope import RotaryEmbedding3D
from models.video_codec import VideoCodec

from ...errors import InputError
from ..attention import attention_scope
from ..guidance import Conditioning, Pass, guided_passes
from ..runner import CommitTask, PlainRunner
from ..sampler import Velocity
from .mesh import Mesh

# largest difference to a chunk of one process from the same state in float32, in standard deviations
TOLERANCE = 2e-5


def slab_axis(config: CausalDiTConfig, grid: tuple[int, int], size: int) -> int:
    """The axis of latents `(B, T, C, h, w)` along which they are shared out: rows where they can be, else
    columns.

    Raises:
        InputError: neither rows, columns nor heads divide by the number of processes, or patches overlap.
    """
    if config.patches.overlap:
        raise InputError(f"{size} processes: expected a model whose patches do not overlap")
    if config.heads % size:
        raise InputError(
            f"{size} processes: expected a number that divides the {config.heads} attention heads of the "
            "model"
        )
    for axis, count in ((3, grid[0]), (4, grid[1])):
        if count % size == 0:
            return axis
    raise InputError(
        f"{size} processes: expected a number that divides the {grid[0]} rows or the {grid[1]} columns of "
        "tokens of the model"
    )


class UlyssesContext:
    """The `AttentionContext` of a slab.

    Args:
        inner: what all tokens of this process's heads attend to.
        mesh: the processes.
        frames, grid: latent frames of the pass, and its whole token grid.
        axis: of the latents that is shared out, 3 (rows) or 4 (columns).
    """

    def __init__(
        self, inner: AttentionContext, mesh: Mesh, frames: int, grid: tuple[int, int], axis: int
    ) -> None:
        self.inner, self.mesh, self.frames = inner, mesh, frames
        rows, columns = grid
        self.rows_shared = axis == 3
        self.slab = (rows // mesh.size, columns) if self.rows_shared else (rows, columns // mesh.size)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `AttentionContext`; `(B, L / size, H, D)` of the slab's tokens."""
        # one exchange for the three of them
        q, k, v = self._all_tokens(torch.stack([q, k, v])).unbind(0)
        return self._own_tokens(self.inner.attend(layer, q, k, v))

    def _all_tokens(self, x: Tensor) -> Tensor:
        """From the slab's tokens with all heads to all tokens with this process's heads."""
        n, b, size = *x.shape[:2], self.mesh.size
        heads, width = x.shape[3] // size, x.shape[4]
        parts = x.unflatten(3, (size, heads)).movedim(3, 0)
        parts = self.mesh.exchanged(parts).view(size, n, b, self.frames, *self.slab, heads, width)
        # slabs side by side again
        return parts.movedim(0, 3 if self.rows_shared else 4).reshape(n, b, -1, heads, width)

    def _own_tokens(self, x: Tensor) -> Tensor:
        """Back again."""
        b, size = x.shape[0], self.mesh.size
        heads, width = x.shape[2:]
        rows, columns = self.slab
        if self.rows_shared:
            parts = x.reshape(b, self.frames, size, rows, columns, heads, width).movedim(2, 0)
        else:
            parts = x.reshape(b, self.frames, rows, size, columns, heads, width).movedim(3, 0)
        parts = self.mesh.exchanged(parts.reshape(size, b, -1, heads, width))
        return parts.movedim(0, 2).flatten(2, 3)


class ShardedRing(CacheRing):
    """A ring with this process's heads alone, whose state is that of the whole one, so that snapshots go from
    one process to several and back.
    """

    mesh: Mesh

    def state(self, cursor: CacheCursor) -> dict[str, Tensor]:
        """See `CacheRing`; all processes ask together."""
        return {name: self.mesh.gathered(x, 3) for name, x in super().state(cursor).items()}

    def load_state(self, cursor: CacheCursor, state: dict[str, Tensor]) -> None:
        """See `CacheRing`."""
        super().load_state(cursor, {name: self.mesh.share(x, 3) for name, x in state.items()})


class UlyssesRunner(PlainRunner):
    """The plain runner over a slab. All processes ask for the same at the same time.

    Args:
        grid: rows and columns of tokens.

    Raises:
        InputError: heads and grid cannot be shared out.
    """

    name = "ulysses"

    def __init__(self, dit: CausalDiT, codec: VideoCodec | None, mesh: Mesh, grid: tuple[int, int]) -> None:
        super().__init__(dit, codec)
        self.mesh, self.grid = mesh, grid
        self.axis = slab_axis(dit.config, grid, mesh.size)

    def velocity(self, view: CacheView, conditioning: Conditioning) -> Velocity:
        """See `PlainRunner`; branches of guidance one after the other."""
        assert conditioning.strengths is None, "streams have strengths of their own in training alone"
        pass_of = lambda text, motion: self._pass(view, text, motion)  # noqa: E731
        return guided_passes(conditioning, pass_of, self.dit.config.guidance)

    def _pass(self, view: CacheView, text: TextContext, motion: Tensor | None) -> Pass:
        def run(x: Tensor, timestep: float, strengths: tuple[float, float] | None = None) -> Tensor:
            levels, told = torch.full(x.shape[:2], timestep, device=x.device), None
            if strengths is not None:
                told = torch.stack([torch.full_like(levels, value) for value in strengths], -1)
            return self._slab(x, levels, text, view, motion, told)

        return run

    def commit(self, task: CommitTask) -> CacheCursor:
        """See `Runner`."""
        view = task.ring.view(task.cursor, task.frames)
        with attention_scope(self.kernels):
            self._slab(task.latents, task.timesteps(), task.text, view, task.motion, None)
        return task.cursor.moved(task.frames)

    def rejoin(self, task: CommitTask, keep_sink: bool) -> CacheCursor:
        """See `Runner`."""
        context = JointRecache(task.ring, task.cursor, task.frames, keep_sink)
        with attention_scope(self.kernels):
            self._slab(task.latents, task.timesteps(), task.text, context, task.motion, None)
        return context.finish()

    @torch.no_grad()
    def _slab(
        self,
        x: Tensor,
        levels: Tensor,
        text: TextContext,
        inner: AttentionContext,
        motion: Tensor | None,
        strengths: Tensor | None,
    ) -> Tensor:
        """The velocity of whole latents, each process having computed its slab of it. Whole, so that all see
        alike what is not finite.
        """
        share = self.mesh.share
        context = UlyssesContext(inner, self.mesh, x.shape[1], self.grid, self.axis)
        part = None if motion is None else share(motion, self.axis)
        velocity = self.dit(share(x, self.axis), levels, text, context, part, strengths)
        return self.mesh.gathered(velocity, self.axis)


def sharded_ring(
    mesh: Mesh,
    shape: CacheShape,
    plan: ChunkPlan,
    rope: RotaryEmbedding3D,
    dtype: torch.dtype,
    rope_mode: RopeMode = "relative",
) -> ShardedRing:
    """An empty ring with this process's heads of a shape."""
    own = replace(shape, heads=shape.heads // mesh.size)
    made = ShardedRing(own, plan, rope, mesh.device, dtype, rope_mode)
    made.mesh = mesh
    return made
