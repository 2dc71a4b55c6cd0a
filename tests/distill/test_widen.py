"""Wider networks that start as narrower ones do what those do."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from distill.widen import widen_dit, widen_tokenizer
from models.causal_dit import CausalDiT, CausalDiTConfig
from models.context import BidirectionalContext
from models.video_tokenizer import VideoTokenizer, VideoTokenizerConfig

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
