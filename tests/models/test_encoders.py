"""Text encoder and vocabulary; track scattering and its frame mapping."""

import pytest
import torch
from torch import Tensor

import models.motion_encoder
from models.motion_encoder import (
    OCCLUDED,
    UNSPECIFIED,
    VISIBLE,
    MotionEncoder,
    MotionEncoderConfig,
    Tracks,
    splat_weights,
)
from models.text_encoder import PAD, UNKNOWN, TextEncoder, TextEncoderConfig, Vocabulary
from tests.tiny_models import assert_needs, randomize

GRID = (4, 6)


def encoder(**sizes: object) -> MotionEncoder:
    module = MotionEncoder(MotionEncoderConfig(channels=5, id_dim=8, hidden=7, **sizes))  # type: ignore[arg-type]
    randomize(module)
    return module


def tracks(points: Tensor, state: int = VISIBLE, pinned: bool = False) -> Tracks:
    """`(N, T, 2)` points of one clip."""
    n, t = points.shape[:2]
    return Tracks(
        points[None], torch.full((1, n, t), state), torch.full((1, n), pinned), torch.arange(n)[None]
    )


def test_words_padding_unknown_and_overlong() -> None:
    vocabulary = Vocabulary(["a", "red", "circle"])
    words = vocabulary.encode("A red, RED zebra! circle zebra", 8)
    assert words.ids.tolist() == [2, 3, 3, UNKNOWN, 4, UNKNOWN, PAD, PAD]
    assert (words.unknown, words.dropped) == (("zebra",), 0)
    assert vocabulary.encode("a red circle", 2).dropped == 1
    assert vocabulary.encode("日本語 🙂", 4).unknown == ("日本語", "🙂")
    assert vocabulary.encode('a red, (circle) - "x"!', 8).unknown == ("x",), "punctuation says nothing"
    assert vocabulary.encode("a ★red circle ☃☃", 8).unknown == ("★", "☃☃")
    assert vocabulary.encode("...", 4).unknown == ("...",), "nothing but punctuation is nothing"
    assert vocabulary.encode("", 4).unknown == ()
    with pytest.raises(ValueError, match="repeated words"):
        Vocabulary(["a", "a"])


def test_text_rows_past_the_end_are_zero_and_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    text = TextEncoder(TextEncoderConfig(vocabulary=12, dim=8, layers=2, heads=2, length=6))
    randomize(text)
    ids = torch.tensor([[3, 4, 5, 0, 0, 0]])

    def check() -> None:
        with torch.no_grad():
            out, short, none = text(ids), text(ids[:, :4]), text(torch.zeros_like(ids))
        assert float(out[:, 3:].abs().max()) == 0.0
        assert (out[:, :4] - short).abs().max() < 1e-6
        assert float(none.abs().max()) == 0.0

    import models.text_encoder

    original = models.text_encoder.attend
    assert_needs(check, monkeypatch, models.text_encoder, "attend", lambda q, k, v, mask: original(q, k, v))


def test_text_is_read_in_order() -> None:
    text = TextEncoder(TextEncoderConfig(vocabulary=12, dim=8, layers=1, heads=2, length=3))
    randomize(text)
    with torch.no_grad():
        one, other = text(torch.tensor([[3, 4, 5], [4, 3, 5]]))
    assert (one[2] - other[2]).abs().max() > 1e-4


def test_null_motion_is_exactly_zero() -> None:
    module = encoder()
    empty = Tracks(
        torch.zeros(1, 0, 5, 2), torch.zeros(1, 0, 5), torch.zeros(1, 0).bool(), torch.zeros(1, 0).long()
    )
    unspecified = tracks(torch.rand(3, 5, 2), UNSPECIFIED)
    for absent in (empty, unspecified):
        out = module(absent, GRID, first=True)
        assert out.shape == (1, 2, 5, *GRID)
        assert float(out.detach().abs().max()) == 0.0


def test_nearest_scatter_writes_one_cell_and_sums_two_tracks() -> None:
    module = encoder(splat="nearest")
    points = torch.tensor([[0.95, 0.05], [0.99, 0.2]])[:, None]
    with torch.no_grad():
        both = module(tracks(points), GRID, first=True)[0, 0]
        alone = [
            module(Tracks(*(x[:, i : i + 1] for x in vars(tracks(points)).values())), GRID, first=True)[0, 0]
            for i in (0, 1)
        ]
    assert set(map(tuple, both.abs().sum(0).nonzero().tolist())) == {(0, 5)}
    assert (both - alone[0] - alone[1]).abs().max() < 1e-5


def test_bilinear_weights_are_exact_and_clamped() -> None:
    """A point between cell centres is shared in proportion; cell centres are at (i + 0.5) / size."""
    cells, weights = splat_weights(torch.tensor([2.0 / 6, 1.75 / 4]), GRID, "bilinear")
    share = torch.zeros(24).index_add(0, cells, weights).view(GRID)
    assert share[1, 1:3].tolist() == pytest.approx([0.375, 0.375])
    assert share[2 - 1 + 0, 1] == pytest.approx(0.375)
    assert float(share.sum()) == pytest.approx(1.0)
    corner, weights = splat_weights(torch.tensor([0.0, 1.0]), GRID, "bilinear")
    assert float(torch.zeros(24).index_add(0, corner, weights).view(GRID)[3, 0]) == pytest.approx(1.0)


def test_bilinear_moves_with_the_point_inside_a_cell() -> None:
    bilinear, nearest = encoder(), encoder(splat="nearest")
    near, far = tracks(torch.tensor([[[0.42, 0.4]]])), tracks(torch.tensor([[[0.47, 0.4]]]))
    with torch.no_grad():
        assert (bilinear(near, GRID, True) - bilinear(far, GRID, True)).abs().max() > 1e-3
        assert torch.equal(nearest(near, GRID, True), nearest(far, GRID, True))


def test_frame_mapping_is_the_tokenizers_and_causal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixel frame 0 is latent frame 0, then four to one; a changed frame changes its latent frame only."""
    module = encoder()
    base = torch.rand(2, 9, 2, generator=torch.Generator().manual_seed(0))

    def check() -> None:
        with torch.no_grad():
            before = module(tracks(base), GRID, first=True)
            for frame in range(9):
                moved = base.clone()
                moved[:, frame] = 1 - moved[:, frame]
                changed = (module(tracks(moved), GRID, first=True) - before).abs().amax((0, 2, 3, 4)) > 0
                assert changed.nonzero().flatten().tolist() == [0 if frame == 0 else 1 + (frame - 1) // 4]

    def everywhere(points, grid, splat):
        return splat_weights(points.mean(2, keepdim=True).expand_as(points), grid, splat)

    assert_needs(check, monkeypatch, models.motion_encoder, "splat_weights", everywhere)


def test_chunks_equal_the_whole() -> None:
    module, points = encoder(), torch.rand(3, 13, 2)
    with torch.no_grad():
        whole = module(tracks(points), GRID, first=True)
        pieces = [module(tracks(points[:, :1]), GRID, first=True)]
        pieces += [module(tracks(points[:, i : i + 4]), GRID, first=False) for i in (1, 5, 9)]
    assert (whole - torch.cat(pieces, 1)).abs().max() < 1e-6
    with pytest.raises(ValueError, match="4k pixel frames"):
        module(tracks(points[:, :3]), GRID, first=False)


def test_occluded_unspecified_and_pinned_differ() -> None:
    module, points = encoder(), torch.full((1, 1, 2), 0.4)
    with torch.no_grad():
        outs = [
            module(tracks(points, s, p), GRID, True)
            for s, p in ((VISIBLE, False), (VISIBLE, True), (OCCLUDED, False), (UNSPECIFIED, True))
        ]
    for i, a in enumerate(outs):
        for b in outs[:i]:
            assert (a - b).abs().max() > 1e-4


def test_identity_of_tracks_is_carried() -> None:
    """Two tracks that swap places give another picture of the motion: ids matter."""
    module = encoder()
    points = torch.tensor([[[0.2, 0.2]], [[0.8, 0.8]]])
    with torch.no_grad():
        assert (
            module(tracks(points), GRID, True) - module(tracks(points.flip(0)), GRID, True)
        ).abs().max() > 1e-3
