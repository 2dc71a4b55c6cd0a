"""The exam: transcripts, the fixed set, folders, what a model is told, and the marks of anyone's videos."""

import dataclasses
import json
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.evaluation import pool
from distill.evaluation.intervals import wilson
from distill.exam import __main__ as command
from distill.exam import report, runner
from distill.exam.config import ExamConfig, exam_config
from distill.exam.facts import ASKS, KINDS, Fact
from distill.exam.folder import exam_digest, read_exam, write_exam
from distill.exam.plans import CATEGORIES, Draws
from distill.exam.rows import read_marks
from distill.exam.runner import Exam, ModelMaker, TruthMaker, make_video, read_video, tasks_of
from distill.exam.transcript import Transcript, read_transcript
from distill.scenes import HELD_OUT, caption_vocabulary
from distill.scenes.vocabulary import trained_indices
from streamgen import StreamEvent, load_pipeline
from streamgen.errors import InputError
from streamgen.video.decode_worker import Request, decode
from streamgen.video.read import read_clip
from streamgen.video.write import VideoFileSink
from tests.at_once import AtOnce
from tests.exam_world import SIZE, led, plain_instruments, plan_of, world
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs

#: Of version 1, at 64 pixels: whoever changes the fixed set raises the version.
FIXED_SET = "f522c08745ec686f64b26def11ff47331047bb717e2efe4c345218c9fb7bf964"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "m", words=caption_vocabulary())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Readers without training, and no processes, of which a clip is decoded in one of its own."""
    threads, interrupt = torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(runner, "Instruments", lambda world: plain_instruments())
    monkeypatch.setattr(pool, "ProcessPoolExecutor", AtOnce)
    monkeypatch.setattr(
        runner, "read_clip", lambda path, *wanted: decode(Request(str(path), *wanted), "pyav")
    )
    yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, interrupt)


def three() -> list[Transcript]:
    """Three short streams of one category, with facts that need no training to be read."""
    words = ["red circle stays sea", "blue circle stays grass", "yellow circle stays night"]
    return [
        plan_of(
            {0: [one]},
            [
                Fact("colour", (0, 24), one.split()[0], asks="beginning"),
                Fact("background", (0, 24), one.split()[3]),
            ],
            frames=24,
            name=f"update-00{place}",
        ).transcript(SIZE)
        for place, one in enumerate(words)
    ]


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exam of `three()` with the world's own videos of it."""
    folder = tmp_path_factory.mktemp("exams")
    write_exam(folder / "exam", three())
    (folder / "videos").mkdir()
    words = ["red circle stays sea", "blue circle stays grass", "yellow circle stays night"]
    for one, said in zip(three(), words, strict=True):
        told = plan_of({0: [said]}, frames=24)
        make_video(TruthMaker(SIZE), one, told, folder / "videos" / f"{one.id}.mp4")
    return folder


@pytest.fixture
def folders(delivered: Path, tmp_path: Path) -> tuple[Path, Path]:
    """An exam and videos of it, to be spoiled."""
    shutil.copytree(delivered, tmp_path, dirs_exist_ok=True)
    return tmp_path / "exam", tmp_path / "videos"


def test_the_fixed_set_is_that_of_its_version() -> None:
    exam = Exam.of(exam_config({"size": "full"}))
    assert len(exam.transcripts) == len({one.id for one in exam.transcripts}) == 316
    assert exam_digest(exam.transcripts) == FIXED_SET
    assert exam_digest(Exam.of(exam_config({"size": "full", "seed": 1})).transcripts) != FIXED_SET


def test_a_smaller_exam_is_the_beginning_of_a_larger_one() -> None:
    sets = [
        {one.id: one.digest for one in Exam.of(exam_config({"size": size})).transcripts}
        for size in ("small", "medium", "full")
    ]
    assert sets[0].items() <= sets[1].items() <= sets[2].items()
    full = Exam.of(exam_config({"size": "full"}))
    for name, (kinds, _) in CATEGORIES.items():
        assert {one.kind for one in full.transcripts if one.category == name} == set(kinds)
    told = {task.transcript.id: task.told for task in tasks_of(full.transcripts, {})}
    few = Exam.of(exam_config({"size": "medium"}))
    assert all(task.told == told[task.transcript.id] for task in tasks_of(few.transcripts, {}))


def test_streams_ask_for_everything_and_for_no_held_out_pair() -> None:
    exam = Exam.of(exam_config({"size": "full"}))
    facts = [fact for one in exam.transcripts for fact in one.facts]
    assert {fact.kind for fact in facts} == set(KINDS)
    assert {fact.asks for fact in facts} == set(ASKS)
    said = {row["prompt"] for one in exam.transcripts for row in one.events if "prompt" in row}
    assert not [prompt for prompt in said for c, s in HELD_OUT if f"{c} {s}" in prompt]
    known = set(caption_vocabulary())
    assert {word for prompt in said for word in prompt.split()} <= known
    # where chunks of one, two and four latent frames begin, and events of a model that has these
    frames = {row["frame"] for one in exam.transcripts for row in one.events}
    assert all(frame % 4 == 1 for frame in frames if frame)


def test_values_are_dealt_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        pairs = [Draws(0, "update", i).deal("pair", trained_indices()) for i in range(len(trained_indices()))]
        assert sorted(pairs) == sorted(trained_indices())

    assert_needs(check, monkeypatch, Draws, "deal", lambda self, name, values: self.pick(values))


def test_transcripts_are_read_as_written(tmp_path: Path) -> None:
    exam = Exam.of(exam_config({"size": "small"}))
    write_exam(tmp_path, exam.transcripts)
    again = read_exam(tmp_path)
    assert {one.id: one for one in again} == {one.id: one for one in exam.transcripts}
    assert [event.prompt for _, event in again[0].stream_events()] == [
        row.get("prompt") for row in again[0].events
    ]


def changed(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    content = three()[0].to_json()
    change(content)
    return json.loads(json.dumps(content))  # type: ignore[no-any-return]


def fact(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["facts"].append(
        {"kind": "colour", "frames": [0, 24], "expect": "red"} | values
    )


BAD: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (fact(frames=[0, 40]), "facts[2] (colour): frames: expected first frame and end within 0 to 24"),
    (fact(frames=[9, 9]), "found [9, 9]"),
    (fact(frames=[1.5, 9]), "facts[2] (colour): frames: expected [first frame, end], found [1.5, 9]"),
    (fact(kind="colr"), "facts[2] (colr): unknown kind of fact 'colr' (did you mean 'colour'?)"),
    (fact(expect="rod"), "unknown colour 'rod' (did you mean 'red'?)"),
    (fact(expect=3), "expected a colour, found 3"),
    (fact(asks="respons"), "did you mean 'response'"),
    (fact(tolerance=2), "tolerance: expected 0 to 1, found 2"),
    (fact(tolerance="much"), "tolerance: expected a number, found 'much'"),
    (fact(kind="shape", expect="circle"), "object: missing"),
    (fact(kind="motion", expect="left", object="red"), "frames: expected at least 49 of them, found 24"),
    (fact(kind="background_kept", expect=25, tolerance=0.1), "since background_kept has no degrees"),
    (fact(kind="identity_kept", expect=None, object="red"), "against: missing"),
    (
        fact(kind="returns", expect=0.6, against=[20, 30]),
        "against: expected first frame and end within 0 to 24",
    ),
    (fact(kind="count", expect=9), "expected a number of objects from 0 to 3, found 9"),
    (fact(kind="path", object="red", expect=[[0, 0.5, 0.5]]), "expected places from frame 0 to 23"),
    (fact(kind="path", object="red", expect=[[0, 0.5, 0.5], [23, 2, 0]]), "expected x and y in [0, 1]"),
    (fact(kind="shown_within", expect={"hue": "red"}), "unknown attribute 'hue'"),
    (
        fact(kind="shown_within", expect={"colour": "red"}, tolerance=2),
        "at least 33 of them for 2 s, found 24",
    ),
    (fact(kind="shown_within", expect={"shape": "star"}), "expected the colour of the object whose shape"),
    (fact(kind="background_kept", expect=99), "expected a PSNR in dB from 1 to 60, found 99"),
    (fact(frame=3), "unknown key 'frame' (did you mean 'frames'?)"),
    (lambda c: c.update(version=2), "version: expected 1, found 2"),
    (lambda c: c.update(format="x"), 'expected an object with "format"'),
    (lambda c: c.update(fsp=16), "unknown key 'fsp' (did you mean 'fps'?)"),
    (lambda c: c.pop("seed"), "seed: missing"),
    (lambda c: c.update(fps=0), "fps: expected a number from 1 to 240, found 0"),
    (lambda c: c.update(id="b"), "id: expected 'update-000', the name of the file, found 'b'"),
    (lambda c: c.update(events=[]), "events: expected a list with at least one"),
    (lambda c: c["events"][0].pop("prompt"), "events[0]: expected a prompt at frame 0"),
    (lambda c: c["events"].append({"frame": 24}), "events[1]: frame: expected 0 to 23, found 24"),
    (lambda c: c["events"].append({"frame": 0}), "events[1]: frame: expected one above 0, found 0"),
    (lambda c: c["events"].append({"frame": 8, "seconds": 4}), "events[1]: seconds: expected 0.5, found 4"),
    (lambda c: c["events"].append({"frame": 8, "promt": "x"}), "events[1]: unknown key 'promt'"),
    (
        lambda c: c["events"].append({"frame": 8, "motion": {"paths": 3}}),
        "events[1]: motion: paths: expected a list",
    ),
    (lambda c: c["events"].append({"frame": 8, "cache": "drop"}), "events[1]: cache: expected one of"),
    (lambda c: c["events"].append({"frame": 8}), "events[1]: expected something that changes, found frame"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_bad_transcript_is_one_line(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "update-000.json"
    file.write_text(json.dumps(changed(change)))
    with pytest.raises(InputError) as caught:
        read_transcript(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)
    assert message in str(caught.value)


def marked(exam: Path, videos: Path, out: Path, *more: str) -> int:
    return command.main(["--mark", str(videos), "--exam", str(exam), "-o", str(out), *more])


def test_videos_of_any_system_are_marked_and_taken_up_again(
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (exam, videos), out, transcripts = folders, tmp_path / "out", three()
    # as a system would deliver it: 4:2:0, and longer than asked for
    blue = read_video(videos / "update-001.mp4", transcripts[1]).numpy()
    with VideoFileSink(videos / "update-001.mp4", SIZE, SIZE, 16) as sink:
        sink.write(blue)
        sink.write(blue[-3:])
    assert marked(exam, videos, out, "--json", "--name", "ours") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["name"] == "ours"
    assert found["marks"]["all"] == found["marks"]["whole"] == 1
    assert found["n"]["all"] == 3
    # every video against another stream's words: colour and ground differ in all three
    assert found["marks"]["shuffled"]["all"] == 0
    assert found["intervals"]["all"] == pytest.approx(wilson(3, 3))
    rows = read_marks(out)
    assert len(rows) == 3 * 2 * 2
    assert {row.found for row in rows if row.own} == {1.0}
    assert (out / "index.html").exists()
    assert "| update | 1 [" in (out / "marks.md").read_text()

    done: list[str] = []
    task = runner.do_task
    monkeypatch.setattr(
        runner, "do_task", lambda work, one: done.append(one.transcript.id) or task(work, one)
    )
    assert marked(exam, videos, out) == 0
    assert done == []
    # the ground of another stream, and a last line that was cut off
    shutil.copyfile(videos / "update-001.mp4", videos / "update-002.mp4")
    with (out / "rows.jsonl").open("a") as file:
        file.write('{"stream": "upd')
    assert marked(exam, videos, out, "--json") == 0
    assert done == ["update-002"]
    capsys.readouterr()
    rows = read_marks(out)
    assert len(rows) == 12
    assert {row.stream for row in rows if row.own and not row.mark} == {"update-002"}
    assert report.figures_of(rows)["all"].value == pytest.approx(2 / 3)


def rewrite(file: Path, size: int = SIZE, fps: float = 16, frames: int = 24) -> None:
    with VideoFileSink(file, size, size, fps) as sink:
        sink.write(torch.zeros(frames, size, size, 3, dtype=torch.uint8).numpy())


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e, v: (v / "update-001.mp4").unlink(), "expected 3 videos, found none of update-001.mp4"),
        (lambda e, v: shutil.rmtree(v), "videos: no such folder"),
        (lambda e, v: rewrite(v / "update-001.mp4", 32), "update-001.mp4: size: expected 64x64, as the tra"),
        (
            lambda e, v: rewrite(v / "update-001.mp4", fps=8),
            "frames per second: expected 16, as the transcript",
        ),
        (
            lambda e, v: rewrite(v / "update-001.mp4", frames=20),
            "update-001.mp4: expected 24 frames, found 20",
        ),
        (lambda e, v: (v / "update-001.mp4").write_text("no"), "update-001.mp4: not a video"),
        (
            lambda e, v: (v / "exam.json").write_text('{"format": "streamgen-exam", "version": 3}'),
            "version 1 of",
        ),
        (lambda e, v: edit(e / "exam.json", version=2), "exam.json: expected version 1 of the exam, found 2"),
        (
            lambda e, v: edit(e / "exam.json", format="x"),
            'expected an object with "format": "streamgen-exam"',
        ),
        (lambda e, v: (e / "exam.json").unlink(), "exam.json: no such file"),
        (lambda e, v: shutil.rmtree(e / "transcripts"), "expected transcripts, <id>.json, found none"),
        (lambda e, v: edit(e / "transcripts" / "update-000.json", seed=5), "some were changed, added"),
        (
            lambda e, v: edit(
                e / "transcripts" / "update-000.json", facts=[{"kind": "colour", "frames": [0, 99]}]
            ),
            "update-000.json: facts[0] (colour): frames: expected first frame and end within 0 to 24",
        ),
    ],
)
def test_a_bad_folder_is_one_line(
    change: Callable[[Path, Path], None],
    message: str,
    folders: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    exam, videos = folders
    change(exam, videos)
    assert marked(exam, videos, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--truth", "--model", "tiny", "-o", "OUT"], "found --model and --truth"),
        (["--truth"], "-o: missing"),
        (["--truth", "--policy", "keep", "-o", "OUT"], "--policy: expected with --model, found with --truth"),
        (["--truth", "--exam", "x", "-o", "OUT"], "--exam: expected with --model or --mark"),
        (["--name", "x", "-o", "OUT"], "--name: expected with --mark, found with --model"),
        (["--model", "nothing", "-o", "OUT"], "nothing"),
        (["size=huge", "-o", "OUT"], "size: expected one of small, medium, full"),
        (["updat=3", "-o", "OUT"], "did you mean 'update'"),
        (["pixels=50", "-o", "OUT"], "pixels: expected a multiple of 16"),
        (
            ["pixels=32", "--model", "tiny", "-o", "OUT"],
            "exam is of 32x32 at 16 fps, the model makes 64x64 at 16",
        ),
        (["--set", "stepz=4", "--model", "tiny", "-o", "OUT"], "did you mean"),
        (["--processes", "0", "-o", "OUT"], "--processes: expected at least 1"),
        (["--report", "a=nothing", "-o", "OUT"], "--report a=nothing: expected a marked exam's folder"),
        (["--mark", "nothing", "-o", "OUT"], "nothing: no such folder, expected videos"),
        (["--mark", "x", "--exam", "nothing", "-o", "OUT"], "exam.json: no such file"),
    ],
)
def test_bad_usage_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(tmp_path / "out") if one == "OUT" else one for one in arguments]
    assert command.main(given) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_a_model_of_another_world_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_checkpoint(tmp_path / "m")
    assert command.main(["--model", str(model), "pixels=32", "-o", str(tmp_path / "out")]) == 2
    assert "expected one of the procedural world, found no 'orange'" in capsys.readouterr().err


def test_marks_of_something_else_are_refused(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (exam, videos), out, transcripts = folders, tmp_path / "out", three()
    assert marked(exam, videos, out) == 0
    about = json.loads((out / "about.json").read_text())
    (out / "about.json").write_text(json.dumps(about | {"source": "truth"}))
    assert marked(exam, videos, out) == 2
    assert "has marks of other source, 'truth', expected 'videos'" in capsys.readouterr().err
    (out / "about.json").write_text(json.dumps(about))
    shutil.rmtree(exam)
    write_exam(exam, [dataclasses.replace(transcripts[0], seed=4), *transcripts[1:]])
    assert marked(exam, videos, out) == 2
    assert "update-000.json: is of another exam" in capsys.readouterr().err


def test_a_lossless_video_comes_back_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "read_clip", read_clip)
    told = plan_of({0: ["red circle right sea"]}, [Fact("colour", (0, 30), "red")], frames=30)
    make_video(TruthMaker(SIZE), told.transcript(SIZE), told, tmp_path / "a.mp4")
    assert torch.equal(read_video(tmp_path / "a.mp4", told.transcript(SIZE)), world().video(told))


def test_a_model_is_told_each_event_at_its_frame(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the policy where words change, settings over the model's, and motion from its frame on."""
    told = plan_of(
        {0: ["red circle right sea"], 9: ["blue circle right sea"]},
        [Fact("colour", (0, 24), "red")],
        frames=26,
        motions={0: led([0, 0.3, 0.3], [8, 0.3, 0.3]), 13: led([0, 0.3, 0.3], [4, 0.5, 0.5])},
    ).transcript(32)
    pipeline = load_pipeline(checkpoint)
    (_, opening), (_, words), (_, drawn) = told.stream_events()
    session = pipeline.open(opening.prompt, told.seed, opening.motion, settings={"steps": 1})
    parts = []
    while (seen := sum(map(len, parts))) < 26:
        if seen == 9:
            session.submit(StreamEvent(prompt=words.prompt, policy="keep"))
        if seen == 13:
            session.submit(StreamEvent(motion=drawn.motion))
        parts.append(next(session).frames)
    expected = torch.cat(parts)[:26]

    def check(policy: Any = "keep", settings: Mapping[str, Any] | None = None) -> None:
        monkeypatch.setitem(pool._worker, "pipeline", pipeline)
        maker = ModelMaker(str(checkpoint), settings or {"steps": 1}, policy)
        assert torch.equal(torch.cat(list(maker.frames(told))), expected)

    assert_needs(check, monkeypatch, Transcript, "stream_events", lambda self: [(0, opening), (9, words)])
    for other in ({"policy": "recache"}, {"settings": {"steps": 2}}):
        with pytest.raises(AssertionError):
            check(**other)  # type: ignore[arg-type]


def test_an_event_that_a_model_refuses_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = plan_of({0: ["red circle right sea"]}, [Fact("colour", (0, 24), "red")]).transcript(32)
    told = dataclasses.replace(told, events=(*told.events, {"frame": 9, "settings": {"steps": 0}}))
    monkeypatch.setitem(pool._worker, "pipeline", load_pipeline(checkpoint))
    with pytest.raises(InputError, match=r"update-000: event at frame 9: .*steps"):
        list(ModelMaker(str(checkpoint), {}, "recache").frames(told))


def test_marked_exams_beside_each_other(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exam, videos = folders
    assert marked(exam, videos, tmp_path / "good") == 0
    for name in ("update-001", "update-002"):
        shutil.copyfile(videos / "update-000.mp4", videos / f"{name}.mp4")
    assert marked(exam, videos, tmp_path / "bad") == 0
    capsys.readouterr()
    both = [f"--report=good={tmp_path / 'good'}", f"--report={tmp_path / 'bad'}"]
    assert command.main([*both, "-o", str(tmp_path / "both"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["exams"]
    assert [row["name"] for row in rows] == ["good", "bad"]
    assert rows[1]["figures"]["all"]["value"] == pytest.approx(1 / 3)
    every = next(one for one in rows[1]["against"] if one["figure"] == "all")
    assert (every["n"], every["only_first"], every["only_second"], every["p"]) == (3, 2, 0, 0.5)
    table = (tmp_path / "both" / "table.md").read_text().splitlines()
    assert table[0].startswith("|  | beginning | response |")
    assert table[2].startswith("| good | 1 [")
    marks = tmp_path / "bad" / "rows.jsonl"
    for old, new, message in (
        ('"transcript": "', '"transcript": "0', "expected the exam of good, found another transcript of"),
        ('"stream": "update', '"stream": "other', "expected some of the streams of good, found none"),
    ):
        marks.write_text(marks.read_text().replace(old, new))
        assert command.main([*both, "-o", str(tmp_path / "both")]) == 2
        assert f"--report bad: {message}" in capsys.readouterr().err


def test_transcripts_are_written_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--write", str(tmp_path / "exam"), "size=small", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["streams"] == 21
    assert len(read_exam(tmp_path / "exam")) == 21
    # a larger one adds to it
    assert command.main(["--write", str(tmp_path / "exam"), "size=medium"]) == 0
    assert len(read_exam(tmp_path / "exam")) == sum(ExamConfig().counts.values())
    assert command.main(["--write", str(tmp_path / "exam"), "seed=1"]) == 2
    assert "is of another exam" in capsys.readouterr().err
