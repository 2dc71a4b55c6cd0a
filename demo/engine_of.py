"""The engine that the demo's options name."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loading import LateEngine, Tell


def late_engine(given: Mapping[str, Any]) -> "LateEngine":
    """The engine that the options name; its model is not loaded yet.

    Raises:
        StreamgenError: options that cannot be.
    """
    from dataclasses import replace

    import torch

    from streamgen import load_pipeline
    from streamgen.cli.options import dtype_of, wan_options
    from streamgen.engine.budget import StepBudget
    from streamgen.engine.overlap.wave import WAVES
    from streamgen.errors import InputError
    from streamgen.families import describe
    from streamgen.machine import device_of
    from streamgen.rehearsal import plans_by_shape, rehearse
    from streamgen.wan.loras import live_name

    from .engine import PipelineEngine, info_of
    from .loading import LateEngine

    def note(text: str) -> None:
        print(f"note: {text}", file=sys.stderr, flush=True)

    name, wan = given["model"], wan_options(given, note)
    if given["runner"] in WAVES:
        raise InputError(f"--runner {given['runner']}: not here, its streams cannot be kept or gone back in")
    if given["deadline"] is not None:
        StepBudget.of(given["deadline"])
    if given["threads"] is not None:
        torch.set_num_threads(given["threads"])
    print(f"loading {name} ...", file=sys.stderr)
    loras = {} if wan is None else {live_name(lora): lora.strength for lora in wan.live_loras}
    info = replace(info_of(name, describe(name, wan), device_of(given["device"])), loras=loras)

    def load(tell: "Tell") -> PipelineEngine:
        def programs(done: int, total: int, label: str) -> None:
            tell(f"programs: {done} of {total}{label and f', {label}'}", done / max(1, total))

        told = wan_options(given, note, tell)
        dtype, runner, quantize = dtype_of(given["dtype"]), given["runner"], given["quantize"]
        pipeline = load_pipeline(name, given["device"], dtype, told, runner, quantize)
        if pipeline.codec is None:
            raise InputError(
                f"model {name}: has decoder none and streams latents alone, a page needs pictures"
            )
        for line in pipeline.parts.notes:
            note(line)
        if given["threads"] is None:
            pipeline.settle_threads()
        tell("choosing what computes chunks", None)
        chosen = pipeline.choose(progress=programs).note
        if chosen is not None:
            note(chosen)
            pipeline.told.add(chosen)
        if plans_by_shape(pipeline.device):
            rehearse(pipeline, tell)
        return PipelineEngine(pipeline, given["deadline"])

    return LateEngine(info, load)
