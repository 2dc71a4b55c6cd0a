"""What the tests of training have in common."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import distill.scenes.backgrounds
import distill.scenes.generator
import distill.scenes.render


@pytest.fixture(autouse=True, scope="module")
def _no_plots() -> Iterator[None]:
    """A run ends with a picture of every metric, which takes longer than its updates do here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.tracking.write_plots", lambda *_: [])
        yield


def once_each(make: Callable[..., Any]) -> Callable[..., Any]:
    """What it makes, shared by all who ask for the same: by all that their configs say."""
    made: dict[str, Any] = {}

    @functools.wraps(make)
    def shared(*given: object) -> Any:
        if (key := repr(given)) not in made:
            if len(made) >= 12:
                made.pop(next(iter(made)))
            made[key] = make(*given)
        return made[key]

    return shared


TEXTURES, SPRITES, TABLE = (
    once_each(make)
    for make in (
        distill.scenes.backgrounds.build_textures,
        distill.scenes.render.build_sprites,
        distill.scenes.render.DistanceTable,
    )
)


@pytest.fixture(autouse=True, scope="module")
def _one_box_of_paint(request: pytest.FixtureRequest) -> Iterator[None]:
    """Textures and sprites, which are only read, are made once and not for each of hundreds of generators:
    150 ms of a small world. Those who test them have their own.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not request.module.__name__.rpartition(".")[2].startswith("test_scenes"):
            patch.setattr(distill.scenes.backgrounds, "build_textures", TEXTURES)
            patch.setattr(distill.scenes.render, "build_sprites", SPRITES)
            for module in (distill.scenes.render, distill.scenes.generator):
                patch.setattr(module, "DistanceTable", TABLE)
        yield
