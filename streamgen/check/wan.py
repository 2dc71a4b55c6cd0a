"""Speed at the shape of Wan 1.3B with random weights: what a stream costs does not depend on what it
shows.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ..bench import BenchOptions, in_turns, run_bench
from ..engine.quantize import Quantization, kernel_missing
from ..pipeline import Pipeline, load_pipeline
from .agreement import eight_bits
from .plan import LONG_LIVE, SELF_FORCING, Plan, Row

_KINDS: tuple[Quantization, ...] = ("fp8", "int8")


def window_12(plan: Plan, row: Row) -> None:
    """LongLive's 3 + 6 + 3 latent frames, joint recache, with both picture decoders."""
    _rows(plan, row, LONG_LIVE, vae_too=True)


def window_21(plan: Plan, row: Row) -> None:
    """Self-Forcing's 18 + 3 latent frames, recache chunk by chunk."""
    _rows(plan, row, SELF_FORCING, vae_too=False)


def eight_bits_12(plan: Plan, row: Row) -> None:
    """Linear layers in eight bits: what it costs `tiny`, and the rate at window 12 as the networks read.
    Rounding is many small operations there; a compiler makes them one.
    """
    model = load_pipeline("tiny", str(plan.device), runner="plain")
    for kind in _KINDS:
        reason = kernel_missing(plan.device, plan.dtype, kind)
        if reason is not None:
            row(kind, {"missing": reason})
            continue
        row(f"{kind}, tiny", eight_bits(model, kind, 3 if plan.small else 30))
        row(f"{kind}, TAEHV", _measured(plan, plan.wan(LONG_LIVE, "decoder=tiny", quantize=kind)))


def compiled_eight_bits_12(plan: Plan, row: Row) -> None:
    """The compiled runner in eight bits, where there is a kernel."""
    for kind in _KINDS:
        reason = kernel_missing(plan.device, plan.dtype, kind)
        if reason is not None:
            row(kind, {"missing": reason})
            continue
        pipeline = plan.wan(LONG_LIVE, "decoder=tiny", runner="compile", quantize=kind)
        began = time.perf_counter()
        note = pipeline.choose().note
        row(f"{kind}, programs", {"ok": note is None, "note": note, "seconds": _since(began)})
        row(f"{kind}, TAEHV", _measured(plan, pipeline))


def compiled_12(plan: Plan, row: Row) -> None:
    """Programs at window 12, compiled and on a GPU captured, alone and in turns: compiled ones with the plain
    runner, graphs with what they were captured of.
    """
    pairs = [("compile", "plain")] + ([("graph", "compile")] if plan.device.type == "cuda" else [])
    for name, other in pairs:
        pipeline = plan.wan(LONG_LIVE, "decoder=tiny", runner=name)
        began = time.perf_counter()
        chosen = pipeline.choose()
        row(f"{name}, programs", {"ok": chosen.note is None, "note": chosen.note, "seconds": _since(began)})
        if chosen.note is not None:
            continue
        both = (chosen.runner, pipeline.choose(other).runner)
        times = in_turns(pipeline, both, BenchOptions(effort=plan.effort))
        faster = {f"times_faster_{what}": spread["times_faster"]["p50"] for what, spread in _timed(times)}
        row(f"{name} against {other}", faster | {"turns": times})
        row(f"{name}, TAEHV", _measured(plan, pipeline))


def _rows(plan: Plan, row: Row, name: str, vae_too: bool) -> None:
    pipeline = plan.wan(name, "decoder=tiny")
    row("TAEHV", _measured(plan, pipeline))
    if vae_too:
        row("Wan VAE", _measured(plan, _with_vae(plan, name, pipeline)))


def _with_vae(plan: Plan, name: str, pipeline: Pipeline) -> Pipeline:
    """The same network with the Wan VAE; the network of the model that the VAE is taken from is tiny."""
    small = plan.wan(name, "decoder=vae", "dit.layers=1")
    networks = replace(pipeline.parts.networks, tokenizer=small.parts.networks.tokenizer)
    return Pipeline(replace(pipeline.parts, networks=networks), "plain")


def _measured(plan: Plan, pipeline: Pipeline) -> dict[str, Any]:
    """A row: rate, latencies, memory, and the whole report of `bench` below it."""
    if plan.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(plan.device)
    report = run_bench(pipeline, BenchOptions(plan.chunks, roofline=not plan.small, effort=plan.effort))
    parts = {f"{part}_ms": spread["p50"] for part, spread in report["chunk_ms"].items()}
    return {
        "runner": report["runner"],
        "quantize": report["quantize"],
        "fps": report["pixel_fps"],
        **parts,
        "recache_ms": report["recache_ms"],
        "switch_ms": report["switch_latency_ms"]["p50"],
        "first_frame_ms": report["time_to_first_frame_ms"],
        "memory_mb": report["peak_memory_mb"],
        "report": report,
    }


def _timed(times: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(what, spread) for what, spread in times.items() if isinstance(spread, Mapping)]


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 1)
