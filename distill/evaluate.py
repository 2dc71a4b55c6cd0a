"""Evaluation: `python -m distill.evaluate --model tiny -o report/ [key=value]...`, or `--run` and curves, or
`--tokenizer`s or finished `--report`s beside each other, or `--rows` and the report made again.
"""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamgen.errors import InputError, StreamgenError


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
        "--report",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a finished report's folder, with a name for it: several of them in one table, and the same "
        "prompts and seeds one below the other",
    )
    parser.add_argument(
        "--rows",
        metavar="DIR",
        help="a report's folder: make the report again from its rows, without the model",
    )
    parser.add_argument("-o", "--out", required=True, help="folder of the report")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="how much is streamed: size=small, medium (default) or full, prompts=16 drift=0",
    )
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="key=value", help="stream settings"
    )
    parser.add_argument("--runner", help="what computes chunks, as `streamgen render` has it")
    parser.add_argument(
        "--quantize",
        help="what of them is in eight bits, as `streamgen render` has it; the report tells the error of the "
        "velocity, too",
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="streams at the same time")
    parser.add_argument("--json", action="store_true", help="print the report's figures on stdout")
    return parser.parse_intermixed_args(list(arguments))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        return _evaluate(options)
    except StreamgenError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: the same command goes on from the streams that are done\n")
        return 130


def _evaluate(options: argparse.Namespace) -> int:
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError('evaluation: needs matplotlib for its curves: pip install "streamgen[train]"')
    if options.processes < 1:
        raise InputError(f"--processes: expected at least 1, found {options.processes}")
    given = {
        "--model": options.model,
        "--run": options.run,
        "--tokenizer": options.tokenizer,
        "--report": options.report,
        "--rows": options.rows,
    }
    if len(found := [name for name, value in given.items() if value]) > 1:
        raise InputError(f"{', '.join(given)}: expected one of them, found {' and '.join(found)}")
    out_dir = Path(options.out)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out_dir}: cannot be made ({error.strerror})") from None
    if options.run is not None:
        page = _curves(options, Path(options.run), out_dir)
    elif options.tokenizer:
        page = _tokenizers(options, out_dir)
    elif options.report:
        page = _reports(options, out_dir)
    elif options.rows:
        page = _again(options, out_dir)
    else:
        report = _report(options, options.model or "tiny", out_dir)
        page = out_dir / "index.html"
        if options.json:
            sys.stdout.write(json.dumps(report) + "\n")
    sys.stderr.write(f"report: {page}\n")
    return 0


def _report(options: argparse.Namespace, model: str, out_dir: Path) -> dict[str, Any]:
    # Imported late, so that usage errors answer at once.
    from streamgen.engine.choice import RUNNER_VARIABLE, check_runner
    from streamgen.engine.quantize import QUANTIZE_VARIABLE, check_quantization
    from streamgen.render.job import parse_settings

    from .config import read_overrides
    from .evaluation.runner import Evaluator
    from .evaluation.suites import evaluation_config

    config = evaluation_config(read_overrides(options.overrides))
    # streams are made by processes of their own, which have no other way to know
    if options.runner is not None:
        os.environ[RUNNER_VARIABLE] = check_runner(options.runner)
    if options.quantize is not None:
        os.environ[QUANTIZE_VARIABLE] = check_quantization(options.quantize)
    evaluator = Evaluator(model, config, out_dir, parse_settings(options.settings), options.processes)
    return evaluator.run()


def _again(options: argparse.Namespace, out_dir: Path) -> Path:
    from .evaluation.report import make_report

    report = make_report(Path(options.rows), out_dir)
    if options.json:
        sys.stdout.write(json.dumps(report) + "\n")
    return out_dir / "index.html"


def _tokenizers(options: argparse.Namespace, out_dir: Path) -> Path:
    from .config import read_overrides
    from .evaluation.comparison import compare_tokenizers
    from .evaluation.suites import evaluation_config

    config = evaluation_config(read_overrides(options.overrides))
    rows = compare_tokenizers([Path(path) for path in options.tokenizer], config, out_dir)
    if options.json:
        sys.stdout.write(json.dumps(rows) + "\n")
    return out_dir / "index.html"


def _reports(options: argparse.Namespace, out_dir: Path) -> Path:
    from .evaluation.beside import compare_reports

    rows = compare_reports(options.report, out_dir)
    if options.json:
        sys.stdout.write(json.dumps(rows) + "\n")
    return out_dir / "index.html"


def _curves(options: argparse.Namespace, run_dir: Path, out_dir: Path) -> Path:
    """A report for each weights that a run kept, in folders of their own; finished streams are kept."""
    from .evaluation.curves import kept_weights, write_curves

    points = []
    for weights in kept_weights(run_dir):
        folder = out_dir / weights.name
        folder.mkdir(exist_ok=True)
        sys.stderr.write(f"{weights.directory}: {weights.minutes:.0f} minutes of training\n")
        points.append((weights, _report(options, str(weights.directory), folder)))
        page = write_curves(points, out_dir)
        if options.json:
            sys.stdout.write(json.dumps({"minutes": weights.minutes, **points[-1][1]}) + "\n")
    return page


if __name__ == "__main__":
    raise SystemExit(main())
