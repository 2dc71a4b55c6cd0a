"""What opening a network takes of a process's own memory at most, over the size of its weights. What a file
is mapped to can be dropped at any time and does not count.

`python -m tests.opening_memory [key=value ...]` prints it at the 1.3B shape in bfloat16, of a file of zeros,
which takes no room on the disk; a process of its own, 2.8 GB of memory.
"""

import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch

from models.causal_dit import CausalDiT
from streamgen.wan.config import CONFIGS, WanConfig, read_wan_config
from streamgen.wan.loras import LoraFile, with_loras
from streamgen.wan.weights import assign, gather
from tests.command_line import ROOT, environment

NAME = "wan-1.3b-self-forcing"


def measured(folder: Path, lora: str = "", dtype: str = "float32", sizes: tuple[str, ...] = ()) -> float:
    """The own memory at its peak while `a.pt` or `a.safetensors` of a folder is opened, over the weights."""
    command = [sys.executable, "-m", "tests.opening_memory", "--one", str(folder), lora, dtype, *sizes]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def config_of(sizes: tuple[str, ...]) -> WanConfig:
    """The config whose network is opened."""
    config = read_wan_config(CONFIGS / f"{NAME}.yaml", sizes)
    return replace(config, sources=replace(config.sources, dit=("a.pt", "a.safetensors")))


def empty_network(config: WanConfig) -> CausalDiT:
    """Names and shapes alone."""
    with torch.device("meta"):
        return CausalDiT(config.dit)


def write_zeros(path: Path, config: WanConfig) -> None:
    """A safetensors file in bfloat16 whose numbers were never written."""
    entries, end = {}, 0
    for name, x in empty_network(config).state_dict().items():
        offsets = [end, end := end + 2 * x.numel()]
        entries[name] = {"dtype": "BF16", "shape": list(x.shape), "data_offsets": offsets}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


def _one(folder: Path, lora: str, dtype: torch.dtype, sizes: tuple[str, ...]) -> float:
    config = config_of(sizes)
    network = empty_network(config)
    size = sum(x.numel() * dtype.itemsize for x in network.state_dict().values())
    gc.collect()
    start, peak, over = _own(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.is_set():
            peak = max(peak, _own())
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    tensors = gather(config, folder, ("dit",)).dit
    assert tensors is not None
    tensors, _ = with_loras(tensors, [LoraFile(lora, 0.5)] if lora else [])
    assign(network, tensors, "weights", torch.device("cpu"), dtype)
    over.set()
    thread.join()
    return (peak - start) / size


def _own() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def main(arguments: list[str]) -> None:
    """Print the share, of a folder or of a file of zeros."""
    if arguments[:1] == ["--one"]:
        folder, lora, dtype, *sizes = arguments[1:]
        sys.stdout.write(f"{_one(Path(folder), lora, vars(torch)[dtype], tuple(sizes))}\n")
        return
    with tempfile.TemporaryDirectory() as place:
        write_zeros(Path(place) / "a.safetensors", config_of(tuple(arguments)))
        sys.stdout.write(f"{measured(Path(place), '', 'bfloat16', tuple(arguments)):.3f}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
