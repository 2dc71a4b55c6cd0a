"""What is in a checkpoint directory of the tiny family, and whether it fits its own config."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.causal_dit import CausalDiT
from models.motion_encoder import MotionEncoder
from models.text_encoder import TextEncoder
from models.video_tokenizer import VideoTokenizer

from ..checkpoints.digest import tensor_digest
from ..checkpoints.directory import MODEL, TOKENIZER, VOCABULARY, attention_text
from ..checkpoints.inspect import compare_tensors, read_or_note
from ..engine.attention import own_attention_text
from ..errors import CheckpointError
from .config import TinyConfig, read_tiny_config, read_vocabulary

_MODEL_PARTS = ("dit", "text_encoder", "motion_encoder")


def inspect_tiny(path: Path) -> dict[str, Any]:
    """A report on a checkpoint directory: sizes, and whether what lies there fits its config.

    Raises:
        CheckpointError: a config that cannot be read.
    """
    config = read_tiny_config(path)
    problems: list[str] = []
    parts: dict[str, Any] = {}
    report: dict[str, Any] = {
        "path": str(path),
        "kind": "checkpoint",
        "family": config.family,
        "size": {"width": config.width, "height": config.height, "fps": config.fps},
    }
    all_tensors: dict[str, torch.Tensor] = {}
    expected = _networks(config)
    tokens = read_or_note(path / TOKENIZER, problems)
    if tokens is not None:
        parts["tokenizer"] = compare_tensors(tokens, expected["tokenizer"], TOKENIZER, problems)
        found = tensor_digest(tokens)
        report["tokenizer"] = {
            "expected": config.tokenizer_digest,
            "found": found,
            "match": found == config.tokenizer_digest,
        }
        if found != config.tokenizer_digest:
            problems.append(
                f"{TOKENIZER}: not the tokenizer that the model was trained on "
                f"(expected {config.tokenizer_digest[:12]}, found {found[:12]})"
            )
        all_tensors |= {f"tokenizer.{name}": value for name, value in tokens.items()}
    tensors = read_or_note(path / MODEL, problems)
    if tensors is not None:
        own = {
            part: {n[len(part) + 1 :]: t for n, t in tensors.items() if n.startswith(part + ".")}
            for part in _MODEL_PARTS
        }
        for part, group in own.items():
            parts[part] = compare_tensors(group, expected[part], f"{MODEL} ({part})", problems)
        report["surplus"] = sorted(n for n in tensors if n.split(".")[0] not in _MODEL_PARTS)
        all_tensors |= tensors
    try:
        words = len(read_vocabulary(path / VOCABULARY, config.text_encoder).words)
        report["vocabulary"] = words
    except CheckpointError as error:
        problems.append(str(error))
    report["digest"] = tensor_digest(all_tensors) if tokens is not None and tensors is not None else None
    report["parameters"] = sum(part["parameters"] for part in parts.values())
    report["parts"] = parts
    report["chunk_plan"] = asdict(config.plan)
    report["attention"] = attention_text(config.plan, config.sampling)
    report["attention_kernel"] = own_attention_text(config.dit.head_dim)
    report["settings"] = config.sampling.to_json()
    return report | {"problems": problems}


def _networks(config: TinyConfig) -> dict[str, Mapping[str, torch.Tensor]]:
    """Names and shapes that the config asks for, without memory for values."""
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {
            "tokenizer": VideoTokenizer(config.tokenizer),
            "dit": CausalDiT(config.dit),
            "text_encoder": TextEncoder(config.text_encoder),
            "motion_encoder": MotionEncoder(config.motion_encoder),
        }
    return {name: module.state_dict() for name, module in modules.items()}
