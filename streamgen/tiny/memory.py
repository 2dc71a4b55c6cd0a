"""How much memory a tiny-family model and its streams take, told before anything is allocated."""

from collections.abc import Callable
from dataclasses import replace

import torch

from models.causal_dit import CausalDiT
from models.context import ChunkPlan
from models.motion_encoder import MotionEncoder
from models.text_encoder import TextEncoder
from models.video_tokenizer import VideoTokenizer

from ..checkpoints.memory import (
    FULL,
    Bits,
    cache_bytes,
    expect_room,
    network_step_bytes,
    parameter_count,
    prompt_bytes,
    smaller_windows,
)
from ..checkpoints.outline import ShapesAlone
from ..machine import free_bytes
from .config import TinyConfig


def stream_parts(
    config: TinyConfig, plan: ChunkPlan, dtype: torch.dtype, bits: Bits = FULL
) -> dict[str, int]:
    """Bytes of one more stream of a model that is loaded, by part: cache, two prompts, the decoder's state,
    and what a step takes for a moment.

    Args:
        dtype: of the diffusion network; the tokenizer is float32.
    """
    geometry, length = config.geometry(), config.text_encoder.length
    held, decoding = _decoder_bytes(config, plan.chunk_frames)
    step = network_step_bytes(
        config.dit,
        geometry.tokens_per_frame,
        plan,
        dtype,
        joint=config.sampling.recache_mode == "joint",
        bits=bits,
    )
    return {
        "cache": cache_bytes(config.dit, geometry, plan, dtype, bits),
        "prompts": 2 * prompt_bytes(config.dit, length, dtype),
        "decoder state": held,
        "step": max(step, decoding),
    }


def check_memory(config: TinyConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Raise CheckpointError where a model with one stream of its own settings does not fit what is free."""
    with ShapesAlone():
        modules = (
            CausalDiT(config.dit),
            TextEncoder(config.text_encoder),
            MotionEncoder(config.motion_encoder),
        )
        tokenizer = VideoTokenizer(config.tokenizer)
    weights = {
        "networks": sum(map(parameter_count, modules)) * dtype.itemsize,
        "tokenizer": parameter_count(tokenizer) * torch.float32.itemsize,
    }
    plan = config.sampling.plan(config.plan)
    parts = weights | stream_parts(config, plan, dtype)
    held = sum(weights.values())
    what = f"{config.width}x{config.height}"
    smaller = lambda: [(n, held + x) for n, x in _smaller(config, plan, dtype)]  # noqa: E731
    expect_room(parts, free_bytes(device), what, device, smaller)


def stream_check(
    config: TinyConfig, device: torch.device, dtype: torch.dtype
) -> Callable[[ChunkPlan, bool], None]:
    """What raises CheckpointError where one more stream with a plan, its cache in eight bits or not, does not
    fit what is free now; the weights are there already.
    """

    def check(plan: ChunkPlan, cache_in_bits: bool) -> None:
        bits = Bits(cache=cache_in_bits)
        what = f"a stream of {config.width}x{config.height}"
        smaller = lambda: _smaller(config, plan, dtype, bits)  # noqa: E731
        expect_room(stream_parts(config, plan, dtype, bits), free_bytes(device), what, device, smaller)

    return check


def _smaller(
    config: TinyConfig, plan: ChunkPlan, dtype: torch.dtype, bits: Bits = FULL
) -> list[tuple[str, int]]:
    plans = [(window, replace(plan, window_frames=window)) for window in smaller_windows(plan)]
    return [(f"window_frames {w}", sum(stream_parts(config, p, dtype, bits).values())) for w, p in plans]


def _decoder_bytes(config: TinyConfig, frames: int) -> tuple[int, int]:
    """Bytes of the decoder's state (the temporal layers' keys and values, see `TokenizerState`), and an
    estimate of what `frames` latent frames take on their way through it.
    """
    sizes, geometry = config.tokenizer, config.geometry()
    cells = geometry.latent_height * geometry.latent_width
    layers, past = sizes.decoder_temporal, sizes.temporal_context - 1
    held = 2 * layers * cells * past * sizes.dim * torch.float32.itemsize
    # a layer's input, output, queries, keys, values and hidden units, or the last layers at full resolution
    tokens = frames * cells * sizes.dim * (6 + 2 * sizes.ffn_mult)
    area = geometry.height * geometry.width
    pixels = 3 * frames * sizes.temporal * area * (sizes.in_channels + sizes.refine_channels)
    # a new state is made beside the old one
    return held, max(tokens, pixels) * torch.float32.itemsize + held
