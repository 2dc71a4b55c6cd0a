"""Frames that are pushed: what is too old is dropped, nobody waits long, and each plays at its own pace."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from streamgen import InputError
from streamgen.live.pushed import PushedInput
from streamgen.live.taken import Order, Taken
from tests.live_input import clip
from tests.tiny_models import assert_needs
from tests.waiting import PATIENCE

COUNT = 4


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def pushed(capacity: int = 8, patience: float = 0.0, fps: float = 16) -> tuple[PushedInput, Clock]:
    clock = Clock()
    return PushedInput((32, 32), fps, capacity, patience, clock), clock


class Listener:
    """Takes chunk after chunk, as a stream does."""

    def __init__(self, source: PushedInput) -> None:
        self.source, self.chunk, self.begun, self.following = source, 0, False, 0
        self.last: Tensor | None = None

    def take(self) -> Taken | None:
        order = Order((0, self.chunk), COUNT, self.begun, self.following, self.last)
        taken = self.source.take(order)
        self.chunk += 1
        if taken is not None:
            self.source.done(order)
            self.begun = bool(taken.numbers)
            if taken.numbers:
                self.following, self.last = taken.numbers[-1] + 1, taken.frames[-1]
        return taken

    def numbers(self) -> tuple[int, ...] | None:
        taken = self.take()
        return None if taken is None else taken.numbers


def test_a_stream_hears_nothing_before_the_first_frame() -> None:
    source, _ = pushed()
    assert Listener(source).take() is None


def test_old_frames_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much comes, a chunk shows what is at most two chunks old."""

    def check() -> None:
        source, _ = pushed(capacity=8)
        fed = source.feed(clip(100))
        assert (fed.first, fed.frames, fed.dropped) == (0, 100, 92)
        listener = Listener(source)
        taken = listener.take()
        assert taken is not None
        assert (taken.numbers, taken.dropped) == ((92, 93, 94, 95), 92)
        assert source.feed(clip(6)).dropped == 2
        taken = listener.take()
        assert taken is not None
        assert (taken.numbers, taken.dropped) == ((98, 99, 100, 101), 2)
        for _ in range(50):
            source.feed(clip(16))
            taken = listener.take()
            assert taken is not None
            assert source.waiting()[1][-1] - taken.numbers[0] < 8

    init = PushedInput.__init__

    def boundless(self: PushedInput, size: Any, fps: Any, capacity: int, *rest: Any) -> None:
        init(self, size, fps, 10_000, *rest)

    assert_needs(check, monkeypatch, PushedInput, "__init__", boundless)


def test_a_stall_holds_the_last_frame_and_is_over_with_the_next_one() -> None:
    source, clock = pushed(patience=1.0)
    clock.now += 5
    source.feed(clip(6))
    listener = Listener(source)
    assert listener.numbers() == (0, 1, 2, 3)
    clock.now += 1.5
    taken = listener.take()
    assert taken is not None
    assert (taken.numbers, taken.held, taken.over) == ((4, 5, 5, 5), 2, None)
    assert torch.equal(taken.frames[1], taken.frames[3])
    assert source.stalled
    # it waits no more until something comes
    assert listener.numbers() == (5, 5, 5, 5)
    source.feed(clip(4))
    assert not source.stalled
    assert listener.numbers() == (6, 7, 8, 9)


def test_a_chunk_waits_for_frames_that_are_on_their_way() -> None:
    source = PushedInput((32, 32), 16, 8, patience=PATIENCE)
    source.feed(clip(1))
    taken: list[Any] = []
    thread = threading.Thread(target=lambda: taken.append(Listener(source).take()))
    thread.start()
    for number in range(1, 4):
        source.feed(clip(1, seed=number))
    thread.join(PATIENCE)
    assert taken[0].numbers == (0, 1, 2, 3)
    assert taken[0].held == 0


def test_an_end_is_told_and_the_input_may_begin_again() -> None:
    source, _ = pushed(patience=50.0)
    source.feed(clip(6))
    source.end("the camera was taken away")
    listener = Listener(source)
    assert listener.numbers() == (0, 1, 2, 3)
    taken = listener.take()
    assert taken is not None
    assert (taken.numbers, taken.held, taken.over) == ((4, 5, 5, 5), 2, "the camera was taken away")
    taken = listener.take()
    assert taken is not None
    assert (taken.numbers, taken.over) == ((), "the camera was taken away")
    assert listener.take() is None
    source.feed(clip(4))
    assert listener.numbers() == (6, 7, 8, 9)


@pytest.mark.parametrize(
    ("rate", "numbers"),
    [
        (8.0, [(0, 1, 1, 2), (2, 3, 3, 4), (4, 5, 5, 6)]),
        (16.0, [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]),
        (32.0, [(0, 2, 4, 6), (8, 10, 12, 14), (16, 18, 20, 22)]),
        (24.0, [(0, 2, 3, 5), (6, 8, 9, 11), (12, 14, 15, 17)]),
    ],
)
def test_frames_of_another_rate_play_at_their_own_pace(rate: float, numbers: list[Any]) -> None:
    source, _ = pushed(capacity=400)
    fed = source.feed(clip(30), fps=rate)
    assert fed.rate == pytest.approx(rate)
    listener = Listener(source)
    assert [listener.numbers() for _ in range(3)] == numbers
    timed, _ = pushed(capacity=400)
    for i in range(30):
        timed.feed(clip(1), at=[7.0 + i / rate])
    listener = Listener(timed)
    assert [listener.numbers() for _ in range(3)] == numbers


def test_a_change_of_rate_is_told_and_followed() -> None:
    source, _ = pushed(capacity=400)
    source.feed(clip(40), fps=16)
    assert source.rate == pytest.approx(16)
    source.feed(clip(40), fps=32)
    assert source.rate == pytest.approx(32)
    listener = Listener(source)
    found = [listener.numbers() for _ in range(15)]
    assert found[9] == (36, 37, 38, 39)
    assert found[11] == (49, 51, 53, 55)


def test_a_gap_begins_the_clock_anew() -> None:
    """A camera that was away for an hour is not an hour of the same picture."""
    source, _ = pushed(capacity=40)
    source.feed(clip(4), at=[0, 1 / 16, 2 / 16, 3 / 16])
    source.feed(clip(4), at=[3600 + i / 16 for i in range(4)])
    listener = Listener(source)
    assert [listener.numbers() for _ in range(2)] == [(0, 1, 2, 3), (4, 5, 6, 7)]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"fps": 0}, "fps: expected above 0"),
        ({"fps": float("nan")}, "fps: expected above 0"),
        ({"fps": "fast"}, "fps: expected above 0"),
        ({"fps": 16, "at": [0, 1]}, "expected at or fps, found both"),
        ({"at": [0]}, "expected 2 times in seconds"),
        ({"at": [1, 0]}, "expected times that rise, found 0 after 1"),
        ({"at": [0, float("inf")]}, "expected 2 times in seconds"),
    ],
)
def test_times_that_cannot_be_are_refused_in_one_line(told: dict[str, Any], message: str) -> None:
    source, _ = pushed()
    with pytest.raises(InputError, match=message) as caught:
        source.feed(clip(2), **told)
    assert "\n" not in str(caught.value)
    assert source.waiting()[1] == ()


def test_frames_of_any_size_are_scaled_to_cover() -> None:
    """Odd, upright, tiny: as a picture to start from."""
    source, _ = pushed(capacity=40)
    for size in ((33, 57), (480, 270), (1, 1), (1080, 1920)):
        frame = torch.full((*size, 3), 200, dtype=torch.uint8)
        source.feed(frame)
        source.feed(frame.numpy())
    frames, numbers = source.waiting()
    assert frames.shape == (8, 32, 32, 3)
    assert numbers == tuple(range(8))
    assert bool((frames == 200).all())


def test_patience_that_cannot_be_is_refused() -> None:
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="patience: expected seconds"):
            pushed(patience=value)


def test_frames_from_several_threads_are_all_there() -> None:
    source, _ = pushed(capacity=1000)
    feeders = [
        threading.Thread(target=lambda i=i: [source.feed(clip(1, seed=i)) for _ in range(20)])
        for i in range(4)
    ]
    for thread in feeders:
        thread.start()
    for thread in feeders:
        thread.join()
    assert source.waiting()[1] == tuple(range(80))
