"""From a model to the rows of its evaluation, and to the report that is made of them."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from models.video_tokenizer import VideoTokenizer
from streamgen import Pipeline, load_pipeline
from streamgen.check.agreement import eight_bits
from streamgen.engine.choice import RUNNER_VARIABLE
from streamgen.engine.quantize import QUANTIZE_VARIABLE, Quantization, of_linears
from streamgen.engine.source import strength_problem

from ..command import say
from ..files import write_json
from ..scenes import SceneConfig
from .edits import STRENGTHS
from .measures import Instruments, plain
from .pool import Work, make_rows, one_thread
from .report import make_report
from .rows import About, Row, RowFile, row_of, settings_digest
from .streams import StreamSpec, Video
from .suites import FPS, EvaluationConfig, SuiteBuilder
from .tokenizer import tokenizer_reads
from .truth import Truth, TruthSuite, truth_suites

#: Seeds of the clips that measures and tokenizers are judged on, and of those that a baseline is fitted to.
TRUTH_SEED, FITTING_SEED = 1, 2
#: Videos of each suite and variant that keep their frames, for reports to show.
_SHOWN = 16
#: Clips that a tokenizer's baseline is fitted to.
_FITTING = 32
#: Chunks of the stream on which the error of the velocity is taken.
_ERROR_CHUNKS = 64


class Evaluator:
    """Evaluates one model, a name or a checkpoint directory, with `settings` over its own, by dotted name.
    `out_dir` keeps the rows, so that a cut evaluation goes on; `readers` as for `Instruments`.

    Raises:
        CheckpointError, InputError: a model that cannot be loaded, or one of another world; a folder with
            rows of other weights or settings.
    """

    def __init__(
        self,
        model: str,
        config: EvaluationConfig,
        out_dir: Path,
        settings: Mapping[str, Any],
        processes: int,
        readers: Path | None = None,
    ) -> None:
        self.model, self.config, self.out_dir, self.processes = model, config, out_dir, processes
        self.readers = readers
        self.given = dict(settings)
        self.pipeline: Pipeline = load_pipeline(model)
        self.suites = SuiteBuilder(config, self.pipeline.vocabulary)
        sampling = asdict(self.pipeline.settings.updated(settings)) | computed_with()
        size = self.pipeline.geometry.height
        digest = settings_digest(sampling, config.what, size)
        self.world = SceneConfig(size=size)
        about = About(self.pipeline.name, self.pipeline.digest, digest, sampling, asdict(config))
        self.file = RowFile(out_dir, about)

    def run(self) -> dict[str, Any]:
        """Stream and read what is missing, then report; returns the report."""
        specs, controls = self.missing()
        coding = sum(row.suite == "tokenizer" for row in self.file.rows) < self.config.clips
        if specs or controls or coding:
            with one_thread():
                instruments = Instruments(self.world, self.readers)
            if coding:
                self._tokenizer(instruments)
            self._stream(specs, controls, instruments)
        return make_report(self.out_dir) | self._velocity_error()

    def _velocity_error(self) -> dict[str, Any]:
        """What eight bits cost in each velocity, where linear layers are in eight bits; written to
        `velocity_error.json` beside the report, too.
        """
        kind = of_linears(computed_with().get("quantize", "none"))
        if kind == "none":
            return {}
        say(f"the error of the velocity in {kind}")
        with one_thread():
            error = {"kind": kind} | eight_bits(self.pipeline, cast(Quantization, kind), _ERROR_CHUNKS)
        write_json(self.out_dir / "velocity_error.json", error)
        return {"velocity_error": error}

    def missing(self) -> tuple[list[tuple[StreamSpec, bool]], list[TruthSuite]]:
        """Streams without a row, each with whether its frames are to be kept, and controls."""
        shown: Counter[tuple[str, str]] = Counter()
        specs = []
        for spec in self.suites.every(self._strengths()):
            shown[spec.suite, spec.variant] += 1
            if not self.file.has(self._row(spec, {})):
                specs.append((spec, shown[spec.suite, spec.variant] <= _SHOWN))
        done = Counter((row.suite, row.variant) for row in self.file.rows if row.source == "truth")
        controls = [s for s in truth_suites(self.config) if done[s.suite, s.variant] < s.count]
        return specs, controls

    def _strengths(self) -> list[float]:
        """Of `STRENGTHS` those that this model has noise levels for."""
        own = self.pipeline.settings.updated(self.given)
        levels = own.levels(own.steps, self.pipeline.settings)
        return [strength for strength in STRENGTHS if strength_problem(levels, strength) is None]

    def _row(self, spec: StreamSpec, read: dict[str, Any]) -> Row:
        return row_of(spec, read, self.file.about.weights, self.file.about.settings)

    def _stream(
        self,
        specs: Sequence[tuple[StreamSpec, bool]],
        controls: Sequence[TruthSuite],
        instruments: Instruments,
    ) -> None:
        streams = self.out_dir / "streams"
        streams.mkdir(exist_ok=True)
        about, motions = self.file.about, self.suites.motions
        truth = Truth(self.world.size, motions, TRUTH_SEED)
        work = Work(self.model, self.given, streams, about.weights, about.settings, instruments, truth)
        total = len(specs) + len(controls)
        for done, rows in enumerate(make_rows(work, specs, controls, self.processes), 1):
            self.file.add(rows)
            say(f"{rows[0].suite} {rows[0].variant}: {done} of {total} streams and controls")

    def _tokenizer(self, instruments: Instruments) -> None:
        """The tokenizer alone, on clips of the world."""
        tokenizer = self.pipeline.tokenizer
        assert isinstance(tokenizer, VideoTokenizer), "the world is drawn for the tiny family"
        say("measuring the tokenizer")
        with one_thread():
            videos, fitting = coded_clips(self.world.size, self.config, self.suites.motions)
            reads = tokenizer_reads(tokenizer, videos, fitting, instruments)
        rows = (self._row(video.spec, plain(read)) for video, read in zip(videos, reads, strict=True))
        self.file.add([replace(row, suite="tokenizer", variant="coded") for row in rows])


def computed_with() -> dict[str, str]:
    """The runner and the eight bits that the environment asks for: rows made with others are no rows of the
    same report.
    """
    told = {"runner": os.environ.get(RUNNER_VARIABLE), "quantize": os.environ.get(QUANTIZE_VARIABLE)}
    return {name: value for name, value in told.items() if value}


def coded_clips(
    size: int, config: EvaluationConfig, motions: Sequence[int]
) -> tuple[list[Video], list[Video]]:
    """The clips that a tokenizer is judged on, and those that its baseline is fitted to."""
    frames = 1 + round(config.seconds * FPS)
    judged, fitting = (
        Truth(size, motions, seed).videos(TruthSuite("prompts", "plain", count, frames))
        for seed, count in ((TRUTH_SEED, config.clips), (FITTING_SEED, _FITTING))
    )
    return judged, fitting
