"""The options of `streamgen render`, and what each of its uses does with them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..pipeline import Pipeline, load_pipeline
from ..video.outputs import Outputs, PreviewKind
from .progress import say

SECONDS = 8.0
MAX_THREADS = 1024
WAN_OPTIONS = (
    "weights",
    "random_weights",
    "loras",
    "model_set",
    "text_encoder",
    "text_device",
    "text_cache",
    "free_text",
    "dtype",
)

# names that are not those of their options
_OPTIONS = {"settings": "--set", "gestures": "--gesture", "loras": "--lora"}


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """Arguments of `streamgen render`; None, False and () where they were not given."""

    source: str | None
    output: Path
    seconds: float | None = None
    seed: int | None = None
    model: str = "tiny"
    at: tuple[str, ...] = ()
    motion: str | None = None
    gestures: tuple[str, ...] = ()
    cache: str | None = None
    image: str | None = None
    video: str | None = None
    settings: tuple[str, ...] = ()
    device: str = "auto"
    threads: int | None = None
    runner: str | None = None
    quantize: str | None = None
    deadline: float | None = None
    batch: int | None = None
    save_state: Path | None = None
    continue_from: Path | None = None
    extend: Path | None = None
    png: bool = False
    preview: PreviewKind | None = None
    job_format: str | None = None
    overwrite: bool = False
    retry_failed: bool = False
    dry_run: bool = False
    limit: int | None = None
    shard: str | None = None
    engine: str = "local"
    weights: str | None = None
    random_weights: bool = False
    loras: tuple[str, ...] = ()
    model_set: tuple[str, ...] = ()
    text_encoder: str | None = None
    text_device: str | None = None
    text_cache: Path | None = None
    free_text: bool = False
    dtype: str | None = None
    quiet: bool = False
    as_json: bool = False

    def outputs(self) -> Outputs:
        """What to make besides videos."""
        return Outputs(self.png, self.preview)


def open_model(options: RenderOptions, device: str, settled: bool = False) -> Pipeline:
    """The pipeline that the options name.

    Args:
        settled: whether it is said already on how many threads it runs.

    Raises:
        StreamgenError: see `load_pipeline`; or the model decodes no pictures, which a video needs.
    """
    pipeline = _load(options, device)
    if options.threads is None and not settled:
        pipeline.settle_threads()
    if pipeline.codec is None:
        raise InputError(
            f"model {options.model}: has decoder none and streams latents alone; a video needs vae or tiny"
        )
    return pipeline


def _load(options: RenderOptions, device: str) -> Pipeline:
    given = vars(options)
    if all(given[name] in (None, False, ()) for name in WAN_OPTIONS):
        return load_pipeline(options.model, device, runner=options.runner, quantize=options.quantize)
    import torch

    from ..wan.loras import parse_loras
    from ..wan.options import TextOptions, WanOptions

    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    text = TextOptions(options.text_device or "cpu", keep=not options.free_text, cache=options.text_cache)
    wan = WanOptions(
        options.weights,
        options.random_weights,
        options.model_set,
        options.text_encoder,
        text,
        note=lambda text: say(f"note: {text}"),
        loras=parse_loras(options.loras),
    )
    return load_pipeline(options.model, device, dtype, wan, options.runner, options.quantize)


def note_runner(pipeline: Pipeline, say: Callable[[str], None]) -> None:
    """Choose what computes chunks, and say where it is another than was asked for.

    Raises:
        InputError: it cannot be had.
    """
    if pipeline.asked_runner == "compile":
        say("runner compile: programs are made, which takes minutes the first time")
    note = pipeline.choose().note
    if note is not None:
        say(note)


def refuse(options: RenderOptions, names: tuple[str, ...], why: str) -> None:
    """Raise InputError for an option that was given where it has no meaning."""
    given = vars(options)
    for name in names:
        value = given[name]
        if value is not None and value is not False and value != ():
            option = _OPTIONS.get(name) or "--" + name.replace("_", "-")
            raise InputError(f"{option}: not here, {why}")
