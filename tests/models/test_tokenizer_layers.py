"""Attention layers of the video tokenizer: windows are local and do not wrap, temporal context is bounded.

Every invariant is a `check_...` function that also runs with its mechanism patched out, where it must fail.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from models import tokenizer_layers
from models.tokenizer_layers import TemporalAttention, WindowAttention
from models.video_tokenizer import VideoTokenizer, VideoTokenizerConfig


def randomised(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter a random value, those that start at zero too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def must_fail(check: Callable[[], None]) -> None:
    """The check notices that its mechanism is gone."""
    with pytest.raises(AssertionError):
        check()


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def check_context_is_bounded() -> None:
    """One temporal layer reaches back temporal_context - 1 latent frames and no further."""
    layer = TemporalAttention(16, 2, 3, qk_norm=True)
    randomised(layer)
    x = torch.randn(1, 8, 2, 2, 16, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 2] += 1.0
    same = [torch.equal(a, b) for a, b in zip(layer(x)[0], layer(changed)[0], strict=True)]
    assert same == [True, True, False, False, False, True, True, True]


def test_context_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    check_context_is_bounded()
    with monkeypatch.context() as patch:
        patch.setattr(
            tokenizer_layers, "band_mask", lambda n, m, *_: torch.ones(n, m, dtype=torch.bool).tril()
        )
        must_fail(check_context_is_bounded)


def window_oracle(layer: WindowAttention, x: Tensor) -> Tensor:
    """Attention of every cell over the whole grid, masked to the cells of its window."""
    height, width, dim = x.shape[2:]
    rows, columns = (
        i.flatten() for i in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )
    shifts = [layer.shift if cells > layer.window else 0 for cells in (height, width)]
    window_row, window_column = (rows - shifts[0]) // layer.window, (columns - shifts[1]) // layer.window
    same = (window_row[:, None] == window_row) & (window_column[:, None] == window_column)
    span = 2 * layer.window - 1
    offset = (rows[:, None] - rows + layer.window - 1) * span + columns[:, None] - columns + layer.window - 1
    bias = layer.relative_bias[torch.where(same, offset, 0)].permute(2, 0, 1)
    qkv = layer.qkv(layer.norm(x)).flatten(2, 3)
    q, k, v = (part.unflatten(-1, (layer.heads, -1)).transpose(2, 3) for part in qkv.chunk(3, -1))
    q, k = layer.query_norm(q), layer.key_norm(k)
    scores = q @ k.transpose(-2, -1) / (dim // layer.heads) ** 0.5 + bias
    y = scores.masked_fill(~same, float("-inf")).softmax(-1) @ v
    return x + layer.out(y.transpose(2, 3).flatten(3)).unflatten(2, (height, width))


def check_window_oracle() -> None:
    for grid in ((8, 8), (4, 6), (3, 5), (9, 4), (2, 2)):
        for shift in (0, 1, 2, 3):
            layer = WindowAttention(16, 2, 4, shift, qk_norm=shift == 1)
            randomised(layer)
            x = torch.randn(2, 3, *grid, 16, generator=torch.Generator().manual_seed(0))
            assert float((layer(x) - window_oracle(layer, x)).abs().max()) <= 1e-5


def test_window_attention_equals_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    check_window_oracle()
    monkeypatch.setattr(tokenizer_layers, "window_mask", lambda *_: None)
    must_fail(check_window_oracle)


def reached(layer: WindowAttention, row: int, column: int) -> set[tuple[int, int]]:
    """Cells of an 8x8 grid that one changed cell changes."""
    x = torch.randn(1, 1, 8, 8, 16, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, :, row, column] += 1.0
    difference = (layer(changed) - layer(x))[0, 0].abs().amax(-1)
    return {(int(r), int(c)) for r, c in difference.nonzero()}


def box(rows: range, columns: range) -> set[tuple[int, int]]:
    return {(r, c) for r in rows for c in columns}


def check_windows_are_local() -> None:
    model = VideoTokenizer(VideoTokenizerConfig(dim=16, heads=2, window=4, encoder_spatial=2))
    randomised(model)
    plain, shifted = (block.attention for block in model.encoder.spatial)
    assert isinstance(plain, WindowAttention)
    assert isinstance(shifted, WindowAttention)
    assert reached(plain, 0, 0) == box(range(4), range(4))
    assert reached(plain, 3, 5) == box(range(4), range(4, 8))
    assert reached(shifted, 3, 4) == box(range(2, 6), range(2, 6))
    assert reached(shifted, 0, 0) == box(range(2), range(2))
    assert reached(shifted, 7, 1) == box(range(6, 8), range(2))
    assert reached(shifted, 0, 3) == box(range(2), range(2, 6))


def test_windows_are_local(monkeypatch: pytest.MonkeyPatch) -> None:
    check_windows_are_local()
    init = WindowAttention.__init__

    def whole_grid(
        self: WindowAttention, dim: int, heads: int, window: int, shift: int, qk_norm: bool
    ) -> None:
        init(self, dim, heads, 8, shift, qk_norm)

    with monkeypatch.context() as patch:
        patch.setattr(WindowAttention, "__init__", whole_grid)
        must_fail(check_windows_are_local)
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer_layers, "window_mask", lambda *_: None)
        must_fail(check_windows_are_local)
