"""Whether the device computes what the CPU computes, and every runner what the plain one does."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bench import BenchOptions, in_turns
from ..engine import compiled
from ..engine.onnx import runner as onnx
from ..pipeline import Pipeline, load_pipeline
from ..stream.events import StreamEvent
from ..stream.session import Session
from .plan import LONG_LIVE, Plan, Row

MODEL = "tiny"
_WORDS = ("a small red circle moves right over the sea", "a large blue star stays over sand")
_CPU = torch.device("cpu")
# largest difference in standard deviations of a chunk in float32, and relative RMS errors in bfloat16
_FLOAT32, _BFLOAT16 = 1e-3, 0.1
_RUNNERS = {"onnx": onnx.TOLERANCE, "compile": compiled.TOLERANCE}


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
            # the graphs of ONNX Runtime are for CPUs
            if name != "onnx" or plan.device.type == "cpu":
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
