"""The discrete bottleneck of the video tokenizer: codes, streaming and gradients."""

from dataclasses import replace

import torch

from models.bottleneck import Quantized
from tests.test_video_tokenizer import TINY, clip, tiny

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
