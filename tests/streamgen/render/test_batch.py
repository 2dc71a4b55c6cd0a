"""Batches: what lies in the output folder after runs, also after changes, damage and tampering."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import decord
import pytest
import torch
from PIL import Image

from streamgen.errors import OutputError
from streamgen.pipeline import Pipeline, load_pipeline
from streamgen.render.folder import OutputFolder
from streamgen.render.manifest import Entry
from streamgen.render.page import page_html
from streamgen.render.schedule import Rank
from tests.batch_folder import files, items, lines, raw, run
from tests.tiny_checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "small", steps=1)


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Pipeline:
    torch.set_num_threads(1)
    return load_pipeline(checkpoint)


def test_a_run_leaves_videos_records_strips_and_a_manifest(tmp_path: Path, pipeline: Pipeline) -> None:
    out = tmp_path / "made" / "out"
    work = items(tmp_path, [{"prompt": "sand", "samples": 2}, {"prompt": "sea", "id": "the/sea", "seed": 9}])
    assert run(pipeline, work, out, origin="jobs.jsonl") == ["made"] * 3
    names = ["00000-sand-s0", "00000-sand-s1", "00001-the-sea-s9"]
    wanted = [f"{name}.{suffix}" for name in names for suffix in ("json", "mp4")]
    assert sorted(files(out)) == sorted([*wanted, *(f"page/{name}.jpg" for name in names)])
    for name, line in zip(names, lines(out), strict=True):
        record = json.loads((out / f"{name}.json").read_text())
        assert record["file"] == {"bytes": line["bytes"], "sha256": line["sha256"]}
        assert hashlib.sha256((out / f"{name}.mp4").read_bytes()).hexdigest() == line["sha256"]
        assert (line["status"], line["file"], line["key"]) == ("ok", f"{name}.mp4", record["key"])
        assert record["origin"] == {"jobs": "jobs.jsonl", "line": line["line"], "index": line["index"]}
        assert len(decord.VideoReader(str(out / f"{name}.mp4"))) == line["frames"] == 2
    assert len({*raw(out).values()}) == 3
    strip = Image.open(out / "page" / "00000-sand-s0.jpg")
    assert strip.size == (2 * 96, 96)


def test_the_second_run_does_nothing(tmp_path: Path, pipeline: Pipeline) -> None:
    out = tmp_path / "out"
    work = items(tmp_path, ["sand", "sea"])
    assert run(pipeline, work, out) == ["made", "made"]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    assert run(pipeline, work, out) == ["there", "there"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert run(pipeline, work, out, overwrite=True) == ["made", "made"]
    assert len(list(out.glob("*.mp4"))) == 2


def test_every_change_is_rendered_beside_the_old(tmp_path: Path, pipeline: Pipeline) -> None:
    """Another length, setting, motion file or model makes another video of the same name; the old one stays,
    and going back to the old job finds it.
    """
    out, motion = tmp_path / "out", tmp_path / "m.json"
    motion.write_text('{"pins": [[0.5, 0.5]]}')
    row: dict[str, Any] = {"prompt": "sand", "motion": "m.json"}
    other = load_pipeline(write_checkpoint(tmp_path / "other", seed=1, steps=1))

    def rerun(model: Pipeline = pipeline, **changes: Any) -> list[str]:
        return run(model, items(tmp_path, [row | changes]), out)

    assert rerun() == ["made"]
    kept = files(out)
    assert rerun(frames=3) == ["made"]
    assert rerun(set={"steps": 2}) == ["made"]
    assert rerun(other) == ["made"]
    motion.write_text('{"pins": [[0.25, 0.5]]}')
    assert rerun() == ["made"]
    motion.write_text('{"pins": [[0.5, 0.5]]}')
    assert rerun() == rerun(other) == rerun(frames=3) == rerun(set={"steps": 2}) == ["there"]
    assert rerun(frames=2, seconds=None) == ["there"], "the same length, put otherwise"
    assert len(list(out.glob("00000-sand-s0-k????????.mp4"))) == 4
    assert {name: files(out)[name] for name in kept} == kept
    assert len(set(raw(out).values())) == 5


def test_jobs_that_moved_in_the_file_are_not_made_again(tmp_path: Path, pipeline: Pipeline) -> None:
    out = tmp_path / "out"
    rows = [{"prompt": "sand", "seed": 3}, {"prompt": "sea", "seed": 3}]
    assert run(pipeline, items(tmp_path, rows), out) == ["made", "made"]
    rows = [{"prompt": "a star", "seed": 3}, *reversed(rows)]
    assert run(pipeline, items(tmp_path, rows), out) == ["made", "there", "there"]


@pytest.mark.parametrize("seed", [None, 5])
def test_equal_rows_are_videos_of_their_own(tmp_path: Path, pipeline: Pipeline, seed: int | None) -> None:
    row = {"prompt": "sand"} if seed is None else {"prompt": "sand", "seed": seed}
    work = items(tmp_path, [row, row])
    assert run(pipeline, work, tmp_path / "out") == ["made", "made"]
    assert run(pipeline, work, tmp_path / "out") == ["there", "there"]
    assert len(set(raw(tmp_path / "out").values())) == (2 if seed is None else 1)


def damage_cut(out: Path) -> None:
    video = out / "00000-sand-s0.mp4"
    os.truncate(video, video.stat().st_size - 1)


def damage_bits(out: Path) -> None:
    """The size stays."""
    video = out / "00000-sand-s0.mp4"
    content = bytearray(video.read_bytes())
    content[len(content) // 2] ^= 1
    video.write_bytes(content)


def damage_swap(out: Path) -> None:
    shutil.copy(out / "00001-sea-s1.mp4", out / "00000-sand-s0.mp4")


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut": damage_cut,
    "bits": damage_bits,
    "another video": damage_swap,
    "no video": lambda out: (out / "00000-sand-s0.mp4").unlink(),
    "no record": lambda out: (out / "00000-sand-s0.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_videos_are_made_again_in_place(tmp_path: Path, pipeline: Pipeline, damage: str) -> None:
    out = tmp_path / "out"
    work = items(tmp_path, ["sand", "sea"])
    run(pipeline, work, out)
    frames = raw(out)
    DAMAGES[damage](out)
    assert run(pipeline, work, out) == ["made", "there"]
    assert raw(out) == frames
    assert run(pipeline, work, out) == ["there", "there"]


def test_a_copied_folder_is_known_by_its_content(tmp_path: Path, pipeline: Pipeline) -> None:
    """Copying changes times; clocks may also have jumped."""
    out, copy = tmp_path / "out", tmp_path / "copy"
    work = items(tmp_path, ["sand", "sea"])
    run(pipeline, work, out)
    shutil.copytree(out, copy, copy_function=shutil.copyfile)
    for path in copy.glob("*.mp4"):
        os.utime(path, (2**31, 0))
    assert run(pipeline, work, copy) == ["there", "there"]


def test_a_lost_manifest_is_made_again_from_the_records(tmp_path: Path, pipeline: Pipeline) -> None:
    """Also the case of a process that died between the last rename and the line."""
    out = tmp_path / "out"
    work = items(tmp_path, ["sand", "sea"])
    run(pipeline, work, out)
    before = lines(out)
    (out / "manifest.jsonl").unlink()
    assert run(pipeline, work, out) == ["there", "there"]
    same = ("key", "status", "file", "sha256", "bytes", "frames", "index", "line", "prompt")
    assert [[row[name] for name in same] for row in lines(out)] == [
        [row[name] for name in same] for row in before
    ]


@pytest.mark.parametrize(
    "tail",
    [b'{"key": "half a li', b"\xff\xfe\0", b"[]\n{}\n7\n", b'{"key": 3, "status": "ok"}\n', b"[" * 100_000],
)
def test_a_torn_manifest_loses_nothing_else(tmp_path: Path, pipeline: Pipeline, tail: bytes) -> None:
    out = tmp_path / "out"
    work = items(tmp_path, ["sand", "sea", "a star"])
    run(pipeline, work[:2], out)
    with (out / "manifest.jsonl").open("ab") as file:
        file.write(tail)
    assert run(pipeline, work, out) == ["there", "there", "made"]
    assert run(pipeline, work, out) == ["there", "there", "there"]
    assert len(list(out.glob("*.mp4"))) == 3


def test_a_manifest_cannot_point_out_of_its_folder(tmp_path: Path, pipeline: Pipeline) -> None:
    out = tmp_path / "out"
    work = items(tmp_path, ["sand"])
    run(pipeline, work, out)
    (row,) = lines(out)
    shutil.move(out / row["file"], tmp_path / "outside.mp4")
    shutil.move(out / "00000-sand-s0.json", tmp_path / "outside.json")
    (out / "manifest.jsonl").write_text(json.dumps(row | {"file": "../outside.mp4"}) + "\n")
    assert run(pipeline, work, out) == ["made"]
    assert Entry.from_json(row | {"file": ".."}) is None
    assert Entry.from_json(row | {"file": "a/b.mp4"}) is None


def test_files_of_others_stay(tmp_path: Path, pipeline: Pipeline) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "00000-sand-s0.mp4").write_text("a video of somebody else's")
    (out / "00001-sea-s1.json").write_text('{"not": "a record"}')
    work = items(tmp_path, ["sand", "sea"])
    assert run(pipeline, work, out) == ["made", "made"]
    assert run(pipeline, work, out) == ["there", "there"]
    assert (out / "00000-sand-s0.mp4").read_text() == "a video of somebody else's"
    assert (out / "00001-sea-s1.json").read_text() == '{"not": "a record"}'
    assert len(list(out.glob("*-k????????.mp4"))) == 2


def test_failures_are_kept_apart_and_named(tmp_path: Path, pipeline: Pipeline) -> None:
    out, image = tmp_path / "out", tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(image)
    rows = ["sand", {"prompt": "sea", "set": {"stepz": 3}}, {"prompt": "star", "image": "a.png"}, "a star"]
    work = items(tmp_path, rows)
    image.unlink()  # vanishes behind the parser's back
    assert run(pipeline, work, out) == ["made", "failed", "failed", "made"]
    failed = [row for row in lines(out) if row["status"] == "failed"]
    assert [row["line"] for row in failed] == [2, 3]
    assert failed[0]["error"] == "setting unknown key 'stepz' (did you mean 'steps'?)"
    assert failed[1]["error"] == f"{image}: cannot be read (no such file or directory)"
    assert run(pipeline, work, out) == ["there", "failed before", "failed before", "there"]
    assert run(pipeline, work, out, retry_failed=True) == ["there", "failed", "failed", "there"]
    Image.new("RGB", (32, 32)).save(image)
    assert run(pipeline, work, out) == ["there", "failed before", "made", "there"], "the file is back"


def test_a_fault_in_one_job_leaves_the_others(
    tmp_path: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = pipeline.open

    def faulty(prompt: str, *arguments: Any, **named: Any) -> Any:
        if prompt == "sea":
            raise ZeroDivisionError("a fault\nof two lines")
        return plain(prompt, *arguments, **named)

    monkeypatch.setattr(pipeline, "open", faulty)
    out = tmp_path / "out"
    assert run(pipeline, items(tmp_path, ["sand", "sea", "a star"]), out) == ["made", "failed", "made"]
    assert lines(out)[1]["error"] == "ZeroDivisionError: a fault of two lines"


def test_a_file_replaced_while_it_is_read_is_noticed(
    tmp_path: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the record would name one picture and the video show another."""
    out, image = tmp_path / "out", tmp_path / "a.png"
    Image.new("RGB", (32, 32), "teal").save(image)
    plain = pipeline.start_pictures

    def replaced(*arguments: Any) -> Any:
        frames = plain(*arguments)
        Image.new("RGB", (32, 32), "orange").save(tmp_path / "new.png")
        os.replace(tmp_path / "new.png", image)
        return frames

    work = items(tmp_path, [{"prompt": "sand", "image": "a.png"}])
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "start_pictures", replaced)
        assert run(pipeline, work, out) == ["failed"]
    assert lines(out)[0]["error"] == "a file of this job changed while it was read"
    assert run(pipeline, work, out) == ["made"]


HOSTILE = [
    "../../x",
    "/etc/passwd",
    "..\\..\\x",
    "a\u202egpj.exe",
    "مرحبا بالعالم",
    "😀" * 300,
    "CON",
    "-rf *",
    "$(touch x) `touch y` ; touch z",
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "x" * 1990,
    "e\u0301",
    "%2e%2e%2f",
    ".hidden",
    "tab\there",
    "#&?%",
]


@pytest.mark.parametrize("field", ["id", "prompt"])
def test_hostile_names_stay_in_the_folder(tmp_path: Path, pipeline: Pipeline, field: str) -> None:
    out = tmp_path / "deep" / "er" / "out"
    rows = [{"prompt": "sand"} | {field: text} for text in HOSTILE]
    work = items(tmp_path, rows, seconds=0.0625)
    assert run(pipeline, work, out) == ["made"] * len(rows)
    assert run(pipeline, work, out) == ["there"] * len(rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "jobs.jsonl"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["er"]
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["out"]
    videos = sorted(out.glob("*.mp4"))
    assert len(videos) == len(rows)
    assert all(len(path.name.encode()) < 128 for path in videos)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.posters: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]
        self.posters += [value or "" for name, value in attributes if name == "poster"]
        assert not [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_every_item_and_runs_nothing(tmp_path: Path, pipeline: Pipeline) -> None:
    out = tmp_path / "out"
    rows: list[Any] = [{"prompt": text} for text in HOSTILE] + [{"prompt": "sea", "set": {"stepz": 1}}]
    run(pipeline, items(tmp_path, rows, seconds=0.0625), out)
    folder = OutputFolder(out)
    folder.manifest.refresh()
    page = _Page()
    page.feed(page_html(folder.manifest.entries(), "<b>my run</b>", out))
    assert page.tags.count("video") == page.tags.count("img") == len(HOSTILE)
    assert not {"script", "b\u200b"} & set(page.tags)
    assert len(page.posters) == len(HOSTILE)
    assert all((out / unquote(source)).is_file() for source in page.sources + page.posters)
    assert "<script>alert(1)</script>" in page.text
    assert "<b>my run</b>" in page.text
    assert "failed: setting unknown key 'stepz'" in page.text


def test_the_page_names_every_prompt_of_an_item(tmp_path: Path, pipeline: Pipeline) -> None:
    out = tmp_path / "out"
    shots = [{"at": 0, "prompt": "sand"}, {"at": 0.5, "prompt": "sea"}]
    run(pipeline, items(tmp_path, [{"shots": shots, "seconds": 1}]), out)
    folder = OutputFolder(out)
    folder.manifest.refresh()
    assert "<figcaption>sand → sea<" in page_html(folder.manifest.entries(), "run", out)


def test_shards_and_ranks_share_the_items(tmp_path: Path) -> None:
    work = items(tmp_path, [f"prompt {i}" for i in range(10)])
    orders = [Rank(i, 3, 0).order(work, share_only=False) for i in range(3)]
    assert all(sorted(item.name for item in order) == [item.name for item in work] for order in orders)
    shares = [Rank(i, 3, 0).order(work, share_only=True) for i in range(3)]
    assert sorted(item.name for share in shares for item in share) == [item.name for item in work]
    assert [order[: len(share)] for order, share in zip(orders, shares, strict=True)] == shares


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({}, Rank()),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Rank(1, 4, 1)),
        ({"RANK": "x", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Rank()),
        ({"RANK": "4", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Rank()),
    ],
)
def test_ranks_come_from_the_launcher(
    variables: dict[str, str], rank: Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Rank.of_process() == rank


def test_other_outputs_are_made_and_made_up_for(tmp_path: Path, pipeline: Pipeline) -> None:
    from streamgen.video.outputs import Outputs

    out = tmp_path / "out"
    work = items(tmp_path, ["sand"], seconds=1.0)
    assert run(pipeline, work, out) == ["made"]
    frames = raw(out)
    assert run(pipeline, work, out, outputs=Outputs(png=True, preview="gif")) == ["made"]
    assert run(pipeline, work, out, outputs=Outputs(png=True, preview="gif")) == ["there"]
    assert run(pipeline, work, out, outputs=Outputs(preview="webp")) == ["made"]
    assert raw(out) == frames
    pictures = sorted((out / "00000-sand-s0.frames").iterdir())
    content = b"".join(Image.open(path).tobytes() for path in pictures)
    assert hashlib.sha256(content).hexdigest() == frames["00000-sand-s0"]
    for suffix in ("gif", "webp"):
        with Image.open(out / f"00000-sand-s0.{suffix}") as preview:
            assert (preview.n_frames, preview.size) == (8, (32, 32))
    assert not list(out.glob("*.part"))


def test_an_output_folder_that_cannot_be_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OutputError, match="cannot be made"):
            OutputFolder(place)
