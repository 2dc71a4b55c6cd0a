"""What a result was made with: versions, device, and how much memory it took."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_MEGABYTE = 2**20


def own_version() -> str:
    """Version of the installed package; `source` in a checkout that is not installed."""
    try:
        return version("streamgen")
    except PackageNotFoundError:
        return "source"


def versions() -> dict[str, str]:
    """Versions that a render's record names."""
    return {
        "streamgen": own_version(),
        "torch": torch.__version__,
        "av": version("av"),
        "python": platform.python_version(),
    }


def device_name(device: torch.device) -> str:
    """`cpu`, or the device and its product name."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue, so that a clock read next means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_mb(device: torch.device) -> float:
    """Most memory that tensors took on a GPU, or the process on the CPU, since it started (MiB)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MEGABYTE
    return _peak_resident_mb()


def memory_mb(device: torch.device) -> float:
    """Memory in use now (MiB): of tensors on a GPU, of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / _MEGABYTE
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return _peak_resident_mb()


def _peak_resident_mb() -> float:
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # kibibytes, but bytes on macOS
    return peak / (_MEGABYTE if sys.platform == "darwin" else 1024)
