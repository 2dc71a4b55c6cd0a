"""`streamgen render JOBS --batch N`: clips at once, each as it is alone, recorded, and found again."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from streamgen import Pipeline, load_pipeline
from streamgen.engine.batch import BatchedPasses
from streamgen.errors import Interrupted
from streamgen.render import runner as item_runner
from streamgen.render.folder import OutputFolder
from streamgen.render.records import Asked, job_key
from streamgen.render.runner import ItemRunner, Policy
from streamgen.render.schedule import run_items
from streamgen.video.outputs import Outputs
from tests.batch_folder import items, lines, raw, run
from tests.command_line import call
from tests.tiny_checkpoints import write_checkpoint
from tests.waiting import PATIENCE

SECONDS = 0.75
ROWS: list[Any] = [
    "sand",
    {"prompt": "sea", "shots": [{"at": 0.3, "prompt": "a star"}]},
    {"prompt": "a red circle", "set": {"steps": 1}},
    {"prompt": "blue", "seconds": 0.3},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_checkpoint(tmp_path_factory.mktemp("model") / "small", steps=2)


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Pipeline:
    return load_pipeline(checkpoint)


def pictures(video: Path) -> np.ndarray:
    """As they were before a video was made of them, which can make much of a level of a colour."""
    return np.stack([np.asarray(Image.open(file)) for file in sorted(video.with_suffix(".frames").iterdir())])


def test_clips_at_once_are_those_of_one_after_the_other(
    tmp_path: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, together = items(tmp_path, ROWS, seconds=SECONDS), set[int]()
    forward = BatchedPasses._forward

    def counted(self: BatchedPasses, group: Any) -> Any:
        together.add(len(group))
        return forward(self, group)

    # the first three begin together, however busy the machine is
    gate, made = threading.Barrier(3), item_runner.write_clip

    def begun(clip: Any, hooks: Any, outputs: Any) -> Any:
        if clip.origin["index"] < 3 and clip.session.runner.batch is not None:
            gate.wait(PATIENCE)
        return made(clip, hooks, outputs=outputs)

    monkeypatch.setattr(item_runner, "write_clip", begun)
    monkeypatch.setattr(BatchedPasses, "_forward", counted)
    png = Outputs(png=True)
    assert run(pipeline, work, tmp_path / "one", outputs=png) == ["made"] * 4
    assert together == set()
    assert run(pipeline, work, tmp_path / "three", asked=Asked(batch=3), outputs=png) == ["made"] * 4
    assert 3 in together
    for item in work:
        alone, beside = (pictures(tmp_path / folder / f"{item.name}.mp4") for folder in ("one", "three"))
        assert np.abs(alone.astype(int) - beside).max() <= 1
        records = [
            json.loads((tmp_path / folder / f"{item.name}.json").read_text()) for folder in ("one", "three")
        ]
        assert records[0]["batch"] is None
        assert records[1]["batch"]["size"] == 3
        assert records[0]["key"] != records[1]["key"]
    assert {line["batch"] for line in lines(tmp_path / "three")} == {3}
    # and once more there is nothing to do
    assert run(pipeline, work, tmp_path / "three", asked=Asked(batch=3), outputs=png) == ["there"] * 4


def test_a_record_renders_again_bit_for_bit(
    tmp_path: Path, checkpoint: Path, pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    work = items(tmp_path, ROWS, seconds=SECONDS)
    run(pipeline, work, tmp_path / "out", asked=Asked(batch=3))
    for item in work:
        record = tmp_path / "out" / f"{item.name}.json"
        again = tmp_path / f"{item.name}.mp4"
        done = call(capsys, "render", record, "-o", again, "--model", checkpoint)
        assert done.code == 0, done.stderr
        assert "its frames are those that were recorded, bit for bit" in done.stderr
        made = json.loads(again.with_suffix(".json").read_text())
        assert made["batch"] == json.loads(record.read_text())["batch"]


def test_one_that_fails_costs_the_others_nothing(tmp_path: Path, pipeline: Pipeline) -> None:
    """A setting that cannot be, and a stream that is broken while it is made."""
    rows = ["sand", {"prompt": "sea", "set": {"stepz": 1}}, "a star", "blue"]
    work, made, png = items(tmp_path, rows, seconds=SECONDS), item_runner.write_clip, Outputs(png=True)
    expected = run(pipeline, work, tmp_path / "whole", asked=Asked(batch=2), outputs=png)
    assert expected == ["made", "failed", "made", "made"]

    def broken(clip: Any, hooks: Any, outputs: Any) -> Any:
        if clip.prompts == ("a star",):
            next(clip.session)
            clip.session.state.latents.ring.keys = torch.zeros(0)
        return made(clip, hooks, outputs=outputs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(item_runner, "write_clip", broken)
        found = run(pipeline, work, tmp_path / "out", asked=Asked(batch=2), outputs=png)
    assert found == ["made", "failed", "failed", "made"]
    assert raw(tmp_path / "out").keys() == {work[0].name, work[3].name}
    for item in (work[0], work[3]):
        # each may have come to another place than before, which rounds otherwise and which its record names
        whole, left = (pictures(tmp_path / folder / f"{item.name}.mp4") for folder in ("whole", "out"))
        assert np.abs(whole.astype(int) - left).max() <= 1


def test_a_stop_ends_all_and_a_new_run_goes_on(
    tmp_path: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, asked = items(tmp_path, ROWS * 2, seconds=SECONDS), threading.Event()
    runner = ItemRunner(pipeline, OutputFolder(tmp_path / "out"), Policy(asked=Asked(batch=3)), asked.is_set)

    class Watch:
        def begin(self, lengths: Any) -> None: ...
        def started(self, item: Any, frames: int) -> None: ...
        def waiting(self, items: Any) -> None: ...
        def settled(self, item: Any, outcome: Any) -> None: ...
        def progress(self, frames: int, item: Any) -> None:
            if frames >= 5:
                asked.set()

    with pytest.raises(Interrupted):
        run_items(work, runner, Watch(), asked.is_set)
    left = threading.active_count()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("streamgen-batch")], left
    statuses = run(pipeline, work, tmp_path / "out", asked=Asked(batch=3))
    assert set(statuses) <= {"made", "there"}


def test_what_was_asked_for_is_part_of_a_key(tmp_path: Path, pipeline: Pipeline) -> None:
    job = items(tmp_path, ["sand"])[0].job
    asked = (Asked(), Asked(threads=1), Asked(threads=2), Asked(batch=2), Asked(2, 2), Asked(batch=4))
    keys = {job_key(pipeline, job, 0, each) for each in asked}
    named = [Pipeline(pipeline.parts, runner) for runner in ("plain", "onnx")]
    assert len(keys | {job_key(each, job) for each in named}) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "2", "--runner", "onnx"], "batch: streams at once run on runner plain, found onnx"),
        (["--batch", "0"], "--batch"),
        (["--batch", "65"], "--batch"),
        (["--batch", "2", "--engine", "ray"], "--batch: not here, Ray spreads items over its workers"),
    ],
)
def test_bad_batches(
    tmp_path: Path,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    items(tmp_path, ["sand"])
    done = call(
        capsys, "render", tmp_path / "jobs.jsonl", "-o", tmp_path / "out", "--model", checkpoint, *options
    )
    assert message in done.error()


def test_one_clip_has_no_batch(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "render", "sand", "-o", tmp_path / "a.mp4", "--model", checkpoint, "--batch", 2)
    assert "--batch: not here, only a jobs file takes it" in done.error()


def test_the_command_renders_at_once(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items(tmp_path, ROWS, seconds=SECONDS)
    command = ["render", tmp_path / "jobs.jsonl", "-o", tmp_path / "out", "--model", checkpoint]
    done = call(capsys, *command, "--batch", 2, "--seconds", SECONDS, "--json")
    assert done.code == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    named = {event["file"] for event in events if event["event"] == "progress"}
    assert len(named) == 4
    assert events[-1]["made"] == 4
    # each event of progress is of the clip that it names
    for name in named:
        frames = [e["frames"] for e in events if e["event"] == "progress" and e["file"] == name]
        assert frames == sorted(frames)
        of = {e["of"] for e in events if e["event"] == "progress" and e["file"] == name}
        assert len(of) == 1
        assert frames[-1] == of.pop()
