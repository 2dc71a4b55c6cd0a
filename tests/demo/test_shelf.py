"""Streams that outlive their session and their server: what is kept, for whom, for how long; and reels."""

import os
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import demo.shelf
from demo.fake_engine import FakeEngine, FakeSaved, FakeStream
from demo.live import LiveSession
from demo.messages import Event, Rewind, Start, Take
from demo.outgoing import Outgoing
from demo.recording import Lineage, Recording
from demo.shelf import KEEP_SECONDS, Keeper, Shelf
from streamgen import InputError
from tests.demo_viewers import Clock
from tests.tiny_models import assert_needs


class AtOnce(Executor):
    """Does what is submitted where it is submitted."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def frames(value: int, count: int = 4) -> np.ndarray:
    return np.full((count, 8, 8, 3), value, np.uint8)


def values(recording: Recording, count: int) -> list[int]:
    """The brightest pixel of each run; none where it cannot be read."""
    try:
        return [int(run.max()) for run in recording.read(count)]
    except InputError:
        return []


def session_on(shelf: Shelf, token: str, clock: Clock, engine: FakeEngine) -> LiveSession:
    keeper = Keeper(shelf.folder(token), AtOnce())
    return LiveSession(engine, Outgoing(), clock, keeper=keeper)


def work(session: LiveSession, clock: Clock, chunks: int) -> None:
    for _ in range(chunks):
        session.work()
        clock.sleep(0.25)


# -- recording


def test_a_new_stream_has_a_reel_of_its_own_and_old_ones_stay_while_they_are_wanted(tmp_path: Path) -> None:
    recording = Recording(8, 8, 2**20, tmp_path)
    recording.add(0, frames(1))
    left = recording.lineage()
    recording.restart([left])
    recording.add(0, frames(2))
    assert next(recording.read(4)).max() == 2
    recording.go_to(left)
    assert next(recording.read(4)).max() == 1
    recording.restart([])
    assert len(list(tmp_path.iterdir())) == 1, "what nothing refers to is given back"
    recording.close()


def test_branches_give_way_before_the_stream_that_plays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (40, 8, 8, 3)).astype(np.uint8)
    recording = Recording(8, 8, 12_000, tmp_path)
    recording.add(0, noise)
    left = recording.lineage()
    recording.restart([left])
    recording.add(0, noise)
    assert not recording.full
    assert recording.frames == 40
    recording.go_to(left)
    with pytest.raises(InputError, match="gave way to those of newer streams"):
        next(recording.read(4))
    recording.close()


def test_a_recording_is_found_again_and_what_is_there_is_never_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        folder = tmp_path / os.urandom(4).hex()
        folder.mkdir()
        first = Recording(8, 8, 2**20, folder)
        first.add(0, frames(1))
        first.add(4, frames(2))
        rows = first.lineage().to_json()
        first.close()
        again = Recording(8, 8, 2**20, folder)
        again.reopen(Lineage.from_json(rows), 4)
        assert again.frames == 4, "up to the frame where the stream goes on"
        again.add(4, frames(3))
        assert values(again, 8) == [1, 3]
        again.close()

    assert_needs(check, monkeypatch, Path, "exists", lambda self: False)


# -- the shelf


def test_a_stream_goes_on_in_another_process(tmp_path: Path) -> None:
    clock, shelf = Clock(), Shelf(tmp_path)
    session = session_on(shelf, "one", clock, FakeEngine(wait=clock.sleep))
    session.handle(Start("a red ball", 3))
    work(session, clock, 8)
    session.handle(Event(1, 1, "a blue ball"))
    work(session, clock, 8)
    made = session.stream.next_frame if session.stream is not None else 0
    session.close()

    kept = Shelf(tmp_path).find("one")
    assert kept is not None
    assert kept.frame == made
    assert [row["label"] for row in kept.strip] == ["a red ball", "a blue ball"]
    other = FakeEngine(wait=clock.sleep)
    assert len(other.timeline_of(kept.snapshot)["events"]) == 2
    again = session_on(shelf, "two", clock, other)
    again.reopen(shelf.hand_over(kept, "two"))
    again.connected()
    work(again, clock, 3)
    assert again.state == "playing"
    assert again.stream is not None
    assert (again.stream.prompt, again.stream.seed, again.stream.next_frame) == ("a blue ball", 3, made + 8)
    assert again.recording.frames == made + 8
    assert shelf.find("one") is None, "it has moved"
    again.close()


def test_it_is_written_while_it_plays(tmp_path: Path) -> None:
    clock, shelf = Clock(), Shelf(tmp_path)
    session = session_on(shelf, "one", clock, FakeEngine(wait=clock.sleep))
    session.handle(Start("a red ball", 3))
    work(session, clock, 8)
    kept = shelf.find("one")
    assert kept is not None
    before = kept.frame
    work(session, clock, round(KEEP_SECONDS / 0.3) + 8)
    kept = shelf.find("one")
    assert kept is not None
    assert kept.frame > before
    assert len(list(kept.folder.glob("*.snapshot"))) == 1
    session.recording.close()


def test_what_is_kept_is_never_five_seconds_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may die at any moment."""

    def check() -> None:
        clock, shelf = Clock(), Shelf(tmp_path / os.urandom(4).hex())
        session = session_on(shelf, "one", clock, FakeEngine(wait=clock.sleep))
        session.handle(Start("a red ball", 3))
        for _ in range(100):
            work(session, clock, 1)
            assert session.stream is not None
            kept = shelf.find("one")
            behind = 0 if kept is None else session.stream.next_frame - kept.frame
            assert behind <= 5 * 16
        session.recording.close()

    assert_needs(check, monkeypatch, demo.shelf, "KEEP_SECONDS", 12.0)


def test_of_a_large_stream_an_outline_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is too large for moments to go back to."""

    def check() -> None:
        clock, shelf = Clock(), Shelf(tmp_path / os.urandom(4).hex())
        outlines: list[int] = []
        with monkeypatch.context() as patched:
            patched.setattr(FakeStream, "snapshot_bytes", 4 * 2**30)
            whole = FakeStream.snapshot

            def outline(stream: FakeStream) -> FakeSaved:
                outlines.append(stream.next_frame)
                return whole(stream)

            patched.setattr(FakeStream, "outline", outline)
            patched.setattr(FakeStream, "snapshot", lambda stream: pytest.fail("four gigabytes are copied"))
            session = session_on(shelf, "one", clock, FakeEngine(wait=clock.sleep))
            session.handle(Start("a red ball", 3))
            work(session, clock, 40)
            session.close()
        kept = shelf.find("one")
        assert kept is not None
        assert len(outlines) >= 3
        assert kept.frame == outlines[-1] > 40

    assert_needs(check, monkeypatch, Keeper, "due", lambda self, now: False)


def test_servers_that_share_a_shelf_leave_each_others_sessions_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        root = tmp_path / os.urandom(4).hex()
        one, other = Shelf(root, budget=0), Shelf(root, budget=0)
        (one.folder("runs") / "reel-0.bin").write_bytes(b"x" * 100)
        (one.folder("over") / "reel-0.bin").write_bytes(b"x" * 100)
        one.tidy(["runs"])
        other.tidy([])
        assert [one._path(token).is_dir() for token in ("runs", "over")] == [True, False]

    assert_needs(check, monkeypatch, demo.shelf, "_USED_SECONDS", -1.0)


def test_a_full_disk_costs_the_copy_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, shelf = Clock(), Shelf(tmp_path)
    engine = FakeEngine(wait=clock.sleep)
    session = session_on(shelf, "one", clock, engine)
    session.handle(Start("a red ball", 3))
    session.work()
    assert session.stream is not None

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    session.stream.write = full  # type: ignore[method-assign]
    work(session, clock, 40)
    assert session.state == "playing"
    assert capsys.readouterr().err.count("cannot be kept") == 1
    assert shelf.find("one") is None
    session.close()


def test_what_is_on_the_shelf_is_bounded_in_time_and_bytes(tmp_path: Path) -> None:
    now = [1e9]
    shelf = Shelf(tmp_path, budget=2500, seconds=3600, clock=lambda: now[0])
    for age, name in enumerate(("old", "older", "oldest", "used")):
        folder = shelf.folder(name)
        (folder / "reel-0.bin").write_bytes(bytes(1000))
        os.utime(folder / "reel-0.bin", (1e9 - 100 * (age + 1),) * 2)
    shelf.tidy(["used"])
    assert [shelf._path(name).exists() for name in ("old", "older", "oldest", "used")] == [
        True,
        True,
        False,
        True,
    ]
    now[0] += 4000
    shelf.tidy(["used"])
    assert list(tmp_path.iterdir()) == [shelf._path("used")]


def test_ids_are_not_written_on_the_shelf(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf")
    folder = shelf.folder("a secret id")
    assert "secret" not in str(folder)
    assert folder.stat().st_mode & 0o077 == 0
    assert shelf.find("../../etc") is None
    (folder / "kept.json").write_text("{")
    assert shelf.find("a secret id") is None


# -- branches


def test_a_restart_is_a_branch_with_its_own_seed_and_frames() -> None:
    clock = Clock()
    session = LiveSession(FakeEngine(wait=clock.sleep), Outgoing(), clock)
    session.handle(Start("a red ball", 3))
    work(session, clock, 12)
    before = session.stream.next_frame if session.stream is not None else 0
    session.handle(Start("a blue ball", 4))
    work(session, clock, 9)
    [take] = session.takes
    assert (take.prompt, take.seed, take.frame) == ("a red ball", 3, before)
    session.handle(Take(take.id))
    work(session, clock, 3)
    assert session.stream is not None
    assert (session.stream.prompt, session.stream.seed) == ("a red ball", 3)
    assert session.recording.frames == session.stream.next_frame == before + 8
    assert session.stream.timeline()["seed"] == 3
    assert [take.prompt for take in session.takes] == ["a blue ball"]
    marks = [mark.id for mark in session.marks]
    session.handle(Rewind(marks[0]))
    work(session, clock, 2)
    assert session.recording.frames == session.stream.next_frame
    session.close()


def test_a_stream_that_cannot_begin_leaves_what_plays() -> None:
    clock = Clock()
    engine = FakeEngine(wait=clock.sleep)
    session = LiveSession(engine, Outgoing(), clock)
    session.handle(Start("a red ball", 3))
    work(session, clock, 5)
    engine.open = lambda *args: (_ for _ in ()).throw(InputError("no"))  # type: ignore[method-assign]
    session.handle(Start("a blue ball", 4))
    session.work()
    assert session.state == "failed"
    assert not [*session.takes]
    assert session.stream is not None
    assert session.stream.prompt == "a red ball"
    session.close()
