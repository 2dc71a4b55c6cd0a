"""Opening published files holds the weights once: what a file is mapped to can be dropped at any time."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.foreign_layouts import linears, scaled_fp8
from tests.opening_memory import config_of, empty_network, measured

# a tenth of the 1.3B shape
SIZES = ("dit.dim=480", "dit.heads=4", "dit.ffn_dim=2800")


def write_tenth(layout: str, folder: Path) -> str:
    """A file of a tenth of the weights; the LoRA to merge, or nothing."""
    network = empty_network(config_of(SIZES))
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
    share = measured(tmp_path, write_tenth(layout, tmp_path), sizes=SIZES)
    assert 0.9 < share <= 1.15
