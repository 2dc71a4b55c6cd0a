"""The evaluation's instruments are right on the truth, and each measure fails where it must."""

import dataclasses

import pytest
import torch

from distill.evaluation.measures import (
    Instruments,
    View,
    background_psnr,
    count_objects,
    drag_error,
    drift_points,
    mean_of,
    released,
    switch_result,
)
from distill.evaluation.streams import Video
from distill.evaluation.truth import Truth
from distill.scenes import MOTIONS, SceneConfig
from tests.quick_instruments import quick_instruments

SIZE = 64


@pytest.fixture(scope="module", params=["quick", pytest.param("full", marks=pytest.mark.slow)])
def training(request: pytest.FixtureRequest) -> str:
    """`full` is what evaluations work with."""
    return str(request.param)


@pytest.fixture(scope="module")
def instruments(training: str) -> Instruments:
    return quick_instruments(SIZE) if training == "quick" else Instruments(SceneConfig(size=SIZE))


@pytest.fixture(scope="module")
def truth(training: str) -> Truth:
    return Truth(SIZE, 12 if training == "quick" else 24, range(len(MOTIONS)), seed=5)


@pytest.fixture(scope="module")
def plain(instruments: Instruments, truth: Truth) -> list[View]:
    return [instruments.view(video) for video in truth.plain(65)]


@pytest.fixture(scope="module")
def switched(truth: Truth) -> list[Video]:
    return truth.switches()


@pytest.fixture(scope="module")
def dragged(instruments: Instruments, truth: Truth) -> list[View]:
    return [instruments.view(video) for video in truth.drags()]


def test_clips_of_the_world_show_what_they_say(instruments: Instruments, plain: list[View]) -> None:
    found = mean_of(instruments.attributes(view, view.video.spec.subjects[0]) for view in plain)
    assert min(found.values()) >= 0.95, found


def test_clips_do_not_show_what_others_say(instruments: Instruments, plain: list[View]) -> None:
    """At random an attribute agrees in one of six to eight clips."""
    others = plain[1:] + plain[:1]
    found = mean_of(
        instruments.attributes(view, other.video.spec.subjects[0])
        for view, other in zip(plain, others, strict=True)
    )
    assert max(found.values()) < 0.5, found


def test_there_is_one_object_where_there_is_one(plain: list[View]) -> None:
    counts = torch.cat([count_objects(view.reading) for view in plain])
    assert float((counts == 1).float().mean()) > 0.97


def test_two_objects_are_counted_as_two(instruments: Instruments, plain: list[View]) -> None:
    """A clip beside itself: objects that cross the border are one on the torus, and here twice one."""
    video = plain[0].video
    double = torch.cat([video.frames, video.frames], 2)
    reading = instruments.frames(double)
    assert set(count_objects(reading).tolist()) <= {1, 2, 3}
    assert float(count_objects(reading).float().mean()) >= 1.5


def test_true_drags_are_followed_and_others_are_not(dragged: list[View]) -> None:
    assert sum(map(drag_error, dragged)) / len(dragged) < 0.03
    others = [
        dataclasses.replace(view, video=dataclasses.replace(view.video, path=other.video.path))
        for view, other in zip(dragged, dragged[1:] + dragged[:1], strict=True)
    ]
    assert sum(map(drag_error, others)) / len(others) > 0.15


def test_after_a_drag_objects_go_their_own_way(instruments: Instruments, dragged: list[View]) -> None:
    assert sum(released(instruments, view) for view in dragged) / len(dragged) >= 0.9


def test_true_switches_succeed_and_keep_the_rest(instruments: Instruments, switched: list[Video]) -> None:
    results = [switch_result(instruments, instruments.view(video)) for video in switched]
    assert {result.kind for result in results} == {"colour", "shape", "background", "motion"}
    assert sum(result.success for result in results) / len(results) >= 0.95
    assert sum(result.kept for result in results) / len(results) >= 0.9
    assert max(result.seconds for result in results if result.seconds == result.seconds) < 0.5


def test_a_stream_that_begins_anew_keeps_nothing(instruments: Instruments, switched: list[Video]) -> None:
    """What `clear` does: from the switch on the frames are those of another time of the clip, elsewhere."""
    results = []
    for video in switched:
        turned = video.frames.clone()
        turned[video.event :] = turned[video.event :].roll((23, 31), (1, 2))
        view = instruments.view(dataclasses.replace(video, frames=turned))
        results.append(switch_result(instruments, view))
    assert sum(result.success for result in results) / len(results) >= 0.8
    assert sum(result.kept for result in results) / len(results) <= 0.1


def test_a_stream_that_does_not_switch_fails(instruments: Instruments, switched: list[Video]) -> None:
    for video in switched:
        assert video.spec.switch is not None
        if video.spec.switch.kind == "motion":
            continue
        still = video.frames[: video.event].repeat(2, 1, 1, 1)
        result = switch_result(instruments, instruments.view(dataclasses.replace(video, frames=still)))
        assert not result.success


def test_a_background_that_changes_loses_likeness(instruments: Instruments, plain: list[View]) -> None:
    view = plain[0]
    assert background_psnr(view, 20, 21) > 25
    other = next(
        v for v in plain if v.video.spec.subjects[0].background != view.video.spec.subjects[0].background
    )
    mixed = torch.stack([view.video.frames[20], other.video.frames[20]])
    video = dataclasses.replace(view.video, frames=mixed)
    assert background_psnr(View(video, instruments.frames(mixed)), 0, 1) < 20


def test_drift_is_seen(instruments: Instruments, plain: list[View]) -> None:
    """A clip that grows dark, blurred and empty, stretch by stretch."""
    frames = torch.cat([view.video.frames[:64] for view in plain[:1]] * 3)
    frames[64:128] = frames[64:128] // 2
    frames[128:] = frames[128:].float().mean((1, 2), keepdim=True).to(torch.uint8)
    video = dataclasses.replace(plain[0].video, frames=frames)
    first, dark, empty = drift_points(instruments, instruments.view(video))
    assert first.accuracy > 0.9
    assert sum(dark.mean_color) < 0.6 * sum(first.mean_color)
    assert empty.sharpness < 0.1 * first.sharpness
    assert empty.accuracy < first.accuracy
    assert first.objects > 0.9
    assert empty.objects < 0.5
