"""Rows and reports: what is streamed, kept, taken up again, refused, and set beside other reports."""

import json
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from distill import evaluate
from distill.evaluation import pool, runner, streams
from distill.evaluation.classifiers import MOTION_FRAMES
from distill.evaluation.measures import first_lasting
from distill.evaluation.pool import make_rows
from distill.evaluation.reading import FrameReader
from distill.evaluation.rows import checked_rows
from distill.evaluation.suites import SWITCH_FRAMES, EvaluationConfig, SuiteBuilder
from distill.scenes import SceneConfig, caption_vocabulary
from models.context import ChunkPlan
from models.text_encoder import Vocabulary
from streamgen import StreamEvent, load_pipeline
from tests.at_once import AtOnce
from tests.quick_instruments import quick_instruments
from tests.tiny_checkpoints import write_checkpoint


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """Reports without half a minute of training and without processes: what they say is the matter here."""
    threads, interrupt = torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "Instruments", lambda world, kept=None: quick_instruments(world.size))
        patch.setattr(pool, "ProcessPoolExecutor", AtOnce)
        yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, interrupt)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "m", words=caption_vocabulary())


class EventfulPipeline:
    """A pipeline whose streams get an event of settings behind every chunk, as from someone at sliders."""

    def __init__(self, checkpoint: Path) -> None:
        self.pipeline = load_pipeline(checkpoint)

    def open(self, *arguments: Any, **options: Any) -> Any:
        session = self.pipeline.open(*arguments, **options)
        step = type(session).__next__

        class Eventful(type(session)):  # type: ignore[misc]
            def __next__(self) -> Any:
                chunk = step(self)
                self.submit(StreamEvent(settings={"steps": 1}))
                return chunk

        session.__class__ = Eventful
        return session


def test_the_frame_of_a_switch_is_that_of_its_own_receipt(checkpoint: Path) -> None:
    """Other events' receipts used to count as well: one of settings behind a switch moved the frame
    from which the switch was judged to the end of the stream, and no switch succeeded.
    """
    spec = SuiteBuilder(EvaluationConfig(), Vocabulary(caption_vocabulary())).switches("recache")[0]
    video = streams.render(EventfulPipeline(checkpoint), FrameReader(SceneConfig(size=32)), spec, {})  # type: ignore[arg-type]
    assert 41 <= video.event <= 46


def test_a_change_that_takes_effect_late_is_watched_as_long(checkpoint: Path) -> None:
    """Overlapping chunks take a change up later; what is read behind it needs the same number of frames."""
    spec = SuiteBuilder(EvaluationConfig(), Vocabulary(caption_vocabulary())).switches("recache")[3]
    settings = {"text_guidance": 1.0, "motion_guidance": 0.0, "steps": 2}
    reader = FrameReader(SceneConfig(size=32))
    plain, wave = (
        streams.render(load_pipeline(checkpoint, runner=name), reader, spec, settings)
        for name in ("plain", "wave")
    )
    assert wave.event > plain.event
    assert len(wave.frames) - wave.event == len(plain.frames) - plain.event == spec.frames - plain.event


def test_a_switch_has_the_frames_that_are_read_behind_it(tmp_path: Path) -> None:
    """With chunks of three latent frames a change falls some frames later than asked for; motions were then
    read from too few frames behind it, and none was ever shown. What lasts is read from as many as it takes.
    """
    folder = write_checkpoint(tmp_path / "m", ChunkPlan(3, 1, 1, 3), words=caption_vocabulary())
    pipeline, reader = load_pipeline(folder), FrameReader(SceneConfig(size=32))
    for spec in SuiteBuilder(EvaluationConfig(), Vocabulary(caption_vocabulary())).switches("recache")[2:4]:
        video = streams.render(pipeline, reader, spec, {"text_guidance": 1.0, "motion_guidance": 0.0})
        behind = len(video.frames) - video.event
        assert video.event > 41
        if spec.kind == "motion":
            assert behind == SWITCH_FRAMES + MOTION_FRAMES
            continue
        right = torch.arange(behind) >= SWITCH_FRAMES
        assert (first_lasting(right), first_lasting(right[:-1])) == (SWITCH_FRAMES, None)


FEW = [
    "unseen=1",
    "drags=1",
    "pairs=1",
    "switches=4",
    "drift=1",
    "long_drift=0",
    "clips=8",
    "drift_seconds=8",
]
CONTRACT = {
    *("color_accuracy", "shape_accuracy", "motion_accuracy", "background_accuracy", "unseen_accuracy"),
    *("track_error", "switch_success", "switch_seconds", "switch_kept_psnr", "drift", "psnr_tokenizer"),
    *("psnr_moving", "control", "n"),
}


@pytest.fixture(scope="module")
def finished(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report of a few streams."""
    out = tmp_path_factory.mktemp("reports") / "report"
    assert (
        evaluate.main(["--model", str(checkpoint), "-o", str(out), "prompts=2", "--processes", "2", *FEW])
        == 0
    )
    return out


@pytest.mark.slow
def test_a_report_is_written(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert set(report) >= CONTRACT
    assert {"start", "end"} <= set(report["drift"])
    assert {"truth", "shuffled"} <= set(report["control"])
    assert len(report["drift"]["points"]) == 2
    low, high = report["intervals"]["color_accuracy"]
    assert low <= report["color_accuracy"] <= high
    assert report["n"]["color_accuracy"] == 2
    # truth for every suite that was streamed
    for name in ("unseen_accuracy", "track_error", "pairs.both", "switch_soon", "drift.start"):
        assert report["n"][f"control.truth.{name}"] >= 1
    policies = {c["against"] for c in report["comparisons"] if c["figure"] == "switch_kept"}
    assert policies == {"recache against keep", "recache against clear", "keep against clear"}
    page = (finished / "index.html").read_text()
    for name in ("prompts.png", "drift.png", "drift-curves.png", "switches-recache.png", "switches-keep.png"):
        assert name in page
        assert (finished / name).stat().st_size > 1000


@pytest.mark.slow
def test_rows_say_what_was_read_and_expected(finished: Path) -> None:
    _, rows = checked_rows(finished)
    model = [row for row in rows if row.source == "model" and row.suite != "tokenizer"]
    assert Counter((row.suite, row.variant) for row in model) == {
        **{("prompts", "plain"): 2, ("unseen", "plain"): 1, ("drift", "plain"): 1},
        **{("drags", "told"): 1, ("drags", "untold"): 1, ("pairs", "dragged"): 1, ("pairs", "alone"): 1},
        **{("switches", policy): 4 for policy in ("recache", "keep", "clear")},
    }
    for row in model:
        assert set(row.expected["subjects"][0]) == {"size", "colour", "shape", "motion", "background"}
        assert row.read
        assert len(row.weights) == len(row.settings) == 64


@pytest.mark.slow
def test_a_report_is_made_again_from_its_rows(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the model; and rows in another order, as other numbers of processes leave, say the same."""
    again = tmp_path / "again"
    again.mkdir()
    shutil.copy(finished / "evaluation.json", again)
    lines = (finished / "rows.jsonl").read_text().splitlines(keepends=True)
    # a line that was being written when the machine went down is no row
    (again / "rows.jsonl").write_text("".join(reversed(lines)) + lines[0][:40])
    assert evaluate.main(["--rows", str(again), "-o", str(tmp_path / "out"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((finished / "report.json").read_text())


@pytest.mark.slow
def test_an_evaluation_goes_on_from_its_rows(
    finished: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has a row is not streamed again; a larger count streams what is missing."""
    out = tmp_path / "report"
    shutil.copytree(finished, out)
    lines = (out / "rows.jsonl").read_text().splitlines()
    cut = [line for line in lines if '"suite": "prompts"' not in line or '"source": "truth"' in line]
    (out / "rows.jsonl").write_text("\n".join(cut) + "\n")
    made: list[str] = []
    monkeypatch.setattr(runner, "make_rows", counting(made))
    arguments = ["--model", str(checkpoint), "-o", str(out), *FEW, "--processes", "1"]
    assert evaluate.main([*arguments, "prompts=2"]) == 0
    assert made == ["prompts", "prompts"]
    assert json.loads((out / "report.json").read_text()) == json.loads((finished / "report.json").read_text())
    assert evaluate.main([*arguments, "prompts=3"]) == 0
    # the third stream, and as many true clips
    assert made[2:] == ["prompts", "truth of prompts"]
    assert json.loads((out / "report.json").read_text())["n"]["color_accuracy"] == 3


def counting(made: list[str]) -> Any:
    def make(work: Any, specs: Any, suites: Any, processes: int) -> Any:
        made.extend(spec.suite for spec, _ in specs)
        made.extend(f"truth of {suite.suite}" for suite in suites)
        return make_rows(work, specs, suites, processes)

    return make


@pytest.mark.slow
def test_rows_of_other_weights_or_settings_are_refused(
    finished: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = json.loads((finished / "evaluation.json").read_text())
    other = write_checkpoint(tmp_path / "other", words=caption_vocabulary(), seed=1)
    for arguments, found in (
        (["--model", str(other)], about["weights"]),
        (["--model", str(checkpoint), "--set", "steps=1"], about["settings"]),
        (["--model", str(checkpoint), "seed=1"], about["settings"]),
    ):
        assert evaluate.main([*arguments, "-o", str(finished)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert found[:16] in error
        expected = error.split("expected ")[1].split(";")[0]
        assert len(expected) == 16
        assert expected not in (about["weights"][:16], about["settings"][:16])
    # nothing was lost by trying
    assert json.loads((finished / "evaluation.json").read_text()) == about


@pytest.mark.slow
def test_a_run_is_judged_over_its_training_time(checkpoint: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    rows = []
    for step, minutes in ((3, 1.5), (6, 3.0), (9, 4.5)):
        rows.append({"kind": "preview", "step": step, "minutes": minutes})
        if step != 6:  # a preview without weights
            shutil.copytree(checkpoint, run / "previews" / f"step-{step:09d}" / "export")
    rows.append({"kind": "train", "step": 3, "minutes": 1.4})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = [
        "prompts=2",
        "unseen=0",
        "drags=0",
        "pairs=0",
        "switches=0",
        "drift=0",
        "long_drift=0",
        "clips=8",
    ]
    assert evaluate.main(["--run", str(run), "-o", str(tmp_path / "curves"), *counts]) == 0
    points = json.loads((tmp_path / "curves" / "curves.json").read_text())
    assert [(p["step"], p["minutes"]) for p in points] == [(3, 1.5), (9, 4.5)]
    report = json.loads((tmp_path / "curves" / "step-000000009" / "report.json").read_text())
    assert points[1]["color_accuracy"] == report["color_accuracy"]
    assert points[1]["track_error"] is None
    assert (tmp_path / "curves" / "curves.png").stat().st_size > 1000
    assert "4 minutes, step 9" in (tmp_path / "curves" / "index.html").read_text()


@pytest.mark.slow
def test_reports_beside_each_other(
    finished: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps and one of a checkpoint: the figures of both reports, the same prompts below each other."""
    counts = [f"{suite}=0" for suite in ("unseen", "drags", "pairs", "drift", "long_drift")]
    one = tmp_path / "of1"
    few = [*counts, "prompts=2", "switches=4", "clips=8", "controls=false", "drift_seconds=8"]
    assert evaluate.main(["--model", str(checkpoint), "--set", "steps=1", "-o", str(one), *few]) == 0
    alone = json.loads((one / "report.json").read_text())
    assert alone["switch_clear"]["switch_kept"] is None
    given = ["--report", f"two steps={finished}", "--report", str(one)]
    capsys.readouterr()
    assert evaluate.main([*given, "-o", str(tmp_path / "out"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["steps"]) for row in rows] == [("two steps", 2), ("of1", 1)]
    for row, folder in zip(rows, (finished, one), strict=True):
        report = json.loads((folder / "report.json").read_text())
        assert row["shape"]["value"] == pytest.approx(report["shape_accuracy"], abs=1e-6)
        assert row["shape"]["n"] == 2
        assert row["switch within 1 s"]["value"] == pytest.approx(report["switch_soon"], abs=1e-6)
    assert rows[1]["60 s: first 4 s"] is None
    against = {comparison["figure"]: comparison for comparison in rows[1]["against"]}
    assert against["shape_accuracy"]["n"] == 2
    assert against["switch_kept"]["n"] == 4
    assert "track_error" not in against
    head, _, *lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert "switch within 1 s" in head
    assert "240 s" not in head
    assert [line.split("|")[1].strip() for line in lines] == ["two steps", "of1"]
    for name in ("reports.png", "prompts.png", "switches.png"):
        assert name in (tmp_path / "out" / "index.html").read_text()
        assert (tmp_path / "out" / name).stat().st_size > 1000
    stream = next(row.stream for row in checked_rows(one)[1] if row.suite == "prompts" and row.stream)
    (one / "streams" / stream).unlink()
    assert evaluate.main([*given, "-o", str(tmp_path / "out")]) == 2
    assert stream in capsys.readouterr().err
