"""Timelines opened and edited: what is played is what they say, and what is not touched stays bit for bit."""

import json
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest

import demo.conducted
import demo.hands
from demo.conducted import Conducted
from demo.editing import parsed
from demo.engine import ModelInfo, PipelineEngine
from demo.fake_engine import FakeEngine
from demo.messages import BadMessage, Box, Camera, Event, Path, Simple, Start
from demo.opening import read_score
from demo.outgoing import Outgoing
from demo.recording import session_record
from demo.score import Edit, resampled
from streamgen import InputError, load_pipeline
from streamgen.motion.file import motion_to_json
from streamgen.motion.tracks import TrackSet, path
from tests.demo.test_server import connect, kind, serving, ticket, until
from tests.demo_viewers import Clock
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs


class Desk:
    """A session without a page, played chunk by chunk."""

    def __init__(self, engine: Any) -> None:
        self.outgoing = Outgoing()
        self.live = Conducted(engine, self.outgoing, Clock())

    def start(self, prompt: str = "a red ball", seed: int = 3) -> "Desk":
        self.live.handle(Start(prompt, seed))
        self.live.work()
        return self

    def play(self, frame: int) -> "Desk":
        """Until this frame has been made."""
        assert self.live.stream is not None
        while self.live.stream.next_frame < frame:
            self.live.work()
        return self

    def say(self, **event: Any) -> "Desk":
        self.live.handle(Event(1, self.live.epoch, **event))
        return self

    def edit(self, *edits: Edit) -> "Desk":
        self.live.edit(self.live.epoch, edits)
        self.live.work()
        return self

    def frames(self, count: int) -> np.ndarray:
        return np.concatenate(list(self.live.recording.read(count)))

    def record(self, count: int) -> dict[str, Any]:
        assert self.live.stream is not None
        about = {"model": self.live.engine.info.name}
        return session_record(self.live.recording, count, self.live.stream.timeline(), about)

    @property
    def blocks(self) -> dict[str, dict[str, Any]]:
        return {row["label"]: row for row in self.live.lane()["blocks"]}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> PipelineEngine:
    folder = write_checkpoint(tmp_path_factory.mktemp("model"))
    return PipelineEngine(load_pipeline(folder, device="cpu"))


def test_an_opened_timeline_plays_again_bit_for_bit(engine: PipelineEngine) -> None:
    """Words, a way to others, settings, past and a drawn path; the record is what Save timeline gives."""
    first = Desk(engine).start().play(9)
    first.say(prompt="a blue ball", over=1.0).play(18)
    first.live.handle(Path(5, 1, 16, ((0.0, 0.2, 0.2), (400.0, 0.6, 0.6))))
    first.play(24).say(settings={"text_guidance": 2.0}).play(30).say(cache="clear").play(48)
    record = first.record(48)
    assert len(record["timeline"]["events"]) >= 5
    score = read_score(json.dumps(record).encode(), engine.info)
    assert score.notes == ()
    again = Desk(engine)
    again.live.play(score)
    again.live.work()
    again.play(48)
    assert again.record(48)["sha256"] == record["sha256"]


@pytest.fixture
def fake() -> Desk:
    """Red, from frame 41 on blue, from frame 81 on green; the stream is at frame 121."""
    clock = Clock()
    desk = Desk(FakeEngine(wait=clock.sleep)).start().play(41)
    desk.say(prompt="a blue ball").play(81).say(prompt="a green ball").play(121)
    return desk


def colours(desk: Desk, count: int) -> str:
    """One letter for each frame."""
    return "".join("rgb"[int(one.reshape(-1, 3).mean(0).argmax())] for one in desk.frames(count))


def runs(desk: Desk, count: int) -> list[tuple[str, int]]:
    """Colours, each with the frame where it begins."""
    said = colours(desk, count)
    return [(said[i], i) for i in range(count) if i == 0 or said[i] != said[i - 1]]


def test_an_edit_of_the_past_is_played_again_from_the_mark_before_it(fake: Desk) -> None:
    assert runs(fake, 121) == [("r", 0), ("b", 41), ("g", 81)]
    epoch, block = fake.live.epoch, fake.blocks["a green ball"]
    assert (block["kind"], block["frame"], block["planned"]) == ("prompt", 81, False)
    fake.edit(Edit(block["id"], frame=61))
    assert fake.live.epoch == epoch + 1
    assert 41 < fake.live.stream.next_frame <= 61, "near the change, not at the beginning"
    fake.play(121)
    assert runs(fake, 121) == [("r", 0), ("b", 41), ("g", 61)]
    assert len(list(fake.live.takes)) == 1, "what played before is a branch"
    moved = fake.blocks
    fake.edit(
        Edit(moved["a blue ball"]["id"], delete=True), Edit(moved["a green ball"]["id"], prompt="a red one")
    )
    fake.play(81).edit(Edit(frame=101, prompt="a blue ball")).play(121)
    assert runs(fake, 121) == [("r", 0), ("b", 101)]


def test_an_edit_before_all_marks_begins_the_stream_again(
    fake: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(desk: Desk) -> None:
        seed = desk.live.stream.seed
        desk.live.marks.cut(-1)
        desk.edit(Edit(desk.blocks["a blue ball"]["id"], frame=21))
        assert desk.live.stream.next_frame == 0
        assert desk.live.stream.seed == seed
        desk.play(61)
        assert runs(desk, 61) == [("r", 0), ("b", 21)]
        assert "a green ball" in desk.blocks, "and the rest waits for its frame"

    check(fake)


def test_other_first_words_begin_the_stream_again(fake: Desk) -> None:
    fake.edit(Edit("first", prompt="a green ball"), Edit(fake.blocks["a green ball"]["id"], delete=True))
    assert (fake.live.stream.next_frame, fake.live.stream.seed) == (0, 3)
    fake.play(61)
    assert runs(fake, 61) == [("g", 0), ("b", 41)]


def test_what_waits_is_edited_without_going_back(fake: Desk) -> None:
    epoch = fake.live.epoch
    fake.edit(Edit(frame=10_000, prompt="a red ball"), Edit(frame=141, settings={"steps": 7}))
    assert (fake.live.epoch, fake.blocks["a red ball"]["planned"]) == (epoch, True)
    fake.edit(Edit(fake.blocks["a red ball"]["id"], frame=161, frames=32))
    assert fake.blocks["a red ball"]["over"] == 0 or fake.blocks["a red ball"]["over"] == 32
    fake.edit(Edit(fake.blocks["a red ball"]["id"], frames=0)).play(181)
    assert runs(fake, 181)[-1] == ("r", 161)
    assert fake.live.stream.settings["steps"] == 7
    assert [m["settings"] for m in fake.outgoing.take() if m.get("settings") and m["type"] == "receipt"] == [
        {"steps": 7}
    ], "so that sliders show what holds"
    assert fake.live.epoch == epoch


def test_going_back_keeps_what_waits_and_another_branch_does_not(fake: Desk) -> None:
    fake.edit(Edit(frame=141, prompt="a red ball"))
    fake.play(125)
    mark = next(mark for mark in fake.live.marks if mark.frame >= 90)
    fake.live._rewind(mark.id)
    fake.play(161)
    assert runs(fake, 161)[-1] == ("r", 141)
    fake.edit(Edit(frame=300, prompt="a blue ball"))
    fake.live._take_up(next(iter(fake.live.takes)).id)
    assert "a blue ball" not in [row["label"] for row in fake.live.lane()["blocks"] if row["planned"]]


def test_untouched_changes_stay_bit_for_bit(engine: PipelineEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drag in many parts and a change of words behind the edit come out as they were."""

    def check() -> None:
        desk = Desk(engine).start().play(9)
        desk.live.handle(Path(5, 1, 8, ((0.0, 0.2, 0.2), (900.0, 0.7, 0.7))))
        desk.play(20).say(prompt="a blue ball").play(40)
        before, frame = desk.frames(40), desk.blocks["a blue ball"]["frame"]
        # an edit that says what is so already, from the beginning on
        desk.live.marks.cut(-1)
        words = desk.blocks["a blue ball"]["id"]
        desk.edit(Edit(words, prompt="a blue ball", frame=frame)).play(40)
        assert desk.live.epoch == 2
        assert np.array_equal(desk.frames(40), before)

    real = demo.conducted.taken_apart
    assert_needs(
        check,
        monkeypatch,
        demo.conducted,
        "taken_apart",
        lambda entries: [item for item in real(entries) if not item.event.gestures],
    )


def test_a_gesture_is_one_block_that_can_be_moved_and_stretched(engine: PipelineEngine) -> None:
    desk = Desk(engine).start().play(9)
    desk.live.handle(Path(5, 1, 8, ((0.0, 0.2, 0.2), (800.0, 0.7, 0.7))))
    desk.play(30)
    [block] = [row for row in desk.live.lane()["blocks"] if row["kind"] == "path"]
    length = block["end"] - block["frame"]
    desk.edit(Edit(block["id"], frame=40, frames=2 * length), Edit(copy=block["id"], frame=90))
    first, second = (row for row in desk.live.lane()["blocks"] if row["kind"] == "path")
    assert (first["frame"], first["end"] - first["frame"]) == (40, 2 * length)
    assert (second["frame"], second["planned"]) == (90, True)
    desk.play(60)
    assert not [m for m in desk.outgoing.take() if m["type"] == "receipt" and m["status"] == "refused"]


def test_tracks_in_another_time_go_the_same_way() -> None:
    tracks = path([(0.0, 0.1, 0.5), (1.0, 0.9, 0.5)], 16)
    for share in (0.5, 1.0, 2.0):
        made = resampled(tracks, share)
        assert made.num_frames == round(share * tracks.num_frames)
        assert made.points[0, 0].tolist() == pytest.approx([0.1, 0.5])
        assert made.points[0, -1].tolist() == pytest.approx([0.9, 0.5])
    hidden = TrackSet(tracks.points, tracks.state.clone(), tracks.pinned, tracks.ids)
    hidden.state[:, 8:] = 0
    hidden.points[:, 8:] = 0
    made = resampled(hidden, 2.0)
    assert float(made.points[made.state != 0].min()) > 0.09, "no way leads to where nothing is said"


PAN = {"type": "camera", "pan": [0.1, 0.0], "zoom": 1.0, "rotate": 0.0, "seconds": 2.0}
BOX = {"type": "box", "points": [[0, 0.1, 0.1, 0.3, 0.3], [1000, 0.5, 0.1, 0.9, 0.5]], "name": "ball"}
WAY = {"type": "path", "points": [[0, 0.2, 0.2], [900, 0.7, 0.2]]}


def test_motion_is_added_moved_and_stretched(engine: PipelineEngine) -> None:
    """In the future without going back, in the past from the mark before it; and a replay has it."""

    def added(*rows: dict[str, Any]) -> list[Edit]:
        return parsed({"epoch": 1, "edits": list(rows)})[1]

    desk = Desk(engine).start().play(9)
    desk.edit(*added({"frame": 20, "motion": PAN}, {"frame": 13, "frames": 16, "motion": WAY}))
    assert desk.live.epoch == 1
    blocks = {row["kind"]: row for row in desk.live.lane()["blocks"]}
    assert blocks["camera"]["label"] == "pans right, 2 s"
    assert (blocks["camera"]["frame"], blocks["camera"]["end"]) == (20, 20 + 32)
    assert (blocks["path"]["frame"], blocks["path"]["end"], blocks["path"]["planned"]) == (13, 29, True)
    desk.play(40)
    played = {row["kind"]: row for row in desk.live.lane()["blocks"]}
    assert (played["path"]["planned"], played["path"]["end"] - played["path"]["frame"]) == (False, 16)
    receipts = [m for m in desk.outgoing.take() if m["type"] == "receipt"]
    assert {m["kind"] for m in receipts if m["status"] == "applied"} >= {"camera", "path"}
    assert not [m for m in receipts if m["status"] == "refused"]
    desk.edit(*added({"frame": 13, "motion": BOX}))
    assert desk.live.epoch == 2
    desk.play(40)
    [box] = [row for row in desk.live.lane()["blocks"] if row["kind"] == "box"]
    assert 13 <= box["frame"] <= 16
    before = {row["kind"] for row in desk.live.lane()["blocks"]}
    assert before == {"prompt", "camera", "path", "box"}


def test_a_model_without_tracks_takes_no_motion(fake: Desk) -> None:
    fake.live.engine._info = replace(fake.live.engine.info, tracks=False)
    edits = parsed({"epoch": 1, "edits": [{"frame": 200, "motion": PAN}]})[1]
    with pytest.raises(InputError, match="this model follows no tracks"):
        fake.edit(*edits)


def test_let_go_of_all_lets_go_of_what_a_timeline_brought(
    engine: PipelineEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        desk = Desk(engine).start().play(5)
        desk.edit(*parsed({"epoch": 1, "edits": [{"frame": 9, "motion": {**PAN, "seconds": 9.0}}]})[1])
        desk.play(20)
        desk.live.handle(Simple("clear", 7))
        desk.play(30)
        last = desk.live.stream.events[-1].event
        assert last.lets_go_of_all
        assert [row["kind"] for row in desk.live.lane()["blocks"]][-1] == "release"

    begin = demo.hands.Hands.begin

    def of_its_own_alone(hands: demo.hands.Hands, stream: Any) -> None:
        hands._lets_go = False
        begin(hands, stream)

    assert_needs(check, monkeypatch, demo.hands.Hands, "begin", of_its_own_alone)


# -- what cannot be

EDITS = [
    ({"edits": [{"block": "w81"}]}, "expected an epoch"),
    ({"epoch": 1, "edits": []}, "a list of 1 to 200"),
    ({"epoch": 1, "edits": [{"frame": 5}] * 201}, "a list of 1 to 200"),
    ({"epoch": 1, "edits": ["w81"]}, "expected an object"),
    ({"epoch": 1, "edits": [{"blok": "w81"}]}, "unknown field 'blok'"),
    ({"epoch": 1, "edits": [{"block": "w81", "frame": 1.5}]}, "frame: expected int"),
    ({"epoch": 1, "edits": [{"block": "w81", "frame": True}]}, "frame: expected int"),
    ({"epoch": 1, "edits": [{"block": "w81", "frames": -1}]}, "frames: expected 0 or more, found -1"),
    ({"epoch": 1, "edits": [{"frame": 9, "settings": {"steps": 51}}]}, "steps: expected 1 to 50, found '51'"),
    ({"epoch": 1, "edits": [{"frame": 9, "settings": {"text_guidance": 1e30}}]}, "text_guidance: expected 0"),
    ({"epoch": 1, "edits": [{"frame": 9, "settings": {"strength": 10**400}}]}, "strength: expected 0.01 to"),
    ({"epoch": 1, "edits": [{"frame": 9, "settings": {"window_frames": 900}}]}, "settings: expected steps"),
    ({"epoch": 1, "edits": [{"frame": 9, "motion": {"type": "stroke"}}]}, "motion: expected a path, box or"),
    ({"epoch": 1, "edits": [{"frame": 9, "motion": {**WAY, "points": [[0, 2, 0], [9, 0, 0]]}}]}, "in 0..1"),
    ({"epoch": 1, "edits": [{"frame": 9, "motion": {**PAN, "zoom": float("nan")}}]}, "a JSON object"),
    ({"epoch": 1, "edits": [{"frame": 9, "motion": {**PAN, "evil": 1}}]}, "unknown field"),
    ([], "expected an epoch"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "told"), EDITS)
def test_edits_of_another_form_are_told(row: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        parsed(row)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (Edit("w999", frame=5), "expected one of the timeline, found 'w999'"),
        (Edit("w81", frame=0), "frame: expected 1 to 1382400, found 0"),
        (Edit("w81", frame=10**9), "frame: expected 1 to 1382400"),
        (Edit("w81", frame=10**400), "frame: expected 1 to 1382400, found 1000"),
        (Edit("w81", frames=10**9), "frames: expected at most 1382400, found 1000000000"),
        (Edit("w81", frames=10**400), "frames: expected at most 1382400, found 1000"),
        (Edit(prompt="a ball"), "frame: expected where the new block begins"),
        (Edit("first", frame=9), "the first words can be changed"),
        (Edit("first", delete=True), "the first words can be changed"),
        (Edit(frame=9), "expected a prompt, settings, motion or a block to copy"),
        (Edit(frame=9, motion=Camera((0.1, 0.0), 1.0, 0.0)), "expected a move of so many seconds"),
        (Edit(frame=9, motion=Box(0, 0, 0, ((0.0, 0.5, 0.5, 0.5, 0.5), (9.0, 0.1, 0.1, 0.1, 0.1)))), "box"),
        (Edit("w81", prompt=" "), "prompt: expected some words"),
    ],
)
def test_edits_that_cannot_be_change_nothing(fake: Desk, edit: Edit, told: str) -> None:
    before, epoch = fake.live.lane()["blocks"], fake.live.epoch
    with pytest.raises(InputError, match=told):
        fake.live.edit(epoch, [Edit(frame=500, prompt="a red ball"), edit])
    with pytest.raises(BadMessage, match="went elsewhere"):
        fake.live.edit(epoch - 1, [edit])
    fake.live.work()
    assert (fake.live.lane()["blocks"], fake.live.epoch) == (before, epoch)


def opened(**changes: Any) -> dict[str, Any]:
    """A timeline of two events, as a page saves it."""
    event = {"chunk": 0, "frame": 0, "prompt": "a red ball", "settings": {"steps": 4}}
    later = {"chunk": 9, "frame": 33, "prompt": "a blue ball"}
    timeline = {
        "format": "streamgen-timeline",
        "version": 1,
        "fps": 16.0,
        "seed": 5,
        "events": [event, later],
    }
    record = {"format": "streamgen-render", "version": 1, "model": "fake", "frames": 50}
    for name, value in changes.items():
        (record if name in ("model", "format") else event if name == "settings" else timeline)[name] = value
    return record | {"timeline": timeline}


INFO = FakeEngine().info
WORDS = {"chunk": 0, "frame": 0, "prompt": "x"}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\xff\x00 no json", "expected the JSON file that Save timeline makes"),
        (b"[" * 100_000, "expected the JSON file"),
        (b"[]", 'expected an object with "format": "streamgen-timeline"'),
        (opened(version=2), "timeline: version: expected 1, found 2: made by another streamgen"),
        (opened(seed=-4), "seed: expected 0 to 2147483647, found -4"),
        (opened(fps=0.0), "fps: expected 1 to 1000, found 0"),
        (opened(events=[]), "expected an opening event with a prompt"),
        (opened(events=[WORDS, WORDS | {"chunk": 1, "frame": 10**9}]), "within a day"),
        (opened(events=[WORDS | {"evil": 1}]), "evil"),
        (opened(events=[WORDS | {"motion": "/etc/hostname"}]), "motion: expected frames and tracks"),
        (opened(events=[WORDS | {"motion": {"clip": "/etc/hostname"}}]), "expected frames and tracks"),
        (opened(events=[WORDS | {"gestures": {"a": {"arrays": "x.npz"}}}]), "expected frames and tracks"),
        (opened(events=[WORDS | {"motion": {"frames": 10**9, "tracks": []}}]), "in all, found 1000000000"),
        (opened(events=[WORDS | {"prompt": {"a": 1}}]), "prompt: expected text"),
    ],
)  # fmt: skip
def test_files_that_are_no_timeline_are_told_in_one_line(data: Any, told: str) -> None:
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    with pytest.raises(InputError, match=told) as error:
        read_score(text, INFO)
    assert "\n" not in str(error.value)


def test_timelines_of_other_models_are_fitted_and_the_difference_is_told() -> None:
    large = {"window_frames": 900, "steps": 9000, "text_guidance": 2.0, "not_yet": 1}
    score = read_score(json.dumps(opened(model="other", fps=8.0, settings=large)).encode(), INFO)
    notes = " ".join(score.notes)
    for part in (
        "made with the model other, here it is fake",
        "8 frames per second, here they are 16",
        "window_frames is 900, it is not known here: left out",
        "steps: expected 1 to 50, found 9000",
    ):
        assert part in notes
    assert score.opening.events[0].event.settings == {"text_guidance": 2.0}
    assert [item.frame for item in score.later] == [66]
    still = ModelInfo("fake", "none", 64, 64, 16.0, 4, {}, tracks=False)
    motion = [WORDS | {"gestures": {"drag 1": motion_to_json(path([(0, 0.1, 0.5), (1, 0.9, 0.5)], 16))}}]
    score = read_score(json.dumps(opened(events=motion)).encode(), still)
    assert score.notes == ("this model follows no tracks: motion is left out",)
    assert not score.opening.events[0].event.gestures


def test_over_the_wire_a_timeline_is_opened_looked_at_and_edited(tmp_path: FilePath) -> None:
    with serving() as client:
        token = ticket(client)
        with connect(client, token) as socket:
            until(socket, kind("state"))
            bad = client.post(f"/live/{token}/open", content=b"{}")
            assert (bad.status_code, "timeline" in bad.json()["error"]) == (400, True)
            assert client.get(f"/live/{token}/lane").json()["blocks"] == []
            made = client.post(f"/live/{token}/open", content=json.dumps(opened()).encode())
            assert made.json() == {"notes": [], "frames": 33, "changes": 1}
            place = until(socket, kind("place"))
            assert (place["prompt"], place["seed"]) == ("a red ball", 5)
            first, block = client.get(f"/live/{token}/lane").json()["blocks"]
            assert (first["frame"], first["end"], first["label"]) == (0, 33, "a red ball")
            assert (block["frame"], block["planned"], block["label"]) == (33, True, "a blue ball")
            edits = {"epoch": place["epoch"], "edits": [{"block": block["id"], "frame": 17}]}
            assert client.post(f"/live/{token}/lane", json=edits).status_code == 200
            receipt = until(socket, lambda m: m["type"] == "receipt" and m["status"] == "applied")
            assert (receipt["frame"], receipt["label"]) == (17, "a blue ball")
            late = client.post(f"/live/{token}/lane", json={**edits, "epoch": 0})
            assert "went elsewhere" in late.json()["error"]
            for content in (b"{", b"\xff", b"x" * 70_000):
                assert client.post(f"/live/{token}/lane", content=content).status_code == 400
            started = opened(start={"frames": 1, "sha256": "0" * 64})
            refused = client.post(f"/live/{token}/open", content=json.dumps(started).encode())
            assert "choose the same to start from" in refused.json()["error"]
            socket.send_json({"type": "pause"})
            until(socket, lambda m: m["type"] == "state" and m["state"] == "paused")
        assert client.post("/live/nobody/open", content=b"{}").status_code == 404
        assert client.get("/live/nobody/lane").status_code == 404


def test_a_paused_stream_is_edited_and_stays_paused(fake: Desk) -> None:
    fake.live.handle(Simple("pause"))
    fake.edit(Edit(fake.blocks["a blue ball"]["id"], frame=21))
    assert fake.live.state == "paused"


def test_a_stream_of_a_picture_that_is_gone_plays_on_as_it_was(engine: PipelineEngine) -> None:
    """Its first words' picture is needed to begin it again."""
    desk = Desk(engine)
    info = engine.info
    desk.live.pictures = np.zeros((1, info.height, info.width, 3), np.uint8)
    desk.live.handle(Start("a red ball", 3, picture=True))
    desk.live.work()
    desk.play(20).say(prompt="a blue ball").play(30)
    block = desk.blocks["a blue ball"]
    desk.live.marks.cut(-1)
    other = np.full((1, info.height, info.width, 3), 9, np.uint8)
    for pictures, told in (
        (None, "choose the same to start from"),
        (other, "image or video: expected 1 frame"),
    ):
        desk.live.pictures = pictures
        desk.outgoing.take()
        desk.edit(Edit(block["id"], frame=9))
        assert any(told in m.get("text", "") for m in desk.outgoing.take())
        assert (desk.live.epoch, desk.live.state) == (1, "playing")
    desk.live.pictures = np.zeros((1, info.height, info.width, 3), np.uint8)
    before = desk.frames(8)
    desk.edit(Edit(block["id"], frame=9)).play(20)
    assert desk.live.epoch == 2
    assert np.array_equal(desk.frames(8), before)
