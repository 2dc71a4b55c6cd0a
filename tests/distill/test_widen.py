"""Wider networks that start as narrower ones do what those do."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import distill.widen
from distill.widen import fit_added_channels, widen_dit, widen_tokenizer
from models.causal_dit import CausalDiT, CausalDiTConfig
from models.context import BidirectionalContext
from models.tokenizer_pca import LinearCodec
from models.video_tokenizer import VideoTokenizer, VideoTokenizerConfig
from tests.tiny_models import assert_needs

TOKENIZER = VideoTokenizerConfig(
    dim=24, heads=1, encoder_spatial=1, decoder_spatial=1, refine_channels=4, latent_channels=6
)
DIT = CausalDiTConfig(dim=24, layers=2, heads=2, ffn_dim=16, latent_channels=6, motion_channels=3, text_dim=8)


def randomize(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def test_a_wider_tokenizer_starts_as_the_narrow_one() -> None:
    narrow = VideoTokenizer(TOKENIZER).eval()
    wide = VideoTokenizer(replace(TOKENIZER, latent_channels=9)).eval()
    randomize(narrow, 1)
    randomize(wide, 2)
    fresh = {name: value.clone() for name, value in wide.state_dict().items()}
    video = torch.randn(2, 9, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    wide.load_state_dict(widen_tokenizer(narrow.state_dict(), wide))
    with torch.no_grad():
        few, many = narrow.encode(video).mean, wide.encode(video).mean
        torch.testing.assert_close(many[:, :, :6], few)
        torch.testing.assert_close(wide.decode(many), narrow.decode(few))
    # what the added channels hold comes from the fresh tokenizer, not from nothing
    assert torch.equal(wide.encoder.skip.group.weight[6:], fresh["encoder.skip.group.weight"][6:])
    assert float(many[:, :, 6:].abs().mean()) > 1e-3


def test_a_wider_dit_starts_as_the_narrow_one() -> None:
    narrow, wide = CausalDiT(DIT).eval(), CausalDiT(replace(DIT, latent_channels=8)).eval()
    randomize(narrow, 1)
    randomize(wide, 2)
    wide.load_state_dict(widen_dit(narrow.state_dict(), wide))
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 3, 8, 4, 4, generator=generator)
    motion = torch.randn(2, 3, 3, 4, 4, generator=generator)
    text = torch.randn(2, 5, 8, generator=generator)
    timesteps = torch.tensor([[0.0, 300.0, 900.0]]).expand(2, -1)

    def velocity(dit: CausalDiT, x: Tensor) -> Tensor:
        context = BidirectionalContext(dit.rope, 3, (2, 2), torch.device("cpu"))
        result: Tensor = dit(x, timesteps, dit.embed_text(text), context, motion)
        return result

    with torch.no_grad():
        found = velocity(wide, latents)
        torch.testing.assert_close(found[:, :, :6], velocity(narrow, latents[:, :, :6]))
    assert not found[:, :, 6:].any()


def test_what_is_not_narrower_is_left_as_it_is() -> None:
    tokenizer, dit = VideoTokenizer(TOKENIZER), CausalDiT(DIT)
    for state, widen in (
        (tokenizer.state_dict(), lambda s: widen_tokenizer(s, tokenizer)),
        (dit.state_dict(), lambda s: widen_dit(s, dit)),
    ):
        assert all(value is state[name] for name, value in widen(state).items())
        del state[next(iter(state))]
        assert set(widen(state)) == set(state)


def test_added_channels_carry_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No linear map of that rank does better: the error falls by the variance of its largest components."""
    narrow = VideoTokenizer(TOKENIZER).eval()
    patches = torch.randn(600, 192, generator=torch.Generator().manual_seed(1))
    narrow.initialize_from_pca(patches, torch.randn(900, 768, generator=torch.Generator().manual_seed(2)))
    video = torch.rand(6, 5, 3, 48, 48, generator=torch.Generator().manual_seed(3)) * 2 - 1

    def error(tokenizer: VideoTokenizer) -> Tensor:
        with torch.no_grad():
            return (tokenizer.decode(tokenizer.encode(video).mean) - video).double()

    def grown(channels: int) -> VideoTokenizer:
        wide = VideoTokenizer(replace(TOKENIZER, latent_channels=channels)).eval()
        wide.initialize_from_pca(patches, torch.randn(900, 768))
        wide.load_state_dict(widen_tokenizer(narrow.state_dict(), wide))
        fit_added_channels(wide, 6, [video[:2], video[2:]])
        return wide

    def check() -> None:
        before = error(narrow)
        wide = grown(30)
        after = error(wide)
        # least squares of full rank on these clips, a frame 0 at a time, and its best part of rank 24
        x, y = (narrow.patchify(one)[0].flatten(0, -2).double() for one in (video, before))  # type: ignore[union-attr]
        x, target = x - x.mean(0), -(y - y.mean(0))
        told = x @ torch.linalg.lstsq(x, target).solution
        left, strength, right = torch.linalg.svd(told, full_matrices=False)
        best = (left[:, :24] * strength[:24]) @ right[:24]
        expected = (target - best).square().sum() + (y.mean(0).square() * len(y)).sum()
        torch.testing.assert_close(after[:, 0].square().sum(), expected, rtol=2e-3, atol=1e-6)
        assert after[:, 1:].square().mean() < 0.95 * before[:, 1:].square().mean()
        # the first channels are what they were
        with torch.no_grad():
            few, many = narrow.encode(video).mean, wide.encode(video).mean
        torch.testing.assert_close(many[:, :, :6], few)

    solved = distill.widen._Regression.solved

    def first_components(self: "distill.widen._Regression", rank: int) -> LinearCodec:
        """Of half the rank."""
        codec = solved(self, rank)
        return replace(codec, decode=codec.decode * (torch.arange(rank) < rank // 2)[:, None])

    assert_needs(check, monkeypatch, distill.widen._Regression, "solved", first_components)
