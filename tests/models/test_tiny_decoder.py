"""The tiny autoencoder: equal to a plain reading of the TAEHV format, streamed equal to whole."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.state_dict import identify
from models.tiny_decoder import TinyDecoder, TinyDecoderConfig
from models.video_codec import Memory
from tests.tiny_models import assert_needs, randomize

SMALL = TinyDecoderConfig(latent_channels=4, encoder_dim=8, decoder_dims=(16, 12, 8, 8))


def small() -> TinyDecoder:
    codec = TinyDecoder(SMALL)
    randomize(codec)
    return codec


def latents(frames: int, seed: int = 0, batch: int = 1) -> Tensor:
    return torch.randn(batch, frames, 4, 2, 3, generator=torch.Generator().manual_seed(seed))


def plain_decode(state: dict[str, Tensor], z: Tensor) -> Tensor:
    """A decoder over one whole clip `(T, C, h, w)`, straight from the tensors: raw frames in [0, 1]."""

    def conv(x: Tensor, name: str) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    x = conv(torch.tanh(z / 3) * 3, "decoder.1").relu()
    index = 3
    for grow in (1, 2, 2):
        for _ in range(3):
            past = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
            y = conv(torch.cat([x, past], 1), f"decoder.{index}.conv.0").relu()
            y = conv(conv(y, f"decoder.{index}.conv.2").relu(), f"decoder.{index}.conv.4")
            x, index = (y + x).relu(), index + 1
        x = F.interpolate(x, scale_factor=2)
        channels = x.shape[1]
        x = conv(x, f"decoder.{index + 1}.conv").reshape(-1, channels, *x.shape[2:])
        assert len(x) % grow == 0
        x, index = conv(x, f"decoder.{index + 2}"), index + 3
    return conv(x.relu(), "decoder.22").clamp(0, 1)


@torch.no_grad()
def test_decode_equals_the_format() -> None:
    codec, z = small(), latents(4)
    raw = plain_decode(codec.state_dict(), z[0])
    assert raw.shape[0] == 16
    assert (codec.decode(z)[0] - (raw[3:] * 2 - 1)).abs().max() < 1e-5


@pytest.mark.parametrize("chunking", [(1, 1, 1, 1), (3, 1), (1, 3)])
@torch.no_grad()
def test_streamed_equals_whole(chunking: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    codec, z = small(), latents(4, batch=2)
    whole = codec.decode(z)
    clip = torch.rand(2, 16, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    encoded = codec.encode(clip).mean

    def check() -> None:
        state = codec.initial_state(2, "cpu", torch.float32)
        past, frames, means = codec.initial_state(2, "cpu", torch.float32), [], []
        for part, video in zip(z.split(chunking, 1), clip.split([4 * n for n in chunking], 1), strict=True):
            out, state = codec.decode_chunk(part, state)
            mean, past = codec.encode_chunk(video, past)
            frames.append(out)
            means.append(mean)
        assert (torch.cat(frames, 1) - whole).abs().max() < 1e-6
        assert (torch.cat(means, 1) - encoded).abs().max() < 1e-6

    forget = lambda self, slot, x, frames: x.new_zeros(*x.shape[:2], frames, *x.shape[3:])  # noqa: E731
    assert_needs(check, monkeypatch, Memory, "past", forget)


@torch.no_grad()
def test_lengths_and_state() -> None:
    codec = small()
    clip = torch.zeros(1, 17, 3, 16, 16)
    assert codec.encode(clip).mean.shape == (1, 5, 4, 2, 2)
    assert codec.decode(latents(5)).shape == (1, 17, 3, 16, 24)
    assert codec.decode(latents(5), 15).shape[1] == 15
    state, sizes = codec.initial_state(1, "cpu", torch.float32), []
    for i in range(4):
        _, state = codec.decode_chunk(latents(1, i), state)
        sizes.append(sum(x.numel() for x in state.memory.values()))
    assert len(set(sizes)) == 1
    again = codec.state_from_tensors(state.tensors())
    assert torch.equal(
        codec.decode_chunk(latents(1, 7), state)[0], codec.decode_chunk(latents(1, 7), again)[0]
    )
    with pytest.raises(ValueError, match=r"expected k \* 4 frames, found 3"):
        codec.encode_chunk(clip[:, :3], codec.initial_state(1, "cpu", torch.float32))


def test_published_names_and_size() -> None:
    """taew2_1: 128 tensors, an encoder of 1,470,928 and a decoder of 9,844,611 parameters."""
    with torch.device("meta"):
        codec = TinyDecoder(TinyDecoderConfig())
    state = codec.state_dict()
    assert len(state) == 128
    sizes = {part: sum(x.numel() for n, x in state.items() if n.startswith(part)) for part in ("enc", "dec")}
    assert sizes == {"enc": 1_470_928, "dec": 9_844_611}
    assert state["encoder.2.conv.weight"].shape == (64, 128, 1, 1)
    assert state["decoder.19.conv.weight"].shape == (128, 64, 1, 1)
    assert identify(state) == "taehv"
