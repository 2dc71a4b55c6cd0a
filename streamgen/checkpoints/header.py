"""What a safetensors file says of itself: names, dtypes and shapes, without reading a number.

The format (https://github.com/huggingface/safetensors): 8 bytes of length, so many bytes of JSON, the
numbers.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..suggest import shorten

# safetensors itself reads no longer one
_LONGEST = 100_000_000
_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Header:
    """Tensors of the meta device by name, and the file's own words."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """The header of a safetensors file, checked against the size of the file.

    Raises:
        CheckpointError: no header, one that is too long or damaged, or bytes that are missing or left over.
    """
    try:
        with path.open("rb") as file:
            return parse_header(file, path.stat().st_size, path)
    except OSError as error:
        raise CheckpointError(f"weights {path}: cannot be read ({error.strerror or error})") from None


def parse_header(file: BinaryIO, size: int, path: object) -> Header:
    """As `read_header`, of a file of `size` bytes that is open at its beginning; `path` is for messages."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise _bad(path, f"a header of {length:,} bytes in a file of {size:,}")
    if length > _LONGEST:
        raise _bad(path, f"a header of {length:,} bytes, at most {_LONGEST:,} are read")
    try:
        content = json.loads(file.read(length))
    except (ValueError, RecursionError):
        raise _bad(path, "a header that is no JSON") from None
    if not isinstance(content, dict):
        raise _bad(path, "a header without names")
    metadata = content.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise _bad(path, "metadata that are no names and texts")
    tensors, ends = {}, []
    for name, entry in content.items():
        tensors[name], place = _entry(path, name, entry)
        ends.append(place)
    _check_places(path, sorted(ends), size - 8 - length)
    return Header(tensors, {str(key): str(value) for key, value in metadata.items()})


def _entry(path: object, name: str, entry: Any) -> tuple[Tensor, tuple[int, int]]:
    values: dict[str, Any] = entry if isinstance(entry, dict) else {}
    shape: Any = values.get("shape")
    offsets: Any = values.get("data_offsets")
    dtype: Any = values.get("dtype")
    if not _numbers(shape) or not _numbers(offsets) or len(offsets) != 2 or not isinstance(dtype, str):
        raise _bad(path, f"{shorten(name)}: an entry without dtype, shape and offsets")
    if dtype not in _DTYPES:
        raise CheckpointError(
            f"weights {path}: {shorten(name)}: numbers of the kind {shorten(dtype)}, expected one of "
            f"{', '.join(_DTYPES)}"
        )
    kind = _DTYPES[dtype]
    if math.prod(shape) * kind.itemsize != offsets[1] - offsets[0]:
        raise _bad(path, f"{shorten(name)}: {offsets[1] - offsets[0]:,} bytes for shape {tuple(shape)}")
    return torch.empty(shape, dtype=kind, device="meta"), (offsets[0], offsets[1])


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 2**48 for x in values
    )


def _check_places(path: object, places: list[tuple[int, int]], found: int) -> None:
    """Raise CheckpointError where tensors overlap, leave gaps, or are not all of the file."""
    end = 0
    for begin, stop in places:
        if begin != end:
            raise _bad(path, f"tensors that {'overlap' if begin < end else 'leave a gap'} at byte {begin:,}")
        end = stop
    if end > found:
        raise _bad(path, f"{found:,} bytes of tensors where its header says {end:,}")
    if end < found:
        raise _bad(path, f"{found - end:,} bytes behind its last tensor")


def _bad(path: object, found: str) -> CheckpointError:
    return CheckpointError(f"weights {path}: truncated or not safetensors, found {found}: fetch it again")
