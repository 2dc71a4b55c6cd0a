"""What is kept of own clips: resumed, shared by processes, and made again only where something changed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
import torch

import distill.clips.folder
import distill.clips.store
from distill.clips.folder import ClipFolder
from distill.clips.latents import OwnLatents, image_frames
from distill.clips.store import FileIndex, Shelf, write_whole
from distill.clips.tracks import piece_tracks
from distill.clips.words import WordIds
from distill.latent_cache import LatentClips
from models.text_encoder import UNKNOWN, Vocabulary
from models.video_tokenizer import VideoTokenizer, VideoTokenizerConfig
from streamgen.errors import OutputError
from streamgen.motion.arrays import save_tracks
from streamgen.motion.tracks import TrackSet
from tests.clip_folders import metadata, quarantined, small, with_reader
from tests.tiny_models import assert_needs, randomize

CPU = torch.device("cpu")
NAMES = ("a.mp4", "b.mp4", "c.mp4", "d.mp4")
VOCABULARY = Vocabulary(("clip", "a", "b", "c", "d"))


@pytest.fixture(scope="module")
def tokenizer() -> VideoTokenizer:
    sizes = VideoTokenizerConfig(dim=16, heads=1, encoder_spatial=1, decoder_spatial=1, refine_channels=4)
    tokenizer = VideoTokenizer(sizes)
    randomize(tokenizer)
    return tokenizer


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Four clips (as the `FakeReader` reads them), the first two with a track each."""
    folder = tmp_path / "clips"
    rows = [{"video": name, "caption": f"clip {name[0]}"} for name in NAMES]
    for row in rows[:2]:
        row["tracks"] = row["video"].replace("mp4", "npz")
    metadata(folder, rows)
    for index, name in enumerate(NAMES):
        (folder / name).write_bytes(name.encode())
        line = torch.linspace(0.1 * (index + 1), 0.9, 20)
        if index < 2:
            save_tracks(TrackSet.from_points(torch.stack([line, line], -1)[None]), folder / f"{name[0]}.npz")
    return folder


def own(folder: Path, cache: Path, tokenizer: VideoTokenizer, **changes: Any) -> OwnLatents:
    own = ClipFolder(small(folder, cache, **changes))
    return OwnLatents(own, tokenizer, "digest", WordIds(own, VOCABULARY, 4))


def results(cache: Path) -> dict[str, bytes]:
    """All results, without the index and the lists."""
    return {str(path.relative_to(cache)): path.read_bytes() for path in cache.rglob("*.safetensors")}


def same(first: LatentClips, second: LatentClips) -> bool:
    return all(torch.equal(value, vars(second)[name]) for name, value in vars(first).items())


def test_fields_are_those_that_windows_want(
    clips: Path, tmp_path: Path, tokenizer: VideoTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_reader(monkeypatch)
    source = own(clips, tmp_path / "cache", tokenizer, stride=2)
    source.build(0, 1, CPU)
    loaded, images = source.load(images=False), source.load(images=True)
    # 20 frames: pieces at 0 and 2
    assert {name: (tuple(value.shape), value.dtype) for name, value in vars(loaded).items()} == {
        "latents": ((8, 5, 16, 4, 6), torch.float16),
        "words": ((8, 2, 4), torch.int16),
        "switch": ((8,), torch.int16),
        "points": ((8, 4, 17, 2), torch.float16),
        "visible": ((8, 4, 17), torch.bool),
        "dragged": ((8, 4, 17), torch.bool),
        "camera": ((8, 17), torch.bool),
        "background": ((8, 4), torch.bool),
        "pinned": ((8, 4), torch.bool),
        "motions": ((8, 2, 1), torch.int8),
        "turning": ((8, 1, 5), torch.bool),
    }
    assert {name: tuple(value.shape) for name, value in vars(images).items()} == {
        "latents": (16, 1, 16, 4, 6),
        "words": (16, 2, 4),
        "switch": (16,),
        "points": (16, 4, 1, 2),
        "visible": (16, 4, 1),
        "dragged": (16, 4, 1),
        "camera": (16, 1),
        "background": (16, 4),
        "pinned": (16, 4),
        "motions": (16, 2, 1),
        "turning": (16, 1, 1),
    }
    assert loaded.words[:, 0, 1].tolist() == [3, 3, 4, 4, 5, 5, 6, 6]
    assert (loaded.switch == 5).all()
    line = torch.linspace(0.1, 0.9, 20)
    torch.testing.assert_close(loaded.points[1, 0, :, 0].float(), line[2:19], atol=1e-3, rtol=0)
    at = image_frames(17, 2)
    torch.testing.assert_close(images.points[:2, 0, 0, 0].float(), line[at], atol=1e-3, rtol=0)
    torch.testing.assert_close(images.points[2:4, 0, 0, 0].float(), line[at + 2], atol=1e-3, rtol=0)
    assert loaded.visible[:4, 0].all()
    assert not loaded.visible[4:].any()
    # a first frame is the same latent alone and in its piece
    torch.testing.assert_close(images.latents[0, 0], loaded.latents[0, 0], atol=0.05, rtol=0.05)


def test_a_resumed_build_equals_an_undisturbed_one(
    clips: Path, tmp_path: Path, tokenizer: VideoTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after any clip, the next build reads the rest alone, and the result is the same, bit for bit."""
    with_reader(monkeypatch)
    source = own(clips, tmp_path / "whole", tokenizer)
    source.build(0, 1, CPU)
    whole = results(tmp_path / "whole")
    expected = source.load(images=False)
    counter = iter(range(100))

    def check() -> None:
        for survived in range(len(NAMES)):
            cache = tmp_path / f"resumed-{next(counter)}"

            def kill(name: str, last: str = NAMES[survived]) -> None:
                if name == last:
                    raise KeyboardInterrupt

            with_reader(monkeypatch, kill)
            with pytest.raises(KeyboardInterrupt):
                own(clips, cache, tokenizer, readers=1).build(0, 1, CPU)
            reader = with_reader(monkeypatch)
            again = own(clips, cache, tokenizer, readers=1)
            again.build(0, 1, CPU)
            # a thread of the killed build may have read ahead meanwhile
            assert set(reader.names) == set(NAMES[survived:])
            assert results(cache) == whole
            assert same(again.load(images=False), expected)

    assert_needs(check, monkeypatch, Shelf, "settled", lambda shelf, key, retry=False: False)


def test_a_killed_write_leaves_nothing_under_the_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        def half(part: Path) -> None:
            part.write_bytes(b"half")
            raise KeyboardInterrupt

        path = tmp_path / "result"
        with pytest.raises(KeyboardInterrupt):
            distill.clips.store.write_whole(path, half)
        assert list(tmp_path.iterdir()) == []

    assert_needs(check, monkeypatch, distill.clips.store, "write_whole", lambda path, write: write(path))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        write_whole(tmp_path / "file" / "result", lambda part: part.write_text("x"))


def test_processes_share_the_work(
    clips: Path, tmp_path: Path, tokenizer: VideoTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each clip is read by one of them; together they make what one alone makes."""
    with_reader(monkeypatch)
    own(clips, tmp_path / "alone", tokenizer).build(0, 1, CPU)
    counter = iter(range(100))

    def check() -> None:
        cache, read = tmp_path / f"shared-{next(counter)}", []
        for rank in range(2):
            reader = with_reader(monkeypatch)
            own(clips, cache, tokenizer).build(rank, 2, CPU)
            read.append(set(reader.names))
        assert read == [{"a.mp4", "c.mp4"}, {"b.mp4", "d.mp4"}]
        assert results(cache) == results(tmp_path / "alone")

    build = ClipFolder.build

    def alone(folder: ClipFolder, shelf: Shelf, compute: Callable[..., Any], rank: int, world: int) -> None:
        build(folder, shelf, compute, 0, 1)

    assert_needs(check, monkeypatch, ClipFolder, "build", alone)


def test_builds_at_the_same_time_do_each_other_no_harm(
    clips: Path, tmp_path: Path, tokenizer: VideoTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs over one folder, started together: both do everything, and the files are whole."""
    start = Barrier(2)
    with_reader(monkeypatch)
    sources = [own(clips, tmp_path / "cache", tokenizer) for _ in range(2)]

    def build(source: OwnLatents) -> None:
        start.wait()
        source.build(0, 1, CPU)

    threads = [Thread(target=build, args=(source,)) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same(sources[0].load(images=False), sources[1].load(images=False))
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_change_makes_anew_what_depends_on_it(
    clips: Path, tmp_path: Path, tokenizer: VideoTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caption its words, a track file its tracks, a clip its latents; a touched or moved file nothing."""
    cache = tmp_path / "cache"

    def built(folder: Path = clips) -> tuple[set[str], list[str], LatentClips]:
        """New results by kind, clips read, and what is loaded."""
        before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
        reader = with_reader(monkeypatch)
        source = own(folder, cache, tokenizer)
        source.build(0, 1, CPU)
        after = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
        new = {
            path.relative_to(cache / "clips").parts[0] for path in after if after[path] != before.get(path)
        }
        return new, reader.names, source.load(images=False)

    _, read, first = built()
    assert sorted(read) == list(NAMES)
    assert built()[:2] == (set(), [])

    rows = [{"video": name, "caption": f"clip {name[0]}"} for name in NAMES]
    rows[0]["tracks"], rows[1]["tracks"], rows[3]["caption"] = "a.npz", "b.npz", "a clip"
    metadata(clips, rows)
    new, read, loaded = built()
    assert (new, read) == (set(), [])
    assert torch.equal(loaded.words[:3], first.words[:3])
    assert loaded.words[3, 0].tolist() == [3, 2, 0, 0]
    assert torch.equal(loaded.latents, first.latents)

    points = torch.linspace(0.2, 0.6, 20)[None, :, None].expand(1, 20, 2)
    save_tracks(TrackSet.from_points(points), clips / "a.npz")
    new, read, loaded = built()
    assert (new, read) == ({"tracks"}, [])
    assert not torch.equal(loaded.points[0], first.points[0])
    assert torch.equal(loaded.points[1:], first.points[1:])

    (clips / "c.mp4").write_bytes(b"another clip")
    new, read, loaded = built()
    assert (new, read) == ({"latents"}, ["c.mp4"])
    assert [torch.equal(loaded.latents[i], first.latents[i]) for i in range(4)] == [True, True, False, True]

    os.utime(clips / "a.mp4", (1, 1))
    assert built()[:2] == (set(), [])
    shutil.copytree(clips, tmp_path / "moved")
    assert built(tmp_path / "moved")[:2] == (set(), [])


def test_contents_are_digested_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By place, size and time of change; and a line cut off by a kill costs that line alone."""
    file = tmp_path / "a.mp4"
    file.write_bytes(b"first")

    def check() -> None:
        place = tmp_path / f"index-{len(list(tmp_path.iterdir()))}"
        first = FileIndex(place).digest(file)
        (own_lines,) = place.glob("*")
        with own_lines.open("a") as lines:
            lines.write('{"path": "cut o')
        again = FileIndex(place)
        assert again.known(file) == first
        assert again.digest(file) == first
        assert len(list(place.glob("*"))) == 1, "was digested again"

    assert_needs(check, monkeypatch, FileIndex, "_read", lambda index: {})
    index = FileIndex(tmp_path / "index")
    first = index.digest(file)
    file.write_bytes(b"second")
    assert index.digest(file) != first
    file.unlink()
    assert index.digest(file) is None
    assert "cannot be read" in str(FileIndex(tmp_path / "index").why_not(file))


def test_a_bad_track_file_costs_the_tracks_alone(
    clips: Path, tmp_path: Path, tokenizer: VideoTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_reader(monkeypatch)
    (clips / "a.npz").write_bytes(b"no arrays")
    (clips / "b.npz").unlink()
    source = own(clips, tmp_path / "cache", tokenizer)
    source.build(0, 1, CPU)
    assert len(source.load(images=False).latents) == len(NAMES)
    why = quarantined(source.folder)
    assert set(why) == {"a.npz", "b.npz"}
    assert all(text.endswith("the clip is used without tracks") for text in why.values())
    assert own(clips, tmp_path / "cache", tokenizer, tracks="none").tracks.problems() == []


def test_pieces_get_the_tracks_that_tell_most() -> None:
    """Moving ones first, but a quarter of the places for resting ones; unspecified points are nowhere."""
    time = torch.linspace(0, 0.5, 20)
    points = torch.full((7, 20, 2), 0.3)
    points[:5, :, 0] += time
    state = torch.ones(7, 20, dtype=torch.int8)
    state[0, 10:] = 0
    state[1, 4:8] = 2
    state[6] = 0
    piece = piece_tracks(TrackSet.from_points(points, state).slice(0, 17), 4)
    assert piece["background"].tolist() == piece["pinned"].tolist() == [False, False, False, True]
    # the half known one is the last of the moving: there is no place for it
    assert ((piece["points"] >= 0) & (piece["points"] <= 1)).all()
    assert piece["visible"].sum(1).tolist() == [13, 17, 17, 17]
    late = piece_tracks(TrackSet.from_points(points[:1], state[:1]).slice(4, 21), 2)
    assert ((late["points"] == -1).all(-1)).sum(1).tolist() == [11, 17]
    assert late["background"].tolist() == [False, True]
    nothing = piece_tracks(TrackSet.empty(0).slice(0, 17), 2)
    assert nothing["background"].all()
    assert not nothing["visible"].any()


def test_points_that_are_nowhere_draw_no_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss counts cells near objects more; distances wrap, so a point at -1 would weigh the corners."""
    from distill.flow import FlowBatch
    from distill.windows import WindowConfig, flow_batch, whole_clips

    def clips_with(points: float) -> LatentClips:
        return LatentClips(
            latents=torch.zeros(4, 10, 2, 4, 4).half(),
            words=torch.full((4, 2, 3), UNKNOWN, dtype=torch.int16),
            switch=torch.full((4,), 10, dtype=torch.int16),
            points=torch.full((4, 2, 37, 2), points).half(),
            visible=torch.ones(4, 2, 37, dtype=torch.bool),
            dragged=torch.zeros(4, 2, 37, dtype=torch.bool),
            camera=torch.zeros(4, 37, dtype=torch.bool),
            background=torch.zeros(4, 2, dtype=torch.bool),
            pinned=torch.zeros(4, 2, dtype=torch.bool),
            motions=torch.full((4, 2, 1), -1, dtype=torch.int8),
            turning=torch.zeros(4, 1, 10, dtype=torch.bool),
        )

    def made_of(clips: LatentClips) -> FlowBatch:
        config, generator = WindowConfig(), torch.Generator().manual_seed(0)
        return flow_batch(clips, whole_clips(clips, 8, config, generator), config, config.silence, generator)

    assert (made_of(clips_with(0.5)).focus > 1).any()
    batch = made_of(clips_with(-1.0))
    assert (batch.focus == 1).all()
    assert (batch.tracks.state == 0).all()
