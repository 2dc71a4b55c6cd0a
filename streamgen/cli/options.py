"""The options of `streamgen render`, and what each of its uses does with them."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..engine.parallel.mesh import Mesh
from ..errors import InputError
from ..families import describe
from ..live.open import RawFrames
from ..pipeline import Pipeline, load_pipeline
from ..render.job import LiveOptions
from ..suggest import shorten
from ..video.outputs import Outputs, PreviewKind
from ..video.read import image_size
from ..wan.config import config_file
from ..wan.loras import parse_loras
from ..wan.options import TextOptions, WanOptions
from ..wan.pictures import GRID, on_grid, parse_size, shaped_like
from .arguments import WAN
from .progress import say, shown_progress

SECONDS = 8.0
MAX_THREADS = 1024
WAN_OPTIONS = tuple(WAN)

# names that are not those of their options
_OPTIONS = {
    "pictures": "--picture",
    "references": "--reference",
    "settings": "--set",
    "gestures": "--gesture",
    "loras": "--lora",
    "live_loras": "--live-lora",
}


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
    input: str | None = None
    input_size: str | None = None
    input_rate: float | None = None
    strength: float | None = None
    mask: str | None = None
    pictures: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    device: str = "auto"
    threads: int | None = None
    runner: str | None = None
    quantize: str | None = None
    deadline: float | None = None
    decode_beside: bool = False
    decoder_device: str | None = None
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
    live_loras: tuple[str, ...] = ()
    model_set: tuple[str, ...] = ()
    size: str | None = None
    fit: float | None = None
    text_encoder: str | None = None
    text_device: str | None = None
    text_cache: Path | None = None
    free_text: bool = False
    text_int8: bool = False
    dtype: str | None = None
    quiet: bool = False
    as_json: bool = False

    def live(self) -> LiveOptions:
        """What they say of live input and pictures.

        Raises:
            InputError: options that need an input, without one.
        """
        needing = ("input_size", "input_rate", "strength", "mask")
        if self.input is None and self.continue_from is None:
            refuse(self, needing, "it is about live input, expected --input")
        if self.input_rate is not None and self.input_size is None:
            raise InputError("--input-rate: expected --input-size beside it, other inputs say their own rate")
        return LiveOptions(self.input, self.strength, self.mask, self.pictures, self.references)

    def raw_frames(self) -> RawFrames | None:
        """What raw frames of a pipe do not say of themselves.

        Raises:
            InputError: no size, or no rate.
        """
        if self.input_size is None:
            return None
        found = re.fullmatch(r"\s*(\d{1,5})\s*[x×]\s*(\d{1,5})\s*", self.input_size)
        if found is None:
            raise InputError(f"--input-size: expected WIDTHxHEIGHT, found {shorten(self.input_size)}")
        rate = self.input_rate
        if rate is not None and not 0 < rate <= 1000:
            raise InputError(f"--input-rate: expected above 0 and at most 1000, found {rate:g}")
        return RawFrames((int(found[1]), int(found[2])), rate)

    def outputs(self) -> Outputs:
        """What to make besides videos."""
        return Outputs(self.png, self.preview)


def open_model(
    options: RenderOptions, device: str, settled: bool = False, mesh: Mesh | None = None
) -> Pipeline:
    """The pipeline that the options name.

    Args:
        mesh: processes that compute its streams together.
        settled: whether it is said already on how many threads it runs.

    Raises:
        StreamgenError: see `load_pipeline`; or the model decodes no pictures, which a video needs.
    """
    pipeline = _load(options, device, mesh)
    if options.threads is None and not settled:
        pipeline.settle_threads()
    if pipeline.codec is None:
        raise InputError(
            f"model {options.model}: has decoder none and streams latents alone; a video needs vae or tiny"
        )
    if options.decode_beside or options.decoder_device is not None:
        pipeline.decode_beside(options.decoder_device)
    return pipeline


def _load(options: RenderOptions, device: str, mesh: Mesh | None) -> Pipeline:
    given = vars(options)
    wan = wan_options(given, lambda text: say(f"note: {text}"))
    return load_pipeline(
        options.model, device, dtype_of(options.dtype), wan, options.runner, options.quantize, mesh
    )


def wan_options(
    given: Mapping[str, Any],
    note: Callable[[str], None] | None = None,
    progress: Callable[[str, float | None], None] | None = None,
) -> WanOptions | None:
    """What the options of `arguments` say about a model of the Wan family; None where none was given
    and the model is of another one.

    Args:
        given: values by name; None, False and () where they were not given.
        note, progress: see `WanOptions`.

    Raises:
        InputError: a LoRA that cannot be.
    """
    plain = all(given[name] in (None, False, ()) for name in WAN_OPTIONS)
    # a model of the family has notes and progress to tell without any of them, too
    if plain and config_file(given["model"]) is None:
        return None
    text = TextOptions(
        given["text_device"] or "cpu",
        keep=not given["free_text"],
        cache=given["text_cache"],
        int8=given["text_int8"],
    )
    return WanOptions(
        given["weights"],
        given["random_weights"],
        (*given["model_set"], *_size_overrides(given, note)),
        given["text_encoder"],
        text,
        note=note,
        loras=parse_loras(given["loras"]),
        live_loras=parse_loras(given["live_loras"]),
        progress=progress,
        fit=given["fit"],
    )


def _size_overrides(given: Mapping[str, Any], note: Callable[[str], None] | None) -> tuple[str, ...]:
    """Changes of a model's config for `--size`; none without it.

    Raises:
        InputError: no size, or one of a picture that is not there.
    """
    asked, image = given["size"], given.get("image")
    if asked is None:
        return ()
    if asked == "picture":
        if image is None:
            raise InputError("--size picture: expected --image, whose shape is meant, found none")
        config = describe(given["model"], WanOptions(overrides=given["model_set"])).config
        own = (config.geometry().width, config.geometry().height)
        width, height = shaped_like(image_size(image), own)
    else:
        width, height = on_grid(*parse_size(asked))
    told = f"{width}x{height}"
    if note is not None and told != asked:
        note(f"--size {asked}: pictures of {told}, in whole tokens of {GRID} pixels")
    return (f"width={width}", f"height={height}")


def dtype_of(name: str | None) -> torch.dtype | None:
    """A precision of torch by its name."""
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return None if name is None else kinds[name]


def note_runner(pipeline: Pipeline, say: Callable[[str], None]) -> None:
    """Choose what computes chunks, and say where it is another than was asked for.

    Raises:
        InputError: it cannot be had.
    """
    with shown_progress(f"runner {pipeline.asked_runner}: programs") as progress:
        note = pipeline.choose(progress=progress).note
    if note is not None:
        say(note)
        pipeline.told.add(note)


def refuse(options: RenderOptions, names: tuple[str, ...], why: str) -> None:
    """Raise InputError for an option that was given where it has no meaning."""
    given = vars(options)
    for name in names:
        value = given[name]
        if value is not None and value is not False and value != ():
            option = _OPTIONS.get(name) or "--" + name.replace("_", "-")
            raise InputError(f"{option}: not here, {why}")
