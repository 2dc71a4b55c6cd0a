"""Snapshots and logs: what they refuse, one cache a fork, draws with a name, receipts of other epochs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import models.kv_cache
from models.kv_cache import CacheRing
from streamgen import InputError, Pipeline, Session, StreamEvent, TrackSet, load_pipeline
from streamgen.engine.noise import SeededNoise
from streamgen.engine.runner import PlainRunner
from streamgen.motion.tracks import drag
from streamgen.stream.log import EventLog, LogFile, LogHeader, read_log
from tests.streams import BLUE, RED, take
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "b036424"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load_pipeline(write_checkpoint(tmp_path_factory.mktemp("model"), steps=1))


def changed(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> Path:
    """A copy of a snapshot file with its header or tensors changed."""
    with safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["snapshot"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(meta, tensors)
    out = path.with_name("changed")
    save_file(tensors, out, metadata={"snapshot": json.dumps(meta)})
    return out


def log_of_seed(seed: int) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    return lambda meta, tensors: meta["header"].update(seed=seed)


CHANGES: dict[str, tuple[Callable[[dict[str, Any], dict[str, Tensor]], Any], str]] = {
    "version before": (
        lambda m, t: m.update(version=1),
        "version 2, found 1, which streamgen 0.1 reads",
    ),
    "newer version": (
        lambda m, t: m.update(version=3),
        "expected version 2, found 3 of 'streamgen .*', which is newer",
    ),
    "format": (lambda m, t: m.update(format="x"), "expected format streamgen-snapshot, found 'x'"),
    "model": (lambda m, t: m.update(model="0" * 64), "expected model [0-9a-f]{64}, found 0{64}"),
    "size": (lambda m, t: m.update(size=[64, 64]), r"expected size \[32, 32\], found \[64, 64\]"),
    "dtype": (
        lambda m, t: m.update(dtype="torch.bfloat16"),
        "expected dtype torch.float32, found torch.bfloat16",
    ),
    "chunks": (lambda m, t: m.update(chunks=[3, 3]), r"expected chunks \[1, 1\], found \[3, 3\]"),
    "log cut short": (lambda m, t: t.update(log=t["log"][:-3]), "cut short"),
    "log without an entry": (
        lambda m, t: t.update(log=t["log"][:0]),
        "cut short: expected 2 events, found 0",
    ),
    "log of another stream": (log_of_seed(9), "its log is another one: expected digest"),
    "digest": (
        lambda m, t: m["log"].update(digest="0" * 32),
        "its log is another one: expected digest 000000000000",
    ),
    "log entry": (lambda m, t: t["log"].__setitem__(30, 0), "its log is another one|damaged entry"),
    "missing tensor": (lambda m, t: t.pop("cache.keys"), "does not fit this stream"),
    "other cache": (lambda m, t: t.update({"cache.keys": t["cache.keys"][:1]}), "does not fit this stream"),
    "missing value": (lambda m, t: m.pop("scene"), "does not fit this stream"),
    "draws": (
        lambda m, t: m.update(noise="recorded"),
        "its draws came from 'recorded': give that source as noise=",
    ),
    "settings": (lambda m, t: m["settings"].update(steps=0), "steps must be in 1..1000"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_snapshot_is_refused_in_one_line(pipeline: Pipeline, name: str, tmp_path: Path) -> None:
    session = pipeline.open(RED, seed=4)
    take(session, 3)
    session.submit(StreamEvent(prompt=BLUE))
    take(session, 1)
    session.save(tmp_path / "stream")
    change, message = CHANGES[name]
    with pytest.raises(InputError, match=message) as caught:
        pipeline.resume(changed(tmp_path / "stream", lambda m, t: (change(m, t), None)[1]))
    assert "\n" not in str(caught.value)


def test_a_snapshot_of_before_names_what_reads_it() -> None:
    old = load_pipeline(FIXTURES / "checkpoint")
    with pytest.raises(InputError, match=r"expected version 2, found 1, which streamgen 0.1 reads"):
        old.resume(FIXTURES / "stream.snapshot")


# -- logs on disk


def test_a_log_file_is_appended_to_and_tells_rewinds(pipeline: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    session = pipeline.open(RED, seed=4, log=path)
    take(session, 2)
    snapshot, before = session.snapshot(), path.read_bytes()
    session.submit(StreamEvent(prompt=BLUE, motion=drag((0.1, 0.1), (0.9, 0.9), 9)))
    take(session, 2)
    assert path.read_bytes().startswith(before)
    assert read_log(path).digest == session.state.log.digest
    session.restore(snapshot)
    session.submit(StreamEvent(prompt="a star"))
    take(session, 1)
    assert path.read_bytes().startswith(before)
    assert [entry.event.prompt for entry in read_log(path).timeline().events] == [RED, "a star"]
    session.save(tmp_path / "stream")
    frames = take(session, 2)
    with safe_open(tmp_path / "stream", "pt") as file:
        assert "log" not in list(file.keys())
    assert torch.equal(take(pipeline.resume(tmp_path / "stream"), 2), frames)
    moved = path.rename(tmp_path / "elsewhere.log")
    with pytest.raises(InputError, match=r"log .*run\.log: cannot be read .no such file"):
        pipeline.resume(tmp_path / "stream")
    assert torch.equal(take(pipeline.resume(tmp_path / "stream", log=moved), 2), frames)


def test_logs_that_are_not_this_streams_are_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    for seed in (1, 2):
        session = pipeline.open(RED, seed=seed, log=tmp_path / f"{seed}.log")
        take(session, 1)
        session.submit(StreamEvent(settings={"steps": 2}))
        take(session, 1)
        session.save(tmp_path / f"{seed}")
    with pytest.raises(InputError, match=r"its log is of another stream .expected seed 1 .*, found seed 2"):
        pipeline.resume(tmp_path / "1", log=tmp_path / "2.log")
    data = (tmp_path / "1.log").read_bytes()
    for cut, message in (
        (data[:-1], "cut short"),
        (data[:20], "cut short"),
        (b"nothing", "not the log of a stream"),
        (data[: data.index(b"\0", 250)], "cut short"),
    ):
        (tmp_path / "cut.log").write_bytes(cut)
        with pytest.raises(InputError, match=message):
            pipeline.resume(tmp_path / "1", log=tmp_path / "cut.log")
    with pytest.raises(InputError, match=r"2\.log: is of another stream"):
        pipeline.open(RED, seed=7, log=tmp_path / "2.log")


def test_logs_share_what_they_have_in_common() -> None:
    log = EventLog(LogHeader(16, 3, "seed 3"))
    for i in range(5):
        log = log.appended(i, 4 * i, StreamEvent(settings={"steps": i + 1}), (i,))
    other = log.prefix(3).appended(3, 12, StreamEvent(prompt=RED))
    assert other.prefix(3).last is log.prefix(3).last
    assert EventLog.from_bytes(log.header, log.to_bytes()).digest == log.digest
    assert log.digest != other.digest
    assert [log.has_receipt(n) for n in (0, 4, 5)] == [True, True, False]
    assert LogHeader(16, 3, "seed 3") == LogHeader(16.0, 3, "seed 3")


def test_a_log_file_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        LogFile(tmp_path / "none" / "log", EventLog(LogHeader(16, 3, "seed 3")))


# -- one cache, one layer at a time


def test_a_fork_and_a_resume_have_one_cache(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = pipeline.open(RED)
    take(session, 2)
    session.save(tmp_path / "stream")
    made: list[CacheRing] = []
    build = CacheRing.__init__

    def counted(self: CacheRing, *rest: object, **more: object) -> None:
        made.append(self)
        build(self, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(CacheRing, "__init__", counted)
    for copy in (session.fork, lambda: pipeline.resume(tmp_path / "stream")):
        made.clear()
        copy()
        assert len(made) == 1


def test_the_sink_is_rotated_one_layer_at_a_time(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotation of all layers at once would take several times the sink's own size for a moment."""
    sizes: list[int] = []
    rotate = models.kv_cache.rotate

    def watched(x: Tensor, tables: Any) -> Tensor:
        sizes.append(x.numel())
        return rotate(x, tables)

    session = pipeline.open(RED, settings={"text_guidance": 1.0})
    take(session, 6)
    sink = session.state.latents.ring.sink_keys
    monkeypatch.setattr(models.kv_cache, "rotate", watched)
    take(session, 1)
    assert sink[0].numel() in sizes
    assert max(sizes) == sink[0].numel(), "one layer, whatever else is rotated is as small"
    assert len(sink) == 2


# -- draws with a name


class Recorded(SeededNoise):
    """Draws that are not the seed's."""

    identity = "recorded 7"

    def initial(self, chunk: int, shape: tuple[int, ...]) -> Tensor:
        return 0.7 * super().initial(chunk, shape)


def test_draws_from_outside_stay_in_every_copy(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Recorded(3, torch.device("cpu"))
    session = pipeline.open(RED, seed=3, noise=source)
    first = take(session, 2)
    session.save(tmp_path / "stream")
    snapshot, twin = session.snapshot(), session.fork()
    frames = take(session, 2)
    assert not torch.equal(torch.cat([first, frames]), take(pipeline.open(RED, seed=3), 4))
    assert torch.equal(take(twin, 2), frames)
    session.restore(snapshot)
    assert torch.equal(take(session, 2), frames)
    assert torch.equal(take(pipeline.resume(tmp_path / "stream", noise=source), 2), frames)
    assert torch.equal(take(pipeline.replay(session.timeline, noise=source), 4)[-8:], frames)
    for copy in (
        lambda: pipeline.resume(tmp_path / "stream"),
        lambda: pipeline.resume(tmp_path / "stream", noise=SeededNoise(3, torch.device("cpu"))),
        lambda: pipeline.replay(session.timeline),
    ):
        with pytest.raises(InputError, match="recorded 7"):
            copy()

    class Nameless:
        initial = renoise = commit = None

    with pytest.raises(InputError, match="noise: expected a source with an identity"):
        pipeline.open(RED, noise=Nameless())  # type: ignore[arg-type]


def test_draws_do_not_depend_on_defaults_of_torch() -> None:
    expected = SeededNoise(3, torch.device("cpu")).initial(0, (4,))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = SeededNoise(3, torch.device("cpu")).initial(0, (4,))
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, expected)


# -- receipts and epochs


def test_receipts_know_their_epoch_and_whether_they_are_in_force(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        session = pipeline.open(RED)
        take(session, 2)
        snapshot = session.snapshot()
        receipt = session.submit(StreamEvent(prompt=BLUE))
        take(session, 1)
        assert (receipt.status, receipt.epoch, session.in_force(receipt)) == ("applied", 0, True)
        session.restore(snapshot)
        assert (session.epoch, session.in_force(receipt)) == (1, False)
        later = session.submit(StreamEvent(prompt=BLUE))
        take(session, 1)
        assert (later.epoch, session.in_force(later), session.in_force(receipt)) == (1, True, False)
        assert later.number > receipt.number

    assert_needs(check, monkeypatch, EventLog, "has_receipt", lambda self, number: True)


def test_a_restore_that_is_refused_changes_nothing(pipeline: Pipeline, tmp_path: Path) -> None:
    other = load_pipeline(write_checkpoint(tmp_path / "other", seed=7, steps=1)).open(RED)
    session, plain = pipeline.open(RED, seed=1), pipeline.open(RED, seed=1)
    take(session, 2)
    take(plain, 2)
    waits = session.submit(StreamEvent(prompt=BLUE), at_frame=9)
    plain.submit(StreamEvent(prompt=BLUE), at_frame=9)
    with pytest.raises(InputError, match="expected model"):
        session.restore(other.snapshot())
    assert (session.epoch, waits.status) == (0, "accepted")
    assert torch.equal(take(session, 3), take(plain, 3))


def test_events_are_due_by_frame_then_by_submission(pipeline: Pipeline) -> None:
    """Two changes for one boundary: the later place wins, in whatever order they were submitted."""
    session = pipeline.open(RED)
    late = session.submit(StreamEvent(prompt="a star"), at_frame=4)
    early = session.submit(StreamEvent(prompt=BLUE), at_frame=2)
    take(session, 3)
    assert session.controls.prompt == "a star"
    assert (early.superseded, late.superseded) == (("prompt",), ())


def test_a_stream_of_latents_decodes_nothing(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = pipeline.open(RED, seed=2)
    session = pipeline.open(RED, seed=2, decode=False)
    monkeypatch.setattr(PlainRunner, "decode", None)
    chunks = [next(session) for _ in range(3)]
    assert [chunk.start_frame for chunk in chunks] == [0, 1, 5]
    assert {tuple(chunk.frames.shape) for chunk in chunks} == {(0, 32, 32, 3)}
    monkeypatch.undo()
    for chunk in chunks:
        assert torch.equal(next(plain).latents, chunk.latents)
    session.restore(session.snapshot())
    assert len(next(session).frames) == 0


def test_runners_are_chosen_by_name(pipeline: Pipeline) -> None:
    session = pipeline.open(RED, runner=PlainRunner(pipeline.dit, pipeline.codec))
    assert torch.equal(take(session, 2), take(pipeline.open(RED, runner="plain"), 2))
    with pytest.raises(InputError, match=r"unknown runner 'plan' .did you mean 'plain'"):
        pipeline.open(RED, runner="plan")


def test_motion_in_a_snapshot_is_what_is_in_force(pipeline: Pipeline) -> None:
    """A motion that is over does not travel on."""
    session = pipeline.open(RED, motion=TrackSet.from_points(torch.rand(64, 9, 2)))
    take(session, 1)
    with_motion = session.snapshot().size_bytes()
    take(session, 6)
    assert session.snapshot().meta["gestures"] == []
    assert isinstance(session, Session)
    assert with_motion > 64 * 9 * 8


def test_a_network_whose_patches_overlap_is_another_model(tmp_path: Path) -> None:
    """The weights are the same, what it computes is not: a stream of the one does not go on on the other."""
    plain, close = (
        load_pipeline(write_checkpoint(tmp_path / f"stride-{stride}", patch_stride=stride))
        for stride in (None, 1)
    )
    assert plain.digest != close.digest
    for name, own, other in (("plain", plain, close), ("close", close, plain)):
        session = own.open(RED, seed=4)
        take(session, 1)
        session.save(tmp_path / name)
        take(own.resume(tmp_path / name), 1)
        with pytest.raises(InputError, match="model"):
            other.resume(tmp_path / name)
