"""Nothing inside a step is copied between host and device, or waits for a copy: an audit on the meta device,
where every operation is seen and none is computed.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import streamgen.engine.guidance
from models.causal_dit import CausalDiT, TextContext
from models.context import ChunkPlan
from models.kv_cache import CacheCursor, CacheRing, CacheShape, CacheView
from models.motion_encoder import MotionEncoder, MotionEncoderConfig, Tracks
from models.rope import RotaryEmbedding3D
from streamgen.engine.guidance import Conditioning, Guidance, guided_velocity
from streamgen.engine.program.chunk import ProgramContext
from streamgen.engine.program.compiled import ProgramRunner
from streamgen.engine.runner import CommitTask, PlainRunner
from tests.tiny_models import GRID, assert_needs, tiny_dit

META = torch.device("meta")
MAKERS = ("tensor", "as_tensor", "from_numpy", "asarray")


class Calls(TorchFunctionMode):
    """Counts tensors that are made of numbers of the host for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in MAKERS and torch.device(kwargs.get("device") or "cpu").type != "cpu":
            self.found.append(name)
        return func(*args, **kwargs)


class Operations(TorchDispatchMode):
    """Counts operations whose inputs and outputs lie on different devices, and values that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        devices = {
            x.device.type for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor) and x.dim()
        }
        if len(devices) > 1 or "local_scalar" in str(func):
            self.found.append(str(func))
        return out


def transfers(work: Callable[[], object]) -> list[str]:
    with Calls() as calls, Operations() as operations:
        work()
    return calls.found + operations.found


@pytest.mark.parametrize("guidance", [True, False])
def test_a_step_copies_nothing(guidance: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    dit = tiny_dit(guidance=guidance).to(META)
    ring = meta_ring(dit)
    cursor = CacheCursor(frames=7)
    ring.view(CacheCursor(), 2)
    x = torch.empty(1, 2, 4, GRID[0] * 2, GRID[1] * 2, device=META)
    motion = torch.empty(1, 2, 3, GRID[0] * 2, GRID[1] * 2, device=META)
    text: TextContext = dit.embed_text(torch.empty(1, 5, 8, device=META))
    conditioning = Conditioning(text, text, motion, Guidance(2.0, 4.0))
    encoder = MotionEncoder(MotionEncoderConfig(channels=3, id_dim=8, hidden=4)).to(META)
    tracks = Tracks(
        torch.empty(1, 2, 8, 2, device=META),
        torch.empty(1, 2, 8, dtype=torch.uint8, device=META),
        torch.empty(1, 2, dtype=torch.bool, device=META),
        torch.empty(1, 2, dtype=torch.long, device=META),
    )

    @torch.no_grad()
    def step() -> None:
        encoder(tracks, (GRID[0] * 2, GRID[1] * 2), first=False)
        guided_velocity(dit, x, 0.5, conditioning, ring.view(cursor, 2))
        PlainRunner(dit).commit(CommitTask(ring, cursor, x, (50.0, 50.0), text, motion))

    def check() -> None:
        assert transfers(step) == []

    def copied(self: RotaryEmbedding3D, frames: Tensor, height: int, width: int) -> Any:
        self._placed.clear()
        return written(self, frames, height, width)

    def listed(*args: Any) -> Tensor:
        torch.tensor([2.0, 4.0], device=META)
        return asked(*args)

    written, asked = RotaryEmbedding3D.tables, streamgen.engine.guidance._predict
    step()
    assert_needs(check, monkeypatch, RotaryEmbedding3D, "tables", copied)
    assert_needs(check, monkeypatch, streamgen.engine.guidance, "_predict", listed)


def test_a_program_copies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does what a chunk brings into its buffers: places and mask are counted where they lie."""
    dit = tiny_dit(guidance=True).to(META)
    ring, runner = meta_ring(dit), ProgramRunner(dit, None, lambda function: function)
    ring.view(CacheCursor(), 2)
    x = torch.empty(1, 2, 4, GRID[0] * 2, GRID[1] * 2, device=META)
    text: TextContext = dit.embed_text(torch.empty(1, 5, 8, device=META))
    tasks = [CommitTask(ring, CacheCursor(frames=n), x, (50.0, 50.0), text, None) for n in (3, 7, 9)]

    def check() -> None:
        assert transfers(lambda: [runner.commit(task) for task in tasks]) == []

    def listed(self: ProgramRunner, view: CacheView) -> ProgramContext:
        torch.tensor([0, 1], device=META)
        return written(self, view)

    written = ProgramRunner._context
    check()
    assert_needs(check, monkeypatch, ProgramRunner, "_context", listed)


def meta_ring(dit: CausalDiT) -> CacheRing:
    shape = CacheShape(dit.config.layers, dit.config.heads, dit.config.head_dim, GRID)
    return CacheRing(shape, ChunkPlan(2, 1, 1, 4), dit.rope, META)
