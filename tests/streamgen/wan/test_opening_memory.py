"""Opening published files holds the weights once: what a file is mapped to can be dropped at any time."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.causal_dit import CausalDiT
from streamgen.wan.config import CONFIGS, read_wan_config
from tests.command_line import ROOT, environment
from tests.foreign_layouts import linears, scaled_fp8

# a tenth of the 1.3B shape
SIZES = ("dit.dim=480", "dit.heads=4", "dit.ffn_dim=2800")
# In a process of its own, whose memory nothing else moves.
_MEASURE = """
import gc, sys, threading, time
from dataclasses import replace
from pathlib import Path
import torch
from models.causal_dit import CausalDiT
from streamgen.wan.config import CONFIGS, read_wan_config
from streamgen.wan.loras import LoraFile, with_loras
from streamgen.wan.weights import assign, gather

folder, loras = Path(sys.argv[1]), [LoraFile(name, 0.5) for name in sys.argv[2:3]]
config = read_wan_config(CONFIGS / "wan-1.3b-self-forcing.yaml", sys.argv[3:])
config = replace(config, sources=replace(config.sources, dit=("a.pt", "a.safetensors")))
with torch.device("meta"):
    network = CausalDiT(config.dit)
size = sum(x.numel() * 4 for x in network.state_dict().values())

def own():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

gc.collect()
start, peak, over = own(), 0, False
def watch():
    global peak
    while not over:
        peak = max(peak, own())
        time.sleep(0.001)
thread = threading.Thread(target=watch)
thread.start()
tensors = gather(config, folder, ("dit",)).dit
tensors, _ = with_loras(tensors, [lora for lora in loras if lora.place])
assign(network, tensors, "weights", torch.device("cpu"), torch.float32)
over = True
thread.join()
print((peak - start) / size)
"""


def write_tenth(layout: str, folder: Path) -> str:
    """A file of a tenth of the weights; the LoRA to merge, or nothing."""
    with torch.device("meta"):
        network = CausalDiT(read_wan_config(CONFIGS / "wan-1.3b-self-forcing.yaml", SIZES).dit)
    state = {name: torch.full(x.shape, 0.01) for name, x in network.state_dict().items()}
    if layout == "trainer":
        generator = {f"model.{name}": x for name, x in state.items()}
        torch.save({"generator": generator, "critic": dict(state)}, folder / "a.pt")
        return ""
    save_file(scaled_fp8(state) if layout == "fp8" else state, folder / "a.safetensors")
    if layout != "lora":
        return ""
    lora = {}
    for name in linears(state):
        out, inputs = state[name].shape
        stem = name.removesuffix(".weight")
        lora |= {f"{stem}.lora_A.weight": torch.ones(4, inputs), f"{stem}.lora_B.weight": torch.ones(out, 4)}
    save_file(lora, folder / "lora.safetensors")
    return str(folder / "lora.safetensors")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")
@pytest.mark.parametrize("layout", ["trainer", "fp8", "lora"])
def test_opening_holds_the_weights_once(layout: str, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", _MEASURE, str(tmp_path), write_tenth(layout, tmp_path), *SIZES]
    done = subprocess.run(arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout) <= 1.15, done.stdout
