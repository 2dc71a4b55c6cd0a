"""Tokens of latent frames, side by side or overlapping."""

import math

import pytest
import torch
from einops import rearrange

from models.causal_dit import CausalDiT, CausalDiTConfig
from models.context import BidirectionalContext
from models.patches import Patches
from models.rope import RotaryEmbedding3D
from streamgen.engine.geometry import LatentGeometry
from streamgen.engine.parallel.ulysses import slab_axis
from streamgen.errors import InputError
from tests.tiny_models import tiny_dit, tiny_latents

ALL = [Patches(1, 1), Patches(2, 2), Patches(2, 1), Patches(4, 2), Patches(4, 1)]


@pytest.mark.parametrize("patches", ALL, ids=str)
def test_patches_tell_the_cells_that_they_were_cut_from(patches: Patches) -> None:
    latents = torch.randn(2, 3, 5, 8, 12, generator=torch.Generator().manual_seed(0))
    grid, p = patches.grid(8, 12), patches.size
    tokens = patches.cut(latents)
    assert tokens.shape == (2, 3, math.prod(grid), 5 * p * p)
    assert patches.cells(grid) == (8, 12)
    row, column = grid[0] - 1, 1
    first = latents[1, 2, :, row * patches.stride :, column * patches.stride :][:, :p, :p]
    assert torch.equal(tokens[1, 2, row * grid[1] + column], first.flatten())
    places = patches.places(grid)
    assert torch.equal(tokens.unflatten(3, (5, -1)), latents.flatten(3)[..., places].transpose(2, 3))
    # cells that several patches have are told alike by all of them
    told = rearrange(tokens, "b t n (c p q) -> b t n (p q c)", p=p, q=p)
    torch.testing.assert_close(patches.joined(told, grid), latents)


def test_where_patches_overlap_their_mean_counts() -> None:
    patches = Patches(2, 1)
    told = torch.tensor([1.0, 4.0])[None, None, :, None].expand(1, 1, 2, 4)
    assert patches.joined(told, (1, 2))[0, 0, 0].tolist() == [[1.0, 2.5, 4.0], [1.0, 2.5, 4.0]]


def test_a_whole_patch_further_is_as_far_as_without_overlap() -> None:
    """So what a network has learned of distances stays true of tokens that lie closer."""
    times = torch.tensor([3])
    close = RotaryEmbedding3D(12, spacing=Patches(2, 1).spacing).tables(times, 5, 7)
    far = RotaryEmbedding3D(12).tables(times, 3, 4)
    for found, expected in ((close.cos, far.cos), (close.sin, far.sin)):
        assert torch.equal(found.view(5, 7, -1)[::2, ::2].flatten(0, 1), expected)


def test_a_frame_of_one_patch_is_as_without_overlap() -> None:
    plain, close = tiny_dit(), tiny_dit(patch_stride=1)
    latents = tiny_latents(2)[..., :2, :2]
    levels, text = torch.full((1, 2), 500.0), torch.randn(1, 1, 3, 8, generator=torch.manual_seed(0))

    def made(dit: CausalDiT) -> torch.Tensor:
        context = BidirectionalContext(dit.rope, 2, dit.token_grid(latents), latents.device)
        with torch.no_grad():
            velocity: torch.Tensor = dit(latents, levels, dit.embed_text(text), context)
        return velocity

    assert torch.equal(made(plain), made(close))


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"patch_stride.*divides the patch \(4\), found 3"):
        CausalDiTConfig(dim=24, layers=1, heads=2, ffn_dim=8, patch=4, patch_stride=3)
    with pytest.raises(ValueError, match="multiples of 1 from 2 on"):
        tiny_dit(patch_stride=1).token_grid(torch.zeros(1, 1, 4, 1, 3))
    assert LatentGeometry(40, 24, patch_stride=1).token_grid == (4, 2)
    with pytest.raises(ValueError, match="multiple of 8 pixels from 16 on, found 8x64"):
        LatentGeometry(8, 64, patch_stride=1)
    with pytest.raises(ValueError, match="multiple of 16 pixels, found 40x64"):
        LatentGeometry(40, 64)
    with pytest.raises(InputError, match="2 processes: expected a model whose patches do not overlap"):
        slab_axis(tiny_dit(patch_stride=1).config, (4, 4), 2)
