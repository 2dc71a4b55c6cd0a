"""What a weights file of the Wan family is: its kind, size, sections, and what is missing or surplus."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.causal_dit import CausalDiT
from models.context import ChunkPlan
from models.lora import read_lora
from models.state_dict import Kind, Tensors
from models.tiny_decoder import TinyDecoder
from models.unwrap import sections, unwrap
from models.wan_vae import WanVAE

from ..checkpoints.directory import attention_text
from ..checkpoints.foreign import KIND_NAMES, one_line, read_payload
from ..engine.attention import own_attention_text
from ..errors import CheckpointError
from .config import CONFIG, WanConfig, read_wan_config
from .convert import CARD
from .memory import GIB, Setup, memory_parts
from .sizes import assumed, expected_module
from .weights import gather, with_decoder

_SHOWN = 8


def inspect_wan(path: Path) -> dict[str, Any]:
    """A report on a model of this family: a config that needs weights, or a converted directory.

    Raises:
        CheckpointError: a config that cannot be read.
    """
    config, note = with_decoder(read_wan_config(path), path.parent if path.name == CONFIG else None)
    report: dict[str, Any] = {
        "path": str(path),
        "kind": "config that needs weights" if path.name != CONFIG else "checkpoint",
        "family": config.family,
        "size": {"width": config.width, "height": config.height, "fps": config.fps},
        "chunk_plan": vars(config.plan),
        "attention": attention_text(config.plan, config.sampling),
        "attention_kernel": own_attention_text(config.dit.head_dim),
        "settings": config.sampling.to_json(),
        "decoder": note or f"decoder: {config.decoder}",
        "assumed": assumed(config.dit, config.text.length),
        "memory_gib": memory_table(config, config.plan),
        "problems": [],
    }
    if path.name != CONFIG:
        return report
    for part in ("dit", config.decoder_part):
        if part is None:
            continue
        try:
            tensors = vars(gather(config, path.parent, (part,)))[part]
        except CheckpointError as error:
            report["problems"].append(str(error))
            continue
        with torch.device("meta"):
            module = {
                "dit": lambda: CausalDiT(config.dit),
                "vae": lambda: WanVAE(config.vae),
                "tiny_decoder": lambda: TinyDecoder(config.tiny_decoder),
            }[part]()
        report[part] = compare_names(tensors, module.state_dict())
        report["problems"] += _problems(part, report[part])
    if (path.parent / CARD).is_file():
        report["card"] = str(path.parent / CARD)
    return report


def inspect_foreign(path: Path) -> dict[str, Any]:
    """A report on a published weights file.

    Raises:
        CheckpointError: unreadable, or of no known kind.
    """
    report = foreign_report(path)
    if report is None:
        raise CheckpointError(f"weights {path}: a part of a checkpoint of ours, inspect its directory")
    return report


def foreign_report(path: Path) -> dict[str, Any] | None:
    """As `inspect_foreign`, but None for files that are not of this family."""
    payload = read_payload(path)
    try:
        found = sections(payload)
        read = unwrap(payload)
    except ValueError as error:
        if path.suffix == ".safetensors" and "expected a Wan DiT" in str(error):
            return None
        raise CheckpointError(f"weights {path}: {one_line(error)}") from None
    if read.kind == "streamgen":
        return None
    report: dict[str, Any] = {
        "path": str(path),
        "kind": KIND_NAMES[read.naming],
        "family": "wan",
        "sections": {section or "top": len(group) for section, group in found.items()},
        "section_read": read.section or "top",
        "notes": read.notes(),
    }
    try:
        report |= _sizes(read.kind, read.tensors)
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        report["problems"] = [f"incomplete: {one_line(error)}"]
    return report


def memory_table(config: WanConfig, plan: ChunkPlan) -> dict[str, float]:
    """GiB on an accelerator in bfloat16, by part and in all, without the text encoder."""
    setup = Setup(plan, torch.bfloat16, torch.bfloat16, config.decoder, None)
    parts = memory_parts(config, setup)
    return {name: round(value / GIB, 2) for name, value in parts.items()} | {
        "all": round(sum(parts.values()) / GIB, 2)
    }


def _sizes(kind: Kind, tensors: Tensors) -> dict[str, Any]:
    """What the shapes say, and how the names compare with a whole model of that size."""
    numbers = sum(x.numel() for x in tensors.values())
    report: dict[str, Any] = {
        "parameters": numbers,
        "tensors": len(tensors),
        "dtypes": sorted({str(x.dtype).removeprefix("torch.") for x in tensors.values()}),
        "problems": [],
    }
    if kind == "lora":
        lora = read_lora(tensors)
        return report | {"layers": len(lora.pairs), "rank": lora.ranks(), "whole": len(lora.diffs)}
    module = expected_module(kind, tensors)
    if module is None:
        return report
    compared = compare_names(tensors, module.state_dict())
    report |= compared
    report["problems"] = _problems(KIND_NAMES[kind], compared)
    if isinstance(module, CausalDiT):
        report["shape"] = {
            "dim": module.config.dim,
            "layers": module.config.layers,
            "ffn_dim": module.config.ffn_dim,
            "text_dim": module.config.text_dim,
            "input_channels": module.config.latent_channels + module.config.motion_channels,
        }
        report["assumed"] = assumed(module.config)
    return report


def compare_names(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes of the tensors found, and how their names and shapes differ from what is expected."""
    shapes = {
        name: {"expected": list(expected[name].shape), "found": list(x.shape)}
        for name, x in found.items()
        if name in expected and x.shape != expected[name].shape
    }
    return {
        "tensors": len(found),
        "parameters": sum(x.numel() for x in found.values()),
        "missing": sorted(set(expected) - set(found)),
        "surplus": sorted(set(found) - set(expected)),
        "shapes": shapes,
    }


def _problems(what: str, compared: Mapping[str, Any]) -> list[str]:
    out = []
    for problem in ("missing", "surplus", "shapes"):
        names = sorted(compared[problem])
        if names:
            word = "of another shape" if problem == "shapes" else problem
            some = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            out.append(f"{what}: {len(names)} tensors {word}: {some}")
    return out
