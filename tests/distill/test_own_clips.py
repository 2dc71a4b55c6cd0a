"""Own clips: what a folder holds, what is read right and what goes to quarantine, words, prompt lists."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import distill.clips.folder
from distill.clips.config import ClipFolderConfig
from distill.clips.folder import ClipFolder, UsableClip, require_length
from distill.clips.listing import list_clips
from distill.clips.prompts import known_to, prompt_pairs, read_prompts
from distill.clips.store import Shelf
from distill.clips.tracks import ClipTracks
from distill.clips.words import caption_words, run_vocabulary
from distill.config import ConfigError
from models.text_encoder import PAD, UNKNOWN, Vocabulary
from streamgen.errors import InputError
from streamgen.video import decode_child
from streamgen.video.decode_worker import ClipError, Request, decode
from tests.clip_folders import metadata, quarantined, small, with_reader, write_clip
from tests.streamgen.video.test_containers import (
    FRAMES,
    MAKERS,
    cut_in_half,
    encode,
    pictures,
    without_frames,
)
from tests.tiny_models import assert_needs

ODD = ("variable rate", "rotation", "odd sizes", "non-square pixels", "NTSC")
BROKEN: dict[str, Callable[[Path], object]] = {
    "cut.mp4": cut_in_half,
    "frameless.mp4": without_frames,
    "empty.mp4": lambda path: path.write_bytes(b""),
    "text.mp4": lambda path: path.write_text("no video at all"),
}


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips as people have them, each with a caption, and four that are broken, and one that is missing."""
    folder = tmp_path_factory.mktemp("odd")
    rows = []
    for kind in ODD:
        place = folder / kind.replace(" ", "-")
        place.mkdir()
        rows.append({"video": str(MAKERS[kind](place).relative_to(folder)), "caption": kind})
    for name, spoil in BROKEN.items():
        spoil(encode(folder / name, pictures()))
        rows.append({"video": name, "caption": "broken"})
    encode(folder / "short.mp4", pictures()[:5])
    rows += [{"video": "short.mp4", "caption": "short"}, {"video": "gone.mp4", "caption": "gone"}]
    metadata(folder, rows)
    return folder


def test_odd_clips_are_read_right_and_broken_ones_listed(
    odd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By timestamps, turned, and cropped to the wanted shape; what cannot be read costs a line, no more."""

    def check() -> None:
        caches = len(list(tmp_path.iterdir()))
        config = ClipFolderConfig(
            str(odd_folder), str(tmp_path / str(caches)), height=48, width=64, frames=17, readers=3
        )
        folder = ClipFolder(config)
        shelf = folder.shelf("pixels")
        folder.build(shelf, lambda frames: {"video": frames})
        clips = {clip.entry.caption: shelf.load(clip.key)["video"].numpy() for clip in folder.settle(shelf)}
        assert set(clips) == {*ODD, "short"}
        numbers = np.rint((clips["variable rate"][:, 24:, :24].mean(axis=(1, 2, 3)) - 20) / 10).astype(int)
        assert numbers[:24].tolist() == [*range(10), *[9] * 10, 10, 10, 11, 11]
        for kind in ODD:
            file = next((odd_folder / kind.replace(" ", "-")).iterdir())
            expected = decode(Request(str(file), 16.0, 48, 64, 2000), "pyav")
            assert clips[kind].shape == expected.shape, kind
            assert np.abs(clips[kind].astype(int) - expected).max() <= 3, kind
        reasons = quarantined(folder)
        assert set(reasons) == {*BROKEN, "gone.mp4"}
        assert "cut off" in reasons["cut.mp4"]
        assert reasons["empty.mp4"] == "the file is empty"
        assert "no such file" in reasons["gone.mp4"]

    def by_index(path: Path, fps: float, height: int, width: int, *_: float) -> np.ndarray:
        """Every frame of the file, whenever it is shown."""
        try:
            return decode(Request(str(path), 1000.0, height, width, 2000), "pyav")[:FRAMES]
        except ClipError as error:
            raise InputError(str(error)) from error

    assert_needs(check, monkeypatch, distill.clips.folder, "read_clip", by_index)


def test_too_short_clips_are_listed_with_the_length_they_need(tmp_path: Path) -> None:
    config = ClipFolderConfig(str(tmp_path), frames=17)
    with pytest.raises(InputError, match=r"too short: 5 frames at 16 fps, expected at least 17"):
        require_length(torch.zeros(5, 2, 2, 3), config)


def test_what_failed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until its content changes, or `retry` asks for it."""
    clips = tmp_path / "clips"
    metadata(clips, [{"video": "good.mp4", "caption": "one"}, {"video": "bad.mp4", "caption": "two"}])
    reader = with_reader(monkeypatch)

    def build(cache: Path, retry: bool = False) -> list[str]:
        reader.names.clear()
        folder = ClipFolder(small(clips, cache, retry=retry))
        shelf = folder.shelf("pixels")
        folder.build(shelf, lambda frames: {"video": frames})
        folder.settle(shelf)
        assert set(quarantined(folder)) <= {"bad.mp4"}
        return sorted(reader.names)

    def check() -> None:
        cache = tmp_path / f"cache-{len(list(tmp_path.iterdir()))}"
        (clips / "good.mp4").write_bytes(b"good")
        (clips / "bad.mp4").write_bytes(b"broken")
        assert build(cache) == ["bad.mp4", "good.mp4"]
        assert build(cache) == []
        assert build(cache, retry=True) == ["bad.mp4"]
        (clips / "bad.mp4").write_bytes(b"mended")
        assert build(cache) == ["bad.mp4"]

    assert_needs(check, monkeypatch, Shelf, "failure", lambda shelf, key: None)


def test_captions_come_from_rows_and_from_text_files(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.MOV", "sub/c.webm", "d.mp4", "e.mp4", ".hidden.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b.txt").write_text("\ufeffa  ball\nrolls ", encoding="utf-8")
    (tmp_path / "sub" / "c.txt").write_text("a cat", encoding="utf-8")
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "lonely.txt").write_text("nobody", encoding="utf-8")
    content = ['{"file_name": "a.mp4", "text": "a dog", "motion": "a.json", "width": 3}', "{oops", "[1]"]
    content += ['{"video": "gone.mp4", "caption": "gone"}', '{"video": 3}', '{"video": "./b.MOV"}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(content), encoding="utf-8")
    listing = list_clips(tmp_path)
    found = {entry.video.name: (entry.caption, entry.tracks, entry.where) for entry in listing.entries}
    assert found == {
        "a.mp4": ("a dog", tmp_path / "a.json", "metadata.jsonl line 1"),
        "b.MOV": ("a ball rolls", None, "metadata.jsonl line 6"),
        "c.webm": ("a cat", None, "sub/c.txt"),
    }
    why = {Path(problem.what).name: problem.why for problem in listing.problems}
    assert set(why) == {
        *("metadata.jsonl line 2", "metadata.jsonl line 3", "metadata.jsonl line 5"),
        *("gone.mp4", "d.mp4", "e.mp4", "lonely.txt"),
    }
    assert "clip without a caption" in why["e.mp4"]
    assert "caption without a clip" in why["lonely.txt"]
    assert "not UTF-8" in why["d.mp4"]


def test_csv_rows(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(b"x")
    rows = ["video,caption,tracks", 'a.mp4,"a dog, running",', "b.mp4,a cat", "c.mp4,a bird,c.npz", '"open']
    (tmp_path / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    listing = list_clips(tmp_path)
    assert [(entry.caption, entry.tracks) for entry in listing.entries] == [
        ("a dog, running", None),
        ("a bird", tmp_path / "c.npz"),
    ]
    assert [problem.why.split(" (")[0] for problem in listing.problems] == [
        "expected 3 cells, found 2",
        "not valid CSV",
        "clip without a caption: no row names one, and there is no b.txt",
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no clips in it"),
        ({"notes.txt": "hello"}, "no clips in it"),
        ({"a.mp4": "x"}, r"no usable clips \(.*a\.mp4: clip without a caption"),
        ({"metadata.jsonl": '{"video": "a.mp4", "caption": "x"}'}, "caption without a clip"),
        ({"metadata.jsonl": "", "metadata.csv": "", "a.mp4": "x"}, "expected one of them"),
    ],
)
def test_a_folder_with_nothing_usable_is_one_line(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        ClipFolder(small(folder, tmp_path / "cache"))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such folder"):
        list_clips(tmp_path / "nowhere")


def test_pieces_cover_a_clip() -> None:
    config = ClipFolderConfig("x", frames=81)
    assert config.starts(80) == []
    assert config.starts(81) == config.starts(101) == [0]
    assert config.starts(102) == [0, 21]
    assert config.starts(162) == [0, 81]
    assert replace(config, stride=40).starts(162) == [0, 40, 80]
    for bad in ({"frames": 80}, {"height": 60}, {"share": 0.0}, {"max_seconds": 1.0}, {"path": " "}):
        with pytest.raises(ConfigError, match=r"clips\."):
            replace(config, **bad)  # type: ignore[arg-type]


def test_words_of_captions_join_those_of_the_world() -> None:
    captions = ["A dog, a dog runs", "the dog sits", "the cat sits"]
    assert caption_words(captions, ("a", "the"), 2, 100) == ("a", "the", "dog", "sits")
    assert caption_words(captions, (), 1, 3) == ("dog", "sits", "the")
    assert caption_words(captions, ("sits",), 1, 100) == ("sits", "a", "cat", "dog", "runs", "the")


def test_a_run_keeps_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trained row of the embedding must not come to stand for another word when captions change."""

    def check() -> None:
        run = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        assert run_vocabulary(run, ("dog", "runs"), main=True).words == ("dog", "runs")
        # nothing is trained yet
        assert run_vocabulary(run, ("cat", "runs"), main=True).words == ("cat", "runs")
        monkeypatch.setattr("distill.clips.words.list_checkpoints", lambda root: [root / "step"])
        assert run_vocabulary(run, ("bird", "dog"), main=True).words == ("cat", "runs")

    assert_needs(check, monkeypatch, Path, "is_file", lambda path: False)


def test_prompt_lists(tmp_path: Path) -> None:
    plain = tmp_path / "prompts.txt"
    plain.write_text("# a comment\na calm sea\n\na dog\n", encoding="utf-8")
    assert read_prompts(plain) == [("a calm sea",), ("a dog",)]
    rows = tmp_path / "prompts.jsonl"
    rows.write_text(
        '{"prompt": "a calm sea",'
        ' "shots": [{"at": 30.5, "prompt": "a storm"}, {"at": 60, "prompt": "sun"}]}\n'
        '"a dog"\n',
        encoding="utf-8",
    )
    prompts = read_prompts(rows)
    assert prompts == [("a calm sea", "a storm", "sun"), ("a dog",)]
    words = Vocabulary(("a", "sea", "dog", "sun"))
    pairs = prompt_pairs(prompts, lambda text: words.encode(text, 3).ids)
    assert [(before.tolist(), after.tolist()) for before, after in pairs] == [
        ([2, UNKNOWN, 3], [2, UNKNOWN, PAD]),
        ([2, UNKNOWN, PAD], [5, PAD, PAD]),
        ([2, 4, PAD], [2, 4, PAD]),
    ]
    assert known_to(prompts, Vocabulary(("a", "sea")), 3, "list") == (
        "list: 4 words are unknown to the model (calm, storm, sun, dog)"
    )
    with pytest.raises(InputError, match="no word"):
        known_to(prompts, Vocabulary(("zebra",)), 3, "list")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "# nothing\n", "no jobs in it"),
        ("a.jsonl", '{"prompt": "x"}\n{"promt": "y"}\n', r"a\.jsonl: line 2"),
        ("a.jsonl", '{"shots": [{"at": 2, "prompt": "y"}]}', "line 1: .*must be at 0"),
        ("a.doc", "x", "files"),
        ("b.txt", None, "no such file"),
    ],
)
def test_bad_prompt_lists_are_one_line(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_prompts(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_the_example_is_a_folder_of_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from distill.clips.example import main

    out = tmp_path / "clips"
    assert main(["-o", str(out), "--clips", "2", "--seconds", "0.5"]) == 0
    listing = list_clips(out)
    assert not listing.problems
    assert [entry.tracks is not None and entry.tracks.is_file() for entry in listing.entries] == [True, True]
    assert main(["-o", str(out)]) == 2
    assert "has captions already" in capsys.readouterr().err
    assert main(["-o", str(tmp_path / "text"), "--clips", "1", "--seconds", "0.5", "--text"]) == 0
    assert [entry.where for entry in list_clips(tmp_path / "text").entries] == ["clip-00000.txt"]


def test_reading_goes_through_the_careful_reader(tmp_path: Path) -> None:
    """One real clip from file to shelf."""
    clips = tmp_path / "clips"
    clips.mkdir()
    write_clip(clips / "a.mp4")
    (clips / "a.txt").write_text("a square", encoding="utf-8")
    folder = ClipFolder(small(clips, tmp_path / "cache"))
    shelf = folder.shelf("pixels")
    folder.build(shelf, lambda frames: {"video": frames})
    (clip,) = folder.settle(shelf)
    assert shelf.length(clip.key, "video") == FRAMES
    assert quarantined(folder) == {}
    torch.testing.assert_close(shelf.part(clip.key, "video", 3, 5), shelf.load(clip.key)["video"][3:5])


def test_a_clip_that_hangs_its_decoder_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = tmp_path / "clips"
    metadata(clips, [{"video": "a.mp4", "caption": "a trap"}])
    (clips / "a.mp4").write_bytes(b"x")
    worker = tmp_path / "worker.py"
    worker.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(decode_child, "WORKER", worker)
    folder = ClipFolder(small(clips, tmp_path / "cache", timeout=0.6))
    shelf = folder.shelf("pixels")
    folder.build(shelf, lambda frames: {"video": frames})
    with pytest.raises(InputError, match=r"no usable clips \(.*a\.mp4: decoding took longer than 0\.6 s\)"):
        folder.settle(shelf)
    assert quarantined(folder) == {"a.mp4": "decoding took longer than 0.6 s"}


def test_tracks_are_found_where_no_file_gives_them(tmp_path: Path) -> None:
    """The square of `write_clip` moves by a pixel a frame; its corners are followed, the texture rests."""
    clips = tmp_path / "clips"
    clips.mkdir()
    write_clip(clips / "a.mp4")
    (clips / "a.txt").write_text("a square", encoding="utf-8")
    folder = ClipFolder(small(clips, tmp_path / "cache", tracks="auto", points=8))
    tracks = ClipTracks(folder)
    tracks.build(0, 1)
    assert tracks.problems() == []
    entry = folder.listing.entries[0]
    pieces = tracks.load(UsableClip(entry, str(folder.index.known(entry.video))), [0, 3])
    assert pieces["points"].shape == (2, 8, 17, 2)
    moving = pieces["points"][:, ~pieces["background"][0]][0].float()
    step = moving.diff(dim=1)[(moving[:, 1:] >= 0).all(-1) & (moving[:, :-1] >= 0).all(-1)]
    assert len(step) > 16
    torch.testing.assert_close(step.median(0).values, torch.tensor([1 / 48, 0.0]), atol=4e-3, rtol=0)
    assert pieces["pinned"].any()
