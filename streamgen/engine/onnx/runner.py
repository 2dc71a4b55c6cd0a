"""The runner on ONNX Runtime: CPUs, float32, batch 1.

It is compared with the plain runner (`TOLERANCE`), and is bit-exact with itself at one number of threads. A
pass reads the ring where it lies and writes the chunk's keys and values where they stay, as the plain one
does, so streams and snapshots go from one runner to the other. What it has no graph for (a joint recache, a
stream's first picture, the decoders of the Wan family, gradient) the plain runner does.
"""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.causal_dit import CausalDiT, TextContext
from models.kv_cache import CacheView
from models.video_codec import VideoCodec
from models.video_tokenizer import TokenizerState, VideoTokenizer

from ...errors import InputError
from ..decoder import DecoderState
from ..quantize import quantization
from ..runner import PassRunner
from .decoder import decoder_graph, temporal_bias
from .dit import Modulation, PassShape, base_of, dit_graph
from .graph import Graph

# largest difference to a chunk of the plain runner from the same state, in standard deviations of latents;
# `plain` itself is up to 2e-4 from double precision where a first picture is undecided
TOLERANCE = 5e-4
_FLOAT = np.float32


class OnnxRunner(PassRunner):
    """Passes of the network and the decoder of `VideoTokenizer` as ONNX graphs. Weights are copied when a
    graph is first run: networks that are being trained run on the plain runner.

    Args:
        dit: float32, on the CPU.
        threads: of the runtime; by default torch's.
        spin: whether its threads wait in a loop: quicker on an idle machine, and what stalls a busy one.

    Raises:
        InputError: ONNX Runtime is not installed, or the network is of another device or dtype.
    """

    name = "onnx"

    def __init__(
        self, dit: CausalDiT, codec: VideoCodec | None = None, threads: int | None = None, spin: bool = False
    ) -> None:
        reason = unusable(dit)
        if reason is not None:
            raise InputError(f"runner onnx: {reason}")
        super().__init__(dit, codec)
        self.threads, self.spin = threads or torch.get_num_threads(), spin
        self.modulation = Modulation(dit)
        self._programs: dict[object, Program] = {}
        self._making = threading.Lock()

    @torch.no_grad()
    def decode(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """See `Runner`."""
        assert self.decoder is not None, "a stream of latents decodes nothing"
        codec, held = self.decoder.tokenizer, state.tokenizer
        if not isinstance(codec, VideoTokenizer) or not isinstance(held, TokenizerState) or not held.frames:
            return super().decode(latents, state)
        raw = codec.denormalize(latents.to(codec.latent_mean.dtype), state.latent_frames)
        program = self._decoder(codec, (latents.shape[1], latents.shape[3], latents.shape[4]))
        video, after = _decoded(program, codec, raw, held)
        return self.decoder.to_host(video[0]), DecoderState(after, state.latent_frames + latents.shape[1])

    def warm(self, grid: tuple[int, int], frames: int, latent_grid: tuple[int, int]) -> None:
        """Make the programs of later chunks now, so that no chunk waits for them.

        Args:
            grid, latent_grid: of tokens and of latent cells.
            frames: latent frames of a chunk.

        Raises:
            RuntimeError: whatever the runtime has to say; the runner is of no use then.
        """
        self._network(PassShape(frames, grid))
        if self.decoder is not None and isinstance(self.decoder.tokenizer, VideoTokenizer):
            self._decoder(self.decoder.tokenizer, (frames, *latent_grid))

    def network_pass(self, view: CacheView, text: TextContext, motion: Tensor | None) -> "ChunkPass":
        """See `PassRunner`."""
        program = self._network(PassShape(view.frames, view.ring.shape.grid))
        return ChunkPass(program, self.dit, self.modulation, view, (text, motion))

    def _network(self, shape: PassShape) -> "Program":
        return self._made(shape, lambda: dit_graph(self.dit, shape))

    def _decoder(self, codec: VideoTokenizer, size: tuple[int, int, int]) -> "Program":
        return self._made(size, lambda: decoder_graph(codec, size[0], (size[1], size[2])))

    def _made(self, key: object, write: Any) -> "Program":
        with self._making:
            if key not in self._programs:
                self._programs[key] = Program(write(), self.threads, self.spin)
            return self._programs[key]


class Program:
    """A graph that is ready to run, from any thread."""

    def __init__(self, graph: Graph, threads: int, spin: bool) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        # errors alone: a constant that an optimisation made superfluous is nobody's concern
        options.log_severity_level = 3
        # the session reads weights where they lie, so they live as long as it does
        self._weights = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in graph.weights.items()
        }
        options.add_external_initializers(list(self._weights), list(self._weights.values()))
        self.session = onnxruntime.InferenceSession(
            graph.model(), options, providers=["CPUExecutionProvider"]
        )


class Binding:
    """Tensors that a program reads and writes where they lie."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._io = program.session.io_binding()
        self._alive: dict[str, Tensor] = {}
        # a tensor without numbers has no place of its own
        self._nowhere = torch.zeros(1)

    def reads(self, name: str, x: Tensor, shape: Sequence[int] | None = None) -> None:
        """Let an input be a tensor, as it is when the program runs."""
        self._io.bind_input(name, "cpu", 0, _FLOAT, *self._place(name, x, shape))

    def writes(self, name: str, x: Tensor, shape: Sequence[int] | None = None) -> None:
        """Let an output go into a tensor."""
        self._io.bind_output(name, "cpu", 0, _FLOAT, *self._place(name, x, shape))

    def run(self) -> None:
        """Run the program once."""
        self.program.session.run_with_iobinding(self._io)

    def _place(self, name: str, x: Tensor, shape: Sequence[int] | None) -> tuple[list[int], int]:
        assert x.is_contiguous(), f"{name}: would be read as it does not lie"
        assert x.dtype == torch.float32, f"{name}: expected float32, found {x.dtype}"
        self._alive[name] = x
        place = x.data_ptr() if x.numel() else self._nowhere.data_ptr()
        return list(x.shape if shape is None else shape), place


class ChunkPass:
    """Passes of one chunk: everything that its steps share is bound once.

    Args:
        view: what the chunk attends to; its sink is turned here.
        told: words and motion latents of the pass.
    """

    def __init__(
        self,
        program: Program,
        dit: CausalDiT,
        modulation: Modulation,
        view: CacheView,
        told: tuple[TextContext, Tensor | None],
    ) -> None:
        self.binding, self.view, self.modulation = Binding(program), view, modulation
        text, motion = told
        bind, dim = self.binding, dit.config.dim
        bind.reads("base", base_of(dit, PassShape(view.frames, view.ring.shape.grid), motion))
        bind.reads("cos", view.tables.cos)
        bind.reads("sin", view.tables.sin)
        tokens = view.frames * view.ring.shape.tokens
        # where the ring turns within the chunk its places are two, and what is written is copied there
        self.scattered: list[tuple[int, dict[str, Tensor]]] = []
        for layer in range(dit.config.layers):
            view.rotate_sink(layer)
            for name, part in (("key", text.keys[layer]), ("value", text.values[layer])):
                bind.reads(f"text_{name}.{layer}", part[:, 0].contiguous(), (1, part.shape[2], dim))
            self._bind_context(layer, dim)
            self._bind_own(layer, tokens, dim)

    @torch.no_grad()
    def __call__(self, x: Tensor, timestep: float, strengths: tuple[float, float] | None = None) -> Tensor:
        """The velocity `(1, T, C, h, w)` of noisy latents at a timestep of 0 to 1000."""
        velocity = torch.empty_like(x, memory_format=torch.contiguous_format)
        self.binding.reads("x", x.contiguous())
        self.binding.reads("modulation", self.modulation.at(timestep, strengths, self.view.frames))
        self.binding.writes("velocity", velocity)
        self.binding.run()
        for layer, made in self.scattered:
            self._scatter(layer, made)
        return velocity

    def _bind_context(self, layer: int, dim: int) -> None:
        ring, parts = self.view.ring, self.view.past()
        for name, buffer in (("key", ring.keys), ("value", ring.values)):
            held = [buffer[layer, :, part] for part in parts]
            held += [buffer[layer, :, :0]] * (2 - len(held))
            before, behind = held
            self.binding.reads(f"past_{name}.{layer}", before, (1, before.shape[1], dim))
            self.binding.reads(f"next_{name}.{layer}", behind, (1, behind.shape[1], dim))

    def _bind_own(self, layer: int, tokens: int, dim: int) -> None:
        """Let the chunk's keys and values go where they stay."""
        view, ring, own = self.view, self.view.ring, (1, tokens, dim)
        raw = torch.empty(own)
        if len(view.places) == 1 and view.sink_new in (0, view.frames):
            place = view.places[0][1]
            if view.sink_new:
                first = view.cursor.frames * ring.shape.tokens
                raw = ring.sink_keys[layer, :, first : first + tokens]
            made = {"key": ring.keys[layer, :, place], "value": ring.values[layer, :, place], "raw_key": raw}
        else:
            made = {name: torch.empty(own) for name in ("key", "value", "raw_key")}
            self.scattered.append((layer, made))
        for name, x in made.items():
            self.binding.writes(f"{name}.{layer}", x, own)

    def _scatter(self, layer: int, made: dict[str, Tensor]) -> None:
        view, ring = self.view, self.view.ring
        heads = (ring.shape.heads, ring.shape.head_dim)
        key, value, raw = (made[name].unflatten(-1, heads) for name in ("key", "value", "raw_key"))
        for tokens, place in view.places:
            ring.keys[layer, :, place], ring.values[layer, :, place] = key[:, tokens], value[:, tokens]
        n = ring.shape.tokens
        first, fresh = view.cursor.frames * n, view.sink_new * n
        ring.sink_keys[layer, :, first : first + fresh] = raw[:, :fresh]


def _decoded(
    program: Program, codec: VideoTokenizer, raw: Tensor, held: TokenizerState
) -> tuple[Tensor, TokenizerState]:
    """Pictures `(1, T, 3, H, W)` of raw latents, and the state after them."""
    config, count = codec.config, raw.shape[1]
    size = (raw.shape[3] * config.patch, raw.shape[4] * config.patch)
    video = torch.empty(1, count * config.temporal, config.in_channels, *size)
    keys, values = torch.empty_like(held.keys), torch.empty_like(held.values)
    bind = Binding(program)
    bind.reads("latents", raw.contiguous())
    bind.reads("keys", held.keys.contiguous())
    bind.reads("values", held.values.contiguous())
    for layer in range(config.decoder_temporal):
        bind.reads(f"bias.{layer}", temporal_bias(codec, layer, count, held.valid))
    bind.writes("video", video)
    bind.writes("new_keys", keys)
    bind.writes("new_values", values)
    bind.run()
    return video, codec.advanced(held, keys, values, count)


def unusable(dit: CausalDiT) -> str | None:
    """Why a network cannot run on ONNX Runtime; None where it can. Nothing is loaded for it."""
    from importlib.util import find_spec

    if find_spec("onnxruntime") is None:
        return "needs the package onnxruntime: pip install onnxruntime"
    weight = dit.head.head.weight
    if weight.device.type != "cpu":
        return f"runs on CPUs, the model is on {weight.device}"
    if weight.dtype != torch.float32:
        return f"computes in float32, the model is in {str(weight.dtype).removeprefix('torch.')}"
    if quantization(dit) is not None:
        return f"computes in float32, {quantization(dit)} was asked for"
    return None
