"""What a check is run on: the device, and how large its pieces are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..bench import Effort
from ..machine import default_dtype, device_name, versions
from ..pipeline import Pipeline, load_pipeline
from ..roofline.peaks import Probe
from ..wan.options import WanOptions

# hands on a result: its name and values
Row = Callable[[str, Mapping[str, Any]], None]

LONG_LIVE, SELF_FORCING = "wan-1.3b-longlive", "wan-1.3b-self-forcing"
# every part of the Wan family, a few thousand parameters large
_SMALL = (
    "dit.dim=32", "dit.layers=2", "dit.heads=2", "dit.ffn_dim=64", "dit.text_dim=16", "dit.freq_dim=16",
    "text.dim=16", "text.length=6", "vae.dim=8", "vae.res_blocks=1", "tiny_decoder.encoder_dim=8",
    "tiny_decoder.decoder_dims=[16,12,8,8]", "height=32", "width=48",
)  # fmt: skip
_EFFORT = Effort(warm=2, openings=2, switches=6, recaches=3, turns=3, turn_chunks=3)
_LEAST = Effort(warm=0, openings=1, switches=1, recaches=1, turns=1, turn_chunks=1)


@dataclass(frozen=True)
class Plan:
    """A device, and whether the check is the small one that tests run on CPUs."""

    device: torch.device
    small: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks: bfloat16 on GPUs."""
        return default_dtype(self.device)

    @property
    def effort(self) -> Effort:
        """How often things are measured."""
        return _LEAST if self.small else _EFFORT

    @property
    def chunks(self) -> int:
        """Chunks of a rate."""
        return 2 if self.small else 8

    @property
    def probe(self) -> Probe:
        """How large the pieces are that ceilings are measured with."""
        return Probe(64, 2**16, (2, 16, 32, 64), 0.001) if self.small else Probe.of(self.device)

    def wan(
        self,
        name: str,
        *overrides: str,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        runner: str = "plain",
        quantize: str | None = None,
    ) -> Pipeline:
        """A model of the Wan family with random weights, the same ones on every device."""
        sizes = (*(_SMALL if self.small else ()), *overrides)
        options = WanOptions(random_weights=True, overrides=sizes)
        return load_pipeline(name, str(device or self.device), dtype or self.dtype, options, runner, quantize)


def machine(plan: Plan) -> dict[str, Any]:
    """What results are of: results of two of these do not belong into one file."""
    cuda = torch.version.cuda or "none"
    device = device_name(plan.device)
    return {"device": device, "small": plan.small, "cuda": cuda} | versions()
