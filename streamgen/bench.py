"""Speed of a model on this machine: rate, latencies, and whether a long stream stays as fast and as small."""

import itertools
import pickle
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from .engine.attention import attention_text
from .engine.overlap.wave import WaveRunner
from .engine.runner import Runner
from .errors import InputError
from .machine import device_name, forget_peak, memory_mb, peak_memory_mb, synchronize
from .pipeline import Pipeline
from .roofline.parts import timed_parts
from .roofline.peaks import measure_peaks
from .roofline.shares import chunk_work, shares
from .stream.events import StreamEvent
from .stream.session import Session
from .stream.state import FrameChunk

# Words of the shipped model; to another one they are as good as any.
_PROMPTS = ("a small red circle moves right over the sea", "a large blue star stays over sand")
_LONG = 300
# one chunk of a model that is loaded as this one was, with nothing loaded before
_COLD = """
import pickle, sys, torch
from streamgen import load_pipeline
torch.set_num_threads(int(sys.argv[1]))
next(load_pipeline(**pickle.load(sys.stdin.buffer)).open("a red circle"))
print("made", flush=True)
"""
_NUMBERS = itertools.count()
_TIMED = ("clock", "processor", "switch", "first_frame")
_LOOP = "while True: pass"


@dataclass(frozen=True)
class Effort:
    """How often things are measured.

    Attributes:
        warm: chunks that are left out once the window is full.
        openings, switches, recaches: first frames, changes of words at a random moment, rebuilds of the
            cache.
        turns, turn_chunks: with another runner or beside loops, and the chunks of each turn.
    """

    warm: int = 8
    openings: int = 5
    switches: int = 24
    recaches: int = 8
    turns: int = 9
    turn_chunks: int = 8


# for large models, and for a first look
QUICK = Effort(warm=2, openings=2, switches=6, recaches=3, turns=3, turn_chunks=3)


@dataclass(frozen=True)
class BenchOptions:
    """What is measured, and how.

    Attributes:
        chunks: to be timed; from 300 on, `long_stream` is measured too.
        settings: `StreamSettings` by name, over the checkpoint's.
        deadline_ms: what a chunk may take, see `Pipeline.open`.
        vs: another runner, in full precision, with which the stream is measured in turns.
        beside: endless loops beside which the rate is measured, too; 0: none.
        cold: processes that are started for the first frame with nothing loaded.
        protocol: also by the protocol of FlashDreams, see `sixth_chunks`.
        roofline: also count a chunk's work, measure the device's ceilings, and tell the shares of them.
        effort: how often things are measured.
        loaded: what the model was loaded with besides its name, as `load_pipeline` takes it.
    """

    chunks: int = 100
    settings: Mapping[str, Any] = field(default_factory=dict)
    deadline_ms: float | None = None
    vs: str | None = None
    beside: int = 0
    cold: int = 0
    roofline: bool = False
    protocol: bool = False
    effort: Effort = field(default_factory=Effort)
    loaded: Mapping[str, Any] = field(default_factory=dict)


def run_bench(
    pipeline: Pipeline, options: BenchOptions, progress: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Measure a model.

    Rates count pixel frames that lie on the host, from the first chunk whose window is full; denoising,
    commit, decoding and the copy are all inside. A switch is submitted from another thread at a random moment
    of a chunk, and ends when the first frame under the new prompt is on the host; the stream is not paced.
    Parts are host clocks; on a GPU they come from a run of their own that waits for the device after each
    part, so they add up to more than `total`.

    Returns:
        plain values; times in ms, memory in MiB.

    Raises:
        InputError: a setting, deadline or other runner that cannot be.
    """
    device, fps, chunks, effort = pipeline.device, pipeline.geometry.fps, options.chunks, options.effort
    memory = _Memory(pipeline)
    session = pipeline.open(_PROMPTS[0], 0, settings=options.settings, deadline_ms=options.deadline_ms)
    if options.roofline and isinstance(session.runner, WaveRunner):
        raise InputError(f"--roofline: chunks of runner {session.runner.name} overlap, expected another one")
    # in full precision, so that eight bits can be compared with it
    other = None if options.vs is None else pipeline.choose(options.vs, quantize="none").runner
    openings = _openings(pipeline, options, progress)
    warm = _warm_chunks(session, effort)
    on_host = device.type == "cpu"
    progress(f"{chunks} chunks")
    with timed_parts(session, on_host) as copies:
        stream = _timed(session, warm + chunks, progress)
    steady = stream.seconds[warm:]
    rate = stream.frames_since(warm) / sum(steady)
    parts, copied = stream.parts[warm:], copies[warm:]
    if not on_host:
        with timed_parts(session, True) as copies:
            parts, copied = _timed(session, min(chunks, 50), progress).parts, copies
    progress("prompt switches")
    latencies = _switch_latencies(session, statistics.median(steady), effort.switches)
    with timed_parts(session, not on_host):
        recaches = _recaches(session, effort.recaches)
    result = _setup(pipeline, session) | {
        "chunks": chunks,
        "warm_chunks": warm,
        "pixel_fps": round(rate, 3),
        "realtime_factor": round(rate / fps, 4),
        "time_to_first_frame_ms": round(statistics.median(openings), 3),
        "steps_taken": {str(n): stream.steps.count(n) for n in sorted(set(stream.steps))},
        "switch_latency_ms": _spread(latencies) | {"n": len(latencies)},
        "recache_ms": round(statistics.median(recaches) * 1000, 3),
        "chunk_ms": _by_part(parts, copied) | {"total": _spread(steady)},
        "params_m": round(sum(count_parameters(pipeline).values()) / 1e6, 4),
    }
    result |= memory.taken()
    if chunks >= _LONG:
        result["long_stream"] = stream.long_stream()
    if options.deadline_ms is not None:
        late = sum(1000 * seconds > options.deadline_ms for seconds in steady)
        result["deadline"] = {"ms": options.deadline_ms, "late": round(late / len(steady), 4)}
        if session.deadline_note is not None:
            progress(f"note: {session.deadline_note}")
    if options.roofline:
        progress("work of a chunk, and the device's ceilings")
        result["roofline"] = _roofline(session, result["chunk_ms"])
    return result | _asked_for(session, other, options, progress)


class _Memory:
    """Most memory of all, and what of it came over the loaded model: one stream with its cache, and what a
    chunk or a rebuilding of the cache takes for a while.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.device = pipeline.device
        pipeline.choose()
        self.loaded, self.before = memory_mb(self.device), peak_memory_mb(self.device)
        self.anew = forget_peak(self.device)

    def taken(self) -> dict[str, float]:
        """In MiB; the second one where the system can tell."""
        peak = peak_memory_mb(self.device)
        most = {"peak_memory_mb": round(max(self.before, peak), 1)}
        return most | ({"stream_memory_mb": round(peak - self.loaded, 1)} if self.anew else {})


def _by_part(parts: Sequence[Mapping[str, float]], copied: Sequence[float]) -> dict[str, dict[str, float]]:
    """The parts of chunks, zero where there is none apart: a commit that lies in a step's forward, pictures
    that another process decodes. Of pictures that are decoded beside the next chunk, what it waits for them.
    """
    decode = [max(0.0, row["decode"] - copy) for row, copy in zip(parts, copied, strict=False)]
    seconds = {
        "denoise": [row["denoise"] for row in parts],
        "commit": [row["commit"] for row in parts if "commit" in row],
        "decode": decode,
        "copy": copied,
    }
    return {name: _spread(each or [0.0]) for name, each in seconds.items()}


def _openings(pipeline: Pipeline, options: BenchOptions, progress: Callable[[str], None]) -> list[float]:
    """Milliseconds to the first frame of some streams, without the first one, which warms things up."""
    progress("time to first frame")
    return [_first_frame_ms(pipeline, i, options) for i in range(options.effort.openings + 1)][1:]


def _roofline(session: Session, parts: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The device's ceilings, and the share of them that each part of a chunk reaches."""
    peaks = measure_peaks(session.model.device, session.model.dtype)
    measured = {part: spread["p50"] for part, spread in parts.items()}
    # what is counted for decoding has the copy to the host in it
    measured["decode"] = measured.get("decode", 0.0) + measured.get("copy", 0.0)
    return {"peaks": peaks.to_json()} | shares(chunk_work(session), measured, peaks)


def _setup(pipeline: Pipeline, session: Session) -> dict[str, Any]:
    """What was measured, and on what."""
    device, geometry = pipeline.device, pipeline.geometry
    return {
        "model": pipeline.name,
        "weights": pipeline.digest,
        "device": device_name(device),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "processes": 1 if pipeline.mesh is None else pipeline.mesh.size,
        "runner": session.runner.name,
        "decoder": {
            "device": device_name(pipeline.decoder_device),
            "beside": pipeline.decoder_thread is not None,
        },
        "quantize": session.runner.quantize,
        "torch": torch.__version__,
        "attention": attention_text(device, pipeline.dtype, pipeline.dit.config.head_dim),
        "width": geometry.width,
        "height": geometry.height,
        "steps": session.controls.settings.steps,
        "fps_target": geometry.fps,
    }


def _asked_for(
    session: Session, other: Runner | None, options: BenchOptions, progress: Callable[[str], None]
) -> dict[str, Any]:
    """What is measured only where it was asked for."""
    pipeline, result = session.model, dict[str, Any]()
    assert isinstance(pipeline, Pipeline)
    if options.cold:
        progress(f"first frame of {options.cold} new processes")
        cold = [_cold_seconds(pipeline, options.loaded) for _ in range(options.cold)]
        result["first_frame_cold_ms"] = _spread(cold)
    if other is not None:
        progress(f"in turns with runner {other.name}")
        result["vs"] = in_turns(pipeline, (session.runner, other), options)
    if options.protocol:
        progress("the sixth chunk of fresh streams")
        result["sixth_chunk"] = sixth_chunks(pipeline, session.runner, options)
    if options.beside:
        progress(f"beside {options.beside} endless loops")
        result["beside"] = _beside(session, options)
    return result


def count_parameters(pipeline: Pipeline) -> dict[str, int]:
    """Parameters per part."""
    parts = {
        "tokenizer": pipeline.codec,
        "dit": pipeline.dit,
        "text_encoder": pipeline.text_encoder,
        "motion_encoder": pipeline.motion_encoder,
    }
    modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    return {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}


class _Stream:
    """Timings of consecutive chunks."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.frames: list[int] = []
        self.parts: list[dict[str, float]] = []
        self.memory: dict[int, float] = {}
        self.steps: list[int] = []

    def frames_since(self, chunk: int) -> int:
        return sum(self.frames[chunk:])

    def long_stream(self) -> dict[str, Any]:
        """Whether the end is as fast as the beginning, and what memory did in between."""
        early, late = statistics.median(self.seconds[50:150]), statistics.median(self.seconds[-100:])
        first, *_, last = sorted(self.memory)
        return {
            "chunks": len(self.seconds),
            "early_ms": round(early * 1000, 3),
            "late_ms": round(late * 1000, 3),
            "ratio": round(late / early, 4),
            "memory_growth_mb": round(self.memory[last] - self.memory[first], 2),
        }


def _timed(session: Session, chunks: int, progress: Callable[[str], None]) -> _Stream:
    stream, device, shown = _Stream(), session.model.device, list[FrameChunk]()
    # decoded beside the next chunk, pictures are taken behind it
    behind = 0 if session.model.decoder_thread is None else 1
    synchronize(device)
    for index in range(chunks):
        started = time.perf_counter()
        chunk = next(session)
        shown.append(chunk)
        if len(shown) > behind:
            stream.frames.append(len(shown.pop(0).frames))
        # chunks end in a copy to the host, which waits for their decoding but not for their commit
        synchronize(device)
        stream.seconds.append(time.perf_counter() - started)
        stream.parts.append(chunk.timings)
        stream.steps.append(chunk.steps)
        if index in (150, chunks - 1):
            stream.memory[index] = memory_mb(device)
        if index % 100 == 99:
            progress(f"{index + 1}/{chunks} chunks")
    stream.frames += [len(chunk.frames) for chunk in shown]
    return stream


def _warm_chunks(session: Session, effort: Effort) -> int:
    """Chunks until the window is full and first calls are behind."""
    settings, plan = session.controls.settings, session.state.latents.ring.plan
    context = settings.sink_frames + settings.window_frames
    return -(-context // plan.chunk_frames) + 1 + effort.warm


def _first_frame_ms(pipeline: Pipeline, seed: int, options: BenchOptions) -> float:
    """From a prompt that the model has not seen before to its first frame on the host."""
    synchronize(pipeline.device)
    started = time.perf_counter()
    # a number of its own makes the text new to the pipeline's text cache
    prompt = f"{_PROMPTS[0]} {seed} {next(_NUMBERS)}"
    next(pipeline.open(prompt, seed, settings=options.settings, deadline_ms=options.deadline_ms))
    return (time.perf_counter() - started) * 1000


def _switch_latencies(session: Session, chunk_seconds: float, count: int) -> list[float]:
    draw = random.Random(0)
    latencies = []
    for _ in range(count):
        next(session)
        submitted: list[float] = []
        event = StreamEvent(prompt=_other_words(session))
        if session.model.mesh is not None:
            # processes take a change at the same chunk alone if they are told between chunks
            _submit(session, event, submitted)
            _until_applied(session)
            latencies.append(time.perf_counter() - submitted[0])
            continue
        timer = threading.Timer(draw.random() * chunk_seconds, _submit, (session, event, submitted))
        timer.start()
        _until_applied(session)
        latencies.append(time.perf_counter() - submitted[0])
        timer.join()
    return latencies


def _submit(session: Session, event: StreamEvent, submitted: list[float]) -> None:
    submitted.append(time.perf_counter())
    session.submit(event)


def _other_words(session: Session) -> str:
    """Other words than the stream has now: only a change rebuilds the cache."""
    return _PROMPTS[session.controls.prompt == _PROMPTS[0]]


def _until_applied(session: Session) -> FrameChunk:
    while True:
        chunk = next(session)
        if chunk.receipts:
            return chunk


def _recaches(session: Session, count: int) -> list[float]:
    """Seconds that applying a prompt takes whose text is known: the rebuilding of the cache."""
    seconds = []
    for _ in range(count):
        session.submit(StreamEvent(prompt=_other_words(session)))
        seconds.append(_until_applied(session).timings["event"])
    return seconds


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and mean in ms."""
    ordered = sorted(seconds)
    return {
        "p50": round(statistics.median(ordered) * 1000, 3),
        "p99": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] * 1000, 3),
        "mean": round(statistics.fmean(ordered) * 1000, 3),
    }


def _cold_seconds(pipeline: Pipeline, loaded: Mapping[str, Any]) -> float:
    """From the start of a new process to its first frame on the host.

    Raises:
        InputError: it did not come to that.
    """
    runner = pipeline.choose().runner
    told = dict(loaded) | {
        "name": pipeline.name,
        "device": str(pipeline.device),
        "runner": runner.name,
        "quantize": runner.quantize or "none",
    }
    wan = told.get("wan")
    if wan is not None:
        # whom to tell stays here
        told["wan"] = replace(wan, note=None, progress=None)
    command = [sys.executable, "-c", _COLD, str(torch.get_num_threads())]
    started = time.perf_counter()
    done = subprocess.run(command, input=pickle.dumps(told), capture_output=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode or b"made" not in done.stdout:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"--cold: a new process made no frame ({last[:200]})")
    return seconds


def in_turns(pipeline: Pipeline, runners: tuple[Runner, Runner], options: BenchOptions) -> dict[str, Any]:
    """The same stream by two runners in turns, a few chunks each: how much faster the first one is, by the
    clock and in processor time of all threads. What disturbs one turn disturbs its neighbour, too.
    """
    pairs = [pipeline.open(_PROMPTS[0], 0, settings=options.settings, runner=runner) for runner in runners]
    for session in pairs:
        for _ in range(_warm_chunks(session, options.effort)):
            next(session)
    turns: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in _TIMED}
    count, chunks = options.effort.turns, options.effort.turn_chunks
    for turn in range(count):
        # who begins changes, so that what drifts favours nobody
        for place in (0, 1) if turn % 2 == 0 else (1, 0):
            session = pairs[place]
            clock, processor = time.perf_counter(), time.process_time()
            for _ in range(chunks):
                next(session)
            synchronize(pipeline.device)
            turns["clock"][place].append((time.perf_counter() - clock) / chunks)
            turns["processor"][place].append((time.process_time() - processor) / chunks)
            session.submit(StreamEvent(prompt=_other_words(session)))
            clock = time.perf_counter()
            _until_applied(session)
            turns["switch"][place].append(time.perf_counter() - clock)
            clock = time.perf_counter()
            next(pipeline.open(_PROMPTS[0], turn, settings=options.settings, runner=runners[place]))
            turns["first_frame"][place].append(time.perf_counter() - clock)
    names = [f"{each.name} {each.quantize}" if each.quantize else each.name for each in runners]
    return {"runners": names, "turns": count, "chunks_a_turn": chunks} | {
        what: {f"{names[0]}_ms": _spread(first), f"{names[1]}_ms": _spread(second)}
        | {"times_faster": _ratio(first, second)}
        for what, (first, second) in turns.items()
    }


def sixth_chunks(pipeline: Pipeline, runner: Runner, options: BenchOptions) -> dict[str, Any]:
    """The latency protocol of FlashDreams (github.com/NVIDIA/flashdreams, docs/benchmarks): streams of seven
    chunks, of which the sixth is told, behind one stream that is not counted. Published with a window of 21
    latent frames and without a sink. The cache's update, our commit, is told apart, as it is there.
    """
    rows: list[dict[str, float]] = []
    for number in range(1 + options.effort.openings):
        session = pipeline.open(_PROMPTS[0], number, settings=options.settings, runner=runner)
        with timed_parts(session, True):
            *_, sixth, seventh = (next(session) for _ in range(7))
        parts = {name: sixth.timings[name] for name in ("denoise", "decode")}
        rows.append(parts | {"commit": seventh.timings.get("commit", 0.0), "frames": len(sixth.frames)})
    counted, names = rows[1:], ("denoise", "decode", "commit")
    out: dict[str, Any] = {f"{name}_ms": _spread([row[name] for row in counted]) for name in names}
    for what, counts in (("fps", names), ("fps_without_commit", names[:2])):
        rates = [row["frames"] / sum(row[name] for name in counts) for row in counted]
        out[what] = round(statistics.median(rates), 3)
    return {"streams": len(counted), "frames": counted[0]["frames"]} | out


def _beside(session: Session, options: BenchOptions) -> dict[str, Any]:
    """The share of its rate that a stream keeps beside processes that never wait, in turns with none."""
    alone: list[float] = []
    crowded: list[float] = []
    for turn in range(2 * options.effort.turns):
        loops = [
            subprocess.Popen([sys.executable, "-c", _LOOP]) for _ in range(options.beside if turn % 2 else 0)
        ]
        try:
            if loops:
                # until they all run
                time.sleep(0.3)
            clock = time.perf_counter()
            for _ in range(options.effort.turn_chunks):
                next(session)
            seconds = (time.perf_counter() - clock) / options.effort.turn_chunks
            (crowded if loops else alone).append(seconds)
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()
    return {
        "loops": options.beside,
        "alone_ms": _spread(alone),
        "beside_ms": _spread(crowded),
        "share_of_rate": _ratio(crowded, alone),
    }


def _ratio(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """How many times as long the second of each pair took: median, 10th and 90th percentile."""
    ratios = sorted(b / a for a, b in zip(first, second, strict=True))
    place = lambda share: ratios[round(share * (len(ratios) - 1))]  # noqa: E731
    return {"p50": round(place(0.5), 3), "p10": round(place(0.1), 3), "p90": round(place(0.9), 3)}
