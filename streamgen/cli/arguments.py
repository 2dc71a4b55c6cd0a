"""Options that several commands take, and the demo: which model, and what computes it. Nothing of torch is
imported.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Model = Annotated[str, typer.Option(help="Name (see `streamgen models`), checkpoint or adopted folder.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Quantize = Annotated[
    str | None,
    typer.Option(
        help="In eight bits: int8, fp8, cache, int8+cache, ...; none by default, or a record's own."
    ),
]
DecodeBeside = Annotated[
    bool, typer.Option("--decode-beside", help="Decode a chunk in a thread while the next one is made.")
]
DecoderDevice = Annotated[
    str | None, typer.Option(help="Decode there, beside the next chunk: cpu, cuda:1, ...")
]
_RUNNER = (
    "What computes chunks: auto (the fastest here), plain, onnx, compile, graph (CUDA), ahead or wave; by "
    "default a record's or saved stream's own."
)
Runner = Annotated[str | None, typer.Option(help=_RUNNER)]
_DEADLINE = "Milliseconds that a chunk may take: it gets as many of the trained steps as fit."
Deadline = Annotated[float | None, typer.Option(help=_DEADLINE)]
_SETTINGS = "A setting as key=value, e.g. steps=8. Repeatable."
Settings = Annotated[list[str] | None, typer.Option("--set", help=_SETTINGS)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; notes and errors stay.")]
_WAN = "Models of the Wan family"
_WEIGHTS = "Folder or file of weights, or hf://owner/repo/file@revision."
Weights = Annotated[str | None, typer.Option(help=_WEIGHTS, rich_help_panel=_WAN)]
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="Run without weights.", rich_help_panel=_WAN)
]
Loras = Annotated[
    list[str] | None,
    typer.Option("--lora", help="LoRA to merge: FILE or FILE:STRENGTH. Repeatable.", rich_help_panel=_WAN),
]
_LIVE = "LoRA whose strength streams may change (--set lora=0.5): FILE or FILE:STRENGTH. Repeatable."
LiveLoras = Annotated[list[str] | None, typer.Option("--live-lora", help=_LIVE, rich_help_panel=_WAN)]
ModelSet = Annotated[
    list[str] | None,
    typer.Option("--model-set", help="Change its config: dit.layers=2. Repeatable.", rich_help_panel=_WAN),
]
_SIZE = "Pictures of WIDTHxHEIGHT, or picture: shaped like --image. Taken to the nearest whole tokens."
Size = Annotated[str | None, typer.Option(help=_SIZE, rich_help_panel=_WAN)]
_FIT = "GiB that the model and one stream may take: decoder and window are chosen so."
Fit = Annotated[float | None, typer.Option(min=0.001, help=_FIT, rich_help_panel=_WAN)]
TextEncoder = Annotated[
    str | None, typer.Option(help="Folder, file or hub name of the text encoder.", rich_help_panel=_WAN)
]
TextDevice = Annotated[str | None, typer.Option(help="Device of the text encoder.", rich_help_panel=_WAN)]
TextCache = Annotated[Path | None, typer.Option(help="Folder for encoded prompts.", rich_help_panel=_WAN)]
_TEXT_INT8 = "Linear layers of the text encoder in eight bits: 6.7 GB of memory for 11.4."
TextInt8 = Annotated[bool, typer.Option("--text-int8", help=_TEXT_INT8, rich_help_panel=_WAN)]
FreeText = Annotated[
    bool, typer.Option("--free-text", help="Free the text encoder after use.", rich_help_panel=_WAN)
]
DType = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(help="Of the network.", rich_help_panel=_WAN),
]

# By name, with what they are where they are not given.
Options = Mapping[str, tuple[Any, Any]]
COMPUTED: Options = {
    "settings": (Settings, None),
    "device": (Device, "auto"),
    "runner": (Runner, None),
    "quantize": (Quantize, None),
    "decode_beside": (DecodeBeside, False),
    "decoder_device": (DecoderDevice, None),
    "deadline": (Deadline, None),
}
WAN: Options = {
    "weights": (Weights, None),
    "random_weights": (RandomWeights, False),
    "loras": (Loras, None),
    "live_loras": (LiveLoras, None),
    "model_set": (ModelSet, None),
    "size": (Size, None),
    "fit": (Fit, None),
    "text_encoder": (TextEncoder, None),
    "text_device": (TextDevice, None),
    "text_cache": (TextCache, None),
    "free_text": (FreeText, False),
    "text_int8": (TextInt8, False),
    "dtype": (DType, None),
}
_REPEATABLE = ("settings", "loras", "live_loras", "model_set")


def with_options(*groups: Options) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of some groups besides its own: it has them in its `**more`, the repeatable
    ones as tuples.
    """
    shared = {name: option for group in groups for name, option in group.items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def whole(**given: Any) -> None:
            command(**given | {n: tuple(given[n] or ()) for n in _REPEATABLE if n in shared})

        own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
        made = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, (kind, default) in shared.items()
        ]
        # what typer reads
        vars(whole)["__signature__"] = inspect.Signature([*own, *made])
        return whole

    return decorate
