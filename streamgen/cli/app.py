"""The `streamgen` command. Data goes to stdout, everything else to stderr.

Exit codes: 0 all done, 1 some items failed, 2 bad usage or input, 130 interrupted. torch is imported only by
what needs it.
"""

import errno
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import InputError, Interrupted, StreamgenError
from ..suggest import shorten
from .arguments import COMPUTED, WAN, AsJson, DType, Loras, Model, ModelSet, Quiet, TextEncoder, with_options
from .bench import bench
from .motion import app as motion_app
from .progress import Stop, say
from .tables import show

# typer brings click under its own name in newer versions and as a dependency in older ones
_USAGE_ERROR: type[Exception] = next(
    kind
    for kind in typer.BadParameter.__mro__
    if kind.__name__ == "ClickException" and issubclass(kind, Exception)
)

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(motion_app, name="motion")

_SOURCE = (
    "A prompt; a jobs file (.txt, .jsonl, .csv, .yaml, or - for standard input); or a timeline or record."
)
_OUTPUT = "The video (.mp4); for a jobs file, a folder."
_SECONDS = "Length: 8 by default; of a record its own, of a timeline 2 s beyond its last event."
_SEED = "Default 0; in a jobs file, that of the first job."
_AT = (
    'Change the prompt: "4:PROMPT" at second 4, "4-6:PROMPT" from 4 to 6, "4:.7*PROMPT + .3*PROMPT" a blend. '
    "Repeatable."
)
_MOTION = "Motion file from frame 0: drags, paths, boxes, grids, pins, camera, tracks."
_GESTURE = (
    "A named motion as NAME=FILE, besides --motion; NAME= lets go of one of a saved stream. Repeatable."
)
_CACHE = "What changes of the prompt do with the past: recache (default), keep or clear."
_INPUT = "Live input: a clip, or - for standard input (Y4M, or raw RGB with --input-size)."
_INPUT_SIZE = "WIDTHxHEIGHT of raw RGB frames."
_STRENGTH = "How much of the input is made anew: above 0, at most 1."
_MASK = "Where it is: a picture, bright where it may change, or .npy."
_PICTURE = "A picture that begins a scene at a time, SECONDS:FILE. Repeatable."
_REFERENCE = "A picture that takes the sink's place, SECONDS:FILE. Repeatable."
_SAVE = "Save the stream at the end of the clip."
_CONTINUE = "Go on with a saved stream; times count from there, PROMPT is optional."
_EXTEND = "With --continue-from: put the new frames behind those of this clip, in one video."
_LIST = "Check all jobs, list what would be rendered, with an estimate of time; write nothing."
_RETRY = "Try again what failed in an earlier run."
_SHARD = "Only the I-th of N shares, e.g. 0/4, for job arrays."
_ENGINE = "local, or ray: as tasks on a Ray cluster (extra `ray`)."
_PREVIEW = "Also a small animation: gif or webp."
_FORMAT = "Format of the jobs: txt, jsonl, csv or yaml, where the name does not say it."
_THREADS = "CPU threads; frames are bit-exact for one number."
_BATCH = "Render so many clips at once, in larger passes of the network (runner plain)."
_JOBS = "Jobs file"
_STEER = "One clip"

Source = Annotated[str | None, typer.Argument(help=_SOURCE)]
Output = Annotated[Path | None, typer.Option("--output", "-o", help=_OUTPUT)]
Seconds = Annotated[float | None, typer.Option(help=_SECONDS)]
Seed = Annotated[int | None, typer.Option(help=_SEED)]
At = Annotated[list[str] | None, typer.Option("--at", help=_AT, rich_help_panel=_STEER)]
Motion = Annotated[str | None, typer.Option(help=_MOTION, rich_help_panel=_STEER)]
Gestures = Annotated[list[str] | None, typer.Option("--gesture", help=_GESTURE, rich_help_panel=_STEER)]
Cache = Annotated[str | None, typer.Option(help=_CACHE, rich_help_panel=_STEER)]
Image = Annotated[str | None, typer.Option(help="Start from this picture.", rich_help_panel=_STEER)]
Video = Annotated[str | None, typer.Option(help="Start from this clip.", rich_help_panel=_STEER)]
_LIVE = "Live input and pictures"
Input = Annotated[str | None, typer.Option("--input", help=_INPUT, rich_help_panel=_LIVE)]
InputSize = Annotated[str | None, typer.Option(help=_INPUT_SIZE, rich_help_panel=_LIVE)]
InputRate = Annotated[
    float | None, typer.Option(help="Frames a second of raw frames.", rich_help_panel=_LIVE)
]
Strength = Annotated[float | None, typer.Option(help=_STRENGTH, rich_help_panel=_LIVE)]
Mask = Annotated[str | None, typer.Option(help=_MASK, rich_help_panel=_LIVE)]
Pictures = Annotated[list[str] | None, typer.Option("--picture", help=_PICTURE, rich_help_panel=_LIVE)]
References = Annotated[list[str] | None, typer.Option("--reference", help=_REFERENCE, rich_help_panel=_LIVE)]
SaveState = Annotated[Path | None, typer.Option(help=_SAVE, rich_help_panel=_STEER)]
ContinueFrom = Annotated[Path | None, typer.Option(help=_CONTINUE, rich_help_panel=_STEER)]
Extend = Annotated[Path | None, typer.Option(help=_EXTEND, rich_help_panel=_STEER)]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Render again what is there.", rich_help_panel=_JOBS)
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help=_RETRY, rich_help_panel=_JOBS)]
DryRun = Annotated[bool, typer.Option("--dry-run", help=_LIST, rich_help_panel=_JOBS)]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N jobs.", rich_help_panel=_JOBS)]
ShardOf = Annotated[str | None, typer.Option("--shard", help=_SHARD, rich_help_panel=_JOBS)]
Batch = Annotated[int | None, typer.Option(min=1, max=64, help=_BATCH, rich_help_panel=_JOBS)]
Engine = Annotated[str, typer.Option(help=_ENGINE, rich_help_panel=_JOBS)]
JobFormat = Annotated[str | None, typer.Option("--format", help=_FORMAT, rich_help_panel=_JOBS)]
Schema = Annotated[
    bool, typer.Option("--schema", help="Print the JSON Schema of a job.", rich_help_panel=_JOBS)
]
Png = Annotated[bool, typer.Option("--png", help="Also every frame as a PNG file.")]
Preview = Annotated[Literal["gif", "webp"] | None, typer.Option(help=_PREVIEW)]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, help=_THREADS)]
AsEvents = Annotated[bool, typer.Option("--json", help="JSON events on stdout, one a line.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Whatever the input is, an error is one line on stderr."""
    command = typer.main.get_command(app)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = int(command.main(given, prog_name="streamgen", standalone_mode=False) or 0)
        if code == Interrupted.exit_code:
            # newer versions of typer make an exit of a KeyboardInterrupt
            say("interrupted")
        return code
    except Interrupted as error:
        say(str(error))
        return error.exit_code
    except StreamgenError as error:
        say(f"error: {error}")
        return error.exit_code
    except _USAGE_ERROR as error:
        return _usage(error)
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted")
        return Interrupted.exit_code
    except MemoryError:
        say("error: out of memory")
        return 2
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        say(f"error: {shorten(error.filename)}: longer than a file name can be")
        return 2


def _usage(error: Any) -> int:
    message = error.format_message()
    if not message.strip():
        # a bare `streamgen` has printed its help
        return 2
    context = getattr(error, "ctx", None)
    say(f"error: {message} (see {context.command_path if context else 'streamgen'} --help)")
    return 2


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"streamgen {version('streamgen')}")
        except PackageNotFoundError:
            print("streamgen, from a checkout that is not installed")
        raise typer.Exit


@app.callback()
def streamgen(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Endless video from a prompt, in real time, steered while it plays."""


@app.command()
@with_options(COMPUTED, WAN)
def render(
    *,
    source: Source = None,
    output: Output = None,
    seconds: Seconds = None,
    seed: Seed = None,
    model: Model = "tiny",
    at: At = None,
    motion: Motion = None,
    gestures: Gestures = None,
    cache: Cache = None,
    image: Image = None,
    video: Video = None,
    live_input: Input = None,
    input_size: InputSize = None,
    input_rate: InputRate = None,
    strength: Strength = None,
    mask: Mask = None,
    pictures: Pictures = None,
    references: References = None,
    threads: Threads = None,
    batch: Batch = None,
    save_state: SaveState = None,
    continue_from: ContinueFrom = None,
    extend: Extend = None,
    png: Png = False,
    preview: Preview = None,
    job_format: JobFormat = None,
    overwrite: Overwrite = False,
    retry_failed: RetryFailed = False,
    dry_run: DryRun = False,
    limit: Limit = None,
    shard: ShardOf = None,
    engine: Engine = "local",
    schema: Schema = False,
    as_json: AsEvents = False,
    quiet: Quiet = False,
    **more: Any,
) -> None:
    """Render a prompt, a file of jobs, or a recorded timeline to video.

    Beside each video lies its record, <name>.json.

    A jobs file goes on where it stopped, in any number of processes at once.
    """
    given = dict(locals())
    _rendered(given | given.pop("more"))


# of `render`, which may be given several times
_LISTS = ("at", "gestures", "pictures", "references")


def _rendered(given: dict[str, Any]) -> None:
    """`render` with the values of its options by name."""
    if given.pop("schema"):
        from ..render.schema import job_schema

        print(json.dumps(job_schema(), indent=2, ensure_ascii=False))
        return
    from .options import RenderOptions
    from .render import render_source

    if given["output"] is None:
        raise InputError("missing option -o: expected the video to write, or a folder for a jobs file")
    given["input"] = given.pop("live_input")
    given |= {name: tuple(given[name] or ()) for name in _LISTS}
    raise typer.Exit(render_source(RenderOptions(**given), Stop()))


app.command()(bench)


@app.command()
def models() -> None:
    """List the models that come with the package."""
    from ..families import find_model, model_names
    from ..tiny.config import read_tiny_config
    from ..wan.config import read_wan_config, wan_model_names

    names = model_names()
    if not names:
        say("note: no models come with this installation; give --model a checkpoint directory")
    for name in names:
        config = read_tiny_config(find_model(name))
        print(f"{name}\t{config.width}x{config.height}\t{config.fps} fps\t{find_model(name)}")
    for name in wan_model_names():
        wan = read_wan_config(find_model(name))
        print(f"{name}\t{wan.width}x{wan.height}\t{wan.fps} fps\tneeds --weights, see docs/wan.md")


@app.command()
def inspect(
    checkpoint: Annotated[
        str, typer.Argument(help="A model name, a checkpoint directory, or a weights file.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show what is in a checkpoint, and whether it fits its own config."""
    from ..families import find_model, inspect_checkpoint

    path = Path(checkpoint) if Path(checkpoint).is_file() else find_model(checkpoint)
    report = inspect_checkpoint(path)
    show(report, str(path), as_json)
    if report["problems"]:
        count = len(report["problems"])
        raise InputError(
            f"{path}: {count} problem{'s' if count > 1 else ''}, it does not load: {report['problems'][0]}"
        )


@app.command()
def adopt(
    source: Annotated[str, typer.Argument(help="A file, a folder, or hf://owner/repo/file@revision.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a model config into this folder.")
    ] = None,
    like: Annotated[str | None, typer.Option(help="Take chunks, window and steps of this model.")] = None,
    vae: Annotated[str | None, typer.Option(help="VAE that the source lacks: file or hf://...")] = None,
    tiny_decoder: Annotated[str | None, typer.Option(help="TAEHV in place of a VAE.")] = None,
    text_encoder: TextEncoder = None,
    model_set: ModelSet = None,
    as_json: AsJson = False,
) -> None:
    """Say what weights of others are, and write a model config that streams them.

    Only names and shapes are read. The written folder is what --model takes.
    """
    from ..wan.adopt import AdoptOptions
    from ..wan.adopt import adopt as adopt_weights
    from .adopted import show_adopted

    options = AdoptOptions(like, vae, tiny_decoder, text_encoder, tuple(model_set or ()))
    report = adopt_weights(source, output, options)
    show_adopted(report, as_json)
    if not report["usable"]:
        raise InputError(report["problems"][0])


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Folder or file of weights, or hf://owner/repo/file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    *,
    model: Annotated[str | None, typer.Option(help="What it is to become: see `streamgen models`.")] = None,
    to: Annotated[
        Literal["streamgen", "wan", "diffusers"], typer.Option(help="The naming to write.")
    ] = "streamgen",
    model_set: ModelSet = None,
    dtype: DType = None,
    quantize: Annotated[
        Literal["int8", "fp8"] | None, typer.Option(help="Write linear layers in eight bits.")
    ] = None,
    loras: Loras = None,
    as_json: AsJson = False,
) -> None:
    """Convert published weights to our format, and back.

    A LoRA that the model needs is merged. Beside the weights lies where they came from, with sha256.
    """
    import torch

    from ..wan.convert import convert_weights
    from ..wan.loras import parse_loras

    kind = None if dtype is None else getattr(torch, dtype)
    changes, merged = tuple(model_set or ()), parse_loras(loras or ())
    report = convert_weights(source, output, to, model, changes, kind, quantize, merged)
    show(report, f"streamgen convert: {source}", as_json)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A video.")],
    second: Annotated[Path, typer.Argument(help="The other one.")],
    as_json: AsJson = False,
) -> None:
    """Show where two renders differ, in their frames and in what they were made with.

    Exit code 0: equal, 1: not.
    """
    from ..render.compare import compare_renders

    result = compare_renders(first, second)
    show(result, f"{first} and {second}", as_json)
    raise typer.Exit(0 if result["equal"] else 1)


if __name__ == "__main__":
    main()
