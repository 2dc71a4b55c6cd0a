"""The discrete bottleneck of the video tokenizer: codes, streaming and gradients."""

from dataclasses import replace

import pytest
import torch

from distill.optim import split_parameters
from distill.stages.tokenizer import TokenizerStage
from models import video_tokenizer
from models.bottleneck import Quantized
from tests.models.test_video_tokenizer import TINY, clip, patch_matrices, smooth_clip, tiny

LEVELS = (8, 5, 2)
FSQ = replace(TINY, bottleneck="fsq", latent_channels=3, fsq_levels=LEVELS)


def test_latents_are_codes() -> None:
    """Every value is one of its channel's levels, indices go there and back, and both ends are reached."""
    with torch.no_grad():
        latents = tiny(FSQ).encode(4 * clip(9))
    assert isinstance(latents, Quantized)
    for channel, levels in enumerate(LEVELS):
        places = (latents.mean[:, :, channel] + 1) / 2 * (levels - 1)
        assert torch.allclose(places, places.round(), atol=1e-5)
        assert {0, levels - 1} <= set(places.round().flatten().int().tolist())
    indices = latents.indices()
    assert int(indices.min()) >= 0
    assert int(indices.max()) < 8 * 5 * 2
    assert torch.allclose(Quantized.from_indices(indices, LEVELS), latents.mean, atol=1e-6)


def test_streaming_equals_whole() -> None:
    model, video = tiny(FSQ), clip(9)
    with torch.no_grad():
        whole = model.encode(video)
        state = model.initial_state(2, "cpu", torch.float32)
        parts = []
        for chunk in (video[:, :1], video[:, 1:5], video[:, 5:]):
            part, state = model.encode_chunk(chunk, state)
            parts.append(part.mean)
    assert torch.allclose(torch.cat(parts, 1), whole.mean, atol=1e-6)
    assert torch.equal(whole.sample(), whole.mean)
    assert float(whole.kl()) == 0


def test_gradients_pass_the_rounding() -> None:
    model = tiny(FSQ)
    model.decode(model.encode(clip(9)).mean, 9).square().mean().backward()
    for name, parameter in model.encoder.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


def test_pca_start_uses_the_levels() -> None:
    """Rounded to 16 levels, the start stays near that of the continuous bottleneck; unscaled it does not."""
    video = 4 * smooth_clip(9, 12, motion=1.0)
    errors = {}
    for name, config in (
        ("kl", replace(TINY, latent_channels=3)),
        ("fsq", replace(FSQ, fsq_levels=(16, 16, 16))),
    ):
        model = tiny(config)
        first, groups = patch_matrices(model, video)
        model.initialize_from_pca(first, groups)
        with torch.no_grad():
            errors[name] = float((model.decode(model.encode(video).mean) - video).square().mean())
    power = float((video - video.mean()).square().mean())
    assert errors["fsq"] - errors["kl"] < 0.05 * power
    # what the scale of the continuous start gives
    assert _unscaled(video) > 0.1 * power


def _unscaled(video: torch.Tensor) -> float:
    model = tiny(replace(FSQ, fsq_levels=(16, 16, 16)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_tokenizer, "choose_gain", lambda *_: torch.ones(3))
        model.initialize_from_pca(*patch_matrices(model, video))
    with torch.no_grad():
        return float((model.decode(model.encode(video).mean) - video).square().mean())


def test_the_output_layer_takes_no_orthogonal_steps() -> None:
    """It starts at zero, where Muon's steps of a fixed size upset the codes."""
    model = tiny(FSQ)
    matrices = {id(parameter) for parameter in split_parameters(model, TokenizerStage.edges).matrices}
    assert not matrices & {id(parameter) for parameter in model.bottleneck.parameters()}
    assert matrices
