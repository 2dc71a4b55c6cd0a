"""Whether the device computes what the CPU computes, and every runner what the plain one does."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.causal_dit import CausalDiT
from models.kv_cache import CacheView

from ..bench import BenchOptions, in_turns
from ..engine.guidance import Conditioning, guided_velocity
from ..engine.onnx import runner as onnx
from ..engine.overlap import ahead
from ..engine.program import compiled
from ..engine.quantize import Quantization, quantized
from ..engine.runner import PlainRunner
from ..engine.sampler import Velocity
from ..pipeline import Pipeline, load_pipeline
from ..stream.events import StreamEvent
from ..stream.session import Session
from .plan import LONG_LIVE, Plan, Row

MODEL = "tiny"
_WORDS = ("a small red circle moves right over the sea", "a large blue star stays over sand")
_CPU = torch.device("cpu")
# largest difference in standard deviations of a chunk in float32, and relative RMS errors in bfloat16
_FLOAT32, _BFLOAT16 = 1e-3, 0.1
_RUNNERS = {
    "ahead": ahead.TOLERANCE,
    "onnx": onnx.TOLERANCE,
    "compile": compiled.TOLERANCE,
    "graph": compiled.TOLERANCE,
}
# the graphs of ONNX Runtime are for CPUs, those of CUDA are not
_ONE_DEVICE = {"onnx": "cpu", "graph": "cuda"}


def correctness(plan: Plan, row: Row) -> None:
    """The plain runner on the device against the plain runner on the CPU."""
    with _exact():
        here = load_pipeline(MODEL, "cpu", torch.float32, runner="plain")
        there = load_pipeline(MODEL, str(plan.device), torch.float32, runner="plain")
        row(f"{MODEL} float32", _followed(here, there, 3 if plan.small else 10))
    half = load_pipeline(MODEL, str(plan.device), torch.bfloat16, runner="plain")
    row(f"{MODEL} bfloat16", _opened(here, half, _BFLOAT16))
    # a layer or two of the real width: what is wrong with one is wrong with all
    shape = (LONG_LIVE, "dit.layers=2", "decoder=none")
    here = plan.wan(*shape, device=_CPU, dtype=torch.float32)
    row("Wan, 2 layers, bfloat16", _opened(here, plan.wan(*shape, dtype=torch.bfloat16), _BFLOAT16))


def runners(plan: Plan, row: Row) -> None:
    """Every runner against the plain one from the same states, and how many times as fast it is."""
    with _exact():
        pipeline = load_pipeline(MODEL, str(plan.device), torch.float32)
        for name in _RUNNERS:
            if _ONE_DEVICE.get(name, plan.device.type) == plan.device.type:
                row(name, _runner(pipeline, name, plan))


def _runner(pipeline: Pipeline, name: str, plan: Plan) -> dict[str, Any]:
    """A runner from states of the plain one, chunk by chunk, and in turns with it."""
    chosen, plain = pipeline.choose(name), pipeline.choose("plain").runner
    if chosen.note is not None:
        return {"ok": False, "note": chosen.note}
    session, most = pipeline.open(_WORDS[0], runner="plain"), 0.0
    for _ in _steered(session, 3 if plan.small else 12):
        twin = Session.of(pipeline, session.snapshot(), chosen.runner)
        most = max(most, _difference(next(twin).latents, next(session).latents))
    times = in_turns(pipeline, (chosen.runner, plain), BenchOptions(effort=plan.effort))
    speeds = {f"times_faster_{what}": times[what]["times_faster"]["p50"] for what in ("clock", "switch")}
    return {"ok": most < _RUNNERS[name], "largest_difference": _short(most)} | speeds | {"turns": times}


def eight_bits(pipeline: Pipeline, kind: Quantization, chunks: int) -> dict[str, Any]:
    """What eight bits cost: the error of the velocity at every step of a stream in full precision, whose
    cache both read, relative to the velocity's RMS.

    Returns:
        mean and largest error, and `n`, how many velocities.
    """
    runner = _Beside(pipeline.dit, quantized(pipeline.dit, kind))
    session = pipeline.open(_WORDS[0], 3, runner=runner, decode=False)
    for _ in _steered(session, chunks):
        next(session)
    errors = runner.errors
    mean = sum(errors) / len(errors)
    return {"error_mean": _short(mean), "error_largest": _short(max(errors)), "n": len(errors)}


class _Beside(PlainRunner):
    """The plain runner, which asks another network, too, and keeps how far its velocities are off."""

    def __init__(self, dit: CausalDiT, other: CausalDiT) -> None:
        super().__init__(dit)
        self.other, self.errors = other, list[float]()

    def velocity(self, view: CacheView, conditioning: Conditioning) -> Velocity:
        """See `PlainRunner`."""
        own = super().velocity(view, conditioning)

        def both(x: Tensor, sigma: float) -> Tensor:
            # first, so that what it leaves in the chunk's own slots is written over
            found = guided_velocity(self.other, x, sigma, conditioning, view).float()
            expected = own(x, sigma)
            error = (found - expected).pow(2).mean().sqrt() / expected.float().pow(2).mean().sqrt()
            self.errors.append(float(error))
            return expected

        return both


def _followed(here: Pipeline, there: Pipeline, chunks: int) -> dict[str, Any]:
    """Chunks from the same states on both devices, so that differences do not add up."""
    latents = pictures = 0.0
    session = here.open(_WORDS[0], 3)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stream"
        for _ in _steered(session, chunks):
            session.save(file)
            twin = there.resume(file)
            # what waits is in the file; what is asked for afterwards is not
            made, expected = next(twin), next(session)
            latents = max(latents, _difference(made.latents.cpu(), expected.latents))
            moved = (made.frames.int() - expected.frames.int()).abs()
            pictures = max(pictures, float(moved.max()))
    right = latents < _FLOAT32 and pictures <= 2
    return {"ok": right, "chunks": chunks, "largest_difference": _short(latents), "picture_levels": pictures}


def _opened(here: Pipeline, there: Pipeline, tolerance: float) -> dict[str, Any]:
    """The first chunks of one stream on both, each by one step of its own."""
    pair = [
        pipeline.open(_WORDS[0], 3, settings={"steps": 1}, decode=False, runner="plain")
        for pipeline in (here, there)
    ]
    errors = []
    for _ in range(2):
        expected, found = (next(session).latents.float().cpu() for session in pair)
        errors.append(float((found - expected).pow(2).mean().sqrt() / expected.std()))
    return {"ok": max(errors) < tolerance, "relative_rms": [_short(error) for error in errors]}


def _steered(session: Session, chunks: int) -> Iterator[int]:
    """Numbers of chunks; at every third the words change, and with them the cache."""
    for chunk in range(chunks):
        if chunk % 3 == 2:
            session.submit(StreamEvent(prompt=_WORDS[(chunk // 3 + 1) % 2]))
        yield chunk


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).abs().max() / expected.float().std())


def _short(value: float) -> float:
    return float(f"{value:.3g}")


@contextmanager
def _exact() -> Iterator[None]:
    """While this lasts float32 products are of float32 numbers, not of shortened ones."""
    matrices, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matrices
        torch.backends.cudnn.allow_tf32 = convolutions
