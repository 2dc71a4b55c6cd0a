"""Scheduler formulae against closed forms, the sampler on a field with a known solution, joint guidance term
by term.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from models.causal_dit import CausalDiT, TextContext
from models.context import AttentionContext, ChunkPlan
from streamgen import InputError
from streamgen.engine.geometry import LatentGeometry
from streamgen.engine.guidance import Conditioning, Guidance, guided_velocity
from streamgen.engine.sampler import denoise_chunk
from streamgen.engine.scheduler import (
    FlowMatchScheduler,
    add_noise,
    shifted,
    velocity_target,
    x0_from_velocity,
)
from streamgen.stream.settings import StreamSettings
from tests.tiny_models import tiny_cache, tiny_dit, tiny_latents


def test_shifted_levels_match_published_values() -> None:
    """Self Forcing's warped steps at shift 5: 1000, 937.5, 833.33, 625."""
    levels = FlowMatchScheduler(4, 5.0).sigmas()
    assert levels == pytest.approx([1.0, 0.9375, 5 / 6, 0.625, 0.0])
    assert FlowMatchScheduler(3, 1.0).sigmas() == pytest.approx([1, 2 / 3, 1 / 3, 0])


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 8.0])
def test_shift_is_a_bijection_with_a_closed_inverse(shift: float) -> None:
    for s in (0.0, 0.1, 0.5, 0.9, 1.0):
        assert shifted(shifted(s, shift), 1 / shift) == pytest.approx(s)
    assert shifted(0.5, shift) == pytest.approx(shift / (1 + shift))


def test_path_velocity_and_clean_estimate_agree() -> None:
    x0, noise = tiny_latents(3, 1), tiny_latents(3, 2)
    for sigma in (0.0, 0.3, 1.0):
        x = add_noise(x0, noise, sigma)
        assert (x0_from_velocity(x, velocity_target(x0, noise), sigma) - x0).abs().max() < 1e-6
    levels = torch.tensor([[0.0, 0.5, 1.0]])
    x = add_noise(x0, noise, levels)
    assert torch.equal(x[:, 0], x0[:, 0])
    assert torch.equal(x[:, 2], noise[:, 2])
    assert (x[:, 1] - (x0[:, 1] + noise[:, 1]) / 2).abs().max() < 1e-6


def gaussian_velocity(mean: float, std: float) -> "object":
    """The exact velocity of a Gaussian: E[noise - x0 | x_sigma]."""

    def velocity(x: Tensor, sigma: float) -> Tensor:
        variance = (1 - sigma) ** 2 * std**2 + sigma**2
        centred = x - (1 - sigma) * mean
        return sigma / variance * centred - (mean + (1 - sigma) * std**2 / variance * centred)

    return velocity


def test_euler_on_a_gaussian_converges_to_the_exact_flow() -> None:
    """The flow of a Gaussian maps noise z to mean + std z; Euler's error halves as steps double."""
    noise, mean, std = torch.linspace(-2, 2, 9).view(1, 1, 1, 3, 3), 0.7, 0.4
    errors = []
    for steps in (40, 80, 160):
        out = denoise_chunk(gaussian_velocity(mean, std), noise, FlowMatchScheduler(steps, 1.0).sigmas())  # type: ignore[arg-type]
        errors.append(float((out - (mean + std * noise)).abs().max()))
    assert errors[0] < 0.05
    for coarse, fine in pairwise(errors):
        assert 1.7 < coarse / fine < 2.3


def test_renoising_sampler_keeps_the_distribution_of_a_point() -> None:
    """With a one-point data distribution every clean estimate is that point, whatever noise is drawn."""
    out = denoise_chunk(
        gaussian_velocity(0.3, 0.0),  # type: ignore[arg-type]
        torch.randn(1, 2, 1, 2, 2),
        FlowMatchScheduler(4, 3.0).sigmas(),
        lambda step: torch.full((1, 2, 1, 2, 2), float(step)),
    )
    assert (out - 0.3).abs().max() < 1e-5


def test_exit_step_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"exit_step must be in 0\.\.3"):
        denoise_chunk(lambda x, s: x, torch.zeros(1, 1, 1, 1, 1), FlowMatchScheduler().sigmas(), exit_step=4)


def parts(
    with_motion: bool,
) -> tuple[CausalDiT, Tensor, TextContext, TextContext, AttentionContext, Tensor | None]:
    dit = tiny_dit()
    generator = torch.Generator().manual_seed(1)
    text, null = (
        dit.embed_text(torch.randn(1, 5, 8, generator=generator)),
        dit.embed_text(torch.zeros(1, 5, 8)),
    )
    cache = tiny_cache(dit, ChunkPlan(2, 2, 2, 2))
    cache.begin(2)
    motion = tiny_latents(2, 8, channels=3) if with_motion else None
    return dit, tiny_latents(2, 7), text, null, cache, motion


@pytest.mark.parametrize(("w_t", "w_m"), [(3.0, 1.5), (0.4, 0.6), (1.0, 0.5)])
@torch.no_grad()
def test_joint_guidance_equals_its_formula(w_t: float, w_m: float) -> None:
    dit, x, text, null, cache, motion = parts(with_motion=True)
    level = torch.full((1, 2), 500.0)
    full = dit(x, level, text, cache, motion)
    only_motion, only_text = dit(x, level, null, cache, motion), dit(x, level, text, cache, None)
    a = w_t / (w_t + w_m)
    expected = a * only_motion + (1 - a) * only_text + w_t * (full - only_motion) + w_m * (full - only_text)
    found = guided_velocity(dit, x, 0.5, Conditioning(text, null, motion, Guidance(w_t, w_m)), cache)
    assert (found - expected).abs().max() < 1e-5
    if w_t + w_m == 1:
        assert (found - full).abs().max() < 1e-5


@torch.no_grad()
def test_without_tracks_it_is_classifier_free_guidance() -> None:
    dit, x, text, null, cache, _ = parts(with_motion=False)
    level = torch.full((1, 2), 500.0)
    v_text, v_null = dit(x, level, text, cache), dit(x, level, null, cache)
    found = guided_velocity(dit, x, 0.5, Conditioning(text, null, None, Guidance(2.5, 1.5)), cache)
    assert (found - (v_null + 2.5 * (v_text - v_null))).abs().max() < 1e-5


@pytest.mark.parametrize(("text", "motion"), [(0.3, 0.3), (-1.0, 3.0), (math.nan, 1.0)])
def test_guidance_below_unguided_is_refused(text: float, motion: float) -> None:
    with pytest.raises(ValueError, match="sum to at least 1"):
        Guidance(text, motion)


def test_settings_errors_name_the_setting() -> None:
    settings = StreamSettings()
    for changes, message in (
        ({"guidence": 2.0}, "unknown key"),
        ({"text_guidence": 2.0}, "did you mean 'text_guidance'"),
        ({"steps": 2.5}, "steps: expected int"),
        ({"steps": True}, "steps: expected int"),
        ({"shift": -1}, "shift must be in 0.01..100"),
        ({"context_noise": 1.0}, "context_noise"),
        ({"sampler": "magic"}, "sampler"),
    ):
        with pytest.raises(InputError, match=message):
            settings.updated(changes)
    assert settings.updated({"text_guidance": 2}).text_guidance == 2.0


def test_frame_mapping() -> None:
    """Frame 0 alone, then groups of four."""
    geometry = LatentGeometry(64, 64)
    assert [geometry.latent_frames(n) for n in (0, 1, 2, 5, 6, 49)] == [0, 1, 2, 2, 3, 13]
    assert [geometry.frames(n) for n in (0, 1, 2, 13)] == [0, 1, 5, 49]
    assert [geometry.latent_of(f) for f in (0, 1, 4, 5, 8, 9)] == [0, 1, 1, 2, 2, 3]
    assert [geometry.frame_range(i, 1) for i in range(3)] == [(0, 1), (1, 5), (5, 9)]
    assert (geometry.token_grid, geometry.tokens_per_frame) == ((4, 4), 16)
    with pytest.raises(ValueError, match="multiple of 16"):
        LatentGeometry(60, 64)


@pytest.mark.parametrize("plan", [ChunkPlan(1, 1, 1, 8), ChunkPlan(3, 1, 4, 6), ChunkPlan(3, 3, 3, 3)])
def test_chunk_plan_indexes_itself(plan: ChunkPlan) -> None:
    frame = 0
    for chunk in range(6):
        assert plan.start(chunk) == frame
        for _ in range(plan.length(chunk)):
            assert plan.index_of(frame) == chunk
            frame += 1
