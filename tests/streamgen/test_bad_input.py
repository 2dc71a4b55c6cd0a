"""Bad input of the command line: each kind is one clear line, the exit code of the contract, and no file.

Every case runs with the same good rest, so that what is refused is the one bad thing in it.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

from streamgen.video.write import VideoFileSink
from tests.command_line import call
from tests.forked import call_forked
from tests.tiny_checkpoints import write_checkpoint

GOOD = ["render", "a red circle", "-o", "out.mp4", "--seconds", "1"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refuse(capsys: pytest.CaptureFixture[str], place: Path, *arguments: object) -> str:
    """The error line; nothing may be left that was not there before."""
    before = sorted(place.rglob("*"))
    line = call(capsys, *arguments).error()
    assert sorted(place.rglob("*")) == before
    return line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seconds", "-1"], "seconds: expected above 0"),
        (["--seconds", "0"], "seconds: expected above 0"),
        (["--seconds", "1e9"], "at most 86400"),
        (["--seconds", "nan"], "seconds: expected a finite number"),
        (["--seconds", "inf"], "seconds: expected a finite number"),
        (["--seconds", "0.001"], "expected at least one frame"),
        (["--seed", "-1"], "seed: expected a whole number from 0"),
        (["--seed", str(2**64)], "seed: expected a whole number from 0"),
        (["--at", "0.5:sea", "--at", "0.2:sand"], "times must be in order"),
        (["--at", "1:sand"], "expected from 0 to before the end (1 s), found 1"),
        (["--at", "-0.1:sand"], "expected from 0 to before the end"),
        (["--at", "nan:sand"], "expected a finite number"),
        (["--at", "half:sand"], "expected a number of seconds"),
        (["--at", "0.5:"], "--at: is empty"),
        (["--at", "0.5"], 'expected "SECONDS:PROMPT"'),
        (["--set", "stepz=3"], "unknown key 'stepz' (did you mean 'steps'?)"),
        (["--set", "steps=many"], "setting steps: expected int, found 'many'"),
        (["--set", "steps=2.5"], "setting steps: expected int, found 2.5"),
        (["--set", "steps=0"], "settings: "),
        (["--set", "shift=.nan"], "settings: shift must be in 0.01..100, found nan"),
        (["--set", "shift=.inf"], "settings: shift must be in 0.01..100, found inf"),
        (["--set", "text_guidance=.inf"], "settings: text_guidance must be in 0..100, found inf"),
        (["--set", "text_guidance=-1"], "settings: "),
        (["--set", "steps"], "expected key=value"),
        (["--set", "sampler=magic"], "settings: "),
        (["--set", "window_frames=-1"], "settings: "),
        (["--set", "rope=absolute", "--seconds", "4000"], "with rope=absolute a stream ends after"),
        (["--motion", "none.json"], "motion: no such file"),
        (["--image", "none.png"], "image: no such file"),
        (["--video", "none.mp4"], "video: no such file"),
        (["--continue-from", "none"], "--continue-from none: no such file"),
        (["--device", "quantum"], "device quantum"),
        (["--device", "meta"], "device meta"),
        (["--overwrite"], "--overwrite: not here"),
        (["-o", "out.avi"], "expected a name that ends in .mp4"),
        (["-o", "none/out.mp4"], "no such folder: none"),
        (["--save-state", "none/state"], "--save-state none/state"),
    ],
)
def test_options(
    options: list[str], message: str, place: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refuse(capsys, place, *GOOD, "--model", checkpoint, *options)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "prompt: is empty"),
        (" \t\n", "prompt: is empty"),
        ("word " * 2001, "at most 10000 are allowed"),
        ("a\0b", "control characters"),
        ("prompts.txt", "prompts.txt: no such file"),
        ("none.json", "none.json: no such file"),
    ],
)
def test_prompts(
    prompt: str, message: str, place: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if prompt.endswith((".txt", ".json")):
        assert message in refuse(capsys, place, "render", prompt, "-o", "out.mp4", "--model", checkpoint)
    else:
        assert message in refuse(capsys, place, "render", prompt, *GOOD[2:], "--model", checkpoint)


@pytest.mark.parametrize(
    ("prompt", "note"),
    [
        (
            "gargoyle zeppelin",
            "note: 'gargoyle', 'zeppelin' mean nothing to this model (in 'gargoyle zeppelin')",
        ),
        ("a blue gargoyle", "note: 'gargoyle' means nothing"),
        ("a red circle stays over the blue sea", "note: only the first 6 words are read, 2 are dropped"),
        ("!?", "note: '!?' means nothing to this model (in '!?')"),
        ("a red circle", None),
    ],
)
def test_words_the_model_does_not_know_still_render(
    prompt: str, note: str | None, place: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = call(capsys, "render", prompt, *GOOD[2:], "--model", checkpoint, "-q")
    assert done.code == 0, done
    assert (place / "out.mp4").is_file()
    lines = done.stderr.splitlines()
    # unknown words are followed by where the known ones are listed
    assert len(lines) == (0 if note is None else 2 if "nothing" in note else 1)
    assert all(line.startswith("note: ") for line in lines)
    assert (note or "") in done.stderr


def track(**changes: Any) -> dict[str, Any]:
    return {"frames": 2, "tracks": [{"points": [[0.5, 0.5], [0.6, 0.5]]} | changes]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(track(points=[[float("nan"), 0.5], [0.5, 0.5]])), "expected finite numbers"),
        (json.dumps(track(points=[[1.5, 0.5], [0.5, 0.5]])), "must be a number in [0, 1]"),
        (json.dumps(track(points=[[0.5, -0.1], [0.5, 0.5]])), "must be a number in [0, 1]"),
        (json.dumps(track(points=[[0.5, 0.5]] * 3)), "expected 2 points"),
        (json.dumps(track(points=[])), "points: expected a list"),
        (json.dumps(track(points=[None, None])), "empty: no point is given"),
        ("{}", "empty: no "),
        ('{"dragz": []}', "did you mean 'drags'?"),
        ("", "not valid JSON"),
        ("[1, 2]", "expected an object"),
        ('{"pins": "all"}', "pins: expected a list"),
        ('{"drags": [{"from": [0, 0], "to": [1, 1], "seconds": 1e30}]}', "expected finite numbers"),
        ('{"boxes": [{"from": [0.5, 0, 0.2, 1], "seconds": 1}]}', "boxes[0]: box at 0 s: its edges cross"),
    ],
)
def test_motion_files(
    content: str, message: str, place: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "motion.json").write_text(content)
    line = refuse(capsys, place, *GOOD, "--motion", "motion.json", "--model", checkpoint)
    assert "motion.json" in line
    assert message in line


def audio_only(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))


def good_clip(path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (24, 48, 64, 3), np.uint8)
    with VideoFileSink(path, 48, 64, 16) as sink:
        sink.write(pictures)


def truncated_clip(path: Path) -> None:
    good_clip(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "make", [audio_only, truncated_clip, lambda path: path.write_text("no clip"), Path.touch]
)
def test_clips(
    make: Callable[[Path], Any], place: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(place / "start.mp4")
    assert "start.mp4: " in refuse(capsys, place, *GOOD, "--video", "start.mp4", "--model", checkpoint)


@pytest.mark.parametrize("content", [b"no picture", b"", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_images(content: bytes, place: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "start.png").write_bytes(content)
    assert "start.png: " in refuse(capsys, place, *GOOD, "--image", "start.png", "--model", checkpoint)


@pytest.mark.parametrize("size", [(1, 1), (33, 7), (501, 333)])
def test_images_of_odd_sizes_are_fine(
    size: tuple[int, int], place: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", size, "teal").save(place / "start.png")
    assert call(capsys, *GOOD, "--image", "start.png", "--model", checkpoint).code == 0


def test_a_start_is_an_image_or_a_clip(
    place: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good_clip(place / "start.mp4")
    Image.new("RGB", (32, 32)).save(place / "start.png")
    both = ["--video", "start.mp4", "--image", "start.png"]
    assert "not both" in refuse(capsys, place, *GOOD, *both, "--model", checkpoint)
    assert call(capsys, *GOOD, "--video", "start.mp4", "--model", checkpoint).code == 0


def change_tensors(directory: Path, name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    save_file(change(load_file(directory / name)), directory / name)


def change_config(directory: Path, **changes: Any) -> None:
    config = OmegaConf.load(directory / "config.yaml")
    OmegaConf.save(OmegaConf.merge(config, changes), directory / "config.yaml")


def cut(directory: Path, name: str) -> None:
    content = (directory / name).read_bytes()
    (directory / name).write_bytes(content[: len(content) // 2])


def other_tokenizer(directory: Path) -> None:
    other = write_checkpoint(directory.parent / "other", seed=5)
    shutil.copy(other / "tokenizer.safetensors", directory / "tokenizer.safetensors")


HEAD = "dit.head.head.weight"
CHECKPOINTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda d: (d / "config.yaml").unlink(), "config.yaml, found none"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "no such file"),
    "no tokenizer": (lambda d: (d / "tokenizer.safetensors").unlink(), "no such file"),
    "no vocabulary": (lambda d: (d / "vocabulary.txt").unlink(), "vocabulary"),
    "short vocabulary": (lambda d: (d / "vocabulary.txt").write_text("sea"), "expected 12 words, found 1"),
    "binary vocabulary": (lambda d: (d / "vocabulary.txt").write_bytes(b"\xff\xfe\0"), "vocabulary"),
    "truncated weights": (lambda d: cut(d, "model.safetensors"), "truncated or not safetensors"),
    "truncated tokenizer": (lambda d: cut(d, "tokenizer.safetensors"), "truncated or not safetensors"),
    "weights are text": (
        lambda d: (d / "model.safetensors").write_text("no"),
        "truncated or not safetensors",
    ),
    "empty weights": (lambda d: (d / "model.safetensors").write_bytes(b""), "truncated or not safetensors"),
    "config is binary": (lambda d: (d / "config.yaml").write_bytes(b"\xff\0"), "not readable as YAML"),
    "config is a list": (lambda d: (d / "config.yaml").write_text("- 1"), "expected keys and values"),
    "config is empty": (lambda d: (d / "config.yaml").write_text(""), "is missing"),
    "unknown config key": (lambda d: change_config(d, heigth=32), "did you mean 'height'?"),
    "config of another size": (lambda d: change_config(d, height=33), "33"),
    "config of a negative size": (lambda d: change_config(d, dit={"layers": -1}), "dit"),
    "config with a wrong type": (lambda d: change_config(d, dit={"dim": "big"}), "dim"),
    "another dim": (lambda d: change_config(d, dit={"dim": 48}), "expected shape"),
    "more layers": (lambda d: change_config(d, dit={"layers": 3}), "missing tensors"),
    "fewer layers": (lambda d: change_config(d, dit={"layers": 1}), "surplus tensors"),
    "other shapes": (
        lambda d: change_tensors(d, "model.safetensors", lambda t: t | {HEAD: t[HEAD][:1].clone()}),
        "expected shape",
    ),
    "other keys": (
        lambda d: change_tensors(
            d, "model.safetensors", lambda t: {k.replace("head", "tail"): v for k, v in t.items()}
        ),
        "missing tensors",
    ),
    "not a number": (
        lambda d: change_tensors(d, "model.safetensors", lambda t: t | {HEAD: t[HEAD] * float("nan")}),
        "expected finite numbers",
    ),
    "another tokenizer": (other_tokenizer, "expected the tokenizer that this model was trained on"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(case: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, message = CHECKPOINTS[case]
    spoil(write_checkpoint(place / "model"))
    assert message in refuse(capsys, place, *GOOD, "--model", "model")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no", "not valid JSON"),
        ("[]", 'expected an object with "format"'),
        ('{"format": "streamgen-timeline"}', "incomplete or damaged"),
        ('{"format": "streamgen-timeline", "fps": 16, "seed": 0, "events": []}', "expected an opening event"),
        ('{"format": "streamgen-timeline", "fps": 24, "seed": 0, "events": []}', "16 fps, found 24"),
        ('{"format": "streamgen-timeline", "fps": 16, "seed": 0, "evnts": []}', "did you mean 'events'?"),
        (
            '{"format": "streamgen-timeline", "fps": 16, "seed": 0, "start": {"frames": 1}, "events": []}',
            "start: expected frames and sha256",
        ),
        ('{"format": "streamgen-render"}', 'expected an object with "format"'),
    ],
)
def test_timelines(
    content: str, message: str, place: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "a.timeline.json").write_text(content)
    line = refuse(capsys, place, "render", "a.timeline.json", "-o", "out.mp4", "--model", checkpoint)
    assert message in line


@pytest.mark.parametrize(
    "row", [{"chunk": "x"}, {"settings": {"steps": 0}}, {"prompt": ""}, {"policy": "x"}, 5, {"fr": 1}]
)
def test_timeline_events(row: Any, place: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"chunk": 0, "frame": 0, "prompt": "sea"}
    events = [good, row if isinstance(row, int) else {"chunk": 1, "frame": 1, "prompt": "sand"} | row]
    content = {"format": "streamgen-timeline", "fps": 16, "seed": 0, "events": events}
    (place / "a.json").write_text(json.dumps(content))
    refuse(capsys, place, "render", "a.json", "-o", "out.mp4", "--model", checkpoint)


@pytest.mark.parametrize("content", [b"", b"no state", b"weights"])
def test_saved_states(
    content: bytes, place: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content == b"weights":
        content = (checkpoint / "model.safetensors").read_bytes()
    (place / "state").write_bytes(content)
    line = refuse(capsys, place, *GOOD, "--continue-from", "state", "--model", checkpoint)
    assert "snapshot state: damaged or not a snapshot" in line


def test_a_state_of_another_model(place: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_checkpoint(place / "other", seed=5)
    assert call(capsys, *GOOD, "--save-state", "state", "--model", checkpoint).code == 0
    rest = ["render", "-o", "rest.mp4", "--continue-from", "state", "--model"]
    assert "snapshot: expected model" in refuse(capsys, place, *rest, other)
    assert "rope: fixed when the stream opens" in refuse(
        capsys, place, *rest, checkpoint, "--set", "rope=absolute"
    )
    assert "--seed: not here" in refuse(capsys, place, *rest, checkpoint, "--seed", 0)


def test_a_motion_file_is_not_overwritten_by_the_record(
    place: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "out.json").write_text('{"pins": [[0.5, 0.5]]}')
    line = refuse(capsys, place, *GOOD, "--motion", "out.json", "--model", checkpoint)
    assert "would overwrite out.json" in line
    assert json.loads((place / "out.json").read_text()) == {"pins": [[0.5, 0.5]]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "no jobs in it"),
        ("a.jsonl", '{"prompt": "sea"', "line 1: not valid JSON"),
        ("a.jsonl", '{"promt": "sea"}', "did you mean 'prompt'?"),
        ("a.csv", "prompt,secs\nsea,3\n", "secs"),
        ("a.yaml", "prompt: [", "not valid YAML"),
        ("a.jsonl", '{"prompt": "sea", "seconds": -1}', "line 1: seconds"),
    ],
)
def test_job_files(
    name: str, content: str, message: str, place: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / name).write_text(content)
    assert message in refuse(capsys, place, "render", name, "-o", "out", "--model", checkpoint)


def test_output_folders(place: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "file").write_text("")
    (place / "jobs.txt").write_text("sea\n")
    model = ["--model", checkpoint]
    assert "-o file/out" in refuse(capsys, place, "render", "jobs.txt", "-o", "file/out", *model)
    assert "no such folder" in refuse(capsys, place, *GOOD, "-o", "file/out.mp4", *model)
    (place / "folder.mp4").mkdir()
    (place / "folder.mp4" / "a-red-circle.json").write_text("{}")
    assert "would overwrite" in refuse(capsys, place, *GOOD, "-o", "folder.mp4", *model)


@pytest.mark.slow
def test_unwritable_folder(place: Path, checkpoint: Path) -> None:
    (place / "closed").mkdir(mode=0o500)
    line = call_forked("render", "a red circle", "-o", "closed/out.mp4", "--model", checkpoint, cwd=place)
    assert "permission denied" in line.error()


def test_read_only_disk(place: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No process may make files there, not even the superuser's."""
    if not Path("/proc/self").is_dir():
        pytest.skip("needs /proc")
    line = refuse(capsys, place, *GOOD, "-o", "/proc/self/out.mp4", "--model", checkpoint)
    assert "cannot be written" in line


@pytest.mark.parametrize(
    "room", [3000, pytest.param(0, marks=pytest.mark.slow), pytest.param(12000, marks=pytest.mark.slow)]
)
def test_full_disk(room: int, place: Path, checkpoint: Path) -> None:
    """No file may grow beyond `room` bytes; whatever is cut off, no final name appears."""
    done = call_forked(*GOOD, "--seconds", "4", "--model", checkpoint, cwd=place, largest_file=room)
    assert "out.mp4: cannot be written (file too large)" in done.error()
    assert {path.name for path in place.iterdir()} <= {"out.mp4.part"}


@pytest.mark.slow
def test_a_disk_too_full_for_the_record(place: Path, checkpoint: Path) -> None:
    """The video fits and its record does not: neither gets its name."""
    prompts = [f"{i / 16}:sea {i} " + "gargoyle " * 200 for i in range(1, 16)]
    options = [part for prompt in prompts for part in ("--at", prompt)]
    done = call_forked(*GOOD, *options, "--model", checkpoint, cwd=place, largest_file=30_000)
    assert "out.json: cannot be written (file too large)" in done.error()
    assert [path.name for path in place.iterdir()] == ["out.mp4.part"]
