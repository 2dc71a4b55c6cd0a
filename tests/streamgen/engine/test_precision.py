"""Streams on devices that have no float64: it is forbidden here, but for what the host computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from models import precision
from models.causal_dit import timestep_embedding
from models.motion_encoder import id_embedding
from models.rope import RotaryEmbedding3D
from streamgen import Pipeline, StreamEvent, load_pipeline
from streamgen.motion.tracks import pins
from streamgen.wan.options import WanOptions
from tests.streams import BLUE, RED
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs
from tests.tiny_wan import SMALL


class NoFloat64(TorchDispatchMode):
    """A device without float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            assert not (isinstance(x, Tensor) and x.dtype == torch.float64), f"float64 by {func}"
        return out


def on_host(compute: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    with _disable_current_modes():
        return compute(values.cpu()).float()


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU as such a device; what the host computes is not seen."""
    monkeypatch.setattr(precision, "WITHOUT_FLOAT64", ("mps", "cpu"))
    monkeypatch.setattr(precision, "_on_host", on_host)


def tiny(folder: Path) -> Pipeline:
    return load_pipeline(write_checkpoint(folder, steps=1))


def wan(folder: Path) -> Pipeline:
    return load_pipeline("wan-1.3b-longlive", "cpu", wan=WanOptions(random_weights=True, overrides=SMALL))


@pytest.mark.usefixtures("forbidden")
@pytest.mark.parametrize("load", [tiny, wan])
def test_streams_use_none(
    load: Callable[[Path], Pipeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load(tmp_path)
    moved = pipeline.motion_encoder is not None

    def check() -> None:
        session = pipeline.open(RED, 1)
        tracks = pins([(0.5, 0.5)], 40) if moved else None
        with NoFloat64():
            for _ in range(3):
                next(session)
            session.submit(StreamEvent(prompt=BLUE, motion=tracks))
            for _ in range(3):
                next(session)
            fork = session.fork()
            next(fork)

    assert_needs(check, monkeypatch, precision, "WITHOUT_FLOAT64", ("mps",))


def test_numbers_are_those_of_float64(forbidden: None, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, steps, ids = torch.tensor([0, 7, 3_000_000]), torch.tensor([0.0, 833.25, 1000.0]), torch.arange(9)
    rope = RotaryEmbedding3D(24)
    found = [*vars(rope.tables(frames, 3, 4)).values(), timestep_embedding(steps, 16), id_embedding(ids, 8)]
    monkeypatch.setattr(precision, "WITHOUT_FLOAT64", ())
    plain = [*vars(rope.tables(frames, 3, 4)).values(), timestep_embedding(steps, 16), id_embedding(ids, 8)]
    assert all(torch.equal(a, b.float()) for a, b in zip(found, plain, strict=True))
