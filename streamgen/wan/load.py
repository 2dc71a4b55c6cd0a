"""From a Wan-family config and its weights to the parts that a pipeline is assembled of."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import torch

from models.causal_dit import CausalDiT
from models.live_lora import LiveLoras, factor_tensors
from models.motion_encoder import MotionEncoder
from models.rope import RotaryEmbedding3D
from models.tiny_decoder import TinyDecoder
from models.wan_vae import WanVAE

from ..checkpoints.digest import layout_tensors, tensor_digest
from ..checkpoints.hub import HubSource, is_hub
from ..engine.choice import AtLoad, default_runner
from ..engine.networks import Networks
from ..engine.quantize import (
    Quantization,
    cannot_be,
    check_quantization,
    default_quantization,
    of_linears,
)
from ..errors import CheckpointError, InputError
from ..stream.model import ModelParts
from .config import CONFIG, WanConfig, read_wan_config
from .fit import Choices, fitted
from .loras import check_twice, live_factor_count, live_loras, live_notes, with_loras
from .memory import GIB, Setup, build_decoder, check_memory, stream_check
from .options import TextOptions, WanOptions
from .pictures import size_note
from .text import HashedPrompts, UMT5Prompts
from .weights import (
    WanTensors,
    assign,
    gather,
    has_tiny_decoder,
    placed,
    random_tensors,
    with_decoder,
)

_SEED = 0


def load_wan(
    name: str,
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    options: WanOptions | None = None,
    at_load: AtLoad | None = None,
) -> ModelParts:
    """Load a model of this family.

    Args:
        path: its config file.
        dtype: of the diffusion network; the picture decoder has it too, but is float32 on the CPU.
        at_load: what its streams are computed with. Eight bits that are known now are all that is kept of
            the layers that they round.

    Raises:
        CheckpointError: no weights, or ones that are damaged or do not fit the config or the memory;
            InputError: eight bits that cannot be had.
    """
    options, at_load = options or WanOptions(), at_load or AtLoad()
    config = read_wan_config(path, options.overrides)
    if options.random_weights:
        config = replace(config, text=replace(config.text, kind="hashed"))
    directory: Path | HubSource | None = path.parent if path.name == CONFIG else None
    if options.weights is not None:
        directory, config = placed(options.weights, config)
    if directory is None and not options.random_weights:
        raise CheckpointError(
            f"model {name}: needs its published weights, --weights DIR (see docs/wan.md); "
            "--random-weights runs it without"
        )
    config, note = with_decoder(config, None if options.random_weights else directory)
    check_twice((*options.loras, *options.live_loras))
    setup, fitting = setup_of(config, device, dtype, options.text), None
    setup = replace(setup, keep_full=at_load.keep_full, factors=live_factor_count(options.live_loras))
    setup = replace(setup, quantize=_quantize_at_load(config, setup, device, at_load))
    if options.fit is not None:
        choices = _choices(config, setup, device, at_load)
        choices = replace(choices, tiny=options.random_weights or has_tiny_decoder(config, directory))
        config, setup, fitting = fitted(config, setup, int(options.fit * GIB), choices)
    if options.check_memory:
        check_memory(config, setup, device)
    stream_fits = stream_check(config, setup, device) if options.check_memory else None
    options.tell("drawing weights" if options.random_weights else f"reading {directory}")
    tensors = _tensors(config, None if options.random_weights else directory, dtype)
    assert tensors.dit is not None
    if options.loras:
        options.tell("merging LoRAs")
    tensors.dit, merged = with_loras(tensors.dit, options.loras)
    live = live_loras(tensors.dit, options.live_loras)
    if options.note is not None:
        for line in (*tensors.notes(), *merged, *live_notes(live)):
            options.note(line)
    digest = _digest(config, tensors, options, live)
    tell = partial(options.tell, "placing weights")
    networks = _networks(config, tensors, str(directory or name), device, setup, tell)
    prompts = prompt_encoder(config, directory, options.text_encoder, options.text)
    notes = [] if note is None else [note]
    if options.overrides:
        own = read_wan_config(path)
        notes += filter(None, [size_note((config.width, config.height), (own.width, own.height))])
    # random weights have nothing to choose by, and have seen nothing
    told = (*filter(None, [fitting]), *(() if options.random_weights else notes))
    # what the files are in is tried once more where it could not be had, and said
    quantize = config.quantize if setup.quantize == "none" and at_load.quantize is None else setup.quantize
    return ModelParts(name, config, networks, prompts, digest, stream_fits, told, quantize, live)


def _quantize_at_load(config: WanConfig, setup: Setup, device: torch.device, at_load: AtLoad) -> str:
    """What streams have in eight bits as far as is known at load, and can be had.

    Raises:
        InputError: it was asked for and cannot be had.
    """
    told = at_load.quantize or default_quantization()
    name = check_quantization(told or config.quantize)
    linears = of_linears(name)
    if linears == "none":
        return name
    reason = cannot_be(config.dit, device, setup.dtype, cast(Quantization, linears))
    if reason is not None and told is not None:
        raise InputError(f"quantize {linears}: {reason}")
    return name if reason is None else "none"


def _choices(config: WanConfig, setup: Setup, device: torch.device, at_load: AtLoad) -> Choices:
    """Which eight bits `--fit` may take."""
    told = at_load.quantize or default_quantization()
    runner = at_load.runner or default_runner()
    if told is not None or at_load.keep_full or runner == "onnx":
        return Choices()
    linears = cannot_be(config.dit, device, setup.dtype, "int8") is None
    cache = runner in ("auto", "plain") and not at_load.several and not setup.factors
    return Choices(linears=linears, cache=cache)


def setup_of(config: WanConfig, device: torch.device, dtype: torch.dtype, text: TextOptions) -> Setup:
    """What the memory of a stream with the own settings of a model depends on; `dtype` of its network."""
    same = torch.device(text.device).type == device.type
    return Setup(
        config.sampling.plan(config.plan),
        dtype,
        torch.float32 if device.type == "cpu" else dtype,
        config.decoder,
        text.stored if same else None,
    )


def load_vae(config: WanConfig, directory: Path, device: torch.device) -> tuple[WanVAE, str]:
    """The autoencoder alone in float32, frozen, which training encodes clips with, and its digest.

    Raises:
        CheckpointError: no weights of it, or ones that are damaged or do not fit the config.
    """
    tensors = gather(config, directory, ("vae",)).vae
    assert tensors is not None
    digest = tensor_digest(tensors)
    with torch.device("meta"):
        vae = WanVAE(config.vae)
    _place_statistics(vae, config, device, torch.float32)
    assign(vae, tensors, f"weights {directory} (vae decoder)", device, torch.float32)
    return vae, digest


def _tensors(config: WanConfig, directory: Path | HubSource | None, dtype: torch.dtype) -> WanTensors:
    part = config.decoder_part
    if directory is not None:
        return gather(config, directory, ("dit",) if part is None else ("dit", part))
    with torch.device("meta"):
        dit = CausalDiT(config.dit)
    found = WanTensors(dit=random_tensors(dit, _SEED, dtype))
    codec = build_decoder(config, config.decoder)
    if part is not None and codec is not None:
        setattr(found, part, random_tensors(codec, _SEED + 1, torch.float32))
    return found


def _networks(
    config: WanConfig,
    tensors: WanTensors,
    where: str,
    device: torch.device,
    setup: Setup,
    tell: Callable[[float], None],
) -> Networks:
    with torch.device("meta"):
        dit = CausalDiT(config.dit)
    codec = build_decoder(config, config.decoder)
    assert tensors.dit is not None
    with device:
        # its frequencies are no weights, so the meta device has left them empty
        dit.rope = RotaryEmbedding3D(config.dit.head_dim, spacing=config.dit.patches.spacing)
    linears = "none" if setup.keep_full else of_linears(setup.quantize)
    kind = None if linears == "none" else cast(Quantization, linears)
    assign(dit, tensors.dit, f"weights {tensors.place('dit', where)} (dit)", device, setup.dtype, tell, kind)
    if codec is not None and config.decoder_part is not None:
        codec_tensors = vars(tensors)[config.decoder_part]
        _place_statistics(codec, config, device, setup.codec_dtype)
        place = tensors.place(config.decoder_part, where)
        assign(codec, codec_tensors, f"weights {place} ({config.decoder} decoder)", device, setup.codec_dtype)
    motion = None
    if config.motion_encoder is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            # published weights have none: its projection is random, the network's new channels are zero
            motion = MotionEncoder(config.motion_encoder)
        if tensors.motion_encoder is not None:
            assign(motion, tensors.motion_encoder, f"weights {where} (motion_encoder)", device, setup.dtype)
        motion.to(device, setup.dtype).eval().requires_grad_(False)
    return Networks(codec, dit, None, motion)


def _place_statistics(
    codec: WanVAE | TinyDecoder, config: WanConfig, device: torch.device, dtype: torch.dtype
) -> None:
    """Statistics are part of the config, not of the weights, so a module of the meta device has none yet."""
    if isinstance(codec, WanVAE):
        codec.latent_mean = torch.tensor(config.vae.latent_mean, device=device, dtype=dtype)
        codec.latent_std = torch.tensor(config.vae.latent_std, device=device, dtype=dtype)
    else:
        codec.latent_mean = torch.zeros(config.tiny_decoder.latent_channels, device=device, dtype=dtype)


def prompt_encoder(
    config: WanConfig, directory: Path | HubSource | None, source: str | None, options: TextOptions
) -> UMT5Prompts | HashedPrompts:
    """What encodes a model's prompts, nothing of it loaded yet.

    Args:
        directory: a weights folder that may hold the encoder.
        source: a folder, file or hub name, over what the folder and the config say.

    Raises:
        CheckpointError: the config names one by an absolute path, and it is not there.
    """
    if config.text.kind == "hashed":
        return HashedPrompts(config.text)
    if source is None:
        source = _encoder_of(config, directory)
    return UMT5Prompts(source or config.text.source, config.text, options)


def _encoder_of(config: WanConfig, directory: Path | HubSource | None) -> str | None:
    """The text encoder that a config names: of the places that are there the first."""
    for name in config.sources.text_encoder:
        if is_hub(name):
            return name
        own = Path(name).is_absolute()
        path = Path(name) if own or not isinstance(directory, Path) else directory / name
        if path.exists() and (own or isinstance(directory, Path)):
            return str(path)
        if own:
            raise CheckpointError(
                f"text encoder {path}: no such file or folder; --text-encoder names another place"
            )
    return None


def _digest(config: WanConfig, tensors: WanTensors, options: WanOptions, live: LiveLoras | None) -> str:
    """Fingerprint of the weights, and of live LoRAs: a saved stream goes on with the same ones alone."""
    own = _weights_digest(config, tensors, options)
    if live is None:
        return own
    apart = tensor_digest(factor_tensors(live))
    return hashlib.sha256(f"{own}|live|{live.names}|{live.defaults}|{apart}".encode()).hexdigest()


def _weights_digest(config: WanConfig, tensors: WanTensors, options: WanOptions) -> str:
    """Of their bytes, or for random ones of what they are drawn from."""
    if options.random_weights and not options.loras:
        sizes = f"random|{_SEED}|{config.dit}|{config.vae}|{config.decoder}|{config.tiny_decoder}"
        return hashlib.sha256(sizes.encode()).hexdigest()
    parts = {
        "dit": tensors.dit,
        "vae": tensors.vae,
        "tiny_decoder": tensors.tiny_decoder,
        "motion_encoder": tensors.motion_encoder,
    }
    named = {f"{part}.{n}": x for part, group in parts.items() if group for n, x in group.items()}
    return tensor_digest(named | layout_tensors(config.dit))
