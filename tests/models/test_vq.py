"""The codebooks of the video tokenizer: entries, streaming, gradients and the start."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import models.bottleneck
from distill.optim import split_parameters
from distill.stages.tokenizer import TokenizerStage
from models.bottleneck import Looked, VQBottleneck, look_up, nearest
from models.tokenizer_pca import fit_codebook, fit_pca
from models.video_tokenizer import VideoTokenizer, VideoTokenizerConfig
from tests.models.test_video_tokenizer import TINY, clip, patch_matrices, smooth_clip, tiny
from tests.tiny_models import assert_needs

VQ = replace(TINY, bottleneck="vq", latent_channels=4, vq_codes=16, vq_groups=2)


def test_latents_are_the_nearest_entries() -> None:
    """Of each group apart, by every distance written out; indices go there and back."""
    book = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    latents = torch.randn(7, 4, 6, generator=torch.Generator().manual_seed(1))
    index = nearest(latents, book)
    for group in range(2):
        part = latents[..., 3 * group : 3 * group + 3]
        apart = (part[..., None, :] - book[group]).square().sum(-1)
        assert torch.equal(index[..., group], apart.argmin(-1))
    model = tiny(VQ)
    with torch.no_grad():
        found = model.encode(4 * clip(9))
    assert isinstance(found, Looked)
    assert isinstance(model.bottleneck, VQBottleneck)
    torch.testing.assert_close(model.bottleneck.latents(found.index), found.mean, rtol=1e-4, atol=1e-6)
    assert found.index.shape[2] == 2
    assert len(found.index.unique()) > 4
    assert model.bottleneck.bits() == 8
    assert torch.equal(found.sample(), found.mean)
    assert float(found.kl()) == 0


def test_streaming_equals_whole_and_a_saved_one_equals_itself(tmp_path: Path) -> None:
    model, video = tiny(VQ), clip(9)
    with torch.no_grad():
        whole = model.encode(video)
        state = model.initial_state(2, "cpu", torch.float32)
        parts = []
        for chunk in (video[:, :1], video[:, 1:5], video[:, 5:]):
            part, state = model.encode_chunk(chunk, state)
            parts.append(part.mean)
    assert torch.allclose(torch.cat(parts, 1), whole.mean, atol=1e-6)
    save_file(model.state_dict(), tmp_path / "one.safetensors")
    again = VideoTokenizer(VideoTokenizerConfig.from_dict(asdict(VQ)))
    again.load_state_dict(load_file(tmp_path / "one.safetensors"))
    with torch.no_grad():
        assert torch.equal(again.eval().encode(video).mean, whole.mean)


def test_gradients_reach_encoder_and_codebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture's goes straight through to the encoder; entries are drawn to what takes them, with the
    published weights: closed form on one group.
    """

    def check() -> None:
        model = tiny(VQ)
        model.decode(model.encode(clip(9)).mean, 9).square().mean().backward()
        for name, parameter in model.encoder.named_parameters():
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().max()) > 0, name
        part = VQBottleneck(3, 2, 1, 4)
        skip = torch.randn(1, 1, 3, 3, 2, generator=torch.Generator().manual_seed(2)).requires_grad_()
        found = part(torch.zeros(1, 1, 3, 3, 3), skip)
        found.commitment().backward()
        entries = look_up(found.index.movedim(2, -1), part.codebook).detach()
        assert skip.grad is not None
        assert part.codebook.grad is not None
        rest = skip.detach() - entries
        torch.testing.assert_close(skip.grad, rest / 2 / rest.numel())
        drawn = torch.zeros(4, 2).index_add_(0, found.index.flatten(), -2 * rest.flatten(0, 3) / rest.numel())
        torch.testing.assert_close(part.codebook.grad[0], drawn)

    assert_needs(check, monkeypatch, models.bottleneck, "look_up", lambda i, book: look_up(i, book.detach()))


def test_pca_start_uses_the_codebook() -> None:
    """More entries are nearer to the continuous start."""
    video = 4 * smooth_clip(9, 12, motion=1.0)
    errors = {}
    for name, config in (
        ("kl", replace(TINY, latent_channels=4)),
        ("vq", replace(VQ, vq_codes=48)),
        ("few", replace(VQ, vq_codes=2)),
    ):
        model = tiny(config)
        model.initialize_from_pca(*patch_matrices(model, video))
        with torch.no_grad():
            errors[name] = float((model.decode(model.encode(video).mean) - video).square().mean())
    assert errors["kl"] < errors["vq"] < 0.75 * errors["few"]


def test_k_means_finds_clusters() -> None:
    rows = torch.randn(600, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.05
    centres = torch.tensor([[0.0, 0], [4, 0], [0, 4]], dtype=torch.float64)
    rows[:, :2] += centres[torch.arange(600) % 3]
    codec = fit_pca(rows, 2)
    book = fit_codebook(codec, rows, 1, 3)
    expected = torch.stack([((rows[i::3] - codec.mean) @ codec.encode).mean(0) for i in range(3)])
    assert torch.cdist(expected, book[0]).min(1).values.max() < 0.05
    with pytest.raises(ValueError, match="expected at most the 600 patches"):
        fit_codebook(codec, rows, 1, 601)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bottleneck": "vq"}, "vq_codes: expected a number of entries, found None"),
        ({"vq_codes": 8}, "vq_codes: expected none without bottleneck: vq, found 8"),
        ({"bottleneck": "vq", "vq_codes": 1}, "vq_codes: expected at least 2"),
        ({"bottleneck": "vq", "vq_codes": 8, "vq_groups": 3}, "vq_groups: expected a divisor"),
        ({"vq_groups": 2}, "vq_groups: expected a divisor"),
    ],
)
def test_sizes_that_do_not_fit(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoTokenizerConfig(**({"latent_channels": 16} | change))  # type: ignore[arg-type]


def test_entries_take_no_orthogonal_steps() -> None:
    model = tiny(VQ)
    matrices = {id(parameter) for parameter in split_parameters(model, TokenizerStage.edges).matrices}
    assert not matrices & {id(parameter) for parameter in model.bottleneck.parameters()}
