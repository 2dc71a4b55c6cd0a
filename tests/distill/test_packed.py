"""Teacher forcing over whole clips: the same numbers and gradients as the masked form, for less."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import distill.packed
from distill.packed import PackedContext
from distill.scenes.turnings import turning_latents
from models.context import ChunkPlan, MaskedContext, SequenceFrame
from models.rope import RotaryEmbedding3D
from tests.tiny_models import assert_needs

GRID, CPU = (2, 3), torch.device("cpu")


@pytest.mark.parametrize("plan", [ChunkPlan(1, 1, 1, 4), ChunkPlan(1, 1, 0, 3), ChunkPlan(1, 1, 2, 3)])
@pytest.mark.parametrize(("seen", "targets"), [(12, 12), (9, 4), (3, 3), (1, 1)])
def test_packed_equals_masked(
    plan: ChunkPlan, seen: int, targets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Across sinks that have left the window, values and gradients of queries, keys and values."""
    torch.manual_seed(0)
    rope = RotaryEmbedding3D(24)
    tokens = (seen + targets) * GRID[0] * GRID[1]
    q, k, v, weights = torch.randn(4, 2, tokens, 2, 24)
    frames = [SequenceFrame(i, target=False) for i in range(seen)]
    frames += [SequenceFrame(i, context=False) for i in range(seen - targets, seen)]

    def both(attend: Callable[[int, Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attend(0, *inputs)
        return [out, *torch.autograd.grad((out * weights).sum(), inputs)]

    def check() -> None:
        expected = both(MaskedContext(rope, frames, plan, GRID, CPU).attend)
        found = both(PackedContext(rope, seen, targets, plan, GRID, CPU).attend)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)

    if plan.sink_frames and seen > plan.context_frames:
        # the sink at its own time, not right before the window of who reads it
        def unmoved(self: PackedContext, k: Tensor) -> Tensor:
            own = k[:, : self.sink * self.tokens].transpose(1, 2)[:, :, None]
            return own.expand(-1, -1, self.seen, -1, -1)

        assert_needs(check, monkeypatch, distill.packed.PackedContext, "_sink_keys", unmoved)
    else:
        check()


@pytest.mark.parametrize("plan", [ChunkPlan(1, 1, 1, 4), ChunkPlan(1, 1, 0, 3)])
@pytest.mark.parametrize(("seen", "targets"), [(12, 12), (9, 4), (3, 3), (2, 1)])
def test_copies_see_what_one_alone_sees(
    plan: ChunkPlan, seen: int, targets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committed frames and themselves, none of the other copies: each equals a pass of its own, and what
    was committed does not know of them.
    """
    torch.manual_seed(0)
    rope, tokens = RotaryEmbedding3D(24), GRID[0] * GRID[1]
    past, first, second = (torch.randn(3, 2, n * tokens, 2, 24) for n in (seen, targets, targets))

    def check() -> None:
        both = PackedContext(rope, seen, targets, plan, GRID, CPU, copies=2)
        found = both.attend(0, *torch.cat([past, first, second], 2))
        alone = PackedContext(rope, seen, targets, plan, GRID, CPU)
        one, other = (alone.attend(0, *torch.cat([past, own], 2)) for own in (first, second))
        expected = torch.cat([one, other[:, seen * tokens :]], 1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    plain = distill.packed.PackedContext.__init__

    def misplaced(self: PackedContext, *args: Any, **options: Any) -> None:
        # further copies as if they began with the clip
        plain(self, *args, **options)
        first = slice(0, targets)
        self.groups = [*self.groups[:2], *((frames, first) for frames, _ in self.groups[2:])]

    if targets < seen:
        assert_needs(check, monkeypatch, distill.packed.PackedContext, "__init__", misplaced)
    else:
        check()


def paths(*ways: Tensor) -> Tensor:
    """Centres `(1, O, 81, 2)` of paths, wrapped into the picture."""
    return torch.stack(ways)[None] % 1.0


def test_turnings_are_where_headings_change() -> None:
    """Not on straight ways, nor where these wrap around; at a wall, at both corners of a zigzag, all along
    a circle; never at rest.
    """
    time = torch.arange(81.0)
    straight = torch.stack([0.9 + 0.01 * time, 0.5 + 0 * time], -1)
    wall = torch.stack([0.3 + 0.01 * (time - 30).abs(), 0.5 + 0 * time], -1)
    corner = torch.stack([0.01 * time, 0.01 * ((time - 22).abs() - (time - 42).abs())], -1)
    angle = 0.2 * time
    circle = torch.stack([0.5 + 0.15 * angle.cos(), 0.5 + 0.15 * angle.sin()], -1)
    rest = torch.full((81, 2), 0.5)
    centres = paths(straight, wall, corner, circle, rest)
    free = torch.ones(1, 5, 81, dtype=torch.bool)
    turning = turning_latents(centres, free)[0]
    assert not turning[0].any()
    # pixel frame 30 lies in latent frame 8 (29 to 32)
    assert turning[1].nonzero().flatten().tolist() == [8, 9] or turning[1].nonzero().flatten().tolist() == [8]
    assert set(turning[2].nonzero().flatten().tolist()) <= {6, 7, 11, 12}
    assert turning[2].sum() >= 2
    assert turning[3, 2:].all()
    assert not turning[4].any()
    # what is dragged or carried does not turn by itself
    free[:, :, 25:40] = False
    assert not turning_latents(centres, free)[0, 1].any()
