"""Evaluation: `python -m distill.evaluate --model tiny -o report/ [key=value]...`, or `--run` and curves, or
`--tokenizer`s or finished `--report`s beside each other, or `--rows` and the report made again.
"""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamgen.errors import InputError

from .command import add_streaming, check_processes, ended, out_folder, say, the_one

if TYPE_CHECKING:
    from .evaluation.suites import EvaluationConfig


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m distill.evaluate",
        description="Judge a model by the videos it renders: does it show what it is told, follow drags, "
        "switch well, stay itself? Writes a row per stream (rows.jsonl), report.json and index.html, and "
        "goes on where an earlier run with the same output folder stopped.",
    )
    parser.add_argument("--model", help="a name or a checkpoint directory (default: tiny)")
    parser.add_argument(
        "--run", help="a training run's folder: judge all weights it kept (preview.weights), draw curves"
    )
    parser.add_argument(
        "--tokenizer",
        action="append",
        default=[],
        metavar="DIR",
        help="the export of a tokenizer stage, or a checkpoint directory: judge the tokenizer alone; give it "
        "several times to compare them",
    )
    parser.add_argument(
        "--clip",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="with --tokenizer: a video file that is judged beside the world's clips; give it several times",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="with --tokenizer: PSNR alone, on short clips of the world and on the files of --clip",
    )
    parser.add_argument(
        "--report",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a finished report's folder, with a name for it: several of them in one table, and the same "
        "prompts and seeds one below the other",
    )
    parser.add_argument(
        "--rows", metavar="DIR", help="a report's folder: make the report again from its rows"
    )
    parser.add_argument(
        "--ways",
        metavar="WAY,WAY",
        help="the evaluation's switches, their words changed over --over seconds: the same ones once under "
        "each way (linear, spherical, at once), compared in pairs; how many: switches=32",
    )
    parser.add_argument("--over", type=float, default=2.0, metavar="SECONDS", help="with --ways (default: 2)")
    _add_shared(parser)
    return parser.parse_intermixed_args(list(arguments))


def _add_shared(parser: argparse.ArgumentParser) -> None:
    """How much is streamed, by what, and where the report goes."""
    parser.add_argument("-o", "--out", required=True, help="folder of the report")
    add_streaming(parser, "how much is streamed: size=small, medium (default) or full, prompts=16 drift=0")
    parser.add_argument("--runner", help="what computes chunks, as `streamgen render` has it")
    parser.add_argument(
        "--quantize",
        help="what of them is in eight bits, as `streamgen render` has it; the report tells the error of the "
        "velocity, too",
    )
    parser.add_argument(
        "--readers",
        type=Path,
        metavar="FILE",
        help="with --model, --run and --tokenizer: keeps what the readers of shapes and motions learn, for "
        "evaluations to come; written where it is not there",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 a full disk, 2 bad input, 130 interrupted."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    return ended(
        lambda: _evaluate(options), "interrupted: the same command goes on from the streams that are done"
    )


def _evaluate(options: argparse.Namespace) -> int:
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError('evaluation: needs matplotlib for its curves: pip install "streamgen[train]"')
    check_processes(options.processes)
    given = {f"--{name}": vars(options)[name] for name in ("model", "run", "tokenizer", "report", "rows")}
    # ways are those of a model
    if options.ways:
        given = {"--ways": options.ways} | {name: value for name, value in given.items() if name != "--model"}
    do = {
        "--run": _curves,
        "--tokenizer": _tokenizers,
        "--report": _reports,
        "--rows": _again,
        "--ways": _ways,
    }
    mode = the_one(given, "--model")
    for name, given_with in (("--clip", options.clip), ("--quick", options.quick)):
        if given_with and mode != "--tokenizer":
            raise InputError(f"{name}: is for --tokenizer, found none")
    if options.readers is not None and mode in ("--report", "--rows", "--ways"):
        raise InputError(f"--readers: is for --model, --run and --tokenizer, found {mode}")
    out_dir = out_folder(options.out)
    for found in do.get(mode, _streams)(options, out_dir):
        if options.json:
            sys.stdout.write(json.dumps(found) + "\n")
    say(f"report: {out_dir / 'index.html'}")
    return 0


def _streams(options: argparse.Namespace, out_dir: Path) -> Iterator[Any]:
    yield _report(options, options.model or "tiny", out_dir)


def _report(options: argparse.Namespace, model: str, out_dir: Path) -> dict[str, Any]:
    # Imported late, so that usage errors answer at once.
    from streamgen.engine.choice import RUNNER_VARIABLE, check_runner
    from streamgen.engine.quantize import QUANTIZE_VARIABLE, check_quantization
    from streamgen.render.job import parse_settings

    from .evaluation.runner import Evaluator

    # streams are made by processes of their own, which have no other way to know
    if options.runner is not None:
        os.environ[RUNNER_VARIABLE] = check_runner(options.runner)
    if options.quantize is not None:
        os.environ[QUANTIZE_VARIABLE] = check_quantization(options.quantize)
    settings = parse_settings(options.settings)
    return Evaluator(model, _config(options), out_dir, settings, options.processes, options.readers).run()


def _again(options: argparse.Namespace, out_dir: Path) -> Iterator[Any]:
    from .evaluation.report import make_report

    yield make_report(Path(options.rows), out_dir)


def _tokenizers(options: argparse.Namespace, out_dir: Path) -> Iterator[Any]:
    from .config import require
    from .evaluation.comparison import compare_pixels, compare_tokenizers

    tokenizers, config = [Path(path) for path in options.tokenizer], _config(options)
    require(config.clips > 0, "clips", ">= 8 with --tokenizer", config.clips)
    if options.quick:
        yield compare_pixels(tokenizers, config, out_dir, options.clip)
    else:
        yield compare_tokenizers(tokenizers, config, out_dir, options.clip, options.readers)


def _ways(options: argparse.Namespace, out_dir: Path) -> Iterator[Any]:
    from streamgen.render.job import parse_settings

    from .evaluation.transitions import compare_ways

    ways, settings = options.ways.split(","), parse_settings(options.settings)
    model, seconds = options.model or "tiny", options.over
    yield compare_ways(model, _config(options), ways, seconds, out_dir, settings, options.processes)


def _reports(options: argparse.Namespace, out_dir: Path) -> Iterator[Any]:
    from .evaluation.beside import compare_reports

    yield compare_reports(options.report, out_dir)


def _curves(options: argparse.Namespace, out_dir: Path) -> Iterator[Any]:
    """A report for each weights that a run kept, in folders of their own; finished streams are kept."""
    from .evaluation.curves import kept_weights, write_curves

    points = []
    for weights in kept_weights(Path(options.run)):
        folder = out_dir / weights.name
        folder.mkdir(exist_ok=True)
        say(f"{weights.directory}: {weights.minutes:.0f} minutes of training")
        points.append((weights, _report(options, str(weights.directory), folder)))
        write_curves(points, out_dir)
        yield {"minutes": weights.minutes, **points[-1][1]}


def _config(options: argparse.Namespace) -> "EvaluationConfig":
    from .config import read_overrides
    from .evaluation.suites import evaluation_config

    return evaluation_config(read_overrides(options.overrides))


if __name__ == "__main__":
    raise SystemExit(main())
