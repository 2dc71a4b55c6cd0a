"""The evaluation: its instruments are right on the truth, and each measure fails where it must."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from distill import evaluate
from distill.config import ConfigError
from distill.evaluation import streams
from distill.evaluation.measures import (
    Instruments,
    View,
    background_psnr,
    count_objects,
    drag_error,
    drift_points,
    mean_of,
    released,
    switch_result,
)
from distill.evaluation.reading import FrameReader
from distill.evaluation.streams import StreamSpec, StreamStore, Video
from distill.evaluation.suites import EvaluationConfig, SuiteBuilder
from distill.evaluation.truth import Truth
from distill.families.tiny import load_tokenizer
from distill.scenes import COLOURS, HELD_OUT, MOTIONS, SHAPES, SceneConfig, caption_vocabulary
from models.text_encoder import Vocabulary
from streamgen import StreamEvent, load_pipeline
from streamgen.errors import InputError
from tests.tiny_checkpoints import write_checkpoint

COUNT = 24
WEIGHTS = Path(__file__).resolve().parents[2] / "streamgen" / "weights" / "tiny"


@pytest.fixture(scope="module")
def instruments() -> Instruments:
    return Instruments(SceneConfig())


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth(64, COUNT, range(len(MOTIONS)), seed=5)


@pytest.fixture(scope="module")
def plain(instruments: Instruments, truth: Truth) -> list[View]:
    return [instruments.view(video) for video in truth.plain(65)]


@pytest.fixture(scope="module")
def switched(truth: Truth) -> list[Video]:
    return truth.switches()


@pytest.fixture(scope="module")
def dragged(instruments: Instruments, truth: Truth) -> list[View]:
    return [instruments.view(video) for video in truth.drags()]


def test_clips_of_the_world_show_what_they_say(instruments: Instruments, plain: list[View]) -> None:
    found = mean_of(instruments.attributes(view, view.video.spec.subjects[0]) for view in plain)
    assert min(found.values()) >= 0.95, found


def test_clips_do_not_show_what_others_say(instruments: Instruments, plain: list[View]) -> None:
    """At random an attribute agrees in one of six to eight clips."""
    others = plain[1:] + plain[:1]
    found = mean_of(
        instruments.attributes(view, other.video.spec.subjects[0])
        for view, other in zip(plain, others, strict=True)
    )
    assert max(found.values()) < 0.5, found


def test_there_is_one_object_where_there_is_one(plain: list[View]) -> None:
    counts = torch.cat([count_objects(view.reading) for view in plain])
    assert float((counts == 1).float().mean()) > 0.97


def test_two_objects_are_counted_as_two(instruments: Instruments, plain: list[View]) -> None:
    """A clip beside itself: objects that cross the border are one on the torus, and here twice one."""
    video = plain[0].video
    double = torch.cat([video.frames, video.frames], 2)
    reading = instruments.frames(double)
    assert set(count_objects(reading).tolist()) <= {1, 2, 3}
    assert float(count_objects(reading).float().mean()) >= 1.5


def test_true_drags_are_followed_and_others_are_not(dragged: list[View]) -> None:
    assert sum(map(drag_error, dragged)) / COUNT < 0.03
    others = [
        dataclasses.replace(view, video=dataclasses.replace(view.video, path=other.video.path))
        for view, other in zip(dragged, dragged[1:] + dragged[:1], strict=True)
    ]
    assert sum(map(drag_error, others)) / COUNT > 0.15


def test_after_a_drag_objects_go_their_own_way(instruments: Instruments, dragged: list[View]) -> None:
    assert sum(released(instruments, view) for view in dragged) / COUNT >= 0.9


def test_true_switches_succeed_and_keep_the_rest(instruments: Instruments, switched: list[Video]) -> None:
    results = [switch_result(instruments, instruments.view(video)) for video in switched]
    assert {result.kind for result in results} == {"colour", "shape", "background", "motion"}
    assert sum(result.success for result in results) / COUNT >= 0.95
    assert sum(result.kept for result in results) / COUNT >= 0.9
    assert max(result.seconds for result in results if result.seconds == result.seconds) < 0.5


def test_a_stream_that_begins_anew_keeps_nothing(instruments: Instruments, switched: list[Video]) -> None:
    """What `clear` does: from the switch on the frames are those of another time of the clip, elsewhere."""
    results = []
    for video in switched:
        turned = video.frames.clone()
        turned[video.event :] = turned[video.event :].roll((23, 31), (1, 2))
        view = instruments.view(dataclasses.replace(video, frames=turned))
        results.append(switch_result(instruments, view))
    assert sum(result.success for result in results) / COUNT >= 0.8
    assert sum(result.kept for result in results) / COUNT <= 0.1


def test_a_stream_that_does_not_switch_fails(instruments: Instruments, switched: list[Video]) -> None:
    for video in switched:
        assert video.spec.switch is not None
        if video.spec.switch.kind == "motion":
            continue
        still = video.frames[: video.event].repeat(2, 1, 1, 1)
        result = switch_result(instruments, instruments.view(dataclasses.replace(video, frames=still)))
        assert not result.success


def test_a_background_that_changes_loses_likeness(instruments: Instruments, plain: list[View]) -> None:
    view = plain[0]
    assert background_psnr(view, 20, 21) > 25
    other = next(
        v for v in plain if v.video.spec.subjects[0].background != view.video.spec.subjects[0].background
    )
    mixed = torch.stack([view.video.frames[20], other.video.frames[20]])
    video = dataclasses.replace(view.video, frames=mixed)
    assert background_psnr(View(video, instruments.frames(mixed)), 0, 1) < 20


def test_drift_is_seen(instruments: Instruments, plain: list[View]) -> None:
    """A clip that grows dark, blurred and empty, stretch by stretch."""
    frames = torch.cat([view.video.frames[:64] for view in plain[:1]] * 3)
    frames[64:128] = frames[64:128] // 2
    frames[128:] = frames[128:].float().mean((1, 2), keepdim=True).to(torch.uint8)
    video = dataclasses.replace(plain[0].video, frames=frames)
    first, dark, empty = drift_points(instruments, instruments.view(video))
    assert first.accuracy > 0.9
    assert sum(dark.mean_color) < 0.6 * sum(first.mean_color)
    assert empty.sharpness < 0.1 * first.sharpness
    assert empty.accuracy < first.accuracy
    assert first.objects > 0.9
    assert empty.objects < 0.5


def world_vocabulary() -> Vocabulary:
    return Vocabulary(caption_vocabulary())


def test_suites_are_balanced_and_their_own() -> None:
    builder = SuiteBuilder(EvaluationConfig(), world_vocabulary())
    prompts, unseen = builder.prompts(), builder.unseen()
    pairs = {(COLOURS[s.subjects[0].colour], SHAPES[s.subjects[0].shape]) for s in prompts}
    assert not pairs & HELD_OUT
    assert {(COLOURS[s.subjects[0].colour], SHAPES[s.subjects[0].shape]) for s in unseen} == HELD_OUT
    motions = torch.bincount(torch.tensor([s.subjects[0].motion for s in prompts]), minlength=len(MOTIONS))
    assert int(motions.max() - motions.min()) <= 1
    assert len({s.seed for s in prompts + unseen}) == 128
    assert prompts == SuiteBuilder(EvaluationConfig(), world_vocabulary()).prompts()
    assert prompts != SuiteBuilder(EvaluationConfig(seed=1), world_vocabulary()).prompts()


def test_switches_change_one_thing() -> None:
    for spec in SuiteBuilder(EvaluationConfig(switches=40), world_vocabulary()).switches(clear=False):
        assert spec.switch is not None
        before, after = dataclasses.asdict(spec.subjects[0]), dataclasses.asdict(spec.switch.after)
        assert {name for name in before if before[name] != after[name]} == {spec.switch.kind}
        assert (COLOURS[after["colour"]], SHAPES[after["shape"]]) not in HELD_OUT


def test_motions_without_words_are_left_out() -> None:
    words = [word for word in caption_vocabulary() if not word.startswith("zigzag")]
    builder = SuiteBuilder(EvaluationConfig(), Vocabulary(words))
    assert MOTIONS.index("zigzag") not in builder.motions
    assert len(builder.motions) >= 7
    assert all(word in words for spec in builder.prompts() for word in spec.prompt.replace(",", "").split())


def test_motions_can_be_chosen() -> None:
    builder = SuiteBuilder(EvaluationConfig(motions=("left", "stays")), world_vocabulary())
    assert {MOTIONS[spec.subjects[0].motion] for spec in builder.prompts()} == {"left", "stays"}
    with pytest.raises(ConfigError, match="motions: expected some of right"):
        EvaluationConfig(motions=("sideways",))


def test_a_model_of_another_world_is_refused() -> None:
    with pytest.raises(InputError, match="procedural world, found no 'red'"):
        SuiteBuilder(EvaluationConfig(), Vocabulary(["a", "cat", "sits"]))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "m", words=caption_vocabulary())


def test_streams_are_kept_and_taken_up_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = SuiteBuilder(EvaluationConfig(), world_vocabulary())
    specs: list[StreamSpec] = [
        dataclasses.replace(spec, frames=frames)
        for spec, frames in zip(
            [builder.prompts()[0], builder.drags(told=True)[0], builder.switches(clear=False)[0]],
            (9, 60, 60),
            strict=True,
        )
    ]
    store = StreamStore(str(checkpoint), "digest", {}, tmp_path, 2)
    done: list[int] = []
    first = list(store.videos(specs, done.append))
    assert sum(done) == 3
    assert [len(video.frames) for video in first] == [9, 60, 60]
    assert first[0].event == 9
    assert first[1].path.shape == (33, 2)
    assert 41 <= first[1].event <= 46
    assert 41 <= first[2].event <= 46

    def refuse(*_arguments: object) -> None:
        raise AssertionError("everything was there")

    monkeypatch.setattr(streams, "ProcessPoolExecutor", refuse)
    again = list(store.videos(specs, done.append))
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(first, again, strict=True))
    other = StreamStore(str(checkpoint), "other weights", {}, tmp_path, 2)
    with pytest.raises(AssertionError, match="everything was there"):
        list(other.videos(specs, done.append))


def test_streams_do_not_depend_on_the_processes(checkpoint: Path, tmp_path: Path) -> None:
    spec = dataclasses.replace(SuiteBuilder(EvaluationConfig(), world_vocabulary()).prompts()[3], frames=9)
    (kept,) = StreamStore(str(checkpoint), "d", {}, tmp_path, 1).videos([spec], lambda _count: None)
    reader = FrameReader(SceneConfig(size=32))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        direct = streams.render(load_pipeline(checkpoint), reader, spec, {})
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(kept.frames, direct.frames)


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
    spec = SuiteBuilder(EvaluationConfig(), world_vocabulary()).switches(clear=False)[0]
    video = streams.render(EventfulPipeline(checkpoint), FrameReader(SceneConfig(size=32)), spec, {})  # type: ignore[arg-type]
    assert 41 <= video.event <= 46


def test_a_report_is_written(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = [
        "prompts=2",
        "unseen=1",
        "drags=1",
        "pairs=1",
        "switches=4",
        "drift=1",
        "long_drift=0",
        "clips=8",
    ]
    arguments = ["--model", str(checkpoint), "-o", str(tmp_path / "report"), "--json", "drift_seconds=8"]
    assert evaluate.main([*arguments, *counts]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "report" / "report.json").read_text())
    contract = {
        "color_accuracy",
        "shape_accuracy",
        "motion_accuracy",
        "background_accuracy",
        "unseen_accuracy",
        "track_error",
        "switch_success",
        "switch_seconds",
        "switch_kept_psnr",
        "drift",
        "psnr_tokenizer",
        "psnr_moving",
        "control",
        "n",
    }
    assert contract <= set(printed)
    assert {"start", "end"} <= set(printed["drift"])
    assert {"truth", "shuffled"} <= set(printed["control"])
    assert len(printed["drift"]["points"]) == 2
    page = (tmp_path / "report" / "index.html").read_text()
    for name in ("prompts.png", "drift.png", "drift-curves.png", "switches.png"):
        assert name in page
        assert (tmp_path / "report" / name).stat().st_size > 1000


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


def test_reports_beside_each_other(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps and one of a checkpoint: the figures of both reports, the same prompts below each other."""
    counts = [f"{suite}=0" for suite in ("unseen", "drags", "pairs", "drift", "long_drift")]
    for steps in (2, 1):
        arguments = [
            "--model",
            str(checkpoint),
            "--set",
            f"steps={steps}",
            "-o",
            str(tmp_path / f"of{steps}"),
        ]
        controls = f"controls={str(steps == 2).lower()}"
        assert evaluate.main([*arguments, *counts, "prompts=2", "switches=4", "clips=8", controls]) == 0
        cleared = json.loads((tmp_path / f"of{steps}" / "report.json").read_text())["switch_clear"]
        assert (cleared["switch_kept"] is None) == (steps == 1)
    given = ["--report", f"two steps={tmp_path / 'of2'}", "--report", str(tmp_path / "of1")]
    capsys.readouterr()
    assert evaluate.main([*given, "-o", str(tmp_path / "out"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["steps"]) for row in rows] == [("two steps", 2), ("of1", 1)]
    for row, folder in zip(rows, ("of2", "of1"), strict=True):
        report = json.loads((tmp_path / folder / "report.json").read_text())
        assert row["shape"] == report["shape_accuracy"]
        assert row["switch within 1 s"] == report["switch_soon"] <= report["switch_success"]
        assert row["60 s: first 4 s"] is None
    head, _, *lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert "switch within 1 s" in head
    assert "60 s" not in head
    assert [line.split("|")[1].strip() for line in lines] == ["two steps", "of1"]
    for name in ("reports.png", "prompts.png", "switches.png"):
        assert name in (tmp_path / "out" / "index.html").read_text()
        assert (tmp_path / "out" / name).stat().st_size > 1000
    stream = json.loads((tmp_path / "of1" / "report.json").read_text())["samples"]["prompts"][0]["stream"]
    (tmp_path / "of1" / "streams" / stream).unlink()
    assert evaluate.main([*given, "-o", str(tmp_path / "out")]) == 2
    assert stream in capsys.readouterr().err


def test_tokenizers_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped one against itself without its network, which is a linear PCA."""
    linear = tmp_path / "linear"
    shutil.copytree(WEIGHTS, linear)
    tokenizer, _ = load_tokenizer(WEIGHTS, torch.device("cpu"))
    tokenizer.decoder.reset_output()
    save_file(tokenizer.state_dict(), linear / "tokenizer.safetensors")
    out = tmp_path / "out"
    arguments = ["--tokenizer", str(linear), "--tokenizer", str(WEIGHTS), "-o", str(out), "--json", "clips=8"]
    assert evaluate.main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == json.loads((out / "tokenizers.json").read_text())
    assert [row["path"] for row in rows] == [str(WEIGHTS), str(linear)]
    best, worst = rows
    assert best["digest"] != worst["digest"]
    assert best["psnr_tokenizer"] > worst["psnr_tokenizer"] + 2
    # one baseline for both, the same clips
    assert best["tokenizer"]["baselines"] == worst["tokenizer"]["baselines"]
    gain = best["psnr_tokenizer"] - best["tokenizer"]["baselines"]["pca"]["psnr"]
    assert best["over_pca"]["psnr"] == pytest.approx(gain)
    assert list(best["psnr_by_size"]) == ["32", "64", "96"]
    assert all(size["images"] > 25 for size in best["psnr_by_size"].values())
    page = (out / "index.html").read_text()
    assert page.index(str(WEIGHTS)) < page.index(str(linear))
    assert (out / "tokenizers.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nothing"], "nothing"),
        (["--tokenizer", "nothing"], "nothing"),
        (["--tokenizer", "nothing", "--model", "tiny"], "found --model and --tokenizer"),
        (["--run", "nothing"], "metrics.jsonl"),
        (["--report", "a=nothing"], "--report a=nothing: expected a finished report's folder"),
        (["--report", "nothing", "--model", "tiny"], "found --model and --report"),
        (["--run", "nothing", "--model", "tiny"], "found --model and --run"),
        (["promts=3"], "did you mean 'prompts'"),
        (["prompts=-1"], "prompts: expected 0 to"),
        (["prompts"], "expected key=value"),
        (["seconds=1"], "seconds: expected"),
        (["--set", "steps=0"], "steps"),
        (["--set", "stepz=4"], "did you mean"),
        (["--processes", "0"], "--processes"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(["-o", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
