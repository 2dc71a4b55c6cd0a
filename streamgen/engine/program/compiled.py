"""The runners whose chunks are programs: `compile`, whose passes a compiler has made, and `graph`, whose
chunks are captured on top of it.

The plain network reads its cache at places that are numbers of the host and others in every chunk, so that a
compiler begins anew each time. A program gets them as tensors, and reads the cache as a whole: once the
window is full that is just what the plain network reads, and before, a mask hides what is not filled. So two
compiled passes for each length of chunks serve all words, motion, sliders, step counts and recaches; what is
captured are whole chunks, one for each `ProgramKey`. Chunks of the sink, joint recaches, gradient and the
picture decoder are the plain runner's.
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from models.causal_dit import CausalDiT, TextContext
from models.kv_cache import CacheCursor, CacheView, RingStorage
from models.rope import RotaryTables
from models.video_codec import VideoCodec

from ..attention import attention_scope
from ..guidance import Conditioning
from ..runner import CommitTask, DenoiseTask, PlainRunner, check_finite, step_places
from .buffers import StaticBuffers
from .capture import Capture, CudaCapture, Work
from .chunk import ChunkInputs, Network, ProgramContext, ProgramKey, Sink, commit_program, denoise_program
from .fused import FusedNetwork, Modulation, ModulationTables

# largest difference to a chunk of the plain runner from the same state in float32, in standard deviations;
# `plain` itself is up to 2e-4 from double precision where a first picture is undecided
TOLERANCE = 5e-4
# captures of one stream's ring; the one that was used longest ago gives way
MOST_CAPTURES = 24
# of these, what is left beside those that are made at load: sliders that join several passes, scenes
_SPARE_CAPTURES = 8
_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"

Compiler = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]
# a branch of guidance: words, motion
Branch = tuple[TextContext, Tensor | None]


class ProgramRunner(PlainRunner):
    """Chunks as programs over static buffers.

    Args:
        compiler: makes a program of a pass; by default inductor, the whole pass or nothing.
        capture: how whole chunks are captured; None: they are not.
    """

    name = "compile"

    def __init__(
        self,
        dit: CausalDiT,
        codec: VideoCodec | None = None,
        compiler: Compiler | None = None,
        capture: Capture | None = None,
    ) -> None:
        super().__init__(dit, codec)
        network, self.capture = FusedNetwork(dit), capture
        self.network: Network = _Compiled(network, compiler or inductor)
        self.tables = ModulationTables(dit)
        self.buffers = StaticBuffers(dit.head.head.weight.device)
        # captures know the ring's addresses, and live as long as it does
        self._captured: WeakKeyDictionary[RingStorage, OrderedDict[ProgramKey, Work]] = WeakKeyDictionary()
        self.captures, self.most_captures = 0, MOST_CAPTURES

    def make_room(self, paths: int) -> None:
        """Let a ring keep so many captures, and some more: what is made at load is there to stay."""
        self.most_captures = max(self.most_captures, paths + _SPARE_CAPTURES)

    def serves(self, view: CacheView) -> bool:
        """Whether there is a program: for one stream, and no chunk of the sink."""
        ring = view.ring
        return ring.shape.batch == 1 and not ring.storage.eight_bits and not view.sink_new

    @torch.no_grad()
    def denoise(self, task: DenoiseTask) -> Tensor:
        """See `Runner`."""
        view, sampling, conditioning = (
            task.ring.view(task.cursor, task.frames), task.sampling, task.conditioning,
        )  # fmt: skip
        assert not sampling.with_gradient, "training runs on the plain runner"
        own = conditioning.strengths is None and conditioning.text.negative is None
        if sampling.exit_step is not None or not own or task.compares or not self.serves(view):
            return super().denoise(task)
        first, fresh = self.draws(task)
        branches, weights = _branches(conditioning, self.dit.config.guidance)
        told = conditioning.weights() if self.dit.config.guidance else None
        key = ProgramKey(
            view.frames,
            _is_full(view),
            _turns(view),
            branches[0][0].keys[0].shape[2],
            len(branches),
            sampling.sigmas,
            sampling.renoise,
        )
        with self.buffers.lease(), attention_scope(self.kernels):
            modulations = [self.tables.at(1000 * s, told, view.frames) for s in sampling.sigmas[:-1]]
            inputs = self._inputs(view, branches, task.begun(first), modulations, fresh)
            if weights is not None:
                inputs = self._weighted(inputs, weights)
            self._run(view, key, lambda: denoise_program(self.network, inputs, key))
            latents, flags = inputs.made.clone(), inputs.finite.tolist()
        check_finite(task.index, step_places(len(sampling.sigmas) - 1), flags)
        return latents

    @torch.no_grad()
    def commit(self, task: CommitTask) -> CacheCursor:
        """See `Runner`."""
        view, level = task.ring.view(task.cursor, task.frames), task.level
        if level is None or task.text.segment is not None or not self.serves(view):
            return super().commit(task)
        key = ProgramKey(view.frames, _is_full(view), _turns(view), task.text.keys[0].shape[2])
        with self.buffers.lease(), attention_scope(self.kernels):
            modulation = self.tables.at(level, None, view.frames)
            inputs = self._inputs(view, [(task.text, task.motion)], task.latents, [modulation], [])
            self._run(view, key, lambda: commit_program(self.network, inputs, key))
        return task.cursor.moved(task.frames)

    def _run(self, view: CacheView, key: ProgramKey, work: Work) -> None:
        """A program, captured before where this runner captures."""
        ring = view.ring
        if key.turns:
            # cut short in between, nobody knows how the sink lies
            ring.rotated = [None] * len(ring.rotated)
        if self.capture is None:
            work()
        else:
            known = self._captured.setdefault(ring.storage, OrderedDict())
            if key in known:
                known[key]()
                known.move_to_end(key)
            else:
                known[key] = self.capture.capture(work)
                self.captures += 1
                if len(known) > self.most_captures:
                    known.popitem(last=False)
        if key.turns:
            ring.rotated = [view.shift] * len(ring.rotated)

    def _inputs(
        self,
        view: CacheView,
        branches: list[Branch],
        latents: Tensor,
        modulations: list[Modulation],
        fresh: list[Tensor],
    ) -> ChunkInputs:
        """What a chunk brings, in static buffers."""
        put, steps = self.buffers.put, range(len(modulations))
        words = [self.buffers.put_text(f"words.{i}", text) for i, (text, _) in enumerate(branches)]
        motions = [self._motion(i, motion, latents) for i, (_, motion) in enumerate(branches)]
        return ChunkInputs(
            put("latents", latents),
            tuple(put(f"fresh.{i}", x) for i, x in enumerate(fresh)),
            tuple(zip(motions, words, strict=True)),
            tuple(
                Modulation(put(f"blocks.{i}", modulations[i].blocks), put(f"head.{i}", modulations[i].head))
                for i in steps
            ),
            self._context(view),
            self._sink(view),
            None,
            self.buffers.of("made", latents.shape, latents.dtype),
            self.buffers.of("finite", (1 + 2 * len(modulations),), torch.bool),
        )

    def _motion(self, branch: int, motion: Tensor | None, latents: Tensor) -> Tensor | None:
        channels, name = self.dit.config.motion_channels, f"motion.{branch}"
        if not channels:
            return None
        if motion is not None:
            return self.buffers.put(name, motion.to(latents.dtype))
        b, t, _, h, w = latents.shape
        return self.buffers.fill(name, (b, t, channels, h, w), latents.dtype, 0.0)

    def _context(self, view: CacheView) -> ProgramContext:
        """What a chunk attends to; counted on the device, so nothing is copied there."""
        ring, put = view.ring, self.buffers.put
        runs = [torch.arange(place.start, place.stop, device=ring.device) for _, place in view.places]
        tables = RotaryTables(put("cos", view.tables.cos), put("sin", view.tables.sin))
        mask = None
        if not _is_full(view):
            slots = torch.arange(ring.keys.shape[2], device=ring.device)
            mask = put("mask", (slots < view.end)[None, None, None])
            # nobody's content any more, but a mask does not hide what is not finite
            ring.keys[:, :, view.end :] = 0
            ring.values[:, :, view.end :] = 0
        keys, values = ring.keys.unbind(), ring.values.unbind()
        return ProgramContext(keys, values, tables, put("places", torch.cat(runs)), mask)

    def _sink(self, view: CacheView) -> Sink | None:
        if view.sink_tables is None:
            return None
        put, tables, held = self.buffers.put, view.sink_tables, view.sink_held * view.ring.shape.tokens
        turned = RotaryTables(put("sink_cos", tables.cos), put("sink_sin", tables.sin))
        return Sink(view.ring.sink_keys[:, :, :held], turned)

    def _weighted(self, inputs: ChunkInputs, weights: tuple[float, float]) -> ChunkInputs:
        """With strengths of guidance; in double precision, as numbers of the host are."""
        fill = self.buffers.fill
        text, motion = (fill(f"weight.{i}", (), torch.float64, w) for i, w in enumerate(weights))
        return replace(inputs, weights=(text, motion))


class GraphRunner(ProgramRunner):
    """Chunks as CUDA graphs of compiled passes."""

    name = "graph"

    def __init__(
        self, dit: CausalDiT, codec: VideoCodec | None = None, compiler: Compiler | None = None
    ) -> None:
        super().__init__(dit, codec, compiler, CudaCapture(dit.head.head.weight.device))


class _Compiled:
    """A network whose pass is a program; the network itself is an argument of it."""

    def __init__(self, network: FusedNetwork, compiler: Compiler) -> None:
        self.network, self._program = network, compiler(_forward)

    def __call__(self, *told: Any) -> Tensor:
        return self._program(self.network, *told)


def inductor(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Torch's compiler: whole functions or none, values rounded where the function rounds them."""
    keep_programs()
    compiled: Callable[..., Tensor] = torch.compile(
        function, fullgraph=True, dynamic=False, options={"emulate_precision_casts": True}
    )
    return compiled


def keep_programs() -> None:
    """Let compiled programs lie in the user's cache folder, where a second start finds them; torch puts them
    into a temporary one. TORCHINDUCTOR_CACHE_DIR wins.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streamgen" / "programs"
    except RuntimeError:
        return
    os.environ.setdefault(_CACHE_VARIABLE, str(folder))


def _forward(network: FusedNetwork, *told: Any) -> Tensor:
    """A pass as a function of tensors."""
    velocity: Tensor = network(*told)
    return velocity


def _branches(
    conditioning: Conditioning, takes_strengths: bool
) -> tuple[list[Branch], tuple[float, float] | None]:
    """Words and motion of the passes of a step, and the strengths that join them; see `guided_passes`."""
    text, null, motion = conditioning.text, conditioning.null_text, conditioning.motion
    weights = conditioning.weights()
    if takes_strengths or sum(weights) == 1:
        return [(text, motion)], None
    silent: list[Branch] = [(text, motion), (null, motion)]
    return (silent if motion is None else [*silent, (text, None)]), weights


def _is_full(view: CacheView) -> bool:
    return view.end == view.ring.keys.shape[2]


def _turns(view: CacheView) -> bool:
    return view.sink_held > 0 and any(shift != view.shift for shift in view.ring.rotated)
