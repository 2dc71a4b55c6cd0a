"""Fingerprints of weights."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.causal_dit import CausalDiTConfig


def tensor_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 (64 hex digits) over the names, dtypes, shapes and bytes of `state`, in order of name.

    Independent of insertion order, device and memory layout; two files with equal tensors have equal digests.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        header = f"{len(name.encode())}:{name}|{tensor.dtype}|{tuple(tensor.shape)}\n"
        digest.update(header.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def layout_tensors(config: CausalDiTConfig) -> dict[str, Tensor]:
    """What decides, beside the weights, what a network of these sizes computes, for a digest of both: nothing
    where its patches lie side by side, else how far they lie apart, since the weights are the same.
    """
    patches = config.patches
    return {"dit.patch_stride": torch.tensor(patches.stride)} if patches.overlap else {}


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()
