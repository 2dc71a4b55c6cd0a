"""What a rehearsal has gone through: every shape that streams ask a device for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.context import ChunkPlan
from streamgen import Pipeline, StreamEvent, load_pipeline, rehearsal
from streamgen.motion.tracks import drag
from streamgen.rehearsal import rehearse
from tests.streams import BLUE, RED
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs

PLANNED = ("attention", "convolution", "addmm", "bmm")


class Shapes(TorchDispatchMode):
    """Shapes of what libraries plan for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, tuple[tuple[int, ...], ...]]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in PLANNED):
            tensors = (x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor))
            self.seen.add((str(func), tuple(tuple(x.shape) for x in tensors)))
        return func(*args, **(kwargs or {}))


def watched(pipeline: Pipeline, chunks: int, image: Tensor | None = None) -> Shapes:
    """A stream over switches, drags, a scene and step counts."""
    with Shapes() as shapes:
        session = pipeline.open(RED, 1, image=image)
        for chunk in range(chunks):
            if chunk % 4 == 3:
                session.submit(StreamEvent(prompt=(RED, BLUE)[chunk // 4 % 2]))
            if chunk % 5 == 2:
                session.submit(StreamEvent(motion=drag((0.2, 0.2), (0.7, 0.7), 8), settings={"steps": 1}))
            if chunk == 6:
                session.submit(StreamEvent(cache="clear"))
            next(session)
    return shapes


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["chunks", "joint"])
def test_streams_ask_for_no_other_shape(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = load_pipeline(write_checkpoint(tmp_path / "model", ChunkPlan(1, 1, 1, 3)), runner="plain").parts

    def loaded() -> Pipeline:
        """With no words that were read before."""
        pipeline = Pipeline(parts, "plain")
        pipeline.settings = pipeline.settings.updated({"recache_mode": mode})
        return pipeline

    pipeline = loaded()
    played = watched(pipeline, 11).seen
    started = watched(pipeline, 2, torch.full((32, 32, 3), 90, dtype=torch.uint8)).seen

    def check() -> None:
        with Shapes() as rehearsed:
            rehearse(loaded())
        assert played | started <= rehearsed.seen

    if mode == "chunks":
        check()
        return
    # the window is not filled
    assert_needs(check, monkeypatch, rehearsal, "_BEYOND", -1)
    for part in ("_played", "_changed", "_from_picture"):
        assert_needs(check, monkeypatch, rehearsal, part, lambda pipeline, chunks=0: None)


def test_it_is_told_how_far_it_is(tmp_path: Path) -> None:
    pipeline = load_pipeline(write_checkpoint(tmp_path / "model"), runner="plain")
    told: list[float] = []
    rehearse(pipeline, lambda text, share: told.append(share or 0.0))
    assert told[0] == 0.0
    assert told == sorted(told)
    assert len(told) == 3
