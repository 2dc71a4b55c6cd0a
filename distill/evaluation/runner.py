"""From a model to a report: streams every suite, measures it, and measures the measures on the truth."""

import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.video_tokenizer import VideoTokenizer
from streamgen import Pipeline, load_pipeline

from ..scenes import MOTIONS, SceneConfig
from .measures import (
    PAIR,
    DriftPoint,
    Instruments,
    SwitchResult,
    View,
    drag_error,
    drift_points,
    mean,
    mean_of,
    released,
    switch_result,
    undragged,
)
from .streams import StreamSpec, StreamStore, Video
from .suites import FPS, SWITCH_KINDS, EvaluationConfig, SuiteBuilder
from .tokenizer import tokenizer_figures
from .truth import Truth

TRUTH_SEED = 1
#: Videos of each suite that reports show.
_SAMPLES = 16
#: Stretches at either end of a long stream whose speeds are compared: 12 seconds.
_ENDS = 3


@dataclass
class Evaluation:
    """All figures (`report`, JSON values alone) and, by suite, some videos to look at."""

    report: dict[str, Any]
    samples: dict[str, list[Video]]


class Evaluator:
    """Evaluates one model.

    Args:
        model: name or checkpoint directory.
        config: how much is streamed.
        out_dir: keeps the streams, so that a cut evaluation goes on.
        settings: over the checkpoint's own, by dotted name.
        processes: streams at the same time.

    Raises:
        CheckpointError, InputError: a model that cannot be loaded, or one of another world.
    """

    def __init__(
        self, model: str, config: EvaluationConfig, out_dir: Path, settings: Mapping[str, Any], processes: int
    ) -> None:
        self.config = config
        self.pipeline: Pipeline = load_pipeline(model)
        self.suites = SuiteBuilder(config, self.pipeline.vocabulary)
        chosen = self.pipeline.settings.updated(settings)
        self.settings = asdict(chosen)
        self.store = StreamStore(model, self.pipeline.digest, settings, out_dir / "streams", processes)
        self.world = SceneConfig(size=self.pipeline.geometry.height)
        self._instruments: Instruments | None = None
        self.samples: dict[str, list[Video]] = {}
        self.kept: dict[str, list[dict[str, Any]]] = {}

    @property
    def instruments(self) -> Instruments:
        """Made when first needed: after the streams, which are longer in the making."""
        if self._instruments is None:
            say("learning to read shapes and motions")
            self._instruments = Instruments(self.world)
        return self._instruments

    def run(self) -> Evaluation:
        """Stream, measure, report."""
        report: dict[str, Any] = {
            "model": self.pipeline.name,
            "digest": self.pipeline.digest,
            "settings": self.settings,
            "config": asdict(self.config),
        }
        n: dict[str, int] = {}
        report |= self._prompts(n)
        report |= self._drags(n)
        report |= self._switches(n)
        report["drift"] = self._drift(n, long=False)
        report["drift_long"] = self._drift(n, long=True)
        truth = self._truth(n)
        report["control"] |= truth.pop("control")
        report |= truth
        report |= {"n": n, "samples": self.kept}
        return Evaluation(_plain(report), self.samples)

    def _views(self, name: str, specs: Sequence[StreamSpec]) -> list[View]:
        done = 0

        def progress(count: int) -> None:
            nonlocal done
            done += count
            say(f"{name}: {done} of {len(specs)} streams")

        if not specs:
            return []
        views = [self.instruments.view(video) for video in self.store.videos(specs, progress)]
        self.samples[name] = [view.video for view in views[:_SAMPLES]]
        self.kept[name] = [
            {"prompt": spec.prompt, "seed": spec.seed, "stream": self.store.file(spec).name}
            for spec in specs[:_SAMPLES]
        ]
        return views

    def _controls(self, name: str, specs: Callable[[], Sequence[StreamSpec]]) -> list[View]:
        return self._views(name, specs()) if self.config.controls else []

    def _prompts(self, n: dict[str, int]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        views = self._views("prompts", self.suites.prompts())
        rows = [self.instruments.attributes(view, view.video.spec.subjects[0]) for view in views]
        n["prompts"] = len(rows)
        out |= {f"{name}_accuracy": value for name, value in mean_of(rows).items()}
        shuffled = [
            self.instruments.attributes(view, other.video.spec.subjects[0])
            for view, other in zip(views, views[1:] + views[:1], strict=True)
        ]
        out["control"] = {"shuffled": mean_of(shuffled)}
        out["motion_by_word"] = self._by_motion(views, rows)
        unseen = self._views("unseen", self.suites.unseen())
        rows = [self.instruments.attributes(view, view.video.spec.subjects[0]) for view in unseen]
        n["unseen"] = len(rows)
        out["unseen_accuracy"] = mean_of(rows, [PAIR])[PAIR]
        out["unseen"] = mean_of(rows)
        return out

    @staticmethod
    def _by_motion(views: Sequence[View], rows: Sequence[dict[str, float]]) -> dict[str, float]:
        found: dict[str, list[float]] = {}
        for view, row in zip(views, rows, strict=True):
            found.setdefault(MOTIONS[view.video.spec.subjects[0].motion], []).append(row["motion"])
        return {name: mean(values) for name, values in sorted(found.items())}

    def _drags(self, n: dict[str, int]) -> dict[str, Any]:
        told = self._views("drags", self.suites.drags(told=True))
        untold = self._controls("drags without track", lambda: self.suites.drags(told=False))
        pairs = self._views("pairs", self.suites.pairs(told=True))
        alone = self._controls("pairs without track", lambda: self.suites.pairs(told=False))
        n |= {"drags": len(told), "pairs": len(pairs)}
        return {
            "track_error": mean([drag_error(view) for view in told]),
            "track_error_untold": mean([drag_error(view) for view in untold]),
            "release_accuracy": mean([released(self.instruments, view) for view in told]),
            "undragged_motion": {
                "with_drag": mean([undragged(self.instruments, view) for view in pairs]),
                "without": mean([undragged(self.instruments, view) for view in alone]),
            },
        }

    def _switches(self, n: dict[str, int]) -> dict[str, Any]:
        results = [
            switch_result(self.instruments, view)
            for view in self._views("switches", self.suites.switches(clear=False))
        ]
        cleared = [
            switch_result(self.instruments, view)
            for view in self._controls("switches with clear", lambda: self.suites.switches(clear=True))
        ]
        n["switches"] = len(results)
        figures = switch_figures(results)
        return figures | {"switch_clear": switch_figures(cleared)}

    def _drift(self, n: dict[str, int], long: bool) -> dict[str, Any]:
        name = "long drift" if long else "drift"
        views = self._views(name, self.suites.drift(long))
        n["drift_long" if long else "drift"] = len(views)
        streams = [drift_points(self.instruments, view) for view in views]
        if not streams:
            return {"start": math.nan, "end": math.nan, "speed_kept": math.nan, "points": []}
        points = [_mean_point(column) for column in zip(*streams, strict=True)]
        ends = (mean([point["speed"] for point in some]) for some in (points[:_ENDS], points[-_ENDS:]))
        first, last = ends
        return {
            "start": points[0]["accuracy"],
            "end": points[-1]["accuracy"],
            "speed_kept": last / first if first else math.nan,
            "points": points,
        }

    def _truth(self, n: dict[str, int]) -> dict[str, Any]:
        say("measuring the truth")
        truth = Truth(self.world.size, self.config.clips, self.suites.motions, TRUTH_SEED)
        plain = truth.plain(1 + round(self.config.seconds * FPS))
        rows = [
            self.instruments.attributes(view, view.video.spec.subjects[0])
            for view in map(self.instruments.view, plain)
        ]
        dragged = [self.instruments.view(video) for video in truth.drags()]
        switches = [
            switch_result(self.instruments, self.instruments.view(video)) for video in truth.switches()
        ]
        n["truth"] = len(rows)
        control = mean_of(rows) | {
            "track_error": mean([drag_error(view) for view in dragged]),
            "release": mean([released(self.instruments, view) for view in dragged]),
            "switch": switch_figures(switches),
        }
        fitting = Truth(self.world.size, self.config.clips, self.suites.motions, TRUTH_SEED + 1)
        frames = len(plain[0].frames)
        tokenizer = self.pipeline.tokenizer
        assert isinstance(tokenizer, VideoTokenizer), "the world is drawn for the tiny family"
        figures = tokenizer_figures(tokenizer, plain, fitting.plain(frames), self.instruments)
        return {"control": {"truth": control}} | figures


def switch_figures(results: Sequence[SwitchResult]) -> dict[str, Any]:
    """Figures of many switches, and by what changed."""
    by_kind = {}
    for kind in SWITCH_KINDS:
        some = [result for result in results if result.kind == kind]
        by_kind[kind] = {
            "success": mean([float(r.success) for r in some]),
            "kept": mean([float(r.kept) for r in some]),
            "n": len(some),
        }
    seconds = [r.seconds for r in results if not math.isnan(r.seconds)]
    return {
        "switch_success": mean([float(r.success) for r in results]),
        "switch_soon": mean([float(r.soon) for r in results]),
        "switch_seconds": statistics.median(seconds) if seconds else math.nan,
        "switch_kept_psnr": mean([r.psnr for r in results if not math.isnan(r.psnr)]),
        "switch_kept": mean([float(r.kept) for r in results]),
        "switch_kinds": by_kind,
    }


def _mean_point(column: Sequence[DriftPoint]) -> dict[str, Any]:
    """The mean of one stretch over streams."""
    return {
        "seconds": column[0].seconds,
        "accuracy": mean([p.accuracy for p in column]),
        "mean_color": [mean([p.mean_color[i] for p in column]) for i in range(3)],
        "sharpness": mean([p.sharpness for p in column]),
        "speed": mean([p.speed for p in column]),
        "objects": mean([p.objects for p in column]),
    }


def _plain(value: Any) -> Any:
    """JSON has no nan: it becomes null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def say(text: str) -> None:
    """A line about how far things are."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
