"""Steps of a stream whose chunks overlap: a chunk begins, and all that have begun go one step on.

What takes effect with a chunk is decided when it begins, as everywhere. What rebuilds the cache or begins a
scene waits until all chunks that have begun are finished, so a rebuilt cache holds them; so does the chunk
behind the first one of a scene, which all others look at.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ...engine.decoder import DecoderState, Decoding
from ...engine.overlap.wave import WaveRunner
from ...engine.runner import DenoiseTask
from ..conditioning import chunk_conditioning
from ..latents import LatentChunk
from ..model import StreamModel
from ..recache import commit_task
from ..state import FrameChunk, StreamState
from ..step import Decision, check_positions, prepared, settled, steps_of
from .flight import InFlight

_Pictures = tuple[Tensor | Decoding, DecoderState | Decoding | None]


def may_begin(runner: WaveRunner, state: StreamState, decision: Decision) -> bool:
    """Whether the next chunk begins now: nothing has begun, or all is far enough that it stays behind, and it
    changes nothing that they look at.
    """
    if not state.flight:
        return True
    youngest, steps = state.flight[-1].begun, steps_of(state, decision)
    if youngest.step < runner.stagger or youngest.left >= steps:
        return False
    # the first chunk of a scene is finished first
    return bool(state.latents.recent) and decision.action == "keep" and decision.picture is None


@torch.no_grad()
def begin(model: StreamModel, runner: WaveRunner, state: StreamState, decision: Decision) -> StreamState:
    """The state with its next chunk begun, before its first step.

    Raises:
        InputError: absolute positions have come to their end, or its steps cannot overlap.
    """
    began, timings = time.perf_counter(), dict[str, float]()
    controls, frame = decision.controls, state.next_frame(model.geometry)
    state = settled(runner, state, decision, timings.__setitem__)
    latents = prepared(model, runner, state, decision)
    place = latents.later(len(state.flight))
    ahead = sum(each.begun.frames for each in state.flight)
    check_positions(latents.ring, latents.coming.moved(ahead), place.length)
    conditioning = chunk_conditioning(model, controls, place)
    steps = steps_of(state, decision)
    sampling = controls.settings.sampling(steps, model.settings)
    task = (latents.ring, latents.coming, place.chunk, place.length, conditioning, state.noise, sampling)
    begun, log = runner.begin(DenoiseTask(*task)), state.log
    if decision.event is not None:
        numbers = tuple(item.receipt.number for item, _ in decision.applied)
        log = log.appended(place.chunk, frame, decision.event, numbers)
    receipts = tuple(item.receipt for item in decision.taken)
    timings["event"] = time.perf_counter() - began
    chunk = InFlight(begun, place.start, controls.text, steps, receipts, decision.rebuilds, timings)
    return replace(state, latents=latents, controls=controls, log=log, flight=(*state.flight, chunk))


@torch.no_grad()
def tick(
    model: StreamModel, runner: WaveRunner, state: StreamState, measure: Callable[[str, float], None]
) -> tuple[StreamState, FrameChunk | None]:
    """All chunks that have begun one step on, and what is due committed: the state behind that, and the chunk
    that it finished, if it did. `measure` gets the parts.

    Raises:
        NonFiniteError: a chunk came to NaN or infinity.
    """
    latents, decoded = state.latents, list[_Pictures]()
    began, spent = time.perf_counter(), list[float]()

    def made(clean: Tensor) -> None:
        if state.decoder is not None and runner.shows and not decoded:
            before = time.perf_counter()
            decoded.append(model.decoded(runner, clean, state.decoder))
            spent.append(time.perf_counter() - before)

    due = commit_task(latents, latents.cursor, latents.recent[-1], state.noise) if latents.due else None
    chunks = [each.begun for each in state.flight]
    after = runner.tick(latents.ring, latents.cursor, due, chunks, made)
    latents = replace(latents, cursor=latents.coming, due=False)
    flight = tuple(replace(each, begun=begun) for each, begun in zip(state.flight, after, strict=True))
    state, first = replace(state, latents=latents, flight=flight), flight[0]
    if not first.begun.left:
        made(first.begun.x)
    measure("denoise", time.perf_counter() - began - sum(spent))
    measure("decode", sum(spent))
    if first.begun.left:
        return state, None
    return _landed(model, state, first, decoded[0] if decoded else None)


def _landed(
    model: StreamModel, state: StreamState, first: InFlight, decoded: _Pictures | None
) -> tuple[StreamState, FrameChunk]:
    """The state with its oldest chunk finished, and the chunk."""
    begun, geometry = first.begun, model.geometry
    level, drawn = begun.sampling.context_sigma, begun.sampling.commit_noise
    motion = begun.conditioning.motion
    chunk = LatentChunk(begun.index, first.start, begun.x, motion, first.text, level, drawn)
    opens, stop = geometry.frame_range(first.start, begun.frames)
    frames: Tensor | Decoding = model.no_frames()
    decoder = state.decoder
    if decoded is not None:
        frames, decoder = decoded
    elif state.decoder is not None:
        # the first process has the pictures; the others count them
        frames = model.no_frames().new_zeros(1).expand(stop - opens, geometry.height, geometry.width, 3)
    latents = state.latents.followed_by(chunk)
    moved = state.moved(latents, state.controls, decoder, state.log, state.heard)
    made = (begun.index, state.epoch, first.receipts, first.timings, chunk.latents, first.steps)
    shown = FrameChunk(frames, opens, geometry.fps, *made, first.recached)
    return replace(moved, flight=state.flight[1:]), shown
