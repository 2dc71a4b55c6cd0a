"""Checkpoints that every process writes its shares of (torch's distributed checkpoint, DCP): none holds a
whole state. Any number of processes reads them, one as well.

A state is parted in two: its tensors, by their places in it, and all else, with a mark where a tensor was.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from streamgen.errors import CheckpointError

#: The folder of the tensors in a checkpoint.
SHARDS = "shards"
_MARK = "#tensor"


def parted(tree: Any, place: str = "") -> tuple[Any, dict[str, Tensor]]:
    """A tree of dicts without its tensors, and these by place (`modules/student/first.weight`)."""
    if isinstance(tree, Tensor):
        return {_MARK: place}, {place: tree}
    if not isinstance(tree, Mapping):
        return tree, {}
    rest: dict[Any, Any] = {}
    tensors: dict[str, Tensor] = {}
    for key, value in tree.items():
        rest[key], found = parted(value, f"{place}/{key}" if place else str(key))
        tensors |= found
    return rest, tensors


def joined(rest: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that was parted."""
    if not isinstance(rest, Mapping):
        return rest
    if _MARK in rest:
        return tensors[rest[_MARK]]
    return {key: joined(value, tensors) for key, value in rest.items()}


def write_shards(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write what this process has of tensors, which all processes call with the same names.

    Raises:
        RuntimeError: any process could not.
    """
    try:
        save(dict(tensors), checkpoint_id=directory)
    except CheckpointException as error:
        reasons = [str(failure) for failure, _ in error.failures.values()]
        raise RuntimeError(reasons[0] if reasons else str(error)) from error


def read_shards(directory: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a checkpoint, called by all processes together: those that `like` has in the same size
    are spread as they are there, the others whole.

    Raises:
        CheckpointError: they cannot be read.
    """
    try:
        reader = FileSystemReader(directory)
        found: dict[str, Tensor] = {}
        for place, stored in reader.read_metadata().state_dict_metadata.items():
            assert isinstance(stored, TensorStorageMetadata), "tensors alone are written"
            same = like.get(place)
            dtype = stored.properties.dtype
            if same is not None and same.shape == stored.size:
                found[place] = torch.empty_like(same, dtype=dtype)
            else:
                found[place] = torch.empty(stored.size, dtype=dtype)
        load(found, storage_reader=reader)
    except Exception as error:
        raise CheckpointError(f"checkpoint {directory.parent}: {SHARDS} cannot be read ({error})") from error
    return found
