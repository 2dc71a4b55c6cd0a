"""Which runner computes a model's chunks: by name, or what is fastest here.

`auto` is decided by a measurement at load, of a chunk by each runner in turns, which takes a fraction of a
second and is kept in the user's cache folder for this kind of machine and model. All that it chooses from
agree with the plain runner within a stated tolerance.
"""

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from models.causal_dit import CausalDiT
from models.kv_cache import CacheRing
from models.video_codec import VideoCodec
from models.video_tokenizer import VideoTokenizer

from ..errors import InputError
from ..machine import free_bytes, own_version
from ..suggest import unknown_key
from .decoder import DecoderState
from .onnx.runner import OnnxRunner, unusable
from .overlap.ahead import AheadRunner
from .overlap.wave import WAVES, WaveRunner
from .program.compiled import GraphRunner, ProgramRunner
from .program.warm import Progress, warm_up
from .runner import BatchPlace, PlainRunner, Runner
from .sizes import Sizes, Trial, tried

RUNNERS = ("auto", "plain", "onnx", "compile", "graph", "ahead", *WAVES)
# what `auto` chooses from; compiling takes minutes, and is for those who ask
_CANDIDATES = ("plain", "onnx")
# where none is asked for
RUNNER_VARIABLE = "STREAMGEN_RUNNER"
# `auto` tries no runtime that keeps weights a second time on networks above this
_MOST_PARAMETERS = 200_000_000
_TURNS = 3
# times as fast as it plays
_ENOUGH = 2.0


@dataclass(frozen=True)
class AtLoad:
    """What streams of a model will be computed with, as far as it is known when the model is loaded.

    Attributes:
        runner, quantize: as asked for; None: not said.
        several: whether processes compute each stream together.
        keep_full: whether weights in full precision are wanted beside those in eight bits.
    """

    runner: str | None = None
    quantize: str | None = None
    several: bool = False
    keep_full: bool = False


@dataclass(frozen=True)
class Recorded:
    """What a stream was computed with, as its record or snapshot says; None where it does not."""

    runner: str | None = None
    quantize: str | None = None
    batch: BatchPlace | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Recorded":
        """Of a record or of a snapshot's header. One that names its runner alone was in full precision.

        Raises:
            InputError: a batch that cannot be.
        """
        runner, batch = values.get("runner"), values.get("batch")
        place = BatchPlace.from_json(batch) if isinstance(batch, Mapping) else None
        return cls(runner, values.get("quantize") or (None if runner is None else "none"), place)


@dataclass(frozen=True)
class Chosen:
    """A runner, and one line where it is another than was asked for."""

    runner: Runner
    note: str | None = None


def default_runner() -> str:
    """What is taken where none is asked for: `auto`, or what the environment says.

    Raises:
        InputError: the environment names an unknown one.
    """
    return check_runner(os.environ.get(RUNNER_VARIABLE) or "auto")


def check_runner(name: str) -> str:
    """The name of a runner.

    Raises:
        InputError: an unknown one.
    """
    if name not in RUNNERS:
        raise InputError(unknown_key(name, RUNNERS, noun="runner"))
    return name


def choose_runner(
    name: str,
    dit: CausalDiT,
    codec: VideoCodec | None,
    sizes: Sizes,
    recorded: bool = False,
    ring: Callable[[], CacheRing] | None = None,
    progress: Progress = lambda done, total, label: None,
) -> Chosen:
    """A runner by name, ready to run.

    Args:
        ring: makes a cache as streams get it, for programs that know its addresses.
        progress: told of programs that are made.
        recorded: the name is what a record says, not what was asked for: where it cannot be had, the plain
            runner goes on, and the note says so.

    Raises:
        InputError: an unknown name, or one that cannot run this model here, and why.
    """
    if recorded and name not in RUNNERS:
        return Chosen(PlainRunner(dit, codec), f"runner {name}: unknown here; going on with the plain one")
    name, failed = check_runner(name), None
    if name == "auto":
        seconds, failed = _measured(dit, codec, sizes)
        name = min(seconds, key=lambda each: seconds[each], default="plain")
    if name == "plain":
        note = None if failed is None else f"runner onnx: {failed}; going on with the plain one"
        return Chosen(PlainRunner(dit, codec), note)
    if name == "ahead":
        return Chosen(AheadRunner(dit, codec))
    if name in WAVES:
        return Chosen(WaveRunner(name, dit, codec, None, len(sizes.sampling.sigmas) - 1))
    reason = _unsuited(name, dit)
    if reason is not None and not recorded:
        raise InputError(f"runner {name}: {reason}")
    if reason is None:
        try:
            if name == "onnx":
                return Chosen(_onnx(dit, codec, sizes))
            made = sizes.ring(dit) if ring is None else ring()
            return Chosen(_programs(name, dit, codec, sizes, made, progress))
        except Exception as error:  # whatever the runtime has to say, the plain runner needs none of it
            reason = _in_short(error)
    return Chosen(PlainRunner(dit, codec), f"runner {name}: {reason}; going on with the plain one")


def fastest(
    dit: CausalDiT,
    codec: VideoCodec | None,
    sizes: Sizes,
    folder: Path | None = None,
    measure: Callable[[Runner], float] | None = None,
) -> str:
    """The name of the runner that measures fastest for a model on this machine; kept once it is known.

    Args:
        folder: where it is kept; by default the user's cache folder.
        measure: seconds of a runner's work, the shortest of a few; by default `work_seconds`.
    """
    seconds = measured(dit, codec, sizes, folder, measure)
    return min(seconds, key=lambda name: seconds[name], default="plain")


def one_thread_is_enough(
    name: str,
    dit: CausalDiT,
    codec: VideoCodec | None,
    sizes: Sizes,
    folder: Path | None = None,
    measure: Callable[[Runner], float] | None = None,
) -> bool:
    """Whether a runner makes chunks at twice the rate at which they play on one thread: then more of them are
    no use, and where other processes want the cores, threads that wait for each other are what stalls.

    Args:
        name: of the runner; `auto`: of the fastest.
        folder, measure: see `fastest`.
    """
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        seconds = measured(dit, codec, sizes, folder, measure)
    finally:
        torch.set_num_threads(threads)
    least = min(seconds.values(), default=math.inf) if name == "auto" else seconds.get(name, math.inf)
    return least * _ENOUGH <= sizes.chunk_seconds


def measured(
    dit: CausalDiT,
    codec: VideoCodec | None,
    sizes: Sizes,
    folder: Path | None = None,
    measure: Callable[[Runner], float] | None = None,
) -> dict[str, float]:
    """Seconds of a chunk by runner, the shortest of a few; nothing where there is but the plain one, or the
    network is too large to be measured at load. Kept once they are known; see `fastest`.
    """
    return _measured(dit, codec, sizes, folder, measure)[0]


def _measured(
    dit: CausalDiT,
    codec: VideoCodec | None,
    sizes: Sizes,
    folder: Path | None = None,
    measure: Callable[[Runner], float] | None = None,
) -> tuple[dict[str, float], str | None]:
    """What `measured` returns, and why a runtime that is there did not work, in one line."""
    if unusable(dit) is not None or sum(x.numel() for x in dit.parameters()) > _MOST_PARAMETERS:
        return {}, None
    names = _CANDIDATES
    file, key = _cache_file(folder), _key(dit, codec, sizes)
    known = _read(file).get(key)
    if isinstance(known, dict) and all(isinstance(known.get(name), int | float) for name in names):
        return {name: float(known[name]) for name in names}, None
    measure = measure or (lambda runner: work_seconds(runner, dit, codec, sizes))
    try:
        runners: dict[str, Runner] = {"plain": PlainRunner(dit, codec), "onnx": _onnx(dit, codec, sizes)}
        seconds = dict.fromkeys(names, math.inf)
        for _ in range(_TURNS):
            for name, runner in runners.items():
                seconds[name] = min(seconds[name], measure(runner))
    except Exception as error:  # a runtime that does not work here is not the fastest
        return {}, _in_short(error)
    _write(file, _read(file) | {key: {name: round(value, 6) for name, value in seconds.items()}})
    return seconds, None


def _in_short(error: Exception) -> str:
    # what torch's compiler adds in paragraphs of its own is how to debug it
    first, *_ = str(error).strip().split("\n\n")
    return " ".join(first.split())[:200] or type(error).__name__


@torch.no_grad()
def work_seconds(runner: Runner, dit: CausalDiT, codec: VideoCodec | None, sizes: Sizes) -> float:
    """Seconds of a chunk with the window full: its steps, its commit and its decoding."""
    geometry, state, device = sizes.geometry, None, dit.head.head.weight.device
    if codec is not None:
        size = (1, 1, geometry.latent_channels, geometry.latent_height, geometry.latent_width)
        _, state = runner.decode(torch.zeros(size, device=device), DecoderState.initial(codec))
    trial = Trial(sizes.plan.attention_frames, sizes.plan.chunk_frames, sizes.sampling)
    latents, seconds = tried(runner, dit, sizes, sizes.ring(dit), trial)
    began = time.perf_counter()
    if state is not None:
        runner.decode(latents, state)
    return seconds + time.perf_counter() - began


def _onnx(dit: CausalDiT, codec: VideoCodec | None, sizes: Sizes) -> OnnxRunner:
    """The ONNX runner with the programs that every stream needs."""
    geometry, runner = sizes.geometry, OnnxRunner(dit, codec)
    for frames in {sizes.plan.first_chunk_frames, sizes.plan.chunk_frames}:
        runner.warm(geometry.token_grid, frames, (geometry.latent_height, geometry.latent_width))
    return runner


def _too_large(dit: CausalDiT) -> str | None:
    """Why a network's weights have no room beside themselves, as they lie for the runtime; None where they
    have.
    """
    free = free_bytes(torch.device("cpu"))
    needed = 2 * sum(x.numel() * x.element_size() for x in dit.parameters())
    if free is None or needed <= free:
        return None
    return f"needs {needed / 2**30:.1f} GiB for its own form of the weights, {free / 2**30:.1f} are free"


def _programs(
    name: str, dit: CausalDiT, codec: VideoCodec | None, sizes: Sizes, ring: CacheRing, progress: Progress
) -> ProgramRunner:
    """The compiled runner, or the one with graphs, with the programs that every stream needs; what is
    compiled is kept on the disk for the next process.
    """
    runner = (ProgramRunner if name == "compile" else GraphRunner)(dit, codec)
    warm_up(runner, dit, sizes, ring, progress)
    return runner


def _unsuited(name: str, dit: CausalDiT) -> str | None:
    """Why a runner cannot run a network here; None where nothing is known against it."""
    device = dit.head.head.weight.device
    if name == "onnx":
        return unusable(dit) or _too_large(dit)
    if name == "graph" and device.type != "cuda":
        return f"runs on CUDA devices, the model is on {device}"
    return None


def _key(dit: CausalDiT, codec: VideoCodec | None, sizes: Sizes) -> str:
    """What a measurement is good for, as hex digits: sizes, versions, processor and threads."""
    decoder = asdict(codec.config) if isinstance(codec, VideoTokenizer) else type(codec).__name__
    values = {
        "dit": asdict(dit.config),
        "decoder": decoder,
        "sizes": asdict(sizes),
        "versions": [own_version(), torch.__version__, _version("onnxruntime")],
        "machine": [platform.machine(), _processor()],
        "threads": torch.get_num_threads(),
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def _processor() -> str:
    """The processor's name, which platform does not know on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    named = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return hashlib.sha256("".join(sorted(named)).encode()).hexdigest() if named else platform.processor()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _cache_file(folder: Path | None) -> Path | None:
    """Where measurements are kept; None for a user without a place of their own."""
    if folder is None:
        try:
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streamgen"
        except RuntimeError:
            return None
    return folder / "runners.json"


def _read(file: Path | None) -> dict[str, Any]:
    """What is kept; nothing where there is no file, or a damaged one."""
    if file is None:
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(file: Path | None, content: dict[str, Any]) -> None:
    """Keep it, where there is a place for it; a machine without one measures every time."""
    if file is None:
        return
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)
