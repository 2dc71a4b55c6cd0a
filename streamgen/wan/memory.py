"""How much memory a Wan-family model and its streams take, told before anything is allocated, and what would
fit.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.causal_dit import CausalDiT
from models.context import ChunkPlan
from models.tiny_decoder import TinyDecoder
from models.wan_vae import WanVAE

from ..checkpoints.memory import (
    GIB,
    cache_bytes,
    expect_room,
    gib,
    network_step_bytes,
    parameter_count,
    prompt_bytes,
    smaller_windows,
)
from ..errors import CheckpointError
from ..machine import free_bytes
from .config import WanConfig

__all__ = [
    "GIB",
    "Setup",
    "alternatives",
    "check_memory",
    "fitted",
    "memory_parts",
    "stream_check",
    "stream_parts",
]

# the encoder of UMT5-XXL: 256,384 words, 24 layers
UMT5_XXL_PARAMETERS = 5_680_910_336


@dataclass(frozen=True)
class Setup:
    """What the memory of a stream depends on besides its config.

    Attributes:
        plan: chunks, sink and window of the stream.
        dtype, codec_dtype: of the diffusion network and its cache, and of the picture decoder.
        decoder: `vae`, `tiny` or `none`.
        text_dtype: of a text encoder that lies on the same device; None where it does not.
    """

    plan: ChunkPlan
    dtype: torch.dtype
    codec_dtype: torch.dtype
    decoder: str
    text_dtype: torch.dtype | None


def memory_parts(config: WanConfig, setup: Setup) -> dict[str, int]:
    """Bytes of a model with one stream by part: weights of the network, the decoder and the text encoder,
    and what the stream takes.
    """
    with torch.device("meta"):
        network = CausalDiT(config.dit)
    codec = build_decoder(config, setup.decoder)
    parts = {"network": parameter_count(network) * setup.dtype.itemsize}
    if codec is not None:
        parts["decoder"] = parameter_count(codec) * setup.codec_dtype.itemsize
    parts |= stream_parts(config, setup)
    if setup.text_dtype is not None and config.text.kind == "umt5":
        parts["text encoder"] = UMT5_XXL_PARAMETERS * setup.text_dtype.itemsize
    return parts


def stream_parts(config: WanConfig, setup: Setup) -> dict[str, int]:
    """Bytes of one more stream of a model that is loaded, by part: the key-value cache, keys and values of
    two prompts, the decoder's state, and what a step takes for a moment (of network and decoder, whichever is
    more).
    """
    dit, geometry, length = config.dit, config.geometry(), config.text.length
    parts = {
        "cache": cache_bytes(dit, geometry, setup.plan, setup.dtype),
        "prompts": 2 * prompt_bytes(dit, length, setup.dtype),
    }
    step = network_step_bytes(
        dit,
        geometry.tokens_per_frame,
        setup.plan,
        setup.dtype,
        joint=config.sampling.recache_mode == "joint",
    )
    codec = build_decoder(config, setup.decoder)
    if codec is not None:
        parts["decoder state"], decoding = _decoder_bytes(config, codec, setup)
        step = max(step, decoding)
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


def stream_check(config: WanConfig, setup: Setup, device: torch.device) -> Callable[[ChunkPlan], None]:
    """What raises CheckpointError where one more stream with a plan does not fit what is free now; the
    weights are there already.
    """
    known: dict[ChunkPlan, dict[str, int]] = {}

    def parts_of(plan: ChunkPlan) -> dict[str, int]:
        if plan not in known:
            known[plan] = stream_parts(config, replace(setup, plan=plan))
        return known[plan]

    def smaller(plan: ChunkPlan) -> list[tuple[str, int]]:
        plans = [(window, replace(plan, window_frames=window)) for window in smaller_windows(plan)]
        return [(f"window_frames {window}", sum(parts_of(other).values())) for window, other in plans]

    def check(plan: ChunkPlan) -> None:
        what = f"a stream of {config.width}x{config.height}"
        expect_room(parts_of(plan), free_bytes(device), what, device, lambda: smaller(plan))

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


def fitted(
    config: WanConfig, setup: Setup, room: int, tiny_there: bool
) -> tuple[WanConfig, Setup, str | None]:
    """A config and setup that fit into so many bytes, and one line on what was changed for it, None where
    nothing was. Of the ways to need less the mildest is taken: TAEHV for the Wan VAE, then smaller windows.

    Args:
        tiny_there: whether there are weights of TAEHV.

    Raises:
        CheckpointError: nothing fits; says what the smallest needs.
    """
    tries: list[tuple[list[str], Setup]] = [([], setup)]
    if setup.decoder == "vae" and tiny_there:
        tries.append((["decoder tiny"], replace(setup, decoder="tiny")))
    changes, least = tries[-1]
    for window in smaller_windows(setup.plan):
        smaller = replace(least, plan=replace(least.plan, window_frames=window))
        tries.append(([*changes, f"window_frames {window}"], smaller))
    for changed, found in tries:
        needed = sum(memory_parts(config, found).values())
        if needed > room:
            continue
        sampling = replace(config.sampling, window_frames=found.plan.window_frames)
        own = replace(config, sampling=sampling)
        if found.decoder == "tiny":
            own = replace(own, decoder="tiny")
        told = f"--fit: {' + '.join(changed)}, {gib(needed)} of {gib(room)} GiB" if changed else None
        return own, found, told
    words, size = " + ".join(tries[-1][0]) or "what there is", f"{config.width}x{config.height}"
    raise CheckpointError(
        f"--fit: expected room in {gib(room)} GiB at {size}, found that {words} needs {gib(needed)}; a "
        "smaller picture (--size) needs less"
    )


def build_decoder(config: WanConfig, decoder: str) -> WanVAE | TinyDecoder | None:
    """A picture decoder by its name in configs, on the meta device; None for `none`."""
    with torch.device("meta"):
        if decoder == "none":
            return None
        return WanVAE(config.vae) if decoder == "vae" else TinyDecoder(config.tiny_decoder)


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
