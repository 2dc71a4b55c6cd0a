"""Files of tensors that we write."""

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
        OSError: it cannot be written; then nothing lies there.
    """
    path.unlink(missing_ok=True)
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    except SafetensorError as error:
        # such as a full disk, which it does not tell apart
        path.unlink(missing_ok=True)
        raise OSError(f"{path}: {error}") from None
    path.chmod(mode)
