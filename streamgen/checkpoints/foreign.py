"""Reading weights files that others wrote, without running any of their code."""

import hashlib
import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.state_dict import Kind, Tensors, check_dtypes, choose_section, identify, sections, to_wan

from ..errors import CheckpointError

_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", ".json", *_PICKLES)


def read_payload(path: Path) -> Any:
    """What a weights file holds: a mapping of tensors, or for a trainer's pickle whatever it nests.

    A `.safetensors.index.json` reads all of its shards. Pickles are read with `weights_only=True` and mapped
    to memory, so that what is not used costs nothing.

    Raises:
        CheckpointError: missing, of an unknown format, truncated, or with objects that are no tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"weights {path}: no such file")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise CheckpointError(f"weights {path}: expected a file that ends in {', '.join(SUFFIXES)}")
    if suffix == ".json":
        return _read_shards(path)
    if suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"weights {path}: truncated or not safetensors ({error})") from None
    return _read_pickle(path)


def read_foreign(path: Path, wanted: Iterable[str]) -> tuple[Kind, Tensors, str]:
    """Weights under our names, whatever wraps them.

    Args:
        wanted: sections of a trainer's file, in order of preference.

    Returns:
        what they are (after renaming a diffusers file is a Wan one), the tensors, and the section they lay
        in.

    Raises:
        CheckpointError: unreadable, of no known kind, or quantised.
    """
    payload = read_payload(path)
    try:
        found = sections(payload)
        # a flat file has no sections to choose from
        section, tensors = choose_section(found, (*wanted, "generator_lora", ""))
        kind = identify(tensors)
        check_dtypes(tensors)
        renamed = to_wan(tensors, kind)
    except ValueError as error:
        raise CheckpointError(f"weights {path}: {error}") from None
    ours: dict[Kind, Kind] = {"diffusers_dit": "wan_dit", "diffusers_vae": "wan_vae"}
    return ours.get(kind, kind), renamed, section


def expect_kind(path: Path, found: Kind, expected: Kind) -> None:
    """Raise CheckpointError where a file is of another kind."""
    if found != expected:
        raise CheckpointError(f"weights {path}: expected {KIND_NAMES[expected]}, found {KIND_NAMES[found]}")


KIND_NAMES: Mapping[Kind, str] = {
    "streamgen": "a checkpoint of streamgen",
    "wan_dit": "a Wan DiT",
    "diffusers_dit": "a Wan DiT in diffusers naming",
    "wan_vae": "a Wan VAE",
    "diffusers_vae": "a Wan VAE in diffusers naming",
    "taehv": "a TAEHV tiny autoencoder",
    "lora": "a LoRA",
    "wan_umt5": "a UMT5 text encoder in Wan naming",
    "umt5": "a UMT5 text encoder",
}


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def _read_pickle(path: Path) -> Any:
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            # written in the format of before torch 1.6, which cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = " ".join(str(error).split())
        if "GLOBAL " not in text and "Unsupported" not in text:
            raise CheckpointError(
                f"weights {path}: truncated or not a file of torch.save ({text[:120]})"
            ) from None
        name = text.split("GLOBAL ")[1].split(" ")[0] if "GLOBAL " in text else "other objects"
        raise CheckpointError(
            f"weights {path}: expected tensors alone, found {name}; it is not read, since that may run code"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        text = " ".join(str(error).split())
        raise CheckpointError(
            f"weights {path}: truncated or not a file of torch.save ({text[:120]})"
        ) from None


def _read_shards(path: Path) -> dict[str, Tensor]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(names.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"weights {path}: expected an index with a weight_map") from None
    out: dict[str, Tensor] = {}
    for shard in shards:
        out |= read_payload(path.with_name(str(shard)))
    missing = sorted(set(names) - set(out))
    if missing:
        raise CheckpointError(f"weights {path}: {missing[0]}: named in the index, but in no shard")
    return out
