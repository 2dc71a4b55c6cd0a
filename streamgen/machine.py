"""What a result was made with: versions, device, how much memory it took, and how much there is."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch.nn.attention import current_flash_attention_impl

from .errors import InputError

_MEGABYTE = 2**20
_CGROUP = Path("/sys/fs/cgroup")


def own_version() -> str:
    """Version of the installed package; `source` in a checkout that is not installed."""
    try:
        return version("streamgen")
    except PackageNotFoundError:
        return "source"


def versions() -> dict[str, str]:
    """Versions that a render's record names, and what stands in for torch's own attention."""
    other = current_flash_attention_impl()
    return {
        "streamgen": own_version(),
        "torch": torch.__version__,
        "av": version("av"),
        "python": platform.python_version(),
    } | ({} if other is None else {"attention": other})


def auto_device() -> torch.device:
    """What `auto` takes: a GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(device: str) -> torch.device:
    """A device by its name.

    Raises:
        InputError: unknown, or not there.
    """
    if device == "auto":
        return auto_device()
    try:
        chosen = torch.device(device)
        if chosen.type == "mps" and not torch.backends.mps.is_available():
            raise InputError(f"device {device}: needs a GPU of Apple, and torch built for it; expected cpu")
        if chosen.type == "meta":
            raise InputError(f"device {device}: holds no values, expected cpu or a GPU")
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device}: {str(error).splitlines()[0]}") from None
    return chosen


def default_dtype(device: torch.device) -> torch.dtype:
    """Of a diffusion network: float32 on the CPU, else bfloat16."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def device_name(device: torch.device) -> str:
    """`cpu`, or the device and its product name."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue, so that a clock read next means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def give_back(device: torch.device) -> None:
    """Give memory of a GPU that tensors do not take any more back to other programs."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def peak_memory_mb(device: torch.device) -> float:
    """Most memory that tensors took on a GPU, or the process on the CPU, since it started or since
    `forget_peak` (MiB). Apple's GPUs tell what torch holds now, which it seldom gives back.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MEGABYTE
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / _MEGABYTE
    return _peak_resident_mb()


def forget_peak(device: torch.device) -> bool:
    """Let `peak_memory_mb` begin anew; returns whether it does, which some systems cannot."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        # Linux: the most that was resident is what is resident now
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return device.type == "cpu"


def memory_mb(device: torch.device) -> float:
    """Memory in use now (MiB): of tensors on a GPU, of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / _MEGABYTE
    if device.type == "mps":
        return torch.mps.current_allocated_memory() / _MEGABYTE
    resident = _of_process("VmRSS")
    return _peak_resident_mb() if resident is None else resident


def free_bytes(device: torch.device) -> int | None:
    """Memory that can be had on a device now; None where nobody says."""
    if device.type == "cuda":
        # blocks that torch keeps for later are had first, those of a stream that has ended for instance
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + int(kept)
    if device.type == "mps":
        # what the system recommends that a process takes of the memory it shares with the GPU
        return max(0, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    values = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    if "MemAvailable" not in values:
        return None
    free = int(values["MemAvailable"].split()[0]) * 1024
    limit, used = (_number(_CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return free
    # files that were read and may be dropped are counted as used: weights that have just been loaded
    return min(free, max(0, limit - used + _dropped_files()))


def _of_process(name: str) -> float | None:
    """A figure of this process that Linux tells in kibibytes, in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
    return None


def _peak_resident_mb() -> float:
    if sys.platform == "win32":
        return 0.0
    peak_now = _of_process("VmHWM")
    if peak_now is not None:
        return peak_now
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # kibibytes, but bytes on macOS
    return peak / (_MEGABYTE if sys.platform == "darwin" else 1024)


def _dropped_files() -> int:
    """Bytes of files in memory that a group of processes has read and does not use."""
    try:
        lines = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
