"""Draws: functions of seed and place alone, whether they are made ahead or not."""

import threading

import pytest
import torch
from torch import Tensor

from streamgen.engine.noise import SeededNoise
from tests.tiny_models import assert_needs
from tests.waiting import PATIENCE

CPU = torch.device("cpu")
SHAPE = (1, 2, 4, 6, 8)


def drawn(noise: SeededNoise, chunks: list[int], shape: tuple[int, ...] = SHAPE) -> list[Tensor]:
    return [
        x
        for chunk in chunks
        for x in (
            noise.initial(chunk, shape),
            noise.renoise(chunk, 0, shape),
            noise.renoise(chunk, 1, shape),
            noise.commit(chunk, shape),
        )
    ]


@pytest.mark.parametrize("chunks", [[0, 1, 2, 3], [5, 6, 2, 3, 3, 9], [0, 0, 0]])
def test_draws_made_ahead_are_the_same(chunks: list[int]) -> None:
    """Also after a restore, which goes back, and for chunks of another length."""
    alone, ahead = SeededNoise(7, CPU, ahead=False), SeededNoise(7, CPU, ahead=True)
    for shape in (SHAPE, (1, 1, *SHAPE[2:])):
        expected = drawn(alone, chunks, shape)
        assert all(torch.equal(*pair) for pair in zip(drawn(ahead, chunks, shape), expected, strict=True))
    assert alone.identity == ahead.identity
    assert len({float(x.flatten()[0]) for x in drawn(alone, [0, 1])}) == 8


def test_the_next_chunks_draws_are_made_while_this_one_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    written = SeededNoise._numbers

    def check() -> None:
        made: dict[str, str] = {}

        def told(self: SeededNoise, place: str, chunk: int, shape: tuple[int, ...]) -> Tensor:
            made[place.format(chunk)] = threading.current_thread().name
            return written(self, place, chunk, shape)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(SeededNoise, "_numbers", told)
            noise = SeededNoise(7, CPU, ahead=True)
            drawn(noise, [0, 1, 2])
        here = {place for place, name in made.items() if not name.startswith("streamgen-noise")}
        assert here == {"initial|0", "renoise|0|0", "renoise|0|1", "commit|0"}

    def never(self: SeededNoise, place: str, chunk: int, shape: tuple[int, ...]) -> Tensor:
        return self._numbers(place, chunk, shape)

    assert_needs(check, monkeypatch, SeededNoise, "_draw", never)


def test_threads_get_the_same_draws() -> None:
    """A stream and its fork share their source."""
    noise, expected = SeededNoise(3, CPU, ahead=True), drawn(SeededNoise(3, CPU, ahead=False), [0, 1, 2, 3])
    found: list[list[Tensor]] = [[], []]

    def run(place: int) -> None:
        found[place] = drawn(noise, [0, 1, 2, 3])

    threads = [threading.Thread(target=run, args=(place,)) for place in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for made in found:
        assert all(torch.equal(*pair) for pair in zip(made, expected, strict=True))


@pytest.mark.gpu
def test_pictures_and_draws_cross_pinned_memory() -> None:
    """What goes to the device and back is what it was, and pictures that are kept stay as they are."""
    from streamgen.engine.decoder import to_uint8

    device = torch.device("cuda")
    here, there = SeededNoise(5, CPU), SeededNoise(5, device)
    for chunk in range(3):
        assert torch.equal(here.initial(chunk, SHAPE), there.initial(chunk, SHAPE).cpu())
    videos = [torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    kept = [to_uint8(video.to(device)) for video in videos]
    assert all(frames.is_pinned() for frames in kept)
    for video, frames in zip(videos, kept, strict=True):
        assert int((frames.int() - to_uint8(video).int()).abs().max()) <= 1
