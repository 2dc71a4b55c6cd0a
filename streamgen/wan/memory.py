"""How much memory a Wan-family model and its streams take, told before anything is allocated, and what would
fit.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from models.context import ChunkPlan
from models.tiny_decoder import TinyDecoder, TinyDecoderConfig
from models.wan_vae import WanVAE, WanVAEConfig

from ..checkpoints.memory import (
    GIB,
    Bits,
    cache_bytes,
    expect_room,
    network_bytes,
    network_step_bytes,
    parameter_count,
    prompt_bytes,
    rounded_numbers,
    smaller_windows,
)
from ..engine.geometry import LatentGeometry
from ..engine.quantize import CACHE, keeps_cache, of_linears
from ..machine import free_bytes
from .config import WanConfig

__all__ = [
    "GIB",
    "Setup",
    "alternatives",
    "check_memory",
    "memory_parts",
    "stream_check",
    "stream_parts",
]

# the encoder of UMT5-XXL: 256,384 words, 24 layers
UMT5_XXL_PARAMETERS = 5_680_910_336
_UMT5_XXL_EMBEDDINGS = 256_384 * 4096


@dataclass(frozen=True)
class Setup:
    """What the memory of a stream depends on besides its config.

    Attributes:
        plan: chunks, sink and window of the stream.
        dtype, codec_dtype: of the diffusion network and its cache, and of the picture decoder.
        decoder: `vae`, `tiny` or `none`.
        text_dtype: of a text encoder that lies on the same device, int8 where its linear layers are so; None
            where it does not.
        quantize: what is in eight bits, a name of `engine.quantize.QUANTIZATIONS`.
        keep_full: whether weights are there in full precision, too, where they are in eight bits.
        factors: how many numbers the factors of live LoRAs have.
    """

    plan: ChunkPlan
    dtype: torch.dtype
    codec_dtype: torch.dtype
    decoder: str
    text_dtype: torch.dtype | None
    quantize: str = "none"
    keep_full: bool = False
    factors: int = 0

    @property
    def bits(self) -> Bits:
        """What is in eight bits."""
        return Bits(of_linears(self.quantize) != "none", keeps_cache(self.quantize))


def memory_parts(config: WanConfig, setup: Setup) -> dict[str, int]:
    """Bytes of a model with one stream by part: weights of the network, the decoder and the text encoder,
    factors of live LoRAs, and what the stream takes.
    """
    parts = {"network": network_bytes(config.dit, setup.dtype, setup.bits)}
    if setup.bits.linears and setup.keep_full:
        parts["network"] += rounded_numbers(config.dit) * setup.dtype.itemsize
    if setup.factors:
        parts["live LoRAs"] = setup.factors * setup.dtype.itemsize
    if setup.decoder != "none":
        parts["decoder"] = _walk(config, setup).numbers * setup.codec_dtype.itemsize
    parts |= stream_parts(config, setup)
    if setup.text_dtype is not None and config.text.kind == "umt5":
        parts["text encoder"] = text_encoder_bytes(setup.text_dtype)
    return parts


def text_encoder_bytes(dtype: torch.dtype) -> int:
    """Bytes of UMT5-XXL; in int8 its embeddings of words stay as they are published."""
    kept = _UMT5_XXL_EMBEDDINGS if dtype == torch.int8 else 0
    return (UMT5_XXL_PARAMETERS - kept) * dtype.itemsize + kept * torch.bfloat16.itemsize


def stream_parts(config: WanConfig, setup: Setup) -> dict[str, int]:
    """Bytes of one more stream of a model that is loaded, by part: the key-value cache, keys and values of
    two prompts, the decoder's state, and what a step takes for a moment (of network and decoder, whichever is
    more).
    """
    dit, geometry, length = config.dit, config.geometry(), config.text.length
    parts = {
        "cache": cache_bytes(dit, geometry, setup.plan, setup.dtype, setup.bits),
        "prompts": 2 * prompt_bytes(dit, length, setup.dtype),
    }
    step = network_step_bytes(
        dit,
        geometry.tokens_per_frame,
        setup.plan,
        setup.dtype,
        joint=config.sampling.recache_mode == "joint",
        bits=setup.bits,
    )
    if setup.decoder != "none":
        walk, size = _walk(config, setup), setup.codec_dtype.itemsize
        parts["decoder state"] = walk.held * size
        # a new state is made beside the old one, which the stream keeps until the step is done; with several
        # latent frames, those between give way to those after them
        step = max(step, (walk.most + walk.held) * size)
    return parts | {"step": step}


def check_memory(config: WanConfig, setup: Setup, device: torch.device) -> dict[str, int]:
    """The estimate of a model with one stream, once it is known to fit.

    Raises:
        CheckpointError: it does not fit what is free; says what would.
    """
    parts = memory_parts(config, setup)
    size = f"{config.width}x{config.height}"
    expect_room(parts, free_bytes(device), size, device, lambda: alternatives(config, setup))
    return parts


def stream_check(config: WanConfig, setup: Setup, device: torch.device) -> Callable[[ChunkPlan, bool], None]:
    """What raises CheckpointError where one more stream with a plan, its cache in eight bits or not, does not
    fit what is free now; the weights are there already.
    """

    def parts_of(plan: ChunkPlan, cache_in_bits: bool) -> dict[str, int]:
        linears = of_linears(setup.quantize)
        name = (f"{linears}+{CACHE}" if linears != "none" else CACHE) if cache_in_bits else linears
        return stream_parts(config, replace(setup, plan=plan, quantize=name))

    def smaller(plan: ChunkPlan, cache_in_bits: bool) -> list[tuple[str, int]]:
        plans = [replace(plan, window_frames=window) for window in smaller_windows(plan)]
        return [
            (f"window_frames {other.window_frames}", sum(parts_of(other, cache_in_bits).values()))
            for other in plans
        ]

    def check(plan: ChunkPlan, cache_in_bits: bool) -> None:
        what, parts = f"a stream of {config.width}x{config.height}", parts_of(plan, cache_in_bits)
        expect_room(parts, free_bytes(device), what, device, lambda: smaller(plan, cache_in_bits))

    return check


def alternatives(config: WanConfig, setup: Setup) -> list[tuple[str, int]]:
    """Ways to need less, from the mildest on, with the bytes that each needs; each adds to those before."""
    steps: list[tuple[str, Setup]] = []
    now = setup
    if now.text_dtype is not None and config.text.kind == "umt5":
        now = replace(now, text_dtype=None)
        steps.append(("text encoder on another device or from the prompt cache", now))
    if now.dtype.itemsize > 2:
        now = replace(now, dtype=torch.bfloat16)
        steps.append(("dtype bfloat16", now))
    if now.decoder == "vae":
        now = replace(now, decoder="tiny")
        steps.append(("decoder tiny", now))
    for window in smaller_windows(now.plan)[:1]:
        now = replace(now, plan=replace(now.plan, window_frames=window))
        steps.append((f"window_frames {window}", now))
    names: list[str] = []
    out = []
    for name, changed in steps:
        names.append(name)
        out.append((" + ".join(names), sum(memory_parts(config, changed).values())))
    return out


def build_decoder(config: WanConfig, decoder: str) -> WanVAE | TinyDecoder | None:
    """A picture decoder by its name in configs, on the meta device; None for `none`."""
    with torch.device("meta"):
        if decoder == "none":
            return None
        return WanVAE(config.vae) if decoder == "vae" else TinyDecoder(config.tiny_decoder)


@dataclass(frozen=True)
class _Walk:
    """What a decoder has and takes, in numbers: its weights, its state, and most that one latent frame (of
    TAEHV a chunk) takes on its way through it.
    """

    numbers: int
    held: int
    most: int


def _walk(config: WanConfig, setup: Setup) -> _Walk:
    frames = 1 if setup.decoder == "vae" else setup.plan.chunk_frames
    sizes = config.vae if setup.decoder == "vae" else config.tiny_decoder
    return _walked(sizes, config.geometry(), frames)


@lru_cache(maxsize=64)
def _walked(sizes: WanVAEConfig | TinyDecoderConfig, geometry: LatentGeometry, frames: int) -> _Walk:
    """Read off a run without values."""
    with torch.device("meta"):
        codec = WanVAE(sizes) if isinstance(sizes, WanVAEConfig) else TinyDecoder(sizes)
    most = 0

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal most
        # input and output of the convolution, the input of its block, and as much for its layout
        most = max(most, 3 * inputs[0].numel() + 2 * output.numel())

    for module in codec.modules():
        if isinstance(module, nn.Conv3d | nn.Conv2d):
            module.register_forward_hook(watch)
    latents = torch.empty(
        1, frames, geometry.latent_channels, geometry.latent_height, geometry.latent_width, device="meta"
    )
    state = codec.initial_state(1, "meta", torch.float32)
    with torch.no_grad():
        for _ in range(2):
            _, state = codec.decode_chunk(latents, state)
    return _Walk(parameter_count(codec), sum(x.numel() for x in state.memory.values()), most)
