"""Published weights to our format, with where they came from, and back to the published namings."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import OmegaConf
from torch import Tensor

from models.causal_dit import CausalDiT
from models.state_dict import Kind, Tensors, to_diffusers, widen_patch_embedding
from models.tensor_file import write_tensors
from models.unwrap import GENERATOR_SECTIONS
from models.wan_vae import WanVAE

from ..checkpoints.digest import file_sha256
from ..checkpoints.directory import MODEL, TOKENIZER, check_tensors
from ..checkpoints.foreign import KIND_NAMES, fetch_weights, names_weights, read_foreign
from ..checkpoints.hub import HubSource, is_hub, list_files, parse_hub
from ..engine.quantize import Quantization, stored
from ..errors import CheckpointError, InputError
from ..machine import own_version
from ..structured import to_plain
from .config import CONFIG, WanConfig, config_file, read_wan_config, wan_model_names
from .loras import LoraFile, with_loras
from .sizes import assumed, dit_config_of, vae_config_of
from .weights import TINY_DECODER, SourceFile, WanTensors, gather

Naming = Literal["streamgen", "wan", "diffusers"]
CARD = "card.json"
_FILES: dict[Naming, dict[str, str]] = {
    "streamgen": {"dit": MODEL, "vae": TOKENIZER, "tiny_decoder": TINY_DECODER},
    "wan": {
        "dit": "diffusion_pytorch_model.safetensors",
        "vae": "Wan2.1_VAE.pth",
        "tiny_decoder": "taew2_1.pth",
    },
    "diffusers": {
        "dit": "transformer/diffusion_pytorch_model.safetensors",
        "vae": "vae/diffusion_pytorch_model.safetensors",
        "tiny_decoder": "taew2_1.safetensors",
    },
}


def convert_weights(
    source: str | Path,
    output: Path,
    to: Naming = "streamgen",
    model: str | None = None,
    overrides: tuple[str, ...] = (),
    dtype: torch.dtype | None = None,
    quantize: Quantization | None = None,
    loras: tuple[LoraFile, ...] = (),
) -> dict[str, Any]:
    """Write weights in another naming, and a card that says where they came from.

    Args:
        source: a folder of published weights, one file of them, either on the hub
            (`hf://owner/repo[/file][@revision]`), or a converted folder.
        output: a folder that is empty or not there yet.
        model: the name of the config that they are for; our format needs it, a converted folder has its own.
        dtype: of the written tensors; None keeps each as it is.
        quantize: write the blocks' linear layers in eight bits, in our format alone.
        loras: merged into the network, one after the other.

    Returns:
        the card.

    Raises:
        StreamgenError: unreadable or unfit weights, no or an unknown model, or a folder with files in it.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"-o {output}: expected a folder that is empty or not there yet")
    if quantize is not None and to != "streamgen":
        raise InputError(f"--quantize {quantize}: not with --to {to}, which has no names for the scales")
    place = placed_source(source)
    config = _config(place, model, overrides, needed=to == "streamgen")
    found = _read(place, config)
    if loras:
        if found.dit is None:
            raise InputError(f"--lora: {source} has no network that it could be merged into")
        found.dit, _ = with_loras(found.dit, loras)
    if config is not None:
        _check_fits(found, config, source)
    written = write_model(found, config, output, to, dtype, quantize)
    card = {
        "format": f"streamgen-converted-{to}",
        "model": model,
        "made_by": f"streamgen {own_version()}",
        "sources": [file.to_json() for file in found.files],
        "quantize": quantize,
        "lora_merged": bool(loras) or any(file.part == "lora" for file in found.files),
        "loras": [{"place": lora.place, "strength": lora.strength} for lora in loras],
        "files": written,
    }
    if config is not None:
        card["assumed"] = assumed(config.dit, config.text.length)
    elif found.dit is not None:
        card["assumed"] = assumed(dit_config_of(found.dit))
    (output / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return card


def _check_fits(found: WanTensors, config: WanConfig, source: str | Path) -> None:
    """Raise CheckpointError for a network or VAE that the config, which will be beside it, does not fit."""
    with torch.device("meta"):
        modules = {"dit": CausalDiT(config.dit), "vae": WanVAE(config.vae)}
    for part, module in modules.items():
        tensors = vars(found)[part]
        if tensors is not None:
            check_tensors(module.state_dict(), tensors, f"weights {source} ({part})")


def placed_source(source: str | Path) -> Path | HubSource:
    """Where weights lie: a file of the hub by where it was downloaded to.

    Raises:
        InputError: no name on the hub; CheckpointError: the hub cannot be reached or refuses.
    """
    if not is_hub(source):
        return Path(source)
    named = parse_hub(source)
    return fetch_weights(named) if names_weights(named) else named


def write_model(
    found: WanTensors,
    config: WanConfig | None,
    output: Path,
    to: Naming = "streamgen",
    dtype: torch.dtype | None = None,
    quantize: Quantization | None = None,
) -> dict[str, Any]:
    """Write the parts that are there and, in our format, the config.

    Args:
        dtype: of the written tensors; None keeps each as it is.
        quantize: eight bits of the blocks' linear layers, in our format.

    Returns:
        part, bytes and sha256 of each file by its name.

    Raises:
        InputError: patches overlap, which no other format can say.
        CheckpointError: a file cannot be written.
    """
    if to != "streamgen" and config is not None and config.dit.patches.overlap:
        raise InputError(f"--to {to}: expected a model whose patches do not overlap (dit.patch_stride)")
    parts = {"dit": found.dit, "vae": found.vae, "tiny_decoder": found.tiny_decoder}
    present = {name: tensors for name, tensors in parts.items() if tensors is not None}
    output.mkdir(parents=True, exist_ok=True)
    written: dict[str, Any] = {}
    for part, tensors in present.items():
        path = output / _FILES[to][part]
        if dtype is not None:
            tensors = {n: x.to(dtype) if x.is_floating_point() else x for n, x in tensors.items()}
        if part == "dit" and quantize is not None:
            tensors = stored(tensors, quantize)
        _write(_named(part, tensors, found, to), path)
        if to == "diffusers" and part != "tiny_decoder":
            _write_diffusers_config(part, tensors, config, path.with_name("config.json"))
        written[path.relative_to(output).as_posix()] = {
            "part": part,
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
    if to == "streamgen" and config is not None:
        # a LoRA is merged by now, and the files have our names
        own = replace(
            config,
            sources=replace(config.sources, lora=(), lora_rank=None),
            quantize=quantize or "none",
        )
        OmegaConf.save(
            OmegaConf.create(to_plain(own) | {"sampling": own.sampling.to_json()}), output / CONFIG
        )
    return written


def _config(
    source: Path | HubSource, model: str | None, overrides: tuple[str, ...], needed: bool
) -> WanConfig | None:
    folder = isinstance(source, HubSource) or source.is_dir()
    own = config_file(source) if isinstance(source, Path) and folder else None
    if model is not None:
        path = config_file(model)
        if path is None:
            raise InputError(f"--model {model}: expected one of {', '.join(wan_model_names())}")
        return read_wan_config(path, overrides)
    if own is not None:
        return read_wan_config(own, overrides)
    if needed or folder:
        raise InputError(f"missing --model: expected one of {', '.join(wan_model_names())}")
    return None


def _read(source: Path | HubSource, config: WanConfig | None) -> WanTensors:
    if isinstance(source, HubSource) or source.is_dir():
        assert config is not None
        found = gather(config, source, ("dit",), digests=True)
        for part in ("vae", "tiny_decoder"):
            names = config.sources.vae if part == "vae" else config.sources.tiny_decoder
            if _has_any(source, (*names, _FILES["streamgen"][part])):
                more = gather(config, source, (part,), digests=True)
                found.files += more.files
                found.vae, found.tiny_decoder = more.vae or found.vae, more.tiny_decoder or found.tiny_decoder
        return found
    if config is not None and config.sources.lora:
        raise InputError(
            f"{source}: this model is base + LoRA, expected the folder that holds both, found one file"
        )
    read = read_foreign(source, config.sources.section if config is not None else GENERATOR_SECTIONS)
    kind, sha256 = read.kind, file_sha256(source)
    places: dict[Kind, str] = {"wan_dit": "dit", "wan_vae": "vae", "taehv": "tiny_decoder"}
    if kind not in places:
        raise CheckpointError(
            f"weights {source}: expected a Wan DiT, a Wan VAE or TAEHV, found {KIND_NAMES[kind]}"
        )
    size, notes = source.stat().st_size, tuple(read.notes())
    found = WanTensors(files=[SourceFile(places[kind], source.name, kind, read.section, size, sha256, notes)])
    setattr(found, places[kind], read.tensors)
    if config is not None and found.dit is not None and "patch_embedding.weight" in found.dit:
        try:
            found.dit = widen_patch_embedding(
                found.dit, config.dit.latent_channels + config.dit.motion_channels
            )
        except ValueError as error:
            raise CheckpointError(f"weights {source}: {error}") from None
    return found


def _has_any(source: Path | HubSource, names: tuple[str, ...]) -> bool:
    if isinstance(source, Path):
        return any((source / name).is_file() for name in names)
    there = set(list_files(source.repo, source.revision))
    return any(source.file(name).path in there for name in names)


def _named(part: str, tensors: Tensors, found: WanTensors, to: Naming) -> Mapping[str, Tensor]:
    """A part's tensors under the names of the target; tracks have no place in the published namings."""
    if to == "streamgen":
        if part != "dit":
            return tensors
        motion = found.motion_encoder or {}
        return {f"dit.{n}": x for n, x in tensors.items()} | {
            f"motion_encoder.{n}": x for n, x in motion.items()
        }
    if to == "diffusers" and part != "tiny_decoder":
        return to_diffusers(tensors, "wan_dit" if part == "dit" else "wan_vae")
    return tensors


def _write_diffusers_config(part: str, tensors: Tensors, config: WanConfig | None, path: Path) -> None:
    """What `from_pretrained` of diffusers reads beside the weights."""
    if part == "dit":
        dit = dit_config_of(tensors) if config is None else config.dit
        values: dict[str, Any] = {
            "_class_name": "WanTransformer3DModel",
            "patch_size": [1, dit.patch, dit.patch],
            "num_attention_heads": dit.heads,
            "attention_head_dim": dit.head_dim,
            "in_channels": dit.latent_channels + dit.motion_channels,
            "out_channels": dit.latent_channels,
            "text_dim": dit.text_dim,
            "freq_dim": dit.freq_dim,
            "ffn_dim": dit.ffn_dim,
            "num_layers": dit.layers,
            "eps": dit.eps,
        }
    else:
        vae = vae_config_of(tensors) if config is None else config.vae
        values = {
            "_class_name": "AutoencoderKLWan",
            "base_dim": vae.dim,
            "z_dim": vae.latent_channels,
            "dim_mult": list(vae.multipliers),
            "num_res_blocks": vae.res_blocks,
            "temperal_downsample": list(vae.temporal_down),
            "latents_mean": list(vae.latent_mean),
            "latents_std": list(vae.latent_std),
        }
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _write(tensors: Mapping[str, Tensor], path: Path) -> None:
    part = path.with_name(path.name + ".part")
    plain = {name: x.contiguous() for name, x in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".pth":
            torch.save(plain, part)
        else:
            # tensors of one storage, as a map of a file gives them, are not what safetensors takes
            write_tensors({name: x.clone() for name, x in plain.items()}, part)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written ({error})") from None
