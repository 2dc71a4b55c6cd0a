"""Files of tensors that we write."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write contiguous tensors as a safetensors file, with the permissions of any new file: safetensors
    itself lets nobody but its owner read one, so that what root trains no other account could serve.

    Raises:
        OSError: it cannot be written; what lay there is as it was.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.touch()
        mode = part.stat().st_mode
        save_file(dict(tensors), part, None if metadata is None else dict(metadata))
        part.chmod(mode)
        part.replace(path)
    except SafetensorError as error:
        # such as a full disk, which it does not tell apart
        raise OSError(f"{path}: {error}") from None
    finally:
        part.unlink(missing_ok=True)
