"""The Wan VAE: equal to diffusers' AutoencoderKLWan, streamed equal to whole, constant state, causal."""

import pytest
import torch
from torch import Tensor

from models import wan_vae
from models.state_dict import to_wan
from models.video_codec import FeatureState, Memory
from models.wan_vae import WanVAE, WanVAEConfig
from tests.tiny_models import assert_needs, randomize

SMALL = WanVAEConfig(
    dim=8, latent_channels=4, res_blocks=1, latent_mean=(0.1, -0.2, 0.3, 0.0), latent_std=(1.5, 0.5, 2.0, 1.0)
)


def small_vae() -> WanVAE:
    vae = WanVAE(SMALL)
    randomize(vae)
    return vae


def video(frames: int, seed: int = 0, size: int = 16) -> Tensor:
    return torch.rand(1, frames, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def latents(frames: int, seed: int = 0) -> Tensor:
    return torch.randn(1, frames, 4, 2, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("blocks", "z"), [(1, 4), (2, 16)])
@torch.no_grad()
def test_equals_diffusers(blocks: int, z: int) -> None:
    from diffusers import AutoencoderKLWan

    theirs = AutoencoderKLWan(
        base_dim=8, z_dim=z, num_res_blocks=blocks, latents_mean=[0.0] * z, latents_std=[1.0] * z
    )
    randomize(theirs)
    ones, zeros = (1.0,) * z, (0.0,) * z
    ours = WanVAE(
        WanVAEConfig(dim=8, latent_channels=z, res_blocks=blocks, latent_mean=zeros, latent_std=ones)
    ).eval()
    ours.load_state_dict(to_wan(theirs.state_dict(), "diffusers_vae"))
    for frames in (1, 5, 13):
        clip = video(frames)
        posterior = ours.encode(clip)
        expected = theirs.encode(clip.transpose(1, 2)).latent_dist
        assert (posterior.mean - expected.mean.transpose(1, 2)).abs().max() < 1e-5
        # diffusers clamps it to [-30, 20]
        assert (posterior.logvar.clamp(-30, 20) - expected.logvar.transpose(1, 2)).abs().max() < 1e-5
        decoded = theirs.decode(expected.mean).sample.transpose(1, 2)
        assert decoded.abs().min() < 0.9
        assert (ours.decode(posterior.mean) - decoded).abs().max() < 1e-5


@pytest.mark.parametrize("chunking", [(1, 1, 1, 1), (3, 1), (1, 3), (2, 2)])
@torch.no_grad()
def test_streamed_decode_equals_whole(chunking: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    vae, z = small_vae(), latents(4)
    whole = vae.decode(z)
    assert whole.shape == (1, 13, 3, 16, 24)

    def check() -> None:
        state, parts = vae.initial_state(1, "cpu", torch.float32), []
        for part in z.split(chunking, 1):
            frames, state = vae.decode_chunk(part, state)
            parts.append(frames)
        assert (torch.cat(parts, 1) - whole).abs().max() < 1e-6

    forget = lambda self, slot, x, frames: x.new_zeros(*x.shape[:2], frames, *x.shape[3:])  # noqa: E731
    assert_needs(check, monkeypatch, Memory, "past", forget)


@pytest.mark.parametrize("chunking", [(1, 4, 4, 4), (5, 8), (1, 12), (9, 4)])
@torch.no_grad()
def test_streamed_encode_equals_whole(chunking: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    vae, clip = small_vae(), video(13)
    whole = vae.encode(clip)

    def check() -> None:
        state, parts = vae.initial_state(1, "cpu", torch.float32), []
        for part in clip.split(chunking, 1):
            posterior, state = vae.encode_chunk(part, state)
            parts.append(posterior.mean)
        assert (torch.cat(parts, 1) - whole.mean).abs().max() < 1e-6

    forget = lambda self, slot, x, frames: x.new_zeros(*x.shape[:2], frames, *x.shape[3:])  # noqa: E731
    assert_needs(check, monkeypatch, Memory, "past", forget)


@torch.no_grad()
def test_causal_any_length_and_image() -> None:
    vae, clip = small_vae(), video(13)
    mean = vae.encode(clip).mean
    changed = clip.clone()
    changed[:, 5] += 0.5
    other = vae.encode(changed).mean
    assert torch.equal(mean[:, :2], other[:, :2])
    assert not torch.equal(mean[:, 2], other[:, 2])
    assert torch.equal(vae.encode(clip[:, :1]).mean, mean[:, :1])
    # no frame is dropped: 18 frames are padded to 21, and cropped again
    assert vae.encode(video(18)).mean.shape[1] == 6
    assert vae.decode(latents(6), 18).shape[1] == 18
    with pytest.raises(ValueError, match="expected 1 to 21, found 22"):
        vae.decode(latents(6), 22)


@torch.no_grad()
def test_state_is_constant_and_round_trips() -> None:
    vae = small_vae()
    state, sizes = vae.initial_state(1, "cpu", torch.float32), []
    for i in range(6):
        before = state
        kept = {name: value.clone() for name, value in state.memory.items()}
        frames, state = vae.decode_chunk(latents(1, i), state)
        assert all(torch.equal(kept[name], before.memory[name]) for name in kept)
        sizes.append(sum(x.numel() for x in state.memory.values()))
        # the memory of a layer must not hold on to a larger storage
        assert all(x.untyped_storage().nbytes() == x.numel() * 4 for x in state.memory.values())
    assert len(set(sizes)) == 1
    again = vae.state_from_tensors(state.tensors())
    assert torch.equal(vae.decode_chunk(latents(1, 9), state)[0], vae.decode_chunk(latents(1, 9), again)[0])
    with pytest.raises(ValueError, match="expected the memory of one decoder"):
        FeatureState.from_tensors({"frames": torch.tensor(1)})
    with pytest.raises(ValueError, match="expected one of the encoder, found one of the decoder"):
        vae.encode_chunk(video(4), state)
    with pytest.raises(ValueError, match=r"expected decoder\.conv1 of shape"):
        vae.decode_chunk(latents(1)[..., :2], state)


def test_normalisation_is_that_of_the_config() -> None:
    vae, z = small_vae(), latents(3)
    normal = vae.normalize(z, 0)
    assert torch.allclose(normal[:, :, 1], (z[:, :, 1] + 0.2) / 0.5)
    assert (vae.denormalize(normal, 5) - z).abs().max() < 1e-6


def test_published_names_shapes_and_size() -> None:
    """194 tensors and 126,892,531 parameters, counted on the published code."""
    with torch.device("meta"):
        vae = WanVAE(WanVAEConfig())
    state = vae.state_dict()
    assert len(state) == 194
    assert sum(x.numel() for x in state.values()) == 126_892_531
    assert state["decoder.upsamples.3.time_conv.weight"].shape == (768, 384, 3, 1, 1)
    assert state["encoder.middle.1.norm.gamma"].shape == (384, 1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_mean": (0.0,)}, "latent_mean must have 4 numbers, found 1"),
        ({"latent_std": (0.0,) * 4}, "latent_std must be positive"),
        ({"temporal_down": (True, True)}, "temporal_down must have 3 entries"),
        ({"dim": 0}, "must be at least 1"),
    ],
)
def test_config_refuses(change: dict, message: str) -> None:
    values = {"latent_channels": 4, "latent_mean": (0.0,) * 4, "latent_std": (1.0,) * 4} | change
    with pytest.raises(ValueError, match=message):
        WanVAEConfig(**values)


@torch.no_grad()
def test_states_between_are_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a chunk of several latent frames is decoded, memory holds the caller's state and one more; the
    caller's stays whole.
    """
    vae = small_vae()
    z = torch.randn(1, 4, 4, 2, 2)
    _, start = vae.decode_chunk(z[:, :1], vae.initial_state(1, "cpu", torch.float32))
    opened: list[Memory] = []

    class Watched(Memory):
        def __init__(self, state: FeatureState, read_once: bool = False) -> None:
            super().__init__(state, read_once)
            opened.append(self)

    monkeypatch.setattr(wan_vae, "Memory", Watched)

    def check() -> None:
        opened.clear()
        before = {name: x.clone() for name, x in start.memory.items()}
        frames, end = vae.decode_chunk(z[:, 1:], start)
        assert [len(memory._old) for memory in opened] == [len(before), 0, 0]
        assert all(torch.equal(start.memory[name], x) for name, x in before.items())
        again, same = vae.decode_chunk(z[:, 1:], start)
        assert torch.equal(frames, again)
        assert end.memory.keys() == same.memory.keys() == before.keys()

    def kept(self: Watched, state: FeatureState, read_once: bool = False) -> None:
        Memory.__init__(self, state, False)
        opened.append(self)

    assert_needs(check, monkeypatch, Watched, "__init__", kept)
