"""How much memory a Wan-family stream takes, told before anything is allocated, and what would fit."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.causal_dit import CausalDiT
from models.context import ChunkPlan
from models.tiny_decoder import TinyDecoder
from models.wan_vae import WanVAE

from ..errors import CheckpointError
from ..machine import free_bytes
from .config import WanConfig

GIB = 2**30
# the encoder of UMT5-XXL: 256,384 words, 24 layers
UMT5_XXL_PARAMETERS = 5_680_910_336


@dataclass(frozen=True)
class Setup:
    """What the memory of a stream depends on besides its config.

    Attributes:
        plan: chunks, sink and window of the stream.
        dtype, codec_dtype: of the diffusion network and its cache, and of the picture decoder.
        decoder: `vae` or `tiny`.
        explicit_attention: whether scores are written out (the CPU) or stay in the kernel.
        text_dtype: of a text encoder that lies on the same device; None where it does not.
    """

    plan: ChunkPlan
    dtype: torch.dtype
    codec_dtype: torch.dtype
    decoder: str
    explicit_attention: bool
    text_dtype: torch.dtype | None


def memory_parts(config: WanConfig, setup: Setup) -> dict[str, int]:
    """Bytes by part: weights of the network and the decoder, the key-value cache, keys and values of two
    prompts, the decoder's state, and what a step takes for a moment (of network and decoder, whichever is
    more).
    """
    size = setup.dtype.itemsize
    dit, geometry = config.dit, config.geometry()
    with torch.device("meta"):
        network, codec = CausalDiT(dit), _codec(config, setup.decoder)
    tokens, attention = geometry.tokens_per_frame, setup.plan.attention_frames
    decoder_state, decoder_step = _decoder_bytes(config, codec, setup)
    parts = {
        "network": _numbers(network) * size,
        "decoder": _numbers(codec) * setup.codec_dtype.itemsize,
        "cache": dit.layers * dit.dim * tokens * (2 * attention + setup.plan.sink_frames) * size,
        "prompts": 2 * (2 * dit.layers * config.text.length * dit.dim * size),
        "decoder state": decoder_state,
        "step": max(_network_step(config, setup), decoder_step),
    }
    if setup.text_dtype is not None and config.text.kind == "umt5":
        parts["text encoder"] = UMT5_XXL_PARAMETERS * setup.text_dtype.itemsize
    return parts


def check_memory(config: WanConfig, setup: Setup, device: torch.device) -> dict[str, int]:
    """The estimate, once it is known to fit.

    Raises:
        CheckpointError: it does not fit what is free; says what would.
    """
    parts, free = memory_parts(config, setup), free_bytes(device)
    total = sum(parts.values())
    if free is None or total <= free:
        return parts
    rows = ", ".join(f"{name} {_gib(value)}" for name, value in parts.items() if value >= GIB / 10)
    fitting = [f"{name} ({_gib(needed)})" for name, needed in alternatives(config, setup) if needed <= free]
    advice = (
        f"would fit: {'; '.join(fitting[:3])}" if fitting else "nothing smaller at this picture size fits"
    )
    raise CheckpointError(
        f"memory: {config.width}x{config.height} needs {_gib(total)} GiB on {device} ({rows}), "
        f"{_gib(free)} are free; {advice}"
    )


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
    chunk = now.plan.chunk_frames
    if now.plan.window_frames > chunk:
        half = max(chunk, now.plan.window_frames // 2 // chunk * chunk)
        now = replace(now, plan=replace(now.plan, window_frames=half))
        steps.append((f"window_frames {half}", now))
    names: list[str] = []
    out = []
    for name, changed in steps:
        names.append(name)
        out.append((" + ".join(names), sum(memory_parts(config, changed).values())))
    return out


def _codec(config: WanConfig, decoder: str) -> WanVAE | TinyDecoder:
    return WanVAE(config.vae) if decoder == "vae" else TinyDecoder(config.tiny_decoder)


def _network_step(config: WanConfig, setup: Setup) -> int:
    """Most bytes that one forward holds besides weights and cache."""
    dit, size = config.dit, setup.dtype.itemsize
    tokens = config.geometry().tokens_per_frame
    # a joint recache takes all frames of the attention span at once
    joint = config.sampling.recache_mode == "joint"
    keys = tokens * setup.plan.attention_frames
    queries = keys if joint else tokens * setup.plan.chunk_frames
    if setup.explicit_attention:
        # scores in the working precision and in float32, their softmax, and keys and values laid out anew
        scores = dit.heads * queries * max(keys, config.text.length)
        attention = scores * (4 if size == 4 else 2 * size + 4) * 2 + 2 * keys * dit.dim * size
    else:
        attention = 0
    stream = 6 * queries * dit.dim * size
    feed_forward = 2 * queries * dit.ffn_dim * size
    return stream + max(attention, feed_forward)


def _decoder_bytes(config: WanConfig, codec: WanVAE | TinyDecoder, setup: Setup) -> tuple[int, int]:
    """Bytes of the decoder's state, and most bytes that one latent frame takes on its way through it; read
    off a run without values.
    """
    most = 0

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal most
        # input and output of the convolution, the input of its block, and as much for its layout
        most = max(most, 3 * inputs[0].numel() + 2 * output.numel())

    hooks = [m.register_forward_hook(watch) for m in codec.modules() if isinstance(m, (nn.Conv3d, nn.Conv2d))]
    geometry = config.geometry()
    frames = 1 if setup.decoder == "vae" else setup.plan.chunk_frames
    latents = torch.empty(
        1, frames, geometry.latent_channels, geometry.latent_height, geometry.latent_width, device="meta"
    )
    state = codec.initial_state(1, "meta", torch.float32)
    with torch.no_grad():
        for _ in range(2):
            _, state = codec.decode_chunk(latents, state)
    for hook in hooks:
        hook.remove()
    size = setup.codec_dtype.itemsize
    held = sum(x.numel() for x in state.memory.values()) * size
    # a new state is made beside the old one
    return held, most * size + held


def _numbers(module: nn.Module) -> int:
    return sum(x.numel() for x in module.parameters())


def _gib(value: int) -> str:
    return f"{value / GIB:.1f}"
