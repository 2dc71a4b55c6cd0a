"""The causal video tokenizer: causality, streaming = whole, PCA start, latent statistics.

Every invariant is a `check_...` function that also runs with its mechanism patched out, where it must fail.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models import tokenizer_layers
from models.video_tokenizer import TokenizerState, VideoTokenizer, VideoTokenizerConfig

TINY = VideoTokenizerConfig(
    patch=4,
    latent_channels=6,
    dim=16,
    heads=2,
    window=2,
    encoder_spatial=2,
    decoder_spatial=2,
    ffn_mult=2,
    refine_channels=4,
)
PLANS = [[5], [1, 4], [1, 1, 1, 1, 1], [1, 3, 1], [2, 3], [3, 2], [1, 2, 2], [4, 1]]


def randomised(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter a random value, those that start at zero too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def tiny(config: VideoTokenizerConfig = TINY) -> VideoTokenizer:
    model = VideoTokenizer(config)
    randomised(model)
    return model.eval()


def clip(frames: int, height: int = 16, width: int = 16, batch: int = 2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, frames, 3, height, width, generator=generator) * 2 - 1


def latents_like(frames: int, grid: tuple[int, int] = (4, 4), seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, frames, TINY.latent_channels, *grid, generator=generator)


def must_fail(check: Callable[[], None]) -> None:
    """The check notices that its mechanism is gone."""
    with pytest.raises(AssertionError):
        check()


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


# Causality


def see_everything(queries: int, keys: int, context: int, device: torch.device) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool, device=device)


def latent_index(frame: int) -> int:
    return 0 if frame == 0 else 1 + (frame - 1) // 4


def check_encode_causality() -> None:
    model, video = tiny(), clip(17)
    before = model.encode(video)
    for frame in range(1, 17):
        changed = video.clone()
        changed[:, frame:] = clip(17, seed=7)[:, frame:]
        after, first = model.encode(changed), latent_index(frame)
        assert torch.equal(after.mean[:, :first], before.mean[:, :first])
        assert torch.equal(after.logvar[:, :first], before.logvar[:, :first])
        assert not torch.allclose(after.mean[:, first], before.mean[:, first], atol=1e-3)


def check_decode_causality() -> None:
    model, latents = tiny(), latents_like(5)
    before = model.decode(latents)
    for index in range(1, 5):
        changed = latents.clone()
        changed[:, index:] = latents_like(5, seed=7)[:, index:]
        after, first = model.decode(changed), 1 + (index - 1) * 4
        assert torch.equal(after[:, :first], before[:, :first])
        assert not torch.allclose(after[:, first], before[:, first], atol=1e-3)


def check_gradients_causal() -> None:
    model = tiny()
    with torch.enable_grad():
        video = clip(17).requires_grad_()
        posterior = model.encode(video)
        latents = latents_like(5).requires_grad_()
        output = model.decode(latents)
        for index in range(1, 5):
            frame = 1 + (index - 1) * 4
            score = (posterior.mean + posterior.logvar)[:, :index].square().sum()
            (grad,) = torch.autograd.grad(score, video, retain_graph=True)
            assert torch.count_nonzero(grad[:, frame:]) == 0
            assert torch.count_nonzero(grad[:, frame - 1]) > 0
            (grad,) = torch.autograd.grad(output[:, :frame].square().sum(), latents, retain_graph=True)
            assert torch.count_nonzero(grad[:, index:]) == 0
            assert torch.count_nonzero(grad[:, index - 1]) > 0


@pytest.mark.parametrize("check", [check_encode_causality, check_decode_causality, check_gradients_causal])
def test_causality(check: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    check()
    monkeypatch.setattr(tokenizer_layers, "band_mask", see_everything)
    must_fail(check)


# Streams


def encode_stream(model: VideoTokenizer, video: Tensor, plan: list[int]) -> Tensor:
    """Mean and logvar side by side, of a stream cut into chunks of `plan` latent frames."""
    state, start, parts = model.initial_state(video.shape[0], "cpu", torch.float32), 0, []
    for count in plan:
        stop = start + 4 * count - (3 if start == 0 else 0)
        posterior, state = model.encode_chunk(video[:, start:stop], state)
        parts.append(torch.cat([posterior.mean, posterior.logvar], dim=2))
        start = stop
        assert state.frames == start
    return torch.cat(parts, dim=1)


def decode_stream(model: VideoTokenizer, latents: Tensor, plan: list[int]) -> Tensor:
    state, parts = model.initial_state(latents.shape[0], "cpu", torch.float32), []
    for chunk in latents.split(plan, dim=1):
        video, state = model.decode_chunk(chunk, state)
        parts.append(video)
        assert state.frames == sum(part.shape[1] for part in parts)
    return torch.cat(parts, dim=1)


def assert_near(value: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    assert value.shape == expected.shape
    assert float((value - expected).abs().max()) <= atol


def check_encode_streaming() -> None:
    for context in (1, 2, 3, 4):
        model, video = tiny(replace(TINY, temporal_context=context, qk_norm=context == 2)), clip(17)
        posterior = model.encode(video)
        for plan in PLANS:
            expected = torch.cat([posterior.mean, posterior.logvar], dim=2)
            assert_near(encode_stream(model, video, plan), expected)


def check_decode_streaming() -> None:
    for context in (1, 2, 3, 4):
        model, latents = tiny(replace(TINY, temporal_context=context, qk_norm=context == 2)), latents_like(5)
        for plan in PLANS:
            assert_near(decode_stream(model, latents, plan), model.decode(latents))


def check_long_stream() -> None:
    model, latents = tiny(), latents_like(40)
    assert_near(decode_stream(model, latents, [1] * 40), model.decode(latents))


@pytest.mark.parametrize("check", [check_encode_streaming, check_decode_streaming, check_long_stream])
def test_streaming_equals_whole(check: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    check()
    advanced = VideoTokenizer.advanced

    def forget(
        self: VideoTokenizer, state: TokenizerState, keys: Tensor, values: Tensor, count: int
    ) -> TokenizerState:
        return replace(advanced(self, state, keys, values, count), valid=0)

    monkeypatch.setattr(VideoTokenizer, "advanced", forget)
    must_fail(check)


@pytest.mark.parametrize("grid", [(8, 8), (16, 16), (4, 6), (3, 5), (1, 2)])
def test_any_grid_streams(grid: tuple[int, int]) -> None:
    model = tiny(replace(TINY, window=4))
    video = clip(9, grid[0] * 4, grid[1] * 4)
    posterior = model.encode(video)
    assert posterior.mean.shape == (2, 3, 6, *grid)
    whole = torch.cat([posterior.mean, posterior.logvar], dim=2)
    assert_near(encode_stream(model, video, [1, 2]), whole)
    assert_near(decode_stream(model, posterior.mean, [2, 1]), model.decode(posterior.mean))


def test_interleaved_streams_do_not_meet() -> None:
    model = tiny()
    streams = [latents_like(6, seed=3), latents_like(6, seed=4)]
    states = [model.initial_state(2, "cpu", torch.float32) for _ in streams]
    outputs: list[list[Tensor]] = [[], []]
    for index in range(6):
        for i, latents in enumerate(streams):
            video, states[i] = model.decode_chunk(latents[:, index : index + 1], states[i])
            outputs[i].append(video)
    for latents, parts in zip(streams, outputs, strict=True):
        assert_near(torch.cat(parts, dim=1), model.decode(latents))


def check_image_is_first_frame() -> None:
    model, video = tiny(), clip(17)
    image = model.encode(video[:, :1])
    assert image.mean.shape[1] == 1
    assert model.decode(image.mean).shape == (2, 1, 3, 16, 16)
    for frames in (2, 5, 6, 17):
        assert_near(model.encode(video[:, :frames]).mean[:, :1], image.mean, 1e-6)
        assert_near(model.encode(video[:, :frames]).logvar[:, :1], image.logvar, 1e-6)
    latents = latents_like(4)
    assert_near(model.decode(latents)[:, :1], model.decode(latents[:, :1]), 1e-6)


def test_one_frame_video_is_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    check_image_is_first_frame()
    monkeypatch.setattr(tokenizer_layers, "band_mask", see_everything)
    must_fail(check_image_is_first_frame)


@pytest.mark.parametrize("frames", range(1, 19))
def test_every_length_comes_back(frames: int) -> None:
    model, video = tiny(), clip(frames)
    latents = model.encode(video).mean
    assert latents.shape[1] == 1 + -(-(frames - 1) // 4)
    assert model.decode(latents, frames).shape == video.shape
    padded = torch.cat([video, video[:, -1:].expand(-1, -(frames - 1) % 4, -1, -1, -1)], dim=1)
    assert_near(latents, model.encode(padded).mean, 1e-6)


# State


def test_state_size_is_constant() -> None:
    model = tiny()
    state = model.initial_state(2, "cpu", torch.float32)
    sizes = set()
    with torch.enable_grad():
        for index in range(100):
            _, state = model.decode_chunk(latents_like(1, seed=index), state)
            tensors = state.tensors().values()
            sizes.add(sum(t.untyped_storage().nbytes() for t in tensors))
    assert len(sizes) == 1
    assert not state.keys.requires_grad
    assert state.frames == 397
    assert state.valid == TINY.temporal_context - 1


def test_states_are_values() -> None:
    """A state gives the same continuation twice, also after a trip through tensors."""
    model, latents, video = tiny(), latents_like(6), clip(17)
    _, state = model.decode_chunk(latents[:, :3], model.initial_state(2, "cpu", torch.float32))
    saved = {name: tensor.clone() for name, tensor in state.tensors().items()}
    first, _ = model.decode_chunk(latents[:, 3:], state)
    assert all(torch.equal(saved[name], tensor) for name, tensor in state.tensors().items())
    second, _ = model.decode_chunk(latents[:, 3:], TokenizerState.from_tensors(saved))
    assert torch.equal(first, second)

    _, state = model.encode_chunk(video[:, :9], model.initial_state(2, "cpu", torch.float32))
    restored = TokenizerState.from_tensors(state.tensors())
    assert (restored.valid, restored.frames, restored.part) == (2, 9, "encoder")
    fresh = model.initial_state(2, "cpu", torch.float32)
    a, _ = model.decode_chunk(latents, TokenizerState.from_tensors(fresh.tensors()))
    b, _ = model.decode_chunk(latents, fresh)
    assert torch.equal(a, b)


def test_misuse_of_a_stream_is_refused() -> None:
    model = tiny()
    fresh = model.initial_state(2, "cpu", torch.float32)
    for frames in (2, 4, 8):
        with pytest.raises(ValueError, match=r"expected 1 \+ k \* 4 frames"):
            model.encode_chunk(clip(frames), fresh)
    _, state = model.encode_chunk(clip(5), fresh)
    for frames in (1, 5, 6):
        with pytest.raises(ValueError, match=r"expected k \* 4 frames after 5"):
            model.encode_chunk(clip(frames), state)
    with pytest.raises(ValueError, match="one of the decoder"):
        model.decode_chunk(latents_like(1), state)
    with pytest.raises(ValueError, match="expected a grid"):
        model.encode_chunk(clip(4, 32, 16), state)
    with pytest.raises(ValueError, match="expected a batch of 1"):
        model.encode_chunk(clip(4, batch=1), state)
    with pytest.raises(ValueError, match="tokenizer state"):
        TokenizerState.from_tensors({"frames": torch.tensor(1)})


# Start from PCA


def patch_matrices(model: VideoTokenizer, video: Tensor) -> tuple[Tensor, Tensor]:
    first, groups = model.patchify(video)
    assert first is not None
    return first.flatten(0, 2), groups.flatten(0, 3)


def smooth_clip(frames: int, batch: int, motion: float) -> Tensor:
    """Slowly changing low-frequency pictures, so that patches have a steep spectrum."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.randn(batch, 3, 7, 7, generator=generator)
    drift = torch.randn(batch, 3, 7, 7, generator=generator) * motion
    steps = torch.arange(frames).view(1, -1, 1, 1, 1) / 16
    small = (coarse[:, None] + steps * drift[:, None]).flatten(0, 1)
    return nn.functional.interpolate(small, size=(16, 16), mode="bicubic").unflatten(0, (batch, frames)) * 0.4


def pca_reconstruction(patches: Tensor, components: int) -> Tensor:
    rows = patches.double()
    mean = rows.mean(0)
    _, _, axes = torch.linalg.svd(rows - mean, full_matrices=False)
    return ((rows - mean) @ axes[:components].T @ axes[:components] + mean).float()


def test_pca_start_is_pca() -> None:
    model, video = tiny(), smooth_clip(9, 12, motion=1.0)
    first, groups = patch_matrices(model, video)
    model.initialize_from_pca(first, groups)
    posterior = model.encode(video)
    got_first, got_groups = patch_matrices(model, model.decode(posterior.mean))
    assert_near(got_first, pca_reconstruction(first, TINY.latent_channels), 1e-4)
    assert_near(got_groups, pca_reconstruction(groups, TINY.latent_channels), 1e-4)
    assert float(posterior.logvar.min()) == float(posterior.logvar.max())
    values = torch.linalg.eigvalsh(torch.cov(groups.double().T, correction=0)).flip(0)
    spread = posterior.mean[:, 1:].double().std(dim=(0, 1, 3, 4), correction=0)
    assert torch.allclose(spread, values[: TINY.latent_channels] ** 0.25, rtol=1e-3)


def test_pca_start_aligns_images_with_video() -> None:
    model = tiny()
    model.initialize_from_pca(*patch_matrices(model, smooth_clip(9, 12, motion=0.3)))
    latents = model.encode(smooth_clip(9, 12, motion=0.0)).mean
    centred = latents - latents.mean(dim=(0, 3, 4), keepdim=True)
    assert float((centred[:, 0] - centred[:, 1]).norm() / centred[:, 1].norm()) < 0.25


def test_pca_refuses_wrong_patches() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="first_patches: expected more than 6 rows of 48"):
        model.initialize_from_pca(torch.zeros(50, 47), torch.zeros(50, 192))
    with pytest.raises(ValueError, match="group_patches"):
        model.initialize_from_pca(torch.zeros(50, 48), torch.zeros(6, 192))


# Latent statistics, patches, posterior, config


def test_normalize_and_denormalize_invert() -> None:
    model, latents = tiny(), latents_like(4)
    mean = torch.arange(12.0).view(2, 6)
    std = mean + 0.5
    model.set_latent_statistics(mean, std)
    for start in (0, 1, 7):
        assert_near(model.denormalize(model.normalize(latents, start), start), latents)
    expected = (latents - mean[1].view(6, 1, 1)) / std[1].view(6, 1, 1)
    assert_near(model.normalize(latents, 0)[:, 1:], expected[:, 1:])
    assert_near(model.normalize(latents, 3), expected)
    image = (latents[:, 0] - mean[0].view(6, 1, 1)) / std[0].view(6, 1, 1)
    assert_near(model.normalize(latents, 0)[:, 0], image)
    assert {"latent_mean", "latent_std"} <= set(model.state_dict())


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (torch.zeros(6), torch.ones(2, 6), "mean: expected"),
        (torch.zeros(2, 6), torch.full((2, 6), float("nan")), "std: expected finite"),
        (torch.zeros(2, 6), torch.zeros(2, 6), "std: expected positive"),
    ],
)
def test_bad_statistics_are_refused(mean: Tensor, std: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny().set_latent_statistics(mean, std)


def test_patchify_inverts_and_orders_time_first() -> None:
    model, video = tiny(), clip(9)
    first, groups = model.patchify(video)
    assert torch.equal(model.unpatchify(first, groups), video)
    static = video[:, :1].expand(-1, 5, -1, -1, -1)
    image, group = model.patchify(static)
    assert image is not None
    assert torch.equal(group[:, 0], image.repeat(1, 1, 1, 4))


def test_posterior_samples_and_divergence() -> None:
    posterior = tiny().encode(clip(5))
    draws = [posterior.sample(torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)
    unit = torch.distributions.Normal(0.0, 1.0)
    own = torch.distributions.Normal(posterior.mean, torch.exp(0.5 * posterior.logvar))
    assert torch.allclose(posterior.kl(), torch.distributions.kl_divergence(own, unit).mean(), rtol=1e-4)


def test_every_parameter_receives_a_gradient() -> None:
    model, video = tiny(), clip(9)
    with torch.enable_grad():
        output, posterior = model(video, torch.Generator().manual_seed(0))
        ((output - video).square().mean() + posterior.kl()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.count_nonzero(parameter.grad) > 0, name


def test_autocast_stays_near_full_precision() -> None:
    model, video = tiny(), clip(9)
    model.initialize_from_pca(*patch_matrices(model, smooth_clip(9, 12, motion=1.0)))
    expected = model.decode(model.encode(video).mean)
    with torch.autocast("cpu", torch.bfloat16):
        output = model.decode(model.encode(video).mean)
    assert output.dtype == torch.float32
    assert_near(output, expected, 1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim": 100}, "dim: expected a multiple of heads"),
        ({"patch": 7}, "patch: expected an even size"),
        ({"window": 0}, "window: expected an integer of at least 1"),
        ({"latent_channels": 500}, "latent_channels: expected at most the 192"),
        ({"bottleneck": "vae"}, "bottleneck: expected 'kl', 'fsq' or 'vq'"),
        ({"bottleneck": "fsq"}, "fsq_levels: expected 16 numbers"),
        ({"fsq_levels": (4, 4)}, "fsq_levels: expected 0 numbers"),
        ({"depth": 3}, "unknown keys"),
    ],
)
def test_bad_configs_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoTokenizerConfig.from_dict(values)


def test_bad_inputs_are_refused() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="divisible by 4"):
        model.encode(clip(1, 18, 16))
    with pytest.raises(ValueError, match="video: expected"):
        model.encode(clip(1)[:, :, :2])
    with pytest.raises(ValueError, match="latents: expected"):
        model.decode(torch.zeros(1, 2, 5, 4, 4))
    with pytest.raises(ValueError, match="num_frames: expected 1 to 5"):
        model.decode(latents_like(2), 6)
    with pytest.raises(ValueError, match="start"):
        model.normalize(latents_like(1), -1)
