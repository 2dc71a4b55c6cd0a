"""A loaded model that opens streams."""

import os
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from models.causal_dit import CausalDiT

from .engine.adapters.live_lora import LiveLoraRunner, check_can_change
from .engine.adapters.writer import writing
from .engine.batch import BatchedRunner, Gathering
from .engine.budget import StepBudget
from .engine.choice import (
    AtLoad,
    Chosen,
    Recorded,
    check_runner,
    choose_runner,
    default_runner,
    one_thread_is_enough,
)
from .engine.decoder import DecoderState, encode_frames
from .engine.noise import NoiseSource, SeededNoise, checked_source, seed_identity
from .engine.overlap.wave import WaveRunner
from .engine.parallel.mesh import Mesh
from .engine.parallel.shared import shared_runner
from .engine.parallel.ulysses import UlyssesRunner
from .engine.program.warm import Progress
from .engine.quantize import (
    CACHE,
    QUANTIZATIONS,
    Quantization,
    check_cache,
    check_quantization,
    default_quantization,
    keeps_cache,
    of_linears,
    quantization,
    quantized,
)
from .engine.runner import PlainRunner, Runner
from .engine.sizes import Sizes
from .errors import InputError
from .families import load_parts
from .motion.gestures import changed
from .motion.tracks import TrackSet
from .stream.conditioning import Controls
from .stream.events import StreamEvent
from .stream.latents import LatentState
from .stream.log import EventLog, LogHeader
from .stream.model import ModelParts, StreamModel
from .stream.prompts import Blend
from .stream.recache import recache_of
from .stream.session import Session
from .stream.settings import StreamSettings
from .stream.snapshot import read_snapshot
from .stream.state import StreamState
from .stream.timeline import Start, Timeline
from .video.read import crop_note, read_clip, read_image
from .wan.options import WanOptions

_MAX_START_FRAMES = 1 + 16 * 60


class Pipeline(StreamModel):
    """Opens streams. Sessions share its weights and its runners, and nothing else; made by `load_pipeline`.

    Attributes:
        asked_runner: the runner that was asked for when it was loaded; None: what each stream says, or auto.
        asked_quantize: likewise of `engine.quantize.QUANTIZATIONS`; None: what each stream says, or none.
    """

    def __init__(
        self,
        parts: ModelParts,
        runner: str | None = None,
        quantize: str | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        super().__init__(parts)
        self.mesh = mesh
        if mesh is not None:
            self.shards_caches = isinstance(self._shared(self.dit, mesh, runner), UlyssesRunner)
        self.asked_runner = None if runner is None else check_runner(runner)
        self.asked_quantize = None if quantize is None else check_quantization(quantize)
        self._runners: dict[tuple[Recorded, bool, bool, int], Chosen] = {}
        self._quantized: dict[str, CausalDiT] = {}
        self._choosing = threading.Lock()
        # notes of `choose` that were said already
        self.told: set[str] = set()

    def open(  # noqa: PLR0913  all that a stream can begin with, by name
        self,
        prompt: str | None = None,
        seed: int = 0,
        motion: TrackSet | None = None,
        image: str | Path | Tensor | None = None,
        video: str | Path | Tensor | None = None,
        settings: Mapping[str, Any] | None = None,
        noise: NoiseSource | None = None,
        *,
        gestures: Mapping[str, TrackSet | None] | None = None,
        prompt_embeds: Tensor | None = None,
        blend: Blend | Sequence[Any] | Mapping[str, float] | None = None,
        runner: str | Runner | None = None,
        quantize: str | None = None,
        decode: bool = True,
        log: str | Path | None = None,
        deadline_ms: float | None = None,
    ) -> Session:
        """Begin a stream.

        Args:
            prompt: what to show.
            seed: every draw of the stream is a function of it.
            motion: tracks from frame 0 on.
            image, video: what the stream starts from (one of them): a file, or uint8 `(H, W, 3)` / `(T, H, W,
                3)`. Of a clip, the frames that fill whole chunks are kept; an image fills the first chunk.
            settings: `StreamSettings` by name, over the checkpoint's.
            noise: where all draws come from instead of the seed, recorded ones for instance.
            gestures: named tracks from frame 0 on, besides `motion`.
            prompt_embeds: embeddings `(L, dim)` in place of those of the prompt's words.
            blend: prompts with weights in place of one prompt.
            runner: what computes chunks: a name of `engine.choice.RUNNERS`, or one of your own; by default
                what the pipeline was loaded with, else `auto`.
            quantize: what is in eight bits, a name of `engine.quantize.QUANTIZATIONS`; by default what the
                pipeline was loaded with, else none. A runner of your own decides itself.
            decode: False gives a stream of latents, which needs no picture decoder.
            log: a file that the event log is appended to as the stream goes on.
            deadline_ms: what a chunk may take until its pictures are there: it gets as many steps as fit,
                which the log tells, so that a replay takes the same.

        Raises:
            InputError: bad prompt, settings, image or clip, tracks for a model that knows none, or a runner
                or eight bits that are unknown or cannot be had.
            CheckpointError: a cache that does not fit into memory.
        """
        event = StreamEvent(prompt, motion, gestures=gestures, prompt_embeds=prompt_embeds, blend=blend)
        if not event.changes_text:
            raise InputError("prompt: expected some words, a blend or prompt_embeds, found none of them")
        gestures_now = changed((), event.gesture_changes, 0)
        if gestures_now and self.motion_encoder is None:
            raise InputError(f"motion: {self.name} was not trained with tracks")
        merged = self.settings.updated(settings or {})
        recache_of(merged.recache_mode).check(merged.plan(self.plan), merged.sink_policy)
        strengths = self.strengths(merged)
        draws = SeededNoise(seed, self.device, self.dtype) if noise is None else checked_source(noise)
        budget = None if deadline_ms is None else StepBudget.of(deadline_ms)
        chosen = self.runner(runner, quantize=quantize)
        latents, start = self._opening(image, video)
        self._prepare_other_words(merged)
        state = StreamState(
            LatentState(self.new_ring(merged, keeps_cache(chosen.quantize))),
            Controls(self.read_at(self.event_text(event), strengths), merged, gestures_now),
            DecoderState.initial(self.tokenizer) if decode else None,
            EventLog(LogHeader(self.geometry.fps, seed, draws.identity, start)),
            draws,
            latents,
        )
        return Session(self, state, chosen, None if log is None else Path(log), budget)

    def _prepare_other_words(self, settings: StreamSettings) -> None:
        """Encode what a stream compares with now, so that no chunk waits for it."""
        if self.needs_null(settings):
            _ = self.null_text
        self.negative_text(settings)
        self.input_text(settings)

    def runner(
        self,
        runner: str | Runner | None = None,
        recorded: Recorded | None = None,
        quantize: str | None = None,
    ) -> Runner:
        """The runner of `choose`, or the one that is given. Warns where it is another than was asked for, and
        the note on it is not among those `told`.

        Raises:
            InputError: see `choose`.
        """
        if self.parts.live is not None:
            check_can_change(runner)
        if runner is not None and not isinstance(runner, str):
            return runner
        chosen = self.choose(runner, recorded, quantize)
        if chosen.note is not None and chosen.note not in self.told:
            warnings.warn(chosen.note, RuntimeWarning, stacklevel=3)
        return chosen.runner

    def choose(
        self,
        name: str | None = None,
        recorded: Recorded | None = None,
        quantize: str | None = None,
        progress: Progress = lambda done, total, label: None,
    ) -> Chosen:
        """A runner by name, made once for each number of torch's threads.

        Args:
            name: by default what the pipeline was loaded with.
            recorded: what the stream ran on before, taken where nothing is asked for.
            quantize: eight bits or none; by default what the pipeline was loaded with.
            progress: told of programs that are made: how many are, of how many, and which one comes.

        Raises:
            InputError: an unknown runner or quantisation, or one that cannot be had for this model here.
        """
        asked, bits = name or self.asked_runner, quantize or self.asked_quantize
        before = recorded or Recorded()
        bits_told = bits or (None if before.quantize else default_quantization())
        wanted = Recorded(
            asked or before.runner or default_runner(),
            bits_told or before.quantize or self.parts.quantize,
            before.batch if asked is None else None,
        )
        key = (wanted, asked is None, bits_told is not None, torch.get_num_threads())
        make = lambda net, name: self._chosen(net, asked, replace(wanted, runner=name), progress)  # noqa: E731
        with self._choosing:
            if key not in self._runners:
                name_of_bits = str(wanted.quantize)
                dit, note = self._in_bits(of_linears(name_of_bits), bits_told is not None)
                chosen = make(dit, str(wanted.runner))
                if keeps_cache(name_of_bits) and isinstance(chosen.runner, PlainRunner):
                    bits = chosen.runner.quantize
                    chosen.runner.quantize = CACHE if bits is None else f"{bits}+{CACHE}"
                chosen = writing(self.dit, chosen, make)
                self._runners[key] = chosen if note is None else replace(chosen, note=note)
            return self._runners[key]

    def _chosen(self, dit: CausalDiT, asked: str | None, wanted: Recorded, progress: Progress) -> Chosen:
        """The runner that is wanted, for the network in full precision or in eight bits."""
        live, cache = self.parts.live, keeps_cache(str(wanted.quantize))
        if cache:
            processes = None if self.mesh is None else self.mesh.size
            check_cache(str(wanted.runner), asked is not None, processes)
        if live is not None:
            check_can_change(asked)
            if cache or self.mesh is not None:
                other = "quantize cache" if cache else f"{self.mesh.size if self.mesh else 1} processes"
                raise InputError(f"{other}: cannot have LoRAs whose strength may change, merge them (--lora)")
            return Chosen(LiveLoraRunner(dit, live, self.codec))
        if self.mesh is not None:
            return Chosen(self._shared(dit, self.mesh, self.asked_runner))
        if wanted.batch is not None:
            return Chosen(BatchedRunner.lone(dit, self.codec, wanted.batch))
        if cache:
            # the others read a cache where it lies
            return Chosen(PlainRunner(dit, self.codec))
        ring = lambda: self.new_ring(self.settings)  # noqa: E731
        return choose_runner(
            str(wanted.runner), dit, self.codec, self._sizes(), asked is None, ring, progress
        )

    def _shared(self, dit: CausalDiT, mesh: Mesh, name: str | None) -> UlyssesRunner | WaveRunner:
        about = (mesh, self.geometry.token_grid, self.settings.steps)
        return shared_runner(name or default_runner(), dit, self.codec, *about)

    def gathering(self, size: int) -> Gathering:
        """Where streams of `size` threads meet, each with a runner of `Gathering.member`; they run on the
        plain runner, in the eight bits that the pipeline was loaded with, if any.

        Raises:
            InputError: a size that is none of 1 to 64, another runner that was asked for, eight bits that
                cannot be had, or a model with live LoRAs.
        """
        if self.asked_runner not in (None, "auto", "plain"):
            raise InputError(f"batch: streams at once run on runner plain, found {self.asked_runner}")
        if self.parts.live is not None:
            raise InputError(
                "batch: streams at once cannot have LoRAs of other strengths, merge them (--lora)"
            )
        with self._choosing:
            asked = self.asked_quantize is not None or default_quantization() is not None
            if keeps_cache(self.quantize_by_default):
                raise InputError("batch: streams at once keep their caches in full precision")
            dit, _ = self._in_bits(self.quantize_by_default, asked)
        return Gathering(dit, self.codec, size)

    def _in_bits(self, name: str, asked: bool) -> tuple[CausalDiT, str | None]:
        """The network in full precision or in eight bits, which shares all else with it; made once.

        Args:
            asked: whether it was asked for, and not only recorded or in the model's files: then what cannot
                be had is an error, else the note says that the stream goes on in full precision.
        """
        if not asked and name not in QUANTIZATIONS:
            return self.dit, f"quantize {name}: unknown here; going on in full precision"
        kind, held = check_quantization(name), quantization(self.dit) or "none"
        if kind == held:
            return self.dit, None
        if held != "none":
            why = f"quantize {kind}: {self.name} was loaded in {held} alone"
            if asked:
                raise InputError(why)
            return self.dit, f"{why}; going on in {held}"
        if kind not in self._quantized:
            try:
                self._quantized[kind] = quantized(self.dit, cast(Quantization, kind))
            except InputError as error:
                if asked:
                    raise
                return self.dit, f"{error}; going on in full precision"
        return self._quantized[kind], None

    @property
    def quantize_by_default(self) -> str:
        """In which eight bits new streams compute, or `none`."""
        return self.asked_quantize or default_quantization() or self.parts.quantize

    def settle_threads(self) -> None:
        """Let torch and the runners use one thread on CPUs, where that makes chunks at twice the rate at
        which they play: such a stream keeps its rate beside other processes. For programs that own their
        process, before the first stream; what OMP_NUM_THREADS says wins.
        """
        if self.device.type != "cpu" or "OMP_NUM_THREADS" in os.environ or torch.get_num_threads() == 1:
            return
        name = self.asked_runner or default_runner()
        if self.quantize_by_default == "none" and one_thread_is_enough(
            name, self.dit, self.codec, self._sizes()
        ):
            torch.set_num_threads(1)

    def _sizes(self) -> Sizes:
        settings = self.settings
        counts = {settings.steps, settings.first_steps, settings.change_steps} - {0}
        if settings.sampler == "renoise":
            # a deadline may come to any of the trained ones
            counts |= set(range(1, settings.steps + 1))
        return Sizes(
            self.geometry,
            settings.plan(self.plan),
            settings.sampling(),
            settings.guidance(),
            tuple(settings.sampling(count, settings) for count in sorted(counts, reverse=True)),
            self.prompts.length,
        )

    def resume(
        self,
        path: str | Path,
        noise: NoiseSource | None = None,
        *,
        runner: str | Runner | None = None,
        quantize: str | None = None,
        log: str | Path | None = None,
        deadline_ms: float | None = None,
    ) -> Session:
        """Go on with a stream that `Session.save` wrote.

        Args:
            noise: the stream's source of draws, where it was not its seed.
            runner, quantize: by default what the stream ran on.
            log: the stream's event log, where it lies neither in the file nor where it was.
            deadline_ms: see `open`; without one the stream goes on with the steps that its last one came to.

        Raises:
            InputError: missing or damaged file or log, or one of another model, source of draws or version.
        """
        snapshot = read_snapshot(Path(path), self.device, None if log is None else Path(log))
        chosen = self.runner(runner, Recorded.of(snapshot.meta), quantize)
        budget = None if deadline_ms is None else StepBudget.of(deadline_ms)
        return Session.of(self, snapshot, chosen, noise, budget)

    def replay(
        self,
        timeline: Timeline,
        image: str | Path | Tensor | None = None,
        video: str | Path | Tensor | None = None,
        noise: NoiseSource | None = None,
        *,
        runner: str | Runner | None = None,
        quantize: str | None = None,
        decode: bool = True,
    ) -> Session:
        """A session that goes through a recorded timeline again; pictures are bit-exact on the same device
        and threads. A timeline does not hold pictures: `image` or `video` is what the stream started from.

        Args:
            noise: the stream's source of draws, where it was not its seed.

        Raises:
            InputError: a timeline without an opening event, or other pictures or draws than the stream's.
        """
        if not timeline.events or not timeline.events[0].event.changes_text:
            raise InputError("timeline: expected an opening event with a prompt, found none")
        found_noise = seed_identity(timeline.seed) if noise is None else checked_source(noise).identity
        if timeline.noise != found_noise:
            raise InputError(f"timeline: noise: expected draws of {timeline.noise!r}, found {found_noise!r}")
        opening = timeline.events[0].event
        session = self.open(
            opening.prompt, timeline.seed, opening.motion, image, video, opening.settings, noise,
            gestures=opening.gestures, prompt_embeds=opening.prompt_embeds, blend=opening.blend,
            runner=runner, quantize=quantize, decode=decode,
        )  # fmt: skip
        expected, found = timeline.start, session.state.log.header.start
        if expected != found:
            raise InputError(
                f"timeline: image or video: expected {expected or 'none'}, found {found or 'none'}"
            )
        beside = opening.beside_opening
        if beside is not None:
            session.submit(beside, 0)
        for entry in timeline.events[1:]:
            receipt = session.submit(entry.event, entry.frame)
            if receipt.status == "refused":
                raise InputError(f"timeline: event at frame {entry.frame}: {receipt.reason}")
        return session

    def start_pictures(
        self, image: str | Path | Tensor | None = None, video: str | Path | Tensor | None = None
    ) -> Tensor | None:
        """The pictures that a stream with this image or clip starts from, uint8 `(T, H, W, 3)`; None without
        either.

        Raises:
            InputError: both are given, or one that cannot be read or does not fit.
        """
        if image is not None and video is not None:
            raise InputError("start: expected an image or a clip, found both")
        if image is None and video is None:
            return None
        height, width = self.geometry.height, self.geometry.width
        if isinstance(image, Tensor):
            frames = image[None]
        elif image is not None:
            frames = torch.from_numpy(read_image(image, height, width))[None]
        elif isinstance(video, Tensor):
            frames = video
        else:
            clip = read_clip(str(video), self.geometry.fps, height, width, _MAX_START_FRAMES)
            frames = torch.from_numpy(np.ascontiguousarray(clip))
        fits = frames.dim() == 4 and len(frames) > 0 and tuple(frames.shape[1:]) == (height, width, 3)
        if frames.dtype != torch.uint8 or not fits:
            raise InputError(
                f"start: expected uint8 frames of {height}x{width}x3, found {frames.dtype} "
                f"{tuple(frames.shape)}"
            )
        if video is None:
            # where the first chunk is several latent frames, the picture stands still for them
            frames = frames.expand(self.geometry.frames(self.plan.length(0)), -1, -1, -1)
        # whole latent frames only: a padded tail would freeze the picture for up to three frames
        return frames[: 1 + (len(frames) - 1) // self.geometry.temporal * self.geometry.temporal]

    def picture_notes(self, image: str | Path | None) -> tuple[str, ...]:
        """What starting from an image file means here, a line each: nothing for most.

        Raises:
            InputError: it cannot be read.
        """
        if image is None:
            return ()
        notes = []
        still = self.geometry.frames(self.plan.length(0))
        if still > 1:
            notes.append(f"image: stands still for {still} frames, the first chunk of this model")
        cropped = crop_note(image, self.geometry.width, self.geometry.height)
        return (*notes, *filter(None, [cropped]))

    def _opening(
        self, image: str | Path | Tensor | None, video: str | Path | Tensor | None
    ) -> tuple[Tensor | None, Start | None]:
        """Latents `(1, T, C, h, w)` of what a stream starts from, and its fingerprint."""
        frames = self.start_pictures(image, video)
        if frames is None:
            return None, None
        latents = encode_frames(self.tokenizer, frames).to(self.device, self.dtype)
        if latents.shape[1] < self.plan.length(0):
            raise InputError(
                f"start: expected at least {self.geometry.frames(self.plan.length(0))} frames for the first "
                f"chunk of this model, found {self.geometry.frames(latents.shape[1])}"
            )
        return latents, Start.of(frames)


def load_pipeline(
    name: str | Path = "tiny",
    device: str = "auto",
    dtype: torch.dtype | None = None,
    wan: WanOptions | None = None,
    runner: str | None = None,
    quantize: str | None = None,
    mesh: Mesh | None = None,
    keep_full: bool = False,
) -> Pipeline:
    """Load a model by name (see `model_names`) or from a checkpoint directory.

    Args:
        device: `auto` takes a GPU where there is one.
        dtype: of the diffusion network; default bfloat16 on a GPU, float32 on the CPU. The tiny family's
            tokenizer stays float32.
        wan: for a model of the Wan family (`wan_model_names`), where its weights are.
        runner: what its streams are computed by, a name of `engine.choice.RUNNERS`; None leaves it to each
            stream.
        quantize: what of them is in eight bits, a name of `engine.quantize.QUANTIZATIONS`: linear layers as
            `int8` or `fp8`, the `cache`, both as `int8+cache`; None leaves it to each stream.
        mesh: processes that compute each stream together (`engine.parallel.mesh.joined`); all of them load
            the model, and open, steer and go through its streams alike.
        keep_full: keep a Wan-family model's weights in full precision beside eight bits; tiny always does.

    Raises:
        CheckpointError: unknown name, or weights that are missing, damaged or do not fit; InputError: no such
            device, runner or quantisation.
    """
    if runner is not None:
        check_runner(runner)
    if quantize is not None:
        check_quantization(quantize)
    device = device if mesh is None else str(mesh.device)
    at_load = AtLoad(runner, quantize, mesh is not None, keep_full)
    return Pipeline(load_parts(name, device, dtype, wan, at_load), runner, quantize, mesh)
