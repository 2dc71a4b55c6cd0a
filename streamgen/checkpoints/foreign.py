"""Reading weights files that others wrote, without running any of their code."""

import json
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.state_dict import Kind
from models.unwrap import Unwrapped, unwrap

from ..errors import CheckpointError
from ..suggest import shorten
from .header import parse_header, read_header
from .hub import HubSource, fetch, is_hub, open_remote, parse_hub

_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", ".json", *_PICKLES)
_LARGEST_INDEX = 64 * 2**20


def read_names(source: str | Path) -> Any:
    """As `read_payload` with `names_only`, of a local file or of one on the hub, of which a few megabytes are
    downloaded at most.

    Raises:
        CheckpointError: see `read_payload`; or the hub cannot be reached or refuses.
    """
    if not is_hub(source):
        return read_payload(Path(source), names_only=True)
    remote = parse_hub(source)
    suffix = PurePosixPath(remote.path).suffix.lower()
    if suffix == ".gguf":
        raise _packed(remote)
    if suffix == ".json":
        # an index is small, but its shards are not
        return _read_remote_shards(remote)
    if suffix not in SUFFIXES:
        raise CheckpointError(f"weights {remote}: expected a file that ends in {', '.join(SUFFIXES)}")
    file, size = open_remote(remote)
    with file:
        start = file.peek(_BEGINNING)[:_BEGINNING]
        _refuse_pages(remote, start)
        _refuse_texts(remote, start, size)
        if suffix == ".safetensors":
            return parse_header(file, size, remote).tensors
        return _load_pickle(file, "meta", str(remote))


def names_weights(source: HubSource) -> bool:
    """Whether a name on the hub is one of a weights file, and not of a folder (`v1.0`) or repository."""
    return PurePosixPath(source.path).suffix.lower() in (*SUFFIXES, ".gguf")


def fetch_weights(source: HubSource) -> Path:
    """The local file of weights on the hub, see `hub.fetch`; with an index come its shards.

    Raises:
        CheckpointError: a file that cannot be had, or an index that names what is none.
    """
    path = fetch(source)
    if path.suffix == ".json":
        for shard in _remote_shards(source, path):
            fetch(shard)
    return path


def _remote_shards(index: HubSource, local: Path) -> list[HubSource]:
    """The shards of an index on the hub."""
    shards = sorted({_shard(local, shard).relative_to(local.parent) for shard in _weight_map(local).values()})
    return [index.folder().file(shard.as_posix()) for shard in shards]


def _read_remote_shards(index: HubSource) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for shard in _remote_shards(index, fetch(index)):
        out |= read_names(str(shard))
    return out


def read_payload(path: Path, names_only: bool = False) -> Any:
    """What a weights file holds: a mapping of tensors, or for a trainer's pickle whatever it nests.

    What a file is, its first bytes say. A `.safetensors.index.json` reads all of its shards. Pickles are read
    with `weights_only=True`; all files are mapped to memory, so that what is not used costs nothing.

    Args:
        names_only: tensors of the meta device, which have names, dtypes and shapes; no number is read.

    Raises:
        CheckpointError: missing, of an unknown format, truncated, or with objects that are no tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"weights {path}: no such file")
    suffix = path.suffix.lower()
    start = _start(path)
    if suffix == ".gguf" or start.startswith(b"GGUF"):
        raise _packed(path)
    if suffix not in SUFFIXES:
        raise CheckpointError(f"weights {path}: expected a file that ends in {', '.join(SUFFIXES)}")
    _refuse_pages(path, start)
    if suffix != ".json":
        _refuse_texts(path, start, path.stat().st_size)
    if suffix == ".json":
        return _read_shards(path, names_only)
    # a length below 2^40, and the brace that JSON begins with
    is_safetensors = start[8:9] == b"{" and start[5:8] == b"\0\0\0"
    is_pickle = start.startswith((b"PK\x03\x04", b"\x80"))
    if is_safetensors or (suffix == ".safetensors" and not is_pickle):
        header = read_header(path)
        return header.tensors if names_only else _read_safetensors(path)
    return _read_pickle(path, names_only)


def read_foreign(path: Path, wanted: Iterable[str], kind: Kind | None = None) -> Unwrapped:
    """Weights under our names, whatever wraps them.

    Args:
        wanted: sections of a trainer's file, in order of preference.
        kind: what is looked for in a file that holds several networks.

    Raises:
        CheckpointError: unreadable, of no known kind, or of a kind that cannot be used.
    """
    payload = read_payload(path)
    try:
        return unwrap(payload, wanted, kind)
    except ValueError as error:
        raise CheckpointError(f"weights {path}: {one_line(error)}") from None


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


def one_line(error: Exception, limit: int = 400) -> str:
    """An error's text on one line: names in foreign files may hold anything."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
    return text if len(text) <= limit else text[: limit - 3] + "..."


# bytes of a file that say what it is, and of the longest text that is taken for an answer of a server
_BEGINNING, _ANSWER = 1024, 1000


def _packed(place: object) -> CheckpointError:
    return CheckpointError(f"weights {place}: GGUF is not read, use the safetensors file in bf16 or fp8")


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_BEGINNING)
    except OSError as error:
        raise CheckpointError(f"weights {path}: cannot be read ({error.strerror or error})") from None


def _refuse_pages(path: object, start: bytes) -> None:
    """Raise CheckpointError for what downloads leave in place of weights."""
    if start.startswith(b"version https://git-lfs"):
        found = re.search(rb"^size (\d{1,18})$", start, re.MULTILINE)
        size = f" of {int(found[1]) / 1e9:.2g} GB" if found else ""
        raise CheckpointError(
            f"weights {path}: a Git LFS pointer{size}, not the file itself: fetch it with `git lfs pull` or "
            "give hf://owner/repo/file"
        )
    if re.match(rb"\s*<(!doctype|html|\?xml)", start, re.IGNORECASE):
        raise CheckpointError(
            f"weights {path}: an HTML page, not weights: the download was refused or moved, "
            "fetch it again or give hf://owner/repo/file"
        )


def _refuse_texts(path: object, start: bytes, size: int) -> None:
    """Raise CheckpointError for an answer that a server gave in place of weights, `Entry not found` for
    instance: a short file of text alone.
    """
    text = start.decode("utf-8", "replace").strip()
    short = 0 < len(start) < _ANSWER and size == len(start)
    if short and text and all(c.isprintable() or c.isspace() for c in text) and "\ufffd" not in text:
        said = " ".join(text.split())
        raise CheckpointError(f"weights {path}: a text, not weights: {shorten(said)}; fetch the file again")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"weights {path}: truncated or not safetensors ({one_line(error, 120)}): fetch it again"
        ) from None


def _read_pickle(path: Path, names_only: bool) -> Any:
    device = "meta" if names_only else "cpu"
    if path.suffix.lower() != ".safetensors":
        return _load_pickle(path, device, str(path))
    # torch goes by the name; a stream of bytes has none, and cannot be mapped
    with path.open("rb") as file:
        return _load_pickle(file, device, str(path))


def _load_pickle(file: Any, device: str, where: str) -> Any:
    """What a file of torch.save holds; `file` is a path, which is mapped, or an open file."""
    mapped = isinstance(file, Path)
    try:
        try:
            return torch.load(file, map_location=device, weights_only=True, mmap=mapped)
        except RuntimeError as error:
            if "mmap" not in str(error) or not mapped:
                raise
            # written in the format of before torch 1.6, which cannot be mapped
            return torch.load(file, map_location=device, weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        text = one_line(error, 4000)
        if "GLOBAL " not in text and "Unsupported" not in text:
            raise CheckpointError(
                f"weights {where}: truncated or not a file of torch.save ({text[:120]}): fetch it again"
            ) from None
        name = text.split("GLOBAL ")[1].split(" ")[0][:80] if "GLOBAL " in text else "other objects"
        raise CheckpointError(
            f"weights {where}: expected tensors alone, found {name}; it is not read, since that may run code"
        ) from None
    except Exception as error:  # what a damaged pickle raises is whatever its bytes happen to call
        raise CheckpointError(
            f"weights {where}: truncated or not a file of torch.save ({one_line(error, 120)}): fetch it again"
        ) from None


def _read_shards(path: Path, names_only: bool) -> dict[str, Tensor]:
    names = _weight_map(path)
    shards = sorted(set(names.values()))
    files = {shard: _shard(path, shard) for shard in shards}
    missing = [shard for shard, file in files.items() if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"weights {path}: {len(missing)} of its {len(shards)} shards are missing, "
            f"the first is {shorten(missing[0])}: fetch them, too"
        )
    out: dict[str, Tensor] = {}
    for file in files.values():
        found = read_payload(file, names_only)
        if not isinstance(found, Mapping):
            raise CheckpointError(f"weights {file}: expected named tensors, found {type(found).__name__}")
        out |= {str(name): tensor for name, tensor in found.items()}
    absent = sorted(set(names) - set(out))
    if absent:
        raise CheckpointError(f"weights {path}: {shorten(absent[0])}: named in the index, but in no shard")
    return out


def _weight_map(path: Path) -> dict[str, str]:
    try:
        if path.stat().st_size > _LARGEST_INDEX:
            raise ValueError
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not names or not all(isinstance(shard, str) and shard for shard in names.values()):
            raise ValueError
        return {str(name): shard for name, shard in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"weights {path}: expected an index with a weight_map") from None


def _shard(index: Path, shard: str) -> Path:
    """The file of a shard, which lies in the folder of its index or below it."""
    parts = PurePosixPath(shard.replace("\\", "/"))
    if any(len(part.encode(errors="replace")) > 255 for part in parts.parts):
        raise CheckpointError(f"weights {index}: shard {shorten(shard)}: longer than a file name can be")
    if parts.is_absolute() or ".." in parts.parts or "\0" in shard or ":" in shard:
        raise CheckpointError(
            f"weights {index}: shard {shorten(shard)}: expected a file in the folder of the index, "
            "found one outside"
        )
    if parts.suffix.lower() not in SUFFIXES or parts.suffix.lower() == ".json":
        raise CheckpointError(
            f"weights {index}: shard {shorten(shard)}: expected a weights file, found "
            f"{'the index itself' if parts.name == index.name else 'another kind of file'}"
        )
    return index.parent / parts
